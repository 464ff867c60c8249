"""What fastreg's plan moves: at the bandwidth of a copy this predicts its time on a GPU, before anything has run."""

from __future__ import annotations

import torch

import fastreg
from bench.timings.cases import Case

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


def _directions(mode: str) -> tuple[bool, ...]:
    """Whether backward, for each pass."""
    return {"forward": (False,), "evaluation": (False,), "backward": (True,)}.get(mode, (False, True))


def _per_element(x: torch.Tensor, case: Case, backward: bool) -> float:
    training = case.mode != "evaluation"
    return fastreg.explain(x, training=training, backward=backward, **EPILOGUES[case.op])["bytes_per_element"]
