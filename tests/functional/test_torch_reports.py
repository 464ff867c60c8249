"""What users reported of PyTorch's dropout and batch norm (github.com/pytorch/pytorch, issues and pull requests by
their numbers), in forms that a CPU can show: none of it holds here, but for what 190717
says.

What was reported of code that PyTorch's compiler generates for a GPU is shown for the compiler's CPU code; fastreg's
kernels are not generated, and on a GPU the same tests run as those marked cuda.
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastreg
from fastreg import functional as F
from fastreg import reference
from tests.common import DEVICES

OPS = torch.ops.fastreg
devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


@devices
def test_198333_compiled_masks_of_transposed_inputs(device):
    """Channels next to each other got the same mask where the input was a transposed copy, and checkpointing
    differentiated another mask than it had applied."""

    def block(x):
        return F.dropout(x.transpose(1, 2).contiguous(), 0.5)

    x = torch.ones(2, 64, 32, device=device, requires_grad=True)
    y = torch.compile(lambda x: checkpoint(block, x, use_reentrant=False), fullgraph=True)(x)
    y.sum().backward()
    kept = y.detach().transpose(1, 2)
    assert torch.equal(x.grad, kept)
    rows = (kept != 0).flatten(0, 1)
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    # 4096 draws: within 5 standard deviations of a half; neighbours agree in half of the cases.
    assert abs(rows.double().mean() - 0.5) < 5 * 0.5 / 4096**0.5
    assert abs((rows[1:] == rows[:-1]).double().mean() - 0.5) < 5 * 0.5 / 4064**0.5


@devices
@pytest.mark.parametrize("budget", [0.0, 0.5])
def test_190717_masks_under_a_memory_budget(device, budget):
    """Where the compiler was to keep little for the backward pass, it drew another mask there. With a random state
    drawn outside of the compiled code there is nothing to draw again. A state drawn within it is, like torch's masks,
    drawn anew by the compiler's partitioner, which fastreg cannot forbid: the README says so."""
    f = torch.compile(lambda x, state: F.dropout(x, 0.5, rng_state=state).square(), fullgraph=True)
    x = torch.rand(64, 32, device=device).add(1).requires_grad_()
    with torch._functorch.config.patch(activation_memory_budget=budget):
        y = f(x, fastreg.draw_rng_state(device))
        y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * y.detach() / x.detach())
    assert (y == 0).any() and (y != 0).any()


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_194676_one_seed_one_mask(device, dtype):
    """The same seed gave other masks on other GPUs, as masks depended on the number of multiprocessors. Here they are
    a function of the state: whatever the number of threads, and as the definition in plain PyTorch has it. That two
    GPUs agree takes two GPUs to show; tests of the kernels in the host executor vary blocks and schedules."""
    x = torch.ones(70_001, device=device, dtype=dtype)
    state = torch.tensor([7, 16])
    expected = reference.dropout.keep_mask(x.numel(), 0.3, state)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal((F.dropout(x, 0.3, rng_state=state) != 0).cpu(), expected)
    finally:
        torch.set_num_threads(threads)


@devices
def test_193097_batch_norms_backward_checks_shapes(device):
    """The backward function read past the end of parameters and statistics that were too short."""
    x = torch.randn(4, 8, 5, device=device)
    weight, mean, var = torch.ones(8, device=device), torch.zeros(8, device=device), torch.ones(8, device=device)
    stats = OPS.batch_norm_train(x, weight, None, None, None, None, 0.1, 1e-5)[1]
    everything = [True] * 3
    for call in (
        lambda: OPS.batch_norm_train_backward(x, x, weight[:2], stats, everything),
        lambda: OPS.batch_norm_train_backward(x, x, weight, stats[:, :2], everything),
        lambda: OPS.batch_norm_train_backward(x, x, weight, stats[:2], everything),
        lambda: OPS.batch_norm_train_backward(x[:, :2], x, weight, stats, everything),
        lambda: OPS.batch_norm_eval_backward(x, x, weight[:0], mean, var, 1e-5, everything),
        lambda: OPS.batch_norm_eval_backward(x, x, weight, mean[:2], var, 1e-5, everything),
        lambda: OPS.batch_norm_eval_backward(x, x, weight, mean, var[:0], 1e-5, everything),
    ):
        with pytest.raises(RuntimeError, match="batch_norm: .* must (have|be)"):
            call()


@devices
@pytest.mark.parametrize("scale", [1e30, 1e18])
def test_178123_values_whose_squares_do_not_fit(device, scale):
    """The variance of float32 values near 1e30 overflowed: zeros on the CPU, NaN on CUDA."""
    x = torch.randn(64, 3, 10, device=device)
    y = F.batch_norm(x * scale, None, None, training=True)
    exact = torch.nn.functional.batch_norm((x * scale).double(), None, None, training=True)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


@devices
def test_78656_empty_parts_of_a_batch(device):
    """Processes whose part of the batch was empty needed a synchronisation with the device, or spoilt the statistics
    of all. Here their moments are merged as those of others. That no process hangs is shown by the tests of
    SyncBatchNorm, and capture in a CUDA graph on a GPU alone."""
    parts = [torch.randn(n, 3, 5, device=device) for n in (4, 0, 7, 0)]
    moments = torch.stack([OPS.batch_norm_moments(part) for part in parts])
    mean, var = torch.zeros(3, device=device), torch.ones(3, device=device)
    stats, _ = OPS.batch_norm_merge(moments, mean, var, None, 0.1, 1e-5)
    whole, statistics = torch.cat(parts), [torch.zeros(3, device=device), torch.ones(3, device=device)]
    expected = OPS.batch_norm_train(whole, None, None, *statistics, None, 0.1, 1e-5)[1]
    torch.testing.assert_close(stats[0] + stats[1], expected[0] + expected[1])
    torch.testing.assert_close([stats[2], mean, var], [expected[2], *statistics])
    assert fastreg.functional.batch_norm(parts[1], mean, var, training=True).shape == (0, 3, 5)
