"""Layers, activations, sums, dropout and conditions, in their many forms."""

from tests.conversion.differential.body import KINDS, Body, Value

ACT_MODULES = [
    "nn.ReLU()", "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.ReLU(inplace=True)", "nn.ReLU6()", "nn.LeakyReLU(0.2)",
    "nn.PReLU()", "nn.PReLU(4)", "nn.ELU()", "nn.SiLU()", "nn.SiLU(inplace=True)", "nn.Mish()", "nn.GELU()",
    "nn.GELU('tanh')", "nn.Hardswish()", "nn.Hardsigmoid()", "nn.Sigmoid()", "nn.Tanh()", "nn.Softplus()",
    "nn.Identity()",
]  # fmt: skip
ACT_FUNCTIONS = [
    "F.relu({})", "F.relu({})", "torch.relu({})", "{}.relu()", "torch.sigmoid({})", "{}.sigmoid()", "F.sigmoid({})",
    "torch.tanh({})", "{}.tanh()", "F.gelu({})", "F.gelu({}, approximate='tanh')", "F.silu({})", "F.elu({}, 0.5)",
    "F.leaky_relu({}, 0.2)", "F.leaky_relu({}, negative_slope=0.3)", "F.hardswish({})", "F.mish({})", "F.relu6({})",
    "torch.nn.functional.relu({})", "{}.clamp(min=0)", "F.softplus({})", "F.hardtanh({})", "F.relu(input={})",
]  # fmt: skip
ACTS_IN_PLACE = [
    "F.relu({}, inplace=True)", "{}.relu_()", "torch.relu_({})", "F.silu({}, inplace=True)", "{}.sigmoid_()",
    "{}.tanh_()", "F.leaky_relu({}, 0.2, True)", "F.relu({}, True)",
]  # fmt: skip
SUMS = [
    "{a} + {b}", "{a} + {b}", "{a} + {b}", "{b} + {a}", "{b} + {a}", "torch.add({a}, {b})", "{a}.add({b})",
    "torch.add({a}, {b}, alpha=0.5)", "{a}.add({b}, alpha=2)", "torch.add({a}, other={b})", "{a} + 0.5 * {b}",
    "{a} - {b}", "{a} + {b}.mean(0, keepdim=True)", "{a} + 1", "sum([{a}, {b}])", "{a} * {b}", "operator.add({a}, {b})",
]  # fmt: skip


def layer(body: Body, value: Value) -> Value:
    text = body.module.attribute(
        "fc",
        lambda: body.random.choice(KINDS[body.module.program.kind][1]),
        changes=["parametrize.register_parametrization({m}.{name}, 'weight', Twice())"],
    )
    body.module.hookable.append(text[5:])
    body.keep(value)
    return Value(f"{text}({value.text})", body.new_memory())


def norm_name(body: Body, reuse=0.2) -> str:
    def make():
        cls = KINDS[body.module.program.kind][2]
        cls = body.random.choice([cls] * 6 + [cls.replace("nn.Batch", ""), cls.replace("nn.", "fastreg.nn.")])
        settings = ["", "", "", "momentum=0.3", "affine=False", "track_running_stats=False", "momentum=None", "eps=0.1"]
        if cls[0] == "n" and body.random.random() < 0.07:
            return "nn.GroupNorm(2, 4)"
        return f"{cls}({', '.join(['4', *filter(None, [body.random.choice(settings)])])})"

    changes = ["{m}.{name}.eval()", "{m}.{name}.momentum = 0.7", "{m}.{name}.train()", "{m}.{name}.weight = None"]
    text = body.module.attribute("bn", make, reuse=reuse, changes=changes)
    body.module.hookable.append(text[5:])
    return text


def norm(body: Body, value: Value) -> Value:
    body.keep(value)
    return Value(f"{norm_name(body)}({value.text})", body.new_memory())


def act_name(body: Body) -> str:
    def make():
        return body.random.choice(ACT_MODULES)

    text = body.module.attribute("act", make, changes=["{m}.{name} = nn.Tanh()", "{m}.{name} = nn.Identity()"])
    body.module.hookable.append(text[5:])
    return text


def act(body: Body, value: Value) -> Value:
    chance = body.random.random()
    if chance < 0.55:
        name = act_name(body)
        made = next(line for line in body.module.init if line.startswith(f"{name} = "))
        if "inplace=True" in made and not body.may_write(value):
            return act(body, value)
        body.keep(value)
        return Value(f"{name}({value.text})", value.memory)
    if chance < 0.75 and body.may_write(value):
        body.mark("aliases/activation in place")
        body.keep(value)
        return Value(body.random.choice(ACTS_IN_PLACE).format(value.text), value.memory)
    body.mark("forms/functional activation")
    text = body.random.choice(ACT_FUNCTIONS).format(bracketed(value.text))
    if "relu" not in text:
        body.keep(value)
    result = Value(text, body.new_memory())
    body.keep(result)
    return result


def drop_name(body: Body) -> str:
    def make():
        p = body.random.choice([0.5, 0.5, 0.5, 0.25, 0.0])
        return f"nn.Dropout({p}{', inplace=True' if body.random.random() < 0.15 else ''})"

    changes = ["{m}.{name}.p = 0.0", "{m}.{name}.p = 0.5", "{m}.{name}.eval()", "{m}.{name} = nn.Identity()"]
    text = body.module.attribute("drop", make, reuse=0.4, changes=changes)
    body.module.hookable.append(text[5:])
    return text


def path_name(body: Body) -> str:
    def make():
        body.mark("forms/drop path")
        return body.random.choice(["DropPath(0.3)", "DropPath(0.5)", "fastreg.nn.DropPath(0.4)"])

    return body.module.attribute("path", make)


def drop(body: Body, value: Value) -> Value:
    chance = body.random.random()
    if chance < 0.7:
        text = f"{drop_name(body)}({value.text})"
    elif chance < 0.87:
        text = f"{path_name(body)}({value.text})"
    else:
        body.mark("forms/functional dropout")
        forms = ["F.dropout({v}, 0.5, self.training)", "F.dropout({v}, p={d}.p, training=self.training)"]
        text = body.random.choice(forms).format(v=value.text, d=drop_name(body))
    return Value(text, value.memory)  # in evaluation it is the very same tensor


def add(body: Body, value: Value, other: Value) -> Value:
    text = body.random.choice(SUMS)
    if " * " in text:
        body.keep(value), body.keep(other)
    if "alpha" in text:
        body.mark("forms/alpha")
    return Value(f"({text.format(a=bracketed(value.text), b=bracketed(other.text))})", body.new_memory())


def bracketed(text: str) -> str:
    return text if text.isidentifier() or text.endswith(")") and not text.startswith("(") else f"({text})"


def condition(body: Body, value: Value) -> str:
    """What a forward branches on; the module learns how it may change."""
    module, random, v = body.module, body.random, value.text

    def attribute(kind, make, change, form="{}"):
        return lambda: form.format(module.attribute(kind, lambda: make, reuse=0.5, switches=[change]))

    def of_class():
        if "shared" not in module.attributes:
            module.attributes["shared"] = ["shared"]
            module.class_lines.append(f"shared = {random.choice([True, False])}")
            module.switches.append("{cls}.shared = not {cls}.shared")
        return random.choice(["self.shared", "type(self).shared", f"{module.name}.shared"])

    def switched(name_of, form, *changes):
        def make():
            name = name_of(body)
            module.switches.extend(f"{{m}}.{name[5:]}.{change}" for change in changes)
            return form.format(f"{name}.{changes[0].split()[0]}")

        return make

    def hooked():
        name = norm_name(body, 0.7)
        module.switches.append(f"see.until_end({{m}}.{name[5:]}.register_forward_hook(lambda m, i, o: None))")
        return f"len({name}._forward_hooks) == 0"

    kinds = {
        "training": lambda: "self.training",
        "p of a child": switched(drop_name, "{} > 0", "p = 0.0", "p = 0.5"),
        "training of a child": switched(lambda b: norm_name(b, 0.7), "{}", "training ^= True", "training ^= True"),
        "options object": attribute("options", "Options(wide=True)", "{m}.{name}.wide ^= True", "{}.wide"),
        "dict": attribute("table", "{'open': True}", "{m}.{name}['open'] = not {m}.{name}['open']", "{}['open']"),
        "list": attribute("flags", "[True]", "{m}.{name}.append(not {m}.{name}[-1])", "{}[-1]"),
        "attribute": attribute("wide", "True", "{m}.{name} = not {m}.{name}"),
        "class attribute": of_class,
        "submodule of None": attribute("down", "None", "{m}.{name} = nn.Identity()", "{} is None"),
        "parameter of None": lambda: f"self.{none_parameter(body)} is None",
        "grad mode": lambda: "torch.is_grad_enabled()",
        "inference mode": lambda: "torch.is_inference_mode_enabled()",
        "type": lambda: f"type({v}) is torch.Tensor",
        "isinstance": lambda: f"isinstance({v}, torch.Tensor)",
        "value": lambda: f"{v}.sum() > 0.5",
        "shape": lambda: f"{v}.shape[0] > {random.choice([2, 4])}",
        "grad of value": lambda: f"{v}.requires_grad",
        "counter": attribute("counter", "0", "{m}.{name} += 1", "{} % 2 == 0"),
        "hooks of a child": hooked,
    }
    if module.program.half:  # rounding may change the sign
        del kinds["value"]
    name = random.choice(list(kinds))
    body.mark(f"branches/{name}")
    text = kinds[name]()
    if random.random() < 0.15:
        text = f"not {text}" if random.random() < 0.5 else f"{text} and self.training"
        body.mark("control/boolean operators")
    return text


def none_parameter(body: Body) -> str:
    if "slope" not in body.module.attributes:
        body.module.attributes["slope"] = ["slope"]
        body.module.init.append("self.register_parameter('slope', None)")
        body.module.switches.append("{m}.slope = nn.Parameter(torch.full((1,), 0.3, dtype={dtype}))")
    return "slope"
