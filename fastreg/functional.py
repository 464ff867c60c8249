"""Dropout and batch norm as functions, with the signatures of ``torch.nn.functional``.

Where a call goes:

- CPU and CUDA tensors whose backend was compiled: fastreg's operators;
- under ``torch.func`` transforms, forward-mode AD and ``torch.jit.trace``, and where no backend was compiled: dropout
  composed of torch's operators, with the same masks, and torch's own batch norm;
- everything else (other devices, dtypes and layouts, tensor subclasses, ``FASTREG_DISABLE=1``): torch's own functions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from fastreg import ops, reference
from fastreg._extension import available, disabled

__all__ = ["batch_norm", "dropout"]

_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor))
_FLOATING_DTYPES = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))
_DEVICES = frozenset(() if disabled() else ("cpu", "cuda"))
_COMPILED_BACKENDS = frozenset(device for device in _DEVICES if available(device))


def _is_ours(input) -> bool:
    """Whether input is a tensor that fastreg computes with: anything else is torch's."""
    return (
        type(input) in _PLAIN_TYPES
        and input.dtype in _FLOATING_DTYPES
        and input.device.type in _DEVICES
        and input.layout is torch.strided
        and not input.is_nested
    )


def _has_operators(input) -> bool:
    """Whether the operators can take this tensor of ours: compiled, and no transform that they have no rule for."""
    return (
        input.device.type in _COMPILED_BACKENDS
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Zero each element with probability p and multiply the others by 1 / (1 - p), in training.

    Nothing but 16 bytes is kept for the backward pass. Dropped elements are 0 also where the input is not finite.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.

    Args:
        input (Tensor): any shape; float32, float64, float16 or bfloat16 where something is dropped.
        p (float): probability of an element to be zeroed, in [0, 1], exact to 2**-32. Default: 0.5.
        training (bool): apply dropout. Default: True.
        inplace (bool): modify and return input. Default: False.
        rng_state (Tensor, optional): int64[2], (seed, offset) of the random stream, on the input's device or the CPU.
            The mask is a function of it, the same on every device and in every dtype; explicit offsets must differ
            by 8. Default: drawn from the device's generator, which ``torch.manual_seed`` seeds.

    Returns:
        Tensor: like input; input itself where training is False, p is 0 or there are no elements.

    Raises:
        ValueError: p is not in [0, 1], or rng_state not of shape [2].
        TypeError: rng_state is not an int64 tensor.
        RuntimeError: input is not floating point, rng_state is on another device, or autograd forbids to modify input.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p must lie in [0, 1], got {p}")
    if not _is_ours(input):
        return _dropout_of_others(input, p, training, inplace, rng_state)
    if not training or p == 0.0:
        return input
    if not _has_operators(input):
        return _dropout_composed(input, p, inplace, rng_state)
    if is_compiling():
        return _dropout_traced(input, p, inplace, rng_state)
    if input.numel() == 0:
        return input
    if inplace:
        ops.dropout.apply_(input, p, rng_state)
        return input
    return ops.dropout.apply(input, p, rng_state)


def _dropout_traced(input, p, inplace, rng_state):
    """Dropout for a compiler: a pure operator on a state that a torch operator draws (on any device a seed of 64
    bits, offset 0), with the memory order that eager code would see."""
    if rng_state is None:
        rng_state = reference.dropout.draw_state(input.device)
    strides = torch.empty_like(input).stride()
    output = torch.ops.fastreg.dropout(input, p, rng_state, strides)
    return input.copy_(output) if inplace else output


def _dropout_composed(input, p, inplace, rng_state):
    if rng_state is None:
        rng_state = reference.dropout.draw_state(input.device)
    else:
        reference.dropout.check_rng_state(rng_state, input)
    output = reference.dropout.dropout(input, p, rng_state)
    return input.copy_(output) if inplace else output


def _dropout_of_others(input, p, training, inplace, rng_state):
    if isinstance(input, Proxy):
        return handle_torch_function(
            dropout, (input,), input, p=p, training=training, inplace=inplace, rng_state=rng_state
        )
    if not isinstance(input, Tensor) or disabled():
        return F.dropout(input, p, training, inplace)
    if not training or p == 0.0:
        return input
    if rng_state is not None:
        raise NotImplementedError(
            f"dropout: rng_state must be None for input that torch's own dropout takes, got {type(input).__name__} of "
            f"{input.dtype} on {input.device}"
        )
    if input.dtype.is_floating_point or input.dtype.is_complex or p == 1.0 or input.numel() == 0:
        return F.dropout(input, p, training, inplace)
    raise RuntimeError(f"dropout: input must be floating point where elements are dropped, got {input.dtype}")


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
        input (Tensor[N, C, ...]): float32, float64, float16 or bfloat16; the output keeps its memory format.
        running_mean (Tensor[C], optional): of the input's dtype or, where that has 16 bits, float32. Both running
            statistics may be None in training.
        running_var (Tensor[C], optional): likewise.
        weight (Tensor[C], optional): dtypes as above. Default: ones.
        bias (Tensor[C], optional): dtypes as above. Default: zeros.
        training (bool): use the batch's statistics. Default: False.
        momentum (float): weight of the batch in the running statistics. Default: 0.1.
        eps (float): positive in training, not negative in evaluation. Default: 1e-5.

    Returns:
        Tensor[N, C, ...]: of the input's dtype.

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
    if not takes_batch_norm(input):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return batch_norm_with_count(input, running_mean, running_var, None, weight, bias, training, momentum, eps)


def takes_batch_norm(input: Tensor) -> bool:
    """Whether fastreg's operators compute the batch norm of input; else torch's do. Neither takes integers."""
    if _is_ours(input):
        return _has_operators(input)
    if isinstance(input, Tensor) and not (input.dtype.is_floating_point or input.dtype.is_complex):
        raise NotImplementedError(f"batch_norm: input must be floating point, got {input.dtype}")
    return False


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

    num_batches_tracked (Tensor, optional): one int64 value, incremented in place. With momentum=None the running
    statistics become averages over all batches: the batch's weight is 1 / num_batches_tracked, without a
    synchronisation of the device.
    """
    if not training:
        if not eps >= 0.0:
            raise ValueError(f"batch_norm: eps must not be negative, got {eps}")
        for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
            if statistic is None:
                raise RuntimeError(f"batch_norm: {name} must be given in evaluation, got None")
        evaluate = torch.ops.fastreg.batch_norm_eval if is_compiling() else ops.batch_norm.evaluate
        return evaluate(input, weight, bias, running_mean, running_var, eps)
    if not eps > 0.0:
        raise ValueError(f"batch_norm: eps must be positive in training, got {eps}")
    if (running_mean is None) != (running_var is None):
        raise ValueError(
            "batch_norm: running_mean and running_var must be given both or neither, got None for "
            f"{'running_mean' if running_mean is None else 'running_var'}"
        )
    if input.dim() >= 2 and input.numel() == input.size(1) != 0:
        raise ValueError(
            "batch_norm: input must have more than 1 value per channel when training, "
            f"got input size {list(input.shape)}"
        )
    train = torch.ops.fastreg.batch_norm_train if is_compiling() else ops.batch_norm.train
    return train(input, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps)[0]
