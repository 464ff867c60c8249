"""A function's source, rewritten so that calls and sums may hold their values back: see :mod:`fastreg.conversion.held`.

Branches, loops, contexts, hooks, attributes and exceptions stay Python's own. A call of one argument, a sum, and a
known activation become steps; a local name that a step was assigned to gives its value wherever it is read for anything
but the next step. Before whatever is neither a step nor a quiet expression, what is held runs.

The rewritten code has the globals, closure, defaults and line numbers of the original.
"""

import ast
import copy
import functools
import inspect
import types
from collections.abc import Callable

import torch
from torch import nn

from fastreg.conversion import control_flow, held
from fastreg.conversion.liveness import Liveness, shared_names
from fastreg.conversion.reading import Reading
from fastreg.conversion.source import compiled, definition
from fastreg.nn.derived import Unreadable

HELPERS = {
    f"_fastreg_{function.__name__}": function
    for function in (
        held.call,
        held.call_function,
        held.call_method,
        held.add,
        held.iadd,
        held.value,
        held.flush,
        held.finish,
        control_flow.iterate,
        control_flow.truth,
        held.begin,
        held.runs_as_it_is,
    )
}
DEFINITION = "_fastreg_definition"  # the attribute of a rewritten function that holds it, and its body
SLOT, _OWNER, _ORIGINAL = "_fastreg_slot", "_fastreg_owner", "_fastreg_original"
_OF_ANY_SCOPE = {"locals", "vars", "dir", "eval", "exec", "globals"}  # functions that see local names


def _load(name):
    return ast.Name(name, ast.Load())


def _helper(name, *args, keywords=()):
    return ast.Call(_load(f"_fastreg_{name}"), [_load(SLOT), *args], list(keywords))


def _parsed(text):
    return ast.parse(text).body


class _Rewriter(ast.NodeTransformer):
    def __init__(self, node, reading):
        self.reading, self.last = reading, Liveness(node.body).last
        self.shared = shared_names(node)
        self.caught = False  # whether what a statement raises may be caught in this function
        self.holding: set[str] = set()  # names that may be what is held
        self._find_holding(node)

    def _find_holding(self, node):
        """Names that are assigned a step, or another such name."""
        found = None
        while found != self.holding:
            found = set(self.holding)
            for n in ast.walk(node):
                if isinstance(n, ast.Assign) and len(n.targets) == 1 and isinstance(n.targets[0], ast.Name):
                    step = self.reading.step(n.value) or (isinstance(n.value, ast.Name) and n.value.id in self.holding)
                    self._may_hold(n.targets[0].id, step)
                elif isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name) and isinstance(n.op, ast.Add):
                    self._may_hold(n.target.id, True)

    def _may_hold(self, name, step):
        if step and name not in self.shared and name in self.reading.locals and name != self.reading.itself:
            self.holding.add(name)

    # Expressions: operand() may give what is held; visit() gives a value.

    def operand(self, node):
        if isinstance(node, ast.Name):
            return node if id(node) in self.last or node.id not in self.holding else self.visit(node)
        kind = self.reading.step(node)
        if kind is None:
            return self.visit(node)
        if kind == "choice":
            if not self.reading.is_quiet_test(node.test):
                return self.generic_visit(node)
            return ast.IfExp(self.test(node.test), self.operand(node.body), self.operand(node.orelse))
        if kind == "add":
            left = self.operand(node.left) if self.reading.is_calm(node.right) else self.visit(node.left)
            return _helper("add", left, self.operand(node.right))
        if kind == "method":
            return _helper("call_method", self.operand(node.func.value), ast.Constant(node.func.attr))
        settings = [*node.args[1:], *(keyword.value for keyword in node.keywords)]
        first = self.operand(node.args[0]) if all(map(self.reading.is_calm, settings)) else self.visit(node.args[0])
        if kind == "call":
            return _helper("call", self.visit(node.func), first)
        if self.reading.global_value(node.func) is torch.add and len(node.args) == 2 and not node.keywords:
            rest = [self.operand(value) for value in node.args[1:]]
        else:
            rest = [self.visit(value) for value in node.args[1:]]
        return _helper("call_function", node.func, first, *rest, keywords=[self.visit(k) for k in node.keywords])

    def visit(self, node):
        if isinstance(node, ast.expr) and self.reading.step(node):
            return _helper("value", self.operand(node))
        return super().visit(node)

    def test(self, node):
        """An expression that is asked for its truth."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ast.UnaryOp(node.op, self.test(node.operand))
        if isinstance(node, ast.BoolOp):
            return ast.BoolOp(node.op, [self.test(value) for value in node.values])
        if isinstance(node, ast.Name | ast.Attribute):
            return _helper("truth", self.visit(node))
        return self.visit(node)

    def visit_IfExp(self, node):
        return ast.IfExp(self.test(node.test), self.visit(node.body), self.visit(node.orelse))

    def visit_Name(self, node):
        reads = isinstance(node.ctx, ast.Load) and node.id in self.holding
        return _helper("value", node) if reads else node

    def _leave(self, node):
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = _leave
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _leave

    # Statements: each gives a list.

    def block(self, body):
        return [new for statement in body for new in self.statement(statement)]

    def statement(self, node):
        method = getattr(self, f"_{type(node).__name__}", None)
        new = [*_flush(node), self.visit(node)] if method is None else method(node)
        for n in new:
            ast.copy_location(n, node)
        return new

    def _unless(self, calm, node):
        return [] if calm else _flush(node)

    def _Pass(self, node):
        return [node]

    _Global = _Nonlocal = _Pass

    def _Expr(self, node):
        if isinstance(node.value, ast.Constant):
            return [node]
        before = self._unless(self.reading.is_calm(node.value), node)
        return [
            *before,
            ast.Expr(self.operand(node.value) if self.reading.step(node.value) else self.visit(node.value)),
        ]

    def _Assign(self, node):
        calm = self.reading.is_calm(node.value) and all(isinstance(target, ast.Name) for target in node.targets)
        before = self._unless(calm, node)
        held_by_name = len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
        held_by_name = held_by_name and node.targets[0].id in self.holding
        if not held_by_name:
            return [*before, self.generic_visit(node)]
        return [*before, ast.Assign(node.targets, self._stored(self.operand(node.value)))]

    def _stored(self, node):
        """What a name is bound to: where an exception may be caught, a value, so that the name keeps its former one if
        there is none."""
        return _helper("value", node) if self.caught else node

    def _within(self, caught, body):
        outer, self.caught = self.caught, self.caught or caught
        new = self.block(body)
        self.caught = outer
        return new

    def _AnnAssign(self, node):
        if node.value is None or not isinstance(node.target, ast.Name):
            return [*_flush(node), self.visit(node)]
        return self._Assign(ast.copy_location(ast.Assign([node.target], node.value), node))

    def _AugAssign(self, node):
        if not isinstance(node.target, ast.Name) or node.target.id not in self.holding:
            return [*_flush(node), self.generic_visit(node)]
        target, load = node.target, _load(node.target.id)
        calm = self.reading.is_calm(node.value)
        before = self._unless(calm and isinstance(node.op, ast.Add), node)
        if not isinstance(node.op, ast.Add):
            taken = ast.Assign([target], _helper("value", load))
            return [*before, taken, ast.AugAssign(target, node.op, self.visit(node.value))]
        left = load if id(node) in self.last else _helper("value", load)
        return [*before, ast.Assign([target], self._stored(_helper("iadd", left, self.operand(node.value))))]

    def _Return(self, node):
        if node.value is None:
            return [*_flush(node), node]
        before = self._unless(self.reading.is_calm(node.value), node)
        return [*before, ast.Return(_helper("finish", self.operand(node.value)))]

    def _If(self, node):
        before = self._unless(self.reading.is_quiet_test(node.test), node)
        return [*before, ast.If(self.test(node.test), self.block(node.body), self.block(node.orelse))]

    def _Break(self, node):
        return [*_flush(node), node]

    _Continue = _Break

    def _While(self, node):
        loud = [] if self.reading.is_quiet_test(node.test) else _flush(node)
        body = [*self.block(node.body), *copy.deepcopy(loud)]
        return [*loud, ast.While(self.test(node.test), body, self.block(node.orelse))]

    def _For(self, node):
        body, orelse = self.block(node.body), self.block(node.orelse)
        if self.reading.is_quiet(node.iter) and isinstance(node.target, ast.Name):
            return [ast.For(node.target, _helper("iterate", self.visit(node.iter)), body, orelse)]
        loud = _flush(node)
        return [*loud, ast.For(self.visit(node.target), self.visit(node.iter), [*body, *copy.deepcopy(loud)], orelse)]

    def _With(self, node):
        swallows = not all(self.reading.is_context_of_torch(item.context_expr) for item in node.items)
        body = [*self._within(swallows, node.body), *_flush(node)]
        return [*_flush(node), ast.With([self.visit(item) for item in node.items], body)]

    def _Try(self, node):
        body, orelse = [*self._within(True, node.body), *_flush(node)], self.block(node.orelse)
        handlers = [ast.copy_location(self._handler(handler), handler) for handler in node.handlers]
        final = [*_flush(node), *self.block(node.finalbody)] if node.finalbody else []
        return [*_flush(node), type(node)(body, handlers, [*orelse, *_flush(node)] if orelse else [], final)]

    _TryStar = _Try

    def _handler(self, node):
        body = [*_flush(node), *self.block(node.body), *_flush(node)]
        return ast.ExceptHandler(node.type and self.visit(node.type), node.name, body)

    def _Match(self, node):
        cases = [ast.match_case(c.pattern, c.guard and self.visit(c.guard), self.block(c.body)) for c in node.cases]
        return [*_flush(node), ast.Match(self.visit(node.subject), cases)]


def _flush(node):
    return [ast.copy_location(n, node) for n in _parsed(f"if {SLOT}[0] is not None: _fastreg_flush({SLOT})")]


def rewrite(
    owner: type, name: str, quiet: Callable[[str], bool], in_training_only: bool = False
) -> types.FunctionType | None:
    """owner's method called name, rewritten; None where it has no steps.

    Where the method is replaced later, its new form runs. quiet: as in :class:`Reading`. in_training_only: in
    evaluation the original runs.

    Raises:
        Unreadable: the source cannot be had or rewritten.
    """
    function = getattr(owner, name)
    node = definition(function)
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    if seen := _OF_ANY_SCOPE & names:
        raise Unreadable(f"forward calls {', '.join(sorted(seen))}")
    itself = (node.args.posonlyargs + node.args.args)[0].arg
    if any(_asks_for_class(n, itself) for n in ast.walk(node)):
        raise _AsksForClass(f"{name} asks for the module's class, which would be another")
    rewriter = _Rewriter(node, Reading(node, function, quiet))
    if not any(rewriter.reading.step(n) for n in ast.walk(node) if isinstance(n, ast.expr)):
        return None
    docstring = node.body[:1] if ast.get_docstring(node) is not None else []
    body = rewriter.block(node.body[len(docstring) :])
    run = _module_and_input(node.args) if name == "forward" else ""
    as_it_is = [f"{_OWNER}.{name} is not {_ORIGINAL}"]
    as_it_is += [f"not {itself}.training"] if in_training_only else []
    as_it_is += [f"_fastreg_runs_as_it_is({run})"] if run else []
    replaced = _parsed(f"if {' or '.join(as_it_is)}: return {_OWNER}.{name}({_arguments(node.args)})")
    last = _parsed(f"return _fastreg_finish({SLOT})")
    node.body = [*docstring, *replaced, *_parsed(f"{SLOT} = _fastreg_begin({run})"), *body, *last]
    for new in node.body:
        ast.copy_location(new, node) if new not in body else None
    cells = {name: types.CellType(helper) for name, helper in HELPERS.items()}
    cells |= {_OWNER: types.CellType(owner), _ORIGINAL: types.CellType(function)}
    code = compiled(node, function, tuple(cells))
    cells |= dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[free] for free in code.co_freevars)
    new = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    new.__kwdefaults__, new.__doc__, new.__module__ = function.__kwdefaults__, function.__doc__, function.__module__
    new.__qualname__, new.__annotations__ = function.__qualname__, function.__annotations__
    new.__dict__.update(function.__dict__)
    new.__dict__[DEFINITION] = node, body
    return new


class _AsksForClass(Unreadable):
    """A class is left alone for it, whichever of its methods does."""


def _asks_for_class(node, itself):
    """self.__class__, type(self)"""
    if isinstance(node, ast.Attribute):
        return node.attr == "__class__" and isinstance(node.value, ast.Name) and node.value.id == itself
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"
    return called and len(node.args) == 1 and isinstance(node.args[0], ast.Name) and node.args[0].id == itself


def _arguments(arguments: ast.arguments) -> str:
    """A function's own arguments, handed on."""
    handed = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    handed += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    handed += [f"{a.arg}={a.arg}" for a in arguments.kwonlyargs]
    handed += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return ", ".join(handed)


def _module_and_input(arguments: ast.arguments) -> str:
    """The module and the first argument of a call of its forward; nothing where there is none."""
    given = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    return ", ".join(given[:2]) if len(given) > 1 else ""


def is_quiet_attribute(cls: type, name: str) -> bool:
    """Whether to read an attribute of a module of this class runs no code of the class's."""
    if cls.__getattr__ is not nn.Module.__getattr__ or cls.__getattribute__ is not object.__getattribute__:
        return False
    found = inspect.getattr_static(cls, name, None)
    return isinstance(found, types.FunctionType) or not hasattr(type(found), "__get__")


def rewritten_methods(cls: type, in_training_only: bool = False) -> dict[str, types.FunctionType]:
    """forward, and the methods that it and they call, rewritten, by name: those that have steps. in_training_only: a
    module in evaluation runs its forward as it is.

    Raises:
        Unreadable: forward cannot be rewritten.
    """
    return _rewritten(cls, in_training_only, *own_methods(cls))


@functools.lru_cache(maxsize=1024)  # a model has many modules of a class
def _rewritten(cls, in_training_only, *functions):
    found = {}
    for name in _method_names(cls):
        try:
            only = in_training_only and name == "forward"
            found[name] = rewrite(cls, name, lambda attribute: is_quiet_attribute(cls, attribute), only)
        except Unreadable as error:
            if name == "forward" or isinstance(error, _AsksForClass):
                raise
    return {name: function for name, function in found.items() if function is not None}


def own_methods(cls: type) -> list[types.FunctionType]:
    """forward, and the methods of cls that it and they may call."""
    return [getattr(cls, name) for name in _method_names(cls)]


def _method_names(cls):
    names = ["forward"]
    for name in names:  # which grows
        for called in getattr(getattr(getattr(cls, name), "__code__", None), "co_names", ()):
            own = isinstance(inspect.getattr_static(cls, called, None), types.FunctionType)
            if own and called not in names and called != "__init__" and not hasattr(nn.Module, called):
                names.append(called)
    return names
