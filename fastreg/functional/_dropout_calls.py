"""What every kind of dropout shares: which of fastreg's ways a call takes, and torch's for what is not fastreg's."""

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from fastreg import autograd, ops, reference, rng_states, sharding
from fastreg._extension import disabled
from fastreg._routing import device_type, has_operators, is_sharded


def check_p(name, p):
    """p must be what torch takes for a float, in [0, 1]."""
    if isinstance(p, Tensor) and p.requires_grad:
        raise TypeError(f"{name}: p must be a float, got a {type(p).__name__} that requires grad")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: p must lie in [0, 1], got {p}")


def unscaled(name, scaling):
    if scaling != "test":
        raise ValueError(f"{name}: scaling must be 'train' or 'test', got {scaling!r}")
    return (1.0, -0.0, 0.0)


def scaled(input, p, inplace):
    """What scaling="test" does in evaluation."""
    return input.mul_(1.0 - p) if inplace else input * (1.0 - p)


def drop(name, input, p, inplace, rng_state, generator, dims, transform, residual=None):
    """Dropout of a tensor of ours or a DTensor of them, with 0 < p. dims, transform, residual: as in
    ``fastreg.ops.dropout.apply``."""
    if is_sharded(input):
        return drop_sharded(name, input, p, inplace, rng_state, generator, dims, transform, residual)
    if dims is not None and input.dim() < dims:
        raise RuntimeError(f"{name}: input must have at least {dims} dimensions, got {input.dim()}")
    rng_state = given_state(name, input, p, rng_state, generator)
    index_map = None if sharding.current is None or p == 1.0 else sharding.current.map(name, input, dims)
    if not has_operators(device_type(input)):
        return _drop_composed(name, input, p, inplace, rng_state, dims, transform, residual, index_map)
    if is_compiling():
        return _drop_traced(input, p, inplace, rng_state, dims, transform, residual, index_map)
    if input.numel() == 0:
        return input if residual is None else residual + input
    if inplace:
        ops.dropout.apply_(input, p, rng_state, dims, transform, index_map)
        return input
    return ops.dropout.apply(input, p, rng_state, dims, transform, residual, index_map)


def drop_patched(name, input, p, inplace, dims, transform, traced):
    """:func:`drop` for torch's operator of this name (fastreg/patching.py), with 0 < p. traced: by a compiler."""
    if not traced:
        return drop(name, input, p, inplace, None, None, dims, transform)
    if rng_states.source is not None:
        raise RuntimeError(
            f"{name}: dropout must not be compiled where its random states are given: call it uncompiled"
        )
    return _drop_traced(input, p, inplace, None, dims, transform, None, None)


def given_state(name, input, p, rng_state, generator):
    """The rng_state of a call with 0 < p: its own, the next one of a recording, a replay or a sharded batch, or one of
    its own generator; else None."""
    if generator is not None:
        rng_states.check_generator(name, generator, input.device, rng_state)
    if rng_state is not None or p == 1.0 or (generator is None and rng_states.source is None):
        return rng_state
    if input.numel() == 0 and sharding.current is None:  # else an empty part of a batch that is not empty
        return None
    return (rng_states.source or rng_states.draw_for_call)(input.device, generator)


def _drop_traced(input, p, inplace, rng_state, dims, transform, residual, index_map):
    """Dropout for a compiler: a pure operator on a state that a torch operator draws (on any device a seed of 64
    bits, offset 0), with the memory order that eager code would see."""
    if rng_state is None:
        rng_state = reference.dropout.draw_state(input.device)
    if dims is None:
        strides = reference.dropout.empty_result_like(input, transform=transform).stride()
        output = torch.ops.fastreg.dropout(input, p, rng_state, strides, index_map, transform)
    else:
        output = torch.ops.fastreg.feature_dropout(input, dims, p, rng_state, index_map, transform, residual)
    return input.copy_(output) if inplace else output


def _drop_composed(name, input, p, inplace, rng_state, dims, transform, residual, index_map):
    """Dropout of torch's operators: where no extension was built, and for the tracer of ``torch.jit``."""
    # Compilers and tracers see every step, and decide themselves what is kept for the backward pass.
    traced = is_compiling() or torch.jit.is_tracing()
    if not traced and input.numel() == 0:
        return input if residual is None else residual + input
    if rng_state is None:
        rng_state = reference.dropout.draw_state(input.device)
    else:
        reference.dropout.check_rng_state(rng_state, input, name)
    if inplace and input.is_inference() and not torch.is_inference_mode_enabled():  # torch's copy_ writes, then raises
        raise RuntimeError(f"{name}: input must not be an inference tensor where it is modified outside InferenceMode")
    on = reference.dropout if traced else autograd.dropout
    if dims is None:
        output = on.dropout(input, p, rng_state, None, index_map, transform)
    else:
        output = on.feature_dropout(input, dims, p, rng_state, index_map, transform, residual)
    return input.copy_(output) if inplace else output


def drop_sharded(name, input, p, inplace, rng_state, generator, dims, transform, residual=None):
    """:func:`drop` of a DTensor: each device drops its part with the whole tensor's mask."""
    if dims is not None and input.dim() < dims:
        raise RuntimeError(f"{name}: input must have at least {dims} dimensions, got {input.dim()}")
    from fastreg import sharded_tensors  # not before there is a DTensor: it takes long

    def apply(local, state, strides, index_map, residual):
        if not has_operators(device_type(local)):
            return _drop_composed(name, local, p, False, state, dims, transform, residual, index_map)
        if dims is None:
            return torch.ops.fastreg.dropout(local, p, state, strides, index_map, transform)
        return torch.ops.fastreg.feature_dropout(local, dims, p, state, index_map, transform, residual)

    output = sharded_tensors.dropout(name, input, rng_state, generator, dims, residual, apply)
    return input.copy_(output) if inplace else output


def of_others(function, torch_function, input, p, training, inplace, scaling, rng_state, generator):
    """function of what is not ours, by torch_function. scaling=None: function has no such argument."""
    keywords = {} if scaling is None else {"scaling": scaling}
    name = function.__name__
    transform = None if scaling in (None, "train") else unscaled(name, scaling)
    if isinstance(input, Proxy):
        keywords |= {"p": p, "training": training, "inplace": inplace}
        keywords |= {"rng_state": rng_state, "generator": generator}
        return handle_torch_function(function, (input,), input, **keywords)
    if isinstance(input, Tensor) and not disabled():
        if (not training and transform is None) or p == 0.0:
            return input
        check_others(name, input, p, rng_state, generator)
    output = torch_function(input, p, training, inplace)
    return output if transform is None else scaled(output, p, inplace)


def check_others(name, input, p, rng_state, generator):
    for argument, value in (("rng_state", rng_state), ("generator", generator)):
        if value is not None:
            raise NotImplementedError(
                f"{name}: {argument} must be None for input that torch's own dropout takes, got "
                f"{type(input).__name__} of {input.dtype} on {input.device}"
            )
    if not (input.dtype.is_floating_point or input.dtype.is_complex or p == 1.0 or input.numel() == 0):
        raise RuntimeError(f"{name}: input must be floating point where elements are dropped, got {input.dtype}")
