"""Layers of other packages, and which cases they have. cuDNN's graphs, FlagGems and Helion have run on no GPU here."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from bench.timings.cases import Case
from bench.timings.ops import P


class _ApexBatchNorm(nn.Module):
    """apex's batch norm takes [N, H, W, C]."""

    def __init__(self, features: int, relu: bool):
        super().__init__()
        from apex.contrib.groupbn import BatchNorm2d_NHWC

        self.norm = BatchNorm2d_NHWC(features, fuse_relu=relu)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        views = [x if x is None else x.permute(0, 2, 3, 1) for x in (input, residual)]
        return self.norm(*views).permute(0, 3, 1, 2)


def apex(case: Case) -> nn.Module:
    return _ApexBatchNorm(case.shape[1], relu=case.op != "batch_norm")


def apex_takes(case: Case, device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and case.op in ("batch_norm", "batch_norm_relu", "batch_norm_add_relu")
        and len(case.shape) == 4
        and case.layout == "channels_last"
        and case.dtype == torch.float16
        and case.shape[1] % 4 == 0
    )


def inplace_abn(case: Case) -> nn.Module:
    """Its activations have to be invertible, which relu is not."""
    from inplace_abn import InPlaceABN

    return InPlaceABN(case.shape[1], activation="identity")


def inplace_abn_takes(case: Case, device: torch.device) -> bool:
    return case.op == "batch_norm" and case.layout == "contiguous" and case.dtype == torch.float32


def triton(case: Case) -> nn.Module:
    from bench.timings.triton_dropout import TritonDropout

    return TritonDropout(P)


def triton_takes(case: Case, device: torch.device) -> bool:
    return device.type == "cuda" and case.op == "dropout" and case.mode != "graph"  # its seed would be frozen


def cudnn(case: Case) -> nn.Module:
    from bench.timings.cudnn_norm import CudnnBatchNorm

    return CudnnBatchNorm(case.shape[1])


def cudnn_takes(case: Case, device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and case.op == "batch_norm"
        and case.mode not in ("evaluation", "graph")
        and len(case.shape) == 4
        and case.layout == "channels_last"
        and case.dtype in (torch.bfloat16, torch.float16)
        and case.shape[1] % 8 == 0
    )


def flag_gems_settings() -> contextlib.AbstractContextManager:
    """torch's layers, whose operators FlagGems replaces."""
    import flag_gems

    return flag_gems.use_gems()


def flag_gems_takes(case: Case, device: torch.device) -> bool:
    return device.type == "cuda" and case.op in ("dropout", "batch_norm") and case.mode != "graph"


def helion(case: Case) -> nn.Module:
    from bench.timings.helion_layers import HelionBatchNorm, HelionDropout

    return HelionDropout(P) if case.op == "dropout" else HelionBatchNorm(case.shape[1])


def helion_takes(case: Case, device: torch.device) -> bool:
    innermost = len(case.shape) == 2 or case.layout == "channels_last"
    normalises = case.op == "batch_norm" and innermost and case.mode != "evaluation"
    return device.type == "cuda" and (normalises or case.op == "dropout") and case.mode != "graph"
