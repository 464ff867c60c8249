"""Conversions that are wrong on purpose: for each row of faults that conversion has had, programs must be found.

Most are edits of the source that the "converted" model is made of; the others change how its classes are called.
"""

import ast
import builtins
import dataclasses
import re
import time
import weakref

import torch

PLANTED = {}  # row/fault: Fault
ONE = torch.ones((), requires_grad=True)
_memories = weakref.WeakKeyDictionary()


@dataclasses.dataclass
class Fault:
    """edit: of a program's classes, as text. convert: of a model made of them. feature: without it nothing is wrong."""

    edit: object = None
    convert: object = None
    feature: str = ""

    def applies(self, program):
        has_feature = any(feature.startswith(self.feature) for feature in program.features)
        return has_feature and (self.edit is None or self.source(program) != program.source)

    def source(self, program):
        if self.edit is None:
            return program.source
        head, classes = program.source.split("\nclass ", 1)
        classes, script = ("class " + classes).split("\ndef make():")
        head += "\nfrom tests.conversion.differential import planted\n\n"
        tree = ast.parse(classes)
        if isinstance(self.edit, Edit):
            edited = ast.unparse(ast.fix_missing_locations(self.edit.visit(ast.parse(classes))))
        else:
            edited = self.edit(classes)
        if ast.dump(ast.parse(edited)) == ast.dump(tree):
            return program.source
        return head + edited + "\n\ndef make():" + script


def plant(name, edit=None, convert=None, feature=""):
    PLANTED[name] = Fault(edit, convert, feature)


def call(function, *arguments):
    return ast.parse(f"planted.{function}({', '.join(map(ast.unparse, arguments))})", mode="eval").body


class Edit(ast.NodeTransformer):
    def __init__(self, *patterns):
        self.patterns, self.count = patterns, 0

    def matches(self, node):
        text = ast.unparse(node)
        return any(pattern in text for pattern in self.patterns)

    def number(self):
        self.count += 1
        return ast.Constant(self.count)


# Contexts


class WithoutContext(Edit):
    def visit_With(self, node):
        self.generic_visit(node)
        return node.body if self.matches(node.items[0]) else node


for kind in ("autocast", "enable_grad", "inference_mode", "no_grad", "fork_rng"):
    plant(f"contexts/{kind} lost", WithoutContext(kind))
plant("contexts/set_grad_enabled lost", lambda text: text.replace("torch.set_grad_enabled(self.training)\n", "0\n"))


# Branches


def first(known, number, function):
    """What function gave at the first call, for ever."""
    memory = _memories.setdefault(known, {})
    if number not in memory:
        memory[number] = function()
    return memory[number]


class Frozen(Edit):
    def freeze(self, node):
        self.generic_visit(node)
        if self.matches(node.test) and ":=" not in ast.unparse(node.test):
            function = ast.parse(f"lambda: {ast.unparse(node.test)}", mode="eval").body
            node.test = call("first", ast.Name("self"), self.number(), function)
        return node

    visit_If = visit_IfExp = freeze


for name, *patterns in [
    ("p of a child", ".p > 0"), ("training of a child", ".training"), ("options object", ".wide"), ("dict", "['open']"),
    ("list", "[-1]"), ("class attribute", ".shared"), ("submodule or parameter of None", "is None"),
    ("grad mode", "is_grad_enabled"), ("value", ".sum() > 0.5"), ("shape", ".shape[0] >"), ("counter", "% 2"),
    ("hooks of a child", "_forward_hooks"), ("inference mode", "is_inference_mode"),
    ("grad of value", ".requires_grad"), ("type", "type("),
]:  # fmt: skip
    plant(f"branches/{name} frozen", Frozen(*patterns))


class Replaced(Edit):
    """Calls of what begins with a pattern become another expression.

    In it {} stands for the former one, f for the function and m for its last name, a, b, c for arguments.
    """

    def __init__(self, form, *patterns):
        super().__init__(*patterns)
        self.form = form

    def matches(self, node):
        text = ast.unparse(node)
        return any(re.match(pattern, text) for pattern in self.patterns)

    def visit_Call(self, node):
        if not self.matches(node) or "{a}" in self.form and not node.args:
            return self.generic_visit(node)
        self.generic_visit(node)
        names = {"a": "0", "b": "0", **dict(zip("abc", map(ast.unparse, node.args), strict=False))}
        names["f"], names["n"] = ast.unparse(node.func), self.number().value
        return ast.parse(self.form.format(ast.unparse(node), m=names["f"].split(".")[-1], **names), mode="eval").body


plant("branches/type of a symbol", lambda text: text.replace("is torch.Tensor", "is None"))

# Draws

plant(
    "draws/of the first call",
    Replaced("planted.first(self, {n}, lambda: {})", r"torch\.rand\(.*generator", r"self\.generator"),
)
plant("draws/dropped", Replaced("torch.tensor(0.5)", r"torch\.rand\((\(\)|3)"))
plant("draws/of Python dropped", lambda text: text.replace(" = random.random()", " = 0.5"))
plant("draws/seed dropped", lambda text: text.replace("torch.manual_seed(3)", "0"))


# Aliases


class OutOfPlace(Edit):
    def visit_AugAssign(self, node):
        if not self.matches(node) or not isinstance(node.target, ast.Name):
            return node
        load = ast.Name(node.target.id, ast.Load())
        return ast.Assign([node.target], ast.BinOp(load, node.op, node.value), lineno=1)


plant("aliases/+= out of place", OutOfPlace(" += "))
plant("aliases/*= out of place", OutOfPlace(" *= "), feature="aliases/buffer")
plant("aliases/add_ out of place", lambda text: text.replace(".add_(", ".add("))
plant("aliases/mul_ out of place", lambda text: text.replace(".mul_(", ".mul("))
plant("aliases/activation out of place", lambda text: re.sub(r"(F\.\w+\([^()]*), inplace=True", r"\1", text))
plant("aliases/result of dropout is another tensor", Replaced("{} * 1", r"self\.drop"))


# Order


class Later(Edit):
    """A batch norm's call waits behind the next statement, if that does not need its result."""

    def body(self, node):
        self.generic_visit(node)
        for index in range(len(node.body) - 1):
            one, two = node.body[index : index + 2]
            if not isinstance(one, ast.Assign) or not isinstance(two, ast.Assign | ast.Expr | ast.AugAssign | ast.If):
                continue
            stored = {n.id for n in ast.walk(one) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            used = {n.id for n in ast.walk(two) if isinstance(n, ast.Name)}
            calls = isinstance(one.value, ast.Call) and ast.unparse(one.value).startswith("self.bn")
            if calls and not stored & used and not any(isinstance(n, ast.Return) for n in ast.walk(two)):
                node.body[index : index + 2] = [two, one]
        return node

    visit_FunctionDef = body


class RightFirst(Edit):
    """Of two calls of one batch norm in a row, the second comes first."""

    def visit_Assign(self, node):
        if not isinstance(node.value, ast.Tuple) or len(node.value.elts) != 2 or "self.bn" not in ast.unparse(node):
            return node
        a, b = node.targets[0].elts
        return ast.parse(f"{b.id}, {a.id} = {', '.join(ast.unparse(e) for e in reversed(node.value.elts))}").body[0]


plant("order/batch norm held back", Later(), feature="order/")
plant("order/statistics of a shared norm swapped", RightFirst(), feature="order/shared norm")
plant("order/settings of the next call", lambda text: text.replace(".eps = 0.5", ".eps").replace(".p = 0.25", ".p"))

# Attributes of values, and errors


class Untried(Edit):
    def visit_Try(self, node):
        return [*node.body, *node.finalbody]


plant("attributes/hasattr says yes", Replaced("True", r"hasattr\("))
plant("attributes/getattr without its default", Replaced("getattr({a}, {b})", r"getattr\(h\d*, '(sample|mask)'"))
plant("attributes/errors not caught", Untried())

# State


class Held:
    def __init__(self, value=None):
        self.value = lambda: value  # cannot be pickled


def left_in_lists(model):
    for module in model.modules():
        for name, value in vars(module).items():
            if name.startswith("features"):
                value.append(Held())
    return model


class Stored(Edit):
    """An object of ours instead of a value, where forward keeps it."""

    def visit_Assign(self, node):
        if re.match(self.patterns[0], ast.unparse(node.targets[0])):
            node.value = call("Held", node.value)
        return node


plant("state/foreign object in a list", Replaced("{f}(planted.Held({a}))", r"self\.features\d*\.append"))
plant("state/foreign object in a dict", Stored(r"self\.named\d+\["))
plant("state/foreign object in an attribute", Stored(r"self.*\.last"))
plant("state/left in lists by convert", convert=left_in_lists, feature="state/list")
plant("state/counted once", lambda text: re.sub(r"(self\.counter\d+) \+= 1", r"\1", text))
plant("state/written once", lambda text: text.replace("self.text =", "text ="), feature="state/f-string")


# How classes are called


def calling(wrap):
    """A conversion that puts wrap(call)(module, args, kwargs) around each call of a module of the program's classes."""

    def convert(model):
        for cls in {type(m) for m in model.modules() if type(m).__module__.startswith("generated")}:
            if "_call_impl" not in vars(cls):
                cls._call_impl = wrap(cls)
        return model

    return convert


def replacing_isinstance(cls):
    def call(self, *args, **kwargs):
        original = builtins.isinstance
        builtins.isinstance = lambda value, kinds: original(value, kinds)
        return super(cls, self)._call_impl(*args, **kwargs)

    return call


def alone(cls):
    """While one call runs, any other fails."""
    running = []

    def call(self, *args, **kwargs):
        if type(self).__name__ != "Model":
            return super(cls, self)._call_impl(*args, **kwargs)
        if running:
            raise NameError("h1")
        running.append(self)
        try:
            time.sleep(0.002)
            return super(cls, self)._call_impl(*args, **kwargs)
        finally:
            running.clear()

    return call


def forward_as_it_was(cls):
    """What is patched after convert has no effect."""
    former = cls.forward

    def call(self, *args, **kwargs):
        patched = self.__dict__.pop("forward", None)
        current, cls.forward = cls.forward, former
        try:
            return super(cls, self)._call_impl(*args, **kwargs)
        finally:
            cls.forward = current
            if patched is not None:
                self.__dict__["forward"] = patched

    return call


def without_hooks(cls):
    return lambda self, *args, **kwargs: self.forward(*args, **kwargs)


plant("threads/isinstance stays replaced", convert=calling(replacing_isinstance))
plant("threads/calls at the same time", convert=calling(alone), feature="threads/")
plant("patches/forward has no effect", convert=calling(forward_as_it_was), feature="patches/")
plant("patches/method has no effect", Replaced("planted.first(self, {n}, lambda: self.{m})({a})", r"self\._mid"))
plant("hooks/not called", convert=calling(without_hooks), feature="hooks/")

# More kept for backward


def kept(value):
    """The value, which autograd keeps."""
    return value * ONE if isinstance(value, torch.Tensor) and value.requires_grad else value


class KeptSummand(Edit):
    def visit_BinOp(self, node):
        self.generic_visit(node)
        if isinstance(node.op, ast.Add):
            node.left, node.right = call("kept", node.left), call("kept", node.right)
        return node


plant("later/summands kept", KeptSummand(), feature="later/")
plant("later/input of an activation kept", Replaced("{f}(planted.kept({a}))", r"self\.act"), feature="later/")
