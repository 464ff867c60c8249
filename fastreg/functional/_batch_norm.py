"""Batch norm."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from fastreg import ops
from fastreg._routing import device_type, has_operators, is_ours, is_sharded
from fastreg.functional._batch_count import count_batch, is_counted_by_operators
from fastreg.functional._batch_norm_checks import check_batch_norm
from fastreg.functional._sync_batch_norm import sync_batch_norm


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(input - mean) / sqrt(var + eps) * weight + bias, per channel.

    In training, mean and biased variance are the batch's, and the running statistics move by ``momentum`` towards the
    batch's mean and unbiased variance, in place. In evaluation the running ones are used.

    Source: Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate
    shift", ICML 2015.

    Args:
        input (Tensor[N, C, ...]): float32, float64, float16 or bfloat16.
        running_mean (Tensor[C], optional): of the input's dtype or, where that has 16 bits, float32. Both running
            statistics may be None in training.
        running_var (Tensor[C], optional): likewise.
        weight (Tensor[C], optional): dtypes as above. Default: ones.
        bias (Tensor[C], optional): dtypes as above. Default: zeros.
        training (bool): use the batch's statistics. Default: False.
        momentum (float): weight of the batch in the running statistics. Default: 0.1.
        eps (float): positive in training, not negative in evaluation. Default: 1e-5.

    Returns:
        Tensor[N, C, ...]: of the input's dtype, contiguous or, as torch's, channels-last where the input is.

    Raises:
        ValueError: one value per channel in training, less than two dimensions, a bad eps, or one running statistic
            without the other in training.
        RuntimeError: a parameter or statistic of another shape, dtype or device, or none in evaluation.
        NotImplementedError: input is not floating point.
        TypeError: momentum is None.
    """
    if momentum is None:
        raise TypeError("batch_norm: momentum must be a float, got None")
    if isinstance(input, Proxy):
        return handle_torch_function(
            batch_norm,
            (input,),
            input,
            running_mean,
            running_var,
            weight=weight,
            bias=bias,
            training=training,
            momentum=momentum,
            eps=eps,
        )
    if is_sharded(input):
        return batch_norm_of_shards(input, running_mean, running_var, None, weight, bias, training, momentum, eps)
    if not takes_batch_norm(input) or input.shape == (0,):  # torch takes [0] for a batch of nothing
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return batch_norm_with_count(input, running_mean, running_var, None, weight, bias, training, momentum, eps)


def takes_batch_norm(input: Tensor) -> bool:
    """Whether fastreg's operators compute the batch norm of input; else torch's do. Neither takes integers."""
    if is_ours(input):
        return has_operators(device_type(input))
    if isinstance(input, Tensor) and not (input.dtype.is_floating_point or input.dtype.is_complex):
        raise NotImplementedError(f"batch_norm: input must be floating point, got {input.dtype}")
    return False


def batch_norm_of_shards(input: Any, *arguments: Any) -> Tensor:
    """:func:`batch_norm_with_count` of a DTensor."""
    from fastreg import sharded_tensors  # not before there is a DTensor: it takes long

    return sharded_tensors.batch_norm(input, *arguments, alone=batch_norm_with_count, together=sync_batch_norm)


def batch_norm_with_count(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
) -> Tensor:
    """:func:`batch_norm` of an input that :func:`takes_batch_norm`, which in training also counts the batch.

    num_batches_tracked (Tensor, optional): incremented in place. With momentum=None the running statistics become
    averages over all batches: the batch's weight is 1 / num_batches_tracked, without a synchronisation of the device
    where that is one int64 value on it, as torch's modules have it.
    """
    check_batch_norm(input, running_mean, running_var, training, eps)
    if not training:
        return ops.batch_norm.evaluate(input, weight, bias, running_mean, running_var, eps)
    if num_batches_tracked is not None and not is_counted_by_operators(num_batches_tracked, input):
        momentum, num_batches_tracked = count_batch(num_batches_tracked, momentum), None
    return ops.batch_norm.train(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps)[0]
