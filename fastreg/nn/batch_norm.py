"""Batch norm modules.

In evaluation the gradient is a function of the running statistics, which a forward pass in training updates in place.
Backward through an evaluation forward that came before such a pass is therefore an error; in torch its gradient is a
wrong one. Call backward before the layer is run in training again.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import init
from torch.nn.parameter import is_lazy
from torch.types import Device

from fastreg._routing import is_sharded
from fastreg.functional import _batch_norm as F
from fastreg.nn import opacus
from fastreg.nn.tracing import not_scriptable, traced_call

# Running mean and variance, count, weight, bias, training, momentum, eps.
Settings = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, bool, float | None, float]


def _state(module):
    """(weight, bias, running_mean, running_var) of a module, past the search through it that costs a quarter of a
    small call."""
    try:
        parameters, buffers = module._parameters, module._buffers
        return parameters["weight"], parameters["bias"], buffers["running_mean"], buffers["running_var"]
    except KeyError:  # something stands in for one of them, such as a parametrisation
        return module.weight, module.bias, module.running_mean, module.running_var


def statistics_and_settings(module) -> Settings:
    """running_mean, running_var, num_batches_tracked, weight, bias, training, momentum and eps of a call of module.

    Statistics that are not to be updated are not passed; in evaluation they are used also if they are no longer
    tracked.
    """
    training, momentum = module.training, module.momentum
    weight, bias, running_mean, running_var = _state(module)
    count = None
    if not training:
        training = running_mean is None and running_var is None
    elif module.track_running_stats:
        try:
            count = module._buffers["num_batches_tracked"]
        except KeyError:
            count = module.num_batches_tracked
    else:
        running_mean = running_var = None
    if momentum is None and count is None:
        momentum = 0.0  # as torch has it: an average over batches that nobody counts stays as it is
    return running_mean, running_var, count, weight, bias, training, momentum, module.eps


def reset_parameters(module) -> None:
    """What torch's batch norm does; 2.11's does not know of bias=None."""
    module.reset_running_stats()
    if module.affine:
        init.ones_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)


class _Forward(torch.nn.modules.batchnorm._BatchNorm):
    """What all of fastreg's batch norms do differently from torch's."""

    def forward(self, input: Tensor) -> Tensor:
        if (node := traced_call(self, input)) is not None:
            return node
        if is_sharded(input):
            self._check_input_dim(input)
            return F.batch_norm_of_shards(input, *statistics_and_settings(self))
        if not F.takes_batch_norm(input):
            # By name: a bound forward that was taken before fastreg.revert runs on torch's layer.
            return torch.nn.modules.batchnorm._BatchNorm.forward(self, input)
        self._check_input_dim(input)
        return F.batch_norm_with_count(input, *statistics_and_settings(self))

    def reset_parameters(self) -> None:
        reset_parameters(self)

    parameters = opacus.parameters
    __prepare_scriptable__ = not_scriptable


class _BatchNorm(_Forward):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.bias = None


class _LazyBatchNorm(_Forward):
    has_uninitialized_params: Callable[[], bool]  # of torch's lazy modules, which the layers are besides

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        # torch's lazy layers take no num_features.
        torchs: Callable[..., None] = super().__init__
        torchs(eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.bias = None

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params() and self.num_features != 0:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor) -> None:
        # torch 2.11 does not know of bias=None.
        if self.has_uninitialized_params():
            self.num_features = input.shape[1]
            for tensor in (self.weight, self.bias, self.running_mean, self.running_var):
                if tensor is not None and is_lazy(tensor):
                    tensor.materialize((self.num_features,))
            self.reset_parameters()


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """Normalises each channel of [N, C] or [N, C, L]. In place of :class:`torch.nn.BatchNorm1d`.

    See :func:`fastreg.functional.batch_norm`.

    Args:
        num_features (int): number of channels C.
        eps (float): added to the variance. Default: 1e-5.
        momentum (float, optional): weight of a batch in the running statistics; None: their average over all
            batches. Default: 0.1.
        affine (bool): learn a weight per channel, and a bias. Default: True.
        track_running_stats (bool): keep running statistics, and use them in evaluation. Default: True.
        device, dtype: of parameters and statistics. Default: torch's defaults.
        bias (bool): with affine=False, or this False, no bias is learned. Default: True.

    Raises:
        ValueError: the input is not 2D or 3D, or has one value per channel in training.
    """


class LazyBatchNorm1d(_LazyBatchNorm, torch.nn.LazyBatchNorm1d):
    """A :class:`BatchNorm1d` that takes num_features from its first input, and becomes one then."""

    cls_to_become = BatchNorm1d


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """Normalises each channel of [N, C, H, W]. In place of :class:`torch.nn.BatchNorm2d`.

    See :func:`fastreg.functional.batch_norm`.

    Args:
        num_features (int): number of channels C.
        eps (float): added to the variance. Default: 1e-5.
        momentum (float, optional): weight of a batch in the running statistics; None: their average over all
            batches. Default: 0.1.
        affine (bool): learn a weight per channel, and a bias. Default: True.
        track_running_stats (bool): keep running statistics, and use them in evaluation. Default: True.
        device, dtype: of parameters and statistics. Default: torch's defaults.
        bias (bool): with affine=False, or this False, no bias is learned. Default: True.

    Raises:
        ValueError: the input is not 4D, or has one value per channel in training.
    """


class LazyBatchNorm2d(_LazyBatchNorm, torch.nn.LazyBatchNorm2d):
    """A :class:`BatchNorm2d` that takes num_features from its first input, and becomes one then."""

    cls_to_become = BatchNorm2d


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """Normalises each channel of [N, C, D, H, W]. In place of :class:`torch.nn.BatchNorm3d`.

    See :func:`fastreg.functional.batch_norm`.

    Args:
        num_features (int): number of channels C.
        eps (float): added to the variance. Default: 1e-5.
        momentum (float, optional): weight of a batch in the running statistics; None: their average over all
            batches. Default: 0.1.
        affine (bool): learn a weight per channel, and a bias. Default: True.
        track_running_stats (bool): keep running statistics, and use them in evaluation. Default: True.
        device, dtype: of parameters and statistics. Default: torch's defaults.
        bias (bool): with affine=False, or this False, no bias is learned. Default: True.

    Raises:
        ValueError: the input is not 5D, or has one value per channel in training.
    """


class LazyBatchNorm3d(_LazyBatchNorm, torch.nn.LazyBatchNorm3d):
    """A :class:`BatchNorm3d` that takes num_features from its first input, and becomes one then."""

    cls_to_become = BatchNorm3d
