"""The nodes that the operators put into autograd's graph behave as torch's own do, those in C++ and those in Python."""

import gc
import weakref

import pytest
import torch

from tests.common import COMPILED_BACKENDS

ops = torch.ops.fastreg
pytestmark = [
    pytest.mark.skipif(not COMPILED_BACKENDS, reason="the operators are compiled code"),
    pytest.mark.usefixtures("derivatives"),
]

SHAPE = (6, 4, 5)
STATE = torch.tensor([3, 8])
FUSED = ("identity", 0.0)


def parameters():
    torch.manual_seed(0)
    return [torch.randn(4).requires_grad_() for _ in range(2)]


def statistics():
    return torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4)


def operands(*shapes):
    torch.manual_seed(1)
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def batch_norm_act(act, residual, p, training):
    x, added = operands(SHAPE, SHAPE)
    weight, bias = parameters()
    slope = torch.tensor([0.2]).requires_grad_() if act == "prelu" else None
    inputs = [t for t in (x, weight, bias, added if residual else None, slope) if t is not None]
    rest = (*FUSED, added if residual else None, act, 0.1, slope, False, p, STATE if p else None)

    def call():
        if training:
            return ops.batch_norm_act_train(x, weight, bias, None, None, None, 0.1, 1e-5, *rest)[0]
        return ops.batch_norm_act_eval(x, weight, bias, *statistics(), 1e-5, *rest)[0]

    return inputs, call


def batch_norm(training):
    (x,), (weight, bias) = operands(SHAPE), parameters()

    def call():
        if training:
            return ops.batch_norm_train(x, weight, bias, None, None, None, 0.1, 1e-5)[0]
        return ops.batch_norm_eval(x, weight, bias, *statistics(), 1e-5)

    return [x, weight, bias], call


def dropout(in_place=False, index_map=None, transform=None):
    (x,) = operands(SHAPE)

    def call():
        if not in_place:
            return ops.dropout(x, 0.5, STATE, None, index_map, transform)
        y = x * 1
        ops.dropout_(y, 0.5, STATE, index_map, transform)
        return y

    return [x], call


def feature_dropout():
    x, residual = operands(SHAPE, SHAPE)
    return [x, residual], lambda: ops.feature_dropout(x, 2, 0.5, STATE, None, None, residual)


def act_dropout(act, dims=None):
    x, bias, residual = operands(SHAPE, SHAPE[-1:], SHAPE)
    return [x, bias, residual], lambda: ops.act_dropout(x, bias, act, 0.1, 0.5, STATE, residual, dims, None)


# The operator, and what its node's name says.
CASES = {
    "dropout": (dropout, "Dropout"),
    "dropout with everything": (lambda: dropout(False, (16, 5, 40), (3.0, 0.5, 1.0)), "Dropout"),
    "dropout in place": (lambda: dropout(True), "Dropout"),
    "feature_dropout": (feature_dropout, "Dropout"),
    "act_dropout": (lambda: act_dropout("elu"), "ActDropout"),
    "act_dropout of features": (lambda: act_dropout("silu", 2), "ActDropout"),
    "act_dropout without an activation": (lambda: act_dropout("identity"), "ActDropout"),
    "batch_norm": (lambda: batch_norm(True), "BatchNorm"),
    "batch_norm in evaluation": (lambda: batch_norm(False), "BatchNormEval"),
    "batch_norm_act": (lambda: batch_norm_act("leaky_relu", False, 0.0, True), "BatchNormAct"),
    "batch_norm_act with everything": (lambda: batch_norm_act("relu", True, 0.5, True), "BatchNormAct"),
    "batch_norm_act of a sum": (lambda: batch_norm_act("silu", True, 0.0, True), "BatchNormAct"),
    "batch_norm_act of a sum alone": (lambda: batch_norm_act("identity", True, 0.0, True), "BatchNormAct"),
    "batch_norm_act in evaluation": (lambda: batch_norm_act("tanh", False, 0.5, False), "BatchNormAct"),
    "batch_norm_act with prelu": (lambda: batch_norm_act("prelu", True, 0.0, True), "BatchNormAct"),
}
cases = pytest.mark.parametrize("case", CASES)


def made(case):
    inputs, call = CASES[case][0]()
    return inputs, call, torch.linspace(-2, 1, 120).reshape(SHAPE)


def name_of_node(case, derivatives):
    """A name says where the node is from."""
    if derivatives == "cpp":
        return f"fastreg::{CASES[case][1]}Backward"
    return "torch::autograd::CopyBackwards" if case == "dropout in place" else f"{CASES[case][1]}Backward"


def gradients(call, inputs, grad, **options):
    return torch.autograd.grad(call(), inputs, grad, **options)


@cases
def test_name(case, derivatives):
    _, call, _ = made(case)
    assert call().grad_fn.name() == name_of_node(case, derivatives)


@cases
def test_gradient_of_each_input_alone(case):
    """The one that is asked for is what it is among all."""
    inputs, call, grad = made(case)
    for of_all, one in zip(gradients(call, inputs, grad), inputs, strict=True):
        assert torch.equal(*gradients(call, [one], grad), of_all)
        for other in inputs:
            other.requires_grad_(other is one)
        assert torch.equal(*gradients(call, [one], grad), of_all)
        for other in inputs:
            other.requires_grad_()


@cases
def test_twice(case):
    inputs, call, grad = made(case)
    y = call()
    first, second = (torch.autograd.grad(y, inputs, grad, retain_graph=retain) for retain in (True, False))
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, inputs, grad)


class Undefined(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@cases
def test_undefined_gradient(case):
    """Nothing is computed of no gradient: there is none for the inputs either."""
    inputs, call, grad = made(case)
    assert torch.autograd.grad(Undefined.apply(call()), inputs, grad, allow_unused=True) == (None,) * len(inputs)


@cases
def test_hooks_of_saved_tensors(case):
    """Each tensor that is kept goes through them, and what they give back is what backward computes with."""
    inputs, call, grad = made(case)
    expected = gradients(call, inputs, grad)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: packed.append(t.clone()) or len(packed), lambda i: packed[i - 1]
    ):
        y = call()
    assert packed
    with torch.no_grad():
        for each in inputs:
            each.mul_(2)  # which nobody notices: it is the copies that are kept
    assert all(map(torch.equal, torch.autograd.grad(y, inputs, grad), expected))


@cases
def test_written_to_since(case):
    """A tensor that is kept must not have been written to before backward."""
    inputs, call, grad = made(case)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        call()
    for tensor in inputs:
        if tensor.data_ptr() not in kept:
            continue
        y = call()
        with torch.no_grad():
            tensor.add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(y, inputs, grad)


def test_written_state():
    (x,), _ = dropout()
    state = STATE.clone()
    y = ops.dropout(x, 0.5, state)
    state.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_nothing_is_kept_after_backward():
    (x,) = operands(SHAPE)
    between = x * 1
    y = ops.batch_norm_act_train(between, *[None] * 5, 0.1, 1e-5, *FUSED, None, "silu", 0.0, None, False, 0.0, None)[0]
    node, between = y.grad_fn, weakref.ref(between)
    assert between() is not None
    y.sum().backward()
    del y
    gc.collect()
    assert between() is None and node is not None


@cases
def test_compiled_autograd(case):
    inputs, call, grad = made(case)
    expected = gradients(call, inputs, grad)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        call().backward(grad)
    for each, gradient in zip(inputs, expected, strict=True):
        torch.testing.assert_close(each.grad, gradient)


@cases
def test_compiled_autograd_knows_the_fields(case):
    """Calls that differ in what is no tensor are not taken for each other."""
    inputs, call, grad = made(case)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        for other in CASES:
            if CASES[other][1] == CASES[case][1]:
                others, call_other, _ = made(other)
                call_other().backward(grad)
                for each, gradient in zip(others, gradients(call_other, others, grad), strict=True):
                    torch.testing.assert_close(each.grad, gradient)


@cases
def test_anomaly_mode(case, derivatives):
    inputs, call, grad = made(case)
    name = name_of_node(case, derivatives)
    with pytest.warns(UserWarning, match=f"Error detected in {name}"), torch.autograd.detect_anomaly():
        y = call()
        with pytest.raises(RuntimeError, match=f"{name}.* returned nan"):
            torch.autograd.grad(y, inputs, grad * float("nan"))
