"""Batch norm and dropout with what stands next to them.

Each is one operator, where there is one for the tensors and the activation. Else it is composed of fastreg's functions
and torch's activations, one pass over memory for each: where transforms have to see every step, for prelu but after
batch norm, and for tensors that fastreg has no kernels for.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.compiler import is_compiling
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from fastreg import _activation, ops, reference, rng_states, sharding
from fastreg._activation import Activation
from fastreg._routing import device_type, has_operators, is_ours, is_sharded, is_transformed
from fastreg.functional import _drop_path
from fastreg.functional._batch_count import count_batch, is_counted_by_operators
from fastreg.functional._batch_norm import batch_norm_of_shards, batch_norm_with_count, takes_batch_norm
from fastreg.functional._batch_norm_checks import check_batch_norm
from fastreg.functional._dropout import dropout
from fastreg.functional._dropout_calls import check_p, given_state


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    act: str | Activation | tuple[str, float] = "relu",
    residual: Tensor | None = None,
    pre_act: str | Activation | tuple[str, float] = "identity",
    p: float = 0.0,
    act_weight: Tensor | None = None,
    pre_act_weight: Tensor | None = None,
    rng_state: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """dropout(act(batch_norm(pre_act(input)) + residual)).

    Activations are named: identity, relu, relu6, leaky_relu, prelu, elu, silu, mish, gelu, gelu_tanh, hardswish,
    hardsigmoid, sigmoid, tanh; with a parameter of their own as a pair, ``("leaky_relu", 0.2)`` (negative slope) or
    ``("elu", 0.5)`` (alpha).

    One pass over memory more than plain batch norm where there is a residual, else none. As pre_act prelu is composed:
    the gradient of its slope depends on that of the batch norm as a whole.

    Args:
        input, running_mean, running_var, weight, bias, training, momentum, eps: as in :func:`batch_norm`.
        act (str or Activation): applied to the normalised input plus the residual. Default: relu.
        residual (Tensor[N, C, ...], optional): added before act; of input's shape, dtype and device, in any layout.
        pre_act (str or Activation): applied to input. Default: identity.
        p (float): probability of an element of the result to be zeroed, in [0, 1], whatever ``training`` is.
            Default: 0.
        act_weight, pre_act_weight (Tensor[1] or Tensor[C]): the slopes where the activation is prelu; of the input's
            dtype, or float32 with 16 bits.
        rng_state (Tensor, optional): as in :func:`dropout`.
        generator (torch.Generator, optional): as in :func:`dropout`.

    Returns:
        Tensor[N, C, ...]: of the input's dtype, and strides as :func:`batch_norm` has them, in whose order dropout
            numbers elements.

    Raises:
        ValueError: an unknown activation, p not in [0, 1], residual of another shape; and as :func:`batch_norm`.
        RuntimeError: residual of another dtype or device, a slope of another size or dtype; and as
            :func:`batch_norm`.
        NotImplementedError, TypeError: as :func:`batch_norm`.
    """
    if momentum is None:
        raise TypeError("batch_norm_act: momentum must be a float, got None")
    if isinstance(input, Proxy) or isinstance(residual, Proxy):
        keywords = {"training": training, "momentum": momentum, "eps": eps, "act": act, "residual": residual}
        keywords |= {"pre_act": pre_act, "p": p, "act_weight": act_weight, "pre_act_weight": pre_act_weight}
        keywords |= {"rng_state": rng_state, "generator": generator}
        arguments = (input, running_mean, running_var, weight, bias)
        return handle_torch_function(batch_norm_act, (input, residual), *arguments, **keywords)
    return batch_norm_act_with_count(
        input,
        running_mean,
        running_var,
        None,
        weight,
        bias,
        training,
        momentum,
        eps,
        _activation.parse("batch_norm_act", "act", act),
        residual,
        _activation.parse("batch_norm_act", "pre_act", pre_act),
        p,
        act_weight,
        pre_act_weight,
        rng_state,
        generator,
    )


def batch_norm_act_with_count(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    act: Activation,
    residual: Tensor | None = None,
    pre_act: Activation = _activation.IDENTITY,
    p: float = 0.0,
    act_weight: Tensor | None = None,
    pre_act_weight: Tensor | None = None,
    rng_state: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """:func:`batch_norm_act` which in training also counts the batch, as :func:`batch_norm_with_count` does."""
    check_p("batch_norm_act", p)
    _check_residual("batch_norm_act", input, residual)
    _activation.check_weight("batch_norm_act", "act_weight", act, act_weight, input)
    _activation.check_weight("batch_norm_act", "pre_act_weight", pre_act, pre_act_weight, input)
    if rng_state is not None:
        reference.dropout.check_rng_state(rng_state, input, "batch_norm_act")
    if generator is not None:  # before statistics are written
        rng_states.check_generator("batch_norm_act", generator, input.device, rng_state)
    ours = takes_batch_norm(input)
    # p > 0.0 of a symbolic p is no bool that torch.compile could add (torch 2.11); nor below.
    steps = (pre_act.name != "identity") + (residual is not None) + (act.name != "identity") + (1 if p else 0)
    if steps and ours and _has_batch_norm_act(input, pre_act, act, residual, p, act_weight):
        check_batch_norm(input, running_mean, running_var, training, eps)
        statistics = (running_mean, running_var)
        settings = (*_operands(pre_act), residual, *_operands(act), act_weight, False, p)  # no gate but for autograd
        rng_state = _state("batch_norm_act", input, p, rng_state, generator, draws=training)
        if not training:
            return ops.batch_norm_act.evaluate(input, weight, bias, *statistics, eps, *settings, rng_state)[0]
        if num_batches_tracked is not None and not is_counted_by_operators(num_batches_tracked, input):
            momentum, num_batches_tracked = count_batch(num_batches_tracked, momentum), None
        arguments = (input, weight, bias, *statistics, num_batches_tracked, momentum, eps, *settings)
        if p and rng_state is None:
            return ops.batch_norm_act.train_seeded(*arguments)[0]
        return ops.batch_norm_act.train(*arguments, rng_state)[0]
    normalise = batch_norm_with_count if ours else _batch_norm_of_others
    output = normalise(
        _activation.apply(pre_act, input, pre_act_weight),
        running_mean,
        running_var,
        num_batches_tracked,
        weight,
        bias,
        training,
        momentum,
        eps,
    )
    # In place where nobody else has the tensor, as models write it themselves.
    ours = ours and not is_transformed()
    if residual is not None:
        output = output.add_(residual) if ours else output + residual
    output = output.relu_() if ours and act.name == "relu" else _activation.apply(act, output, act_weight)
    return dropout(output, p, rng_state=rng_state, generator=generator) if p else output


def act_dropout(
    input: Tensor,
    act: str | Activation | tuple[str, float] = "relu",
    p: float = 0.5,
    training: bool = True,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    drop_path: bool = False,
    act_weight: Tensor | None = None,
    rng_state: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """dropout(act(input + bias)) + residual.

    One pass over memory. prelu is composed.

    Args:
        input (Tensor): any shape.
        act (str or Activation): as in :func:`batch_norm_act`. Default: relu.
        p (float): probability of an element, or with drop_path of a sample, to be zeroed, in [0, 1]. Default: 0.5.
        training (bool): apply dropout. Default: True.
        bias (Tensor[C], optional): added to input[..., c], as a linear layer does.
        residual (Tensor, optional): added at the end; of input's shape, dtype and device, in any layout.
        drop_path (bool): drop whole samples input[n] instead of elements. Default: False.
        act_weight (Tensor[1] or Tensor[C]): the slope where the activation is prelu; channels are dimension 1.
        rng_state (Tensor, optional): as in :func:`dropout`.
        generator (torch.Generator, optional): as in :func:`dropout`.

    Returns:
        Tensor: like input.

    Raises:
        ValueError: an unknown activation, p not in [0, 1], residual of another shape.
        RuntimeError: bias not of input's last size, residual of another dtype or device, a slope of another size.
    """
    if isinstance(input, Proxy) or isinstance(residual, Proxy):
        keywords = {"act": act, "p": p, "training": training, "bias": bias, "residual": residual}
        keywords |= {"drop_path": drop_path, "act_weight": act_weight}
        keywords |= {"rng_state": rng_state, "generator": generator}
        return handle_torch_function(act_dropout, (input, residual), input, **keywords)
    act = _activation.parse("act_dropout", "act", act)
    check_p("act_dropout", p)
    _check_residual("act_dropout", input, residual)
    _activation.check_weight("act_dropout", "act_weight", act, act_weight, input)
    if bias is not None and (bias.dim() != 1 or input.dim() == 0 or bias.shape[0] != input.shape[-1]):
        raise RuntimeError(
            f"act_dropout: bias must have the size of input's last dimension, input has {list(input.shape)}, "
            f"got {list(bias.shape)}"
        )
    p = p if training else 0.0
    steps = (bias is not None) + (act.name != "identity") + (1 if p else 0) + (residual is not None)
    if steps > 1 and _has_act_dropout(input, bias, act, residual, p, drop_path):
        settings = (*_operands(act), p)
        dims = 1 if drop_path and p else None
        rng_state = _state("act_dropout", input, p, rng_state, generator, draws=True)
        if p and rng_state is None:
            return ops.act_dropout.seeded(input, bias, *settings, residual, dims)[0]
        strides = reference.dropout.empty_elementwise_like(input).stride() if is_compiling() else None
        return ops.act_dropout.given(input, bias, *settings, rng_state, residual, dims, strides)
    output = _activation.apply(act, input if bias is None else input + bias, act_weight)
    if drop_path:
        return _drop_path.drop_path(output, p, residual=residual, rng_state=rng_state, generator=generator)
    output = dropout(output, p, rng_state=rng_state, generator=generator)
    return output if residual is None else output + residual


def _is_native(residual, p):
    """Whether the operators take the residual. No transform knows the operators, and they take no index map."""
    if is_transformed() or (p and sharding.current is not None):
        return False
    return residual is None or is_ours(residual)


def _has_batch_norm_act(input, pre_act, act, residual, p, act_weight):
    if _activation.TABLE[pre_act.name].weighted or not _is_native(residual, p):
        return False
    return act_weight is None or (is_ours(act_weight) and _activation.takes_weight(input, act_weight))


def _has_act_dropout(input, bias, act, residual, p, drop_path):
    return (
        is_ours(input)
        and has_operators(device_type(input))
        and not _activation.TABLE[act.name].weighted
        and _is_native(residual, p)
        and (bias is None or (is_ours(bias) and bias.dtype == input.dtype))
        and (input.dim() > 0 or not drop_path)
    )


def _operands(act):
    """An activation as the operators take it."""
    return act.name, act.parameter or 0.0


def _state(name, input, p, rng_state, generator, draws):
    """The rng_state of an operator, None where there is no dropout. draws: whether an operator can draw it itself."""
    if not p:
        return None
    rng_state = given_state(name, input, p, rng_state, generator)
    if rng_state is not None or (draws and not is_compiling()):
        return rng_state
    if p < 1.0 and input.numel():
        return rng_states.draw_rng_state(input.device)
    return torch.zeros(2, dtype=torch.int64, device=input.device)


def _batch_norm_of_others(input, running_mean, running_var, num_batches_tracked, weight, bias, training, momentum, eps):
    """torch's batch norm, which leaves the counting to its modules; and that of DTensors."""
    if is_sharded(input):
        return batch_norm_of_shards(
            input, running_mean, running_var, num_batches_tracked, weight, bias, training, momentum, eps
        )
    if training and num_batches_tracked is not None:
        momentum = count_batch(num_batches_tracked, momentum)
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum or 0.0, eps)


def _check_residual(operation, input, residual):
    if residual is None:
        return
    if not isinstance(residual, Tensor):
        raise TypeError(f"{operation}: residual must be a tensor, got {type(residual).__name__}")
    if residual.shape != input.shape:
        raise ValueError(
            f"{operation}: residual must have the input's shape {list(input.shape)}, got {list(residual.shape)}"
        )
    if residual.dtype != input.dtype or residual.device != input.device:
        raise RuntimeError(
            f"{operation}: residual must have the input's dtype and device, {input.dtype} on {input.device}, "
            f"got {residual.dtype} on {residual.device}"
        )
