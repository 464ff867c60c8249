"""What is seen of a value, and where two such views differ."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Difference:
    """kind: a word for what differs, by which shrinking knows it again."""

    kind: str
    where: str
    detail: str

    def __str__(self):
        return f"{self.kind} differs, {self.where}: {self.detail}"


@dataclass
class Seen:
    """A tensor at one moment."""

    value: Tensor
    facts: tuple

    def __repr__(self):
        return f"tensor {self.facts}"


FACTS = "shape", "dtype", "strides", "requires_grad", "has a grad_fn", "leaf", "inference tensor"


def seen(value):
    """A view of any value that what happens later does not change."""
    if isinstance(value, Tensor):
        value_facts = value.requires_grad, value.grad_fn is not None, value.is_leaf, value.is_inference()
        with torch.no_grad():
            return Seen(value.detach().clone(), (tuple(value.shape), value.dtype, value.stride(), *value_facts))
    if isinstance(value, list | tuple):
        return (
            type(value)(map(seen, value)) if type(value) in (list, tuple) else [type(value).__name__, *map(seen, value)]
        )
    if isinstance(value, dict):
        return {str(key): seen(v) for key, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type):
        return f"class {value.__name__}"
    if isinstance(value, nn.Module) or callable(value):
        return "module" if isinstance(value, nn.Module) else "function"
    return type(value).__qualname__


def tensors_of(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for v in value for tensor in tensors_of(v)] if isinstance(value, list | tuple) else []


def aliases(tensors: list[Tensor], named: dict) -> list[tuple]:
    """For each tensor: the first that is the same object, the first in the same memory, and whose else that is."""
    found, objects, storages = [], {}, {}
    names = {t.untyped_storage().data_ptr(): name for name, t in named.items() if t.numel()}
    for index, tensor in enumerate(tensors):
        memory = tensor.untyped_storage().data_ptr()
        first = objects.setdefault(id(tensor), index), storages.setdefault(memory, index)
        found.append((*first, names.get(memory), tensor.storage_offset() if first[1] != index else 0))
    return found


def close(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance * (1 + abs(a)) or a != a and b != b


def difference(kind: str, where: str, plain, ours, tolerance: float, strides: bool = True) -> Difference | None:
    """The first place where two views differ."""
    if isinstance(plain, Seen) and isinstance(ours, Seen):
        for fact, a, b in zip(FACTS, plain.facts, ours.facts, strict=True):
            if a != b and (strides or fact != "strides"):
                return Difference(f"{kind}: {fact}", where, f"{a} became {b}")
        if torch.equal(plain.value, ours.value):
            return None
        a, b = plain.value.double(), ours.value.double()
        if not torch.equal(a.isnan(), b.isnan()):
            return Difference(kind, where, "nan")
        error = float((a - b).nan_to_num().abs().max())
        scale = float(a.nan_to_num().abs().max())
        return Difference(kind, where, f"off by {error:.3g}") if error > tolerance * (1 + scale) else None
    if type(plain) is not type(ours):
        return Difference(f"{kind}: type", where, f"{plain} became {ours}")
    if isinstance(plain, list | tuple):
        if len(plain) != len(ours):
            return Difference(f"{kind}: length", where, f"{len(plain)} became {len(ours)}: {plain} and {ours}"[:300])
        items = [(f"{where}[{k}]", a, b) for k, (a, b) in enumerate(zip(plain, ours, strict=True))]
    elif isinstance(plain, dict):
        if plain.keys() != ours.keys():
            keys = sorted(plain.keys() ^ ours.keys())
            return Difference(f"{kind}: keys", where, f"{', '.join(keys)} in one alone")
        items = [(f"{where} {k}", v, ours[k]) for k, v in plain.items()]
    elif plain == ours or isinstance(plain, float) and close(plain, ours, tolerance):
        return None
    else:
        return Difference(kind, where, f"{plain!r} became {ours!r}")
    for place, a, b in items:
        if (found := difference(kind, place, a, b, tolerance, strides)) is not None:
            return found
    return None
