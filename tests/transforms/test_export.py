"""torch.export, AOTInductor, torch.jit.trace, autocast, and processes that fork."""

import copy

import pytest
import torch

import fastreg
from fastreg import nn
from tests.common import DEVICES, channels_last, replay_as_traced

pytestmark = pytest.mark.not_on_kernels(
    "what the compiler makes of them calls operators that other tests run, and takes minutes"
)

devices = pytest.mark.parametrize("device", DEVICES)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout2d(0.3),
            nn.BatchNormAct2d(4, act="hardswish", pre_act="relu"),
        )
        self.last = nn.BatchNormAct2d(4)
        self.act, self.path, self.scaled = nn.ActDropout("gelu", 0.2), nn.DropPath(0.1), nn.Dropout(0.4, scaling="test")

    def forward(self, x):
        x = self.layers(x)
        return self.scaled(self.path(self.act(self.last(x, x)), x))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def model_and_input(device="cpu"):
    """With statistics that are not those of a new model."""
    model, x = Model().to(device), torch.randn(3, 2, 6, 6, device=device)
    model(x)
    return model, x


def operators(graph):
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


@devices
@pytest.mark.parametrize("strict", [True, False])
def test_training(device, strict):
    """One operator for each layer, with what they write; the program's masks are those of the states that it draws."""
    model, x = model_and_input(device)
    program = torch.export.export(copy.deepcopy(model), (x,), strict=strict)
    assert any(name.startswith("fastreg.batch_norm") for name in operators(program.graph))
    exported = program.module()
    with replay_as_traced(model, x, 1):
        expected = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(exported(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(exported.named_buffers()), dict(model.named_buffers()))
    written = program.run_decompositions({}).graph_signature.buffers_to_mutate.values()
    assert set(written) == {name for name, _ in model.named_buffers()}


@devices
@pytest.mark.parametrize("strict", [True, False])
def test_evaluation_without_fastreg(device, strict):
    """Dynamic batches included."""
    model, x = model_and_input(device)
    model.eval()
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model, (x,), strict=strict, dynamic_shapes=shapes)
    program = program.run_decompositions(fastreg.export_decompositions())
    assert not [name for name in operators(program.graph) if "fastreg" in name]
    for batch in (x, torch.randn(5, 2, 6, 6, device=device), channels_last(x)):
        torch.testing.assert_close(program.module()(batch), model(batch))


@devices
def test_dropout_without_fastreg(device):
    """Even the masks are the same."""

    class Dropped(torch.nn.Module):
        def forward(self, x, state):
            y = fastreg.functional.dropout(x, 0.5, rng_state=state)
            y = fastreg.functional.act_dropout(y, "relu", 0.3, residual=x, rng_state=state)
            return fastreg.functional.drop_path(y, 0.3, residual=x, rng_state=state)

    x, state = torch.randn(8, 6, device=device), torch.tensor([1, 8])
    program = torch.export.export(Dropped(), (x, state)).run_decompositions(fastreg.export_decompositions())
    assert not [name for name in operators(program.graph) if "fastreg" in name]
    torch.testing.assert_close(program.module()(x, state), Dropped()(x, state))


@devices
def test_decompositions_cover_the_operators_of_evaluation(device):
    """All that take no gradient, write nothing and draw nothing."""
    names = {op.name().removeprefix("fastreg::") for op in fastreg.export_decompositions()}
    assert {name for name in dir(torch.ops.fastreg) if name.endswith("_eval")} <= names


@devices
def test_aot_inductor(device, tmp_path):
    """A model in training, compiled ahead of time: outputs, and what it writes over two calls."""
    model = torch.nn.Sequential(nn.BatchNorm1d(6), torch.nn.ReLU()).to(device)
    x, reference = torch.randn(8, 6, device=device), copy.deepcopy(model)
    program = torch.export.export(model, (x,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    for _ in range(2):
        torch.testing.assert_close(loaded(x), reference(x))
    constants = loaded.get_constant_fqns()
    assert any("running_mean" in name for name in constants)


@devices
@pytest.mark.parametrize("training", [True, False])
def test_jit_trace(device, training):
    """Of torch's operators alone."""
    model, x = model_and_input(device)
    model.train(training)
    traced = torch.jit.trace(copy.deepcopy(model), x, check_trace=False)
    assert "fastreg::" not in str(traced.inlined_graph)
    if training:
        first, second = traced(x), traced(x)
        assert not torch.equal(first == 0, second == 0)
    else:
        torch.testing.assert_close(traced(x), model(x))


@devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("use_reentrant", [None, True, False])
def test_autocast(device, dtype, use_reentrant):
    """Activations in 16 bits, parameters and statistics in 32, as torch's layers; under checkpointing too, where the
    statistics move twice, as torch's do."""
    ours = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.0)).to(device)
    torchs = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.0)).to(device)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 2, 6, 6, device=device)
    for model in (ours, torchs):
        leaf = x.clone().requires_grad_()
        with torch.autocast(torch.device(device).type, dtype=dtype):
            if use_reentrant is None:
                y = model(leaf)
            else:
                y = torch.utils.checkpoint.checkpoint(model, leaf, use_reentrant=use_reentrant)
        assert y.dtype is dtype
        y.float().square().sum().backward()
        assert all(p.grad.dtype is torch.float32 for p in model.parameters())
    # An activation's last bit in 16-bit types is 2**-8 or smaller.
    torch.testing.assert_close(dict(ours.named_buffers()), dict(torchs.named_buffers()), rtol=1e-4, atol=1e-4)
    for one, other in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0.05, atol=0.5)


class Masks(torch.utils.data.Dataset):
    """Each sample a mask that a worker draws."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return fastreg.functional.dropout(torch.ones(64), 0.5), fastreg.functional.batch_norm(
            torch.eye(4), None, None, training=True
        )


def test_workers_that_fork():
    """Dropout and batch norm run in processes that fork after torch's threads were started, and draw from the seeds
    that the loader gives them: the same in every run, other in every worker and epoch."""
    fastreg.functional.dropout(torch.ones(1 << 20), 0.5)

    def epoch(generator):
        loader = torch.utils.data.DataLoader(
            Masks(), batch_size=2, num_workers=2, generator=generator, multiprocessing_context="fork"
        )
        return torch.cat([mask for mask, _ in loader])

    generator = torch.Generator().manual_seed(3)
    first, second = epoch(generator), epoch(generator)
    assert len({tuple(row) for row in torch.cat((first, second)).tolist()}) == 16
    assert torch.equal(epoch(torch.Generator().manual_seed(3)), first)
