"""Every kind of dropout against torch's formula for it, in float64, with fastreg's mask put in."""

import math
import warnings

import pytest
import torch

import fastreg
from fastreg import _routing
from fastreg import functional as F
from tests.common import DEVICES, DTYPES, LAYOUTS, channels_last, contiguous, in_layout, sliced
from tests.functional.dropout_family import ALPHA, KINDS, Kind, alpha, inverted
from tests.known_answers import rng_state
from tests.tolerances import assert_accurate

pytestmark = pytest.mark.parametrize("device", DEVICES)
all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
STATE = rng_state(2**63 + 11, 8)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=["operators", "composed"])
def way(request, monkeypatch):
    """By the operators, and by those of torch."""
    if request.param == "composed":
        monkeypatch.setattr(_routing, "_COMPILED_BACKENDS", frozenset())
    return request.param


def tensor(*shape, device, dtype=torch.float32):
    return torch.randn(shape).to(device, dtype)


# ---- values and gradients


@all_kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_matches_torchs_formula(device, way, kind, dtype, layout):
    x = in_layout(tensor(*kind.shape, device=device, dtype=dtype), layout)
    grad = tensor(*kind.shape, device=device, dtype=dtype)
    for p in (0.1, 1 / 3, 0.5, 0.9) if way == "operators" else (1 / 3,):
        leaves = [x.clone().to(t).requires_grad_() for t in (dtype, dtype, torch.float64)]
        ours, torchs, exact = kind(leaves[0], p, STATE), *(kind.torchs(leaf, p, STATE) for leaf in leaves[1:])
        assert ours.dtype == dtype and (way == "composed" or ours.stride() == torch.empty_like(x).stride())
        assert_accurate("output", ours, torchs, exact)
        for y in (ours, torchs, exact):
            y.backward(grad.to(y.dtype))
        assert_accurate("grad_input", leaves[0].grad, leaves[1].grad, leaves[2].grad)


@all_kinds
@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("gradient", LAYOUTS)
def test_gradient_in_any_order(device, kind, layout, gradient):
    x = in_layout(tensor(*kind.shape, device=device), layout).requires_grad_()
    g = in_layout(tensor(*kind.shape, device=device), gradient)
    y = kind(x, 0.4, STATE)
    one, zero = kind(torch.ones_like(x), 0.4, STATE), kind(torch.zeros_like(x), 0.4, STATE)
    y.backward(g)
    keep = kind.keep(x, 0.4, STATE).to(device)
    slope = (one - zero)[keep].mean() if keep.any() else 0.0
    torch.testing.assert_close(x.grad, torch.where(keep, g * slope, 0.0))
    assert (x.grad[~keep] == 0).all()


@all_kinds
@pytest.mark.parametrize("inplace", [False, True])
def test_gradcheck(device, way, kind, inplace):
    x = tensor(*kind.shape, device=device, dtype=torch.float64)
    x = x[(slice(3),) * x.dim()].requires_grad_()

    def f(x):
        return kind(x * 1, 0.4, STATE, inplace=inplace)

    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)


@all_kinds
def test_drawn_state(device, way, kind):
    """Seeded calls: forward and backward with the state that draw_rng_state would have given."""
    x = tensor(*kind.shape, device=device).requires_grad_()
    state = fastreg.draw_rng_state(device)
    expected = kind(x, 0.4, state)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    for inplace in (False, True):
        torch.manual_seed(0)
        tensor(*kind.shape, device="cpu")
        y = kind(x * 1, 0.4, None, inplace=inplace)
        assert torch.equal(y, expected)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], gradient)


# ---- in place


@all_kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[:4])
def test_in_place(device, way, kind, dtype, layout):
    x = in_layout(tensor(*kind.shape, device=device, dtype=dtype), layout)
    expected, version = kind(x, 0.3, STATE), x._version
    assert kind(x, 0.3, STATE, inplace=True) is x
    assert torch.equal(x, expected) and x._version > version


@all_kinds
def test_in_place_on_a_view(device, kind):
    """Autograd follows writes through a view, and the rest of the base stays as it is."""
    shape = (*kind.shape[:-1], 2 * kind.shape[-1])
    leaf = tensor(*shape, device=device).requires_grad_()
    base = leaf * 1
    view = base[..., ::2]
    expected = kind(view.detach(), 0.5, STATE)
    kind(view, 0.5, STATE, inplace=True)
    assert torch.equal(base[..., ::2], expected) and torch.equal(base[..., 1::2], leaf[..., 1::2])
    base.sum().backward()
    x = leaf.detach()[..., ::2].requires_grad_()
    kind(x, 0.5, STATE).sum().backward()
    assert torch.equal(leaf.grad[..., ::2], x.grad) and (leaf.grad[..., 1::2] == 1).all()


# ---- nothing, or everything


@all_kinds
@pytest.mark.parametrize("inplace", [False, True])
def test_same_object_and_no_draw(device, kind, inplace):
    x = torch.ones(kind.shape, device=device)
    empty = x[:0]
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device == "cuda" else [])]
    assert kind.function(x, 0.0, True, inplace) is x
    assert kind.function(empty, 0.5, True, inplace) is empty
    assert kind.function(x, 0.5, False, inplace) is x
    after = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device == "cuda" else [])]
    assert all(torch.equal(one, other) for one, other in zip(states, after, strict=True))


@all_kinds
@pytest.mark.parametrize("p", [1.0, 1 - 2.0**-33])
def test_everything_dropped(device, way, kind, p):
    """1 - 2**-33 rounds to 1 in units of 2**-32. What is dropped is never multiplied with."""
    x = torch.full(kind.shape, math.nan, device=device).requires_grad_()
    y = kind(x, p, STATE)
    a = ((ALPHA**2 * p + 1) * (1 - p)) ** -0.5 if p < 1 else 0.0
    fill = a * ALPHA * (p - 1) if kind.formula is alpha else 0.0
    assert (y == torch.tensor(fill, device=device)).all()
    y.sum().backward()
    assert (x.grad == 0).all()


@all_kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropped_nan_and_infinity_do_not_leak(device, way, kind, dtype):
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0], device=device, dtype=dtype)
    x = x.repeat(math.prod(kind.shape) // 4 + 1)[: math.prod(kind.shape)].view(kind.shape)
    keep = kind.keep(x, 0.5, STATE).to(device)
    y = kind(x, 0.5, STATE)
    assert 0 < int(keep.sum()) < keep.numel()
    assert y[~keep].isfinite().all() and torch.equal(y[keep].isfinite(), x[keep].isfinite())
    assert torch.equal(y[keep].isnan(), x[keep].isnan())


# ---- scaling in evaluation


@pytest.mark.parametrize("function", [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.drop_path])
def test_scaling_in_evaluation(device, way, function):
    shape = {F.dropout1d: (4, 3, 5), F.dropout3d: (4, 3, 5, 2, 2)}.get(function, (4, 3, 5, 2))
    x = tensor(*shape, device=device).requires_grad_()
    y = function(x, 0.3, False, scaling="test")
    assert torch.equal(y, x * 0.7)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full_like(x, 0.7))
    z = x.detach().clone()
    assert function(z, 0.3, False, True, scaling="test") is z and torch.equal(z, y)


def test_mean_is_that_of_evaluation(device):
    """Srivastava et al.: the mean over masks is what evaluation computes."""
    x = torch.full((1_000_000,), 3.0, device=device)
    mean = F.dropout(x, 0.3, scaling="test", rng_state=STATE).double().mean().item()
    assert abs(mean - F.dropout(x, 0.3, False, scaling="test")[0].item()) < 6 * 3 * math.sqrt(0.21 / 1e6)


# ---- drop path with a residual


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaling", ["train", "test"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_residual(device, way, dtype, scaling, layout):
    kind = Kind(F.drop_path, (20, 3, 4, 5), 1)
    x = in_layout(tensor(*kind.shape, device=device, dtype=dtype), layout)
    residual = tensor(*kind.shape, device=device, dtype=dtype)
    grad = tensor(*kind.shape, device=device, dtype=dtype)
    factor = 1 / 0.7 if scaling == "train" else 1.0
    for order in (contiguous, channels_last, sliced):
        leaves = [t.clone().requires_grad_() for t in (x, in_layout(residual, order))]
        y = F.drop_path(leaves[0], 0.3, residual=leaves[1], scaling=scaling, rng_state=STATE)
        keep = kind.keep(x, 0.3, STATE).to(device)
        exact = residual.double() + x.double() * keep * factor
        assert y.dtype == dtype and (way == "composed" or y.stride() == torch.empty_like(x).stride())
        assert_accurate("output", y, None, exact)
        y.backward(grad)
        assert_accurate("grad_input", leaves[0].grad, None, grad.double() * keep * factor)
        assert torch.equal(leaves[1].grad, grad)


def test_residual_gradcheck(device, way):
    x, residual = (tensor(6, 2, 2, device=device, dtype=torch.float64).requires_grad_() for _ in range(2))

    def f(x, residual):
        return F.drop_path(x, 0.4, residual=residual, rng_state=STATE)

    assert torch.autograd.gradcheck(f, (x, residual))
    assert torch.autograd.gradgradcheck(f, (x, residual))


@pytest.mark.parametrize("needed", [0, 1])
def test_gradient_of_one_alone(device, needed):
    inputs = [tensor(6, 2, device=device).requires_grad_(i == needed) for i in range(2)]
    y = F.drop_path(inputs[0], 0.4, residual=inputs[1], rng_state=STATE)
    (gradient,) = torch.autograd.grad(y.sum(), inputs[needed])
    keep = KINDS["drop_path"].keep(inputs[0], 0.4, STATE).to(device)
    torch.testing.assert_close(gradient, torch.ones_like(gradient) if needed else keep / 0.6)


def test_dropped_samples_are_the_residual(device, way):
    x = torch.full((20, 3), math.nan, device=device)
    residual = tensor(20, 3, device=device)
    y = F.drop_path(x, 0.5, residual=residual, rng_state=STATE)
    keep = KINDS["drop_path"].keep(x, 0.5, STATE).to(device)
    assert keep.any() and y[keep].isnan().all() and torch.equal(y[~keep], residual[~keep])
    assert torch.equal(F.drop_path(x, 1.0, residual=residual), residual)


def test_residual_where_nothing_is_dropped(device, way):
    x, residual = tensor(4, 3, device=device), tensor(4, 3, device=device)
    for arguments in ((0.5, False), (0.0, True)):
        assert torch.equal(F.drop_path(x, *arguments, residual=residual), residual + x)
    y = F.drop_path(x, 0.3, False, residual=residual, scaling="test")
    torch.testing.assert_close(y, residual + 0.7 * x)
    assert F.drop_path(x[:0], 0.5, residual=residual[:0]).shape == (0, 3)


# ---- the mask itself


def test_mask_is_that_of_the_functions(device, way):
    state = STATE.to(device)
    for kind in KINDS.values():
        mask = fastreg.dropout_mask(kind.shape, 0.4, state, dims=kind.dims)
        assert mask.dtype == torch.bool and mask.shape == kind.shape and mask.device == state.device
        x = torch.ones(kind.shape, device=device)
        zero = kind(torch.zeros_like(x), 0.4, STATE)
        assert torch.equal(mask, kind(x, 0.4, STATE) != zero.min())
    x = channels_last(torch.ones(4, 3, 5, 7, device=device))
    mask = fastreg.dropout_mask(x.shape, 0.4, state, strides=x.stride())
    assert torch.equal(mask, F.dropout(x, 0.4, rng_state=state) != 0) and mask.stride() == x.stride()


def test_mask_of_odd_shapes(device, way):
    state = STATE.to(device)
    assert fastreg.dropout_mask((), 0.0, state).item() is True
    assert fastreg.dropout_mask((0, 3), 0.5, state).shape == (0, 3)
    assert not fastreg.dropout_mask((3, 4), 1.0, state).any()
    assert fastreg.dropout_mask((3, 4), 0.5, state, dims=0).unique().numel() == 1
    assert torch.equal(
        fastreg.dropout_mask([6, 5], 0.5, state, strides=(1, 6)), fastreg.dropout_mask([5, 6], 0.5, state).T
    )
    empty = torch.empty(3, 0)
    assert fastreg.dropout_mask(empty.shape, 0.5, state, strides=empty.stride()).shape == empty.shape


# ---- torch's rules for numbers of dimensions


@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"])
@pytest.mark.parametrize("rank", range(7))
@pytest.mark.parametrize("inplace", [False, True])
def test_ranks_as_in_torch(device, way, name, rank, inplace):
    """The same are refused, with the same exception, or warned of; the same draws are shared."""
    ours, torchs = getattr(F, name), getattr(torch.nn.functional, name)
    shape = [23, 11, 2, 3, 1, 2][:rank]

    def outcome(function):
        x = torch.ones(shape, device=device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                y = function(x, 0.5, True, inplace)
            except Exception as error:
                return type(error), len(caught)
        assert (y is x) == inplace
        assert [w.filename for w in caught] == [__file__] * len(caught)
        # The dimensions along which y varies.
        return [d for d in range(rank) if shape[d] > 1 and (y != y.select(d, 0).unsqueeze(d)).any()], len(caught)

    assert outcome(ours) == outcome(torchs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_leaves_the_dtype(device, dtype):
    with torch.autocast(device, torch.bfloat16):
        for kind in KINDS.values():
            x = tensor(*kind.shape, device=device, dtype=dtype)
            y = kind(x, 0.5, STATE)
            assert y.dtype == dtype
            assert_accurate("output", y, None, kind.torchs(x.double(), 0.5, STATE))


def test_formulas_are_torchs(device):
    """The formulas of dropout_family, by the masks that torch itself drew."""
    x = torch.rand(100, 50, device=device, dtype=torch.float64) + 1
    y = torch.nn.functional.alpha_dropout(x, 0.3, True)
    dropped = y.min()
    torch.testing.assert_close(y, alpha(x, y != dropped, 0.3))
    y = torch.nn.functional.dropout(x, 0.3)
    torch.testing.assert_close(y, inverted(x, y != 0, 0.3))
