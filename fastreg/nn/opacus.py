"""What Opacus is told of layers that break its promise, that each sample's gradient is a function of that sample alone.

Opacus looks the exact type of a layer up, and lets pass what it does not find. Before that it asks each layer for its
parameters: there fastreg's layers enter themselves, whichever of the two packages was imported first.
"""

import sys
from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import Parameter


def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
    """What :meth:`torch.nn.Module.parameters` gives."""
    if "opacus" in sys.modules:
        _enter(type(self))
    return nn.Module.parameters(self, recurse)


def _enter(cls):
    validator = getattr(sys.modules.get("opacus.validators.module_validator"), "ModuleValidator", None)
    if validator is None or cls in validator.VALIDATORS:
        return
    if issubclass(cls, nn.Linear):
        validator.VALIDATORS[cls] = _redraws
        return
    # fastreg's layers that are no subclasses of torch's have no equivalent but this, or none.
    torchs = next((base for base in cls.__mro__ if base in validator.VALIDATORS), nn.SyncBatchNorm)
    if torchs in validator.VALIDATORS:
        validator.VALIDATORS[cls] = validator.VALIDATORS[torchs]
        if torchs in validator.FIXERS and issubclass(cls, nn.modules.batchnorm._BatchNorm):
            validator.FIXERS[cls] = validator.FIXERS[torchs]


def _redraws(module):
    from opacus.validators.errors import UnsupportableModuleError  # pyright: ignore[reportMissingImports]

    message = (
        f"{type(module).__name__} drops weights of the batch as a whole, and gradients per sample would be those of "
        "other masks than the forward pass drew"
    )
    return [UnsupportableModuleError(message)] if module.p else []
