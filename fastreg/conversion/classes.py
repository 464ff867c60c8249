"""What is converted: modules alone."""

from torch import nn

# Where models that were pickled before it moved look for it.
from fastreg.nn.derived import _new  # noqa: F401


def check_module(operation: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{operation}: model must be a torch.nn.Module, got {type(model).__name__}")
