"""First derivatives of the operators by the Functions of this folder, in place of the nodes of csrc/autograd.

Each kernel here is what the dispatcher calls where an operator comes to autograd: below(*arguments) is the operator
past it. FASTREG_AUTOGRAD=python registers them.
"""

import warnings

import torch
from torch.library import Library

from fastreg._extension import differentiates_in_python
from fastreg.autograd.act_dropout import ActDropout
from fastreg.autograd.act_dropout import Settings as ActDropoutSettings
from fastreg.autograd.batch_norm import BatchNorm, BatchNormEval
from fastreg.autograd.batch_norm_act import BatchNormAct, keeps_gate
from fastreg.autograd.batch_norm_act import Settings as BatchNormActSettings
from fastreg.autograd.dispatch import check_constant, check_no_tangents, is_recorded, record, register, savable
from fastreg.autograd.dropout import Dropout, Kind

_OPS = torch.ops.fastreg
_KERNELS = {}


def _kernel_of(name):
    def add(kernel):
        _KERNELS[name] = kernel
        return kernel

    return add


# ---- dropout


@_kernel_of("dropout")
def _dropout(below, input, p, rng_state, strides=None, index_map=None, transform=None):
    def compute(x, _, state):
        return below(x, p, state, strides, index_map, transform)

    kind = Kind(_OPS, p, None, index_map, transform)
    return record(Dropout, compute, kind, input, None, savable(rng_state))


@_kernel_of("dropout_seeded")
def _dropout_seeded(below, input, p, index_map=None, transform=None):
    def compute(x, *_):
        return below(x, p, index_map, transform)

    return record(Dropout, compute, Kind(_OPS, p, None, index_map, transform), input, None, None)


@_kernel_of("feature_dropout")
def _feature_dropout(below, input, dims, p, rng_state, index_map=None, transform=None, residual=None):
    def compute(x, residual, state):
        return below(x, dims, p, state, index_map, transform, residual)

    kind = Kind(_OPS, p, dims, index_map, transform)
    return record(Dropout, compute, kind, input, residual, savable(rng_state))


@_kernel_of("feature_dropout_seeded")
def _feature_dropout_seeded(below, input, dims, p, index_map=None, transform=None, residual=None):
    def compute(x, residual, _):
        return below(x, dims, p, index_map, transform, residual)

    return record(Dropout, compute, Kind(_OPS, p, dims, index_map, transform), input, residual, None)


# In place where nothing is recorded; else the output, and torch's copy of it, which autograd knows.


@_kernel_of("dropout_")
def _dropout_(below, input, p, rng_state, index_map=None, transform=None):
    if not is_recorded(input):
        return below(input, p, rng_state, index_map, transform)
    input.copy_(_OPS.dropout(input, p, rng_state, None, index_map, transform))


@_kernel_of("dropout_seeded_")
def _dropout_seeded_(below, input, p, index_map=None, transform=None):
    if not is_recorded(input):
        return below(input, p, index_map, transform)
    output, rng_state = _OPS.dropout_seeded(input, p, index_map, transform)
    input.copy_(output)
    return rng_state


@_kernel_of("feature_dropout_")
def _feature_dropout_(below, input, dims, p, rng_state, index_map=None, transform=None):
    if not is_recorded(input):
        return below(input, dims, p, rng_state, index_map, transform)
    input.copy_(_OPS.feature_dropout(input, dims, p, rng_state, index_map, transform))


@_kernel_of("feature_dropout_seeded_")
def _feature_dropout_seeded_(below, input, dims, p, index_map=None, transform=None):
    if not is_recorded(input):
        return below(input, dims, p, index_map, transform)
    output, rng_state = _OPS.feature_dropout_seeded(input, dims, p, index_map, transform)
    input.copy_(output)
    return rng_state


# ---- batch norm


@_kernel_of("batch_norm_train")
def _batch_norm_train(below, input, weight, bias, running_mean, running_var, *others):
    check_constant("batch_norm", running_mean=running_mean, running_var=running_var)
    return record(BatchNorm, below, input, weight, bias, running_mean, running_var, *others)


@_kernel_of("batch_norm_eval")
def _batch_norm_eval(below, input, weight, bias, running_mean, running_var, eps):
    check_constant("batch_norm", running_mean=running_mean, running_var=running_var)
    return record(BatchNormEval, below, input, weight, bias, running_mean, running_var, eps)


# ---- fused operators


@_kernel_of("act_dropout")
def _act_dropout(below, input, bias, act, act_parameter, p, rng_state, residual, dims, strides=None):
    check_no_tangents("act_dropout", input, bias, residual)

    def compute(state):
        return below(input, bias, act, act_parameter, p, state, residual, dims, strides)

    settings = ActDropoutSettings(act, act_parameter, p, dims)
    rng_state = savable(rng_state) if p else None
    return record(ActDropout, compute, settings, False, input, bias, residual, rng_state)


@_kernel_of("act_dropout_seeded")
def _act_dropout_seeded(below, input, bias, act, act_parameter, p, residual, dims):
    check_no_tangents("act_dropout", input, bias, residual)

    def compute(_):
        return below(input, bias, act, act_parameter, p, residual, dims)

    settings = ActDropoutSettings(act, act_parameter, p, dims)
    return record(ActDropout, compute, settings, True, input, bias, residual, None)


def _batch_norm_act(statistics, settings, rng_state, tensors, save_gate, compute):
    """compute(save_gate, rng_state): as :class:`BatchNormAct` has it. tensors: those that are differentiated."""
    check_no_tangents("batch_norm_act", *tensors)
    if torch.is_grad_enabled():
        check_constant("batch_norm_act", running_mean=statistics[0], running_var=statistics[1])
    save_gate = save_gate or (keeps_gate(settings, tensors[3]) and is_recorded(*tensors))
    rng_state = savable(rng_state) if settings.p else None
    return record(BatchNormAct, lambda state: compute(save_gate, state), settings, *statistics, rng_state, *tensors)


@_kernel_of("batch_norm_act_train")
def _batch_norm_act_train(
    below,
    input,
    weight,
    bias,
    running_mean,
    running_var,
    num_batches_tracked,
    momentum,
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
    statistics = running_mean, running_var
    moved = *statistics, num_batches_tracked, momentum, eps

    def compute(save_gate, state):
        fused = pre_act, pre_act_parameter, residual, act, act_parameter, act_weight, save_gate, p, state
        return *below(input, weight, bias, *moved, *fused), None

    settings = BatchNormActSettings(pre_act, pre_act_parameter, act, act_parameter, p, None)
    tensors = input, weight, bias, residual, act_weight
    return _batch_norm_act(statistics, settings, rng_state, tensors, save_gate, compute)[:3]


@_kernel_of("batch_norm_act_train_seeded")
def _batch_norm_act_train_seeded(
    below,
    input,
    weight,
    bias,
    running_mean,
    running_var,
    num_batches_tracked,
    momentum,
    eps,
    pre_act,
    pre_act_parameter,
    residual,
    act,
    act_parameter,
    act_weight,
    save_gate,
    p,
):
    statistics = running_mean, running_var
    moved = *statistics, num_batches_tracked, momentum, eps

    def compute(save_gate, _):
        fused = pre_act, pre_act_parameter, residual, act, act_parameter, act_weight, save_gate, p
        return below(input, weight, bias, *moved, *fused)

    settings = BatchNormActSettings(pre_act, pre_act_parameter, act, act_parameter, p, None)
    tensors = input, weight, bias, residual, act_weight
    return _batch_norm_act(statistics, settings, None, tensors, save_gate, compute)


@_kernel_of("batch_norm_act_eval")
def _batch_norm_act_eval(
    below,
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
    statistics = running_mean, running_var

    def compute(save_gate, state):
        fused = pre_act, pre_act_parameter, residual, act, act_parameter, act_weight, save_gate, p, state
        output, gate = below(input, weight, bias, *statistics, eps, *fused)
        return output, None, gate, None

    settings = BatchNormActSettings(pre_act, pre_act_parameter, act, act_parameter, p, eps)
    tensors = input, weight, bias, residual, act_weight
    output, _, gate, _ = _batch_norm_act(statistics, settings, rng_state, tensors, save_gate, compute)
    return output, gate


# ---- registration


def use_functions() -> Library:
    """Take the Functions instead of the nodes in C++, as long as the result is not destroyed."""
    library = Library("fastreg", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        for name, kernel in _KERNELS.items():
            register(library, getattr(_OPS, name).default, kernel)
    return library


_library = use_functions() if differentiates_in_python() else None
