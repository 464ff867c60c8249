"""Dropout of samples: stochastic depth."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from fastreg._extension import disabled
from fastreg._routing import takes_dropout
from fastreg.functional._dropout_calls import check_others, check_p, drop, scaled, unscaled


def drop_path(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    residual: Tensor | None = None,
    scaling: str = "train",
    rng_state: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Stochastic depth: zero each sample input[n] with probability p, multiply the others by 1 / (1 - p), add residual.

    With a residual this is one pass over memory, and one rounding.

    Source: Huang et al., "Deep networks with stochastic depth", ECCV 2016; they scale as scaling="test" does.

    Args:
        input (Tensor[N, ...]): what a residual branch computed; float32, float64, float16 or bfloat16 where something
            is dropped.
        p (float): probability of a sample to be zeroed, in [0, 1]. Default: 0.5.
        training (bool): apply it; otherwise residual and input are added. Default: True.
        inplace (bool): modify and return input; not with a residual. Default: False.
        residual (Tensor[N, ...], optional): what went around the branch: of input's shape, dtype and device.
        scaling (str): "train" or "test", as in :func:`dropout`. Default: "train".
        rng_state (Tensor, optional): as in :func:`dropout`. Its stream numbers the samples.
        generator (torch.Generator, optional): as in :func:`dropout`.

    Returns:
        Tensor: like input. Without a residual input itself where training is False, p is 0 or there are no elements.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`dropout`; or residual is of another shape, dtype or device, or
            given with inplace, or input has no dimension.
    """
    if type(p) is not float or not 0.0 <= p <= 1.0:
        check_p("drop_path", p)
    transform = None if scaling == "train" else unscaled("drop_path", scaling)
    if isinstance(input, Proxy) or isinstance(residual, Proxy):
        keywords = {"p": p, "training": training, "inplace": inplace}
        keywords |= {"residual": residual, "scaling": scaling, "rng_state": rng_state, "generator": generator}
        return handle_torch_function(drop_path, (input, residual), input, **keywords)
    if residual is not None:
        _check_residual(input, residual, inplace)
    if not takes_dropout(input) or not (residual is None or takes_dropout(residual)):
        output = _drop_path_of_others(input, p, training, inplace, scaling, rng_state, generator)
        return output if residual is None else residual + output
    if not training or p == 0.0:
        factor = 1.0 if training or transform is None else 1.0 - p
        if residual is not None:
            return torch.add(residual, input, alpha=factor)
        return input if factor == 1.0 else scaled(input, p, inplace)
    return drop("drop_path", input, p, inplace, rng_state, generator, 1, transform, residual)


def _drop_path_of_others(input, p, training, inplace, scaling, rng_state, generator):
    """One factor per sample, by torch's dropout."""
    if (not training and scaling == "train") or p == 0.0:
        return input
    if not disabled():
        check_others("drop_path", input, p, rng_state, generator)
    ones = input.new_ones([input.shape[0], *[1] * (input.dim() - 1)], dtype=input.dtype.to_real())
    factor = F.dropout(ones, p, training)
    if scaling == "test":
        factor *= 1.0 - p
    return input.mul_(factor) if inplace else input * factor


def _check_residual(input, residual, inplace):
    if inplace:
        raise ValueError("drop_path: inplace must be False where residual is given, got True")
    if residual.shape != input.shape:
        raise ValueError(
            f"drop_path: residual must have the input's shape {list(input.shape)}, got {list(residual.shape)}"
        )
    if residual.dtype != input.dtype or residual.device != input.device:
        raise RuntimeError(
            f"drop_path: residual must have the input's dtype and device, {input.dtype} on {input.device}, "
            f"got {residual.dtype} on {residual.device}"
        )
