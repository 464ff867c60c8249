"""Calls, iteration, truth and classes that a program has made its own: what converted models leave to them."""

import abc
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import fastreg
from tests.conversion.test_convert import fused_calls


class Twice(nn.Sequential):
    def __call__(self, x):
        return super().__call__(x) * 2


class TwiceInside(nn.Sequential):
    def _call_impl(self, x):
        return super()._call_impl(x) * 2


class Reversed(nn.Sequential):
    def __iter__(self):
        return reversed(self._modules.values())


class LoudNorm(nn.BatchNorm1d):
    def _call_impl(self, x):
        return super()._call_impl(x) * 2


def layers():
    return nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()


def alike(model, x=None, training=True):
    """The converted copy, once it computes what the model does."""
    x = torch.randn(6, 3, dtype=torch.float64) if x is None else x
    model = model.double().train(training)
    ours = fastreg.convert(copy.deepcopy(model))
    for _ in range(2):
        torch.testing.assert_close(ours(x), model(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.state_dict(), model.state_dict(), rtol=1e-9, atol=1e-9)
    return ours


@pytest.mark.parametrize("cls", [Twice, TwiceInside, Reversed])
@pytest.mark.parametrize("training", [True, False])
def test_containers(cls, training):
    alike(nn.Sequential(cls(*layers()), nn.BatchNorm1d(3), nn.ReLU()), training=training)


def test_layers():
    ours = alike(nn.Sequential(LoudNorm(3), nn.ReLU()))
    assert type(ours[0]) is LoudNorm and "0" in fastreg.report(ours).left


class Truth(nn.Module):
    """The count of batches is read after a batch norm that could wait."""

    def __init__(self, form):
        super().__init__()
        self.bn, self.bn2, self.relu, self.form = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.ReLU(), form

    def forward(self, x):
        seen = self.bn.num_batches_tracked
        x = self.bn(x)
        if self.form == "if":
            if seen:
                x = self.relu(x)
        elif self.form == "not":
            x = x if not seen else self.relu(x)
        elif self.form == "and":
            if self.training and seen:
                x = self.relu(x)
        elif self.form == "value":
            x = (seen or 5) * x
        else:
            while seen and self.bn.num_batches_tracked < 3:
                x = self.bn(x)
        return self.relu(self.bn2(x))


@pytest.mark.parametrize("form", ["if", "not", "and", "value", "while"])
def test_truth(form):
    ours = alike(Truth(form))
    assert fused_calls(ours, torch.randn(6, 3, dtype=torch.float64)) >= 1


class Private(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.ReLU()

    @property
    def __level(self):
        return self.b.running_mean.sum()

    def forward(self, x):
        x = self.relu(self.a(x))
        x = self.b(x)
        level = self.__level
        return self.relu(x) * level


def test_private_property():
    assert fused_calls(alike(Private()), torch.randn(6, 3, dtype=torch.float64)) == 1


class Named(nn.Module):
    SCALE = 2.0

    def __init__(self):
        super().__init__()
        self.bn, self.relu = nn.BatchNorm1d(3), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(x)) * Named.SCALE


def test_a_class_that_its_forward_names():
    assert len(fastreg.report(alike(Named())).fused) == 1

    class Local(Named):
        def forward(self, x):
            return self.relu(self.bn(x)) * Local.SCALE + super().forward(x)

    assert len(fastreg.report(alike(Local())).fused) == 1


class Counting(Named):
    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return self.relu(self.bn(x))


class Recursive(Named):
    def features(self, x):
        return super(self.__class__, self).forward(x)

    def forward(self, x):
        return self.relu(self.bn(self.features(x)))


@pytest.mark.parametrize("cls", [Counting, Recursive])
def test_a_forward_that_asks_for_its_class_is_left_alone(cls):
    ours = alike(cls())
    assert type(ours) is cls and "class" in fastreg.report(ours).left[""]
    assert Counting.calls == 0 or Counting.calls % 4 == 0


REGISTRY = {}


class Registered(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.relu = nn.BatchNorm1d(3), nn.ReLU()

    def __init_subclass__(cls, *, name, **keywords):
        super().__init_subclass__(**keywords)
        REGISTRY[name] = cls

    def forward(self, x):
        return self.relu(self.bn(x))


class Own(Registered, name="own"):
    pass


class RegisteredNorm(nn.BatchNorm1d):
    def __init_subclass__(cls, *, name):
        REGISTRY[name] = cls


class OwnNorm(RegisteredNorm, name="norm"):
    pass


class Meta(type):
    def __new__(meta, name, bases, namespace):
        assert name not in REGISTRY
        return super().__new__(meta, name, bases, namespace)


class OfMeta(nn.Module, metaclass=Meta):
    def __init__(self):
        nn.Module.__init__(self)
        self.bn, self.relu = nn.BatchNorm1d(3), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(x))


class Abstract(Named, metaclass=abc.ABCMeta):
    pass


@pytest.mark.parametrize("cls, reason", [(Own, "__init_subclass__"), (OfMeta, "metaclass")])
def test_classes_that_see_what_is_derived_are_left_alone(cls, reason):
    before = dict(REGISTRY)
    ours = alike(nn.Sequential(nn.BatchNorm1d(3), cls()))
    assert type(ours[1]) is cls and reason in fastreg.report(ours).left["1"] and before == REGISTRY
    assert type(ours[0]) is fastreg.nn.BatchNorm1d


def test_layers_that_see_what_is_derived_are_left_alone():
    ours = alike(nn.Sequential(OwnNorm(3), nn.ReLU()))
    assert type(ours[0]) is OwnNorm and "0" in fastreg.report(ours).left and REGISTRY["norm"] is OwnNorm


def test_an_abstract_class_is_fused():
    assert len(fastreg.report(alike(Abstract())).fused) == 1


def test_a_module_that_is_frozen():
    class Frozen(Named):
        def __setattr__(self, name, value):
            if self.__dict__.get("frozen"):
                raise AttributeError(f"frozen: {name}")
            super().__setattr__(name, value)

    model = Frozen()
    model.frozen = True
    ours = fastreg.convert(nn.Sequential(model))
    assert len(fastreg.report(ours).fused) == 1 and type(fastreg.revert(ours)[0]) is Frozen


def test_whoever_stands_in_for_calls_sees_them(monkeypatch):
    model = nn.Sequential(nn.Sequential(*layers()), nn.BatchNorm1d(3))
    ours, seen, call = fastreg.convert(copy.deepcopy(model)), [], nn.Module.__call__

    def watched(self, *arguments):
        seen.append(type(self).__name__)
        return call(self, *arguments)

    monkeypatch.setattr(nn.Module, "__call__", watched)
    expected = model(torch.ones(4, 3)), list(seen)
    seen.clear()
    torch.testing.assert_close(ours(torch.ones(4, 3)), expected[0])
    assert seen == expected[1]


def test_whoever_stands_in_for_one_kind_of_call_sees_it(monkeypatch):
    ours = fastreg.convert(nn.Sequential(*layers()))
    assert fused_calls(ours, torch.randn(4, 3)) == 1
    monkeypatch.setattr(nn.ReLU, "__call__", lambda self, x: x * 0 + 7)
    assert torch.equal(ours(torch.randn(4, 3)), torch.full((4, 3), 7.0))


def test_function_modes_see_functions():
    class PlusOne(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            return result + 1 if function in (F.relu, torch.relu) else result

    model = nn.Sequential(*layers()).eval()
    ours, x = fastreg.convert(copy.deepcopy(model)), torch.randn(4, 3)
    with PlusOne():
        torch.testing.assert_close(ours(x), model(x))
    with torch.device("cpu"):  # a mode of torch's own
        assert fused_calls(ours, x) == 1


@pytest.mark.parametrize("fuse", ["no", None, 1])
def test_fuse_is_a_bool(fuse):
    with pytest.raises(TypeError, match="convert: fuse must be a bool, got"):
        fastreg.convert(nn.ReLU(), fuse=fuse)
