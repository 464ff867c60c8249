"""What the class of a parent with fused sites becomes."""

from collections import Counter
from dataclasses import dataclass, field

from torch import nn
from torch.jit import ScriptModule

from fastreg.conversion import layers
from fastreg.conversion.reader import read
from fastreg.conversion.rewriting import rewritten_methods
from fastreg.nn.derived import Derived, Unreadable, check_derivable, derive, exchange, kind_and_original


class Fused(Derived):
    """A parent whose forward holds values back, so that what stands next to each other is computed together."""

    __slots__ = ()

    @staticmethod
    def methods(original):
        return rewritten_methods(original)


class FusedInTraining(Fused):
    """One that had nothing to fuse in evaluation, where its forward costs what it did."""

    __slots__ = ()

    @staticmethod
    def methods(original):
        return rewritten_methods(original, in_training_only=True)


@dataclass
class Sites:
    """What there is to fuse in a forward.

    fused: by the batch norm or dropout that a site is named by, and which of its calls: what is fused, in order, and
    whether in training and in evaluation. unknown: activations after a batch norm that fastreg does not know.
    """

    fused: dict[tuple[nn.Module, int], tuple[tuple[str, ...], bool, bool]] = field(default_factory=dict)
    unknown: list[nn.Module] = field(default_factory=list)


def sites_of(module: nn.Module) -> Sites:
    """The sites in a module's forward as it is now.

    Raises:
        Unreadable: forward cannot be rewritten.
    """
    methods, sites = _methods(module), Sites()
    modes = (True,) if isinstance(module, FusedInTraining) else (True, False)
    for training in modes if "forward" in methods else ():
        found, unknown = read(module, methods, training)
        sites.unknown += unknown
        calls = Counter()
        for layer, parts in found:
            calls[layer] += 1
            known, *found_in = sites.fused.get((layer, calls[layer]), (parts, False, False))
            found_in[not training] = True
            sites.fused[layer, calls[layer]] = known, *found_in
    return sites


def _methods(module):
    """The rewritten methods of a module's class, or those that it would have."""
    cls = type(module)
    if isinstance(module, ScriptModule) or "forward" in module.__dict__ or issubclass(cls, _LAYERS):
        return {}
    if not any(True for _ in module.children()):
        return {}
    fused = next((base for base in cls.__mro__ if kind_and_original(base)[0] in FUSED), None)
    if fused is not None:
        return vars(fused)
    check_derivable(cls)
    return rewritten_methods(cls)


FUSED = (Fused, FusedInTraining)
_LAYERS = (layers.Subclass, layers.NormWithAct, nn.modules.batchnorm._NormBase)


def fuse(module: nn.Module) -> None:
    """Make the module's class one that fuses, if there is anything to fuse in its forward."""
    try:
        if fused := sites_of(module).fused:
            in_evaluation = any(evaluation for _, _, evaluation in fused.values())
            exchange(module, derive(Fused if in_evaluation else FusedInTraining, type(module)))
    except Unreadable:
        pass
