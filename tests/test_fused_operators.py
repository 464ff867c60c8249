"""The operators behind batch_norm_act and act_dropout: layouts and dtypes, masks, gates, derivatives, what they keep,
and what they leave alone. The reference is their definition in float64."""

import copy
import re

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastreg
from fastreg import _activation
from fastreg.functional import act_dropout, batch_norm_act, drop_path, dropout
from fastreg.reference import fused
from tests.common import DEVICES, DTYPES, LAYOUTS, channels_last, contiguous, expanded, sliced, transposed
from tests.tolerances import assert_accurate

ops = torch.ops.fastreg
STATE = torch.tensor([11, 24])
NATIVE = [name for name, entry in _activation.TABLE.items() if not entry.weighted]
GATED = ["relu", "relu6", "leaky_relu", "hardsigmoid"]
C = 6
EPS = 1e-5
# torch's derivatives of hardsigmoid multiply by 1/6 rounded to float32, in float64 too.
GRADIENT = {"hardsigmoid": 1e-6}


def function(name):
    activation = _activation.parse("test", "act", name)
    return lambda x: _activation.apply(activation, x)


def operands(dtype=torch.float64, device="cpu", layout=contiguous, shape=(4, C, 5, 3)):
    torch.manual_seed(0)
    x, residual, grad = (2 * torch.randn(shape, device=device).to(dtype) for _ in range(3))
    weight, bias = torch.linspace(0.5, 1.5, C, device=device).to(dtype), torch.randn(C, device=device).to(dtype)
    return [t.requires_grad_() for t in (layout(x), layout(residual), weight, bias)], layout(grad)


def mask_of(x, p, state=STATE):
    """Which elements dropout of a tensor like x keeps."""
    return dropout(torch.ones_like(x.detach()), p, rng_state=state) != 0


def exact(x, residual, weight, bias, act, pre_act="identity", statistics=None, mask=None, p=0.0):
    """batch_norm_act in float64. mask: what dropout keeps."""
    x, residual, weight, bias = (None if t is None else t.double() for t in (x, residual, weight, bias))
    statistics = None if statistics is None else [s.double() for s in statistics]
    y = fused.batch_norm_act(
        x, weight, bias, EPS, function(pre_act), function(act), statistics=statistics, residual=residual
    )
    return y if mask is None else torch.where(mask, y / (1.0 - p), 0.0)


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
    assert y.stride() == torch.empty_like(x).stride()
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


def test_third_derivative():
    (x, residual, weight, bias), _ = operands(shape=(3, C))

    def first(x, residual):
        y = batch_norm_act(x, None, None, weight, bias, True, act="gelu", residual=residual)
        return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(first, (x, residual), atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_of_act_dropout(device, layout, dtype):
    """Those of dropout and drop_path of a tensor like the input, whatever the order of gradient and residual."""
    torch.manual_seed(0)
    x = layout(torch.rand(6, 5, 3, 8, device=device).to(dtype) + 1).requires_grad_()
    residual = transposed(torch.rand(6, 5, 3, 8, device=device).to(dtype))
    bias = torch.rand(8, device=device).to(dtype)
    for path in (False, True):
        unfused = drop_path if path else dropout
        mask = unfused(torch.ones_like(x.detach()), 0.5, rng_state=STATE) != 0
        y = act_dropout(x, "relu", 0.5, bias=bias, drop_path=path, rng_state=STATE)
        assert torch.equal(y != 0, mask) and y.stride() == torch.empty_like(x).stride()
        for grad in (torch.ones_like(y), transposed(torch.ones_like(y)), expanded(torch.ones_like(y))):
            (gradient,) = torch.autograd.grad(y, x, grad, retain_graph=True)
            torch.testing.assert_close(gradient, mask * y.new_tensor(2.0), check_stride=False)
        y = act_dropout(x, "relu", 0.5, bias=bias, residual=residual, drop_path=path, rng_state=STATE)
        exact_y = torch.where(mask, 2 * (x + bias).double(), 0.0) + residual.double()
        torchs = torch.where(mask, (x + bias).relu() * 2, 0.0) + residual
        assert_accurate("output", y, torchs, exact_y)
        y = act_dropout(x, "identity", 0.5, residual=residual, drop_path=path, rng_state=STATE)
        (gradient,) = torch.autograd.grad(y, x, transposed(torch.ones_like(y)))
        torch.testing.assert_close(gradient, mask * y.new_tensor(2.0), check_stride=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_given(device, layout):
    """As compiled code gives them: elements are numbered in their order, forward and backward."""
    strides = channels_last(torch.empty(6, 5, 3, 8)).stride()
    keep = fastreg.reference.dropout.keep_mask(6 * 5 * 3 * 8, 0.5, STATE).as_strided((6, 5, 3, 8), strides).to(device)
    x = layout(torch.rand(6, 5, 3, 8, device=device) + 1).requires_grad_()
    for act in ("relu", "identity"):
        y = ops.act_dropout(x, None, act, 0.0, 0.5, STATE, None, None, strides)
        assert torch.equal(y != 0, keep) and y.stride() == strides
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient, keep * 2.0, check_stride=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last, transposed, sliced])
def test_masks_of_batch_norm_act(device, layout):
    x = layout(torch.randn(6, C, 3, 7, device=device))
    for training in (True, False):
        statistics = (None, None) if training else (torch.zeros(C, device=device), torch.ones(C, device=device))
        y = batch_norm_act(x, *statistics, training=training, act="sigmoid", p=0.5, rng_state=STATE)
        assert torch.equal(y != 0, mask_of(x, 0.5))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", GATED)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", [(3, C, 7, 7), (5, C, 16, 3), (33, C)], ids=str)
def test_gates(device, dtype, act, layout, shape):
    """Forward and backward agree on each element's side, zero and the other ends themselves included: the argument of
    act takes some fifty values, exactly, in every dtype."""
    torch.manual_seed(0)
    # Statistics that batch norm leaves x as it is by: 0, and 1 of which eps is a part.
    statistics = torch.zeros(C, device=device).to(dtype), torch.full((C,), 0.5, device=device).to(dtype)
    x, residual = (layout(torch.randint(-14, 15, shape, device=device).to(dtype) / 4) for _ in range(2))
    for addend in (residual, None):
        x.requires_grad_()
        z = (x if addend is None else x + addend).detach().requires_grad_()
        y = batch_norm_act(x, *statistics, eps=0.5, act=act, residual=addend)
        expected = function(act)(z)
        torch.testing.assert_close(y, expected)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        (reference,) = torch.autograd.grad(expected.sum(), z)
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_residual", [True, False])
def test_forward_and_backward_see_the_same_argument(device, dtype, with_residual):
    """relu of values around zero, none of them exact: what backward computes again must round as forward's did."""
    (x, residual, weight, bias), _ = operands(dtype, device, shape=(64, C, 9, 7))
    residual = (residual * 2.0**-8).detach() if with_residual else None
    statistics = x.detach().float().mean((0, 2, 3)).to(dtype), torch.ones(C, device=device).to(dtype)
    y = batch_norm_act(x, *statistics, weight, act="relu", residual=residual)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y > 0, gradient > 0)


def saved_bytes(call):
    """What autograd keeps for the backward pass of a call, parameters and arguments of the call apart."""
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        call()
    return sizes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_kept(device, dtype):
    (x, residual, weight, bias), _ = operands(dtype, device, shape=(8, C, 16, 16))
    stats, state = 3 * C * 4, 16

    def kept(act, addend=None, p=0.0):
        found = saved_bytes(lambda: batch_norm_act(x, None, None, weight, bias, True, act=act, residual=addend, p=p))
        assert found.pop(x.data_ptr()) == x.nbytes
        found.pop(weight.data_ptr(), None), found.pop(bias.data_ptr(), None)
        return sum(found.values())

    for act in NATIVE:
        assert kept(act) == stats
        assert kept(act, p=0.5) == stats + state
        assert saved_bytes(lambda act=act: act_dropout(x, act, 0.5, bias=None, residual=residual)).keys() >= (
            set() if act == "identity" else {x.data_ptr()}
        )
    assert kept("identity", residual) == stats
    for act in GATED:
        assert stats < kept(act, residual) <= stats + x.nbytes / 16
        assert kept(act, residual, p=0.5) == kept(act, residual) + state
    assert kept("gelu", residual, p=0.5) == stats + state + residual.nbytes
    kept_by = saved_bytes(lambda: act_dropout(x, "identity", 0.5, residual=residual))
    assert sum(kept_by.values()) == state
    kept_by = saved_bytes(lambda: act_dropout(x, "gelu", 0.5, residual=residual))
    assert sum(kept_by.values()) == state + x.nbytes


@pytest.mark.parametrize("device", DEVICES)
def test_the_generator(device):
    x = torch.randn(4, C, 8, device=device)
    settings = (None, None, None, None, None, 0.1, EPS, "identity", 0.0, None, "relu", 0.0, False)
    torch.manual_seed(3)
    y, _, _, state = ops.batch_norm_act_train_seeded(x, *settings, 0.5)
    torch.manual_seed(3)
    assert torch.equal(fastreg.draw_rng_state(device), state)
    assert torch.equal(ops.batch_norm_act_train(x, *settings, 0.5, state)[0], y)
    assert torch.equal(ops.batch_norm_act_train(x, *settings, 0.5, state.cpu())[0], y)
    torch.manual_seed(3)
    y, state = ops.act_dropout_seeded(x, None, "tanh", 0.0, 0.5, None, None)
    torch.manual_seed(3)
    assert torch.equal(fastreg.draw_rng_state(device), state)
    assert torch.equal(ops.act_dropout(x, None, "tanh", 0.0, 0.5, state, None, None), y)

    torch.manual_seed(3)
    before = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    for p, input in ((1.0, x), (0.5, x[:0])):
        for training in (True, False):
            statistics = torch.zeros(C, device=device), torch.ones(C, device=device)
            y = batch_norm_act(input, *statistics, training=training, p=p)
            assert y.shape == input.shape and (y == 0).all()
        assert (act_dropout(input, "sigmoid", p, residual=torch.ones_like(input)) == 1).all()
        assert (act_dropout(input, "sigmoid", p, drop_path=True) == 0).all()
    batch_norm_act(x, None, None, training=True)
    after = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    assert torch.equal(before, after)


def test_states_are_recorded_and_replayed():
    x = torch.randn(8, C)

    def call():
        yield batch_norm_act(x, None, None, training=True, p=0.5)
        yield batch_norm_act(x, torch.zeros(C), torch.ones(C), p=0.5)
        yield act_dropout(x, "tanh", 0.5)
        yield act_dropout(x, "tanh", 0.5, drop_path=True, residual=x)

    with fastreg.record_rng_states() as states:
        results = list(call())
    assert len(states) == 4
    with fastreg.replay_rng_states(states):
        assert all(torch.equal(one, other) for one, other in zip(results, call(), strict=True))
    state = torch.get_rng_state()
    unrecorded = list(call())
    torch.set_rng_state(state)
    with fastreg.record_rng_states():
        assert all(torch.equal(one, other) for one, other in zip(unrecorded, call(), strict=True))


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
            x, weight, bias, mean, var, count, 0.1, EPS, pre_act, 0.0, residual, act, 0.0, False, p, rng_state
        )

    generator = torch.get_rng_state()
    for error, message, keywords in (
        (ValueError, "act must be one of identity, relu, .*tanh, got swish", {"act": "swish"}),
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


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    (x, residual, weight, bias), grad = operands(torch.float32)
    mean, var = torch.zeros(C), torch.ones(C)

    def call(x, residual, rng_state):
        y = batch_norm_act(x, mean, var, weight, bias, True, act="relu", residual=residual, p=0.5, rng_state=rng_state)
        return act_dropout(y, "gelu", 0.5, bias=x.new_ones(3), residual=x, rng_state=rng_state)

    compiled = torch.compile(call, fullgraph=True, backend=backend)
    for one in (contiguous, channels_last):
        leaves = [one(t.detach()).requires_grad_() for t in (x, residual)]
        y, expected = compiled(*leaves, STATE), call(*leaves, STATE)
        assert y.stride() == expected.stride() and torch.equal(y, expected)
        ours, theirs = (torch.autograd.grad(t, (*leaves, weight, bias), grad) for t in (y, expected))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    drawn = torch.compile(lambda x: (call(x, None, None), call(x, None, None)), fullgraph=True, backend=backend)
    one, other = drawn(x)
    assert not torch.equal(one == x, other == x)


def test_transforms_see_every_step():
    (x, residual, weight, bias), _ = operands(shape=(4, C))

    def call(x):
        y = batch_norm_act(x, None, None, weight, bias, True, act="silu", residual=residual, p=0.5, rng_state=STATE)
        return act_dropout(y, "gelu", 0.5, bias=bias, rng_state=STATE).square().sum()

    (expected,) = torch.autograd.grad(call(x), x)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.grad(call)(x), expected)
    tangent = torch.randn_like(x)
    _, derivative = torch.func.jvp(call, (x,), (tangent,))
    torch.testing.assert_close(derivative, (tangent * expected).sum())


def test_operators_refuse_tangents():
    x = torch.randn(4, C)
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(x, x)
        for call in (
            lambda: ops.act_dropout(x, None, "relu", 0.0, 0.0, None, None, None),
            lambda: ops.batch_norm_act_eval(
                x, None, None, x[0], x[0], EPS, "identity", 0.0, None, "relu", 0.0, False, 0.0, None
            ),
        ):
            with pytest.raises(NotImplementedError, match="must not have tangents"):
                call()


def test_checkpointed():
    (x, residual, weight, bias), _ = operands(shape=(16, C))

    def call(x):
        y = batch_norm_act(x, None, None, weight, bias, True, act="relu", residual=residual, p=0.5)
        return act_dropout(y, "tanh", 0.5, residual=x)

    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(call(x).square().sum(), x)
    for reentrant in (False, True):
        torch.manual_seed(1)
        y = checkpoint(call, x, use_reentrant=reentrant)
        y.square().sum().backward()
        torch.testing.assert_close(x.grad, expected)
        x.grad = None


def test_a_state_made_in_inference_mode():
    with torch.inference_mode():
        state = STATE.clone()
    x = torch.randn(8, C, requires_grad=True)
    batch_norm_act(x, None, None, training=True, p=0.5, rng_state=state).sum().backward()
    act_dropout(x, "tanh", 0.5, rng_state=state).sum().backward()


def arguments_of_operators(device):
    x, residual, grad = torch.randn(3, 4, C, 5, 3, device=device, requires_grad=True).unbind()
    leaves = [t.detach().requires_grad_() for t in (x, residual)]
    x, residual, grad = *leaves, grad.detach()
    weight, bias = torch.ones(C, device=device).requires_grad_(), torch.zeros(C, device=device).requires_grad_()
    mean, var, count = torch.zeros(C, device=device), torch.ones(C, device=device), torch.tensor(0, device=device)
    state = STATE.to(device)
    mask = (True, True, True, True)
    relu, silu, identity = ("relu", 0.0), ("silu", 0.0), ("identity", 0.0)
    train, train_backward = ops.batch_norm_act_train.default, ops.batch_norm_act_train_backward.default
    evaluate, eval_backward = ops.batch_norm_act_eval.default, ops.batch_norm_act_eval_backward.default
    for act, addend, p in ((relu, residual, 0.3), (silu, residual, 0.0)):
        settings = (*identity, addend, *act, False, p, state if p else None)
        with_gate = (*identity, None if addend is None else addend.detach(), *act, True, p, state if p else None)
        yield train, (x, weight, bias, mean, var, count, 0.1, EPS, *settings)
        yield evaluate, (x, weight, bias, mean, var, EPS, *settings)
        with torch.no_grad():
            _, stats, gate = train(x, weight, bias, None, None, None, 0.1, EPS, *with_gate)
        gate = gate if gate.numel() else None
        saved = None if gate is not None else addend
        used = (*identity, saved, gate, *act, p, state if p else None, mask)
        shift = None if gate is not None else bias
        yield train_backward, (grad, x, weight, shift, stats, *used)
        yield eval_backward, (grad, x, weight, shift, mean, var, EPS, *used)
    last = torch.ones(3, device=device, requires_grad=True)
    for act, p, dims in ((relu, 0.3, None), (identity, 0.3, 1)):
        used = state if p else None
        yield ops.act_dropout.default, (x, last, *act, p, used, residual, dims)
        yield ops.act_dropout_backward.default, (grad, x, last, *act, p, used, dims, list(x.stride()))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for operator, arguments in arguments_of_operators(device):
        torch.library.opcheck(operator, arguments)
    x = torch.randn(4, C, device=device, requires_grad=True)
    seeded = ("test_schema", "test_autograd_registration", "test_faketensor")  # the others compare two draws
    settings = (None, None, None, None, None, 0.1, EPS, "identity", 0.0, x.detach(), "relu", 0.0, False, 0.5)
    torch.library.opcheck(ops.batch_norm_act_train_seeded.default, (x, *settings), test_utils=seeded)
    torch.library.opcheck(ops.act_dropout_seeded.default, (x, None, "relu", 0.0, 0.5, x, None), test_utils=seeded)
