"""Programs that need no fastreg to run."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fastreg import _activation, reference
from fastreg._extension import available

__all__ = ["export_decompositions"]


def _activate(name, parameter, x, weight=None):
    return _activation.apply(_activation.Activation(name, parameter), x, weight)


def _batch_norm_eval(input, weight, bias, running_mean, running_var, eps):
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)


def _batch_norm_act_eval(
    input,
    weight,
    bias,
    running_mean,
    running_var,
    eps,
    pre_act,
    pre_act_parameter,
    residual,
    act,
    act_parameter,
    act_weight,
    save_gate,
    p,
    rng_state,
):
    output = _activate(pre_act, pre_act_parameter, input)
    output = _batch_norm_eval(output, weight, bias, running_mean, running_var, eps)
    output = _activate(act, act_parameter, output if residual is None else output + residual, act_weight)
    gate = input.new_empty(0, dtype=torch.uint8)  # for a backward pass
    return (reference.dropout.dropout(output, p, rng_state) if p else output), gate


def _act_dropout(input, bias, act, act_parameter, p, rng_state, residual, dims, strides=None):
    output = _activate(act, act_parameter, input if bias is None else input + bias)
    if p and dims is not None:
        return reference.dropout.feature_dropout(output, dims, p, rng_state, residual=residual)
    if p:
        output = reference.dropout.dropout(output, p, rng_state, strides)
    return output if residual is None else output + residual


def export_decompositions() -> dict[Any, Callable[..., Any]]:
    """What fastreg's operators are in torch's, for programs that are to run where there is no fastreg.

    For ``torch.export.ExportedProgram.run_decompositions``, and so for ``torch.onnx.export`` of the result. All
    operators of models in evaluation mode are in the table, and dropout; batch norm in training is not: its running
    statistics are updated within the operator. Results differ from fastreg's by torch's rounding.

    Returns:
        dict: from operators to functions. Empty where no extension was built: programs have torch's operators then.

    Example::

        program = torch.export.export(model.eval(), (x,))
        program = program.run_decompositions(fastreg.export_decompositions())
    """
    if not available("cpu"):
        return {}
    operators = torch.ops.fastreg
    return {
        operators.batch_norm_eval.default: _batch_norm_eval,
        operators.batch_norm_act_eval.default: _batch_norm_act_eval,
        operators.act_dropout.default: _act_dropout,
        operators.dropout.default: reference.dropout.dropout,
        operators.feature_dropout.default: reference.dropout.feature_dropout,
    }
