"""Which classes of other libraries drop samples, told by the source of their forward: nothing of it runs.

Drop path is written in few ways. A forward is one where its source is, but for names, annotations and the order of what
an ``or`` tests; or where it only calls a function whose source is.
"""

import ast
import functools
import itertools
import types
from collections.abc import Callable
from typing import NamedTuple

import torch

from fastreg.conversion.source import definition
from fastreg.nn.derived import Unreadable

# What is in braces is the module's: p, and whether what is kept is scaled.
_RETURNED = ("{p} == 0 or not {training}", "{p} is None or {p} == 0 or not {training}", "not {p} or not {training}")
_DRAWN = (
    "r = keep + torch.rand(shape, dtype=x.dtype, device=x.device); r.floor_()",
    "r = torch.rand(shape, dtype=x.dtype, device=x.device); r = torch.floor(r + keep)",
    "r = torch.rand(shape, dtype=x.dtype, device=x.device) + keep; r.floor_()",
    "r = x.new_empty(shape).bernoulli_(keep)",
)
_SCALED = (
    "return x / keep * r",
    "r.div_(keep); return x * r",
    "\n    if keep > 0: r.div_(keep)\n    return x * r",
    "\n    if keep > 0 and {scaled}: r.div_(keep)\n    return x * r",
)
_FORM = """def f(self, x):
    if {}: return x
    keep = 1 - {{p}}; shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    {}; {}
"""
_OF_MODULE = {name: f"self.{name}" for name in ("p", "training", "scaled")}


class Rule(NamedTuple):
    """How a class drops samples: p is its attribute called p, where its attribute called setting is as needed ("" for
    none). forward, and what the name called stands for among the forward's globals: what was read, and must be still.
    """

    p: str
    setting: str
    needed: object
    forward: Callable
    called: str = ""
    function: Callable | None = None

    def holds(self, cls: type) -> bool:
        if cls.forward is not self.forward:
            return False
        return not self.called or self.forward.__globals__.get(self.called) is self.function


def rule_of(cls: type) -> Rule | None:
    """How a class drops samples, where its forward is one that is known here."""
    forward = cls.forward
    try:
        node = definition(forward)
        itself, *inputs = _names(node)
        form, read, called = _Form(itself, {name: ast.Name("x") for name in inputs[:1]}), forward, ()
        call = _only_call(node)
        function = None if call is None else _global(forward, call.func.id)
        if isinstance(function, types.FunctionType):
            node, read, called = definition(function), function, (call.func.id, function)
            given = form.given_by(call, node)
            form = _Form(None, given, form.attributes)
    except Unreadable:
        return None
    if form.text(node) not in _forms() or _global(read, "torch") is not torch:
        return None
    p, setting = [*form.attributes, ""][:2]
    return Rule(p, setting, True, forward, *called)


def _global(function, name):
    code = function.__code__
    return None if name in code.co_varnames + code.co_freevars else function.__globals__.get(name)


def _names(node):
    return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]


def _only_call(node):
    """The call f(x, ...) of a global function that is all that a definition has."""
    body = _body(node)
    call = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
    return call if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else None


def _body(node):
    return node.body[1:] if ast.get_docstring(node) is not None else node.body


class _Form(ast.NodeTransformer):
    """Gives a definition's text, with names and the module's attributes numbered as they come.

    itself: the module's name. given: what stands for names, as it is to appear; the input is x.
    """

    def __init__(self, itself, given, attributes=()):
        self.itself, self.given, self.numbers, self.attributes = itself, given, {}, list(attributes)

    def given_by(self, call, callee):
        """What stands for the names of a called function's arguments."""
        names = _names(callee)
        given = dict(zip(reversed(names), reversed(callee.args.defaults), strict=False))
        given |= dict(zip(names, call.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in call.keywords}
        return {name: self.visit(given[name]) for name in names if name in given}

    def text(self, node):
        body = _body(node)
        if len(body) > 1 and isinstance(body[-1], ast.Return) and _is_name(body[-1].value, _target(body[-2])):
            body = [*body[:-2], ast.Return(body[-2].value)]
        return "\n".join(ast.unparse(self.visit(statement)) for statement in body)

    def visit_Name(self, node):
        if node.id in self.given:
            return self.given[node.id]
        if node.id == "torch":
            return node
        return ast.Name(self.numbers.setdefault(node.id, f"v{len(self.numbers)}"), node.ctx)

    def visit_Attribute(self, node):
        if _is_name(node.value, self.itself):
            if node.attr == "training":
                return ast.Name("training")
            if node.attr not in self.attributes:
                self.attributes.append(node.attr)
            return ast.Name(f"a{self.attributes.index(node.attr)}")
        return self.generic_visit(node)

    def visit_Constant(self, node):
        return ast.Constant(float(node.value)) if type(node.value) is int else node

    def visit_Call(self, node):
        if isinstance(node.func, ast.Attribute) and not node.keywords:
            value, name = node.func.value, node.func.attr
            if name == "dim" and not node.args:
                return self.visit(ast.Attribute(value, "ndim"))
            if name == "div" and len(node.args) == 1:
                return self.visit(ast.BinOp(value, ast.Div(), node.args[0]))
        return self.generic_visit(node)

    def visit_BoolOp(self, node):
        values = [self.visit(value) for value in node.values]
        if isinstance(node.op, ast.And):
            values = [value for value in values if not (isinstance(value, ast.Constant) and value.value is True)]
        else:
            values.sort(key=ast.unparse)
        return values[0] if len(values) == 1 else ast.BoolOp(node.op, values)


def _target(node):
    one = isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
    return node.targets[0].id if one else None


def _is_name(node, name):
    return isinstance(node, ast.Name) and node.id == name


@functools.cache
def _forms():
    texts = (_FORM.format(*parts).format(**_OF_MODULE) for parts in itertools.product(_RETURNED, _DRAWN, _SCALED))
    return {_Form("self", {"x": ast.Name("x")}).text(ast.parse(text).body[0]) for text in texts}
