"""Classes that are made at run time from a module's own class, and that pickle and copy like it."""

import copyreg

from torch import nn

CONVERTED = "_fastreg_converted"  # set on a layer whose class was torch's own
PLANS = "_fastreg_plans"  # what a fused parent keeps: made again where it is missing, so never copied or pickled


class Derived:
    """A base of every class made here, besides the original: ``isinstance(module, original)`` still holds."""

    __slots__ = ()

    def __reduce_ex__(self, protocol):
        original = type(self)._fastreg_recipe[1]
        function, arguments, *rest = original.__reduce_ex__(self, protocol)
        if function is not copyreg.__newobj__:
            return function, arguments, *rest
        if rest and isinstance(rest[0], dict):
            rest[0] = {name: value for name, value in rest[0].items() if name != PLANS}
        kind, original, others = type(self)._fastreg_recipe
        return _new, (kind, original, others), *rest


_classes: dict[tuple, type] = {}


def derive(kind: type[Derived], original: type[nn.Module], *others: type) -> type:
    """The class whose methods are those of kind, then of the others, then of original. The same one at each call.

    kind comes last among the bases, and without slots: an instance's class can only be exchanged for one of the same
    layout, which is that of the first base.
    """
    recipe = kind, original, others
    if recipe not in _classes:
        namespace = {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "_fastreg_recipe": recipe,
            "__reduce_ex__": Derived.__reduce_ex__,
        }
        if hasattr(kind, "make_forward"):
            namespace["forward"] = kind.make_forward(original)
        _classes[recipe] = type(original)(original.__name__, (*others, original, kind), namespace)
    return _classes[recipe]


def original_of(cls: type) -> type:
    """The class that a class was derived from, or itself."""
    return cls._fastreg_recipe[1] if issubclass(cls, Derived) else cls


def restore(module: nn.Module) -> None:
    """Undo what ``fastreg.convert`` made of a module's class, if it did."""
    if isinstance(module, Derived):
        module.__class__ = original_of(type(module))
    elif module.__dict__.pop(CONVERTED, False):
        module.__class__ = getattr(nn, type(module).__name__)  # fastreg.nn's have the names of torch's


def _new(kind, original, others):
    cls = derive(kind, original, *others)
    return cls.__new__(cls)
