"""Which layers are replaced or recognised: torch's own, their subclasses, and other libraries' by name.

Other libraries' classes are told by where they are defined, so that none is imported: see the tables below.
"""

import functools

from torch import Generator, Tensor, nn
from torch.nn.functional import gelu, mish
from torch.nn.modules.module import _has_any_global_hook

import fastreg.nn
from fastreg import _activation
from fastreg._activation import Activation
from fastreg.conversion.drop_path import Rule, rule_of
from fastreg.functional import _fused
from fastreg.nn.batch_norm import statistics_and_settings
from fastreg.nn.derived import CONVERTED, Derived, Unreadable, derive, exchange, kind_and_original, original_of, undone
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
# Modules whose forward calls their children one after the other, as nn.Sequential's does, and which these are.
_CONVOLUTION = ("convolution", "normalization")
CONTAINERS = {
    "timm.layers.conv_bn_act.ConvNormAct": ("conv", "bn"),
    "timm.layers.mlp.Mlp": ("fc1", "act", "drop1", "norm", "fc2", "drop2"),
    "transformers.models.regnet.modeling_regnet.RegNetConvLayer": (*_CONVOLUTION, "activation"),
    "transformers.models.regnet.modeling_regnet.RegNetShortCut": _CONVOLUTION,
    "transformers.models.resnet.modeling_resnet.ResNetConvLayer": (*_CONVOLUTION, "activation"),
    "transformers.models.resnet.modeling_resnet.ResNetShortCut": _CONVOLUTION,
}
# Dropout of samples: the attribute that is p, and the setting without which it is another function. Others are told by
# the source of their forward.
DROP_PATHS = {
    "fastreg.nn.dropout.DropPath": ("p", "scaling", "train"),
    "torchvision.ops.stochastic_depth.StochasticDepth": ("p", "mode", "row"),
    "timm.layers.drop.DropPath": ("drop_prob", "scale_by_keep", True),
}
# Activations: the name, and whether the module's attribute act is what computes it, where it has one.
ACTIVATIONS = {
    "timm.layers.activations.GELU": ("gelu", None),
    "timm.layers.activations.GELUTanh": ("gelu_tanh", None),
    "timm.layers.activations.HardSigmoid": ("hardsigmoid", None),
    "timm.layers.activations.HardSwish": ("hardswish", None),
    "timm.layers.activations.Mish": ("mish", None),
    "timm.layers.activations.Sigmoid": ("sigmoid", None),
    "timm.layers.activations.Swish": ("silu", None),
    "timm.layers.activations.Tanh": ("tanh", None),
    "transformers.activations.GELUActivation": ("gelu", lambda act: act is gelu),
    "transformers.activations.GELUTanh": ("gelu_tanh", lambda act: _is_gelu_tanh(act)),
    "transformers.activations.MishActivation": ("mish", lambda act: act is mish),
    "transformers.activations.SiLUActivation": ("silu", None),
}
# Modules whose result is a new tensor.
_MAKERS = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
# What a subclass may not define to be replaced: it would no longer be called, or called at other times.
_OVERRIDES = {"forward", "__call__", "_check_input_dim", "reset_parameters", "__getattr__", "__setattr__"}
_OVERRIDES |= {"_call_impl", "_wrapped_call_impl"}
_MAKERS_OF_OTHERS = {"timm.layers.squeeze_excite.SEModule", "torchvision.ops.misc.SqueezeExcitation"}


def _is_gelu_tanh(act):
    partial = type(act) is functools.partial and act.func is gelu
    return partial and not act.args and act.keywords == {"approximate": "tanh"}


def qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_hooked(module: nn.Module):
    """Whether a call of the module does more than its class's forward: true or false, though not a bool."""
    return (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or "_compiled_call_impl" in module.__dict__
    )


def replacement(cls: type) -> type | None:
    """The class that a layer of class cls gets; None where it keeps its own."""
    if cls in OURS:
        return OURS[cls]
    if qualified_name(cls) in NORMS_WITH_ACT:
        return derive(NormWithAct, cls)
    if cls.__module__ == "torch.nn.utils.parametrize":  # made for one module, and deleted from it by parametrize
        return undone(cls, OURS) if undone(cls, OURS) is not cls else None
    torchs = next((base for base in cls.__mro__ if base in OURS), None)
    if torchs is None or any(base in TORCHS for base in cls.__mro__):
        return None
    own = cls.__mro__[: cls.__mro__.index(torchs)]
    if any(_OVERRIDES & vars(base).keys() for base in own) or issubclass(torchs, nn.modules.lazy.LazyModuleMixin):
        return None
    return derive(Subclass, cls, OURS[torchs])


def replace(layer: nn.Module) -> None:
    try:
        new = replacement(type(layer))
    except Unreadable:  # reported
        return
    if new is None:
        return
    if not issubclass(new, NormWithAct):
        layer.__dict__[CONVERTED] = True
    exchange(layer, new)


class Subclass(Derived):
    """A user's subclass of one of torch's layers, that overrides no forward."""

    __slots__ = ()


class NormWithAct(Derived):
    """A batch norm that has children .drop and .act, which stay modules of their own where they are not known."""

    __slots__ = ()

    @staticmethod
    def methods(original):
        @functools.wraps(original.forward)
        def forward(self, x):
            if (node := traced_call(self, x)) is not None:
                return node
            drop, act = self.drop, self.act
            known = is_identity(drop) and not is_hooked(drop) and not is_hooked(act) and not _has_any_global_hook()
            if not known or (found := activation_of(act)) is None:
                return original.forward(self, x)
            self._check_input_dim(x)
            return _fused.batch_norm_act_with_count(x, *norm_arguments(self), found[0], act_weight=found[1])

        return {"forward": forward}


def kind_of(cls: type) -> str | None:
    """What a call of a module of this class computes, where that is known: norm, norm with act, activation, dropout,
    drop path, identity, container (its children, one after the other), or maker (a tensor that nobody else has)."""
    kind, original = kind_and_original(cls)
    name = qualified_name(original)
    if cls._call_impl is not nn.Module._call_impl or cls._wrapped_call_impl is not nn.Module._wrapped_call_impl:
        return None
    if kind is NormWithAct:
        return "norm with act"
    if cls is nn.Identity:
        return "identity"
    if (cls in TORCHS or kind is Subclass) and not issubclass(cls, fastreg.nn.SyncBatchNorm):
        if issubclass(cls, nn.modules.batchnorm._BatchNorm):
            return "norm"
        return "dropout" if issubclass(cls, fastreg.nn.Dropout) else None
    if name in FROZEN_NORMS:
        return "norm"
    if drop_path_rule(cls) is not None:
        return "drop path"
    if cls in _activation.OF_MODULE or name in ACTIVATIONS:
        return "activation"
    sequential = original.forward is nn.Sequential.forward and original.__iter__ is nn.Sequential.__iter__
    if sequential or name in CONTAINERS:
        return "container"
    return "maker" if cls in _MAKERS or name in _MAKERS_OF_OTHERS else None


def calls_its_children(container: nn.Module) -> bool:
    """Whether a container's forward calls all of its children, and nothing else, in their order."""
    children = CONTAINERS.get(qualified_name(original_of(type(container))))
    return children is None or tuple(container._modules) == children


def activation_of(module: nn.Module) -> tuple[Activation, Tensor | None] | None:
    """The activation and the learned slope that a module computes, or None."""
    found = _activation.of_module(module)
    if found is not None or (rule := ACTIVATIONS.get(qualified_name(type(module)))) is None:
        return found
    name, computes = rule
    if computes is not None and not computes(module.__dict__.get("act")):
        return None
    return _activation.NAMED[name], None


def is_identity(module: nn.Module) -> bool:
    return type(module) is nn.Identity


def is_norm(module: nn.Module) -> bool:
    """Whether a module computes batch norm and nothing else."""
    if isinstance(module, NormWithAct):
        return is_identity(module.drop) and is_identity(module.act)
    return kind_of(type(module)) == "norm"


def norm_arguments(module: nn.Module) -> tuple:
    """What batch_norm_with_count takes after the input."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return statistics_and_settings(module)
    return module.running_mean, module.running_var, None, module.weight, module.bias, False, 0.0, module.eps


_rules: dict[type, Rule | None] = {}


def drop_path_rule(cls: type) -> Rule | None:
    """How a class drops samples; None for classes that do not."""
    if cls not in _rules:
        _rules[cls] = _find_rule(cls)
    rule = _rules[cls]
    return rule if rule is None or rule.holds(cls) else None


def _find_rule(cls):
    if (known := DROP_PATHS.get(qualified_name(cls))) is not None:
        return Rule(*known, cls.forward)
    return rule_of(cls) if looks_like_drop_path(cls) else None


def looks_like_drop_path(cls: type) -> bool:
    """By its name, whatever it does."""
    name = cls.__name__.lower().replace("_", "")
    words = "droppath", "stochasticdepth", "dropconnect"
    return not cls.__module__.startswith("fastreg.") and any(word in name for word in words)


def is_drop_path(module: nn.Module) -> bool:
    return drop_path_rule(type(module)) is not None


def drop_probability(module: nn.Module) -> float | None:
    """p of a dropout or drop path in training; None where it is not a number in [0, 1], or what is dropped is scaled or
    drawn in another way than fastreg's."""
    rule = drop_path_rule(type(module))
    if rule is None and not isinstance(module, nn.modules.dropout._DropoutNd):
        return None
    attribute, setting, needed = ("p", "scaling", "train") if rule is None else rule[:3]
    p = getattr(module, attribute, None)
    # A tensor may need a gradient.
    if (type(p) is not float and type(p) is not int) or not 0.0 <= p <= 1.0:
        return None
    return p if not setting or getattr(module, setting, needed) == needed else None


def generator_of(module: nn.Module | None) -> Generator | None:
    """What a dropout of fastreg's, or None, draws from in place of the device's own generator."""
    return None if module is None else module.__dict__.get("generator")


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a batch norm or dropout of any library that is known here."""
    torchs = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return isinstance(module, torchs) or qualified_name(type(module)) in FROZEN_NORMS or is_drop_path(module)
