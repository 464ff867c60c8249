"""A whole program, as source text, of a seed."""

import random
from dataclasses import dataclass, field

from tests.conversion.differential import control  # noqa: F401 (its statements are used)
from tests.conversion.differential.body import KINDS, Body, Module
from tests.conversion.differential.scripts import modules_of, write_script
from tests.conversion.differential.statements import residual, write

HEAD = """\
import operator
import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import checkpoint

import fastreg
from tests.conversion.differential.support import (
    DropPath, Norm1d, Norm2d, Options, Twice, can_be_hooked, halved, own_method, unchanged,
)

calls = 0
"""


class Block(Module):
    """A class with a forward of one or two tensors."""

    def __init__(self, program, name):
        super().__init__(program, name)
        self.two = self.random.random() < 0.35
        self.returns = self.random.choice(["tensor"] * 5 + ["tuple", "dict", "list"])
        self.base, self.decorators = None, []
        if self.random.random() < 0.06:
            self.mark("forms/decorated forward")
            contexts = ["torch.autocast('cpu', enabled=False)", "torch.no_grad()", "torch.enable_grad()", "unchanged"]
            self.decorators.append("@" + self.random.choice(contexts))

    def returned(self, name):
        forms = {
            "tensor": "{0}",
            "tuple": "{0}, {0}.mean()",
            "dict": "{{'out': {0}, 'sum': {0}.sum()}}",
            "list": "[{0}]",
        }
        return forms[self.returns].format(name)

    def write(self):
        names = ["x", "s"] if self.two else ["x"]
        body = Body(self, names)
        self.arguments = ", ".join(names)
        if self.random.random() < 0.08:
            self.mark("forms/arguments in a tuple")
            body.line(f"{self.arguments}, = args")
            self.arguments = "*args"
        if self.returns != "tensor":
            self.mark("control/several results")
        value = body.get("x")
        if self.random.random() < 0.2:
            text = body.random.choice(["x = x + 1", "x = x * 0.5"])
            body.line(text)
            body.values["x"] = body.new_memory()
            value = body.get("x")
        value = residual(body, value) if self.two and self.random.random() < 0.4 else write(body, value)
        returned = value.text
        if self.returns == "tensor" and self.random.random() < 0.15 and len(body.values) > 1:
            returned = f"{value.text} + {body.another(value).text}"
        if self.returns == "list":
            lines = [f"return [{', '.join([returned, *self.random.sample(list(body.values), 1)])}]"]
        else:
            lines = [f"return {self.returned(returned)}"]
        self.forward = [*body.lines, *lines]
        return self

    def source(self):
        init = ["super().__init__()", *self.init]
        text = [f"class {self.name}(nn.Module):", *("    " + line for line in self.class_lines)]
        text += ["    def __init__(self):", *("        " + line for line in init)]
        for method in self.methods:
            text += ["", *("    " + line for line in method)]
        text += ["", *("    " + line for line in self.decorators), f"    def forward(self, {self.arguments}):"]
        return "\n".join([*text, *("        " + line for line in self.forward)])


class Child(Block):
    """A subclass of a block: its forward calls that of the block."""

    def __init__(self, program, name, base):
        super().__init__(program, name)
        self.base, self.two, self.returns = base, base.two, "tensor"
        self.hookable, self.changes, self.children = [*base.hookable], [*base.changes], {**base.children}
        self.switches = [*base.switches]
        self.count = 50

    def write(self):
        self.mark("calls/super().forward")
        self.arguments = self.base.arguments
        body = Body(self, ["x"])
        take = {"tensor": "", "tuple": "[0]", "dict": "['out']", "list": "[0]"}[self.base.returns]
        body.line(f"h = super().forward({self.arguments}){take}")
        body.values["h"] = body.new_memory()
        body.keep(body.get("h"))
        self.forward = [*body.lines]
        body.lines.clear()
        value = write(body, body.get("h"))
        self.forward += [*body.lines, f"return {value.text}"]
        return self

    def source(self):
        return super().source().replace("(nn.Module)", f"({self.base.name})", 1)


@dataclass
class Program:
    """Features: what there is in it, as row/detail; rows are those of ``test_differential``."""

    seed: int
    random: random.Random
    kind: str
    half: bool
    features: set = field(default_factory=set)
    blocks: list = field(default_factory=list)
    source: str = ""


def generate(seed: int) -> Program:
    choice = random.Random(seed)
    program = Program(seed, choice, choice.choice(list(KINDS)), choice.random() < 0.15)
    for number in range(choice.choice([0, 1, 1, 1, 2])):
        program.blocks.append(Block(program, f"Block{number}").write())
    if program.blocks and choice.random() < 0.15:
        base = program.blocks[-1]
        program.blocks.append(Child(program, "Child", base).write())
    model = Block(program, "Model").write()
    script = write_script(program, model)
    used = {id(module) for _, module in modules_of(model, "")}
    used |= {id(block.base) for block in program.blocks if id(block) in used}
    blocks = [block for block in [*program.blocks, model] if id(block) in used]
    program.features = program.features.union(*(block.features for block in blocks))
    classes = [block.source() for block in blocks]
    dtype = "" if program.half else ".double()"
    make = f"def make():\n    torch.manual_seed({seed % 1000})\n    return Model(){dtype}"
    steps = "\n".join(["def script(model, see):", *("    " + line for line in script)])
    program.source = "\n\n\n".join([HEAD.rstrip(), *classes, make, steps]) + "\n"
    return program
