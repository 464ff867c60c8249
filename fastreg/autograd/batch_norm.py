"""The derivatives of batch norm: the first, of the operators, and the second, of their backward operators.

y = x_hat * weight + bias, with x_hat = (x - mean) * invstd. What is kept is x, the weight and what the statistics are
known by: in training [3, C] of those that were computed, in evaluation the running ones.
"""

import torch
from torch.autograd import Function
from torch.library import Library

from fastreg.autograd.dispatch import (
    has_tangent,
    primal,
    record,
    register,
    saved_with_running_statistics,
    with_outer_tangents,
)
from fastreg.ops.batch_norm import compute_dtype
from fastreg.reference import batch_norm as reference

_OPS = torch.ops.fastreg
_OF_INPUT = [True, False, False]


class BatchNorm(Function):
    """In training. compute: the operator ``batch_norm_train``."""

    @staticmethod
    def forward(compute, input, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps):
        return compute(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, input, weight, bias, *_, ctx.eps = inputs
        stats = output[1]
        ctx.mark_non_differentiable(stats)
        ctx.save_for_backward(input, weight, stats)
        ctx.save_for_forward(input, weight, bias, stats)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_output, _):
        mask = ctx.needs_input_grad[1:4]
        if grad_output is None:
            return (None,) * 9
        input, weight, stats = ctx.saved_tensors
        gradients = _OPS.batch_norm_train_backward(grad_output, input, weight, stats, mask)
        return None, *wanted_of(gradients, mask), *[None] * 5

    @staticmethod
    def jvp(ctx, _, of_input, of_weight, of_bias, *__):
        with with_outer_tangents():
            input, weight, _, stats = map(primal, ctx.saved_tensors)
            if of_input is not None:
                of_input = _OPS.batch_norm_train_backward(of_input, input, weight, stats, _OF_INPUT)[0]

            def normalised():
                return _OPS.batch_norm_train(input, *[None] * 5, 0.0, ctx.eps)[0]

            return _tangent(input, of_input, of_weight, of_bias, normalised), None


class BatchNormEval(Function):
    """In evaluation. compute: the operator ``batch_norm_eval``."""

    @staticmethod
    def forward(compute, input, weight, bias, running_mean, running_var, eps):
        return compute(input, weight, bias, running_mean, running_var, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, input, weight, _, running_mean, running_var, ctx.eps = inputs
        ctx.save_for_backward(input, weight, running_mean, running_var)
        ctx.save_for_forward(input, weight, running_mean, running_var)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_output):
        mask = ctx.needs_input_grad[1:4]
        if grad_output is None:
            return (None,) * 7
        gradients = _OPS.batch_norm_eval_backward(grad_output, *saved_with_running_statistics(ctx), ctx.eps, mask)
        return None, *wanted_of(gradients, mask), *[None] * 3

    @staticmethod
    def jvp(ctx, _, of_input, of_weight, of_bias, *__):
        with with_outer_tangents():
            input, weight, *statistics = map(primal, ctx.saved_tensors)
            if of_input is not None:
                of_input = _OPS.batch_norm_eval_backward(of_input, input, weight, *statistics, ctx.eps, _OF_INPUT)[0]

            def normalised():
                return _OPS.batch_norm_eval(input, None, None, *statistics, ctx.eps)

            return _tangent(input, of_input, of_weight, of_bias, normalised)


def wanted_of(gradients, mask):
    """What a backward operator computed; it returns empty tensors for the rest."""
    return [gradient if wanted else None for gradient, wanted in zip(gradients, mask, strict=True)]


def _tangent(input, of_input, of_weight, of_bias, normalised):
    """The output's tangent. The output is linear in weight and bias. Its derivative with respect to the input is
    symmetric, so that it makes of the input's tangent what the backward pass makes of a gradient: of_input."""

    def per_channel(tangent):
        return reference.per_channel(tangent, input).to(input.dtype)

    terms = [] if of_input is None else [of_input]
    if of_weight is not None:
        terms.append(normalised() * per_channel(of_weight))
    if of_bias is not None:
        terms.append(per_channel(of_bias).expand_as(input))
    return sum(terms[1:], terms[0])


# ---- second derivatives: the backward operators are differentiated, over C++ nodes as well


def _upcast(*tensors):
    """To the dtype that arithmetic is done in."""
    return tuple(None if t is None else t.to(compute_dtype(t)) for t in tensors)


def _downcast(gradients, likes):
    return tuple(
        None if g is None or like is None else g.to(like.dtype) for g, like in zip(gradients, likes, strict=True)
    )


def _eps(x, stats):
    """The operator knows eps only through invstd = 1 / sqrt(var + eps). Mean and variance are taken from x again, so
    that the result can itself be differentiated."""
    _, var = reference.moments(x.detach())
    return reference.per_channel(stats[2] ** -2 - var, x)


class BatchNormBackward(Function):
    """compute: the operator ``batch_norm_train_backward``."""

    @staticmethod
    def forward(compute, grad_output, input, weight, stats, output_mask):
        return compute(grad_output, input, weight, stats, output_mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, grad_output, input, weight, stats, ctx.output_mask = inputs
        ctx.save_for_backward(grad_output, input, weight, stats)

    @staticmethod
    def backward(ctx, *gradients):
        *differentiable, stats = ctx.saved_tensors
        g, x, weight = _upcast(*differentiable)
        of_outputs = _upcast(*wanted_of(gradients, ctx.output_mask))
        d = reference.train_double_backward(*of_outputs, g, x, weight, _eps(x, stats))
        return None, *_downcast(d, differentiable), None, None


class BatchNormEvalBackward(Function):
    """compute: the operator ``batch_norm_eval_backward``."""

    @staticmethod
    def forward(compute, grad_output, input, weight, running_mean, running_var, eps, output_mask):
        return compute(grad_output, input, weight, running_mean, running_var, eps, output_mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, grad_output, input, weight, running_mean, running_var, ctx.eps, ctx.output_mask = inputs
        ctx.save_for_backward(grad_output, input, weight, running_mean, running_var)

    @staticmethod
    def backward(ctx, *gradients):
        *differentiable, running_mean, running_var = ctx.saved_tensors
        g, x, weight = _upcast(*differentiable)
        statistics = _upcast(running_mean, running_var)
        of_outputs = _upcast(*wanted_of(gradients, ctx.output_mask))
        d = reference.eval_double_backward(*of_outputs, g, x, weight, *statistics, ctx.eps)
        return None, *_downcast(d, differentiable), *[None] * 4


# ---- and in forward-mode AD they are composed of torch's operators


def _as_operator_returns(gradients, input, weight, output_mask):
    """Gradients of input, weight and bias in the dtypes, and with the empty tensors, of the backward operators."""
    parameter_dtype = compute_dtype(input) if weight is None else weight.dtype
    return tuple(
        g.to(dtype) if wanted else input.new_empty(0)
        for g, dtype, wanted in zip(
            gradients, (input.dtype, parameter_dtype, parameter_dtype), output_mask, strict=True
        )
    )


def _train_backward(below, grad_output, input, weight, stats, output_mask):
    if not has_tangent(grad_output, input, weight, stats):
        return record(BatchNormBackward, below, grad_output, input, weight, stats, output_mask)
    g, x, w = _upcast(grad_output, input, weight)
    return _as_operator_returns(reference.train_backward(g, x, w, _eps(x, stats)), input, weight, output_mask)


def _eval_backward(below, grad_output, input, weight, running_mean, running_var, eps, output_mask):
    arguments = grad_output, input, weight, running_mean, running_var
    if not has_tangent(*arguments):
        return record(BatchNormEvalBackward, below, *arguments, eps, output_mask)
    gradients = reference.eval_backward(*_upcast(*arguments), eps)
    return _as_operator_returns(gradients, input, weight, output_mask)


_library = Library("fastreg", "IMPL")  # its registrations last as long as it
register(_library, _OPS.batch_norm_train_backward.default, _train_backward)
register(_library, _OPS.batch_norm_eval_backward.default, _eval_backward)
