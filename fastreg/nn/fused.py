"""Modules that compute what stands next to batch norm and dropout with them: see ``fastreg.functional``."""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.types import Device

from fastreg import _activation
from fastreg._activation import Activation
from fastreg.functional import _fused
from fastreg.nn import batch_norm, opacus
from fastreg.nn.dropout import generator_repr
from fastreg.nn.tracing import not_scriptable, traced_call
from fastreg.rng_states import check_is_generator

Act = str | Activation | tuple[str, float] | torch.nn.Module | None


def _check_p(name, argument, p):
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: {argument} must lie in [0, 1], got {p}")


# Not torch's _BatchNorm: what folds or replaces those would lose the activation.
class _BatchNormAct(torch.nn.modules.batchnorm._NormBase):
    _ranks: tuple[int, ...]  # of the inputs
    generator: Generator | None = None  # of modules that were made without

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
        act: Act = "relu",
        pre_act: Act = None,
        drop: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        name = type(self).__name__
        _check_p(name, "drop", drop)
        check_is_generator(name, generator)
        after = _activation.to_module(name, "act", act)
        before = _activation.to_module(name, "pre_act", pre_act)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        if not bias:
            self.bias = None
        self.act, self.pre_act, self.p = after.to(device, dtype), before.to(device, dtype), drop
        if generator is not None:
            self.generator = generator

    def reset_parameters(self) -> None:
        batch_norm.reset_parameters(self)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        inputs = (input,) if residual is None else (input, residual)
        if (node := traced_call(self, *inputs)) is not None:
            return node
        if input.dim() not in self._ranks:
            raise ValueError(
                f"{type(self).__name__}: input must have {' or '.join(map(str, self._ranks))} dimensions, "
                f"got {input.dim()}"
            )
        # Past the search through the module, as in batch_norm.statistics_and_settings.
        act, act_weight = _activation.of_child(self, "act")
        pre_act, pre_act_weight = _activation.of_child(self, "pre_act")
        return _fused.batch_norm_act_with_count(
            input,
            *batch_norm.statistics_and_settings(self),
            act,
            residual,
            pre_act,
            self.p if self.training else 0.0,
            act_weight,
            pre_act_weight,
            None,
            self.generator,
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", drop={self.p}" if self.p else "") + generator_repr(self.generator)

    parameters = opacus.parameters
    __prepare_scriptable__ = not_scriptable


class BatchNormAct1d(_BatchNormAct):
    """dropout(act(batch_norm(pre_act(input)) + residual)) of [N, C] or [N, C, L].

    Parameters, buffers and state_dict are those of :class:`torch.nn.BatchNorm1d`; a learned slope is ``act.weight``.
    Not a subclass of it: what folds or replaces batch norms leaves this alone. See
    :func:`fastreg.functional.batch_norm_act`.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as
            :class:`fastreg.nn.BatchNorm1d`.
        act (str, Activation, Module or None): applied to the normalised input plus the residual: a name, a name and
            its parameter, one of torch's modules, or None. Default: "relu".
        pre_act (str, Activation, Module or None): applied to the input. Default: None.
        drop (float): probability of an element to be zeroed at the end, in training. Default: 0.
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.

    Shape:
        - input, residual (optional) and output: [N, C] or [N, C, L].

    Raises:
        ValueError: an unknown activation, drop not in [0, 1], an input or residual of another shape, or one value
            per channel in training.
        TypeError: generator is no torch.Generator.
        RuntimeError: a residual of another dtype or device.
    """

    _ranks = (2, 3)


class BatchNormAct2d(_BatchNormAct):
    """dropout(act(batch_norm(pre_act(input)) + residual)) of [N, C, H, W]: see :class:`BatchNormAct1d`.

    Parameters, buffers and state_dict are those of :class:`torch.nn.BatchNorm2d`; a learned slope is ``act.weight``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as
            :class:`fastreg.nn.BatchNorm2d`.
        act, pre_act, drop, generator: as :class:`BatchNormAct1d`.

    Shape:
        - input, residual (optional) and output: [N, C, H, W].

    Raises:
        ValueError, RuntimeError: as :class:`BatchNormAct1d`.
    """

    _ranks = (4,)


class BatchNormAct3d(_BatchNormAct):
    """dropout(act(batch_norm(pre_act(input)) + residual)) of [N, C, D, H, W]: see :class:`BatchNormAct1d`.

    Parameters, buffers and state_dict are those of :class:`torch.nn.BatchNorm3d`; a learned slope is ``act.weight``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as
            :class:`fastreg.nn.BatchNorm3d`.
        act, pre_act, drop, generator: as :class:`BatchNormAct1d`.

    Shape:
        - input, residual (optional) and output: [N, C, D, H, W].

    Raises:
        ValueError, RuntimeError: as :class:`BatchNormAct1d`.
    """

    _ranks = (5,)


class ActDropout(torch.nn.Module):
    """dropout(act(input)) + residual. See :func:`fastreg.functional.act_dropout`.

    Args:
        act (str, Activation, Module or None): as in :class:`BatchNormAct1d`. Default: "relu".
        p (float): probability of an element, or with drop_path of a sample, to be zeroed in training. Default: 0.5.
        drop_path (bool): drop whole samples instead of elements. Default: False.
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.

    Shape:
        - input, residual (optional) and output: any; with drop_path [N, ...].

    Raises:
        ValueError: an unknown activation, p not in [0, 1], or a residual of another shape.
        TypeError: generator is no torch.Generator.
        RuntimeError: a residual of another dtype or device.
    """

    bias: Any  # a parameter of BiasActDropoutAdd, else None
    generator: Generator | None = None  # of modules that were made without

    def __init__(
        self, act: Act = "relu", p: float = 0.5, *, drop_path: bool = False, generator: Generator | None = None
    ) -> None:
        name = type(self).__name__
        _check_p(name, "p", p)
        check_is_generator(name, generator)
        super().__init__()
        if generator is not None:
            self.generator = generator
        self.act, self.p, self.drop_path = _activation.to_module(name, "act", act), p, drop_path
        self.register_parameter("bias", None)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        inputs = (input,) if residual is None else (input, residual)
        if (node := traced_call(self, *inputs)) is not None:
            return node
        act, act_weight = _activation.of_child(self, "act")
        return _fused.act_dropout(
            input,
            act,
            self.p,
            self.training,
            bias=self.bias,
            residual=residual,
            drop_path=self.drop_path,
            act_weight=act_weight,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        return f"p={self.p}" + (", drop_path=True" if self.drop_path else "") + generator_repr(self.generator)

    __prepare_scriptable__ = not_scriptable


class BiasActDropoutAdd(ActDropout):
    """dropout(act(input + bias)) + residual, for a linear layer that leaves its bias to this.

    See :func:`fastreg.functional.act_dropout`.

    Args:
        num_features (int): size of the input's last dimension C. The bias starts at zero.
        act (str, Activation, Module or None): as in :class:`BatchNormAct1d`. Default: None.
        p (float): probability of an element, or with drop_path of a sample, to be zeroed in training. Default: 0.5.
        drop_path (bool): drop whole samples instead of elements. Default: False.
        generator (torch.Generator, optional): draw from it in place of the device's own. Default: None.
        device, dtype: of the bias. Default: torch's defaults.

    Shape:
        - input, residual (optional) and output: [..., C].

    Raises:
        ValueError: an unknown activation, p not in [0, 1], or a residual of another shape.
        TypeError: generator is no torch.Generator.
        RuntimeError: an input of another last size, a residual of another dtype or device.
    """

    def __init__(
        self,
        num_features: int,
        act: Act = None,
        p: float = 0.5,
        *,
        drop_path: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(act, p, drop_path=drop_path, generator=generator)
        self.act.to(device, dtype)
        self.bias = torch.nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        return f"{self.bias.shape[0]}, {super().extra_repr()}"
