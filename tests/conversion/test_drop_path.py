"""Drop path of libraries that nobody here knows, told by its source; what draws and is named; Hugging Face."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastreg
from fastreg.conversion import drop_path as forms
from fastreg.conversion.layers import drop_path_rule
from tests.conversion.test_convert import fused_calls

ROWS = (64, 6)


def drop_path(x, drop_prob: float = 0.0, training: bool = False, scale_by_keep: bool = True):
    """As in timm."""
    if drop_prob == 0.0 or not training:
        return x
    keep_prob = 1 - drop_prob
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    random_tensor = x.new_empty(shape).bernoulli_(keep_prob)
    if keep_prob > 0.0 and scale_by_keep:
        random_tensor.div_(keep_prob)
    return x * random_tensor


def old_drop_path(inputs, p, train=False):
    if not train or p == 0:
        return inputs
    keep = 1.0 - p
    shape = (inputs.shape[0],) + (1,) * (inputs.dim() - 1)
    mask = keep + torch.rand(shape, dtype=inputs.dtype, device=inputs.device)
    mask.floor_()
    output = inputs.div(keep) * mask
    return output


class DropPath(nn.Module):
    def __init__(self, drop_prob=0.25, scale_by_keep=True):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x):
        return drop_path(x, self.drop_prob, self.training, self.scale_by_keep)


class OldDropPath(nn.Module):
    def __init__(self, p=0.25):
        super().__init__()
        self.rate = p

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Docstrings and annotations are no matter."""
        return old_drop_path(hidden, self.rate, train=self.training)


class StochasticDepth(nn.Module):
    def __init__(self, drop_prob=0.25):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states):
        if self.drop_prob is None or self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        random_tensor = torch.rand(shape, dtype=hidden_states.dtype, device=hidden_states.device)
        random_tensor = torch.floor(random_tensor + keep_prob)
        return hidden_states.div(keep_prob) * random_tensor


KNOWN = [DropPath, OldDropPath, StochasticDepth]


class Block(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.linear, self.drop_path = nn.Linear(6, 6), drop

    def forward(self, x):
        return x + self.drop_path(self.linear(x))


def assert_drops_rows(model, x, scale):
    branch, difference = model.linear(x), model(x) - x
    kept = difference.abs().sum(1) > 0
    assert 0 < kept.sum() < len(x)
    torch.testing.assert_close(difference, branch * scale * kept[:, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", KNOWN)
def test_drop_path_of_any_library(cls):
    model, x = fastreg.convert(Block(cls())), torch.randn(ROWS)
    report = fastreg.report(model)
    assert [str(site) for site in report.fused] == ["drop path + add"] and not report.left
    assert fused_calls(model, x) == 1
    assert_drops_rows(model, x, 1 / 0.75)
    model.eval()
    torch.testing.assert_close(model(x), x + model.linear(x))
    assert type(fastreg.revert(model).drop_path) is cls


def test_each_form_is_drop_path():
    """What is taken for drop path drops rows and scales the others, and does nothing in evaluation and at 0."""
    settings = {"p": "self.p", "training": "self.training", "scaled": "self.scaled"}
    for parts in itertools.product(forms._RETURNED, forms._DRAWN, forms._SCALED):
        scope = {"torch": torch}
        exec(forms._FORM.format(*parts).format(**settings), scope)
        module = nn.Module()
        module.p, module.scaled, x = 0.25, True, torch.ones(4000, 2, 2)
        y = scope["f"](module, x)
        rows = y.flatten(1)
        assert ((rows == 0).all(1) | ((rows - 1 / 0.75).abs() < 1e-6).all(1)).all(), parts
        assert abs((y == 0).float().mean() - 0.25) < 0.05, parts  # seven standard deviations
        module.p = 0.0
        assert scope["f"](module, x) is x
        module.p = 0.25
        assert scope["f"](module.eval(), x) is x
    assert len(forms._forms()) == len(forms._RETURNED) * len(forms._DRAWN) * len(forms._SCALED)


def others():
    """Modules of such names that do something else."""

    class BatchDropPath(DropPath):  # all rows or none
        def forward(self, x):
            if self.drop_prob == 0.0 or not self.training:
                return x
            keep = 1 - self.drop_prob
            return x / keep * torch.floor(torch.rand((1,), dtype=x.dtype, device=x.device) + keep)

    class ShiftedDropPath(DropPath):
        def forward(self, x):
            return drop_path(x, self.drop_prob, self.training, self.scale_by_keep) + 1

    class SwappedDropPath(DropPath):  # p is what is kept
        def forward(self, x):
            return drop_path(x, 1 - self.drop_prob, self.training)

    class OtherInputDropPath(DropPath):
        def forward(self, x):
            return drop_path(self.drop_prob, x, self.training)

    class EvaluatingDropPath(DropPath):
        def forward(self, x):
            return drop_path(x, self.drop_prob, not self.training)

    class ColumnDropPath(DropPath):
        def forward(self, x):
            if self.drop_prob == 0.0 or not self.training:
                return x
            keep = 1 - self.drop_prob
            shape = (x.shape[1],) + (1,) * (x.ndim - 1)
            r = x.new_empty(shape).bernoulli_(keep)
            r.div_(keep)
            return x * r

    return BatchDropPath, ShiftedDropPath, SwappedDropPath, OtherInputDropPath, EvaluatingDropPath, ColumnDropPath


@pytest.mark.parametrize("cls", others(), ids=lambda cls: cls.__name__)
def test_what_is_not_known_to_be_drop_path_is_left_and_named(cls):
    model = fastreg.convert(Block(cls()))
    report = fastreg.report(model)
    assert not report.fused and "not known to be drop path" in report.left["drop_path"]
    if cls.__name__ != "OtherInputDropPath":
        assert fused_calls(model, torch.randn(6, 6)) == 0


def shadowing():
    """Modules whose names are not those of the file."""

    def drop_path(x, *settings):
        return 3 * x

    class ClosureDropPath(DropPath):
        def forward(self, x):
            return drop_path(x, self.drop_prob, self.training)

    class ArgumentDropPath(DropPath):
        def forward(self, x, old_drop_path=drop_path):
            return old_drop_path(x, self.drop_prob, self.training)

    return ClosureDropPath, ArgumentDropPath


@pytest.mark.parametrize("cls", shadowing(), ids=lambda cls: cls.__name__)
def test_a_local_name_is_no_global_one(cls):
    model, x = fastreg.convert(Block(cls())), torch.randn(ROWS)
    assert forms.rule_of(cls) is None and forms.rule_of(OldDropPath) is not None
    torch.testing.assert_close(model(x), x + 3 * model.linear(x))


def test_settings_that_are_another_function():
    x = torch.randn(ROWS)
    model = fastreg.convert(Block(DropPath()))
    assert fused_calls(model, x) == 1
    model.drop_path.scale_by_keep = False
    assert fused_calls(model, x) == 0
    assert_drops_rows(model, x, 1.0)
    model.drop_path.scale_by_keep = True
    model.drop_path.drop_prob = torch.tensor(0.25)
    assert fused_calls(model, x) == 0
    model = fastreg.convert(Block(StochasticDepth(None)))
    assert fused_calls(model, x) == 0
    torch.testing.assert_close(model(x), x + model.linear(x))


@pytest.mark.parametrize("what", ["forward", "function"])
def test_replaced_after_convert(what, monkeypatch):
    model, x = fastreg.convert(Block(DropPath())), torch.randn(ROWS)
    assert fused_calls(model, x) == 1 and drop_path_rule(DropPath) is not None
    if what == "forward":
        monkeypatch.setattr(DropPath, "forward", lambda self, x: 3 * x)
    else:
        monkeypatch.setitem(globals(), "drop_path", lambda x, *settings: 3 * x)
    assert drop_path_rule(DropPath) is None
    torch.testing.assert_close(model(x), x + 3 * model.linear(x))


def test_torch_of_another_name_is_not_torch(monkeypatch):
    class RenamedDropPath(StochasticDepth):
        forward = StochasticDepth.forward

    monkeypatch.setitem(globals(), "torch", fastreg)
    assert forms.rule_of(RenamedDropPath) is None
    monkeypatch.undo()
    assert forms.rule_of(RenamedDropPath) is not None


# What stays torch's is named.


class Draws(nn.Module):
    def __init__(self, p=0.1):
        super().__init__()
        self.p, self.q, self.drop, self.norm = p, 0.0, DropPath(0.5), nn.BatchNorm1d(6)
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.3)
        self.slope, self.lstm = nn.RReLU(), nn.LSTM(6, 6, 2, dropout=0.5)
        self.none = nn.Dropout(0.0)

    def forward(self, x):
        x = F.dropout(x, p=self.p, training=self.training)
        x = F.dropout(x, p=self.q if self.training else 0.0)
        x = old_drop_path(x, self.p, self.training)
        x = attend(x, x, dropout=self.p if self.training else 0.0)
        x = attend(x, x, dropout=self.none.p)
        x = x + self.noise(x)
        y = self.drop(x)
        return F.batch_norm(y, self.norm.running_mean, self.norm.running_var)

    def noise(self, x):
        return torch.randn_like(x)


def attend(x, y, dropout):
    return x + y


def test_every_draw_and_batch_norm_that_stays_torchs_is_named():
    left = fastreg.report(fastreg.convert(Draws())).left
    function = "a call of the function, not of a module, is not replaced"
    names = {"dropout", "old_drop_path", "attend", "randn_like", "batch_norm"}
    assert {path for path, reason in left.items() if reason == function} == names
    assert left["drop"] == "DropPath is not next to what it could be fused with"
    assert left["attention"] == "dropout within MultiheadAttention is not replaced: only patch_torch reaches it"
    assert left["lstm"] == "dropout within LSTM is not replaced: only patch_torch reaches it"
    assert left["slope"] == "a random draw within RReLU is not replaced"
    left = fastreg.report(fastreg.convert(Draws(0.0))).left
    assert "dropout" not in left and "attend" not in left


def test_what_is_fastregs_is_not_named():
    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = fastreg.nn.DropConnectLinear(6, 6)

        def forward(self, x):
            return fastreg.functional.dropout(self.linear(x), 0.5, self.training)

    class DropPathBlock(Block):
        """Of a name like drop path's."""

    assert not fastreg.report(fastreg.convert(Ours())).left
    assert not fastreg.report(fastreg.convert(DropPathBlock(DropPath()))).left


def test_a_decorated_forward_is_read_for_draws():
    class Decorated(nn.Module):
        @torch.autocast("cpu", enabled=False)
        def forward(self, x):
            return F.dropout(x, 0.5)

    assert "dropout" in fastreg.report(fastreg.convert(Decorated())).left


# Hugging Face.


@pytest.mark.package("transformers")
def test_drop_paths_of_hugging_face():
    import importlib

    names = {"swin": "Swin", "convnext": "ConvNext", "convnextv2": "ConvNextV2", "beit": "Beit", "dinov2": "Dinov2"}
    names |= {"segformer": "Segformer", "poolformer": "PoolFormer", "bit": "Bit", "cvt": "Cvt", "hiera": "Hiera"}
    for folder, name in names.items():
        module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
        rule = drop_path_rule(getattr(module, f"{name}DropPath"))
        assert rule is not None and rule[:2] == ("drop_prob", ""), name


@pytest.mark.package("transformers")
@pytest.mark.parametrize("p", [0.1, 0.0])
def test_attention_of_hugging_face_is_named(p):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=600, attention_probs_dropout_prob=p, **sizes))
    report = fastreg.report(fastreg.convert(model))
    assert [str(site) for site in report.fused] == ["dropout + add"] * 2
    assert ("encoder.layer.0.attention.self.attention_interface" in report.left) is (p > 0)


@pytest.mark.package("transformers")
def test_activations_of_hugging_face():
    """Those that are fused compute the same; those that only look alike are left alone, and named."""
    from transformers.activations import ACT2CLS, ACT2FN

    fused = {
        "gelu",
        "gelu_pytorch_tanh",
        "hardswish",
        "leaky_relu",
        "mish",
        "relu",
        "relu6",
        "sigmoid",
        "silu",
        "swish",
    }
    fused |= {"tanh", "prelu"}
    for name in ACT2CLS.keys() - {"xielu", "gelu_10", "linear"}:
        model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), ACT2FN[name], nn.Linear(6, 6)).double()
        x = torch.randn(ROWS).double()
        expected = model(x)
        report = fastreg.report(fastreg.convert(model))
        assert bool(report.fused) is (name in fused), name
        assert ("2" in report.left) is (name not in fused), name
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
