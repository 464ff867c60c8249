"""Batch norm of values, sizes and layouts that strain the arithmetic, against the float64 reference."""

import pytest
import torch

from fastreg import functional as F
from fastreg.reference import batch_norm as reference
from tests.common import DEVICES, channels_last, contiguous, in_layout
from tests.tolerances import assert_accurate

devices = pytest.mark.parametrize("device", DEVICES)
layouts = pytest.mark.parametrize("layout", [contiguous, channels_last])
# The CPU's sums are first taken in float32 of many values per channel, in long runs, and in double of others.
few_and_many = pytest.mark.parametrize("plane", [(4, 4), (13, 13)], ids=str)
EPS = 1e-5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def leaf(x, device, layout=contiguous):
    return in_layout(x.to(device), layout).requires_grad_()


def check(x, eps=EPS, statistics=True):
    """Output, gradient and running statistics, in training, as accurate as torch's."""
    g = torch.randn_like(x)
    exact_x = x.detach().double()
    mean, var = reference.moments(exact_x)
    running = [torch.zeros(x.shape[1], device=x.device) for _ in range(2)]
    y, torch_y = (
        F.batch_norm(x, *running, None, None, True, 1.0, eps),
        torch.nn.functional.batch_norm(x, None, None, None, None, True, 1.0, eps),
    )
    assert_accurate("output", y.detach(), torch_y.detach(), reference.forward(exact_x, None, None, mean, var, eps))
    exact_dx, _, _ = reference.train_backward(g.double(), exact_x, None, eps)
    (dx,), (torch_dx,) = (torch.autograd.grad(result, x, g) for result in (y, torch_y))
    assert_accurate("grad_input", dx, torch_dx, exact_dx)
    if statistics:
        count = x.numel() // x.shape[1]
        assert_accurate("running", running[0], None, mean, summed=var.sqrt())  # a sum of deviations
        assert_accurate("running", running[1], None, var * (count / (count - 1)))


@devices
@layouts
@pytest.mark.parametrize("channels", [1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 100, 255, 1000, 4095, 4096])
def test_channels(device, layout, channels):
    check(leaf(torch.randn(6, channels, 3), device, layout))
    check(leaf(torch.randn(9, channels), device, layout))


@devices
@layouts
@pytest.mark.parametrize("shape", [(2, 5), (1, 5, 2), (3, 5), (13, 5, 1), (1, 5, 13), (65, 3, 7, 3), (2, 9, 181, 181),
                                   (1, 3, 1000003), (1000003, 3), (7, 40, 14, 14)], ids=str)  # fmt: skip
def test_values_per_channel(device, layout, shape):
    check(leaf(torch.randn(shape) + 1, device, layout))


@devices
@layouts
@few_and_many
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_constant_channels(device, layout, dtype, plane):
    """Exactly the bias comes out, and no gradient is infinite."""
    values = torch.tensor([0.0, -0.1, 1e4, 3.14159, 1 / 3, -777.7, 5e-7]).to(device, dtype)
    x = in_layout(values.view(1, -1, 1, 1).expand(9, -1, *plane).contiguous(), layout).requires_grad_()
    weight, bias = (torch.randn_like(values).requires_grad_() for _ in range(2))
    y = F.batch_norm(x, None, None, weight, bias, True)
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))
    gradients = torch.autograd.grad(y, (x, weight, bias), torch.randn_like(y))
    assert all(gradient.isfinite().all() for gradient in gradients) and not gradients[1].any()


@devices
@layouts
@few_and_many
@pytest.mark.parametrize("scale", [1e-41, 1e-38, 1e-30, 1e-22, 1e-10, 1e10, 1e18], ids=str)
def test_magnitudes(device, layout, scale, plane):
    """From denormal numbers on; the variance is a float32, too, and must be one."""
    x = leaf(torch.randn(8, 5, *plane) * scale, device, layout)
    check(x, statistics=scale > 1e-18)


@devices
@layouts
@few_and_many
@pytest.mark.parametrize("zeros", [False, True])
def test_values_near_the_largest(device, layout, plane, zeros):
    """The variance is beyond float32; the output is not. Nor where what is read first is small."""
    x, g = torch.randn(8, 5, *plane) * 1e30, torch.randn(8, 5, *plane, device=device)
    if zeros:
        x[:3] = 0
    x = leaf(x, device, layout)
    exact = x.detach().double()
    y = F.batch_norm(x, None, None, training=True)
    dx = torch.autograd.grad(y, x, g)[0]
    exact_y = reference.forward(exact, None, None, *reference.moments(exact), EPS)
    exact_dx = reference.train_backward(g.double(), exact, None, EPS)[0]
    assert exact_y.abs().max() > 1
    for value, result in ((y.detach(), exact_y), (dx, exact_dx)):  # some four roundings each; torch's are zeros
        assert (value.double() - result).abs().max() <= 4 * torch.finfo(x.dtype).eps * result.abs().max()


@devices
@layouts
@pytest.mark.parametrize("ratio", [1e3, 1e5, 1e6])
def test_large_means(device, layout, ratio):
    """Gradients and statistics, too, of channels whose mean is far larger than their deviation."""
    x = leaf(torch.randn(64, 5, 6, 6) / ratio + torch.tensor([1.0, -1, 2, 0.5, 3]).view(5, 1, 1), device, layout)
    check(x, eps=1e-15, statistics=False)


@devices
@layouts
@pytest.mark.parametrize("outlier", [1e4, -1e6])
def test_first_value_far_from_the_others(device, layout, outlier):
    """The value that the sums are centred on says nothing of the rest."""
    for shape in ((16, 3, 9, 9), (3, 7, 30, 30)):
        x = torch.randn(shape)
        x[0, :, 0, 0] = outlier
        check(leaf(x, device, layout))


@devices
@layouts
@pytest.mark.parametrize("offset", [3.0, 1e3, 1e6])
def test_first_values_far_from_the_others(device, layout, offset):
    """As in images with a border: all that the sums could be centred on is. Other channels do not change."""
    x = torch.randn(8, 6, 24, 24)
    clean = F.batch_norm(leaf(x, device, layout), None, None, training=True)[:, 3:].detach()
    x[:, :3, :2] = offset + torch.randn(8, 3, 2, 24) / 8
    x = leaf(x, device, layout)
    check(x)
    assert torch.equal(F.batch_norm(x, None, None, training=True)[:, 3:].detach(), clean)


@devices
@layouts
@few_and_many
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_values_stay_in_their_channel(device, layout, training, value, plane):
    x = torch.randn(6, 37, *plane)
    poisoned = x.clone()
    poisoned[3, 1, 2, 3] = poisoned[0, 36, 0, 0] = value
    results = []
    for input in (x, poisoned):
        input = leaf(input, device, layout)
        running = [torch.zeros(37, device=device), torch.ones(37, device=device)]
        weight, bias = (torch.ones(37, device=device).requires_grad_() for _ in range(2))
        y = F.batch_norm(input, *running, weight, bias, training)
        g = torch.linspace(-1, 1, y.numel(), device=device).view_as(y)
        dx, dw, db = torch.autograd.grad(y, (input, weight, bias), g)
        results.append([t.detach().movedim(1, 0) if t.dim() > 1 else t for t in (y, dx, dw, db, *running)])
    sound = [c for c in range(37) if c not in (1, 36)]
    for clean, with_poison in zip(*results, strict=True):
        assert torch.equal(clean[sound], with_poison[sound])
    assert not results[1][0][1].isfinite().all() and (not training or results[1][0][36].isnan().all())


@devices
@layouts
@few_and_many
@pytest.mark.parametrize("scales", [(1e30, 1e15), (1e10, 1e33), (1e-12, 1e-30), (1e-22, 1.0)], ids=str)
def test_gradients_of_any_magnitude(device, layout, plane, scales):
    """dy (x - mean) is beyond float32, above or below, where dx, in units of its own, is not. Other channels do not
    change."""
    of_x, of_dy = scales
    x, g = (torch.randn(8, 5, *plane).to(device) for _ in range(2))
    results = []
    for factors in ((1.0, 1.0), (of_x, of_dy)):
        big_x, big_g = x.clone(), g.clone()
        big_x[:, 2] *= factors[0]
        big_g[:, 2] *= factors[1]
        weight = torch.full((5,), 1.0, device=device)
        weight[2] = factors[0] / factors[1]  # so that dx is of the usual size
        big_x = leaf(big_x, device, layout)
        y = F.batch_norm(big_x, None, None, weight, None, True, eps=1e-60)
        results.append(torch.autograd.grad(y, big_x, in_layout(big_g, layout))[0])
    exact = reference.train_backward(g.double() * of_dy, x.double() * of_x, weight.double(), 1e-60)[0]
    assert (results[1][:, 2].double() - exact[:, 2]).abs().max() <= 1e-6 * exact[:, 2].abs().max()
    others = [0, 1, 3, 4]
    assert torch.equal(results[0][:, others], results[1][:, others])


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)  # float64 shows the order of the sums
@pytest.mark.parametrize("shape", [(64, 40, 14, 14), (3, 4, 200, 333), (5000, 33), (50, 1500), (4, 300, 30)], ids=str)
def test_threads_do_not_matter(layout, dtype, shape):
    """Bit for bit: how sums are divided depends on the shape alone."""
    x, g = leaf(torch.randn(shape, dtype=dtype), "cpu", layout), torch.randn(shape, dtype=dtype)
    weight, before = torch.randn(shape[1], dtype=dtype).requires_grad_(), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            running = torch.zeros(shape[1], dtype=dtype), torch.ones(shape[1], dtype=dtype)
            y = F.batch_norm(x, *running, weight, None, True)
            results.append([y, *torch.autograd.grad(y, (x, weight), g), *running])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
