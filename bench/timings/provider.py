"""What a provider of layers is."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.timings.cases import Case


@dataclass(frozen=True)
class Provider:
    """layer: makes the case's layer. takes: whether it has one on a device. module: what it is imported from.

    option: of inductor, that it needs besides. in_place: overwrites its input, which then cannot be a leaf that
    requires grad. by_name: timed only where it is asked for, since it takes long to prepare. own: makes its tensors
    of torch's. workload: of a case and a pool of inputs, in place of a layer, for what autograd does not know."""

    name: str
    layer: Callable[[Case], nn.Module] | None
    takes: Callable[[Case, torch.device], bool] = lambda case, device: True
    module: str = "torch"
    settings: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    option: str | None = None
    in_place: bool = False
    by_name: bool = False
    own: Callable[[Tensor], Tensor] = lambda tensor: tensor
    workload: Callable | None = None

    def absence(self) -> str | None:
        """Why it cannot be imported, or None."""
        try:
            importlib.import_module(self.module)
        except Exception as error:  # such as a binary that was built for another torch
            return f"cannot import {self.module}: {str(error).splitlines()[0]}"
        if self.option and self.option not in torch._inductor.list_options():
            return f"torch {torch.__version__} has no such option of inductor: {self.option}"
        return None
