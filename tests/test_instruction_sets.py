"""Every instruction set of this machine gives the same dropout, bit for bit, and the same batch norm, to rounding."""

import os
import subprocess
import sys

import pytest
import torch

import fastreg

SCRIPT = """
import sys
import torch
import fastreg

torch.manual_seed(0)
state = torch.tensor([2**62 + 7, 2**40 + 12])
dropped, normalized = [], []
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    x = (torch.randint(-999, 1000, (3, 37, 9, 11)) / 256).to(dtype)  # randn depends on the instruction set
    for index_map in (None, [64, x.numel(), 0], [3, x.numel(), 0], [8, 24, 64], [5, 7, 13]):
        for transform in (None, (1.1, 0.3, -0.7)):
            dropped.append(torch.ops.fastreg.dropout(x, 0.3, state, None, index_map, transform))
            for layout in (torch.contiguous_format, torch.channels_last):
                features = x.to(memory_format=layout), 2, 0.3, state, index_map, transform
                dropped.append(torch.ops.fastreg.feature_dropout(*features))
                dropped.append(torch.ops.fastreg.feature_dropout(*features, x.flip(0)))
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.to(memory_format=layout, copy=True).requires_grad_()
        y = fastreg.functional.batch_norm(leaf, None, None, training=True)
        normalized += [y.detach(), *torch.autograd.grad(y, leaf, x.roll(1, 0))]
for p in (0.3, 1e-5, (32768 * 65536 + 32768) / 2**32):  # enough elements for some 16 ties each
    dropped.append(torch.ops.fastreg.dropout(torch.ones(1 << 20), p, state))
torch.save((fastreg.build_info()["instruction_set"], dropped, normalized), sys.argv[1])
"""


def results(tmp_path, capability):
    path = tmp_path / capability
    environ = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    subprocess.run([sys.executable, "-c", SCRIPT, path], env=environ, check=True)
    return torch.load(path)


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return results(tmp_path_factory.mktemp("best"), "avx512")


@pytest.mark.parametrize(("capability", "name"), [("default", "baseline"), ("avx2", "avx2")])
def test_same_as_the_best(tmp_path, best, capability, name):
    used, dropped, normalized = results(tmp_path, capability)
    assert used == name or best[0] == used  # less than avx2 may be all there is
    for one, other in zip(dropped, best[1], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(normalized, best[2], strict=True):
        # Fused multiply-adds round once where the baseline rounds twice.
        torch.testing.assert_close(one, other, rtol=4 * torch.finfo(one.dtype).eps, atol=4 * torch.finfo(one.dtype).eps)


def test_the_best_is_in_use_here(best):
    if "ATEN_CPU_CAPABILITY" not in os.environ:
        assert fastreg.build_info()["instruction_set"] == best[0]
