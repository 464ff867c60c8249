"""What in a model draws, drops or normalises by torch's functions, and so stays torch's: found in its source."""

import ast
import functools
import inspect
import textwrap
import types

import torch
from torch import nn

from fastreg.conversion.rewriting import own_methods
from fastreg.conversion.source import definition
from fastreg.nn.derived import Unreadable, original_of

_FUNCTIONS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "batch_norm"}
_FUNCTIONS |= {"dropout_", "feature_dropout", "native_dropout", "native_batch_norm", "scaled_dot_product_attention"}
_FUNCTIONS |= {"multi_head_attention_forward", "bernoulli", "bernoulli_", "drop_path", "drop_connect", "drop_block_2d"}
_FUNCTIONS |= {"stochastic_depth", "sync_batch_norm", "rand", "rand_like", "randn", "randn_like", "randint", "randperm"}
_FUNCTIONS |= {"uniform_", "normal_", "multinomial", "gumbel_softmax", "rrelu", "rrelu_"}
# Arguments by which a probability is handed on, to attention above all: whatever takes them drops.
_PROBABILITIES = {"dropout_p", "dropout", "attn_dropout", "attention_dropout", "drop_prob"}
_MODULES = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def drawn_within(module: nn.Module) -> str | None:
    """What a module of torch's draws that is no layer of fastreg's; None if nothing."""
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return "dropout" if module.dropout else None
    return "a random draw" if isinstance(module, _MODULES) else None


def functions_called(module: nn.Module) -> list[str]:
    """The names of functions that a module's forward, or a method that it calls, calls and that draw, drop or normalise
    by themselves, or call such a function."""
    cls = original_of(type(module))
    if isinstance(module, torch.jit.ScriptModule) or cls.__module__.startswith(("torch.nn.modules.", "fastreg.")):
        return []
    return [name for name, p in _called_by(*own_methods(cls)) if p is None or not _is_zero(p, module)]


@functools.lru_cache(maxsize=1024)  # a model has many modules of a class
def _called_by(*functions):
    """(name, the source of its p or None) of each such call."""
    found = []
    for function in functions:
        for call in _calls(function):
            name, given = _name(call), {keyword.arg: keyword.value for keyword in call.keywords}
            p = next((given[argument] for argument in (*_PROBABILITIES, "p") if argument in given), None)
            itself = isinstance(getattr(call.func, "value", None), ast.Name) and call.func.value.id == "self"
            called = _global(function, call.func)
            if itself or str(getattr(called, "__module__", None)).startswith("fastreg."):
                continue
            if name in _FUNCTIONS or _PROBABILITIES & given.keys() or _draws(called):
                found.append((name, p))
    return found


def _global(caller, node):
    """What a name, or an attribute of a module, is among the caller's globals; else None."""
    if isinstance(node, ast.Name):
        return getattr(caller, "__globals__", {}).get(node.id)
    module = _global(caller, node.value) if isinstance(node, ast.Attribute) else None
    return vars(module).get(node.attr) if isinstance(module, types.ModuleType) else None


def _draws(function):
    """Whether something is a function, not of torch's, that calls one that draws."""
    if not isinstance(function, types.FunctionType) or f"{function.__module__}.".startswith("torch."):
        return False
    return any(_name(call) in _FUNCTIONS for call in _calls(function))


def _name(call):
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _calls(function):
    """The calls in a function's source, decorated or not; none where it cannot be had."""
    try:
        node = definition(function)
    except Unreadable:
        try:
            node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
        except (OSError, TypeError, ValueError, SyntaxError):
            return []
    return [n for n in ast.walk(node) if isinstance(n, ast.Call)]


def _is_zero(p, module):
    if isinstance(p, ast.IfExp):
        return _is_zero(p.body, module) and _is_zero(p.orelse, module)
    value = p.value if isinstance(p, ast.Constant) else _setting(p, module)
    return type(value) in (int, float) and value == 0


def _setting(node, module):
    """What self.name or self.child.name is, read past any code of the module's; None if it is anything else."""
    if isinstance(node, ast.Name) and node.id == "self":
        return module
    owner = _setting(node.value, module) if isinstance(node, ast.Attribute) else None
    return owner.__dict__.get(node.attr, owner._modules.get(node.attr)) if isinstance(owner, nn.Module) else None
