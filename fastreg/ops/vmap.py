"""What the operators do under ``torch.func.vmap``: what a loop over the samples would.

Most rules are that loop, one launch per sample. Dropout with one random state for all samples, and batch norm with
constant statistics and parameters, are one launch for all.

Operators that draw a state draw it by torch's randint, which heeds ``randomness``: an error, one state for all samples
or one for each, also where the input is not batched.
"""

import math

import torch
from torch.library import Library, register_vmap

from fastreg.reference.dropout import draw_state

_OPS = torch.ops.fastreg
_library = Library("fastreg", "IMPL")  # its registrations last as long as it


def _is_batched(dim):
    """Whether in_dims has this for a batched tensor, and not for one for all samples, or no tensor at all."""
    return isinstance(dim, int)


def _all_dims(in_dims, arguments):
    """in_dims of all arguments: the dispatcher leaves out trailing arguments that have their default values."""
    return *in_dims, *[None] * (len(arguments) - len(in_dims))


def _sample(index, in_dims, arguments):
    pairs = zip(in_dims, arguments, strict=True)
    return [argument.select(dim, index) if _is_batched(dim) else argument for dim, argument in pairs]


def _stack(outputs):
    """The outputs of each sample as outputs of all, and their dimensions of samples."""
    if outputs[0] is None:
        return None, None
    if isinstance(outputs[0], torch.Tensor):
        return torch.stack(outputs), 0
    return tuple(torch.stack(each) for each in zip(*outputs, strict=True)), (0,) * len(outputs[0])


def _check_written(op, in_dims, arguments):
    for declared, dim, argument in zip(op._schema.arguments, in_dims, arguments, strict=False):
        if declared.is_write and argument is not None and not _is_batched(dim):
            name = op._schema.name.removeprefix("fastreg::")
            raise RuntimeError(
                f"{name}: {declared.name} must be batched, as it is written in place and other arguments are batched, "
                "got one tensor for all samples of vmap"
            )


def _loop(op, info, in_dims, arguments):
    _check_written(op, in_dims, arguments)
    return _stack([op(*_sample(index, in_dims, arguments)) for index in range(info.batch_size)])


def _register_loop(op):
    @register_vmap(op)
    def _(info, in_dims, *arguments):
        return _loop(op, info, in_dims, arguments)


# ---- dropout


_register_loop(_OPS.dropout_.default)
_register_loop(_OPS.feature_dropout_.default)


@register_vmap("fastreg::dropout")
def _(info, in_dims, input, p, rng_state, strides=None, index_map=None, transform=None):
    arguments = input, p, rng_state, strides, index_map, transform
    in_dims = _all_dims(in_dims, arguments)
    if _is_batched(in_dims[2]) or index_map is not None:
        return _loop(_OPS.dropout.default, info, in_dims, arguments)
    batch = input.movedim(in_dims[0], 0)
    if strides is None:
        strides = torch.empty_like(batch[0]).stride()
    numel = max(math.prod(batch.shape[1:]), 1)
    # The stream starts again at each sample.
    return _OPS.dropout(batch, p, rng_state, (numel, *strides), (0, numel, 0), transform), 0


@register_vmap("fastreg::feature_dropout")
def _(info, in_dims, input, dims, p, rng_state, index_map=None, transform=None, residual=None):
    arguments = input, dims, p, rng_state, index_map, transform, residual
    in_dims = _all_dims(in_dims, arguments)
    if _is_batched(in_dims[3]) or index_map is not None:
        return _loop(_OPS.feature_dropout.default, info, in_dims, arguments)

    def all_samples(tensor, dim):
        return tensor.movedim(dim, 0) if _is_batched(dim) else tensor.expand(info.batch_size, *tensor.shape)

    batch = all_samples(input, in_dims[0])
    residual = None if residual is None else all_samples(residual, in_dims[6])
    draws = max(math.prod(batch.shape[1 : dims + 1]), 1)
    return _OPS.feature_dropout(batch, dims + 1, p, rng_state, (0, draws, 0), transform, residual), 0


def _draw(input, p):
    if p in (0.0, 1.0) or input.numel() == 0:  # nothing is left to chance
        return torch.zeros(2, dtype=torch.int64, device=input.device)
    return draw_state(input.device)


def _dropout_seeded(input, p, index_map=None, transform=None):
    state = _draw(input, p)
    return _OPS.dropout(input, p, state, None, index_map, transform), state


def _dropout_seeded_(input, p, index_map=None, transform=None):
    state = _draw(input, p)
    _OPS.dropout_(input, p, state, index_map, transform)
    return state


def _feature_dropout_seeded(input, dims, p, index_map=None, transform=None, residual=None):
    state = _draw(input, p)
    return _OPS.feature_dropout(input, dims, p, state, index_map, transform, residual), state


def _feature_dropout_seeded_(input, dims, p, index_map=None, transform=None):
    state = _draw(input, p)
    _OPS.feature_dropout_(input, dims, p, state, index_map, transform)
    return state


def _draw_rng_state(like, generator=None):
    return draw_state(like.device, generator)


# This key, unlike a rule of vmap, has a say also where no argument is batched.
_library.impl("draw_rng_state", _draw_rng_state, "FuncTorchVmapMode")
_library.impl("dropout_seeded", _dropout_seeded, "FuncTorchVmapMode")
_library.impl("dropout_seeded_", _dropout_seeded_, "FuncTorchVmapMode")
_library.impl("feature_dropout_seeded", _feature_dropout_seeded, "FuncTorchVmapMode")
_library.impl("feature_dropout_seeded_", _feature_dropout_seeded_, "FuncTorchVmapMode")


# ---- batch norm


_register_loop(_OPS.batch_norm_train_backward.default)
_register_loop(_OPS.batch_norm_eval_backward.default)


@register_vmap("fastreg::batch_norm_train")
def _(info, in_dims, *arguments):
    op = _OPS.batch_norm_train.default
    if any(map(_is_batched, (in_dims[0], *in_dims[3:6]))):
        return _loop(op, info, in_dims, arguments)
    # Samples differ in weight and bias alone: the running statistics move once.
    first, *others = (_sample(index, in_dims, arguments) for index in range(info.batch_size))
    eps = arguments[7]
    return _stack([op(*first), *(op(*other[:3], None, None, None, 0.0, eps) for other in others)])


@register_vmap("fastreg::batch_norm_eval")
def _(info, in_dims, input, weight, bias, running_mean, running_var, eps):
    constant = weight, bias, running_mean, running_var, eps
    op = _OPS.batch_norm_eval.default
    if not _is_batched(in_dims[0]) or any(map(_is_batched, in_dims[1:])):
        return _loop(op, info, in_dims, (input, *constant))
    batch = input.movedim(in_dims[0], 0)
    return op(batch.flatten(0, 1), *constant).unflatten(0, batch.shape[:2]), 0


# ---- fused operators


for _name in (
    "act_dropout",
    "act_dropout_backward",
    "batch_norm_act_train",
    "batch_norm_act_train_backward",
    "batch_norm_act_eval",
    "batch_norm_act_eval_backward",
):
    _register_loop(getattr(_OPS, _name).default)


def _act_dropout_seeded(input, bias, act, act_parameter, p, residual, dims):
    state = _draw(input, p)
    return _OPS.act_dropout(input, bias, act, act_parameter, p, state, residual, dims), state


def _batch_norm_act_train_seeded(input, *others):
    state = _draw(input, others[-1])
    return *_OPS.batch_norm_act_train(input, *others, state), state


_library.impl("act_dropout_seeded", _act_dropout_seeded, "FuncTorchVmapMode")
_library.impl("batch_norm_act_train_seeded", _batch_norm_act_train_seeded, "FuncTorchVmapMode")
