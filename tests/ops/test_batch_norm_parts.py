"""Batch norm over a batch in several parts, in one process: the operators that SyncBatchNorm is made of."""

import pytest
import torch

from tests.common import DEVICES, DTYPES, LAYOUTS, channels_last, contiguous
from tests.functional.test_batch_norm import EPS, Case
from tests.tolerances import assert_accurate

pytestmark = pytest.mark.parametrize("device", DEVICES)
ops = torch.ops.fastreg


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def merged(parts, running=(None, None, None), momentum=0.3, eps=EPS):
    return ops.batch_norm_merge(torch.stack([ops.batch_norm_moments(part) for part in parts]), *running, momentum, eps)


class InParts(torch.autograd.Function):
    """Training batch norm of x[:2], nothing, x[2:3] and x[3:]."""

    @staticmethod
    def split(x):
        return x[:2], x[2:2], x[2:3], x[3:]

    @staticmethod
    def forward(ctx, x, running_mean, running_var, weight, bias, training, momentum, eps):
        assert training
        parts = InParts.split(x)
        stats, count = merged(parts, (running_mean, running_var, None), momentum, eps)
        ctx.save_for_backward(x, weight, stats, count)
        return torch.cat([ops.batch_norm_normalize(part, weight, bias, stats) for part in parts])

    @staticmethod
    def backward(ctx, grad_output):
        x, weight, stats, count = ctx.saved_tensors
        pairs = list(zip(InParts.split(grad_output), InParts.split(x), strict=True))
        sums = [ops.batch_norm_train_backward(g, part, None, stats, [False, True, True])[1:] for g, part in pairs]
        sum_dy_x_hat, sum_dy = (torch.stack(s).sum(0) for s in zip(*sums, strict=True))
        means = (torch.stack((sum_dy, sum_dy_x_hat)) / count).to(stats.dtype)
        grad_input = torch.cat([ops.batch_norm_grad_input(g, part, weight, stats, means) for g, part in pairs])
        if weight is None:
            return grad_input, *[None] * 7
        return grad_input, None, None, sum_dy_x_hat.to(weight.dtype), sum_dy.to(weight.dtype), None, None, None


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("shape", [(8, 5), (4, 3, 7), (5, 4, 5, 6), (4, 16, 8, 8)], ids=str)
def test_parts_are_one_batch(device, shape, layout, dtype, affine):
    case = Case(shape, device, dtype, layout, affine=affine)
    output, gradients, running = case.run(InParts.apply, True)
    torch_output, torch_gradients, torch_running = case.run(torch.nn.functional.batch_norm, True)
    exact_output, exact_gradients, exact_running = case.exact(True)
    assert_accurate("output", output.detach(), torch_output.detach(), exact_output)
    assert_accurate("grad_input", gradients[0], torch_gradients[0], exact_gradients[0])
    parameters = zip(gradients[1:], torch_gradients[1:], exact_gradients[1:], case.summed(True), strict=False)
    for value, of_torch, exact, magnitude in parameters:
        assert_accurate("grad_parameter", value, of_torch, exact, magnitude)
    for value, of_torch, exact in zip(running, torch_running, exact_running, strict=True):
        assert_accurate("running", value, of_torch, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_in_float32(device, dtype):
    case = Case((4, 5, 4, 3), device, dtype, wide_parameters=True)
    output, _, running = case.run(InParts.apply, True)
    torch_output, _, torch_running = case.run(torch.nn.functional.batch_norm, True)
    exact_output, _, exact_running = case.exact(True)
    assert_accurate("output", output.detach(), torch_output.detach(), exact_output)
    for value, of_torch, exact in zip(running, torch_running, exact_running, strict=True):
        assert_accurate("running", value, of_torch, exact)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_large_means_cost_no_accuracy(device, layout):
    """Parts whose centres differ by more than the deviation, a million times smaller than the mean."""
    x = layout((torch.randn(64, 4, 3, 3).double() * 0.01 + 1e4).to(device).float())
    parts = x[:1], x[1:40], x[40:]
    stats, count = merged(parts, eps=1e-12)
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), unbiased=False)
    assert count == 64 * 9
    # A sum of n numbers in float32 that are rounded relative to the deviation, not to the mean.
    torch.testing.assert_close(stats[0].double() + stats[1].double(), exact_mean, rtol=0, atol=1e-6 * 0.01)
    torch.testing.assert_close(stats[2].double() ** -2, exact_var, rtol=1e-5, atol=0)


def test_constant_channels_give_the_bias(device):
    x = torch.full((6, 3, 2), 1e30, device=device)
    bias = torch.randn(3, device=device)
    stats, _ = merged((x[:1], x[1:]))
    assert torch.equal(ops.batch_norm_normalize(x, None, bias, stats), bias.view(1, 3, 1).expand(x.shape))


def test_values_whose_squares_overflow(device):
    x = torch.randn(6, 3, 2, dtype=torch.float64) * 1e100
    stats, _ = merged((x.to(device)[:2], x.to(device)[2:]))
    torch.testing.assert_close(stats[2].cpu(), x.var((0, 2), unbiased=False) ** -0.5)


def test_order_of_parts_is_that_of_the_sum(device):
    """The same moments in the same order: the same bits, whichever process merges them."""
    moments = torch.stack([ops.batch_norm_moments(torch.randn(n, 37, device=device)) for n in (3, 1, 8, 5)])
    stats, count = ops.batch_norm_merge(moments, None, None, None, 0.1, EPS)
    again, _ = ops.batch_norm_merge(moments.clone(), None, None, None, 0.1, EPS)
    assert torch.equal(stats, again)
    assert count == 17


@pytest.mark.parametrize("values", [0, 1, 2])
def test_running_statistics_of_few_values(device, values):
    """No value has no mean, one has no variance: what there is none of stays."""
    running = torch.zeros(3, device=device), torch.ones(3, device=device), torch.tensor(4, device=device)
    x = torch.randn(values, 3, device=device)
    merged((x[:1], x[1:]), running, momentum=None)
    assert running[2] == 5
    torch.testing.assert_close(running[0], x.mean(0) / 5 if values > 0 else torch.zeros_like(running[0]))
    torch.testing.assert_close(running[1], (4 + x.var(0)) / 5 if values > 1 else torch.ones_like(running[1]))


def test_running_statistics_of_any_stride(device):
    x = torch.randn(6, 3, device=device)
    dense = torch.zeros(3, device=device), torch.ones(3, device=device)
    strided = tuple(t.repeat_interleave(2)[::2] for t in dense)
    merged((x[:2], x[2:]), (*dense, None))
    merged((x[:2], x[2:]), (*strided, None))
    assert all(torch.equal(a, b) for a, b in zip(dense, strided, strict=True))


def test_versions_count_the_update(device):
    running = torch.zeros(3, device=device), torch.ones(3, device=device), torch.tensor(0, device=device)
    merged((torch.randn(4, 3, device=device),), running)
    assert all(t._version > 0 for t in running)


def test_opcheck(device):
    x, g = torch.randn(2, 4, 3, 5, device=device)
    weight, bias, running_mean, running_var = torch.rand(4, 3, device=device)
    count = torch.tensor(0, device=device)
    moments = torch.stack([ops.batch_norm_moments(x[:1]), ops.batch_norm_moments(x[1:])])
    stats, _ = ops.batch_norm_merge(moments, None, None, None, 0.1, EPS)
    means = torch.randn(2, 3, device=device)
    torch.library.opcheck(ops.batch_norm_moments, (x,))
    torch.library.opcheck(ops.batch_norm_merge, (moments, running_mean, running_var, count, 0.1, EPS))
    torch.library.opcheck(ops.batch_norm_merge, (moments, None, None, None, 0.1, EPS))
    torch.library.opcheck(ops.batch_norm_normalize, (x, weight, bias, stats))
    torch.library.opcheck(ops.batch_norm_grad_input, (g, x, None, stats, means))


REFUSED = {
    "no channels": (ValueError, "sync_batch_norm: input must have at least 2 dimensions, got 1",
                    lambda: ops.batch_norm_moments(torch.ones(3))),
    "moments of another length": (RuntimeError, "moments must be contiguous, of shape",
                                  lambda: ops.batch_norm_merge(torch.ones(2, 6), None, None, None, 0.1, 1e-5)),
    "moments of another dtype": (RuntimeError, "moments must be float32 or float64, got Half",
                                 lambda: ops.batch_norm_merge(torch.ones(2, 7).half(), None, None, None, 0.1, 1e-5)),
    "running_mean too long": (RuntimeError, "running_mean must have shape [2] on",
                              lambda: ops.batch_norm_merge(torch.ones(1, 7), torch.ones(3), None, None, 0.1, 1e-5)),
    "running_var of another dtype": (RuntimeError, "running_var must be of the input's dtype or float32, got Double",
                                     lambda: ops.batch_norm_merge(torch.ones(1, 7), None, torch.ones(2).double(), None,
                                                                  0.1, 1e-5)),
    "no count": (ValueError, "momentum must be given where num_batches_tracked is not, got None",
                 lambda: ops.batch_norm_merge(torch.ones(1, 7), None, None, None, None, 1e-5)),
    "stats of another shape": (RuntimeError, "stats must be a contiguous Float tensor of shape [3, 3]",
                               lambda: ops.batch_norm_normalize(torch.ones(4, 3), None, None, torch.ones(3, 4))),
    "means of another shape": (RuntimeError, "grad_means must be a contiguous Float tensor of shape [2, 3]",
                               lambda: ops.batch_norm_grad_input(torch.ones(4, 3), torch.ones(4, 3), None,
                                                                 torch.ones(3, 3), torch.ones(3, 3))),
    "a derivative": (NotImplementedError, "batch_norm_normalize: arguments must not require grad",
                     lambda: ops.batch_norm_normalize(torch.ones(4, 3, requires_grad=True), None, None,
                                                      torch.ones(3, 3))),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(device, case):
    exception, words, call = REFUSED[case]
    with torch.device(device), pytest.raises(exception) as raised:
        call()
    assert words in str(raised.value)
