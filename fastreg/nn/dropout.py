"""Dropout modules."""

import torch
from torch import Generator, Tensor
from torch.types import Device

from fastreg import functional as F
from fastreg.nn import opacus
from fastreg.nn.tracing import not_scriptable, traced_call
from fastreg.rng_states import check_is_generator

# A forward asks nothing of the module's class, which may have been exchanged: a bound forward that was taken before
# fastreg.revert runs on torch's layer.


def _forward_of(function):
    def forward(self, input: Tensor) -> Tensor:
        if (node := traced_call(self, input)) is not None:
            return node
        return function(input, self.p, self.training, self.inplace, generator=getattr(self, "generator", None))

    return forward


def _scaled_forward_of(function):
    def forward(self, input: Tensor) -> Tensor:
        if (node := traced_call(self, input)) is not None:
            return node
        scaling, generator = getattr(self, "scaling", "train"), getattr(self, "generator", None)
        return function(input, self.p, self.training, self.inplace, scaling=scaling, generator=generator)

    return forward


def generator_repr(generator: Generator | None) -> str:
    """What extra_repr says of a generator."""
    return "" if generator is None else f", generator=torch.Generator({str(generator.device)!r})"


class _Dropout(torch.nn.modules.dropout._DropoutNd):
    """What all of fastreg's dropouts do differently from torch's."""

    generator: Generator | None = None  # of modules that were made without

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: Generator | None = None) -> None:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"{type(self).__name__}: p must lie in [0, 1], got {p}")
        check_is_generator(type(self).__name__, generator)
        super().__init__(p, inplace)
        if generator is not None:
            self.generator = generator

    def extra_repr(self) -> str:
        return super().extra_repr() + generator_repr(self.generator)

    __prepare_scriptable__ = not_scriptable


class _ScaledDropout(_Dropout):
    """Dropout that can scale in evaluation instead of training."""

    scaling = "train"  # of modules that were made without

    def __init__(
        self, p: float = 0.5, inplace: bool = False, *, scaling: str = "train", generator: Generator | None = None
    ) -> None:
        if scaling not in ("train", "test"):
            raise ValueError(f"{type(self).__name__}: scaling must be 'train' or 'test', got {scaling!r}")
        super().__init__(p, inplace, generator=generator)
        if scaling != "train":
            self.scaling = scaling

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.scaling == "train" else f", scaling={self.scaling!r}")


class Dropout(_ScaledDropout, torch.nn.Dropout):
    """Zeroes each element with probability p in training, and scales the others by 1 / (1 - p).

    In place of :class:`torch.nn.Dropout`; see :func:`fastreg.functional.dropout`.

    Args:
        p (float): probability of an element to be zeroed. Default: 0.5.
        inplace (bool): modify the input. Default: False.
        scaling (str): "train", or "test": scale by 1 - p in evaluation instead. Default: "train".
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.

    Shape:
        - input and output: any.

    Raises:
        ValueError: p is not in [0, 1], or scaling is unknown.
        TypeError: generator is no torch.Generator.
    """

    forward = _scaled_forward_of(F.dropout)


class Dropout1d(_ScaledDropout, torch.nn.Dropout1d):
    """Zeroes each channel with probability p in training, and scales the others by 1 / (1 - p).

    In place of :class:`torch.nn.Dropout1d`; see :func:`fastreg.functional.dropout1d`.

    Args:
        p (float): probability of a channel to be zeroed. Default: 0.5.
        inplace (bool): modify the input. Default: False.
        scaling (str): "train", or "test": scale by 1 - p in evaluation instead. Default: "train".
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.

    Shape:
        - input and output: [N, C, L] or [C, L].

    Raises:
        ValueError: p is not in [0, 1], or scaling is unknown.
        TypeError: generator is no torch.Generator.
        RuntimeError: the input has another number of dimensions.
    """

    forward = _scaled_forward_of(F.dropout1d)


class Dropout2d(_ScaledDropout, torch.nn.Dropout2d):
    """Zeroes each channel with probability p in training, and scales the others by 1 / (1 - p).

    In place of :class:`torch.nn.Dropout2d`; see :func:`fastreg.functional.dropout2d`.

    Args:
        p (float): probability of a channel to be zeroed. Default: 0.5.
        inplace (bool): modify the input. Default: False.
        scaling (str): "train", or "test": scale by 1 - p in evaluation instead. Default: "train".
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.

    Shape:
        - input and output: [N, C, H, W]; with a warning, and as torch treats them, others of two dimensions or more.

    Raises:
        ValueError: p is not in [0, 1], or scaling is unknown.
        TypeError: generator is no torch.Generator.
    """

    forward = _scaled_forward_of(F.dropout2d)


class Dropout3d(_ScaledDropout, torch.nn.Dropout3d):
    """Zeroes each channel with probability p in training, and scales the others by 1 / (1 - p).

    In place of :class:`torch.nn.Dropout3d`; see :func:`fastreg.functional.dropout3d`.

    Args:
        p (float): probability of a channel to be zeroed. Default: 0.5.
        inplace (bool): modify the input. Default: False.
        scaling (str): "train", or "test": scale by 1 - p in evaluation instead. Default: "train".
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.

    Shape:
        - input and output: [N, C, D, H, W] or [C, D, H, W]; with a warning, and as torch treats them, others.

    Raises:
        ValueError: p is not in [0, 1], or scaling is unknown.
        TypeError: generator is no torch.Generator.
    """

    forward = _scaled_forward_of(F.dropout3d)


class AlphaDropout(_Dropout, torch.nn.AlphaDropout):
    """Sets elements to SELU's saturation value with probability p in training, and keeps mean 0 and variance 1.

    In place of :class:`torch.nn.AlphaDropout`, but inplace works: torch's ignores it. See
    :func:`fastreg.functional.alpha_dropout`.

    Args:
        p (float): probability of an element to be dropped. Default: 0.5.
        inplace (bool): modify the input. Default: False.
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.

    Shape:
        - input and output: any.

    Raises:
        ValueError: p is not in [0, 1].
        TypeError: generator is no torch.Generator.
    """

    forward = _forward_of(F.alpha_dropout)


class FeatureAlphaDropout(_Dropout, torch.nn.FeatureAlphaDropout):
    """:class:`AlphaDropout` of whole channels.

    In place of :class:`torch.nn.FeatureAlphaDropout`, but inplace works: torch's ignores it. See
    :func:`fastreg.functional.feature_alpha_dropout`.

    Args:
        p (float): probability of a channel to be dropped. Default: 0.5.
        inplace (bool): modify the input. Default: False.
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.

    Shape:
        - input and output: [N, C, ...].

    Raises:
        ValueError: p is not in [0, 1].
        TypeError: generator is no torch.Generator.
    """

    forward = _forward_of(F.feature_alpha_dropout)


class DropPath(_ScaledDropout):
    """Stochastic depth: zeroes each sample with probability p in training, and scales the others by 1 / (1 - p).

    ``forward(input, residual=None)`` returns residual + the result in one pass: ``x = drop_path(block(x), x)`` for
    ``x = x + drop_path(block(x))``. See :func:`fastreg.functional.drop_path`.

    Args:
        p (float): probability of a sample to be zeroed. Default: 0.5.
        inplace (bool): modify the input; then without a residual. Default: False.
        scaling (str): "train", or "test": scale by 1 - p in evaluation instead. Default: "train".
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.

    Shape:
        - input, residual and output: [N, ...].

    Raises:
        ValueError: p is not in [0, 1], or scaling is unknown.
        TypeError: generator is no torch.Generator.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        inputs = (input,) if residual is None else (input, residual)
        if (node := traced_call(self, *inputs)) is not None:
            return node
        settings = {"scaling": self.scaling, "generator": self.generator}
        return F.drop_path(input, self.p, self.training, self.inplace, residual=residual, **settings)


class DropConnectLinear(torch.nn.Linear):
    """A linear layer that zeroes each weight with probability p in training, and scales the others by 1 / (1 - p).

    One mask per call for all samples, and none for the bias; evaluation uses the weights as they are. (Wan et al. draw
    a mask per sample, also for the bias, and sample the output in evaluation.) Parameters and state_dict are those of
    :class:`torch.nn.Linear`. Weights are dropped by :func:`fastreg.functional.dropout`.

    Source: Wan et al., "Regularization of neural networks using DropConnect", ICML 2013.

    Args:
        in_features (int): size of each input sample.
        out_features (int): size of each output sample.
        bias (bool): learn a bias. Default: True.
        device, dtype: of the parameters. Default: torch's defaults.
        p (float): probability of a weight to be zeroed. Default: 0.5.
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.

    Shape:
        - input: [..., in_features]; output: [..., out_features].

    Raises:
        ValueError: p is not in [0, 1].
        TypeError: generator is no torch.Generator.
    """

    generator: Generator | None = None  # of modules that were made without

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        p: float = 0.5,
        generator: Generator | None = None,
    ) -> None:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"DropConnectLinear: p must lie in [0, 1], got {p}")
        check_is_generator("DropConnectLinear", generator)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.p = p
        if generator is not None:
            self.generator = generator

    def forward(self, input: Tensor) -> Tensor:
        if (node := traced_call(self, input)) is not None:
            return node
        weight = F.dropout(self.weight, self.p, self.training, generator=self.generator)
        return torch.nn.functional.linear(input, weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}{generator_repr(self.generator)}"

    parameters = opacus.parameters
    __prepare_scriptable__ = not_scriptable
