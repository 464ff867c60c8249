"""oneDNN's batch norm and dropout on torch's tensors, without autograd.

What is timed is the library, a call of a C function, and, but for providers called `given`, the allocation of the
results, which other providers' layers allocate as well. Its batch norm updates no running statistics. Importing this
loads the library, and raises ImportError where there is none."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from ctypes import c_int64

import torch
from torch import Tensor

from bench.timings import onednn_library
from bench.timings.cases import Case
from bench.timings.ops import P
from bench.timings.workloads import Entry, Workload

LAYOUTS = {"contiguous": 0, "channels_last": 1}
BLOCKED = 2
EPS = 1e-5


LIBRARY = onednn_library.load()


class _Operator:
    """One of the library's, for a case; `run` calls a function of it."""

    def __init__(self, name: str, case: Case, layout: int, *arguments):
        sizes = (c_int64 * len(case.shape))(*case.shape)
        make = getattr(LIBRARY, f"make_{name}")
        self._pointer = _checked(make(len(case.shape), sizes, layout, case.dtype == torch.bfloat16, *arguments))
        weakref.finalize(self, getattr(LIBRARY, f"free_{name}"), self._pointer)

    def run(self, function: str, *arguments: Tensor | int) -> None:
        pointers = (each.data_ptr() if isinstance(each, Tensor) else each for each in arguments)
        _checked(getattr(LIBRARY, function)(self._pointer, *pointers))


def _checked(result):
    if not result:
        raise RuntimeError(LIBRARY.last_error().decode())
    return result


class BatchNorm:
    """empty: makes the results, by default anew in each call."""

    def __init__(self, case: Case, layout: int, empty: Callable[[str, Callable[[], Tensor]], Tensor]):
        relu, self.evaluation = case.op == "batch_norm_relu", case.mode == "evaluation"
        self.operator = _Operator("batch_norm", case, layout, relu, self.evaluation, EPS)
        channels = case.shape[1]
        self.weight, self.bias = torch.ones(channels), torch.zeros(channels)
        self.mean, self.variance = torch.zeros(channels), torch.ones(channels)  # in evaluation
        self.gate_bytes = 0 if self.evaluation else LIBRARY.gate_bytes(self.operator._pointer)
        self.empty = empty

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(y, mean, variance, gate)"""
        y = self.empty("y", lambda: torch.empty_like(x))
        if self.evaluation:
            mean, variance = self.mean, self.variance
        else:
            mean, variance = (self.empty(n, lambda: torch.empty_like(self.mean)) for n in ("mean", "variance"))
        gate = self.empty("gate", lambda: torch.empty(self.gate_bytes, dtype=torch.uint8))
        self.operator.run("batch_norm_forward", x, self.weight, self.bias, mean, variance, gate, y)
        return y, mean, variance, gate

    def backward(self, x: Tensor, dy: Tensor, kept: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(dx, dweight, dbias)"""
        _, mean, variance, gate = kept
        dx = self.empty("dx", lambda: torch.empty_like(x))
        dweight, dbias = (self.empty(n, lambda: torch.empty_like(self.mean)) for n in ("dweight", "dbias"))
        statistics = self.weight, self.bias, mean, variance
        self.operator.run("batch_norm_backward", x, *statistics, gate, dy, dx, dweight, dbias)
        return dx, dweight, dbias


class Dropout:
    """Backward draws the mask again, by the seed."""

    def __init__(self, case: Case, layout: int, empty: Callable[[str, Callable[[], Tensor]], Tensor]):
        self.operator = _Operator("dropout", case, layout, P)
        self.seeds = itertools.count()
        self.empty = empty

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """(y, seed)"""
        y, seed = self.empty("y", lambda: torch.empty_like(x)), next(self.seeds)
        self.operator.run("apply_dropout", seed, x, y)
        return y, seed

    def backward(self, x: Tensor, dy: Tensor, kept: tuple[Tensor, int]) -> Tensor:
        """dx"""
        dx = self.empty("dx", lambda: torch.empty_like(x))
        self.operator.run("apply_dropout", kept[1], dy, dx)
        return dx


def allocated(name: str, make: Callable[[], Tensor]) -> Tensor:
    """A new tensor in each call, as a layer's results are."""
    return make()


class Given:
    """The same tensors in each call: what the library takes without allocation."""

    def __init__(self):
        self._tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self._tensors:
            self._tensors[name] = make()
        return self._tensors[name]


def operator(case: Case, blocked: bool = False, empty=allocated) -> BatchNorm | Dropout:
    """For the case, in its layout, or in blocks of channels, where tensors are only as much memory."""
    kind = Dropout if case.op == "dropout" else BatchNorm
    return kind(case, BLOCKED if blocked else LAYOUTS[case.layout], empty)


def workload(case: Case, inputs: list[Entry], blocked: bool = False, given: bool = False) -> Workload:
    """The case's calls; those of a backward pass have the forward pass's results beside them."""
    own = operator(case, blocked, Given() if given else allocated)
    if case.mode in ("forward", "evaluation"):
        return Workload(lambda entry: own.forward(entry[0]), inputs)
    calls = [(x, torch.randn_like(x)) for x, *_ in inputs]
    if case.mode == "both":
        return Workload(lambda call: own.backward(*call, own.forward(call[0])), calls)
    before = operator(case, blocked)
    calls = [(*call, before.forward(call[0])) for call in calls]
    return Workload(lambda call: own.backward(*call), calls)
