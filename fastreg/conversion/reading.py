"""What the expressions of a forward are: which are steps, and which are quiet."""

import ast
import types
from collections.abc import Callable

import torch

from fastreg import _activation


def is_function(called) -> bool:
    """Whether something is a function that computes an activation, or torch.add."""
    if not isinstance(called, types.FunctionType | types.BuiltinFunctionType):
        return False
    return called is torch.add or called in _activation.OF_FUNCTION


def _is_private(name):
    """Whether it is another name in a class than it seems."""
    return name.startswith("__") and not name.endswith("__")


class Reading:
    """What the expressions of a definition are, for those who rewrite it and those who only read it.

    itself: the name of its first argument, if that is never assigned. quiet(name): whether to read that attribute of
    the module does nothing else. globals: the function's.
    """

    def __init__(self, node: ast.FunctionDef, function: Callable, quiet: Callable[[str], bool]):
        self.itself = (node.args.posonlyargs + node.args.args)[0].arg
        self.locals = set(function.__code__.co_varnames) | set(function.__code__.co_cellvars)
        self.free = set(function.__code__.co_freevars)
        self.globals, self.is_quiet_attribute = function.__globals__, quiet
        if self.itself in {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}:
            self.itself = None

    def is_quiet(self, node) -> bool:
        """Whether to evaluate an expression has no effect, and sees none of what is held."""
        if isinstance(node, ast.Name | ast.Constant):
            return True
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == self.itself is not None:
                return not _is_private(node.attr) and self.is_quiet_attribute(node.attr)
            return self.global_value(node) is not None
        if isinstance(node, ast.Compare):
            return all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops) and self._all(
                node.left, *node.comparators
            )
        if isinstance(node, ast.IfExp):
            return self.is_quiet_test(node.test) and self._all(node.body, node.orelse)
        if isinstance(node, ast.Call):
            return self._asks_for_a_tensor(node)
        return isinstance(node, ast.Tuple) and self._all(*node.elts)

    def is_quiet_test(self, node) -> bool:
        """Whether to evaluate a test has no effect, once what it asks the truth of are calls of
        :func:`control_flow.truth`."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self.is_quiet_test(node.operand)
        if isinstance(node, ast.BoolOp):
            return all(map(self.is_quiet_test, node.values))
        return self.is_quiet(node)

    def _asks_for_a_tensor(self, node):
        """isinstance(name, Tensor)"""
        if not isinstance(node.func, ast.Name) or node.func.id != "isinstance" or len(node.args) != 2:
            return False
        shadowed = "isinstance" in self.locals or "isinstance" in self.free or "isinstance" in self.globals
        return not shadowed and isinstance(node.args[0], ast.Name) and self.global_value(node.args[1]) is torch.Tensor

    def _all(self, *nodes):
        return all(map(self.is_quiet, nodes))

    def global_value(self, node):
        """What a name of a module, or an attribute of a module, is now; None if it is anything else."""
        if isinstance(node, ast.Name):
            name = node.id
            return None if _is_private(name) or name in self.locals or name in self.free else self.globals.get(name)
        if not isinstance(node, ast.Attribute):
            return None
        module = self.global_value(node.value)
        return vars(module).get(node.attr) if isinstance(module, types.ModuleType) else None

    def is_context_of_torch(self, node) -> bool:
        """Whether a context is one of torch's own, such as autocast: these swallow no exceptions."""
        called = self.global_value(node.func) if isinstance(node, ast.Call) else None
        return str(getattr(called, "__module__", None)).partition(".")[0] == "torch"

    def step(self, node):
        """What kind of step an expression is: call, function, method, add, choice; None: no step."""
        if isinstance(node, ast.BinOp):
            return "add" if isinstance(node.op, ast.Add) else None
        if isinstance(node, ast.IfExp):
            return "choice" if self.step(node.body) or self.step(node.orelse) else None
        if not isinstance(node, ast.Call) or any(isinstance(arg, ast.Starred) for arg in node.args):
            return None
        if any(keyword.arg is None for keyword in node.keywords):
            return None
        called = self.global_value(node.func)
        if called is not None:
            return "function" if node.args and is_function(called) else None
        if node.keywords or len(node.args) > 1:
            return None
        if not node.args:
            method = isinstance(node.func, ast.Attribute) and node.func.attr in _activation.OF_METHOD
            return "method" if method and not self._is_itself(node.func.value) else None
        return "call" if self._may_be_module(node.func) else None

    def _is_itself(self, node):
        return isinstance(node, ast.Name) and node.id == self.itself

    def _may_be_module(self, node):
        # The attributes of tensors are no modules; those of the module itself may have the same names.
        if isinstance(node, ast.Attribute) and not self._is_itself(node.value) and hasattr(torch.Tensor, node.attr):
            return False
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        return isinstance(node, ast.Name) and (node.id in self.locals or node.id in self.free)

    def is_calm(self, node) -> bool:
        """Whether an expression is quiet, or a step of calm ones: what runs in it runs first what is held."""
        kind = self.step(node)
        if kind is None:
            return self.is_quiet(node)
        if kind == "add":
            return self.is_calm(node.left) and self.is_calm(node.right)
        if kind == "choice":
            return self.is_quiet_test(node.test) and self.is_calm(node.body) and self.is_calm(node.orelse)
        if kind == "method":
            return self.is_calm(node.func.value)
        settings = [*node.args[1:], *(keyword.value for keyword in node.keywords)]
        return self.is_quiet(node.func) and all(map(self.is_calm, [node.args[0], *settings]))
