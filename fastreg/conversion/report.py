"""What convert did to a model, and what it left alone."""

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from fastreg import _activation
from fastreg.conversion import layers, traffic
from fastreg.conversion.classes import check_module
from fastreg.conversion.draws import drawn_within, functions_called
from fastreg.conversion.fusion import FUSED, Fused, Sites, sites_of
from fastreg.nn.derived import CONVERTED, Derived, Unreadable, kind_and_original, original_of, undone


@dataclass(frozen=True)
class FusedSite:
    """One row of layers that is computed by one function.

    path: the batch norm or dropout that it is named by. parts: what is fused, in order. parent: whose forward it is in.
    training, evaluation: whether it is fused there.
    """

    path: str
    parts: tuple[str, ...]
    parent: str = ""
    training: bool = True
    evaluation: bool = True

    def __str__(self):
        return " + ".join(self.parts)

    @property
    def kept(self) -> list[str]:
        """What it keeps for the backward pass, beside a few numbers per channel."""
        return traffic.kept(self.parts) if self.training else []

    @property
    def accesses(self) -> tuple[int, int]:
        """Accesses to tensors of its size in a training step, or where it is fused in evaluation alone in a forward
        pass: by PyTorch's single operations, and by the one function."""
        return traffic.accesses_of(self.parts, self.training)


def _described(site):
    modes = "" if site.training and site.evaluation else f", in {'training' if site.training else 'evaluation'} alone"
    keeps = f"keeps {', '.join(site.kept)}; " if site.kept else ""
    single, fused = site.accesses
    return f"{site}{modes} ({keeps}accesses memory {fused} times in place of {single})"


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
        lines += [f"    {count:5} {parts}" for parts, count in Counter(map(_described, self.fused)).most_common()]
        lines += [f"{len(self.left)} left alone"] if self.left else []
        reasons = {}
        for path, reason in self.left.items():
            reasons.setdefault(reason, []).append(path or "(the model itself)")
        for reason, paths in reasons.items():
            more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
            lines.append(f"    {', '.join(paths[:4])}{more}: {reason}")
        if self.replaced:
            lines.append("Tools that look layers up by their exact type do not find these: fastreg.revert(model) first")
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
    paths = {module: path for path, module in reversed(list(model.named_modules()))}
    seen = set()
    for path, module in model.named_modules():
        kind, original = kind_and_original(type(module))
        if kind not in (None, *FUSED) or CONVERTED in module.__dict__:
            found.replaced[path] = _own_class(module).__name__
        if isinstance(module, layers.NormWithAct) and not layers.is_norm(module):
            if (act := layers.activation_of(module.act)) is not None and layers.is_identity(module.drop):
                found.fused.append(FusedSite(path, ("batch norm", act[0].name), path))
            else:
                found.left[path] = _unknown(module.act if act is None else module.drop)
        if layers.is_layer(module):
            continue
        try:
            sites = sites_of(module)
        except Unreadable as error:
            sites = Sites()
            if any(layers.is_layer(child) for child in module.children()):
                found.left[path] = str(error)
        called = functions_called(module)
        prefix = f"{path}." if path else ""
        found.left |= {prefix + name: "a call of the function, not of a module, is not replaced" for name in called}
        for act in sites.unknown:
            known = ", ".join(_activation.TABLE)
            found.left[paths[act]] = f"{type(act).__name__} is not among the activations that are fused: {known}"
        if not isinstance(module, Fused):
            continue
        for (layer, _), (parts, *modes) in sites.fused.items():
            if layer not in seen:  # a container's are its parent's, where the parent has them too
                found.fused.append(FusedSite(paths.get(layer, ""), parts, path, *modes))
        seen |= {layer for layer, _ in sites.fused}
    reasons = ((path, _left(module, seen)) for module, path in paths.items())
    found.left = {path: reason for path, reason in reasons if reason is not None} | found.left
    return found


def _own_class(module):
    cls = undone(type(module), {})
    return layers.TORCHS.get(cls, cls)


def _unknown(module):
    return f"{type(module).__name__} is not among what fastreg can fuse"


def _left(module: nn.Module, fused: set[nn.Module]) -> str | None:
    """Why a layer is left alone; None where it is not, or is no layer. fused: what the fused sites are named by."""
    cls = original_of(type(module))
    if (what := drawn_within(module)) is not None:
        reached = ": only patch_torch reaches it" if what == "dropout" else ""
        return f"{what} within {cls.__name__} is not replaced{reached}"
    if isinstance(module, Derived) or cls in layers.TORCHS:
        return "its forward was set on the module itself, and runs" if "forward" in module.__dict__ else None
    if layers.is_drop_path(module):
        draws = module not in fused and layers.drop_probability(module) != 0.0
        return f"{cls.__name__} is not next to what it could be fused with" if draws else None
    if layers.looks_like_drop_path(cls) and not any(True for _ in module.children()):
        return f"{cls.__name__} has a forward that is not known to be drop path"
    if not layers.is_layer(module) or layers.qualified_name(cls) in layers.FROZEN_NORMS:
        return None
    try:
        if layers.replacement(cls) is not None:
            return f"{cls.__name__} has not been converted"
    except Unreadable as error:
        return str(error)
    return f"{cls.__name__} is neither torch's own class nor a subclass of it that keeps its forward"
