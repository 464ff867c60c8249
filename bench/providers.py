"""Whose layers are compared."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch

import fastreg


@dataclass(frozen=True)
class Provider:
    """Layers under torch.nn's names: `layers.Dropout(p)`, `layers.BatchNorm1d(features)`, ..."""

    name: str
    layers: ModuleType
    cudnn: bool = True

    def settings(self):
        """The context that the provider's layers are built and called in."""
        return torch.backends.cudnn.flags(enabled=self.cudnn)


TORCH = Provider("torch", torch.nn)
TORCH_WITHOUT_CUDNN = Provider("torch_without_cudnn", torch.nn, cudnn=False)
FASTREG = Provider("fastreg", fastreg.nn)


def providers(op: str, device: torch.device) -> list[Provider]:
    """Everyone who has `op` on `device`; cuDNN can only matter to batch norm on a GPU."""
    if op == "batch_norm" and device.type == "cuda":
        return [TORCH, TORCH_WITHOUT_CUDNN, FASTREG]
    return [TORCH, FASTREG]
