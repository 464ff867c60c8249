"""Classes that are made at run time from a module's own class, and that pickle and copy like it."""

import abc
import copyreg
import threading
from typing import Any

from torch import nn

CONVERTED = "_fastreg_converted"  # set on a layer that has fastreg's class in place of torch's
# Set on a parent that fuses: the most elements of a first argument with which there was nothing worth it.
SMALL_INPUT = "_fastreg_small_input"


class Unreadable(Exception):
    """The source of a class's methods cannot be had, or not be rewritten; the message says why."""


class Derived:
    """A base of every class made here, besides the original: ``isinstance(module, original)`` still holds."""

    __slots__ = ()

    @staticmethod
    def methods(original: type) -> dict:
        """What the class defines beside what original does."""
        return {}


def _reduce(self, protocol):
    if (reduce := nn.Module.__reduce_ex__) is not object.__reduce_ex__:  # python -m fastreg run has another for all
        return reduce(self, protocol)
    recipe = _recipe(type(self))
    if recipe is None:  # a class that somebody else derived from one made here
        return super(_nearest(type(self)), self).__reduce_ex__(protocol)
    function, arguments, *rest = recipe[1].__reduce_ex__(self, max(protocol, 2))
    if function is not copyreg.__newobj__:  # pyright: ignore[reportAttributeAccessIssue]  its stubs lack it
        return function, arguments, *rest
    return _new, recipe, *rest


_classes: dict[tuple, type] = {}
_lock = threading.Lock()


def derive(kind: type[Derived], original: type[nn.Module], *others: type) -> type:
    """The class whose methods are those of kind, then of the others, then of original. The same one at each call.

    kind comes last among the bases, and without slots: an instance's class can only be exchanged for one of the same
    layout, which is that of the first base.

    Raises:
        Unreadable: the class sees what is derived from it, and may keep it or refuse; or its methods cannot be had.
    """
    check_derivable(original)
    recipe = kind, original, others
    key = *recipe, getattr(original, "forward", None)  # one that is replaced is rewritten anew
    with _lock:
        if key not in _classes:
            namespace = {
                "__module__": original.__module__,
                "__qualname__": original.__qualname__,
                "__doc__": original.__doc__,
                "_fastreg_recipe": recipe,
                "__reduce_ex__": _reduce,
                **kind.methods(original),
            }
            metaclass: Any = type(original)
            _classes[key] = metaclass(original.__name__, (*others, original, kind), namespace)
        return _classes[key]


def check_derivable(cls: type) -> None:
    """Raise Unreadable where a class sees what is derived from it."""
    if type(cls) not in (type, abc.ABCMeta):
        raise Unreadable(f"its class has a metaclass of its own, {type(cls).__name__}")
    if getattr(cls.__init_subclass__, "__func__", None) is not None:
        raise Unreadable("its class has an __init_subclass__, which sees each class that is derived")


def _recipe(cls):
    return vars(cls).get("_fastreg_recipe")


def _nearest(cls):
    return next(base for base in cls.__mro__ if _recipe(base) is not None)


def kind_and_original(cls: type) -> tuple[type[Derived] | None, type]:
    """The kind of class that was made from cls's original, and that original; None and itself for other classes."""
    recipe = _recipe(cls)
    return (None, cls) if recipe is None else recipe[:2]


def original_of(cls: type) -> type:
    """The class that a class was derived from, or itself."""
    return kind_and_original(cls)[1]


_rebased: dict[tuple, type] = {}


def undone(cls: type, replaced: dict[type, type]) -> type:
    """cls without what was made here: itself, its original, or, where somebody else derived a class from one made here
    (parametrisations and fully_shard do), a class like that one with other bases.

    replaced: classes among the bases, and what is to stand for them.
    """
    if cls in replaced:
        return replaced[cls]
    if _recipe(cls) is not None:
        return undone(original_of(cls), replaced)
    if cls is object or not issubclass(cls, nn.Module) or cls is nn.Module:
        return cls
    bases = tuple(undone(base, replaced) for base in cls.__bases__)
    if bases == cls.__bases__:
        return cls
    with _lock:
        if (cls, bases) not in _rebased:
            own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
            metaclass: Any = type(cls)
            _rebased[cls, bases] = metaclass(cls.__name__, bases, own)
        return _rebased[cls, bases]


def exchange(module: nn.Module, cls: type) -> None:
    """Give a module another class, whatever its own __setattr__ does."""
    object.__setattr__(module, "__class__", cls)


def restore(module: nn.Module) -> None:
    """Undo what ``fastreg.convert`` made of a module's class, if it did."""
    replaced = {}
    module.__dict__.pop(SMALL_INPUT, None)
    if module.__dict__.pop(CONVERTED, False):
        ours = [base for base in type(module).__mro__ if base.__module__.startswith("fastreg.nn.")]
        replaced = {base: getattr(nn, base.__name__) for base in ours if hasattr(nn, base.__name__)}
    cls = undone(type(module), replaced)
    if cls is not type(module):
        exchange(module, cls)


def _new(kind, original, others):
    cls: Any
    try:
        cls = derive(kind, original, *others)
    except Unreadable:  # a class that was pickled with its code
        cls = original
    return cls.__new__(cls)
