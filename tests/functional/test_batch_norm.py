"""fastreg.functional.batch_norm: values, statistics and gradients, against torch's and the float64 reference."""

import pytest
import torch

from fastreg import functional as F
from fastreg.reference import batch_norm as reference
from tests.common import DEVICES, DTYPES, LAYOUTS, channels_last, contiguous, in_layout, sliced, transposed
from tests.tolerances import assert_accurate

pytestmark = pytest.mark.parametrize("device", DEVICES)

SHAPES = [(8, 5), (4, 3, 7), (3, 4, 5, 6), (2, 3, 4, 3, 5), (64, 17), (2, 1, 3, 3), (1, 4, 2, 2)]
EPS = 1e-3


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def double(*tensors):
    return [None if t is None else t.detach().double() for t in tensors]


class Case:
    """Arguments of one call; the parameters are in the input's dtype or in float32."""

    def __init__(self, shape, device, dtype, layout=contiguous, affine=True, wide_parameters=False):
        channels = shape[1]
        parameter_dtype = torch.float32 if wide_parameters and dtype != torch.float64 else dtype

        def parameter(values):
            return values.to(device, parameter_dtype)

        self.input = in_layout((torch.randn(shape) * 2 + 3).to(device, dtype), layout).requires_grad_()
        self.grad_output = torch.randn(shape).to(device, dtype)
        self.weight = parameter(torch.randn(channels)).requires_grad_() if affine else None
        self.bias = parameter(torch.randn(channels)).requires_grad_() if affine else None
        self.running = parameter(torch.randn(channels)), parameter(torch.rand(channels) + 0.5)

    @property
    def leaves(self):
        return [t for t in (self.input, self.weight, self.bias) if t is not None]

    def run(self, function, training, grad_output=None):
        """(output, gradients, running statistics) of a function with batch_norm's signature."""
        running = [t.clone() for t in self.running]
        output = function(self.input, *running, self.weight, self.bias, training, 0.3, EPS)
        gradients = torch.autograd.grad(output, self.leaves, self.grad_output if grad_output is None else grad_output)
        return output, gradients, running

    def exact(self, training, grad_output=None):
        """The same in float64."""
        g, x, w, b, *running = double(
            self.grad_output if grad_output is None else grad_output, self.input, self.weight, self.bias, *self.running
        )
        if training:
            mean, var = reference.moments(x)
            updated = reference.update_running(*running, mean, var, x.numel() // x.shape[1], 0.3)
            gradients = reference.train_backward(g, x, w, EPS)
            return reference.forward(x, w, b, mean, var, EPS), gradients, updated
        gradients = reference.eval_backward(g, x, w, *running, EPS)
        return reference.forward(x, w, b, *running, EPS), gradients, running

    def summed(self, training, grad_output=None):
        """Per channel, the sums of the magnitudes of the terms of (grad_weight, grad_bias)."""
        g, x, *running = double(self.grad_output if grad_output is None else grad_output, self.input, *self.running)
        mean, var = reference.moments(x) if training else running
        normalized = reference.forward(x, None, None, mean, var, EPS)
        dims = [d for d in range(x.dim()) if d != 1]
        return (g * normalized).abs().sum(dims), g.abs().sum(dims)


def check(case, training, grad_output=None):
    output, gradients, running = case.run(F.batch_norm, training, grad_output)
    torch_output, torch_gradients, torch_running = case.run(torch.nn.functional.batch_norm, training, grad_output)
    exact_output, exact_gradients, exact_running = case.exact(training, grad_output)
    assert_accurate("output", output.detach(), torch_output.detach(), exact_output)
    assert output.stride() == reference.empty_normalized_like(case.input).stride()
    assert_accurate("grad_input", gradients[0], torch_gradients[0], exact_gradients[0])
    summed = case.summed(training, grad_output)
    for value, of_torch, exact, magnitude in zip(
        gradients[1:], torch_gradients[1:], exact_gradients[1:], summed, strict=False
    ):
        assert_accurate("grad_parameter", value, of_torch, exact, magnitude)
    for value, of_torch, exact in zip(running, torch_running, exact_running, strict=True):
        assert_accurate("running", value, of_torch, exact)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_torch(device, training, dtype, layout, shape):
    check(Case(shape, device, dtype, layout), training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[:4])
def test_parameters_in_float32(device, training, dtype, layout):
    check(Case((6, 5, 4, 3), device, dtype, layout, wide_parameters=True), training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_parameters(device, training, dtype):
    check(Case((6, 5, 4), device, dtype, affine=False), training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradient", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS[:4])
def test_gradient_in_any_order(device, training, gradient, layout):
    case = Case((4, 3, 5, 7), device, torch.float32, layout)
    check(case, training, gradient(case.grad_output))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_one_parameter_alone(device, training, which):
    case = Case((4, 3, 5), device, torch.float32)
    value = getattr(case, which)
    arguments = {"training": training, which: value}
    running = [[t.clone() for t in case.running] for _ in range(2)]
    ours = F.batch_norm(case.input, *running[0], **arguments)
    torchs = torch.nn.functional.batch_norm(case.input, *running[1], **arguments)
    torch.testing.assert_close(ours, torchs)
    for one, other in zip(
        torch.autograd.grad(ours, (case.input, value), case.grad_output),
        torch.autograd.grad(torchs, (case.input, value), case.grad_output),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("training", [True, False])
def test_only_what_needs_a_gradient(device, needed, training):
    case = Case((4, 3, 5), device, torch.float64)
    expected = case.run(F.batch_norm, training)[1]
    for leaf, need in zip(case.leaves, needed, strict=True):
        leaf.requires_grad_(need)
    y = F.batch_norm(case.input, *case.running, case.weight, case.bias, training, 0.3, EPS)
    y.backward(case.grad_output)
    for leaf, need, gradient in zip(case.leaves, needed, expected, strict=True):
        assert torch.equal(leaf.grad, gradient) if need else leaf.grad is None


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
def test_mean_far_from_zero(device, layout, ratio):
    """An output within 4 ulp + 1e-6, however large the mean is against the deviation."""
    x = in_layout((torch.randn(16, 3, 8, 8) / ratio + 1).to(device), layout)
    exact = reference.forward(x.double(), None, None, *reference.moments(x.double()), 1e-14)
    y = F.batch_norm(x, None, None, training=True, eps=1e-14)
    bound = 4 * torch.finfo(y.dtype).eps * exact.abs().max() + 1e-6
    assert (y.double() - exact).abs().max() <= bound


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (4, 3, 0), (4, 0), (0, 0, 2)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_empty(device, shape, training):
    case = Case(shape, device, torch.float32)
    output, gradients, running = case.run(F.batch_norm, training)
    assert output.shape == shape and gradients[0].shape == shape
    for gradient in gradients[1:]:
        assert gradient.shape == shape[1:2] and not gradient.any()
    assert all(torch.equal(one, other) for one, other in zip(running, case.running, strict=True))


def test_one_value_per_channel_in_evaluation(device):
    check(Case((1, 5), device, torch.float32), False)


def test_momentum(device):
    """0 keeps the statistics, 1 replaces them; the variance is the unbiased one."""
    x = torch.randn(10, 3, device=device)
    for momentum, mean, var in ((0.0, 5.0, 7.0), (1.0, x.mean(0), x.var(0))):
        running = torch.full((3,), 5.0, device=device), torch.full((3,), 7.0, device=device)
        F.batch_norm(x, *running, training=True, momentum=momentum)
        torch.testing.assert_close(running[0], torch.zeros_like(running[0]) + mean)
        torch.testing.assert_close(running[1], torch.zeros_like(running[1]) + var)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", [contiguous, channels_last, transposed, sliced])
def test_gradcheck(device, training, affine, layout):
    case = Case((3, 2, 2, 2), device, torch.float64, layout, affine)

    def f(input, *parameters):
        return F.batch_norm(input, *(t.clone() for t in case.running), *parameters, training=training, eps=EPS)

    assert torch.autograd.gradcheck(f, case.leaves)
    assert torch.autograd.gradgradcheck(f, case.leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_double_backward_in_low_precision(device, dtype, training):
    case = Case((8, 3, 5), device, dtype, wide_parameters=True)
    g = case.grad_output.requires_grad_()
    y = F.batch_norm(case.input, *case.running, case.weight, case.bias, training, eps=EPS)
    gradients = torch.autograd.grad(y, case.leaves, g, create_graph=True)
    cotangents = [torch.randn_like(gradient) for gradient in gradients]
    actual = torch.autograd.grad(gradients, (g, case.input, case.weight), cotangents)
    a, b, c, g64, x, w = double(*cotangents, g, case.input, case.weight)
    if training:
        expected = reference.train_double_backward(a, b, c, g64, x, w, EPS)
    else:
        expected = reference.eval_double_backward(a, b, c, g64, x, w, *double(*case.running), EPS)
    for value, exact, like in zip(actual, expected, (g, case.input, case.weight), strict=True):
        assert value.dtype == like.dtype
        assert_accurate("double_backward", value, None, exact)


def test_third_derivative(device):
    """Against autograd of the reference: the statistics depend on the input at every order."""
    case = Case((4, 2, 3), device, torch.float64)

    def third(function):
        result = function(case.input, case.weight, case.bias)
        for _ in range(3):
            (slope,) = torch.autograd.grad(result.pow(3).sum(), case.input, create_graph=True)
            result = slope
        return result

    def plain(x, w, b):
        return reference.forward(x, w, b, *reference.moments(x), EPS)

    ours, expected = third(lambda x, w, b: F.batch_norm(x, None, None, w, b, True, eps=EPS)), third(plain)
    assert (ours - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("which", ["input", "weight", "running_mean", "running_var"])
def test_mutated_saved_tensor(device, training, which):
    case = Case((4, 3, 5), device, torch.float32)
    running = [t.clone() for t in case.running]
    tensors = {"input": case.input, "weight": case.weight, "running_mean": running[0], "running_var": running[1]}
    y = F.batch_norm(case.input, *running, case.weight, case.bias, training)
    with torch.no_grad():
        tensors[which].add_(1)
    if training and which.startswith("running"):
        y.sum().backward()  # not saved
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_statistics_updated_between_evaluation_and_its_backward(device):
    """torch computes a wrong gradient here; the update is an in-place operation like any other."""
    case = Case((4, 3, 5), device, torch.float32)
    y = F.batch_norm(case.input, *case.running)
    F.batch_norm(case.input, *case.running, training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(device, dtype):
    """As torch.nn.functional: computed in the dtype that comes in, statistics in their own."""
    weight, mean, var = (torch.ones(3, device=device) for _ in range(3))
    for x in (torch.randn(8, 3, device=device), torch.randn(8, 3, device=device, dtype=dtype)):
        with torch.autocast(device, dtype):
            ours = F.batch_norm(x, mean, var, weight, training=True)
            assert ours.dtype == torch.nn.functional.batch_norm(x, None, None, weight, training=True).dtype == x.dtype
    assert mean.dtype == torch.float32 and not torch.equal(mean, torch.ones_like(mean))
