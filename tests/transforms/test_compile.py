"""torch.compile of whole models: every module in one graph, random numbers, checkpointing, torch.func."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastreg
from fastreg import functional as F
from fastreg import nn
from tests.common import DEVICES, replay_as_traced

pytestmark = pytest.mark.not_on_kernels(
    "what the compiler makes of them calls operators that other tests run, and takes minutes"
)

devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


def compiled(function, backend="aot_eager", **keywords):
    return torch.compile(function, backend=backend, fullgraph=True, **keywords)


class Everything(torch.nn.Module):
    """All of fastreg's modules that take images, sequences, volumes or rows."""

    def __init__(self):
        super().__init__()
        self.images = torch.nn.Sequential(nn.BatchNorm2d(4), nn.Dropout2d(0.2), nn.BatchNormAct2d(4, drop=0.1))
        self.rows = torch.nn.Sequential(nn.DropConnectLinear(6, 6), nn.ActDropout("gelu", 0.2), nn.AlphaDropout(0.1))
        self.sequences = torch.nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.Dropout1d(0.2), nn.BatchNormAct1d(4))
        self.volumes = torch.nn.Sequential(nn.BatchNorm3d(4), nn.Dropout3d(0.2), nn.FeatureAlphaDropout(0.1))
        self.path, self.add = nn.DropPath(0.3), nn.BiasActDropoutAdd(6, "relu", 0.2)
        self.last = torch.nn.Sequential(nn.BatchNormAct3d(4, act="silu"), nn.Dropout(0.3, inplace=True))

    def forward(self, x):
        y = self.path(self.images(x), x)
        y = self.add(self.rows(y), y)
        y = self.sequences(y.flatten(2)).view_as(y)
        return self.last(self.volumes(y.unsqueeze(2)))


def step(model, x):
    """Output, and all that a training step leaves."""
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    y.square().sum().backward()
    return y.detach(), leaf.grad, *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())


@devices
@pytest.mark.parametrize(
    "dynamic, steps", [(False, [(4, True), (4, False)]), (True, [(4, True), (6, True)])], ids=["static", "dynamic"]
)
def test_every_module(device, dynamic, steps):
    """In one graph, without a break: batch sizes, and training or evaluation, as in eager mode, with the same masks."""
    eager, other = Everything().to(device), Everything().to(device)
    other.load_state_dict(eager.state_dict())
    model = compiled(other, dynamic=dynamic)
    for size, training in steps:
        x = torch.randn(size, 4, 2, 6, device=device)
        eager.train(training)
        model.train(training)
        with replay_as_traced(eager, x, size):
            expected = step(eager, x)
        torch.manual_seed(size)
        results = expected, step(model, x)
        # Activations differ from the compiler's decompositions of them by rounding.
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
        assert torch.equal(results[0][0] == 0, results[1][0] == 0)


@devices
def test_inductor_with_fallback_random(device):
    """After manual_seed alone, compiled code draws the masks of its states, as torch's own dropout does then."""
    model = torch.nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.4), nn.DropPath(0.2)).to(device)
    x = torch.randn(16, 8, device=device)
    with torch._inductor.config.patch(fallback_random=True):
        with replay_as_traced(model, x, 3):
            expected = model(x) != 0
        torch.manual_seed(3)
        assert torch.equal(compiled(model, "inductor")(x) != 0, expected) and not expected.all()


@devices
def test_reduce_overhead(device):
    """Updates of statistics are those of static buffers. On a GPU the steps are CUDA graphs, with new masks each."""
    eager, other = (torch.nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5)).to(device) for _ in range(2))
    model = torch.compile(other, fullgraph=True, mode="reduce-overhead")
    seen = []
    for _ in range(4):
        x = torch.randn(16, 8, device=device, requires_grad=True)
        y = model(x)
        y.sum().backward()
        seen.append((y != 0).clone())
        eager(x)
    assert len({tuple(mask.flatten().tolist()) for mask in seen}) == 4
    torch.testing.assert_close(dict(other.named_buffers()), dict(eager.named_buffers()))
    if device == "cuda":
        assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


def squared(x):
    return F.dropout(x, 0.5).square() + F.dropout1d(x.unsqueeze(1), 0.5).squeeze(1).square()


def assert_mask_of_forward(function, device):
    """The squares' slopes tell which mask backward had."""
    x = torch.rand(64, 32, device=device).add(1).requires_grad_()
    y = function(x)
    assert y.detach().unique().numel() > 2 and (y == 0).any()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * y.detach() / x.detach())
    return y.detach()


@devices
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("inside", [True, False])
def test_checkpointing(device, backend, inside):
    """Within the compiled code or around it, recomputation sees the mask of the first pass."""
    if inside:
        f = compiled(lambda x: checkpoint(squared, x, use_reentrant=False), backend)
    else:
        within = compiled(squared, backend)

        def f(x):
            return checkpoint(within, x, use_reentrant=False)

    assert not torch.equal(*(assert_mask_of_forward(f, device) == 0 for _ in range(2)))


@devices
@pytest.mark.parametrize("inplace", [False, True])
def test_compiled_autograd(device, inplace):
    """Of eager code, where a node that marks what it writes used to be refused."""
    x, state = torch.randn(8, 3, 4, device=device), torch.tensor([1, 8])
    module = fastreg.nn.BatchNorm1d(3, device=device)

    def loss(x):
        y = F.dropout(x * 1, 0.5, inplace=inplace, rng_state=state)
        y = F.dropout(y[1:], 0.5, inplace=inplace, rng_state=state)  # a view
        y = F.dropout1d(y, 0.5, inplace=inplace)
        return module(y).pow(3).sum()

    gradients = []
    for context in (torch.no_grad(), torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager"))):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(1)
        with context, torch.enable_grad():
            loss(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@devices
def test_compiled_torch_func(device):
    """The rules for vmap and for derivatives hold for the compiler's tensors too."""
    state, weight = torch.tensor([1, 8]), torch.randn(3, device=device)
    x = torch.randn(4, 5, 3, device=device)

    def loss(x, weight):
        y = F.batch_norm(x, None, None, weight, None, True)
        return (F.dropout(y, 0.5, rng_state=state) ** 3).sum()

    f = torch.func.vmap(torch.func.grad(loss), (0, None))
    torch.testing.assert_close(compiled(f)(x, weight), f(x, weight))
    drawn = compiled(torch.func.vmap(lambda x: F.dropout(x, 0.5), randomness="different"))(torch.ones(4, 50))
    assert len({tuple(row) for row in drawn.tolist()}) == 4


@devices
def test_memory_format(device):
    f = compiled(
        lambda x, state: F.dropout(F.batch_norm(x, None, None, training=True), 0.5, rng_state=state), "inductor"
    )
    x = torch.randn(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last)
    y = f(x, torch.tensor([1, 8]))
    expected = F.dropout(F.batch_norm(x, None, None, training=True), 0.5, rng_state=torch.tensor([1, 8]))
    assert torch.equal(y, expected) and y.stride() == expected.stride()
