"""Every instruction set of this machine gives the same dropout, bit for bit, and the same batch norm and fused
operators, to rounding."""

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
from fastreg import _activation

torch.manual_seed(0)
state = torch.tensor([2**62 + 7, 2**40 + 12])
dropped, normalized, activated = [], [], []
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    x = (torch.randint(-999, 1000, (3, 37, 9, 11)) / 256).to(dtype)  # randn depends on the instruction set
    for index_map in (None, [64, x.numel(), 0], [3, x.numel(), 0], [8, 24, 64], [5, 7, 13]):
        for transform in (None, (1.1, 0.3, -0.7)):
            dropped.append(torch.ops.fastreg.dropout(x, 0.3, state, None, index_map, transform))
            for layout in (torch.contiguous_format, torch.channels_last):
                features = x.to(memory_format=layout), 2, 0.3, state, index_map, transform
                dropped.append(torch.ops.fastreg.feature_dropout(*features))
                dropped.append(torch.ops.fastreg.feature_dropout(*features, x.flip(0)))
    x = (torch.randint(-999, 1000, (6, 37, 12, 13)) / 256).to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.to(memory_format=layout, copy=True).requires_grad_()
        y = fastreg.functional.batch_norm(leaf, None, None, training=True)
        normalized += [y.detach(), *torch.autograd.grad(y, leaf, x.roll(1, 0))]
        for act, entry in _activation.TABLE.items():
            for settings in ({}, {"residual": x.roll(1, 1), "p": 0.3, "rng_state": state}):
                leaf = x.to(memory_format=layout, copy=True).requires_grad_()
                slope = (torch.arange(37) / 32 - 0.5).to(dtype).requires_grad_() if entry.weighted else None
                keywords = {"training": True, "act": act, "act_weight": slope, **settings}
                y = fastreg.functional.batch_norm_act(leaf, None, None, **keywords)
                activated += [y.detach(), torch.autograd.grad(y, leaf, x.roll(1, 0), retain_graph=True)[0]]
                if slope is not None:  # the mean of the terms, which is of their size
                    activated.append(torch.autograd.grad(y, slope, x.roll(1, 0))[0] / (6 * 12 * 13))
for p in (0.3, 1e-5, (32768 * 65536 + 32768) / 2**32):  # enough elements for some 16 ties each
    dropped.append(torch.ops.fastreg.dropout(torch.ones(1 << 20), p, state))
torch.save((fastreg.build_info()["instruction_set"], dropped, normalized, activated), sys.argv[1])
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
    used, dropped, normalized, activated = results(tmp_path, capability)
    assert used == name or best[0] == used  # less than avx2 may be all there is
    for one, other in zip(dropped, best[1], strict=True):
        assert torch.equal(one, other)
    # Fused multiply-adds round once where the baseline rounds twice, and sums are rounded in another order. Residuals
    # that take away most of what they are added to, and derivatives of activations, magnify that.
    for units, ours, of_best in ((4, normalized, best[2]), (16, activated, best[3])):
        for one, other in zip(ours, of_best, strict=True):
            tolerance = units * torch.finfo(one.dtype).eps
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_the_best_is_in_use_here(best):
    if "ATEN_CPU_CAPABILITY" not in os.environ:
        assert fastreg.build_info()["instruction_set"] == best[0]
