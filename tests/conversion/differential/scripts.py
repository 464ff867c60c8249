"""What is done with a model: calls in all modes, changes between them, writes after them, backward."""

import re

from tests.conversion.differential.body import KINDS

MODES = ["model.train()", "model.train()", "model.eval()"]
AROUND = ["none", "none", "none", "none", "with torch.no_grad()", "with torch.inference_mode()"]
HOOKS = {
    "forward": "{t}.register_forward_hook(lambda m, i, o: see.note('forward', i, o))",
    "forward changes": "{t}.register_forward_hook(lambda m, i, o: o * 2 if isinstance(o, torch.Tensor) else None)",
    "pre": "{t}.register_forward_pre_hook(lambda m, i: see.note('pre', i))",
    "full backward": "{t}.register_full_backward_hook(lambda m, i, o: see.note('backward', i, o))",
    "global": "see.hook_all(lambda m, i, o: see.note('global', o))",
}
PATCHES = {
    "forward of an instance": "{t}.forward = halved",
    "forward of a class": "{cls}.forward = lambda self, x, *_: x * 2",
    "bound forward": "{t}.forward = own_method(lambda self, x, *_: x + 1, {t})",
    "wrapped forward": "see.wrap({t})",
}


def write_script(program, model) -> list[str]:
    random, mark = program.random, program.features.add
    lines = []
    places = list(modules_of(model, "model"))
    for number in range(random.choice([2, 3, 4])):
        lines.append(f"with see.phase('{number}'):")
        body = []
        for _ in range(random.choice([0, 1, 2, 3]) if number else 0):
            body += change(random, mark, places)
        if random.random() < 0.08:
            mark("structure/copied")
            body.append(f"model = see.copied(model, {random.choice(['deepcopy', 'pickle'])!r})")
        if random.random() < 0.05:
            mark("structure/converted again")
            body.append(random.choice(["see.convert(model)", "see.revert(model)", "see.convert(see.revert(model))"]))
        if random.random() < 0.04:
            mark("threads/first calls of copies")
            body.append(f"see.threads(model.eval(), *[{inputs(program, model, 'leaf')[0]}])")
        body.append(random.choice(MODES))
        body += call(program, model, number)
        lines += ["    " + line for line in body]
    return lines


def modules_of(module, path):
    yield path, module
    for name, child in module.children.items():
        yield from modules_of(child, f"{path}.{name}")


def inputs(program, model, form):
    shape = KINDS[program.kind][0]
    dtype = "torch.float32" if program.half else "torch.float64"
    seeds = program.random.sample(range(9), 2 if model.two else 1)
    samples = program.random.choice([2, 3, 5, 5, 5] if program.random.random() < 0.97 else [1])
    shape = f"({samples}, {shape})"
    texts = {"leaf": "see.input({s}, {shape}, {dtype})", "owned": "see.input({s}, {shape}, {dtype}) * 1"}
    texts["plain"] = "see.input({s}, {shape}, {dtype}, grad=False)"
    texts["strided"] = "see.input({s}, {shape}, {dtype}).transpose(0, -1).contiguous().transpose(0, -1)"
    texts["parameter"] = "nn.Parameter(see.input({s}, {shape}, {dtype}, grad=False))"
    return [texts[form].format(s=s, shape=shape, dtype=dtype) for s in seeds]


def call(program, model, number):
    random, mark = program.random, program.features.add
    form = random.choice(["leaf", "owned", "owned", "owned", "owned", "plain", "strided", "parameter"])
    names = "x, s" if model.two else "x"
    lines = [f"{name} = {text}" for name, text in zip("xs", inputs(program, model, form), strict=False)]
    around = random.choice(AROUND)
    if program.half and random.random() < 0.7:
        mark("contexts/autocast outside")
        around = "with torch.autocast('cpu', torch.bfloat16)"
    if random.random() < 0.08 and form != "leaf":
        mark("later/residual of inference mode")
        lines += ["with torch.inference_mode():", f"    {names[-1]} = {names[-1]} * 2"]
    if "grad" in around or "inference" in around:
        mark("contexts/no gradient outside")
    called = f"y = model({names})"
    lines += [called] if around == "none" else [f"{around}:", f"    {called}"]
    lines.append(f"see({names}, y)")
    if "inference" in around and random.random() < 0.9:
        return lines
    if form == "owned" and random.random() < 0.4:
        mark("later/input written")
        lines.append(random.choice(["x += 1", "x += see.first(y)", "x.mul_(2)", "x.zero_()"]))
    if model.two and form == "owned" and random.random() < 0.4:
        mark("later/skip written")
        lines.append(random.choice(["s += 1", "s += see.first(y)", "s.mul_(2)"]))
    if random.random() < 0.25:
        mark("later/result written")
        lines.append(random.choice(["see.first(y).mul_(2)", "y = see.first(y); y += 1", "see.first(y).relu_()"]))
    lines.append(f"see.backward(y, {names})")
    return lines


def change(random, mark, places):
    """Something changes from outside."""
    path, module = random.choice(places)
    target = random.choice([path] + [f"{path}.{name}" for name in module.hookable] * 2)
    chance = random.random()
    if chance < 0.25 or not module.changes + module.switches and chance < 0.6:
        kind = random.choice(list(HOOKS))
        mark(f"hooks/{kind}")
        return [HOOKS[kind].format(t=target)]
    if chance < 0.4:
        kind = random.choice(list(PATCHES))
        mark(f"patches/{kind}")
        return [PATCHES[kind].format(t=target, cls=module.name)]
    changes = module.changes
    if module.switches and random.random() < 0.75:
        changes = module.switches
    elif methods := [change for change in changes if "._mid" in change] if random.random() < 0.5 else []:
        changes = methods
    if not changes:
        return []
    text = random.choice(changes)
    if re.match(r"\{(m|cls)\}\._mid", text):
        mark("patches/own method")
    else:
        mark("changes/of attributes")
    dtype = "torch.float32" if module.program.half else "torch.float64"
    return [text.format(m=path, cls=module.name, dtype=dtype)]
