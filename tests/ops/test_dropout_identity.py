"""One mask, bit for bit: across instruction sets, threads, kernels, dtypes, layouts, in place, split."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastreg import reference
from tests.common import DEVICES
from tests.known_answers import rng_state
from tests.ops import dropout_matrix

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("device", DEVICES)
def test_one_mask(device):
    """On the CPU these are the CUDA kernels where the host executor runs them."""
    assert dropout_matrix.check(device) > 1000 if device == "cpu" else 300


@pytest.mark.parametrize(("capability", "names"), [("default", {"baseline"}), ("avx2", {"avx2", "baseline"}),
                                                   ("avx512", {"avx512", "avx2", "baseline"})])  # fmt: skip
def test_instruction_sets(capability, names):
    """In a process of its own: the choice is made at the first call."""
    environ = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, "-m", "tests.ops.dropout_matrix", "cpu"]
    output = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout
    name, count = output.split()
    assert name in names and int(count) > 1000  # less than the best may be all there is


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [32768, 1 << 20])
def test_threads_share_large_tensors(device, size):
    """Tails of the pieces that threads take, one element more and less."""
    state = rng_state(3, 16)
    expected = reference.dropout.keep_mask(size + 9, 0.3, state)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            for n in (size - 1, size, size + 9):
                y = torch.ops.fastreg.dropout(torch.ones(n, device=device), 0.3, state)
                assert torch.equal((y != 0).cpu(), expected[:n])
    finally:
        torch.set_num_threads(threads)
