"""What convert did to a model, and what it left alone."""

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from fastreg.conversion import layers
from fastreg.conversion.classes import check_module
from fastreg.conversion.fusion import Fused, plans_of
from fastreg.conversion.patterns import Site
from fastreg.nn.derived import Derived, original_of


@dataclass(frozen=True)
class FusedSite:
    """One row of layers that is computed by one function.

    path: the batch norm or dropout that it is named by. parts: what is fused, in order. parent: whose forward it is in.
    """

    path: str
    parts: tuple[str, ...]
    parent: str = ""

    def __str__(self):
        return " + ".join(self.parts)


@dataclass
class Report:
    """What :func:`report` returns; printed, a table.

    replaced: path of each layer with fastreg's class, to the name of its own class.
    fused: the fused sites.
    left: path of what was left alone, to the reason.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    fused: list[FusedSite] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        lines = [f"{len(self.replaced)} layers replaced"]
        lines += [f"    {count:5} {name}" for name, count in Counter(self.replaced.values()).most_common()]
        lines += [f"{len(self.fused)} sites fused"]
        lines += [f"    {count:5} {parts}" for parts, count in Counter(map(str, self.fused)).most_common()]
        lines += [f"{len(self.left)} left alone"] if self.left else []
        reasons = {}
        for path, reason in self.left.items():
            reasons.setdefault(reason, []).append(path or "(the model itself)")
        for reason, paths in reasons.items():
            more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
            lines.append(f"    {', '.join(paths[:4])}{more}: {reason}")
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """What :func:`convert` replaced and fused in a model, and what it left alone and why.

    Args:
        model (Module): a converted model.

    Returns:
        Report: with ``replaced``, ``fused`` and ``left``; its str() is a table.

    Raises:
        TypeError: model is no module.
    """
    check_module("report", model)
    found = Report()
    covered: set[str] = set()  # containers that a plan above them computes
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, Derived) and not isinstance(module, Fused) or layers.CONVERTED in module.__dict__:
            found.replaced[path] = original_of(type(module)).__name__
        if isinstance(module, layers.NormWithAct) and not layers.is_norm(module):
            if (act := layers.activation_of(module.act)) is not None and layers.is_identity(module.drop):
                found.fused.append(FusedSite(path, ("batch norm", act[0].name), path))
            else:
                found.left[path] = _unknown(module.act if act is None else module.drop)
        if (reason := _left(module)) is not None:
            found.left[path] = reason
        if layers.is_layer(module):
            continue
        plans = plans_of(module)
        covered |= {prefix + inner for plan in plans for inner in plan.inlined}
        if isinstance(module, Fused) and path not in covered:
            found.fused += [FusedSite(prefix + site.path, tuple(site.parts), path) for site in _sites(plans)]
        for plan in plans:
            if plan.reason is None:
                found.left |= {prefix + what: reason for what, reason in plan.left.items()}
            elif any(layers.is_layer(child) for child in module.children()):
                found.left[path] = plan.reason
    return found


def _sites(plans) -> list[Site]:
    """The sites of training, and those that only evaluation has."""
    first, *others = [plan.sites for plan in plans if plan.sites]
    seen = {site.path for site in first}
    return first + [site for sites in others for site in sites if site.path not in seen]


def _unknown(module):
    return f"{type(module).__name__} is not among what fastreg can fuse"


def _left(module: nn.Module) -> str | None:
    """Why a layer is left alone; None where it is not, or is no layer."""
    cls = type(module)
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return f"dropout within {cls.__name__} is not replaced" if module.dropout else None
    if isinstance(module, Derived) or cls in layers.TORCHS or not layers.is_layer(module):
        return None
    if layers.is_drop_path(module) or layers.qualified_name(cls) in layers.FROZEN_NORMS:
        return None
    return f"{cls.__name__} is neither torch's own class nor a subclass of it that keeps its forward"
