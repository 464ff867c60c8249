"""Nothing is saved: what autograd keeps between forward and backward, for each kind, against torch's dropout."""

import pytest
import torch
from torch.profiler import profile

from fastreg import functional as F
from tests.common import DEVICES, DTYPES
from tests.functional.dropout_family import KINDS

pytestmark = [pytest.mark.parametrize("device", DEVICES), pytest.mark.usefixtures("derivatives")]
all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
STATE_BYTES = 16


def saved_by(function, *inputs):
    """The tensors that autograd saves during the call, inputs excepted, and the result."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        result = function(*inputs)
    return saved, result


def saved_bytes(function, *inputs):
    return sum(t.untyped_storage().nbytes() for t in saved_by(function, *inputs)[0])


def allocated(function, device):
    """By how many bytes the device's memory in use grows during the call, while its result lives."""
    if device == "cuda":
        torch.cuda.empty_cache()  # a block of the cache may be larger than what is asked for
        before = torch.cuda.memory_allocated()
        result = function()  # noqa: F841
        return torch.cuda.memory_allocated() - before
    with profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()  # noqa: F841
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


@all_kinds
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("samples", [4, 4000])
def test_sixteen_bytes(device, kind, inplace, samples):
    """Whatever the size: the random state, int64[2]."""
    x = torch.ones(samples, *kind.shape[1:], device=device, requires_grad=True)
    saved, _ = saved_by(lambda x: kind(x, 0.5, None, inplace), x * 1 if inplace else x)
    assert [(t.dtype, t.shape, t.untyped_storage().nbytes()) for t in saved] == [(torch.int64, (2,), STATE_BYTES)]


def test_sixteen_bytes_with_a_residual(device):
    x, residual = (torch.ones(100, 30, device=device, requires_grad=True) for _ in range(2))
    assert saved_bytes(lambda x, r: F.drop_path(x, 0.5, residual=r), x, residual) == STATE_BYTES


def test_torch_saves_a_mask(device):
    """So that this file's counts can fail."""
    x = torch.ones(1000, 10, device=device, requires_grad=True)
    assert saved_bytes(torch.nn.functional.dropout, x) >= x.numel()
    assert saved_bytes(F.dropout, x) == STATE_BYTES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_memory_between_forward_and_backward(device, dtype, inplace):
    n = 1 << 20
    x = torch.ones(n, device=device, dtype=dtype, requires_grad=True)
    y = x * 1

    def held(function):
        return allocated(lambda: function(y, 0.5, True, inplace), device)

    output = 0 if inplace else n * dtype.itemsize
    assert held(F.dropout) - output in (STATE_BYTES, 64, 512)  # in multiples of what the allocator hands out
    assert held(torch.nn.functional.dropout) >= output + n


def test_in_place_in_gapped_memory_keeps_nothing(device):
    """The dense copy that it works on is gone after the call."""
    y = torch.ones(1 << 16, 4, device=device, requires_grad=True) * 1
    view = y[:, ::2]
    assert saved_bytes(lambda view: F.dropout(view, inplace=True), view) == STATE_BYTES
