"""Dropout under opcheck, torch.compile, fake tensors, export and checkpointing."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastreg import functional as F
from fastreg import reference
from tests.common import COMPILED_BACKENDS, DEVICES, DTYPES, LAYOUTS, channels_last, in_layout
from tests.known_answers import rng_state

pytestmark = pytest.mark.not_on_kernels(
    "what the compiler makes of them calls operators that other tests run, and takes minutes"
)

OPS = torch.ops.fastreg


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


def exact(x, p, state):
    return reference.dropout.dropout(x, p, state)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device, layout, requires_grad):
    def x():
        return in_layout(torch.randn(2, 3, 4, 5, device=device), layout).requires_grad_(requires_grad)

    state = rng_state(1, 8, device)
    strides = channels_last(torch.empty(2, 3, 4, 5)).stride()
    torch.library.opcheck(OPS.dropout.default, (x(), 0.3, state))
    torch.library.opcheck(OPS.dropout.default, (x(), 0.3, state, strides, (8, 40, 80)))
    # Two runs draw two states: what the checks compare must not depend on them.
    torch.library.opcheck(OPS.dropout_seeded.default, (x(), 1.0))
    for op, arguments in ((OPS.dropout_, (0.3, state)), (OPS.dropout_seeded_, (1.0,))):
        torch.library.opcheck(op.default, (x().mul(1) if requires_grad else x(), *arguments))


def test_random_operators_are_tagged():
    for op in (OPS.dropout_seeded, OPS.dropout_seeded_):
        assert torch.Tag.nondeterministic_seeded in op.default.tags
    for op in (OPS.dropout, OPS.dropout_, OPS.dropout_seeded, OPS.dropout_seeded_):
        assert torch.Tag.needs_exact_strides in op.default.tags


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_as_eager(device, inplace, layout, dynamic):
    """The same mask in the same order, gradients in another order included."""

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def f(x, state):
        y = F.dropout(x * 1, 0.4, inplace=inplace, rng_state=state)
        return y.flatten(1).relu(), y.sum()

    x = in_layout(torch.randn(4, 3, 5, 7, device=device), layout).requires_grad_()
    state = rng_state(3, 8, device)
    y, total = f(x, state)
    # The order that the compiler's own x * 1 has in eager mode.
    expected = exact(x.detach() * 1, 0.4, state)
    assert torch.equal(y, expected.flatten(1).relu())
    (y.sum() + total).backward()
    kept = exact(torch.ones_like(x.detach() * 1), 0.4, state)
    assert torch.equal(x.grad, kept * (1 + (x > 0)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_draws(device, backend):
    """Two dropouts have two masks, the next call others, and backward the mask of its forward."""

    @torch.compile(fullgraph=True, backend=backend)
    def f(x):
        return F.dropout(x, 0.5), F.dropout(x, 0.5)

    x = torch.ones(4, 64, device=device, requires_grad=True)
    first, second = f(x)
    again, _ = f(x)
    assert not torch.equal(first, second) and not torch.equal(first, again)
    for y in (first, second, again):
        assert 64 < int((y == 0).sum()) < 192
    (first * 3 + second).sum().backward()
    assert torch.equal(x.grad, 3 * first + second)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_seeds_differ_in_every_bit(device):
    """The compiler's own randint draws from all 64 bits."""
    draw = torch.compile(lambda: reference.dropout.draw_state(torch.device(device)), fullgraph=True)
    states = torch.stack([draw() for _ in range(64)])
    assert (states[:, 1] == 0).all()
    for bit in range(64):
        assert 0 < int((states[:, 0] >> bit & 1).sum()) < 64


@pytest.mark.parametrize("device", COMPILED_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fake_tensors(device, dtype):
    """Without the autograd engine, which wants a GPU for tensors on "cuda"."""
    with FakeTensorMode():
        x = channels_last(torch.empty(2, 3, 4, 5, device=device, dtype=dtype)).requires_grad_()
        state = torch.empty(2).long()
        for y in (F.dropout(x), F.dropout(x * 1, inplace=True), F.dropout(x, rng_state=state)):
            assert (y.shape, y.dtype, y.device, y.stride()) == (x.shape, x.dtype, x.device, x.stride())
            assert y.requires_grad
        gradient = OPS.dropout(torch.empty(2, 3, 4, 5, device=device, dtype=dtype), 0.5, state, x.stride())
        assert gradient.stride() == x.stride()
        gaps = channels_last(torch.empty(2, 3, 4, 10, device=device, dtype=dtype))[..., ::2]
        assert F.dropout(gaps).stride() == torch.empty_like(gaps).stride() == (60, 1, 15, 3)
        output, state = OPS.dropout_seeded(x, 0.5)
        assert (state.shape, state.dtype, state.device) == ((2,), torch.int64, x.device)


def test_export():
    class Model(torch.nn.Module):
        def forward(self, x, state):
            return F.dropout(x, 0.5, rng_state=state)

    x, state = torch.randn(4, 6), rng_state(1, 0)
    program = torch.export.export(Model(), (x, state))
    assert torch.equal(program.module()(x, state), exact(x, 0.5, state))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(device, use_reentrant):
    """Recomputation sees the mask of the first pass."""
    x = torch.rand(1000, device=device).add(1).requires_grad_()
    seen = []

    def block(x):
        y = F.dropout(x * 2, 0.5)
        seen.append(y.detach().clone())
        return y.square()

    torch.utils.checkpoint.checkpoint(block, x, use_reentrant=use_reentrant).sum().backward()
    assert len(seen) == 2 and torch.equal(*seen)
    assert torch.equal(x.grad, 2 * seen[0] * torch.where(seen[0] == 0, 0.0, 4.0))
