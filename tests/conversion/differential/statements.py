"""Statements of a forward: each takes the current value and returns the next one, under a name."""

from tests.conversion.differential import expressions as e
from tests.conversion.differential.between import Near, write_between
from tests.conversion.differential.body import Body, Value

STATEMENTS = {}
CHAINS = [
    "layer norm act", "layer norm act", "layer norm add act", "layer norm add act drop", "layer norm act drop",
    "act drop add", "act drop", "layer act drop add", "norm act", "norm add", "act norm", "act norm drop",
    "norm drop add", "layer drop add", "norm path add", "layer norm path add", "norm", "add act", "layer act norm drop",
]  # fmt: skip
CONTEXTS = {
    "no_grad": ["torch.no_grad()", "torch.set_grad_enabled(False)"],
    "enable_grad": ["torch.enable_grad()", "torch.set_grad_enabled(True)"],
    "autocast": [
        "torch.autocast('cpu', enabled=False)",
        "torch.autocast('cpu', torch.bfloat16)",
        "torch.autocast('cpu', torch.bfloat16, enabled=self.training)",
    ],
    "inference_mode": ["torch.inference_mode(False)"],
    "own rng": ["torch.random.fork_rng()"],
}


def statement(weight=1):
    def register(function):
        STATEMENTS[function] = weight
        return function

    return register


def add_in_place(body: Body, value: Value, other: Value) -> Value:
    value = body.named(value)
    if not body.may_write(value):
        return e.add(body, value, other)
    body.mark("aliases/sum in place")
    a, b = value.text, other.text
    if body.random.random() < 0.6:
        body.line(body.random.choice([f"{a} += {b}", f"{a} += {b}", f"{a} += 0.5 * {b}", f"{a} -= {b}"]))
        return value
    return Value(body.random.choice([f"{a}.add_({b})", f"{a}.add_({b}, alpha=2)", f"{a}.sub_({b})"]), value.memory)


def residual(body: Body, value: Value) -> Value:
    """What ends most residual blocks."""
    body.mark("later/residual block")
    other = body.another(value)
    value = e.norm(body, e.layer(body, value) if body.random.random() < 0.5 else value)
    value = e.add(body, value, other)
    return body.assign(e.act(body, value) if body.random.random() < 0.8 else value)


def step(body: Body, what: str, value: Value, other: Value) -> Value:
    if what == "add":
        if body.random.random() < 0.3:
            return add_in_place(body, value, other)
        return e.add(body, value, other)
    if what == "path":
        return Value(f"{e.path_name(body)}({value.text})", value.memory)
    return {"layer": e.layer, "norm": e.norm, "act": e.act, "drop": e.drop}[what](body, value)


def chain_of(body: Body, value: Value, disturbed=0.5) -> Value:
    """Operations that are often fused, nested or one by one, with other statements between them."""
    other = body.another(value)
    source = value
    for what in body.random.choice(CHAINS).split():
        before = value
        value = step(body, what, value, other)
        if what == "norm":
            source = before if before.text in body.values else other
        if body.random.random() < 0.6:
            name = value.text if value.text in body.values else None
            value = body.assign(value, name)
            if body.random.random() < disturbed:
                write_between(body, Near(value, source if source.text in body.values else value, other))
    return value


@statement(12)
def chain(body, value):
    return body.named(chain_of(body, value))


@statement(9)
def branch(body, value):
    body.mark("control/if")
    result = body.assign(Value(value.text, value.memory), body.module.name_for("h"))
    with body.block(f"if {e.condition(body, value)}:"):
        body.assign(write(body, value), result.text)
    if body.random.random() < 0.6:
        with body.block("else:"):
            body.assign(chain_of(body, value), result.text)
    return body.get(result.text)


@statement(4)
def seen_by_another_name(body, value):
    """Two names for one tensor, or for memory in it; one of them is written to, both are used."""
    body.mark("aliases/written and seen by another name")
    first = body.assign(e.layer(body, value) if body.random.random() < 0.6 else e.norm(body, value))
    h, o, n = first.text, body.another(first).text, body.module.name_for("skip")
    forms = [
        "{h}",
        "{h}",
        "{h}.view({h}.shape)",
        "{d}({h})",
        "{h}.detach()",
        "nn.Identity()({h})",
        "[{h}, 1][0]",
        "{h}[:]",
    ]
    form = body.random.choice(forms)
    body.line(f"{n} = {form.format(h=h, d=e.drop_name(body) if '{d}' in form else '')}")
    write = body.random.choice(["{a} += {o}", "{a} += {o}", "{a} *= 0.5", "{a}.add_({o})", "{a}.mul_(2)", "{a} -= 1"])
    if "*" in write or "mul" in write:
        body.mark("aliases/scaled in place")
    body.line(write.format(a=body.random.choice([h, n]), o=o))
    steps = body.random.choice([[e.norm, e.act], [e.norm], [e.act], [e.layer], []])
    for function in steps:
        first = function(body, first)
    return body.assign(Value(f"{first.text} + {n}", body.new_memory()))


@statement(1)
def input_written(body, value):
    """What a batch norm has taken is written to before its result is used; without gradients that is allowed."""
    body.mark("order/input written")
    h = body.assign(e.layer(body, value) if body.random.random() < 0.7 else value).text
    p = body.assign(e.norm(body, body.get(h)), body.module.name_for("p"))
    body.line(
        body.random.choice(["{h}.mul_(2)", "{h} += 1", "{h}.clamp_(min=0)", "{h}.zero_()", "{h}[:, 1:] *= 2"]).format(
            h=h
        )
    )
    return body.assign(Value(f"{e.act(body, p).text} + {h}", body.new_memory()))


@statement(3)
def context(body, value):
    """All of a chain within a context, or its beginning within and its end without."""
    kinds = list(CONTEXTS)
    kind = "autocast" if body.module.program.half and body.random.random() < 0.7 else body.random.choice(kinds)
    body.mark(f"contexts/{kind}")
    result = body.assign(Value(value.text, value.memory), body.module.name_for("h"))
    with body.block(f"with {body.random.choice(CONTEXTS[kind])}:"):
        body.assign(chain_of(body, result), result.text)
        if body.random.random() < 0.3:
            body.mark("contexts/left early")
            body.line(f"return {body.module.returned(result.text)}") if body.random.random() < 0.2 else None
    value = body.get(result.text)
    if body.random.random() < 0.6:
        body.mark("contexts/between two steps")
        value = body.named(e.act(body, value))
    return value


@statement(2)
def two_branches(body, value):
    """One norm for two tensors."""
    body.mark("order/shared norm")
    norm, other = e.norm_name(body, 0.5), body.another(value)
    other = body.named(e.layer(body, other)) if other.text == value.text else other
    p, q = body.module.name_for("p"), body.module.name_for("q")
    body.keep(value), body.keep(other)
    if body.random.random() < 0.5:
        body.line(f"{p}, {q} = {norm}({value.text}), {norm}({other.text})")
    else:
        body.line(f"{p} = {norm}({value.text})")
        body.line(f"{q} = {norm}({other.text})")
    body.values[p], body.values[q] = body.new_memory(), body.new_memory()
    if body.random.random() < 0.5:
        q = body.named(e.act(body, body.get(q))).text
    p = body.named(e.act(body, body.get(p))).text
    return body.named(e.add(body, body.get(p), body.get(q)))


@statement(4)
def child(body, value):
    """A block of its own."""
    module = body.module
    if not module.program.blocks:
        return chain(body, value)
    body.mark("calls/child block")
    block = body.random.choice(module.program.blocks)
    name = module.attribute(f"block of {block.name}", lambda: f"{block.name}()", prefix="b")
    module.children[name[5:]] = block
    module.hookable.append(name[5:])
    result = module.name_for("h")
    body.keep(value)
    argument = value.text if not block.two else f"{value.text}, {body.another(value).text}"
    body.line(f"{result} = {name}({argument})")
    body.line({"tensor": "pass", "tuple": f"{result}, _ = {result}", "dict": f"{result} = {result}['out']",
               "list": f"{result} = {result}[0]"}[block.returns])  # fmt: skip
    if block.returns == "tensor":
        body.lines.pop()
    body.values[result] = body.new_memory()
    if body.random.random() < 0.5:
        body.keep(body.get(result))
    if body.random.random() < 0.4 and body.may_write(value, 0.3):
        body.mark("later/x += block(x)")
        body.line(f"{value.text} += {result}")
        return value
    return body.get(result)


def write(body: Body, value: Value) -> Value:
    """One or more statements. The result is always under a name."""
    weights = STATEMENTS | ({context: 12} if body.module.program.half else {})
    if body.module.name == "Model":
        weights[child] = 10
    for _ in range(1 if body.depth else body.random.choice([1, 2, 3])):
        choices = [chain] if body.depth > 1 else list(weights)
        (function,) = body.random.choices(choices, [weights[f] for f in choices])
        value = body.named(function(body, value))
    return value
