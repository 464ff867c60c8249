"""What fastreg's plan moves: at the bandwidth of a copy this predicts its time on a GPU, before anything has run. And
what fastreg.explain estimates of the device, from data sheets."""

from __future__ import annotations

import re

import torch

import fastreg
from bench.timings.cases import Case
from fastreg.explanation import DEVICES

EPILOGUES = {
    "batch_norm": {},
    "batch_norm_relu": {"act": "relu"},
    "batch_norm_relu_dropout": {"act": "relu"},
    "batch_norm_add_relu": {"act": "relu", "residual": True},
}


def bytes_moved(case: Case, device: torch.device) -> float | None:
    """By fastreg.explain for batch norms; dropouts move what is necessary. None where nothing is promised: on the CPU,
    and without the CUDA kernels."""
    if device.type != "cuda":
        return None
    if case.op not in EPILOGUES:
        return float(case.necessary_bytes)
    x = torch.empty(case.shape, dtype=case.dtype, device="meta", memory_format=case.memory_format)
    try:
        return x.numel() * sum(_per_element(x, case, backward) for backward in _directions(case.mode))
    except RuntimeError:  # no such kernels here
        return None


def estimated_us(case: Case, device: torch.device) -> float | None:
    """Of a batch norm on a device whose speed fastreg knows; else None."""
    name = _known(device)
    if name is None or case.op not in EPILOGUES:
        return None
    x = torch.empty(case.shape, dtype=case.dtype, device="meta", memory_format=case.memory_format)
    plans = [_plan(x, case, backward, device_limits=name) for backward in _directions(case.mode)]
    return sum(plan["estimate"]["microseconds"] for plan in plans)


def _known(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    own = torch.cuda.get_device_name(device)
    return next((name for name in DEVICES if re.search(rf"\b{name}\b", own)), None)


def _directions(mode: str) -> tuple[bool, ...]:
    """Whether backward, for each pass."""
    return {"forward": (False,), "evaluation": (False,), "backward": (True,)}.get(mode, (False, True))


def _per_element(x: torch.Tensor, case: Case, backward: bool) -> float:
    return _plan(x, case, backward)["bytes_per_element"]


def _plan(x: torch.Tensor, case: Case, backward: bool, **where: str) -> dict:
    training = case.mode != "evaluation"
    return fastreg.explain(x, training=training, backward=backward, **EPILOGUES[case.op], **where)
