"""Dropout of elements and of features."""

import warnings

import torch.nn.functional as F
from torch import Generator, Tensor

from fastreg._routing import takes_dropout
from fastreg.functional._dropout_calls import check_p, drop, of_others, scaled, unscaled

# -scale * alpha of SELU, the value that it saturates at: Klambauer et al. 2017, equation (2).
_ALPHA = 1.7580993408473766


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    scaling: str = "train",
    rng_state: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Zero each element with probability p and multiply the others by 1 / (1 - p), in training.

    Nothing but 16 bytes is kept for the backward pass. Dropped elements are 0 also where the input is not finite.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.

    Args:
        input (Tensor): any shape; float32, float64, float16 or bfloat16 where something is dropped.
        p (float): probability of an element to be zeroed, in [0, 1], exact to 2**-32. Default: 0.5.
        training (bool): apply dropout. Default: True.
        inplace (bool): modify and return input. Default: False.
        scaling (str): "train": multiply by 1 / (1 - p) in training; "test", the paper's own form: multiply by 1 - p
            where training is False, and in training not at all. Default: "train".
        rng_state (Tensor, optional): int64[2], (seed, offset) of the random stream, on the input's device or the CPU.
            The mask is a function of it, the same on every device and in every dtype; explicit offsets must differ
            by 8. Default: drawn from the device's generator, which ``torch.manual_seed`` seeds, as
            :func:`fastreg.draw_rng_state` does.
        generator (torch.Generator, optional): on the input's device: draw from it in place of the device's own, which
            then stays as it is. Not with an rng_state. Default: None.

    Returns:
        Tensor: like input; input itself where training is False, p is 0 or there are no elements.

    Raises:
        ValueError: p is not in [0, 1], scaling is unknown, rng_state not of shape [2], or there is a generator, too.
        TypeError: rng_state is not an int64 tensor, or generator no torch.Generator.
        RuntimeError: input is not floating point, rng_state or generator is on another device, autograd forbids to
            modify input, or there is a generator within ``torch.utils.checkpoint`` without
            :func:`fastreg.checkpoint_contexts`.
    """
    if type(p) is not float or not 0.0 <= p <= 1.0:
        check_p("dropout", p)
    if not takes_dropout(input):
        return of_others(dropout, F.dropout, input, p, training, inplace, scaling, rng_state, generator)
    transform = None if scaling == "train" else unscaled("dropout", scaling)
    if not training:
        return input if transform is None else scaled(input, p, inplace)
    if p == 0.0:
        return input
    return drop("dropout", input, p, inplace, rng_state, generator, None, transform)


def alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    rng_state: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Set each element with probability p to the value that SELU saturates at, and keep mean 0 and variance 1.

    With alpha = 1.7580993408473766 and a = ((1 - p) * (1 + p * alpha**2)) ** -0.5, kept elements become
    a * (x + alpha * p), rounded once, and dropped ones a * (-alpha + alpha * p); with p = 1 all become 0.

    Source: Klambauer et al., "Self-normalizing neural networks", NeurIPS 2017.

    Args:
        input (Tensor): any shape; float32, float64, float16 or bfloat16 where something is dropped.
        p (float): probability of an element to be dropped, in [0, 1]. Default: 0.5.
        training (bool): apply dropout. Default: False, as in torch.
        inplace (bool): modify and return input. Default: False.
        rng_state (Tensor, optional): as in :func:`dropout`.
        generator (torch.Generator, optional): as in :func:`dropout`.

    Returns:
        Tensor: like input; input itself where training is False, p is 0 or there are no elements.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`dropout`.
    """
    if type(p) is not float or not 0.0 <= p <= 1.0:
        check_p("alpha_dropout", p)
    if not takes_dropout(input):
        return of_others(alpha_dropout, F.alpha_dropout, input, p, training, inplace, None, rng_state, generator)
    if not training or p == 0.0:
        return input
    return drop("alpha_dropout", input, p, inplace, rng_state, generator, None, alpha_transform(p))


def feature_alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    rng_state: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """:func:`alpha_dropout` of whole feature maps input[n, c].

    Args:
        input (Tensor[N, C, ...]): float32, float64, float16 or bfloat16 where something is dropped.
        p (float): probability of a feature map to be dropped, in [0, 1]. Default: 0.5.
        training (bool): apply dropout. Default: False, as in torch.
        inplace (bool): modify and return input. Default: False.
        rng_state (Tensor, optional): as in :func:`dropout`. Its stream numbers the feature maps n * C + c.
        generator (torch.Generator, optional): as in :func:`dropout`.

    Returns:
        Tensor: like input; input itself where training is False, p is 0 or there are no elements.

    Raises:
        ValueError, TypeError: as :func:`dropout`.
        RuntimeError: as :func:`dropout`, or input has less than two dimensions.
    """
    name = "feature_alpha_dropout"
    if type(p) is not float or not 0.0 <= p <= 1.0:
        check_p(name, p)
    if not takes_dropout(input):
        return of_others(
            feature_alpha_dropout, F.feature_alpha_dropout, input, p, training, inplace, None, rng_state, generator
        )
    if not training or p == 0.0:
        return input
    return drop(name, input, p, inplace, rng_state, generator, 2, alpha_transform(p))


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    scaling: str = "train",
    rng_state: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Zero each channel, a sequence input[n, c], with probability p, and multiply the others by 1 / (1 - p).

    Source: Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015.

    Args:
        input (Tensor[N, C, L] or Tensor[C, L]): float32, float64, float16 or bfloat16 where something is dropped.
        p (float): probability of a channel to be zeroed, in [0, 1]. Default: 0.5.
        training (bool): apply dropout. Default: True.
        inplace (bool): modify and return input. Default: False.
        scaling (str): "train" or "test", as in :func:`dropout`. Default: "train".
        rng_state (Tensor, optional): as in :func:`dropout`. Its stream numbers the channels n * C + c.
        generator (torch.Generator, optional): as in :func:`dropout`.

    Returns:
        Tensor: like input; input itself where training is False, p is 0 or there are no elements.

    Raises:
        ValueError, TypeError: as :func:`dropout`.
        RuntimeError: as :func:`dropout`, or input has neither two nor three dimensions.
    """
    if type(p) is not float or not 0.0 <= p <= 1.0:
        check_p("dropout1d", p)
    if not takes_dropout(input):
        return of_others(dropout1d, F.dropout1d, input, p, training, inplace, scaling, rng_state, generator)
    if input.dim() not in (2, 3):
        raise RuntimeError(
            f"dropout1d: input must have 2 or 3 dimensions, (N, C, L) or (C, L), got {input.dim()}: "
            "dropout has elements of any shape"
        )
    return _drop_channels("dropout1d", input, p, training, inplace, scaling, rng_state, generator, input.dim() - 1)


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    scaling: str = "train",
    rng_state: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Zero each channel, an image input[n, c], with probability p, and multiply the others by 1 / (1 - p).

    As in torch, three dimensions are taken for (N, C, L), with a warning, and other numbers but four are deprecated.

    Source: Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015.

    Args:
        input (Tensor[N, C, H, W]): float32, float64, float16 or bfloat16 where something is dropped.
        p (float): probability of a channel to be zeroed, in [0, 1]. Default: 0.5.
        training (bool): apply dropout. Default: True.
        inplace (bool): modify and return input. Default: False.
        scaling (str): "train" or "test", as in :func:`dropout`. Default: "train".
        rng_state (Tensor, optional): as in :func:`dropout`. Its stream numbers the channels n * C + c.
        generator (torch.Generator, optional): as in :func:`dropout`.

    Returns:
        Tensor: like input; input itself where training is False, p is 0 or there are no elements.

    Raises:
        ValueError, TypeError: as :func:`dropout`.
        RuntimeError: as :func:`dropout`, or input has less than two dimensions.
    """
    if type(p) is not float or not 0.0 <= p <= 1.0:
        check_p("dropout2d", p)
    if not takes_dropout(input):
        return of_others(dropout2d, F.dropout2d, input, p, training, inplace, scaling, rng_state, generator)
    if input.dim() == 3:
        _warn(
            "dropout2d: a 3-D input is taken for (N, C, L), and each of its sequences for a channel; a later release "
            "will take it for (C, H, W), as torch announces for its own. dropout1d is for (N, C, L)."
        )
    elif input.dim() != 4:
        _warn(
            f"dropout2d: input should have 4 dimensions, got {input.dim()}, which is deprecated and will be an error "
            "in a later release. dropout has elements of any shape."
        )
    return _drop_channels("dropout2d", input, p, training, inplace, scaling, rng_state, generator, 2)


def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    scaling: str = "train",
    rng_state: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Zero each channel, a volume input[n, c], with probability p, and multiply the others by 1 / (1 - p).

    As in torch, other numbers of dimensions than four and five are deprecated, and lack the dimension of samples.

    Source: Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015.

    Args:
        input (Tensor[N, C, D, H, W] or Tensor[C, D, H, W]): float32, float64, float16 or bfloat16 where something is
            dropped.
        p (float): probability of a channel to be zeroed, in [0, 1]. Default: 0.5.
        training (bool): apply dropout. Default: True.
        inplace (bool): modify and return input. Default: False.
        scaling (str): "train" or "test", as in :func:`dropout`. Default: "train".
        rng_state (Tensor, optional): as in :func:`dropout`. Its stream numbers the channels n * C + c.
        generator (torch.Generator, optional): as in :func:`dropout`.

    Returns:
        Tensor: like input; input itself where training is False, p is 0 or there are no elements.

    Raises:
        ValueError, TypeError: as :func:`dropout`.
        RuntimeError: as :func:`dropout`, or input has no dimension.
    """
    if type(p) is not float or not 0.0 <= p <= 1.0:
        check_p("dropout3d", p)
    if not takes_dropout(input):
        return of_others(dropout3d, F.dropout3d, input, p, training, inplace, scaling, rng_state, generator)
    if input.dim() not in (4, 5):
        _warn(
            f"dropout3d: input should have 4 or 5 dimensions, got {input.dim()}, which is deprecated and will be an "
            "error in a later release. dropout has elements of any shape."
        )
    dims = 2 if input.dim() == 5 else 1
    return _drop_channels("dropout3d", input, p, training, inplace, scaling, rng_state, generator, dims)


def alpha_transform(p):
    """The transform of the operators that keeps mean 0 and variance 1."""
    if p == 1.0:
        return None  # zeros
    a = ((_ALPHA**2 * p + 1.0) * (1.0 - p)) ** -0.5
    return (a, a * _ALPHA * p, a * _ALPHA * (p - 1.0))


def _drop_channels(name, input, p, training, inplace, scaling, rng_state, generator, dims):
    transform = None if scaling == "train" else unscaled(name, scaling)
    if not training:
        return input if transform is None else scaled(input, p, inplace)
    if p == 0.0:
        return input
    return drop(name, input, p, inplace, rng_state, generator, dims, transform)


def _warn(message):
    warnings.warn(message, stacklevel=3)
