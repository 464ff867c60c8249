"""What a fused site computes: the layers' settings, read at each call, and the fused function."""

from collections.abc import Callable
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastreg import _activation
from fastreg._activation import Activation
from fastreg.conversion.layers import activation_of, drop_probability, generator_of, is_drop_path, norm_arguments
from fastreg.functional import _fused

# Activations whose gradient PyTorch computes from the input, which it keeps; of the others it keeps the result.
_FROM_INPUT = {"relu6", "leaky_relu", "prelu", "elu", "silu", "mish", "gelu", "gelu_tanh", "hardswish", "hardsigmoid"}
# Activations whose derivative has two values: a bit per element is kept for the gradient.
OF_BITS = {"identity", "relu", "relu6", "leaky_relu", "hardsigmoid"}
_WITHOUT_SETTINGS = {
    cls: _activation.NAMED[names[0]]
    for cls, names in _activation.OF_MODULE.items()
    if len(names) == 1 and _activation.TABLE[names[0]].parameter is None and not _activation.TABLE[names[0]].weighted
}
_observer: Callable | None = None


class Act(NamedTuple):
    """An activation at a site: what it is, its learned slope, what computes it alone, and whether in its input."""

    activation: Activation
    weight: Tensor | None
    call: Callable
    inplace: bool = False


@contextmanager
def observed_by(observer: Callable):
    """Within, each site's call is told: observer(input, whether there is a norm, activations, residual, dropout)."""
    global _observer
    outer, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = outer


def act_of_module(module: nn.Module) -> Act | None:
    if (activation := _WITHOUT_SETTINGS.get(type(module))) is not None:
        return Act(activation, None, module, module.__dict__.get("inplace", False))
    found = activation_of(module)
    return None if found is None else Act(*found, module, module.__dict__.get("inplace", False))


def act_of_function(function: Callable, input, args: tuple, kwargs: dict) -> Act | None:
    """The activation that function(input, *args, **kwargs) is, if it is one that fastreg knows."""
    if type(function) is not FunctionType and type(function) is not BuiltinFunctionType:
        return None
    if (names := _activation.OF_FUNCTION.get(function)) is None:
        return None
    name = _activation.name_among(names, kwargs.get("approximate", "none"))
    if name is None or "input" in kwargs or "out" in kwargs:
        return None
    entry = _activation.TABLE[name]
    order = ["weight"] if entry.weighted else [entry.parameter] if entry.parameter else []
    given = dict(zip([*order, "inplace"], args, strict=False)) | kwargs
    if given.keys() - {*order, "inplace", "approximate"} or len(args) > len(order) + 1:
        return None
    parameter, weight = given.get(entry.parameter, entry.default), given.get("weight")
    if entry.parameter and type(parameter) not in (float, int) or entry.weighted and not isinstance(weight, Tensor):
        return None
    inplace = function in entry.inplace or bool(given.get("inplace", False))
    return Act(Activation(name, parameter), weight, lambda x: function(x, *args, **kwargs), inplace)


def act_of_method(name: str) -> Act:
    """The activation that a tensor's method of this name computes."""
    activation = _activation.NAMED[_activation.OF_METHOD[name][0]]
    return Act(activation, None, lambda x: getattr(x, name)(), name.endswith("_"))


def keeps_input(act: Act) -> bool:
    """Whether torch keeps an activation's input for the backward pass, as a site that begins with it does."""
    return not act.inplace and act.activation.name in _FROM_INPUT


def keeps_bits(act: Act) -> bool:
    """Whether no more than a bit per element is kept for an activation after a sum."""
    return act.activation.name in OF_BITS


def is_cast(act: Act, input: Tensor) -> bool:
    """Whether autocast computes an activation in another dtype than the input's."""
    return _activation.TABLE[act.activation.name].weighted and torch.is_autocast_enabled(input.device.type)


def can_be_residual(residual, input: Tensor) -> bool:
    """Whether a sum with residual is one that the fused functions compute: without broadcasting or promotion, and with
    the strides that the result has in any case."""
    return (
        isinstance(residual, Tensor)
        and residual.shape == input.shape
        and residual.dtype == input.dtype
        and residual.device == input.device
        and residual.stride() == input.stride()
        and (input.is_contiguous() or _is_channels_last(input))
    )


def _is_channels_last(input):
    if input.dim() == 4:
        return input.is_contiguous(memory_format=torch.channels_last)
    return input.dim() == 5 and input.is_contiguous(memory_format=torch.channels_last_3d)


def parts(norm, pre_act, residual, act, drop) -> list[str]:
    """The names of what a site computes, in order."""
    found = [] if pre_act is None else [pre_act.activation.name]
    dropout = [] if drop is None else ["drop path" if is_drop_path(drop) else "dropout"]
    addition = [] if residual is None else ["add"]
    if norm is None:
        return [*found, *dropout, *addition]
    return [*found, "batch norm", *addition, *([] if act is None else [act.activation.name]), *dropout]


_NONE = _activation.IDENTITY, None


def run_batch_norm_act(
    norm: nn.Module,
    input: Tensor,
    residual: Tensor | None = None,
    pre_act: Act | None = None,
    act: Act | None = None,
    drop: nn.Module | None = None,
) -> Tensor:
    """drop(act(norm(pre_act(input)) + residual))."""
    if _observer is not None:
        _observer(input, True, (pre_act is not None) + (act is not None), residual is not None, drop is not None)
    before, before_weight = _NONE if pre_act is None else pre_act[:2]
    after, after_weight = _NONE if act is None else act[:2]
    if hasattr(norm, "_check_input_dim"):
        norm._check_input_dim(input)
    p = 0.0 if drop is None else drop_probability(drop)
    return _fused.batch_norm_act_with_count(
        input, *norm_arguments(norm), after, residual, before, p, after_weight, before_weight, None, generator_of(drop)
    )


def run_act_dropout(drop: nn.Module, input: Tensor, residual: Tensor | None = None, act: Act | None = None) -> Tensor:
    """drop(act(input)) + residual."""
    if _observer is not None:
        _observer(input, False, int(act is not None), residual is not None, True)
    activation, weight = _NONE if act is None else act[:2]
    settings = {"residual": residual, "drop_path": is_drop_path(drop), "generator": generator_of(drop)}
    return _fused.act_dropout(input, activation, drop_probability(drop), act_weight=weight, **settings)
