"""The smallest program that still fails: statements are deleted, or replaced by their bodies, as long as it does."""

import ast
import copy
import dataclasses
import signal


def shrink(program, check, kind, most=2000):
    """check(program) is a Difference or None; the program that is returned has one of this kind."""
    tree, tried = ast.parse(program.source), 0
    changed = True
    while changed:
        changed = False
        for edit in reversed(list(edits(tree))):
            smaller = copy.deepcopy(tree)
            if not apply(smaller, edit):
                continue
            tried += 1
            if tried > most:
                return with_source(program, tree)
            if still_fails(with_source(program, smaller), check, kind):
                tree, changed = smaller, True
    return with_source(program, tree)


def with_source(program, tree):
    return dataclasses.replace(program, source=ast.unparse(ast.fix_missing_locations(tree)) + "\n")


class TooLong(BaseException):
    """A program without end: one that the program itself does not catch."""


def stop(number, frame):
    raise TooLong


def still_fails(program, check, kind, seconds=2):
    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        found = check(program)
    except (Exception, TooLong):  # what is left is no program any more
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    return found is not None and found.kind == kind


def bodies(tree):
    """Each list of statements in the tree, always in the same order."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, name, None), list) and statements:
                yield statements


def edits(tree):
    for number, statements in enumerate(bodies(tree)):
        for index, statement in enumerate(statements):
            yield number, index, "delete"
            if hasattr(statement, "body") and not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                yield number, index, "body"
            if isinstance(getattr(statement, "value", None), ast.Call | ast.BinOp):
                yield number, index, "operand"


def apply(tree, edit):
    number, index, what = edit
    found = [statements for n, statements in enumerate(bodies(tree)) if n == number]
    if not found or index >= len(found[0]):
        return False
    statements, statement = found[0], found[0][index]
    if what == "delete":
        if isinstance(statement, ast.Pass):
            return False
        statements[index : index + 1] = [] if len(statements) > 1 else [ast.Pass()]
    elif what == "body":
        if not hasattr(statement, "body"):
            return False
        statements[index : index + 1] = statement.body
    else:  # f(x) becomes x, a + b becomes a
        value = getattr(statement, "value", None)
        if isinstance(value, ast.Call) and value.args:
            statement.value = value.args[0]
        elif isinstance(value, ast.BinOp):
            statement.value = value.left
        else:
            return False
    return True
