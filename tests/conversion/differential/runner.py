"""A program, run with its model plain and converted, and the first difference."""

import builtins
import contextlib
import copy
import itertools
import linecache
import pickle
import random
import sys
import types
import warnings
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

import fastreg
from fastreg.conversion import held
from fastreg.functional import _fused
from tests.conversion.differential.comparison import Difference, aliases, difference, seen, tensors_of
from tests.conversion.differential.support import in_threads

_isinstance = builtins.isinstance
_OWN = nn.Module().__dict__.keys() - {"training"}  # what modules have of torch's
_numbers = itertools.count()


@contextlib.contextmanager
def fused_calls():
    """How many fused functions are called within, as the only item of a list."""
    count, names = [0], ("batch_norm_act_with_count", "act_dropout")
    originals = {name: getattr(_fused, name) for name in names}

    def counting(function):
        def call(*args, **kwargs):
            count[0] += 1
            return function(*args, **kwargs)

        return call

    for name, function in originals.items():
        setattr(_fused, name, counting(function))
    try:
        yield count
    finally:
        for name, function in originals.items():
            setattr(_fused, name, function)


@contextlib.contextmanager
def same_masks():
    """torch's dropout draws fastreg's masks: a draw of the same size in the same place of the stream."""
    original, F.dropout = F.dropout, fastreg.functional.dropout
    try:
        yield
    finally:
        F.dropout = original


@contextlib.contextmanager
def loaded(code, source, filename):
    """The module of a program, with a source that can be looked up."""
    module = types.ModuleType(f"generated_program_{next(_numbers)}")
    module.__file__ = filename
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)
        yield module
    finally:
        del sys.modules[module.__name__]


class See:
    """What a program's script is given: it makes inputs, and keeps what there is to be seen."""

    def __init__(self, convert, revert, deterministic=True):
        self.convert, self.revert, self.deterministic = convert, revert, deterministic
        self.entries = []  # of each phase: kind, view
        self.model, self.handles, self.leaves = None, [], []
        self.stage, self.silent = "call", False

    def __call__(self, *values):
        flat = tensors_of(values)
        named = {name: t for name, t in [*self.model.named_parameters(), *self.model.named_buffers()]}
        self.add("output", seen(values))
        self.add("aliases", aliases(flat, named))

    def add(self, kind, view):
        self.entries[-1].append((kind, view))

    def note(self, *values):
        if not self.silent:
            kind = "backward hook" if values[0] == "backward" else "hook"
            self.add(kind, seen(values))

    @contextlib.contextmanager
    def phase(self, name):
        self.entries.append([])
        self.leaves, self.stage = [], "call"
        for parameter in self.model.parameters():
            parameter.grad = None
        torch.manual_seed(len(self.entries))
        random.seed(len(self.entries))
        with torch.set_grad_enabled(True):
            try:
                yield
            except Exception as error:
                self.add(f"error in {self.stage}", error)
            self.add("grad mode", torch.is_grad_enabled())
        self.add("builtins", builtins.isinstance is _isinstance)
        builtins.isinstance = _isinstance
        self.add("draws", [seen(torch.rand(1)), random.random()])
        self.add("input", [seen(leaf) for leaf in self.leaves])
        self.add("state", state_of(self.model))
        self.add("gradient", [seen(t.grad) for t in [*self.leaves, *self.model.parameters()]])

    def input(self, seed, shape, dtype, grad=True):
        generator = torch.Generator().manual_seed(seed)
        leaf = torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_(grad)
        self.leaves.append(leaf)
        return leaf

    def first(self, value):
        return tensors_of(value)[0]

    def backward(self, *values):
        self.stage = "backward"
        flat = [t for t in tensors_of(values) if t.requires_grad and not t.is_inference()]
        if flat:
            weighted = [
                (t * torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view(t.shape)).sum().double() for t in flat
            ]
            sum(weighted).backward()

    def until_end(self, handle):
        self.handles.append(handle)

    def hook_all(self, hook):
        """Add a forward hook of all modules."""
        self.until_end(nn.modules.module.register_module_forward_hook(hook))

    def wrap(self, module):
        """Patch a module's forward by a function that calls the former."""
        former = module.forward

        def forward(*args, **kwargs):
            self.note("wrapped", args)
            return former(*args, **kwargs)

        module.forward = forward

    def copied(self, model, how):
        self.model = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
        return self.model

    def threads(self, model, *inputs):
        """First calls of copies, while another thread calls another module."""
        copies = [copy.deepcopy(model) for _ in range(2)]
        inputs = [tensor.detach() for tensor in inputs]
        other, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.ones(2, 3)
        functions = [lambda c=c: c(*map(torch.clone, inputs)) for c in copies]
        functions.append(lambda: [other(x) for _ in range(20)][0].shape)
        self.silent = True
        results = in_threads(functions)
        self.silent = False
        torch.manual_seed(0)
        self.add(
            "result in threads", seen(results) if self.deterministic else [str(r) for r in results if type(r) is type]
        )


def state_of(model):
    """Parameters, buffers and attributes of all modules, but for what fastreg adds."""
    state = {}
    for name, module in model.named_modules():
        own = {k: v for k, v in module.__dict__.items() if k not in _OWN and not k.startswith("_fastreg")}
        state[name] = seen(own)
    return {"tensors": seen({**dict(model.named_parameters()), **dict(model.named_buffers())}), "modules": state}


def classes_of(model):
    """Classes and attributes' names of all modules: what revert gives back."""
    found = {}
    for name, module in model.named_modules():
        cls = type(module)
        found[name] = [cls.__qualname__, len(cls.__mro__), sorted(module.__dict__)]
    return found


@dataclass
class Run:
    entries: list = field(default_factory=list)
    fused: int = 0  # calls
    reported: int = 0  # sites


def run(code, source, filename, convert, revert, deterministic) -> Run:
    result = Run()
    with loaded(code, source, filename) as module, fused_calls() as count:
        see = See(convert, revert, deterministic)
        try:
            torch.manual_seed(0)
            see.model = convert(module.make())
            if see.convert is fastreg.convert:
                result.reported = len(fastreg.report(see.model).fused)
            module.script(see.model, see)
        finally:
            for handle in see.handles:
                handle.remove()
        see.entries.append([("classes after revert", classes_of(revert(see.model)))])
        result.entries, result.fused = see.entries, count[0]
    return result


@contextlib.contextmanager
def fused_from(size):
    """Operations on tensors of more elements than size are fused."""
    former, held.SMALL = held.SMALL, size
    try:
        yield
    finally:
        held.SMALL = former


@contextlib.contextmanager
def one_thread():
    """Tensors are tiny, and threads that wait take processors from other tests."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)


def same(model):
    return model


# What a converted model does not share with the plain one. (a, b): both in a program's text.
DIFFERENT_BY_DESIGN = (
    # Integers are refused before the batch is counted, not after.
    (".int())", ""),
    # A forward that was taken from a model before its class got another one runs the new one.
    ("see.wrap(", ".forward ="),
    # Past autograd, between forward and backward: what is computed again sees it, what was kept does not.
    ("weight.data", "backward"),
)


def check(program, convert=None, revert=None, record=None, source=None) -> Difference | None:
    """Run a program plain and converted.

    record, if given, gets both runs. source is another text for the model that is converted.
    """
    convert, revert = convert or fastreg.convert, revert or fastreg.revert
    if any(a in program.source and b in program.source for a, b in DIFFERENT_BY_DESIGN):
        return None
    filename = f"generated program {program.seed}, {next(_numbers)}.py"
    deterministic = not any(f.startswith("draws/") or f == "contexts/own rng" for f in program.features)
    small = 8192 if program.seed % 5 == 4 else -1  # all of a program's tensors are small
    with warnings.catch_warnings(), same_masks(), one_thread(), fused_from(small):
        warnings.simplefilter("ignore")
        code = compile(program.source, filename, "exec")
        try:
            plain = run(code, program.source, filename, same, same, deterministic)
            try:
                other = source or program.source
                code = compile(other, filename, "exec")
                ours = run(code, other, filename, convert, revert, deterministic)
            except Exception as error:
                return Difference(f"convert, report or revert: {type(error).__name__}", "", str(error)[:200])
        finally:
            linecache.cache.pop(filename, None)
            builtins.isinstance = _isinstance
    if record is not None:
        record(plain, ours)
    tolerance = 0.06 if program.half else 1e-7
    found = first_difference(plain, ours, tolerance, strides=False) or first_difference(plain, ours, tolerance)
    return found


def alike(plain, ours):
    """Whether errors are of the same type, or of one derived from it, or torch's backward alone fails."""
    if "error in backward" in plain and not ours:
        return True
    return plain.keys() == ours.keys() and all(isinstance(ours[at], type(error)) for at, error in plain.items())


def first_difference(plain: Run, ours: Run, tolerance: float, strides: bool = True) -> Difference | None:
    for number, (theirs, mine) in enumerate(zip(plain.entries, ours.entries, strict=True)):
        where = f"phase {number}"
        errors = [{kind: v for kind, v in entries if kind.startswith("error")} for entries in (theirs, mine)]
        if not alike(*errors):
            names = [", ".join(f"{type(e).__name__}{at[5:]}" for at, e in raised.items()) for raised in errors]
            texts = [", ".join(str(e)[:160] for e in raised.values()) for raised in errors]
            detail = f"plain raises {names[0] or 'nothing'} {texts[0]}, converted {names[1] or 'nothing'} {texts[1]}"
            return Difference(f"raises {names[1] or 'nothing'}", where, detail)
        if any(at == "error in call" for at in errors[0]):
            return None  # torch has counted the batch by then, and ours has not: from here on they may differ
        # Where torch's backward fails, there are no gradients to compare.
        left = {"gradient", "backward hook"} if "error in backward" in errors[0] else set()
        left |= {kind for kind in (*errors[0], *errors[1])}
        theirs, mine = ([entry for entry in entries if entry[0] not in left] for entries in (theirs, mine))
        for (kind, a), (other, b) in zip(theirs, mine, strict=False):
            if kind != other:
                return Difference("order of events", where, f"{kind} became {other}")
            loose = tolerance * (8 if kind in ("gradient", "backward hook") and tolerance > 0.01 else 1)
            if (found := difference(kind, where, a, b, loose, strides)) is not None:
                return found
        if len(theirs) != len(mine):
            return Difference("events", where, f"{[k for k, _ in theirs]} became {[k for k, _ in mine]}")
    return None
