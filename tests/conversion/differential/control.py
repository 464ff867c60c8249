"""More statements of a forward: loops, functions, expressions that hold several operations, errors."""

from tests.conversion.differential import expressions as e
from tests.conversion.differential.body import Body, Value
from tests.conversion.differential.statements import chain, statement, write


@statement(4)
def conditional_expression(body, value):
    body.mark("control/conditional expression")
    step = body.random.choice([e.act, e.drop, e.norm])
    text = f"{step(body, value).text} if {e.condition(body, value)} else {value.text}"
    if body.random.random() < 0.5:
        return body.assign(Value(text, value.memory))
    return body.assign(e.act(body, Value(f"({text})", value.memory)))


@statement(3)
def own_setting(body, value):
    """A layer that is called, or a factor that is there, as the layer's own setting says."""
    body.mark("branches/setting of the layer called")
    result = body.assign(e.act(body, e.norm(body, value)))
    h = result.text
    if body.random.random() < 0.6:
        drop = e.drop_name(body)
        body.module.switches += [f"{{m}}.{drop[5:]}.p = 0.0", f"{{m}}.{drop[5:]}.p = 0.5"]
        body.line(f"if {drop}.p > 0: {h} = {drop}({h})")
    else:
        norm = e.norm_name(body, 0.9)
        body.module.switches.append(f"{{m}}.{norm[5:]}.training ^= True")
        body.line(f"{h} = {h} if {norm}.training else 2 * {h}")
    return result


@statement(2)
def walrus(body, value):
    body.mark("control/walrus")
    name = body.module.name_for("w")
    inner = e.norm(body, value)
    outer = e.act(body, Value(f"({name} := {inner.text})", body.new_memory()))
    result = body.assign(outer)
    body.values[name] = inner.memory
    return result


@statement(1)
def grad_switched(body, value):
    body.mark("contexts/set_grad_enabled")
    saved = body.module.name_for("was")
    body.line(f"{saved} = torch.is_grad_enabled()")
    result = body.assign(e.norm(body, value))
    body.line("torch.set_grad_enabled(self.training)")
    result = body.assign(e.act(body, result))
    body.line(f"torch.set_grad_enabled({saved})")
    return result


def module_list(body):
    def make():
        layers = [
            body.random.choice(e.KINDS[body.module.program.kind][1]),
            e.KINDS[body.module.program.kind][2] + "(4)",
        ]
        acts = body.random.sample(e.ACT_MODULES, 2)
        return f"nn.ModuleList([{layers[0]}, {layers[1]}, {acts[0]}, nn.Dropout(0.5), {layers[1]}, {acts[1]}])"

    return body.module.attribute("layers", make, changes=["{m}.{name}[1] = nn.Identity()", "{m}.{name}[3].p = 0.0"])


@statement(5)
def loop(body, value):
    layers = module_list(body)
    v = body.assign(Value(value.text, value.memory), body.module.name_for("h")).text
    skips = body.module.name_for("skips")
    heads = {
        "for": [f"for layer in {layers}:", [f"{v} = layer({v})"]],
        "enumerate": [f"for k, layer in enumerate({layers}):", [f"{v} = layer({v}) if k else {v}"]],
        "index": [f"for k in range(1, len({layers})):", [f"{v} = {layers}[k]({v})"]],
        "zip": [f"for layer, scale in zip({layers}, [1, 2, 1, 1]):", [f"{v} = layer({v}) * scale"]],
        "collected": [f"for layer in {layers}:", [f"{v} = layer({v})", f"{skips}.append({v})"]],
        "residual": [f"for layer in {layers}[:3]:", [f"{v} = {v} + layer({v})"]],
        "break": [f"for layer in {layers}:", [f"if isinstance(layer, nn.Dropout): break\n    {v} = layer({v})"]],
        "isinstance": [
            f"for layer in {layers}:",
            [f"{v} = layer({v})", f"if isinstance(layer, nn.Dropout): {v} = {v} * 2"],
        ],
        "while": [f"while k < len({layers}):", [f"{v} = {layers}[k]({v})", "k += 1"]],
    }
    kind = body.random.choice(list(heads))
    body.mark(f"loops/{kind}")
    head, lines = heads[kind]
    if kind == "while":
        body.line("k = 0")
    if kind == "collected":
        body.line(f"{skips} = []")
    with body.block(head):
        for line in "\n".join(lines).replace("\n    ", "\n").split("\n"):
            body.line(line)
    if kind == "collected":
        body.line(body.random.choice([f"{v} = {v} + {skips}[0]", f"{v} = sum({skips})", f"self.kept = {skips}"]))
    result = Value(v, body.new_memory())
    body.keep(result)
    body.values[v] = result.memory
    return result


@statement(2)
def comprehension(body, value):
    body.mark("loops/comprehension")
    other, norm, act = body.another(value), e.norm_name(body), e.act_name(body)
    body.keep(value), body.keep(other)
    forms = [
        f"sum([{norm}(t) for t in ({value.text}, {other.text})])",
        f"sum({act}(t) for t in [{norm}({value.text}), {norm}({other.text})])",
        f"[{act}(t) for t in [{norm}({value.text}), {other.text}]][0]",
        f"{{'a': {norm}({value.text})}}['a']",
        f"(lambda t: {act}({norm}(t)))({value.text})",
    ]
    return body.assign(Value(body.random.choice(forms), body.new_memory()))


@statement(2)
def nested_function(body, value):
    body.mark("calls/nested function")
    name, held = body.module.name_for("inner"), body.module.name_for("h")
    norm, act = e.norm_name(body), e.act_name(body)
    body.keep(value)
    form = body.random.choice(["argument", "closure", "nonlocal"])
    body.line(f"{held} = {norm}({value.text})")
    if form == "argument":
        with body.block(f"def {name}(t):"):
            body.line(f"return {act}(t)")
        text = f"{name}({held})"
    elif form == "closure":
        with body.block(f"def {name}():"):
            body.line(f"return {act}({held})")
        text = f"{name}()"
    else:
        body.mark("control/nonlocal")
        with body.block(f"def {name}():"):
            body.line(f"nonlocal {held}")
            body.line(f"{held} = {held} * 2")
        body.line(f"{name}()")
        text = f"{act}({held})"
    body.values[held] = body.new_memory()
    body.keep(body.get(held))
    return body.assign(Value(text, body.new_memory()))


@statement(2)
def unpacked(body, value):
    body.mark("control/tuple unpacking")
    other = body.another(value)
    a, b = body.module.name_for("a"), body.module.name_for("b")
    body.line(f"{a}, {b} = {e.norm(body, value).text}, {e.norm(body, other).text}")
    body.values[a], body.values[b] = body.new_memory(), body.new_memory()
    if body.random.random() < 0.4:
        body.line(f"{a}, {b} = {b}, {a}")
    if body.random.random() < 0.4:
        body.line(f"{a}, *rest = [{a}, {b}, {other.text}]")
    return body.named(e.add(body, e.act(body, body.get(a)), body.get(b)))


@statement(2)
def star(body, value):
    body.mark("calls/stars and keywords")
    norm, act = e.norm(body, value), e.act_name(body)
    forms = [
        f"{act}(*[{norm.text}])",
        f"{act}(**{{'input': {norm.text}}})",
        f"{act}(input={norm.text})",
        f"{act}.forward({norm.text})",
    ]
    forms += [
        f"{act}.__call__({norm.text})",
        f"getattr(self, '{act[5:]}')({norm.text})",
        f"self._modules['{act[5:]}']({norm.text})",
    ]
    return body.assign(Value(body.random.choice(forms), body.new_memory()))


@statement(2)
def tried(body, value):
    """A layer that refuses its input, within try."""
    body.mark("attributes/error of a layer caught")
    norm, act = e.norm_name(body), e.act_name(body)
    body.keep(value)
    result = body.assign(value, body.module.name_for("h"))
    bad = body.random.choice([".flatten()", "[0, 0, 0]", ".int()", ".shape"])
    keeps = body.random.random() < 0.4  # its value from before, if the layer raises
    if keeps:
        body.line(f"{result.text} = {value.text}")
    with body.block("try:"):
        body.line(f"{result.text} = {norm}({value.text}{bad})")
        if body.random.random() < 0.5:
            body.line(f"{result.text} = {act}({result.text})")
    with body.block(
        body.random.choice(["except Exception:", "except (ValueError, TypeError, RuntimeError, AttributeError):"])
    ):
        body.line("pass" if keeps else f"{result.text} = {act}({norm}({value.text}))")
    if body.random.random() < 0.4:
        with body.block("finally:"):
            body.line(f"{body.module.attribute('counter', lambda: '0')} += 1")
    body.values[result.text] = body.new_memory()
    return body.get(result.text)


@statement(3)
def own_method(body, value):
    """A method of the module, patched by some scripts."""
    module = body.module
    if body.depth or len(module.methods) > 1:
        return chain(body, value)
    body.mark("calls/own method")
    name = f"_mid{len(module.methods)}"
    module.methods.append([])
    inner = Body(module, ["t"], depth=1)
    result = write(inner, inner.get("t"))
    module.methods[int(name[4:])] = [
        f"def {name}(self, t):",
        *("    " + line for line in inner.lines),
        f"    return {result.text}",
    ]
    module.changes += [f"{{m}}.{name} = halved", f"{{cls}}.{name} = lambda self, t: t - 1"]
    forms = [f"self.{name}({value.text})"] * 3 + [
        f"checkpoint.checkpoint(self.{name}, {value.text}, use_reentrant=False)"
    ]
    body.keep(value)
    result = body.assign(Value(body.random.choice(forms), body.new_memory()))
    body.keep(result)
    return result


@statement(3)
def sequential(body, value):
    module, kind = body.module, body.module.program.kind

    def make():
        inner = [body.random.choice(e.KINDS[kind][1]), f"{e.KINDS[kind][2]}(4)", body.random.choice(e.ACT_MODULES)]
        inner += ["nn.Dropout(0.5)"] if body.random.random() < 0.4 else []
        return f"nn.Sequential({', '.join(inner)})"

    changes = [
        "{m}.{name}[1].eval()",
        "{m}.{name}[2] = nn.Tanh()",
        "{m}.{name}[1] = nn.Identity()",
        "{m}.{name}.append(nn.Tanh())",
    ]
    seq = module.attribute("seq", make, changes=changes)
    module.hookable += [f"{seq[5:]}[{k}]" for k in range(3)]
    body.mark("calls/Sequential")
    body.keep(value)
    form = body.random.choice(["{s}({v})"] * 3 + ["{s}[1:]({v})", "{s}[2]({s}[1]({v}))", "{s}[1:3]({v} * 1)"])
    text = form.format(s=seq, v=value.text)
    result = Value(text, body.new_memory())
    body.keep(result)
    return body.named(e.add(body, result, body.another(value)) if body.random.random() < 0.4 else body.assign(result))
