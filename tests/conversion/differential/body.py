"""A function's body while it is written, and the module that it belongs to."""

from contextlib import contextmanager
from typing import NamedTuple

# For each kind of input: its shape without the samples, layers that keep it, and its batch norm.
KINDS = {
    "rows": ("4", ["nn.Linear(4, 4)", "nn.Linear(4, 4, bias=False)"], "nn.BatchNorm1d"),
    "images": ("4, 3, 3", ["nn.Conv2d(4, 4, 3, padding=1)", "nn.Conv2d(4, 4, 1)"], "nn.BatchNorm2d"),
    "series": ("4, 5", ["nn.Conv1d(4, 4, 1)", "nn.Conv1d(4, 4, 1, bias=False)"], "nn.BatchNorm1d"),
}


class Value(NamedTuple):
    """An expression of a tensor, and the memory that it lies in: a number."""

    text: str
    memory: int


class Module:
    """A class that is being written: the attributes that its forward needs, and how a script may change them."""

    def __init__(self, program, name):
        self.program, self.name, self.random = program, name, program.random
        self.init, self.methods, self.class_lines = [], [], []
        self.attributes = {}  # what kind: names
        self.changes = []  # statements with {m} for the module and {cls} for its class
        self.switches = []  # those that turn a branch
        self.features = set()
        self.hookable = []  # names of children
        self.children = {}  # name: Module
        self.count = 0

    def mark(self, feature):
        self.features.add(feature)

    def name_for(self, prefix):
        self.count += 1
        return f"{prefix}{self.count}"

    def attribute(self, kind, make, prefix=None, reuse=0.3, changes=(), switches=()):
        """The name of an attribute: one that is there already, or a new one that ``make()`` gives the expression of."""
        known = self.attributes.setdefault(kind, [])
        if known and self.random.random() < reuse:
            return "self." + self.random.choice(known)
        name = self.name_for(prefix or kind)
        self.init.append(f"self.{name} = {make()}")
        known.append(name)
        self.changes += [change.replace("{name}", name) for change in changes]
        self.switches += [change.replace("{name}", name) for change in switches]
        return "self." + name


class Body:
    """The lines of one function, the tensors of the usual shape that it has at hand, and what autograd keeps of them.

    The last is a rough account: it is enough if most programs run.
    """

    def __init__(self, module, names=(), depth=0):
        self.module, self.random, self.mark = module, module.random, module.mark
        self.lines, self.indent, self.depth = [], 0, depth
        self.values, self.kept, self.memories = {}, set(), 0
        for name in names:
            self.values[name] = self.new_memory()
            if self.random.random() < 0.7:  # the caller's; others may have kept it
                self.kept.add(self.values[name])

    def new_memory(self):
        self.memories += 1
        return self.memories

    def line(self, text):
        self.lines.append("    " * self.indent + text)

    @contextmanager
    def block(self, head):
        """Lines below a head. Names that are new within are forgotten after it."""
        self.line(head)
        self.indent += 1
        self.depth += 1
        names, length = set(self.values), len(self.lines)
        yield
        if len(self.lines) == length:
            self.line("pass")
        self.indent -= 1
        self.depth -= 1
        self.values = {name: memory for name, memory in self.values.items() if name in names}

    def get(self, name):
        return Value(name, self.values[name])

    def assign(self, value, name=None):
        """Bind a value to a name, mostly a new one."""
        if name is None:
            own = [n for n in self.values if n != "x"]
            name = self.random.choice(own) if own and self.random.random() < 0.25 else self.module.name_for("h")
        if name != value.text:
            self.line(f"{name} = {value.text}")
        self.values[name] = value.memory
        return Value(name, value.memory)

    def named(self, value):
        return value if value.text in self.values else self.assign(value)

    def another(self, value=None):
        """Some tensor at hand, rather not this one."""
        others = [name for name, memory in self.values.items() if value is None or memory != value.memory]
        return self.get(self.random.choice(others or list(self.values)))

    def keep(self, value):
        self.kept.add(value.memory)

    def may_write(self, value, chance=0.05):
        """Whether autograd should let it pass that value is written to. Sometimes it is done all the same."""
        return value.memory not in self.kept or self.random.random() < chance
