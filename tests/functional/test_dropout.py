"""fastreg.functional.dropout: values, gradients, states. Masks are compared exactly, element for element."""

import math

import pytest
import torch

from fastreg import _routing, reference
from fastreg import functional as F
from tests.common import DEVICES, DTYPES, LAYOUTS, channels_last, contiguous, expanded, in_layout, sliced, transposed
from tests.known_answers import MASKS, NUMEL, assert_mask, rng_state

pytestmark = pytest.mark.parametrize("device", DEVICES)

SHAPES = [(2, 3, 5, 7), (4, 6), (37,), (), (0, 3), (2, 3, 4, 5, 2)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tensor(*shape, device, dtype=torch.float32):
    return torch.randn(shape).to(device, dtype)


def exact(input, p, state):
    return reference.dropout.dropout(input, p, state.to(input.device))


# ---- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(device, dtype, layout, shape):
    x = in_layout(tensor(*shape, device=device, dtype=dtype), layout)
    state = rng_state(2**63 + 11, 8)
    for p in (0.1, 1 / 3, 0.5, 0.999, 1.0):
        y = F.dropout(x, p, rng_state=state)
        assert torch.equal(y, exact(x, p, state))
        assert y.dtype == dtype and y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("p, seed, offset, first, dropped", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_known_answers(device, dtype, p, seed, offset, first, dropped):
    y = F.dropout(torch.ones(NUMEL, device=device, dtype=dtype), p, rng_state=rng_state(seed, offset))
    assert_mask((y != 0).cpu(), first, dropped)


def test_mask_follows_memory_order(device):
    """A channels-last tensor and its contiguous permutation share a mask in memory, not by index."""
    x = torch.ones(4, 8, 5, 6, device=device)
    state = rng_state(3, 16)
    flat = F.dropout(x, 0.5, rng_state=state).flatten()
    last = F.dropout(channels_last(x), 0.5, rng_state=state)
    assert torch.equal(last.permute(0, 2, 3, 1).flatten(), flat)
    assert not torch.equal(last.flatten(), flat)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropped_nan_and_infinity_become_zero(device, dtype):
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0], device=device, dtype=dtype).repeat(500)
    state = rng_state(1, 0)
    kept = reference.dropout.keep_mask(2000, 0.5, state).to(device)
    y = F.dropout(x, 0.5, rng_state=state)
    assert (y[~kept] == 0).all()
    torch.testing.assert_close(y[kept], x[kept] * 2, rtol=0, atol=0, equal_nan=True)
    assert (F.dropout(x, 1.0) == 0).all()


def test_large_values_round_once(device):
    """x / (1 - p) past the largest finite value is infinite only where rounding says so."""
    x = torch.full((64,), 40000.0, device=device, dtype=torch.float16)
    y = F.dropout(x, 0.3, rng_state=rng_state(1, 0))
    kept = y[y != 0]
    assert kept.numel() and (kept == torch.tensor(40000.0 / 0.7, dtype=torch.float16)).all()


def test_state_from_a_strided_tensor(device):
    states = torch.tensor([[5, 0], [8, 0]], device=device)
    x = tensor(100, device=device)
    assert torch.equal(F.dropout(x, rng_state=states[:, 0]), F.dropout(x, rng_state=rng_state(5, 8)))


# ---- nothing dropped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_same_object_and_no_draw(device, dtype, inplace):
    x = torch.ones(5, device=device).to(dtype)
    empty = torch.ones(0, 3, device=device).to(dtype)
    before = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    assert F.dropout(x, 0.5, False, inplace) is x
    assert F.dropout(x, 0.0, True, inplace) is x
    assert F.dropout(empty, 0.5, True, inplace) is empty
    after = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    assert torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_everything_dropped(device, dtype, inplace):
    x = torch.ones(5, device=device).to(dtype)
    y = F.dropout(x, 1.0, inplace=inplace)
    assert y.dtype == dtype and not y.any() and (y is x) == inplace


def test_accepts_what_torch_accepts_for_p(device):
    x = tensor(3, 4, device=device)
    for p in (1, True, torch.tensor(1.0)):
        assert not F.dropout(x, p).any()
    assert F.dropout(x, 0) is x


# ---- states


def test_states_drawn(device):
    """On the CPU a seed of 64 bits from one randint; on CUDA the generator's seed, and its offset in steps of 8."""
    x = torch.ones(1000, device=device)
    torch.manual_seed(5)
    y = [F.dropout(x) for _ in range(2)]
    torch.manual_seed(5)
    if device == "cpu":
        seeds = [torch.randint(-(2**63), 2**63 - 1, (1,)) for _ in range(2)]
        states = [torch.cat((s, torch.zeros(1, dtype=torch.int64))) for s in seeds]
    else:
        states = [rng_state(5, offset) for offset in (0, 8)]
    assert torch.equal(y[0], exact(x, 0.5, states[0]))
    assert torch.equal(y[1], exact(x, 0.5, states[1]))


def test_calls_differ_and_manual_seed_repeats(device):
    x = torch.ones(1000, device=device)
    first, second = F.dropout(x), F.dropout(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(F.dropout(x), first)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.3, 1 / 3, 0.5, 0.9])
def test_drop_rate(device, p):
    """z-test: a true p fails with probability 6e-7."""
    n = 1 << 20
    dropped = int((F.dropout(torch.ones(n, device=device), p) == 0).sum())
    assert abs(dropped - n * p) < 5 * math.sqrt(n * p * (1 - p))


# ---- gradients: dropout of the gradient with the forward pass's mask, in the forward pass's order

GRADIENTS = [contiguous, channels_last, transposed, sliced, expanded]


def eager(x, p, state):
    return F.dropout(x, p, rng_state=state)


def in_place(x, p, state):
    return F.dropout(x * 1, p, inplace=True, rng_state=state)


def direct(x, p, state):
    return torch.ops.fastreg.dropout(x, p, state)


def direct_in_place(x, p, state):
    y = x * 1
    torch.ops.fastreg.dropout_(y, p, state)
    return y


def composed(x, p, state):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_routing, "_COMPILED_BACKENDS", frozenset())
        return F.dropout(x, p, rng_state=state)


def composed_in_place(x, p, state):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_routing, "_COMPILED_BACKENDS", frozenset())
        return F.dropout(x * 1, p, inplace=True, rng_state=state)


@pytest.mark.parametrize("call", [eager, in_place, direct, direct_in_place, composed, composed_in_place])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (6, 10), (2, 3, 4, 5, 2)], ids=str)
def test_gradient_in_any_order(device, call, gradient, layout, shape):
    x = in_layout(tensor(*shape, device=device), layout).requires_grad_()
    g = in_layout(tensor(*shape, device=device), gradient)
    # Numbered as the output is: for a sliced x, the in-place calls work on a dense copy.
    y = call(x, 0.4, rng_state(9, 24))
    assert torch.equal(y, exact(x, 0.4, rng_state(9, 24)))
    y.backward(g)
    mask = exact(torch.ones_like(x), 0.4, rng_state(9, 24)) != 0
    expected = torch.where(mask, g * torch.tensor(1 / 0.6, device=device), 0)
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("consumer", [lambda y: y.flatten(1).relu().sum(), lambda y: y.sum(), lambda y: y.mT.sum(0)])
@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("inplace", [False, True])
def test_gradient_through_consumers(device, consumer, layout, inplace):
    """Without a state given: the mask is read off the output."""
    x = in_layout(1 + torch.rand(4, 3, 5, 7, device=device), layout).requires_grad_()
    y = F.dropout(x * 1, 0.5, inplace=inplace)
    consumer(y).sum().backward()
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 2.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_keeps_dtype(device, dtype):
    x = tensor(50, device=device, dtype=dtype).requires_grad_()
    F.dropout(x, 0.3, rng_state=rng_state(1, 0)).backward(torch.ones_like(x))
    assert torch.equal(x.grad, exact(torch.ones_like(x), 0.3, rng_state(1, 0)))


@pytest.mark.parametrize("inplace", [False, True])
def test_gradcheck(device, inplace):
    x = tensor(3, 4, 2, device=device, dtype=torch.float64).requires_grad_()

    def f(x):
        return F.dropout(x * 1, 0.4, inplace=inplace, rng_state=rng_state(4, 0))

    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)


def test_double_backward_in_another_order(device):
    x = channels_last(tensor(2, 3, 4, 5, device=device, dtype=torch.float64)).requires_grad_()
    g = tensor(2, 3, 4, 5, device=device, dtype=torch.float64).requires_grad_()
    v = sliced(tensor(2, 3, 4, 5, device=device, dtype=torch.float64))
    (dx,) = torch.autograd.grad(F.dropout(x, 0.5, rng_state=rng_state(1, 0)), x, g, create_graph=True)
    (dg,) = torch.autograd.grad(dx, g, v)
    assert torch.equal(dg, torch.where(exact(torch.ones_like(x), 0.5, rng_state(1, 0)) == 0, 0, 2 * v))


def test_saves_the_state_alone(device):
    saved = []
    x = tensor(100, 100, device=device).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        F.dropout(x)
        F.dropout(x * 1, inplace=True)
    tensors = [t for t in saved if t.numel() > 1]
    assert [(t.dtype, t.shape) for t in tensors] == [(torch.int64, (2,))] * 2


def test_no_graph_without_requires_grad(device):
    x = tensor(10, device=device)
    assert not F.dropout(x).requires_grad
    with torch.no_grad():
        assert not F.dropout(x.requires_grad_()).requires_grad


# ---- in place


@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(device, layout, dtype):
    x = in_layout(tensor(3, 4, 5, 6, device=device, dtype=dtype), layout)
    expected, version = exact(x, 0.3, rng_state(2, 0)), x._version
    assert F.dropout(x, 0.3, inplace=True, rng_state=rng_state(2, 0)) is x
    assert torch.equal(x, expected) and x._version > version


def test_in_place_on_a_view_with_gradient(device):
    base = (1 + torch.rand(6, 8, device=device)).requires_grad_()
    y = base * 1
    F.dropout(y[:, ::2], 0.5, inplace=True)
    kept = y.detach()[:, ::2] != 0
    assert kept.any() and not kept.all()
    assert torch.equal(y.detach()[:, 1::2], base.detach()[:, 1::2])
    y.sum().backward()
    assert torch.equal(base.grad[:, ::2], torch.where(kept, 2.0, 0.0)) and (base.grad[:, 1::2] == 1).all()


def test_in_place_is_seen_by_autograd(device):
    x = tensor(10, device=device).requires_grad_()
    y = x.exp()  # saves its result
    F.dropout(y, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_mutated_state_is_refused(device):
    state = torch.tensor([1, 0], device=device)
    y = F.dropout(tensor(10, device=device).requires_grad_(), rng_state=state)
    state += 8
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
