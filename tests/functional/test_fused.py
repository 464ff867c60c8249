"""batch_norm_act and act_dropout: what a kernel that fuses them has to compute. The reference is torch, in float64."""

import pytest
import torch
import torch.nn.functional as F

import fastreg
from fastreg import _activation
from fastreg.functional import Activation, act_dropout, batch_norm_act
from fastreg.reference.batch_norm import empty_normalized_like
from tests.common import DEVICES, DTYPES, channels_last, contiguous, transposed
from tests.tolerances import error, ulp

# What torch computes under each name, said again: the table is not its own reference.
TORCHS = {
    "identity": lambda x, w: x,
    "relu": lambda x, w: torch.relu(x),
    "relu6": lambda x, w: x.clamp(0, 6),
    ("leaky_relu", 0.2): lambda x, w: torch.where(x > 0, x, 0.2 * x),
    "leaky_relu": lambda x, w: torch.where(x > 0, x, 0.01 * x),
    "prelu": lambda x, w: torch.where(x > 0, x, (w.reshape([-1] + [1] * (x.dim() - 2))) * x),
    "elu": lambda x, w: torch.where(x > 0, x, torch.expm1(x)),
    ("elu", 0.5): lambda x, w: torch.where(x > 0, x, 0.5 * torch.expm1(x)),
    "silu": lambda x, w: x * torch.sigmoid(x),
    "mish": lambda x, w: x * torch.tanh(F.softplus(x)),
    "gelu": lambda x, w: 0.5 * x * (1 + torch.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x, w: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "hardswish": lambda x, w: x * (x + 3).clamp(0, 6) / 6,
    "hardsigmoid": lambda x, w: (x + 3).clamp(0, 6) / 6,
    "sigmoid": lambda x, w: 1 / (1 + torch.exp(-x)),
    "tanh": lambda x, w: 2 / (1 + torch.exp(-2 * x)) - 1,
}
# torch's gradient of hardsigmoid multiplies by 1/6 rounded to float32, in float64 too.
GRADIENT = {"hardsigmoid": 1e-6}
STATE = torch.tensor([7, 16])
C = 6


def test_the_table_is_covered():
    assert {name if isinstance(name, str) else name[0] for name in TORCHS} == set(_activation.TABLE)


def slope(act, dtype=torch.float64, device="cpu"):
    return torch.linspace(0.1, 0.6, C, dtype=dtype, device=device) if act == "prelu" else None


def normalised(x, weight, bias, eps=1e-5):
    dims = [d for d in range(x.dim()) if d != 1]
    mean, var = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
    shape = [1, -1] + [1] * (x.dim() - 2)
    return (x - mean) / (var + eps).sqrt() * weight.reshape(shape) + bias.reshape(shape)


def inputs(dtype=torch.float64, device="cpu", shape=(5, C, 4, 3), layout=contiguous):
    torch.manual_seed(0)
    x, residual, grad = (layout(2 * torch.randn(shape, device=device).to(dtype)) for _ in range(3))
    weight, bias = torch.linspace(0.5, 1.5, C, device=device, dtype=dtype), torch.randn(C, device=device).to(dtype)
    return [t.requires_grad_() for t in (x, residual, weight, bias)], grad


def kept(x, p, state=STATE):
    """The mask and the factor of a dropout of p, by the reference of the stream, for x in contiguous order."""
    mask = fastreg.reference.dropout.keep_mask(x.numel(), p, state).reshape(x.shape)
    return mask.to(x.device).double() / (1.0 - p)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", TORCHS)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_batch_norm_act(device, act, with_residual, p):
    (x, residual, weight, bias), grad = inputs(device=device)
    act_weight = None if (w := slope(act, device=device)) is None else w.requires_grad_()
    mean, var = torch.zeros(C, device=device).double(), torch.ones(C, device=device).double()
    addend = residual if with_residual else None
    keywords = {"act": act, "act_weight": act_weight, "residual": addend, "p": p, "rng_state": STATE}
    y = batch_norm_act(x, mean, var, weight, bias, True, **keywords)
    expected = normalised(x, weight, bias) + (residual if with_residual else 0.0)
    expected = TORCHS[act](expected, act_weight) * kept(x, p)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    wanted = [t for t in (x, weight, bias, addend, act_weight) if t is not None]
    for ours, theirs in zip(
        torch.autograd.grad(y, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=GRADIENT.get(act, 1e-11))
    torch.testing.assert_close(mean, 0.1 * x.mean((0, 2, 3)))
    torch.testing.assert_close(var, 0.9 + 0.1 * x.var((0, 2, 3)))


@pytest.mark.parametrize("act", TORCHS)
@pytest.mark.parametrize("training", [False, True])
def test_pre_activation(act, training):
    (x, _, weight, bias), grad = inputs(shape=(20, C))
    w = slope(act)
    mean, var = torch.linspace(-1, 1, C).double(), torch.linspace(0.5, 2, C).double()
    before = TORCHS[act](x, w)
    expected = (before - mean) / (var + 1e-5).sqrt() * weight + bias
    if training:
        expected = normalised(before, weight, bias)
    y = batch_norm_act(x, mean, var, weight, bias, training, act="identity", pre_act=act, pre_act_weight=w)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(y, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=GRADIENT.get(act, 1e-11))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ["relu", "gelu", "hardswish"])
@pytest.mark.parametrize("layout", [contiguous, channels_last, transposed])
def test_rounds_no_worse_than_torch(dtype, act, layout):
    (x, residual, weight, bias), _ = inputs(dtype, layout=layout)
    tensors = (x, residual, weight, bias)
    y = batch_norm_act(x, None, None, weight, bias, True, act=act, residual=residual)
    exact = TORCHS[act](normalised(*(t.double() for t in (x, weight, bias))) + residual.double(), None)
    torchs = getattr(F, act)(F.batch_norm(tensors[0], None, None, weight, bias, True) + residual)
    assert y.dtype == dtype and y.stride() == empty_normalized_like(x).stride()
    largest = exact.abs().max().item()
    assert error(y, exact) <= 2.0 * error(torchs, exact) + 2.0 * ulp(dtype, largest)


@pytest.mark.parametrize("act", TORCHS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("drop_path", [False, True])
def test_act_dropout(act, with_bias, with_residual, drop_path):
    torch.manual_seed(1)
    x, residual = (torch.randn(8, C, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bias = torch.randn(C, dtype=torch.float64, requires_grad=True)
    w = slope(act)
    y = act_dropout(
        x,
        act,
        0.4,
        bias=bias if with_bias else None,
        residual=residual if with_residual else None,
        drop_path=drop_path,
        act_weight=w,
        rng_state=STATE,
    )
    mask = kept(x[:, :1] if drop_path else x, 0.4)
    assert 0 < mask.count_nonzero() < mask.numel()
    expected = TORCHS[act](x + bias if with_bias else x, w) * mask
    if with_residual:
        expected = expected + residual
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    wanted = [x] + [bias] * with_bias + [residual] * with_residual
    for ours, theirs in zip(
        torch.autograd.grad(y.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=GRADIENT.get(act, 1e-11))


def test_gradcheck():
    (x, residual, weight, bias), _ = inputs(shape=(4, C, 2))

    def function(x, residual, weight, bias):
        y = batch_norm_act(x, None, None, weight, bias, True, act="silu", pre_act="tanh", residual=residual, p=0.2, **s)
        return act_dropout(y, "gelu", 0.3, bias=y.new_ones(2), residual=x, **s)

    s = {"rng_state": STATE}
    assert torch.autograd.gradcheck(function, (x, residual, weight, bias))
    assert torch.autograd.gradgradcheck(function, (x, residual, weight, bias), atol=1e-4)


def test_dropped_elements_are_zero_whatever_they_were():
    x = torch.full((4, 4), torch.inf)
    y = act_dropout(x, "relu", 0.5, residual=torch.ones(4, 4), rng_state=STATE)
    assert ((y == 1) | (y == torch.inf)).all() and (y == 1).any()
    y = act_dropout(x, "relu", 0.5, residual=torch.ones(4, 4), drop_path=True, rng_state=STATE)
    assert ((y == 1) | (y == torch.inf)).all() and (y == 1).any()


def test_evaluation():
    x = torch.randn(3, C)
    assert act_dropout(x, "identity", 0.5, training=False) is x
    torch.testing.assert_close(act_dropout(x, "relu", 0.5, training=False), x.relu(), rtol=0, atol=0)


UNKNOWN = r"{}: {} must be one of identity, relu, .*tanh, got '?{}"


def test_what_is_refused():
    (x, residual, weight, bias), _ = inputs(torch.float32)
    statistics = torch.zeros(C), torch.ones(C)

    def call(**keywords):
        return batch_norm_act(x, *statistics, weight, bias, True, **keywords)

    with pytest.raises(ValueError, match=UNKNOWN.format("batch_norm_act", "act", "swish")):
        call(act="swish")
    with pytest.raises(ValueError, match=UNKNOWN.format("batch_norm_act", "pre_act", "None")):
        call(pre_act=None)
    with pytest.raises(ValueError, match="act must be without a parameter where it is relu, got 0.1"):
        call(act=Activation("relu", 0.1))
    with pytest.raises(ValueError, match=r"residual must have the input's shape \[5, 6, 4, 3\], got \[5, 6, 1, 1\]"):
        call(residual=residual[..., :1, :1])
    with pytest.raises(RuntimeError, match="residual must have the input's dtype and device, torch.float32 on cpu"):
        call(residual=residual.double())
    with pytest.raises(TypeError, match="batch_norm_act: residual must be a tensor, got float"):
        call(residual=1.0)
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\], got 1.5"):
        call(p=1.5)
    with pytest.raises(RuntimeError, match="act_weight must have 1 or 6 elements for prelu, got None"):
        call(act="prelu")
    with pytest.raises(RuntimeError, match=r"act_weight must have 1 or 6 elements for prelu, got shape \[5\]"):
        call(act="prelu", act_weight=torch.ones(5))
    with pytest.raises(ValueError, match="act_weight must be None where the activation is relu"):
        call(act_weight=torch.ones(6))
    with pytest.raises(TypeError, match="rng_state must be an int64 tensor"):
        call(p=0.5, rng_state=torch.zeros(2))
    with pytest.raises(TypeError, match="momentum must be a float"):
        call(momentum=None)
    assert (statistics[0] == 0).all() and (statistics[1] == 1).all()  # nothing was written
    with pytest.raises(ValueError, match=UNKNOWN.format("act_dropout", "act", "7")):
        act_dropout(x, 7)
    with pytest.raises(RuntimeError, match=r"bias must have the size of input's last dimension.*got \[6\]"):
        act_dropout(x, bias=bias)
    with pytest.raises(ValueError, match="act_dropout: residual must have"):
        act_dropout(x, residual=residual[0])


@pytest.mark.parametrize("layout", [channels_last, transposed])
def test_residual_of_another_layout(layout):
    (x, residual, weight, bias), _ = inputs()
    expected = batch_norm_act(x, None, None, weight, bias, True, residual=residual)
    y = batch_norm_act(x, None, None, weight, bias, True, residual=layout(residual.detach()))
    assert torch.equal(y, expected) and y.stride() == x.stride()


def test_compiles():
    (x, residual, weight, bias), _ = inputs(torch.float32)

    def function(x, residual):
        y = batch_norm_act(x, None, None, weight, bias, True, act="relu", residual=residual)
        return act_dropout(y, "gelu", 0.0, residual=x)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, residual), function(x, residual))
