"""The activations that fastreg's fused operations know: one table, in which a new one is added."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Activation(NamedTuple):
    """An activation by its name, and the value of its parameter where it has one: ``Activation("leaky_relu", 0.2)``."""

    name: str
    parameter: float | None = None


@dataclass(frozen=True)
class Entry:
    """One activation.

    apply: (input, parameter, weight) to output.
    module: the module that computes it. functions, methods: what else computes it, of torch and of tensors.
    inplace: those of them that write to their input.
    parameter: the name of the one number that it takes, and default, the number's default.
    approximate: what torch's gelu calls this one.
    weighted: whether a slope is learned.
    """

    apply: Callable[[Tensor, Any, Any], Tensor]
    module: type[nn.Module]
    functions: tuple[Callable, ...]
    inplace: tuple[Callable, ...] = ()
    methods: tuple[str, ...] = ()
    parameter: str | None = None
    default: float | None = None
    approximate: str | None = None
    weighted: bool = False


def takes_weight(input: Tensor, weight: Tensor) -> bool:
    """Whether a learned slope has a dtype that goes with the input's: the same, or float32 with 16 bits."""
    return weight.dtype == input.dtype or (
        weight.dtype == torch.float32 and input.dtype in (torch.float16, torch.bfloat16)
    )


def _prelu(input, parameter, weight):
    return F.prelu(input, weight.to(input.dtype) if takes_weight(input, weight) else weight)


TABLE = {
    "identity": Entry(lambda x, a, w: x, nn.Identity, ()),
    "relu": Entry(lambda x, a, w: F.relu(x), nn.ReLU, (F.relu, torch.relu), (F.relu_, torch.relu_), ("relu", "relu_")),
    "relu6": Entry(lambda x, a, w: F.relu6(x), nn.ReLU6, (F.relu6,)),
    "leaky_relu": Entry(
        lambda x, a, w: F.leaky_relu(x, a), nn.LeakyReLU, (F.leaky_relu,), (F.leaky_relu_,), (), "negative_slope", 0.01
    ),
    "prelu": Entry(_prelu, nn.PReLU, (F.prelu, torch.prelu), (), ("prelu",), weighted=True),
    "elu": Entry(lambda x, a, w: F.elu(x, a), nn.ELU, (F.elu,), (F.elu_,), (), "alpha", 1.0),
    "silu": Entry(lambda x, a, w: F.silu(x), nn.SiLU, (F.silu,)),
    "mish": Entry(lambda x, a, w: F.mish(x), nn.Mish, (F.mish,)),
    "gelu": Entry(lambda x, a, w: F.gelu(x), nn.GELU, (F.gelu,), approximate="none"),
    "gelu_tanh": Entry(lambda x, a, w: F.gelu(x, approximate="tanh"), nn.GELU, (F.gelu,), approximate="tanh"),
    "hardswish": Entry(lambda x, a, w: F.hardswish(x), nn.Hardswish, (F.hardswish,)),
    "hardsigmoid": Entry(lambda x, a, w: F.hardsigmoid(x), nn.Hardsigmoid, (F.hardsigmoid,)),
    "sigmoid": Entry(
        lambda x, a, w: torch.sigmoid(x),
        nn.Sigmoid,
        (torch.sigmoid, F.sigmoid),
        (torch.sigmoid_,),
        ("sigmoid", "sigmoid_"),
    ),
    "tanh": Entry(lambda x, a, w: torch.tanh(x), nn.Tanh, (torch.tanh, F.tanh), (torch.tanh_,), ("tanh", "tanh_")),
}

# What a name alone stands for.
NAMED = {name: Activation(name, entry.default) for name, entry in TABLE.items()}
IDENTITY = NAMED["identity"]
# The activations of a module's type, of a function, of a method: several where a setting tells them apart.
OF_MODULE: dict[type, list[str]] = {}
OF_FUNCTION: dict[Callable, list[str]] = {}
OF_METHOD: dict[str, list[str]] = {}
for _name, _entry in TABLE.items():
    OF_MODULE.setdefault(_entry.module, []).append(_name)
    for _function in (*_entry.functions, *_entry.inplace):
        OF_FUNCTION.setdefault(_function, []).append(_name)
    for _method in _entry.methods:
        OF_METHOD.setdefault(_method, []).append(_name)


def parse(operation: str, argument: str, act: Any) -> Activation:
    """The activation that an argument of an operation names: a name, an :class:`Activation`, or a pair like one."""
    name, parameter = act if isinstance(act, tuple) and len(act) == 2 else (act, None)
    named = NAMED.get(name) if isinstance(name, str) else None
    if named is None:
        raise ValueError(f"{operation}: {argument} must be one of {', '.join(TABLE)}, got {act!r}")
    if parameter is None:
        return named
    if TABLE[named.name].parameter is None:
        raise ValueError(f"{operation}: {argument} must be without a parameter where it is {name}, got {parameter}")
    return Activation(named.name, parameter)


def check_weight(operation: str, argument: str, activation: Activation, weight: Tensor | None, input: Tensor) -> None:
    """Whether a learned slope is there exactly where the activation takes one: one, or one per channel, and of a dtype
    that goes with the input."""
    if not TABLE[activation.name].weighted:
        if weight is not None:
            raise ValueError(f"{operation}: {argument} must be None where the activation is {activation.name}")
        return
    channels = input.shape[1] if input.dim() > 1 else 1
    if weight is None or weight.dim() > 1 or weight.numel() not in (1, channels):
        got = None if weight is None else f"shape {list(weight.shape)}"
        raise RuntimeError(f"{operation}: {argument} must have 1 or {channels} elements for prelu, got {got}")
    if not takes_weight(input, weight) and not torch.is_autocast_enabled(input.device.type):
        raise RuntimeError(
            f"{operation}: {argument} must be of the input's dtype, or float32 with 16 bits, "
            f"got {weight.dtype} with input {input.dtype}"
        )


def apply(activation: Activation, input: Tensor, weight: Tensor | None = None) -> Tensor:
    """The activation of input, by torch's function."""
    return TABLE[activation.name].apply(input, activation.parameter, weight)


def name_among(names: list[str], approximate: str) -> str | None:
    """The activation that a module or function computes, of the names that it may have."""
    return next((name for name in names if TABLE[name].approximate in (None, approximate)), None)


def of_module(module: nn.Module) -> tuple[Activation, Tensor | None] | None:
    """The activation, and the learned slope, that a module computes: one of torch's own types; else None."""
    names = OF_MODULE.get(type(module))
    if names is None:
        return None
    settings: Any = module  # of one of those types
    # To ask a module for a setting that it has not takes as long as a small layer.
    if (name := names[0] if len(names) == 1 else name_among(names, settings.approximate)) is None:
        return None
    entry = TABLE[name]
    activation = NAMED[name] if entry.parameter is None else Activation(name, getattr(module, entry.parameter))
    return activation, settings.weight if entry.weighted else None


def of_child(parent: nn.Module, name: str) -> tuple[Activation, Tensor | None]:
    """:func:`of_module` of a parent's child, past the search through the parent.

    Raises:
        ValueError: another module has been put in its place.
    """
    child = parent._modules[name]
    found = None if child is None else of_module(child)
    if found is None:
        raise ValueError(f"{type(parent).__name__}: {name} must be one of {_modules()}, got {type(child).__name__}")
    return found


def _modules() -> str:
    return ", ".join(dict.fromkeys(entry.module.__name__ for entry in TABLE.values()))


def to_module(operation: str, argument: str, act: Any) -> nn.Module:
    """A module that computes an activation: of a name, an :class:`Activation`, None (identity), or a module."""
    if isinstance(act, nn.Module):
        if of_module(act) is None:
            raise ValueError(f"{operation}: {argument} must be one of {_modules()}, got {type(act).__name__}")
        return act
    name, parameter = parse(operation, argument, "identity" if act is None else act)
    entry = TABLE[name]
    settings: dict[str, Any] = {} if entry.parameter is None else {entry.parameter: parameter}
    if entry.approximate is not None:
        settings["approximate"] = entry.approximate
    return entry.module(**settings)
