"""Which reads of a function's local names are the last ones: from there on nobody sees the value under that name.

A value that is held back may be handed on, and become part of something larger, only at such a read.
"""

import ast
from collections import Counter
from collections.abc import Iterable

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_SCOPES += (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def reads(node: ast.AST) -> Counter:
    """How often each name is read at most, whichever way conditional expressions go."""
    if isinstance(node, ast.Name):
        return Counter([node.id] if isinstance(node.ctx, ast.Load) else [])
    if isinstance(node, ast.IfExp):
        return reads(node.test) + (reads(node.body) | reads(node.orelse))
    return sum(map(reads, ast.iter_child_nodes(node)), Counter())


def stores(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}


def shared_names(function: ast.FunctionDef) -> set[str]:
    """Names that somebody else than the function's own statements may read or write: nested functions, comprehensions,
    other modules' code, assignment expressions, and what is unpacked, caught or imported."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, _SCOPES) and node is not function:
            found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.Global | ast.Nonlocal):
            found |= set(node.names)
        elif isinstance(node, ast.NamedExpr):
            found |= stores(node.target)
    return found


class Liveness:
    """last: the ids of the Name nodes that are last reads, in a list of statements."""

    def __init__(self, body: list[ast.stmt]):
        self.last: set[int] = set()
        self._breaks, self._continues = frozenset(), frozenset()
        self._kept = frozenset()  # names that an exception's handlers, or what follows them, may read
        self._block(body, frozenset())

    def _block(self, body: Iterable[ast.stmt], live: frozenset) -> frozenset:
        """The names that may be read from the start of body on; live: from its end on."""
        for statement in reversed(list(body)):
            live = self._statement(statement, live)
        return live

    def _statement(self, node, live):
        method = getattr(self, f"_{type(node).__name__}", None)
        return self._simple(node, live) if method is None else method(node, live)

    def _reads(self, node, live):
        """The names live before an expression or simple statement is evaluated; live: after it."""
        if node is None:
            return live
        counts = reads(node)
        for name in ast.walk(node):
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load):
                if counts[name.id] == 1 and name.id not in live and name.id not in self._kept:
                    self.last.add(id(name))
                else:
                    self.last.discard(id(name))  # loops are gone through twice
        return live | counts.keys()

    def _simple(self, node, live):
        return self._reads(node, live - stores(node))

    def _AugAssign(self, node, live):
        if not isinstance(node.target, ast.Name):
            return self._simple(node, live)
        # The target is read, too. Whether that is its last read is told by the statement's own id.
        name, counts = node.target.id, reads(node.value)
        (self.last.add if not counts[name] and name not in self._kept else self.last.discard)(id(node))
        return self._reads(node.value, live - {name} | ({name} if counts[name] else set())) | {name}

    def _Return(self, node, live):
        return self._reads(node.value, frozenset())

    def _Raise(self, node, live):
        return self._reads(node, frozenset()) | self._kept

    def _Break(self, node, live):
        return self._breaks

    def _Continue(self, node, live):
        return self._continues

    def _If(self, node, live):
        return self._reads(node.test, self._block(node.body, live) | self._block(node.orelse, live))

    def _Match(self, node, live):
        before = live
        for case in node.cases:
            before |= self._reads(case.guard, self._block(case.body, live)) - stores(case.pattern)
        return self._reads(node.subject, before)

    def _loop(self, node, live, head):
        """The names live at a loop's head: head() of those live at its body's start."""
        outer = self._breaks, self._continues
        start = frozenset()
        while True:
            self._breaks, self._continues = live, head(start)
            more = start | self._block(node.body, head(start))
            if more == start:
                break
            start = more
        self._breaks, self._continues = outer
        return head(start)

    def _While(self, node, live):
        def head(start):
            return self._reads(node.test, start | self._block(node.orelse, live))

        return self._loop(node, live, head)

    def _For(self, node, live):
        targets = stores(node.target)

        def head(start):
            return (start - targets) | self._block(node.orelse, live)

        return self._reads(node.iter, self._loop(node, live, head))

    def _guarded(self, body, live, kept):
        """body, of which any statement may be the last."""
        outer, self._kept = self._kept, self._kept | kept
        before = self._block(body, live)
        self._kept = outer
        return before | kept

    def _With(self, node, live):
        # A context may swallow an exception: then what follows reads what was there before.
        before = self._guarded(node.body, live, live)
        for item in reversed(node.items):
            targets = stores(item.optional_vars) if item.optional_vars else set()
            before = self._reads(item.context_expr, before - targets)
        return before

    def _Try(self, node, live):
        after = self._block(node.finalbody, live)
        handlers = frozenset().union(*(self._handler(handler, after) for handler in node.handlers), after)
        return self._guarded(node.body, self._guarded(node.orelse, after, after), handlers)

    _TryStar = _Try

    def _handler(self, node, live):
        return self._reads(node.type, self._guarded(node.body, live, live) - {node.name})
