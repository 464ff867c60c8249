"""Reads a rewritten forward without running it: which sites it has, for a module as it is now.

Statements are followed with what is known of the module: its children, settings and containers. Where a branch depends
on anything else, both ways are read. Only the steps are run, on :class:`held.Abstract` in place of tensors: what they
would put together is what they do put together. No code of the module's runs.
"""

import ast
import builtins
import contextlib
import copy
import inspect
import operator
import types
from collections.abc import Callable

import torch
from torch import nn

from fastreg.conversion import layers
from fastreg.conversion.held import Abstract, Held, begin
from fastreg.conversion.rewriting import DEFINITION, HELPERS, SLOT

_DEPTH = 8  # of methods that call each other
_COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp
_COMPARISONS = {ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le}
_COMPARISONS |= {ast.Gt: operator.gt, ast.GtE: operator.ge, ast.In: lambda a, b: a in b}


class _Left(Exception):
    """return, break or continue."""


def read(module: nn.Module, methods: dict[str, Callable], training: bool) -> tuple[list, list[nn.Module]]:
    """What a forward has: its sites, (the batch norm or dropout that it is named by, what is fused), in their order;
    and the modules that would have been fused with a batch norm, were they known.

    methods: the rewritten ones of the module's class.
    """
    tensor, unknown = Abstract(training, []), []
    _Reader(module, methods, tensor, unknown, _DEPTH).run("forward")
    return list({id(origin): (layer, parts) for origin, layer, parts in reversed(tensor.found)}.values())[::-1], unknown


class _Reader:
    def __init__(self, module, methods, tensor, unknown, depth):
        self.module, self.methods, self.tensor, self.unknown, self.depth = module, methods, tensor, unknown, depth
        self.slot = begin()
        self.names = {SLOT: self.slot}

    def run(self, name):
        function = self.methods[name]
        node, body = getattr(function, DEFINITION)
        first, *rest = [*node.args.posonlyargs, *node.args.args]
        self.function = function
        self.names[first.arg] = self.module
        for argument in [*rest, *node.args.kwonlyargs]:
            self.names[argument.arg] = self.tensor
        self._defaults(node)
        with contextlib.suppress(_Left):
            self.block(body)

    def _defaults(self, node):
        """An argument whose default is None or a flag is read as that."""
        arguments = [*node.args.posonlyargs, *node.args.args]
        defaults = self.function.__defaults__ or ()
        given = dict(zip([a.arg for a in arguments[len(arguments) - len(defaults) :]], defaults, strict=True))
        given |= self.function.__kwdefaults__ or {}
        self.names |= {name: value for name, value in given.items() if value is None or type(value) in (bool, int, str)}

    def block(self, body):
        for statement in body:
            getattr(self, f"_{type(statement).__name__}", self._other)(statement)

    # Statements.

    def _other(self, node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)

    def _Assign(self, node):
        value = self.value(node.value)
        for target in node.targets:
            self.bind(target, value)

    def bind(self, target, value):
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            known = isinstance(value, tuple | list) and len(value) == len(target.elts)
            for i, part in enumerate(target.elts):
                self.bind(part, value[i] if known else self.tensor)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, self.tensor)

    def _AugAssign(self, node):
        self.value(node.value)
        self.bind(node.target, self.tensor)

    def _Return(self, node):
        if node.value is not None:
            self.value(node.value)
        raise _Left

    def _Break(self, node):
        raise _Left

    _Continue = _Raise = _Break

    def _If(self, node):
        test = _truth(self.value(node.test))
        if test is not None:
            self.block(node.body if test else node.orelse)
        else:
            self.either([node.body, node.orelse])

    def either(self, blocks):
        """Read each of some blocks from here on; go on with what the first one leaves that comes to its end."""
        ends = []
        names, slot = self.names, self.slot
        for body in blocks:
            clones = {}
            self.names = {name: _clone(value, clones) for name, value in names.items()}
            self.slot = [_clone(slot[0], clones), *slot[1:]]
            self.names[SLOT] = self.slot
            try:
                self.block(body)
                ends.append((self.names, self.slot))
            except _Left:
                pass
        if not ends:
            raise _Left
        self.names, self.slot = ends[0]

    def _For(self, node):
        items = self.value(node.iter)
        known = isinstance(items, list | tuple | nn.ModuleList | nn.Sequential)
        for item in list(items) if known else [self.tensor]:
            self.bind(node.target, item)
            try:
                self.block(node.body)
            except _Left:
                break
        self.block(node.orelse)

    def _While(self, node):
        self.value(node.test)
        self.either([node.body, []])

    def _With(self, node):
        for item in node.items:
            self.value(item.context_expr)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, self.tensor)
        self.block(node.body)

    def _Try(self, node):
        self.either([[*node.body, *node.orelse], *(handler.body for handler in node.handlers)])
        self.block(node.finalbody)

    _TryStar = _Try

    def _Match(self, node):
        self.value(node.subject)
        self.either([case.body for case in node.cases])

    def _FunctionDef(self, node):
        self.names[node.name] = self.tensor

    _AsyncFunctionDef = _ClassDef = _FunctionDef

    def _Import(self, node):
        for alias in node.names:
            self.names[alias.asname or alias.name.partition(".")[0]] = self.tensor

    _ImportFrom = _Import

    # Expressions: what is known of their value; the tensor, where nothing is.

    def value(self, node):
        return getattr(self, f"_{type(node).__name__}", self._unknown)(node)

    def _unknown(self, node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr) and not isinstance(node, ast.Lambda | ast.GeneratorExp | _COMPREHENSIONS):
                self.value(child)
        return self.tensor

    def _Constant(self, node):
        return node.value

    def _Name(self, node):
        if node.id in self.names:
            return self.names[node.id]
        code = self.function.__code__
        if node.id in code.co_freevars:
            try:
                return self.function.__closure__[code.co_freevars.index(node.id)].cell_contents
            except ValueError:
                return self.tensor
        found = self.function.__globals__.get(node.id, getattr(builtins, node.id, self.tensor))
        return found if callable(found) or isinstance(found, types.ModuleType | bool) else self.tensor

    def _Attribute(self, node):
        base = self.value(node.value)
        if isinstance(base, nn.Module):
            return self._attribute(base, node.attr)
        if isinstance(base, types.ModuleType):
            return vars(base).get(node.attr, self.tensor)
        return self.tensor

    def _attribute(self, module, name):
        if name == "training":
            return self.tensor.training
        for known in (module.__dict__, module._modules, module._parameters, module._buffers):
            if name in known:
                return known[name]
        found = inspect.getattr_static(type(module), name, self.tensor)
        if isinstance(found, types.FunctionType):
            return _Method(name) if module is self.module else self.tensor
        return found if found is None or isinstance(found, bool | int | float | str) else self.tensor

    def _Subscript(self, node):
        base, index = self.value(node.value), self.value(node.slice)
        container = isinstance(base, nn.ModuleList | nn.Sequential | nn.ModuleDict | list | tuple | dict)
        if container and isinstance(index, int | str):
            try:
                return base[index]
            except (LookupError, TypeError, ValueError):
                pass
        return self.tensor

    def _IfExp(self, node):
        test = _truth(self.value(node.test))
        if test is None:
            first = self.value(node.body)
            self.value(node.orelse)
            return first
        return self.value(node.body if test else node.orelse)

    def _UnaryOp(self, node):
        truth = _truth(self.value(node.operand))
        return not truth if isinstance(node.op, ast.Not) and truth is not None else self.tensor

    def _BoolOp(self, node):
        both = isinstance(node.op, ast.And)
        unknown = False
        for operand in node.values:
            value = self.value(operand)
            if (truth := _truth(value)) is None:
                unknown = True
            elif truth is not both:
                return value
        return self.tensor if unknown else value

    def _Compare(self, node):
        values = [self.value(n) for n in (node.left, *node.comparators)]
        if len(values) != 2:
            return self.tensor
        one, other = values
        if isinstance(node.ops[0], ast.Is | ast.IsNot) and (one is None or other is None):
            # A tensor, known or not, is not None.
            return (one is other) is isinstance(node.ops[0], ast.Is)
        compare = _COMPARISONS.get(type(node.ops[0]))
        if compare is None or not all(isinstance(value, bool | int | float | str) for value in values):
            return self.tensor
        try:
            return compare(one, other)
        except TypeError:
            return self.tensor

    def _Tuple(self, node):
        return tuple(map(self.value, node.elts))

    def _List(self, node):
        return list(map(self.value, node.elts))

    def _Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id in HELPERS:
            return self._helper(node)
        called = self.value(node.func)
        values = [self.value(argument) for argument in node.args]
        for keyword in node.keywords:
            self.value(keyword.value)
        known = all(isinstance(value, list | tuple | nn.ModuleList) for value in values)
        if known and any(called is function for function in (enumerate, zip, reversed)):
            return list(called(*values))
        if called is isinstance and len(values) == 2 and _is_unknown(values[0]):
            kinds = values[1] if isinstance(values[1], tuple) else (values[1],)
            return all(isinstance(k, type) and issubclass(torch.Tensor, k) for k in kinds) or self.tensor
        return self._method(called)

    def _method(self, called):
        if type(called) is _Method and called.name in self.methods and self.depth:
            _Reader(self.module, self.methods, self.tensor, self.unknown, self.depth - 1).run(called.name)
        return self.tensor

    def _helper(self, node):
        name = node.func.id.removeprefix("_fastreg_")
        values = [self.value(argument) for argument in node.args[1:]]
        keywords = {keyword.arg: self.value(keyword.value) for keyword in node.keywords}
        if name in ("iterate", "truth"):
            return values[0]
        if name in ("value", "finish") and type(values[0] if values else None) is not Held:
            HELPERS["_fastreg_flush"](self.slot) if name == "finish" else None
            return values[0] if values else None
        if name == "call":
            values[1] = self._tensor_of(values[1])
            if type(values[0]) is _Method:
                HELPERS["_fastreg_flush"](self.slot)
                return self._method(values[0])
            if _is_unknown(values[0]):
                values[0] = None
            elif values[1] is self.slot[0] is not None and values[1].norm is not None:
                self._note(values[0])
        elif name in ("add", "iadd", "call_method"):
            values = (
                [self._tensor_of(value) for value in values]
                if name != "call_method"
                else [self._tensor_of(values[0]), values[1]]
            )
        elif name == "call_function":
            values[1] = self._tensor_of(values[1])
        return HELPERS[node.func.id](self.slot, *values, **keywords)

    def _note(self, module):
        if "activation" in type(module).__module__ and layers.activation_of(module) is None:
            self.unknown.append(module)

    def _tensor_of(self, value):
        return value if type(value) in (Held, int, float) else self.tensor


class _Method:
    def __init__(self, name):
        self.name = name


def _clone(value, clones):
    if type(value) is not Held:
        return value
    clone = clones.setdefault(id(value), copy.copy(value))
    clone.origin = value.origin or value
    return clone


def _is_unknown(value):
    return type(value) in (Abstract, Held, _Method)


def _truth(value):
    """What a test of a value gives, where that runs no code of anybody's; else None."""
    if isinstance(value, nn.ModuleList | nn.ModuleDict | nn.Sequential):
        return bool(value._modules)
    if type(value) in (type(None), bool, int, float, str, list, tuple, dict):
        return bool(value)
    plain = (
        isinstance(value, nn.Module) and not hasattr(type(value), "__len__") and not hasattr(type(value), "__bool__")
    )
    return True if plain else None
