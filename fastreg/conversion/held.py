"""Values that are held back until what follows is known: what the calls and sums of a rewritten forward run.

At most one operation is held at a time, in the slot that each run of a forward has of its own. Whatever is not
known to do nothing but compute runs what is held first. So operations are only put together, never exchanged: those
that somebody could tell apart run in the order in which they stand.

    [activation] -> batch norm -> [+ residual] -> [activation] -> [dropout]
    [activation] -> dropout or drop path -> [+ residual]
"""

from types import BuiltinFunctionType, FunctionType

import torch
from torch import Tensor, is_grad_enabled, nn
from torch._C import _is_torch_function_mode_enabled, _is_tracing
from torch.compiler import is_compiling
from torch.jit import is_tracing
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from fastreg._routing import PLAIN_TYPES
from fastreg.conversion import layers, sites
from fastreg.nn.derived import SMALL_INPUT


class Abstract:
    """Stands for a tensor where a forward is only read: for :func:`fastreg.report`. Nothing is computed with it.

    training: the mode in which the forward is read. found: the sites that were.
    """

    __slots__ = ("training", "found")
    requires_grad = True

    def __init__(self, training, found):
        self.training, self.found = training, found


class Held:
    """An operation that is held back; or, once input is None, its value, which nobody else has while it is fresh.

    norm, drop: modules. pre_act, act: :class:`sites.Act`. Without a norm pre_act stands before the dropout.
    """

    # Not set by a constructor: there is one of these for each layer that is called.
    input = value = pre_act = norm = residual = act = drop = None
    fresh = False
    origin = None  # where a forward is only read, what this is a copy of


_TENSORS = PLAIN_TYPES | {Abstract}
# What a call of a module may be: hooks, and forward. Elsewhere, whoever stands in for it sees the call.
CALLS = {nn.Module._wrapped_call_impl}
# Elements on the CPU: two operations on so few cost less than to find out that they are one.
SMALL = 131072


def _run(held: Held) -> None:
    input, held.input = held.input, None
    if type(input) is Abstract:
        names = sites.parts(held.norm, held.pre_act, held.residual, held.act, held.drop)
        if len(names) > 1:
            input.found.append((held.origin or held, held.norm or held.drop, tuple(names)))
        held.value, held.fresh = input, True
    elif held.norm is not None and held.pre_act is held.residual is held.act is held.drop is None:
        held.value = held.norm(input)
    elif held.norm is not None:
        held.value = sites.run_batch_norm_act(held.norm, input, held.residual, held.pre_act, held.act, held.drop)
    elif held.drop is None:
        held.value = held.pre_act.call(input)
    elif held.pre_act is None and held.residual is None:
        held.value = held.drop(input)
    else:
        held.value = sites.run_act_dropout(held.drop, input, held.residual, held.pre_act)
    held.fresh = held.fresh or held.value is not input
    held.residual = None  # no tensor is kept longer than it would be


def begin(module: nn.Module | None = None, x=None) -> list:
    """The slot of a run of a forward: what is held; the most elements of small tensors, -1 where sizes are not to be
    asked for, as they may be symbolic; whether there may have been larger ones; and, if there were none, the module
    whose forward it is and the elements of x, its first argument, to be remembered."""
    most = -1 if is_compiling() or _is_tracing() else SMALL
    if most < 0 or type(x) is not Tensor or not x.is_cpu:
        return [None, most, True, None, 0]
    return [None, most, False, module, x.numel()]


def runs_as_it_is(module: nn.Module, x) -> bool:
    """Whether a forward of this first argument would find nothing that pays to be held, as far as is remembered."""
    if is_compiling() or type(x) is not Tensor or _is_tracing():
        return False
    return x.numel() <= module.__dict__.get(SMALL_INPUT, -1) and x.is_cpu


def flush(slot: list) -> None:
    """Run what is held."""
    held = slot[0]
    if held is not None:
        slot[0] = None
        _run(held)


def value(slot: list, x):
    """x itself, to be seen by anybody."""
    if type(x) is not Held:
        return x
    if x is slot[0]:
        flush(slot)
    x.fresh = False
    return x.value


def finish(slot: list, x=None):
    """What a forward returns: the value of x, with nothing left to run."""
    flush(slot)
    if not slot[2]:
        remembered = slot[3].__dict__
        remembered[SMALL_INPUT] = max(slot[4], remembered.get(SMALL_INPUT, 0))
    return x.value if type(x) is Held else x


def _is_watched():
    """Whether somebody sees each call of a module or function: hooks of all modules, the tracer of torch.jit, whose
    program is to be the plain one, or a mode of the user's."""
    return _has_any_global_hook() or is_tracing() or (not is_compiling() and _has_function_mode())


def _has_function_mode():
    if not _is_torch_function_mode_enabled():
        return False
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())


def _operand(slot, x):
    """(x's value, whether it is fresh), with nothing held."""
    if slot[0] is not None:
        flush(slot)
    return (x.value, x.fresh) if type(x) is Held else (x, False)


def _plain(slot, f, x):
    x, _ = _operand(slot, x)
    return x if type(x) is Abstract else f(x)


def call(slot: list, f, x):
    """f(x)."""
    cls = type(f)
    step, forward, single = STEPS.get(cls) or _classify(cls)
    if step is None or (forward is not None and (cls.forward is not forward or cls.__call__ not in CALLS)):
        return _plain(slot, f, x)
    if single:
        if slot[0] is None:
            if type(x) is Tensor:
                if slot[1] >= 0 and x.numel() <= slot[1] and x.is_cpu:
                    return f(x)
            elif type(x) is Held and _is_small(slot, x.value):
                x.fresh = False
                return f(x.value)
        slot[2] = True
    return step(slot, f, x)


def _is_small(slot, x):
    return slot[1] >= 0 and type(x) is Tensor and x.numel() <= slot[1] and x.is_cpu


def call_function(slot: list, f, x, *args, **kwargs):
    """f(x, ...) of a function that may be an activation or a sum."""
    if f is torch.add and len(args) == 1 and not kwargs:
        return add(slot, x, args[0])
    if slot[0] is None and _is_small(slot, x):
        return f(x, *args, **kwargs)
    if (act := sites.act_of_function(f, x, args, kwargs)) is not None:
        return _hold_act(slot, act, x)
    x, _ = _operand(slot, x)
    return x if type(x) is Abstract else f(x, *args, **kwargs)


def call_method(slot: list, x, name: str):
    """x.name() of a method that is an activation, if x is a tensor."""
    if type(x) is not Held and (type(x) not in _TENSORS or (slot[0] is None and _is_small(slot, x))):
        return getattr(_operand(slot, x)[0], name)()
    return _hold_act(slot, sites.act_of_method(name), x)


def add(slot: list, a, b):
    """a + b."""
    if slot[0] is None and type(a) is type(b) is Tensor:
        return a + b
    if (held := _with_residual(slot, a, b)) is not None:
        return held
    a, b = _operand(slot, a)[0], _operand(slot, b)[0]
    return a if type(a) is Abstract else b if type(b) is Abstract else a + b


def iadd(slot: list, a, b):
    """What a is after a += b. Where nobody else has a, its memory need not be written to."""
    if type(a) is Held and (a.fresh or a is slot[0]) and (held := _with_residual(slot, a, b)) is not None:
        return held
    a, b = _operand(slot, a)[0], _operand(slot, b)[0]
    if type(a) is Abstract or type(b) is Abstract:
        return a if type(a) is Abstract else b
    a += b
    return a


def _with_residual(slot, a, b):
    """What is held, one of a and b, with the other as its residual; None where it takes none."""
    held = slot[0]
    if held is None or (a is held) == (b is held) or held.residual is not None or held.act is not None:
        return None
    if (held.norm is None) == (held.drop is None):
        return None
    residual = b if a is held else a
    residual = residual.value if type(residual) is Held else residual
    if type(held.input) is Abstract:
        if type(residual) is not Abstract:
            return None
    elif not sites.can_be_residual(residual, held.input):
        return None
    held.residual = residual
    if held.norm is None:
        flush(slot)
    return held


# One step for each kind of module. Each gets what is held, or a value, as x.


def _norm(slot, f, x):
    held = slot[0]
    follows = x is held is not None and held.norm is None and held.drop is None
    if follows and _may_keep(held, norm=True) and not layers.is_hooked(f):
        held.norm = f
        return held
    x, _ = _operand(slot, x)
    if type(x) not in _TENSORS or layers.is_hooked(f) or _is_watched():
        return _plain(slot, f, x)
    slot[0] = held = Held()
    held.input, held.norm = x, f
    return held


def _norm_with_act(slot, f, x):
    return _norm(slot, f, x) if layers.is_norm(f) else _plain(slot, f, x)


def _act(slot, f, x):
    if layers.is_hooked(f) or (act := sites.act_of_module(f)) is None:
        return _plain(slot, f, x)
    return _hold_act(slot, act, x)


def _hold_act(slot, act, x):
    held = slot[0]
    if x is held is not None and held.norm is not None and held.act is None and _may_follow(act, held):
        held.act = act
        return held
    x, fresh = _operand(slot, x)
    alone = type(x) not in _TENSORS or (act.inplace and not fresh) or _is_watched()
    if alone or (type(x) is not Abstract and sites.is_cast(act, x)):
        return x if type(x) is Abstract else act.call(x)
    slot[0] = held = Held()
    held.input, held.fresh, held.pre_act = x, fresh, act
    return held


def _may_keep(held, norm):
    """Whether the input of a held activation may be kept for the backward pass. Where torch keeps the activation's
    result, that input must be fresh, as anybody else who has it may write to it. norm: whether a norm follows, which
    keeps its input in any case."""
    if held.fresh or not _has_backward(held):
        return True
    return sites.keeps_input(held.pre_act) if held.input.requires_grad else not norm


def _may_follow(act, held):
    """Whether a held batch norm may take an activation. With a residual those of more than two slopes would keep it
    for the backward pass, where torch keeps the sum, which nobody else has."""
    if type(held.input) is not Abstract and sites.is_cast(act, held.input):
        return False
    return held.residual is None or sites.keeps_bits(act) or not _has_backward(held)


def _has_backward(held):
    return held.input.training if type(held.input) is Abstract else is_grad_enabled()


def _identity(slot, f, x):
    if type(x) not in _HOLDABLE or layers.is_hooked(f) or _is_watched():
        return _plain(slot, f, x)
    return x


def _drop(slot, f, x):
    return _hold_drop(slot, f, x, True)


def _drop_path(slot, f, x):
    return _hold_drop(slot, f, x, False)


def _hold_drop(slot, f, x, of_elements):
    held = slot[0]
    tensor = x if type(x) is not Held else x.value if x.input is None else x.input
    training = f.training if type(tensor) is not Abstract else tensor.training
    p = layers.drop_probability(f)
    if p is None or type(tensor) not in _TENSORS or layers.is_hooked(f) or _is_watched():
        return _plain(slot, f, x)
    if not training or p == 0.0:
        return x
    if x is held is not None and held.norm is not None and held.drop is None and of_elements:
        held.drop = f
        flush(slot)
        return held
    if x is held is not None and held.norm is None and held.drop is None and _may_keep(held, norm=False):
        held.drop = f
        return held
    x, fresh = _operand(slot, x)
    if getattr(f, "inplace", False) and not fresh:
        return _plain(slot, f, x)
    slot[0] = held = Held()
    held.input, held.fresh, held.drop = x, fresh, f
    return held


def _maker(slot, f, x):
    y = _plain(slot, f, x) if slot[0] is not None or type(x) is not Tensor else f(x)
    if _is_small(slot, y) or not is_grad_enabled() or type(y) not in _TENSORS or layers.is_hooked(f):
        return y
    held = Held()
    held.value, held.fresh = y, True
    return held


def _container(slot, f, x):
    if type(x) not in _HOLDABLE or layers.is_hooked(f) or _is_watched() or not layers.calls_its_children(f):
        return _plain(slot, f, x)
    for module in f._modules.values():
        x = call(slot, module, x)
    return x


def _function(slot, f, x):
    return call_function(slot, f, x)


_HOLDABLE = _TENSORS | {Held}
# (step, the forward that it stands for, whether that is a single operation) of each class; the step is None where
# nothing is known.
_FUNCTIONS = {FunctionType: (_function, None, False), BuiltinFunctionType: (_function, None, False)}
STEPS = dict(_FUNCTIONS)
_MOST_CLASSES = 4096  # remembered; programs that make ever new ones do not fill the memory


def _classify(cls):
    if len(STEPS) > _MOST_CLASSES:
        STEPS.clear()
        STEPS.update(_FUNCTIONS)
    kind = layers.kind_of(cls) if issubclass(cls, nn.Module) else None
    STEPS[cls] = entry = _KINDS.get(kind), getattr(cls, "forward", None), kind not in ("container", "maker")
    return entry


_KINDS = {
    "norm": _norm,
    "norm with act": _norm_with_act,
    "activation": _act,
    "dropout": _drop,
    "drop path": _drop_path,
    "identity": _identity,
    "container": _container,
    "maker": _maker,
}
