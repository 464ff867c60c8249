"""fastreg.convert, report and revert on small networks; tests/zoo has those of torchvision and timm."""

import contextlib
import copy
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastreg
from fastreg.conversion import held

ADD_RELU, RELU = "batch norm + add + relu", "batch norm + relu"


class Block(nn.Module):
    """A residual block, with in-place activations and +=."""

    def __init__(self, inputs=4, channels=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != channels:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Linear(nn.Module):
    """An inverted residual: batch norm at the end of a container, added in the parent."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 4, 1))
        self.conv.append(nn.BatchNorm2d(4))

    def forward(self, x):
        return x + self.conv(x)


class Transformer(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, width), nn.Dropout(0.2)
        )
        self.drop, self.drop_path = (
            nn.Dropout(0.4),
            fastreg.nn.DropPath(0.5) if hasattr(fastreg.nn, "DropPath") else None,
        )

    def forward(self, x):
        x = x + self.drop(self.attention(self.norm1(x)))
        return self.mlp(self.norm2(x)) + x


def resnet():
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, Block(), Block(4, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def mlp():
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8)]
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 3))


IMAGES, ROWS, TOKENS = (4, 3, 8, 8), (16, 6), (4, 5, 8)
CASES = {
    "resnet": (resnet, IMAGES, {RELU: 3, ADD_RELU: 2}),
    "linear bottleneck": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Linear()),
        IMAGES,
        {"batch norm + hardswish": 1, "batch norm + add": 1},
    ),
    "mlp": (mlp, ROWS, {"relu + batch norm + dropout": 1, "batch norm + leaky_relu": 1, "gelu + dropout": 1}),
    "transformer": (Transformer, TOKENS, {"dropout + add": 2, "gelu + dropout": 1}),
}


@pytest.fixture
def same_masks(monkeypatch):
    """torch's own dropout modules draw fastreg's masks."""
    monkeypatch.setattr(F, "dropout", fastreg.functional.dropout)


def counted(model):
    counts = {}
    for site in fastreg.report(model).fused:
        counts[str(site)] = counts.get(str(site), 0) + 1
    return counts


def trained(model, shape, steps=3, dtype=torch.float64):
    """Outputs and the first gradients of some steps, and the state after them."""
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=dtype)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    outputs, gradients = [], None
    for _ in range(steps):
        y = model(x)
        optimiser.zero_grad()
        (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)).sum().backward()
        gradients = gradients or [parameter.grad.clone() for parameter in model.parameters()]
        optimiser.step()
        outputs.append(y.detach())
    return outputs, gradients, list(model.state_dict().values())


def fused_calls(model, *args):
    """How many fused functions a call of the model runs."""
    from fastreg.functional import _fused

    calls = 0
    originals = _fused.batch_norm_act_with_count, _fused.act_dropout

    def counting(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            return function(*args, **kwargs)

        return call

    _fused.batch_norm_act_with_count, _fused.act_dropout = map(counting, originals)
    try:
        model(*args)
    finally:
        _fused.batch_norm_act_with_count, _fused.act_dropout = originals
    return calls


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_computes_the_same(name, training, same_masks):
    make, shape, sites = CASES[name]
    torch.manual_seed(0)
    plain = make().double().train(training)
    converted = copy.deepcopy(plain)
    state, types = copy.deepcopy(plain.state_dict()), [type(module) for module in plain.modules()]
    modules = list(converted.modules())
    assert fastreg.convert(converted) is converted and list(converted.modules()) == modules
    assert counted(converted) == sites
    expected = sum(site.training if training else site.evaluation for site in fastreg.report(converted).fused)
    assert fused_calls(copy.deepcopy(converted), torch.randn(shape).double()) == expected
    for ours, theirs in zip(trained(converted, shape), trained(plain, shape), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    converted.load_state_dict(state)
    fastreg.revert(converted)
    assert [type(module) for module in converted.modules()] == types
    assert [module.__dict__.keys() for module in converted.modules()] == [m.__dict__.keys() for m in plain.modules()]
    for key, value in converted.state_dict().items():
        assert torch.equal(value, state[key])


def test_without_fusion():
    model = fastreg.convert(resnet(), fuse=False)
    report = fastreg.report(model)
    assert len(report.replaced) == 6 and not report.fused and type(model[3]) is Block


def test_classes():
    class Named(nn.BatchNorm2d):
        pass

    class Other(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.Sequential(Named(4), Other(4), nn.BatchNorm2d(4), fastreg.nn.BatchNorm2d(4), nn.LazyBatchNorm2d())
    fastreg.convert(model)
    assert isinstance(model[0], Named) and isinstance(model[0], fastreg.nn.BatchNorm2d)
    assert type(model[1]) is Other and "1" in fastreg.report(model).left
    assert type(model[2]) is fastreg.nn.BatchNorm2d and type(model[4]) is fastreg.nn.LazyBatchNorm2d
    model(torch.randn(2, 4, 3, 3))
    fastreg.revert(model)
    expected = [Named, Other, nn.BatchNorm2d, fastreg.nn.BatchNorm2d, nn.BatchNorm2d]
    assert [type(module) for module in model] == expected


def block_pair():
    torch.manual_seed(0)
    plain = Block(4, 6).double()
    return plain, fastreg.convert(copy.deepcopy(plain)), torch.randn(4, 4, 5, 5).double()


def assert_same(ours, plain, x):
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-9)


def test_one_batch_norm_in_evaluation():
    plain, ours, x = block_pair()
    for model in (plain, ours):
        model.bn2.eval()
    assert_same(ours, plain, x)
    assert ours.bn2.num_batches_tracked == 0 and ours.bn1.num_batches_tracked == 1
    assert fused_calls(ours, x) == 2


@pytest.mark.parametrize("name", ["bn1", "relu", "bn2"])
@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_see_what_they_saw(name, hook):
    plain, ours, x = block_pair()
    seen = {}
    for model in (plain, ours):
        values = seen[model] = []
        getattr(getattr(model, name), hook)(lambda module, *tensors, values=values: values.append(tensors[-1]))
    assert_same(ours, plain, x)
    assert len(seen[ours]) == len(seen[plain]) == (2 if name == "relu" else 1)
    # The other sites stay fused; batch norm and sum, where it is the activation that is hooked.
    assert fused_calls(ours, x) == 1


def test_replaced_child():
    plain, ours, x = block_pair()
    for model in (plain, ours):
        model.relu = nn.Sigmoid()
    assert_same(ours, plain, x)
    for model in (plain, ours):
        model.downsample = None
        model.conv1, model.bn2 = nn.Conv2d(4, 6, 1).double(), nn.Identity()
        model.conv2 = nn.Conv2d(6, 4, 1).double()
    ours.load_state_dict(plain.state_dict())
    assert_same(ours, plain, x)


def test_changed_attribute_and_forward():
    class Scaled(Block):
        scale = 1.0

        def __init__(self):
            super().__init__()
            self.scale = 1.0

        def forward(self, x):
            return super().forward(x) * self.scale if self.scale != 1.0 else super().forward(x)

    ours = fastreg.convert(Scaled())
    x = torch.randn(4, 4, 5, 5)
    expected = ours(x)
    ours.scale = 2.0
    torch.testing.assert_close(ours(x), 2 * expected)
    assert fused_calls(ours, x) == 0
    ours.forward = lambda x: x
    assert ours(x) is x


def test_changed_p():
    model = fastreg.convert(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.0)))
    x = torch.randn(64, 8)
    assert torch.equal(model(x), model[:2](x))
    model[2].p = 1.0
    assert not model(x).any()
    model[2].p = 0.5
    model[2].eval()
    assert torch.equal(model(x), model[:2](x)) and fused_calls(model, x) == 0  # dropout returns what it is given


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(copied):
    model = fastreg.convert(resnet())
    model.eval()
    x = torch.randn(IMAGES)
    expected = model(x)
    other = copied(model)
    assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
    assert torch.equal(other(x), expected) and fused_calls(other, x) == fused_calls(model, x) == 5
    assert isinstance(other[3], Block) and repr(other) == repr(model) == repr(fastreg.revert(other))


def test_optimiser_made_before():
    plain, ours = resnet(), resnet()
    ours.load_state_dict(plain.state_dict())
    optimisers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in (plain, ours)]
    fastreg.convert(ours)
    x = torch.randn(IMAGES)
    for model, optimiser in zip((plain, ours), optimisers, strict=True):
        model(x).square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)


def test_symbolic_trace():
    plain = resnet().eval()
    ours = fastreg.convert(copy.deepcopy(plain))
    traced = torch.fx.symbolic_trace(ours)
    nodes = [(node.op, str(node.target)) for node in torch.fx.symbolic_trace(plain).graph.nodes]
    assert [(node.op, str(node.target)) for node in traced.graph.nodes] == nodes
    x = torch.randn(IMAGES)
    torch.testing.assert_close(traced(x), plain(x))


def test_compiles_in_one_graph():
    model = fastreg.convert(resnet())
    x = torch.randn(IMAGES)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))


def whatever_python_has():
    """Forwards that a symbolic trace would not follow."""

    def draws(self, x):
        return self.relu(self.bn(x)) if random.random() < 2 else x

    def counts(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return self.relu(self.bn(x))

    def branches(self, x):
        return self.relu(self.bn(x)) if x.sum() > 0 else x

    def without_gradient(self, x):
        with torch.no_grad():
            return self.relu(self.bn(x))

    def makes(self, x):
        return self.relu(self.bn(x)) * torch.ones(1)

    def asks(self, x):
        y = self.bn(x)
        if isinstance(x, torch.Tensor):
            y = self.relu(y)
        return y

    return draws, counts, branches, without_gradient, makes, asks


@pytest.mark.parametrize("forward", whatever_python_has(), ids=lambda value: value.__name__)
def test_whatever_python_has(forward):
    cls = type("Odd", (nn.Module,), {"forward": forward})
    plain = cls()
    plain.bn, plain.relu = nn.BatchNorm2d(16), nn.ReLU()
    ours = copy.deepcopy(plain)
    state, attributes = random.getstate(), set(ours.__dict__)
    report = fastreg.report(fastreg.convert(ours))
    assert isinstance(ours, cls) and type(ours) is not cls and len(report.fused) == 1 and not report.left
    assert random.getstate() == state and set(ours.__dict__) == attributes
    x = torch.rand(4, 16, 16, 16)
    torch.testing.assert_close(ours(x), plain(x))
    assert ours.__dict__.get("calls") == plain.__dict__.get("calls") and fused_calls(ours, x) == 1


def unreadable():
    """Forwards that stay as they are, and a word of the reason."""

    def generator(self, x):
        yield self.relu(self.bn(x))

    @torch.autocast("cpu", enabled=False)
    def decorated(self, x):
        return self.relu(self.bn(x))

    def asks_for_names(self, x):
        y = self.relu(self.bn(x))
        return locals()["y"]

    scope = {}
    exec("def without_source(self, x):\n    return self.relu(self.bn(x))", scope)
    reasons = ["generator", "decorated", "calls locals", "source"]
    return list(zip((generator, decorated, asks_for_names, scope["without_source"]), reasons, strict=True))


@pytest.mark.parametrize("forward, reason", unreadable(), ids=lambda value: getattr(value, "__name__", None))
def test_what_cannot_be_rewritten_is_left_alone(forward, reason):
    cls = type("Odd", (nn.Module,), {"forward": forward})
    model = cls()
    model.bn, model.relu = nn.BatchNorm2d(3), nn.ReLU()
    report = fastreg.report(fastreg.convert(model))
    assert type(model) is cls and not report.fused and reason in report.left[""]
    y = model(torch.ones(IMAGES))
    assert (next(y) if reason == "generator" else y).shape == IMAGES


def test_type_of_an_argument_decides():
    """As in torchvision's DenseNet: a tensor or a list of them."""

    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.relu = nn.BatchNorm2d(6), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.bn(x if isinstance(x, torch.Tensor) else torch.cat(x, 1)))

    plain = Dense()
    ours = fastreg.convert(copy.deepcopy(plain))
    x = torch.randn(2, 6, 3, 3)
    for argument in (x, list(x.split(2, 1)), list(x.split(3, 1))):
        torch.testing.assert_close(ours(argument), plain(argument))
        assert fused_calls(ours, argument) == 1


def test_what_others_see_is_not_fused():
    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.relu, self.drop = nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.0, inplace=True)

        def forward(self, x):
            y = self.bn(x)
            z = x.view(-1)
            return self.relu(y), y, self.drop(self.relu(z)), z

    plain = Seen()
    ours = fastreg.convert(copy.deepcopy(plain))
    x = torch.randn(IMAGES)
    one, other = x.clone(), x.clone()
    torch.testing.assert_close(ours(one), plain(other))
    assert torch.equal(one, other) and not fastreg.report(ours).fused


@pytest.mark.parametrize("grad", [True, False])
def test_small_tensors_run_layer_by_layer(grad, monkeypatch):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.ReLU())
            self.bn, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5, inplace=True)

        def forward(self, x):
            h = self.layers(x)
            y = self.drop(h)  # in evaluation the same tensor
            z = F.relu_(self.bn(h) + h)
            return h, y, z, F.relu_(y)

    plain = Net().eval()
    ours = fastreg.convert(copy.deepcopy(plain))
    x = torch.randn(3, 2, 5)
    with torch.set_grad_enabled(grad):
        for small, fused in ((-1, 2), (59, 2), (60, 0)):  # the container's input has 30 elements, all others 60
            monkeypatch.setattr(held, "SMALL", small)
            assert fused_calls(ours, x) == fused
            for mine, theirs in zip(ours(x), plain(x), strict=True):
                torch.testing.assert_close(mine, theirs)


def test_a_residual_that_broadcasts_is_added_as_torch_does():
    class Broadcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x, y):
            return F.relu(self.bn(x) + y)

    plain = Broadcast()
    ours = fastreg.convert(copy.deepcopy(plain))
    x = torch.randn(IMAGES)
    for y in (x, x[:, :, :1, :1], x.double()):
        torch.testing.assert_close(ours(x, y), plain(x, y))
        torch.testing.assert_close(ours(x, y=y), plain(x, y=y))
    assert counted(ours) == {ADD_RELU: 1}


def test_unknown_activation_is_reported():
    model = fastreg.convert(nn.Sequential(nn.BatchNorm1d(4), nn.SELU(), nn.LSTM(4, 4, 2, dropout=0.5)))
    report = fastreg.report(model)
    assert not report.fused and report.left["1"].startswith(
        "SELU is not among the activations that are fused: identity"
    )
    assert "LSTM" in report.left["2"] and "2 left alone" in str(report)


@pytest.mark.parametrize("device", ["meta"])
def test_other_devices(device):
    model = fastreg.convert(resnet()).to(device)
    assert model(torch.empty(IMAGES, device=device)).shape == (4, 5)


def test_explain(capsys):
    from fastreg import __main__
    from fastreg.conversion.traffic import accesses

    assert accesses(True, 1, False, False) == (13, 8)  # batch norm and an activation: as batch norm alone
    assert accesses(True, 1, True, False) == (16, 10)  # the residual read, its gradient written
    assert accesses(False, 0, True, True) == (7, 5)
    __main__.main(["explain", "tests.zoo.nets:mlp_act_drop", "--input", "10,16"])
    printed = capsys.readouterr().out
    assert "1 gelu + dropout" in printed
    # Two sites of 10 x 32 float32: activation and dropout 9 accesses, fused 5.
    assert "0.023 MB by single" in printed and "0.0128 MB by one kernel" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torch"], "model must be named MODULE:FACTORY, got torch"),
        (["no_such_module:model"], "No module named 'no_such_module'"),
        (["torch.nn:no_such_model"], "has no attribute 'no_such_model'"),
        (["torch:e"], "torch:e must be or make a torch.nn.Module, got float"),
        (["torch:Tensor"], "torch:Tensor must be or make a torch.nn.Module, got Tensor"),
        (["torch.nn:Identity", "--input", "2,x"], "shape must be whole numbers, such as 8,3,224,224, got 2,x"),
        (["torch.nn:Identity", "--dtype", "float3"], "dtype must be one of torch's, such as bfloat16, got float3"),
    ],
)
def test_explain_refuses_in_one_line(arguments, message, capsys):
    from fastreg import __main__

    with pytest.raises(SystemExit):
        __main__.main(["explain", *arguments])
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("function", [fastreg.convert, fastreg.report, fastreg.revert])
@pytest.mark.parametrize("model", [3, None, nn.Linear])
def test_what_is_no_module_is_refused(function, model):
    with pytest.raises(TypeError, match=f"{function.__name__}: model must be a torch.nn.Module, got"):
        function(model)


def test_jit_trace():
    """The program is the plain one, whichever gradient mode it is traced in; torch compares two traces itself."""
    plain = resnet().eval()
    ours = fastreg.convert(copy.deepcopy(plain))
    x = torch.randn(IMAGES)
    traced = torch.jit.trace(ours, x)
    torch.testing.assert_close(traced(x), plain(x))
    assert "fastreg::" not in str(traced.inlined_graph)


def test_a_name_keeps_its_value_where_an_exception_is_caught():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.relu = nn.BatchNorm1d(4), nn.ReLU()

        def forward(self, x):
            h = x
            try:
                h = self.bn(h)
                h = self.relu(h)
            except ValueError:  # one value per channel
                pass
            with contextlib.suppress(ValueError):
                h = self.bn(h)
                h += x
            return self.relu(self.bn(torch.cat((h, 1 + x))))

    plain = Tries()
    ours = fastreg.convert(copy.deepcopy(plain))
    assert len(fastreg.report(ours).fused) == 1
    for x in (torch.randn(1, 4), torch.randn(5, 4)):
        torch.testing.assert_close(ours(x), plain(x))


def test_tests_of_tensors_are_not_known():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.relu, self.scale = nn.BatchNorm1d(4), nn.ReLU(), nn.Parameter(torch.ones(4))

        def forward(self, x):
            if self.scale is None or not self.training and self.scale:
                return x
            return self.relu(self.bn(x))

    assert len(fastreg.report(fastreg.convert(Scaled())).fused) == 1


def test_source_that_does_not_parse(tmp_path, monkeypatch):
    """As in a file that a tool compiles in a way of its own."""
    source = "def forward(self, x):\n    return self.relu(self.bn(x))\n"
    path = tmp_path / "cell.py"
    path.write_text(source + "%magic\n")
    scope = {}
    exec(compile(source, str(path), "exec"), scope)
    model = type("Cell", (nn.Module,), {"forward": scope["forward"]})()
    model.bn, model.relu = nn.BatchNorm1d(4), nn.ReLU()
    assert "compiled by itself" in fastreg.report(fastreg.convert(model)).left[""]
    assert model(torch.randn(3, 4)).shape == (3, 4)


def test_report_of_a_model_that_is_not_converted():
    left = fastreg.report(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())).left
    assert left == {"0": "BatchNorm1d has not been converted", "1": "Dropout has not been converted"}


def test_report_tells_the_modes():
    report = fastreg.report(fastreg.convert(mlp()))
    assert [site.evaluation for site in report.fused] == [True, True, False]
    assert "1 gelu + dropout, in training alone" in str(report) and "1 batch norm + leaky_relu (" in str(report)
