"""Batch norm modules that normalise with the statistics of all processes' batches."""

import warnings
import weakref
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor
from torch.compiler import is_compiling
from torch.nn.parameter import is_lazy
from torch.types import Device

from fastreg import _activation
from fastreg._routing import is_transformed
from fastreg.functional import _batch_norm as F
from fastreg.functional import _fused
from fastreg.functional._dropout import dropout
from fastreg.functional._sync_batch_norm import sync_batch_norm
from fastreg.nn import derived
from fastreg.nn.batch_norm import _BatchNorm, _Forward, statistics_and_settings
from fastreg.nn.fused import Act, _BatchNormAct
from fastreg.nn.tracing import traced_call

Model = TypeVar("Model", bound=torch.nn.Module)
# On a layer that convert_sync_batchnorm converted: its class before.
_CONVERTED_FROM = "_fastreg_converted_from"
# What each layer's processes have agreed on: the group's name and the dtype of its statistics. Not an attribute: copies
# of a layer, on this or other processes, agree anew.
_agreed: weakref.WeakKeyDictionary[torch.nn.Module, tuple[str, torch.dtype]] = weakref.WeakKeyDictionary()


def _group_of(module, input):
    """The group that module normalises input with; None where that is this process alone.

    Raises RuntimeError where there is no group, or it does not go with input.
    """
    if not module.training:
        return None
    name = type(module).__name__
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise RuntimeError(
            f"{name}: process_group must be there in training, got none: call torch.distributed.init_process_group "
            "first, or fastreg.revert"
        )
    group: Any = module.process_group
    if group is None:
        group = torch.distributed.group.WORLD
    elif group is torch.distributed.GroupMember.NON_GROUP_MEMBER:
        raise RuntimeError(f"{name}: process_group must be one that this process is a member of, got another")
    if group.size() == 1:
        return None
    if not is_compiling():
        _agree(module, name, input, group)
    return group


def _agree(module, name, input, group):
    """Compare once what must be the same on all processes, before a collective waits for what never comes."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    terms = group.group_name, dtype
    if _agreed.get(module) == terms:
        return
    types = {device.type for device in group._device_types}
    if input.device.type not in types:
        raise RuntimeError(
            f"{name}: input must be on a device of process_group's backend, {' or '.join(sorted(types))}, "
            f"got {input.device}"
        )
    own = torch.tensor([input.shape[1], dtype.itemsize], device=input.device)
    others = [torch.empty_like(own) for _ in range(group.size())]
    torch.distributed.all_gather(others, own, group=group)
    others = torch.stack(others).tolist()
    for what, values in zip(("channels", "bytes per statistic"), zip(*others, strict=True), strict=True):
        if len(set(values)) > 1:
            raise RuntimeError(f"{name}: input must have as many {what} on every rank, got {list(values)} by rank")
    _agreed[module] = terms


class SyncBatchNorm(_BatchNorm):
    """Normalises each channel with the statistics of the batches of all processes together, in training.

    In place of :class:`torch.nn.SyncBatchNorm`, with its arguments, parameters and state_dict, and on the CPU as well.
    Not a subclass of it: ``DistributedDataParallel`` refuses those on the CPU. One collective forward and one backward
    each; one more in a layer's first call in training, which compares the number of channels of all processes (not in
    compiled code). Batches may have any sizes, 0 too. Gradients of weight and bias are those of this process's own
    batch, which ``DistributedDataParallel`` averages. Derivatives of first order only.

    In evaluation, and in a group of one process, it is :func:`fastreg.functional.batch_norm`.

    Args:
        num_features (int): number of channels C, the same on all processes.
        eps (float): added to the variance. Default: 1e-5.
        momentum (float, optional): weight of a batch in the running statistics; None: their average over all
            batches. Default: 0.1.
        affine (bool): learn a weight per channel, and a bias. Default: True.
        track_running_stats (bool): keep running statistics, and use them in evaluation. Default: True.
        process_group (ProcessGroup, optional): the processes whose batches belong together. Default: all.
        device, dtype: of parameters and statistics. Default: torch's defaults.
        bias (bool): with affine=False, or this False, no bias is learned. Default: True.

    Shape:
        - input and output: [N, C, ...].

    Raises:
        ValueError: the input has less than two dimensions, or not num_features channels.
        RuntimeError: there is no process group in training, this process is no member of it, it does not serve the
            input's device, its processes disagree on the number of channels, or one of them died.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: "torch.distributed.ProcessGroup | None" = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        if (node := traced_call(self, input)) is not None:
            return node
        _check_input(self, input)
        return _normalize(self, input)

    @classmethod
    def convert_sync_batchnorm(
        cls, module: Model, process_group: "torch.distributed.ProcessGroup | None" = None
    ) -> Model:
        """Convert every batch norm within a module, in place: torch's and fastreg's to :class:`SyncBatchNorm`, and
        ``BatchNormAct`` to :class:`SyncBatchNormAct`, which keeps activation, residual and dropout.

        Layers stay the same objects, with their parameters, hooks and state_dict; ``fastreg.revert`` undoes it.
        Batch norms with a forward of their own are left as they are, with a warning.

        Args:
            module (Module): may itself be a batch norm.
            process_group (ProcessGroup, optional): the processes whose batches belong together. Default: all.

        Returns:
            Module: ``module`` itself.

        Raises:
            ValueError: a lazy layer that has not seen its first input. Nothing is converted then.
        """
        layers = [layer for layer in module.modules() if isinstance(layer, _NORMS)]
        for layer in layers:
            if any(tensor is not None and is_lazy(tensor) for tensor in (layer.running_mean, layer.weight)):
                raise ValueError(
                    f"convert_sync_batchnorm: layers must have seen their first input, got {type(layer).__name__}"
                )
        for layer in layers:
            _convert(layer, process_group)
        return module


class SyncBatchNormAct(_BatchNormAct):
    """dropout(act(sync_batch_norm(pre_act(input)) + residual)).

    :class:`fastreg.nn.BatchNormAct2d` of any number of dimensions, with the statistics of all processes' batches: see
    :class:`SyncBatchNorm`. Parameters, buffers and state_dict are those of :class:`SyncBatchNorm`; a learned slope is
    ``act.weight``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype, bias: as
            :class:`SyncBatchNorm`.
        act, pre_act, drop, generator: as :class:`fastreg.nn.BatchNormAct1d`.

    Shape:
        - input, residual (optional) and output: [N, C, ...].

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`SyncBatchNorm` and :class:`fastreg.nn.BatchNormAct1d`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: "torch.distributed.ProcessGroup | None" = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        act: Act = "relu",
        pre_act: Act = None,
        drop: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
            act=act,
            pre_act=pre_act,
            drop=drop,
            generator=generator,
        )
        self.process_group = process_group

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        inputs = (input,) if residual is None else (input, residual)
        if (node := traced_call(self, *inputs)) is not None:
            return node
        _check_input(self, input)
        _fused._check_residual(type(self).__name__, input, residual)
        act, act_weight = _activation.of_child(self, "act")
        pre_act, pre_act_weight = _activation.of_child(self, "pre_act")
        output = _normalize(self, _activation.apply(pre_act, input, pre_act_weight))
        if residual is not None:
            output = output + residual
        output = _activation.apply(act, output, act_weight)
        return dropout(output, self.p, generator=self.generator) if self.p and self.training else output


def _check_input(module, input):
    name = type(module).__name__
    if input.dim() < 2:
        raise ValueError(f"{name}: input must have at least 2 dimensions, got {input.dim()}")
    if input.shape[1] != module.num_features:
        raise ValueError(f"{name}: input must have {module.num_features} channels, got {input.shape[1]}")


def _normalize(module, input):
    group = _group_of(module, input)
    ours = F.takes_batch_norm(input)
    settings: tuple[Any, ...] = statistics_and_settings(module)
    if group is None:
        return (F.batch_norm_with_count if ours else _fused._batch_norm_of_others)(input, *settings)
    if not ours or is_transformed():
        raise NotImplementedError(
            f"{type(module).__name__}: input must be one that fastreg's operators take, outside of torch.func, got "
            f"{type(input).__name__} of {input.dtype} on {input.device}"
        )
    *tensors, _, momentum, eps = settings
    return sync_batch_norm(input, *tensors, momentum=momentum, eps=eps, group=group)


_NORMS = (torch.nn.modules.batchnorm._BatchNorm, _BatchNormAct)
_FORWARDS = (
    torch.nn.modules.batchnorm._BatchNorm.forward,
    torch.nn.SyncBatchNorm.forward,
    _Forward.forward,
    SyncBatchNorm.forward,
)


def _convert(layer, process_group):
    if isinstance(layer, _BatchNormAct):
        cls = SyncBatchNormAct
    elif type(layer).forward in _FORWARDS:
        cls = SyncBatchNorm
    else:
        warnings.warn(
            "convert_sync_batchnorm: batch norms must have torch's or fastreg's forward, got "
            f"{type(layer).__name__}, which is left as it is",
            stacklevel=3,
        )
        return
    if not isinstance(layer, cls):
        derived.restore(layer)  # undoes what fastreg.convert did, so that there is one class to come back to
        layer.__dict__[_CONVERTED_FROM] = type(layer)
        layer.__class__ = cls  # pyright: ignore[reportAttributeAccessIssue]  neither is a subclass of the other
    layer.process_group = process_group


def restore(layer: torch.nn.Module) -> None:
    """Undo what convert_sync_batchnorm did to a layer, if it did."""
    original = layer.__dict__.pop(_CONVERTED_FROM, None)
    if original is None:
        return
    layer.__class__ = original
    if not issubclass(original, torch.nn.SyncBatchNorm):
        del layer.process_group
