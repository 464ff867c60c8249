"""What branches and loops of a rewritten forward ask of values; where that may run code of the user's, what is held
runs before."""

from types import FunctionType

from torch import nn

from fastreg.conversion.held import flush


def truth(slot: list, x) -> bool:
    """bool(x); where that may run code, or read what somebody writes to, what is held runs before."""
    if type(x) not in _QUIET_TRUTHS and not _is_plain_module(x):
        flush(slot)
    return bool(x)


def _is_plain_module(x):
    cls = type(x)
    if not isinstance(x, nn.Module) or hasattr(cls, "__bool__"):
        return False
    return getattr(cls, "__len__", None) in _QUIET_LENGTHS


def iterate(slot: list, iterable):
    """The items of iterable; where its own code is not known, what is held runs before each."""
    if type(iterable) in _QUIET_ITERABLES or getattr(type(iterable), "__iter__", None) in _QUIET_ITERATIONS:
        return iterable
    return _flushing(slot, iterable)


def _flushing(slot, iterable):
    for item in iterable:
        yield item
        flush(slot)


_QUIET_TRUTHS = {type(None), bool, int, float, str, list, tuple, dict, FunctionType}
_QUIET_LENGTHS = {None, nn.Sequential.__len__, nn.ModuleList.__len__, nn.ModuleDict.__len__}
_QUIET_ITERABLES = {list, tuple, range}
_QUIET_ITERATIONS = {nn.ModuleList.__iter__, nn.Sequential.__iter__}
