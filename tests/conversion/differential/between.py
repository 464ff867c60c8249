"""Statements that stand between two operations which would be fused: whatever a held-back value must not wait for."""

from dataclasses import dataclass

from tests.conversion.differential import expressions as e
from tests.conversion.differential.body import Body, Value

BETWEEN = {}


def between(feature):
    def register(function):
        BETWEEN[feature] = function
        return function

    return register


@dataclass
class Near:
    """What is at hand there: the value, what it was computed of, and other tensors."""

    value: Value
    source: Value
    other: Value


def plain(feature, *forms):
    """Statements of the names v (the value), i (its input), o (another tensor) and a number."""

    @between(feature)
    def write(body, near):
        form = body.random.choice(forms)
        body.line(form.format(v=near.value.text, i=near.source.text, o=near.other.text, n=body.module.name_for("t")))


def writes(feature, whom, *forms):
    """Statements that write in place to one of the tensors."""

    @between(feature)
    def write(body, near):
        target = getattr(near, whom)
        if not body.may_write(target, 0.9):
            return False
        form = body.random.choice(forms)
        if "mul" in form or "*=" in form:
            body.mark("aliases/scaled in place")
        body.line(form.format(v=target.text, o=near.other.text))


IN_PLACE = (
    "{v}.mul_(2)", "{v} *= 0.5", "{v} += 1", "{v} += {o}", "{v}.add_({o})", "{v}.clamp_(min=-1)", "{v}[:, 0] = 0",
    "{v}[:, :2] += 1", "{v}.add_({o}, alpha=0.5)", "{v} -= 1", "{v}.zero_()", "torch.add({v}, 1, out={v}.data)",
)  # fmt: skip
writes("order/input written", "source", *IN_PLACE)
writes("aliases/value written", "value", *IN_PLACE)
writes("aliases/other written", "other", *IN_PLACE)
plain("aliases/view", "{n} = {v}.view(-1)", "{n} = {v}[:, :2]", "{n} = {v}.detach()", "{n} = {v}.flatten(1)")
plain(
    "draws/torch", "{n} = torch.rand(3)", "self.noise = torch.randn_like({i})", "{n} = torch.bernoulli({v}.sigmoid())"
)
plain("draws/seed", "torch.manual_seed(3)")
plain("draws/random", "self.factor = random.random()")
plain("state/attribute", "self.last = {v}", "self.last = {v}.detach()", "self.last = {i}")
plain("state/f-string", "self.text = f'{{{v}.detach().abs().sum():.0f}}'", "self.text = str({v}.shape)")
plain("state/value", "self.number = float({v}.detach().sum())", "{n} = {v}.detach().mean().item()")
plain("state/repr", "self.kind = type({v}).__name__", "self.kind = repr({v}.dtype)")
plain("control/del", "{n} = {v}; del {n}")
plain("attributes/hasattr", "if hasattr({v}, 'tensors'): {v} = {v}.tensors")
plain("attributes/getattr", "{v} = getattr({v}, 'sample', {v})", "{n} = getattr({v}, 'mask', None)")
HOOKED = "if can_be_hooked({v}): {v}."
plain("hooks/of a tensor", HOOKED + "register_hook(lambda g: g * 2)", HOOKED + "retain_grad()")
plain("control/assert", "assert {v}.shape == {i}.shape, f'{{{v}.shape}}'")


@between("attributes/try")
def attribute_error(body: Body, near: Near):
    with body.block("try:"):
        body.line(f"{near.value.text} = {near.value.text}.features")
    with body.block("except AttributeError:"):
        body.line(body.random.choice(["pass", f"{near.value.text} = {near.value.text} * 1"]))


@between("control/global")
def global_count(body: Body, near: Near):
    body.line("globals()['calls'] += 1")


@between("aliases/second name")
def second_name(body: Body, near: Near):
    body.assign(near.value, body.module.name_for("skip"))


@between("aliases/view written")
def view_written(body: Body, near: Near):
    if not body.may_write(near.value, 0.5):
        return False
    name = body.module.name_for("part")
    view = body.random.choice(["{}[:, :2]", "{}.view(-1)", "{}.detach()", "{}[0]"])
    body.line(f"{name} = {view.format(near.value.text)}")
    body.line(body.random.choice([f"{name} += 1", f"{name}.mul_(0.5)"]))


@between("aliases/buffer")
def buffer(body: Body, near: Near):
    name = body.module.attribute("seen", lambda: "None")
    line = f"self.register_buffer('{name[5:]}', torch.ones(4))"
    if line not in body.module.init:
        body.module.init[:] = [i for i in body.module.init if i != f"{name} = None"] + [line]
    local = body.module.name_for("seen")
    body.line(f"{local} = {name}")
    body.line(body.random.choice([f"{local} *= 0.9", f"{local} += 1", f"{local}.mul_(0.5)"]))
    body.mark("aliases/scaled in place")


@between("order/statistics read")
def statistics(body: Body, near: Near):
    norm = e.norm_name(body, 0.9)
    forms = ["self.mean = {n}.running_mean.clone()", "self.counted = {n}.num_batches_tracked.clone()"]
    with body.block(f"if getattr({norm}, 'running_mean', None) is not None:"):
        body.line(body.random.choice(forms).format(n=norm))


@between("order/statistics written")
def statistics_written(body: Body, near: Near):
    norm = e.norm_name(body, 0.9)
    forms = ["{n}.running_mean.add_(1)", "{n}.reset_running_stats()", "{n}.num_batches_tracked += 1"]
    with body.block(f"if getattr({norm}, 'running_mean', None) is not None:"):
        body.line(body.random.choice(forms).format(n=norm))


@between("order/settings changed")
def settings(body: Body, near: Near):
    norm, drop = e.norm_name(body, 0.9), e.drop_name(body)
    forms = ["{n}.eval()", "{n}.momentum = 0.6", "{d}.p = 0.25", "{n}.train()", "{d}.eval()", "{n}.eps = 0.5"]
    body.line(body.random.choice(forms).format(n=norm, d=drop))


@between("order/parameter written")
def parameter(body: Body, near: Near):
    norm = e.norm_name(body, 0.9)
    with body.block(f"if {norm}.weight is not None:"):
        body.line(f"{norm}.weight.data.mul_(2)")


@between("order/shared norm")
def shared(body: Body, near: Near):
    norm = e.norm_name(body, 1.0)
    body.keep(near.other)
    body.assign(Value(f"{norm}({near.other.text})", body.new_memory()), body.module.name_for("q"))


@between("calls/another layer")
def another(body: Body, near: Near):
    step = body.random.choice([e.layer, e.norm, e.drop, e.act])
    body.assign(step(body, near.other), body.module.name_for("z"))


@between("draws/own generator")
def generator(body: Body, near: Near):
    name = body.module.attribute("generator", lambda: body.random.choice(["torch.Generator()", "random.Random(3)"]))
    made = next(line for line in body.module.init if line.startswith(f"{name} = "))
    local = body.module.name_for("noise")
    if "torch" in made:
        body.line(f"{local} = torch.rand({near.value.text}.shape, generator={name})")
    else:
        body.line(f"{local} = {name}.random()")
    body.assign(Value(f"({near.value.text} + {local})", body.new_memory()), near.value.text)


@between("draws/added")
def added(body: Body, near: Near):
    text = body.random.choice(["{} + torch.rand(())", "{} * (torch.rand(()) + 0.5)", "{} + random.random()"])
    body.assign(Value(text.format(near.value.text), body.new_memory()), near.value.text)


@between("state/list")
def appended(body: Body, near: Near):
    name = body.module.attribute("features", lambda: "[]", reuse=0.7)
    body.line(f"{name}.append({near.value.text})")
    if body.random.random() < 0.4:
        body.line(f"del {name}[:-2]")


@between("state/dict")
def entered(body: Body, near: Near):
    name = body.module.attribute("named", lambda: "{}", reuse=0.7)
    body.line(f"{name}[{body.random.choice(['0', repr('x')])}] = {near.value.text}")


@between("state/attribute of a child")
def child_attribute(body: Body, near: Near):
    body.line(f"{e.act_name(body)}.last = {near.value.text}")


@between("state/counter")
def counter(body: Body, near: Near):
    body.line(f"{body.module.attribute('counter', lambda: '0', reuse=0.7)} += 1")


@between("branches/early return")
def early_return(body: Body, near: Near):
    body.line(f"if {e.condition(body, near.value)}:")
    body.line(f"    return {body.module.returned(near.value.text)}")


@between("control/error raised")
def raising(body: Body, near: Near):
    with body.block(f"if {near.value.text}.shape[0] == {body.random.choice([3, 77, 77, 77])}:"):
        body.line("raise KeyError('shape')")


def write_between(body: Body, near: Near) -> None:
    for feature in body.random.sample(list(BETWEEN), 3):
        if BETWEEN[feature](body, near) is not False:
            return body.mark(feature)
