"""The CPU's fused kernels: vectorised activations, shapes that their tiles meet in every way, gates, threads."""

import pytest
import torch

import fastreg
from fastreg import _activation
from tests.common import channels_last, contiguous
from tests.tolerances import MULTIPLE, ulp

NATIVE = [name for name in _activation.TABLE if name != "prelu"]
PARAMETER = {"leaky_relu": 0.1, "elu": 0.7}
EXPONENTIAL = ["elu", "silu", "mish", "gelu", "gelu_tanh", "sigmoid", "tanh"]
# One column each: not a multiple of any vector's width, so that ends of vectors are met as well.
GRID = torch.cat([torch.linspace(-40, 40, 160_001), torch.logspace(-40, 30, 4001), -torch.logspace(-40, 30, 4001)])
# Where exponentials leave the range of floats.
ENDS = torch.cat([torch.linspace(-110, -70, 4001), torch.linspace(70, 110, 4001)])
SPECIAL = [0.0, -0.0, 3.0, -3.0, 6.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45]
BINS = 250


def act_dropout(x, act):
    return torch.ops.fastreg.act_dropout(x, None, act, PARAMETER.get(act, 0.0), 0.0, None, None, None)


def gradient(x, act):
    parameter = PARAMETER.get(act, 0.0)
    return torch.ops.fastreg.act_dropout_backward(
        torch.ones_like(x), x, None, act, parameter, 0.0, None, None, x.stride()
    )


def of_torch(x, act):
    return with_gradient(lambda leaf: _activation.TABLE[act].apply(leaf, PARAMETER.get(act), None), x)


def exactly(x, act):
    """In float64, and without the differences in which torch loses all digits of the tails."""
    if act == "gelu":
        return with_gradient(lambda x: 0.5 * x * torch.erfc(-x * 0.5**0.5), x.double())
    if act == "gelu_tanh":
        return with_gradient(lambda x: x * torch.sigmoid((8 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)), x.double())
    y, slope = of_torch(x.double(), act)
    if act in ("sigmoid", "tanh"):  # e^-|z| / (1 + e^-|z|)^2
        z = x.double().abs() * (2 if act == "tanh" else 1)
        slope = (4 if act == "tanh" else 1) * torch.exp(-z) / (1 + torch.exp(-z)) ** 2
    return y, slope


def with_gradient(function, x):
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    return y.detach(), torch.autograd.grad(y.sum(), leaf)[0]


def ulps(value, exact):
    """The largest error of each of BINS parts, in units of the last place of the part's largest value."""
    parts = []
    for some, right in zip(value.double().tensor_split(BINS), exact.tensor_split(BINS), strict=True):
        known = right.isfinite()
        largest = max(right[known].abs().max().item(), torch.finfo(torch.float32).tiny) if known.any() else 1.0
        errors = (some - right)[known].abs() / ulp(torch.float32, largest)
        parts.append(errors.nan_to_num(torch.inf).max().item() if known.any() else 0.0)
    return parts


@pytest.mark.parametrize("act", NATIVE)
def test_as_accurate_as_torch(act):
    for ours, torchs, exact in zip(
        (act_dropout(GRID, act), gradient(GRID, act)), of_torch(GRID, act), exactly(GRID, act), strict=True
    ):
        for mine, its in zip(ulps(ours, exact), ulps(torchs, exact), strict=True):
            # Half an ulp more than torch's multiple and one: exact results may round either way.
            assert mine <= MULTIPLE * its + 1.5


@pytest.mark.parametrize("act", EXPONENTIAL)
def test_errors(act):
    """At most three units in the last place of the result, and one of the argument: that of gelu_tanh's exponential is
    a polynomial of it, and has two. Results below 3e-37 may be 0."""
    x = torch.cat([GRID, ENDS])
    exact, slope = exactly(x, act)
    units = 3 * ulp_of(exact) + (2 if act == "gelu_tanh" else 1) * ulp_of(x.double()) * slope.abs()
    assert ((act_dropout(x, act) - exact).abs() <= units + 3e-37).all()


def ulp_of(values):
    """Of each one, in float32."""
    return torch.ldexp(torch.ones_like(values), torch.frexp(values).exponent - 24)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("act", EXPONENTIAL)
def test_errors_in_16_bits(act, dtype):
    """All numbers: to what rounding leaves comes no more than what the formulas of fewer digits have, 5.3e-6 of an
    exponential and 4.5e-6 of gelu's polynomial, and two units of float32 in the argument of an exponential."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = x[x.isfinite()]
    exact, slope = exactly(x.float(), act)
    subnormal = -24 if dtype == torch.float16 else -133
    exponent = torch.frexp(exact).exponent - (11 if dtype == torch.float16 else 8)
    half = torch.ldexp(torch.full_like(exact, 0.5), exponent.clamp(min=subnormal))
    allowed = half + 1.1e-5 * exact.abs() + 2 * ulp_of(x.double()) * slope.abs()
    ours = act_dropout(x, act).double()
    within = ours.isfinite() | (exact.abs() > torch.finfo(dtype).max)
    assert within.all() and ((ours - exact).abs()[ours.isfinite()] <= (allowed + 3e-37)[ours.isfinite()]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("act", NATIVE)
def test_special_values(act, dtype):
    x = torch.tensor(3 * SPECIAL, dtype=dtype)  # more than one vector
    ours, torchs = (act_dropout(x, act), gradient(x, act)), of_torch(x, act)
    torch.testing.assert_close(ours[0], torchs[0], rtol=2e-2, atol=1e-4, equal_nan=True)
    # torch's own loops disagree about derivatives at NaN, and have NaN for some limits.
    known = ~x.isnan() & ~torchs[1].isnan()
    # In 16 bits torch has those of tanh and sigmoid from rounded results.
    atol = 1e-4 if dtype != torch.bfloat16 else 1e-2
    torch.testing.assert_close(ours[1][known], torchs[1][known], rtol=2e-2, atol=atol)


# Rows that are taken together, of which some are left over at the end; also where the work is divided among threads.
FEW_CHANNELS = [
    ((517, 1), contiguous),
    ((3, 5), contiguous),
    ((211, 5), contiguous),
    ((5, 40, 23, 19), channels_last),
    ((1101, 63), contiguous),
]
SHAPES = [
    ((40, 40, 7, 7), contiguous),  # groups of channels
    ((3, 70, 14, 14), contiguous),
    ((2, 3, 61, 53), contiguous),  # few channels: chunks
    ((2, 1, 250, 251), contiguous),
    ((5, 2), contiguous),
    ((300, 130), contiguous),  # rows: more columns than a tile has
    ((40, 2100), contiguous),  # few rows: groups of columns
    ((9, 3, 33, 31), channels_last),
    ((4, 260, 7, 7), channels_last),
    *FEW_CHANNELS,
]


def call(x, residual, weight, bias, grad, p, act, pre_act, state):
    """Output and gradients of the operators."""
    acts = (pre_act, PARAMETER.get(pre_act, 0.0)), (act, PARAMETER.get(act, 0.0))
    y, stats, gate = torch.ops.fastreg.batch_norm_act_train(
        x, weight, bias, None, None, None, 0.1, 1e-5, *acts[0], residual, *acts[1], None, True, p, state
    )
    gates = gate if gate.numel() else None
    mask = [True, True, True, residual is not None, False]
    gradients = torch.ops.fastreg.batch_norm_act_train_backward(
        grad, x, weight, bias, stats, *acts[0], residual, gates, *acts[1], None, p, state, mask
    )
    return [y, *gradients[: 3 + (residual is not None)]]


def composed(x, residual, weight, bias, grad, keep, act, pre_act):
    leaves = [t.double().requires_grad_() for t in (x, weight, bias, residual) if t is not None]
    apply = [_activation.TABLE[name].apply for name in (pre_act, act)]
    z = torch.nn.functional.batch_norm(
        apply[0](leaves[0], PARAMETER.get(pre_act), None), None, None, *leaves[1:3], True
    )
    y = apply[1](z if residual is None else z + leaves[3], PARAMETER.get(act), None) * keep
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.double())]


CASES = [
    ("relu", "identity", False, 0.5),
    ("relu", "identity", True, 0.0),
    ("identity", "identity", True, 0.3),
    ("leaky_relu", "identity", True, 0.3),
    ("silu", "relu", True, 0.5),
    ("relu6", "tanh", False, 0.0),
]


@pytest.mark.parametrize(("act", "pre_act", "with_residual", "p"), CASES)
@pytest.mark.parametrize(("shape", "layout"), SHAPES)
def test_shapes(shape, layout, act, pre_act, with_residual, p):
    torch.manual_seed(0)
    x, residual, grad = (layout(2 * torch.randn(shape, dtype=torch.float64)) for _ in range(3))
    residual = residual if with_residual else None
    weight, bias = torch.rand(shape[1]).double() + 0.5, torch.randn(shape[1]).double()
    state = torch.tensor([5, 8])
    keep = fastreg.functional.dropout(torch.ones_like(x), p, rng_state=state)
    exact = composed(x, residual, weight, bias, grad, keep, act, pre_act)
    for ours, expected in zip(call(x, residual, weight, bias, grad, p, act, pre_act, state), exact, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("pre_act", ["identity", "relu"])
def test_sums_taken_twice(layout, pre_act):
    """Of many values sums are first taken in float32. Those of channel 1 overflow, and only they count anew."""
    torch.manual_seed(0)
    x, grad = (torch.randn(6, 37, 12, 13) for _ in range(2))
    scale = torch.ones(37).index_fill(0, torch.tensor(1), 1e25).view(-1, 1, 1)
    results = []
    for factor in (torch.ones(1), scale):
        leaves = [layout(x * factor).requires_grad_(), torch.full((37,), 0.25, requires_grad=True)]
        y = fastreg.functional.batch_norm_act(
            leaves[0], None, None, training=True, act="prelu", act_weight=leaves[1], pre_act=pre_act
        )
        results.append([t.detach() for t in (y, *torch.autograd.grad(y, leaves, layout(grad * factor)))])
    exact_x, slope = (
        (x * scale).double().requires_grad_(),
        torch.full((37,), 0.25, dtype=torch.float64).requires_grad_(),
    )
    z = torch.nn.functional.batch_norm(exact_x.relu() if pre_act == "relu" else exact_x, None, None, training=True)
    y = torch.nn.functional.prelu(z, slope)
    exact = [y.detach(), *torch.autograd.grad(y, (exact_x, slope), (grad * scale).double())]
    for plain, ours, expected in zip(*results, exact, strict=True):
        plain, ours, expected = (t if t.dim() == 1 else t.movedim(1, 0) for t in (plain, ours, expected))
        for c in (0, 1, 36):
            torch.testing.assert_close(ours[c].double(), expected[c], rtol=0, atol=2e-6 * expected[c].abs().max())
        others = [0, *range(2, 37)]
        assert torch.equal(plain[others], ours[others])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("number", ["one", "each"])
@pytest.mark.parametrize(("shape", "layout"), FEW_CHANNELS)
def test_slopes_of_few_channels(shape, layout, number, training):
    torch.manual_seed(0)
    channels = shape[1]
    x, residual, grad = (layout(2 * torch.randn(shape, dtype=torch.float64)) for _ in range(3))
    weight, bias, slope = torch.rand(channels).double() + 0.5, torch.randn(channels).double(), torch.rand(channels)
    slope = slope.double() if number == "each" else slope[:1].double()
    leaves = [t.requires_grad_() for t in (x, residual, weight, bias, slope)]
    statistics = torch.randn(channels).double(), torch.rand(channels).double() + 0.5
    before, state = [t.clone() for t in statistics], torch.tensor([5, 8])
    keep = fastreg.functional.dropout(torch.ones_like(x.detach()), 0.5, rng_state=state)
    settings = {"act": "prelu", "act_weight": slope, "residual": residual, "p": 0.5, "rng_state": state}
    y = fastreg.functional.batch_norm_act(x, *statistics, weight, bias, training, **settings)
    z = torch.nn.functional.batch_norm(x, *before, weight, bias, training) + residual
    expected = torch.nn.functional.prelu(z, slope) * keep
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    for ours, torchs in zip(*(torch.autograd.grad(t, leaves, grad) for t in (y, expected)), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "layout"), [case for case in FEW_CHANNELS if case[0][1] > 1])
def test_channels_do_not_meet(shape, layout, dtype):
    """What is not finite in one changes no bit of the others."""
    torch.manual_seed(0)
    x, residual, grad = (layout(torch.randn(shape, dtype=dtype)) for _ in range(3))
    weight, bias, state = torch.rand(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype), torch.tensor([5, 8])
    results = []
    for value in (1.0, float("inf")):
        x[:, -1] = grad[-1, -1] = value
        results.append(call(x, residual, weight, bias, grad, 0.5, "silu", "leaky_relu", state))
    for one, other in zip(*results, strict=True):
        dim = min(1, one.dim() - 1)
        assert torch.equal(one.narrow(dim, 0, shape[1] - 1), other.narrow(dim, 0, shape[1] - 1))


@pytest.mark.parametrize(("shape", "layout"), SHAPES)
def test_the_number_of_threads_does_not_matter(shape, layout):
    torch.manual_seed(0)
    x, residual, grad = (layout(torch.randn(shape)) for _ in range(3))
    weight, bias, state = torch.rand(shape[1]), torch.randn(shape[1]), torch.tensor([5, 8])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(call(x, residual, weight, bias, grad, 0.5, "relu", "identity", state))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
