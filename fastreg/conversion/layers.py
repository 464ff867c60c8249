"""Which layers are replaced or recognised: torch's own, their subclasses, and other libraries' by name.

Other libraries' classes are told by where they are defined, so that none is imported: see the tables below.
"""

import functools

from torch import Tensor, nn

import fastreg.nn
from fastreg import _activation
from fastreg._activation import Activation
from fastreg.nn.batch_norm import statistics_and_settings
from fastreg.nn.derived import CONVERTED, Derived, derive
from fastreg.nn.tracing import traced_call

# fastreg's class for each of torch's, and back.
OURS = {
    getattr(nn, name): getattr(fastreg.nn, name)
    for name in fastreg.nn.__all__
    if isinstance(getattr(nn, name, None), type)
}
TORCHS = {ours: torchs for torchs, ours in OURS.items()}

# Batch norms of constant statistics and parameters. Their class stays as it is.
FROZEN_NORMS = {"torchvision.ops.misc.FrozenBatchNorm2d"}
# Batch norms with children .drop and .act, which their forward calls in this order.
NORMS_WITH_ACT = {"timm.layers.norm_act.BatchNormAct2d"}
# Modules whose forward calls their children one after the other, as nn.Sequential's does.
CONTAINERS = {"timm.layers.conv_bn_act.ConvNormAct", "timm.layers.mlp.Mlp"}
# Dropout of samples: the attribute that is p, and the setting without which it is another function.
DROP_PATHS = {
    "fastreg.nn.dropout.DropPath": ("p", "scaling", "train"),
    "torchvision.ops.stochastic_depth.StochasticDepth": ("p", "mode", "row"),
    "timm.layers.drop.DropPath": ("drop_prob", "scale_by_keep", True),
}
ACTIVATIONS = {
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "timm.layers.activations.HardSigmoid": "hardsigmoid",
    "timm.layers.activations.HardSwish": "hardswish",
    "timm.layers.activations.Mish": "mish",
    "timm.layers.activations.Sigmoid": "sigmoid",
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.Tanh": "tanh",
}
# What a subclass may not define to be replaced: it would no longer be called, or called at other times.
_OVERRIDES = {"forward", "__call__", "_check_input_dim", "reset_parameters", "__getattr__", "__setattr__"}


def qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class's forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def replacement(cls: type) -> type | None:
    """The class that a layer of class cls gets; None where it keeps its own."""
    if cls in OURS:
        return OURS[cls]
    if qualified_name(cls) in NORMS_WITH_ACT:
        return derive(NormWithAct, cls)
    torchs = next((base for base in cls.__mro__ if base in OURS), None)
    if torchs is None or any(base in TORCHS for base in cls.__mro__):
        return None
    own = cls.__mro__[: cls.__mro__.index(torchs)]
    if any(_OVERRIDES & vars(base).keys() for base in own) or issubclass(torchs, nn.modules.lazy.LazyModuleMixin):
        return None
    return derive(Subclass, cls, OURS[torchs])


def replace(layer: nn.Module) -> None:
    new = replacement(type(layer))
    if new is None:
        return
    if new in TORCHS:
        layer.__dict__[CONVERTED] = True
    layer.__class__ = new


class Subclass(Derived):
    """A user's subclass of one of torch's layers, that overrides no forward."""

    __slots__ = ()


class NormWithAct(Derived):
    """A batch norm that has children .drop and .act."""

    __slots__ = ()

    @staticmethod
    def make_forward(original):
        from fastreg.conversion.sites import run_batch_norm_act

        @functools.wraps(original.forward)
        def forward(self, x):
            if (node := traced_call(self, x)) is not None:
                return node
            drop, act = self.drop, self.act
            if not is_identity(drop) or is_hooked(drop) or is_hooked(act) or activation_of(act) is None:
                return original.forward(self, x)
            return run_batch_norm_act(self, x, act=act)

        return forward


def activation_of(module: nn.Module) -> tuple[Activation, Tensor | None] | None:
    """The activation and the learned slope that a module computes, or None."""
    found = _activation.of_module(module)
    if found is None and (name := ACTIVATIONS.get(qualified_name(type(module)))) is not None:
        return _activation.parse("convert", "act", name), None
    return found


def is_identity(module: nn.Module) -> bool:
    return type(module) is nn.Identity


def is_norm(module: nn.Module) -> bool:
    """Whether a module computes batch norm and nothing else."""
    if isinstance(module, NormWithAct):
        return is_identity(module.drop) and is_identity(module.act)
    if qualified_name(type(module)) in FROZEN_NORMS:
        return True
    if isinstance(module, fastreg.nn.SyncBatchNorm):
        return False  # it has to ask other processes
    return (
        type(module) in TORCHS
        and isinstance(module, nn.modules.batchnorm._BatchNorm)
        or (isinstance(module, Subclass) and isinstance(module, nn.modules.batchnorm._BatchNorm))
    )


def norm_arguments(module: nn.Module) -> tuple:
    """What batch_norm_with_count takes after the input."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return statistics_and_settings(module)
    return module.running_mean, module.running_var, None, module.weight, module.bias, False, 0.0, module.eps


def is_dropout(module: nn.Module) -> bool:
    """Whether a module computes dropout of elements."""
    return type(module) is fastreg.nn.Dropout or (isinstance(module, Subclass) and isinstance(module, nn.Dropout))


def is_drop_path(module: nn.Module) -> bool:
    return qualified_name(type(module)) in DROP_PATHS


def drop_probability(module: nn.Module) -> float | None:
    """p of a call of dropout or drop path; None where it is scaled or drawn in another way than fastreg's."""
    if is_drop_path(module):
        attribute, setting, needed = DROP_PATHS[qualified_name(type(module))]
    else:
        attribute, setting, needed = "p", "scaling", "train"
    if getattr(module, setting, needed) != needed:
        return None
    return getattr(module, attribute) if module.training else 0.0


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a batch norm or dropout of any library that is known here."""
    torchs = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return isinstance(module, torchs) or qualified_name(type(module)) in FROZEN_NORMS or is_drop_path(module)
