"""The operators behind batch_norm_act and act_dropout: layouts and dtypes, derivatives, running statistics, refused
arguments. The reference is their definition in float64."""

import copy
import re

import pytest
import torch

import fastreg
from fastreg.functional import act_dropout, batch_norm_act
from fastreg.reference.batch_norm import empty_normalized_like
from tests.common import DEVICES, DTYPES, LAYOUTS, channels_last, contiguous, expanded, transposed
from tests.ops.fused_operands import EPS, NATIVE, STATE, C, exact, function, mask_of, operands, ops
from tests.tolerances import assert_accurate


def test_the_operators_know_the_activations_of_the_table():
    with pytest.raises(ValueError) as caught:
        ops.act_dropout(torch.ones(3), None, "?", 0.0, 0.0, None, None, None)
    known = re.fullmatch(r"act_dropout: act must be one of (.*), got \?", str(caught.value).splitlines()[0])
    assert known[1].split(", ") == NATIVE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_layouts(device, layout, training, with_residual):
    (x, residual, weight, bias), grad = operands(device=device, layout=layout)
    mean, var = torch.linspace(-1, 1, C).double().to(device), torch.linspace(0.5, 2, C).double().to(device)
    statistics = None if training else (mean.clone(), var.clone())
    addend = residual if with_residual else None
    mask = mask_of(x, 0.3)
    y = batch_norm_act(
        x, mean, var, weight, bias, training, act="silu", pre_act="tanh", residual=addend, p=0.3, rng_state=STATE
    )
    expected = exact(x, addend, weight, bias, "silu", "tanh", statistics, mask, 0.3)
    assert y.stride() == empty_normalized_like(x).stride()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12, check_stride=False)
    assert torch.equal(y != 0, mask)
    wanted = [t for t in (x, weight, bias, addend) if t is not None]
    for one in (grad, transposed(grad), expanded(grad)):
        found, references = torch.autograd.grad(y, wanted, one, True), torch.autograd.grad(expected, wanted, one, True)
        for ours, reference in zip(found, references, strict=True):
            torch.testing.assert_close(ours, reference, rtol=0, atol=1e-11, check_stride=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, C, 5, 3), (40, C), (3, C, 8, 16)], ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("act", ["relu", "gelu", "leaky_relu"])
def test_dtypes(device, dtype, shape, layout, act):
    """No worse than the single operations, which round after each."""
    (x, residual, weight, bias), grad = operands(dtype, device, layout, shape)
    wanted = (x, residual, weight, bias)
    mask = mask_of(x, 0.25)
    y = batch_norm_act(x, None, None, weight, bias, True, act=act, residual=residual, p=0.25, rng_state=STATE)
    torchs = torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.1, EPS) + residual
    torchs = function(act)(torchs) * mask / 0.75
    doubles = [t.detach().double().requires_grad_() for t in wanted]
    expected = exact(*doubles, act, mask=mask, p=0.25)
    assert y.dtype == dtype
    assert_accurate("output", y, torchs, expected)
    found, of_torch = torch.autograd.grad(y, wanted, grad), torch.autograd.grad(torchs, wanted, grad)
    references = torch.autograd.grad(expected, doubles, grad.double())
    kinds = ("grad_input", "grad_input", "grad_parameter", "grad_parameter")
    for kind, ours, theirs, reference in zip(kinds, found, of_torch, references, strict=True):
        summed = grad.double().abs().sum() if kind == "grad_parameter" else None
        assert_accurate(kind, ours, theirs, reference, summed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_in_float32(dtype):
    """As under autocast: the result has the input's dtype, statistics and parameters their own."""
    (x, residual, _, _), grad = operands(dtype)
    module = fastreg.nn.BatchNormAct2d(C, act="silu")
    with torch.autocast("cpu", dtype):
        y = module(x, residual)
    y.backward(grad)
    assert y.dtype == x.grad.dtype == residual.grad.dtype == dtype
    assert module.weight.grad.dtype == module.running_mean.dtype == torch.float32
    linear = torch.nn.Linear(3, C)
    with torch.autocast("cpu", dtype):
        bias = torch.ones(C, requires_grad=True)  # float32: the sum promotes, as torch's does
        assert act_dropout(linear(x.float()), "relu", 0.5, bias=bias).dtype == torch.float32


@pytest.mark.usefixtures("derivatives")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", NATIVE)
@pytest.mark.parametrize("with_residual", [True, False])
def test_derivatives(device, act, with_residual):
    """gradcheck and gradgradcheck, with a mask, and where only some gradients are asked for."""
    (x, residual, weight, bias), _ = operands(device=device, shape=(3, C, 2))
    mean, var = torch.linspace(-1, 1, C).double().to(device), torch.linspace(0.5, 2, C).double().to(device)
    residual = residual if with_residual else None

    def in_training(x, residual, weight, bias):
        return batch_norm_act(x, None, None, weight, bias, True, residual=residual, **settings)

    def in_evaluation(x, residual, weight, bias):
        return batch_norm_act(x, mean, var, weight, bias, residual=residual, **settings)

    settings = {"act": act, "pre_act": "sigmoid" if act == "silu" else "identity", "p": 0.3, "rng_state": STATE}
    tolerance = {"atol": 1e-4 if act == "hardsigmoid" else 1e-5, "fast_mode": True}
    for call in (in_training, in_evaluation):
        for arguments in ((x, residual, weight, bias), (x.detach(), residual, weight, None), (x, residual, None, bias)):
            assert torch.autograd.gradcheck(call, arguments, **tolerance)
            assert torch.autograd.gradgradcheck(call, arguments, **tolerance)


@pytest.mark.usefixtures("derivatives")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("act", NATIVE)
@pytest.mark.parametrize("path", [False, True])
def test_derivatives_of_act_dropout(device, act, path):
    torch.manual_seed(0)
    x, residual = torch.randn(2, 4, 5, C, device=device, dtype=torch.float64, requires_grad=True).unbind()
    bias = torch.randn(C, device=device, dtype=torch.float64, requires_grad=True)

    def call(x, bias, residual):
        return act_dropout(x, act, 0.4, bias=bias, residual=residual, drop_path=path, rng_state=STATE)

    tolerance = {"atol": 1e-4 if act == "hardsigmoid" else 1e-5, "fast_mode": True}
    for arguments in ((x, bias, residual), (x.detach(), bias, None), (x, None, None)):
        arguments = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in arguments]
        assert torch.autograd.gradcheck(call, arguments, **tolerance)
        assert torch.autograd.gradgradcheck(call, arguments, **tolerance)


@pytest.mark.usefixtures("derivatives")
def test_third_derivative():
    (x, residual, weight, bias), _ = operands(shape=(3, C))

    def first(x, residual):
        y = batch_norm_act(x, None, None, weight, bias, True, act="gelu", residual=residual)
        return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(first, (x, residual), atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
def test_running_statistics(device):
    (x, residual, weight, bias), _ = operands(torch.float32, device)
    ours = fastreg.nn.BatchNormAct2d(C, act="relu", drop=0.5, momentum=None, device=device)
    plain = torch.nn.BatchNorm2d(C, momentum=None, device=device)
    for _ in range(3):
        versions = [buffer._version for buffer in ours.buffers()]
        ours(x, residual), plain(x)
        assert all(buffer._version > version for buffer, version in zip(ours.buffers(), versions, strict=True))
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())
    assert ours.num_batches_tracked == 3
    before = copy.deepcopy(ours.state_dict())
    y = ours(x[:0].detach().requires_grad_(), residual[:0])
    assert y.shape == (0, C, 5, 3) and ours.num_batches_tracked == 4
    y.sum().backward()
    assert torch.equal(ours.running_mean, before["running_mean"])


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_written_before_an_error(device):
    (x, residual, weight, bias), _ = operands(torch.float32, device)
    mean, var, count = torch.zeros(C, device=device), torch.ones(C, device=device), torch.tensor(0, device=device)

    def call(x=x, mean=mean, pre_act="identity", residual=residual, act="relu", p=0.5, rng_state=STATE):
        return ops.batch_norm_act_train(
            x, weight, bias, mean, var, count, 0.1, EPS, pre_act, 0.0, residual, act, 0.0, None, False, p, rng_state
        )

    generator = torch.get_rng_state()
    for error, message, keywords in (
        (ValueError, "act must be one of identity, relu, .*tanh, prelu, got swish", {"act": "swish"}),
        (ValueError, "pre_act must be one of identity, relu, .*tanh, got prelu", {"pre_act": "prelu"}),
        (ValueError, r"p must lie in \[0, 1\], got 1.5", {"p": 1.5}),
        (ValueError, r"p must lie in \[0, 1\], got nan", {"p": float("nan")}),
        (ValueError, "rng_state must be given where p is not 0, got None", {"rng_state": None}),
        (TypeError, "rng_state must be int64, got Float", {"rng_state": STATE.float()}),
        (ValueError, r"rng_state must have shape \[2\], got \[4\]", {"rng_state": torch.zeros(4, dtype=torch.int64)}),
        (RuntimeError, r"residual must have the input's shape .* got \[4, 6, 5, 1\]", {"residual": residual[..., :1]}),
        (RuntimeError, "residual must be Float on .* got Double", {"residual": residual.double()}),
        (RuntimeError, r"running_mean must have shape \[6\]", {"mean": mean[1:]}),
        (RuntimeError, "running_mean must not share memory with residual", {"residual": mean.expand(4, 5, 3, C).mT}),
        (RuntimeError, "running_mean must not share memory with running_var", {"mean": var}),
    ):
        if "share memory with residual" in message:
            keywords = {"residual": mean.expand(4, 5, 3, C).permute(0, 3, 1, 2)}
        with pytest.raises(error, match=message):
            call(**keywords)
    assert (mean == 0).all() and (var == 1).all() and count == 0
    for error, message, arguments in (
        (RuntimeError, "bias must have the size of input's last dimension", (weight, "relu", 0.0, 0.5, None, None)),
        (RuntimeError, "bias must be Float", (weight[:3].double(), "relu", 0.0, 0.5, None, None)),
        (RuntimeError, "residual must have the input's shape", (None, "relu", 0.0, 0.5, x[0], None)),
        (ValueError, r"dims must lie in \[1, 4\]", (None, "relu", 0.0, 0.5, None, 5)),
    ):
        with pytest.raises(error, match=message):
            ops.act_dropout_seeded(x, *arguments)
    assert torch.equal(generator, torch.get_rng_state())
