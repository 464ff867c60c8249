"""What a fused site computes: the layers' settings, read at each call, and the fused function."""

from collections.abc import Callable
from contextlib import contextmanager

from torch import Tensor, nn

from fastreg import _activation
from fastreg._activation import Activation
from fastreg.conversion.layers import activation_of, drop_probability, is_drop_path, norm_arguments
from fastreg.functional import _fused

Act = nn.Module | Activation | None
_observer: Callable | None = None


@contextmanager
def observed_by(observer: Callable):
    """Within, each site's call is told: observer(input, whether there is a norm, activations, residual, dropout)."""
    global _observer
    outer, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = outer


def _activation_and_weight(act: Act, weight):
    if isinstance(act, nn.Module):
        return activation_of(act)
    return (_activation.IDENTITY, None) if act is None else (act, weight)


def _can_be_residual(residual, input) -> bool:
    return (
        isinstance(residual, Tensor)
        and residual.shape == input.shape
        and residual.dtype == input.dtype
        and residual.device == input.device
    )


def run_batch_norm_act(
    norm: nn.Module,
    input: Tensor,
    residual: Tensor | None = None,
    pre_act: Act = None,
    act: Act = None,
    drop: nn.Module | None = None,
    pre_act_weight: Tensor | None = None,
    act_weight: Tensor | None = None,
) -> Tensor:
    """drop(act(norm(pre_act(input)) + residual)). A residual that broadcasts or promotes is added as torch does."""
    if _observer is not None:
        _observer(input, True, (pre_act is not None) + (act is not None), residual is not None, drop is not None)
    pre_act, pre_act_weight = _activation_and_weight(pre_act, pre_act_weight)
    act, act_weight = _activation_and_weight(act, act_weight)
    p = 0.0 if drop is None else drop_probability(drop)
    if hasattr(norm, "_check_input_dim"):
        norm._check_input_dim(input)
    arguments = norm_arguments(norm)
    fused = p is not None and (residual is None or _can_be_residual(residual, input))
    if fused:
        return _fused.batch_norm_act_with_count(
            input, *arguments, act, residual, pre_act, p, act_weight, pre_act_weight
        )
    output = _fused.batch_norm_act_with_count(
        input, *arguments, _activation.IDENTITY, None, pre_act, 0.0, None, pre_act_weight
    )
    if residual is not None:
        output = output + residual
    output = _activation.apply(act, output, act_weight)
    return output if drop is None else drop.forward(output)


def run_act_dropout(
    drop: nn.Module,
    input: Tensor,
    residual: Tensor | None = None,
    act: Act = None,
    act_weight: Tensor | None = None,
) -> Tensor:
    """drop(act(input)) + residual. A residual that broadcasts or promotes is added as torch does."""
    if _observer is not None:
        _observer(input, False, int(act is not None), residual is not None, True)
    act, act_weight = _activation_and_weight(act, act_weight)
    p = drop_probability(drop)
    if p is not None and (residual is None or _can_be_residual(residual, input)):
        return _fused.act_dropout(
            input,
            act,
            p,
            residual=residual,
            drop_path=is_drop_path(drop),
            act_weight=act_weight,
        )
    output = drop.forward(_activation.apply(act, input, act_weight))
    return output if residual is None else output + residual
