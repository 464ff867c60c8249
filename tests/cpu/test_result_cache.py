"""The buffers of large results on the CPU, which are used again: right whatever becomes of the tensors."""

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch

import fastreg
from fastreg import _extension
from fastreg import functional as F

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not _extension.available("cpu"), reason="the cache is Linux's"
)

MIB = 1 << 20
STATE = torch.tensor([1, 0])


def result(mebibytes=4, value=1.0):
    """A result of so many MiB, of zeros and 2 * value."""
    return F.dropout(torch.full((mebibytes * MIB // 4,), value), rng_state=STATE)


def is_intact(t, value=1.0):
    return torch.equal(t, F.dropout(torch.full_like(t, value), rng_state=STATE))


def cached():
    return _extension.module().cached_bytes()


@pytest.fixture(autouse=True)
def empty():
    fastreg.empty_cache()
    assert cached() == 0
    yield
    fastreg.empty_cache()


def run(script, limit=None):
    env = {key: value for key, value in os.environ.items() if key != "FASTREG_CPU_CACHE"}
    env |= {} if limit is None else {"FASTREG_CPU_CACHE": limit}
    prelude = "import torch, fastreg\nfrom fastreg import _extension, functional as F\n"
    done = subprocess.run([sys.executable, "-c", prelude + script], env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.strip(), done.stderr


def test_used_again():
    first = result()
    address = first.data_ptr()
    del first
    assert cached() == 4 * MIB
    second, third = result(value=2.0), result(value=3.0)
    assert second.data_ptr() == address != third.data_ptr()
    assert cached() == 0
    assert is_intact(second, 2.0) and is_intact(third, 3.0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_norm(layout):
    """Forward and backward, in buffers full of another result's numbers, bit for bit."""
    x = torch.randn(16, 32, 48, 48).contiguous(memory_format=layout).requires_grad_()
    layer = fastreg.nn.BatchNorm2d(32)
    dy = torch.randn_like(x)
    first = (y := layer(x)).detach().clone(), torch.autograd.grad(y, x, dy)[0].clone()
    del y
    garbage = [torch.full_like(x, torch.nan) for _ in range(3)]
    garbage = [F.dropout(g, rng_state=STATE) for g in garbage]
    del garbage
    assert cached() >= 2 * x.nbytes
    y = layer(x)
    again = y.detach(), torch.autograd.grad(y, x, dy)[0]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert again[0].stride() == again[1].stride() == x.stride()


def test_fit():
    """A buffer serves no result that would leave more than an eighth of it unused, and none that it does not hold."""
    address = result(8).data_ptr()
    assert result(4).data_ptr() != address
    assert result(9).data_ptr() != address
    x = torch.ones(int(7.5 * MIB) // 4)
    assert F.dropout(x, rng_state=STATE).data_ptr() == address


def test_the_smallest_that_fits():
    buffers = [result(32), result(31), result(30)]
    addresses = [b.data_ptr() for b in buffers]
    del buffers
    assert result(30).data_ptr() == addresses[2]
    assert result(31).data_ptr() == addresses[1]


def test_the_last_released_comes_first():
    one, other = result(), result()
    address = other.data_ptr()
    del one
    del other
    assert result().data_ptr() == address


def test_small_results_stay_with_torch():
    F.dropout(torch.ones(MIB // 4 - 1), rng_state=STATE)
    assert cached() == 0


def test_limit():
    """The oldest go; a buffer beyond the limit is not kept, and drives none away."""
    script = """
def result(mebibytes): return F.dropout(torch.ones(mebibytes << 18))
a, b, c = (result(n) for n in (4, 5, 6))
address = a.data_ptr()
del b, c, a
result(12)
print(_extension.module().cached_bytes() >> 20, result(4).data_ptr() == address)
"""
    assert run(script, "11")[:2] == (0, "10 True")


def test_off():
    script = "x = torch.ones(1 << 20)\nF.dropout(x)\nprint(_extension.module().cached_bytes())"
    assert run(script, "0")[:2] == (0, "0")


def test_limit_refused():
    code, _, error = run("F.dropout(torch.ones(1 << 20))", "1.5")
    assert code == 1
    assert "ValueError: FASTREG_CPU_CACHE must be a number of MiB, got '1.5'" in error


@pytest.mark.parametrize("mebibytes", [2, 8])
def test_resize(mebibytes):
    t = result(4)
    head = t[:1000].clone()
    t.untyped_storage().resize_(mebibytes * MIB)
    t.resize_(mebibytes * MIB // 4)
    assert torch.equal(t[:1000], head)
    assert cached() == 4 * MIB  # the first buffer
    t.fill_(7.0)
    del t
    assert cached() == (4 + mebibytes) * MIB


def test_resize_to_nothing():
    t = result()
    t.untyped_storage().resize_(0)
    assert cached() == 4 * MIB
    t.untyped_storage().resize_(100)
    t.set_(torch.ones(3))
    assert torch.equal(t, torch.ones(3))


def test_what_holds_on_to_a_result():
    """A buffer is free when the last who knows it is gone."""
    t = result()
    holders = [torch.from_dlpack(t), t.numpy(), t[5:], t.detach(), t.as_subclass(torch.nn.Parameter)]
    del t
    while holders:
        other = result(value=5.0)
        holders.pop()
        assert other.max() == 10.0 and all(torch.as_tensor(h).max() == 2.0 for h in holders)
        assert cached() == (0 if holders else 4 * MIB)
        del other
    assert cached() == 8 * MIB


def test_copies():
    t = result()
    copies = [copy.deepcopy(t), pickle.loads(pickle.dumps(t)), torch._lazy_clone(t), t.clone()]
    shared = result().share_memory_()
    assert shared.is_shared() and is_intact(shared)
    with torch.inference_mode():
        inference = result()
    assert inference.is_inference() and is_intact(inference.clone())
    copies[2].add_(1)
    assert is_intact(t) and is_intact(copies[0]) and is_intact(copies[1]) and is_intact(copies[2] - 1)


def test_threads():
    """Freed by others than made it, while others take and free."""
    failures, made = [], []

    def work(number):
        for step in range(20):
            t = result(1 + step % 3, value=float(number))
            if not is_intact(t, float(number)):
                failures.append((number, step))
            made.append(t)
            if len(made) > 4:
                made.pop(0)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_fork():
    """A child that is made while other threads take and free buffers can do so, and leaves the parent's alone."""
    script = """
import os, signal, threading
torch.set_num_threads(1)
# Many buffers to search: the lock is held for some of the time.
storages = [F.dropout(torch.ones(1 << 18)).untyped_storage() for _ in range(1000)]
for size in (0, 1 << 21, 0):
    for storage in storages: storage.resize_(size)
kept = F.dropout(torch.ones(1 << 20), rng_state=torch.tensor([1, 0]))
copy = kept.clone()
stop = threading.Event()
small = torch.ones(1 << 18)
def work():
    while not stop.is_set():
        F.dropout(small)
threads = [threading.Thread(target=work) for _ in range(3)]
for t in threads: t.start()
status = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        assert torch.equal(kept, copy)
        kept.fill_(1)
        del kept
        for _ in range(3): F.dropout(torch.ones(1 << 20))
        os._exit(0)
    status.append(os.waitpid(child, 0)[1])
stop.set()
for t in threads: t.join()
print(set(status), torch.equal(kept, copy))
"""
    assert run(script, "4096")[:2] == (0, "{0} True")


def test_exit_with_results_alive():
    script = "import sys\nkeep = F.dropout(torch.ones(1 << 20))\nsys.keep = F.dropout(torch.ones(1 << 20))\nprint(1)"
    assert run(script)[:2] == (0, "1")


def test_profiler_sees_them():
    def in_use():
        return sum(event.self_cpu_memory_usage for event in profiler.key_averages())

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        x = torch.ones(MIB)
        t = F.dropout(x, rng_state=STATE)
    assert in_use() == x.nbytes + t.nbytes
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result()
    assert in_use() == 0
