"""A function's source as it runs, and what is compiled from it in its place."""

import __future__

import ast
import functools
import inspect
import linecache
import tokenize
import types
from collections.abc import Callable

from fastreg.nn.derived import Unreadable

_FUTURES = sum(getattr(__future__, name).compiler_flag for name in set(__future__.all_feature_names))
_OUTER = "_fastreg_outer"


def definition(function: Callable) -> ast.FunctionDef:
    """The definition of a function, with the line numbers of its file.

    Raises:
        Unreadable: there is none, or it is not what runs.
    """
    if not isinstance(function, types.FunctionType):
        raise Unreadable(f"forward is a {type(function).__name__}, not a function")
    if hasattr(function, "__wrapped__"):
        raise Unreadable("forward is decorated")
    code = function.__code__
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        raise Unreadable("forward is a generator or a coroutine")
    try:
        lines, first = inspect.getsourcelines(code)
        indented = lines[0][:1].isspace()
        tree = ast.parse("if 1:\n" * indented + "".join(lines))
    except (OSError, TypeError, SyntaxError, ValueError, IndexError, tokenize.TokenError) as error:
        raise Unreadable("the source of forward cannot be had") from error
    node = tree.body[0].body[0] if indented else tree.body[0]
    if not isinstance(node, ast.FunctionDef) or not node.args.posonlyargs + node.args.args:
        raise Unreadable("forward is no function of a module")
    ast.increment_lineno(node, first - 1 - indented)
    node.decorator_list = []
    try:
        again = compiled(node, function)
    except (SyntaxError, ValueError, StopIteration) as error:
        raise Unreadable("the source of forward cannot be compiled by itself") from error
    if not _same(again, code):
        raise Unreadable("the source of forward is not what runs")
    return node


def compiled(node, function, more=()):
    """The code of a definition, in a class of the same name, with function's free names and some more."""
    scopes = function.__qualname__.split(".")
    body = [node]
    if len(scopes) > 1 and scopes[-2] != "<locals>":
        body = [_class(scopes[-2], body)]
    names = [*function.__code__.co_freevars, *more]
    outer = ast.parse(f"def {_OUTER}({', '.join(name for name in names if name != '__class__')}): pass").body[0]
    # A class's own name is what it is elsewhere: the function's free name, or a global one.
    outer.body = body if body[0] is node or body[0].name in names else [ast.Global([body[0].name]), *body]
    # Calls of what a file imports are compiled in another way.
    imports = [ast.Import([ast.alias(name)]) for name in _imported(function.__code__.co_filename)]
    module = ast.fix_missing_locations(ast.Module([*imports, outer], []))
    flags = function.__code__.co_flags & _FUTURES
    code = compile(module, function.__code__.co_filename, "exec", flags, dont_inherit=True)
    for _ in range(2 + (body[0] is not node)):
        inside = _inside(code, node, body)
        code = next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == inside)
    return code


@functools.lru_cache(maxsize=256)
def _imported(filename):
    """The names that a file imports, but within functions and classes."""
    found, waiting = set(), list(ast.parse("".join(linecache.getlines(filename))).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return sorted(found - {"*"})


def _class(name, body):
    node = ast.parse(f"class {name}: pass").body[0]
    node.body = body
    return node


def _inside(code, node, body):
    """The name of what is defined in a code that leads to node."""
    if code.co_name == "<module>":
        return _OUTER
    return body[0].name if code.co_name == _OUTER else node.name


def _same(one, other):
    """Whether two code objects do the same, wherever they were compiled."""
    fields = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_kwonlyargcount")
    if any(getattr(one, field) != getattr(other, field) for field in (*fields, "co_posonlyargcount")):
        return False
    if len(one.co_consts) != len(other.co_consts):
        return False
    for a, b in zip(one.co_consts, other.co_consts, strict=True):
        code = isinstance(a, types.CodeType) and isinstance(b, types.CodeType)
        if not (_same(a, b) if code else type(a) is type(b) and repr(a) == repr(b)):
            return False
    return True
