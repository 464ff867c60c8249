"""convert and revert."""

from typing import TypeVar

from torch import nn

from fastreg.conversion import layers
from fastreg.conversion.classes import check_module
from fastreg.conversion.fusion import fuse as fuse_parent
from fastreg.nn import sync_batch_norm
from fastreg.nn.derived import restore

Model = TypeVar("Model", bound=nn.Module)


def convert(model: Model, *, fuse: bool = True) -> Model:
    """Let a model compute with fastreg, in place.

    Batch norm and dropout layers of torch's own types, and of subclasses that override no forward, get fastreg's class:
    the objects, their parameters, buffers, hooks and state_dict stay. Nothing is removed, renamed or merged.

    With ``fuse`` the parents of what can be computed in one get a class that fuses it: an activation, batch norm,
    residual, activation and dropout in a row; or an activation, dropout or drop path, and a residual. It is a subclass
    of the parent's own, whose forward is rewritten from its source: what calls and sums compute may be held back in a
    local variable until it is known what follows. Everything else stays Python's, at each call: branches, contexts,
    loops, hooks, attributes. What is fused is decided then, by what the layers are at that time. Forwards whose source
    cannot be had are left alone, and reported.

    :func:`report` tells what was done and what was not, :func:`revert` undoes it. Convert again after changing the
    structure of a model, or after lazy layers have taken their shapes.

    Args:
        model (Module): any module.
        fuse (bool): also fuse layers; otherwise only replace them. Default: True.

    Returns:
        Module: model itself.

    Raises:
        TypeError: model is no module, or fuse no bool.
    """
    check_module("convert", model)
    if not isinstance(fuse, bool):
        raise TypeError(f"convert: fuse must be a bool, got {fuse!r}")
    _restore(model)
    modules = list(model.modules())
    for module in modules:
        layers.replace(module)
    if fuse:
        for module in modules:
            fuse_parent(module)
    return model


def revert(model: Model) -> Model:
    """Undo :func:`convert` and ``SyncBatchNorm.convert_sync_batchnorm``, in place.

    Every module has the class that it had, and its state_dict stays as it is.

    Args:
        model (Module): any module, converted or not.

    Returns:
        Module: model itself.

    Raises:
        TypeError: model is no module.
    """
    check_module("revert", model)
    for module in model.modules():
        sync_batch_norm.restore(module)
    return _restore(model)


def _restore(model: Model) -> Model:
    for module in model.modules():
        restore(module)
    return model
