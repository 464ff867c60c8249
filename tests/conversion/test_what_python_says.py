"""Converted forwards do what their Python says, at every call: a test for each thing that a trace would get wrong.

contexts around layers                              test_contexts
branches on settings, objects, containers, modes    test_branches
own generators                                      test_own_generators
attributes that tensors lack                        test_attributes_that_tensors_lack
what forward keeps                                  test_lists_that_forward_fills
threads                                             test_first_calls_in_threads
patches                                             test_patched_after_convert
classes exchanged by others                         test_revert_after_fully_shard

What is written to in place: test_what_is_written_to. Random programs of all of these at once: differential.
"""

import builtins
import copy
import pickle
import sys
import threading

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import fastreg
from tests.conversion.forwards import TOLERANCE, Layers, Residual, assert_same, both, images, outcome
from tests.conversion.test_convert import fused_calls, same_masks  # noqa: F401


def contexts():
    def autocast_off(self, x):
        with torch.autocast("cpu", enabled=False):
            h = self.bn(x)
        return self.relu(h)

    def autocast_on(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            h = self.bn(self.conv(x.float()))
            h = self.relu(h)
        return self.relu(self.bn2(h.double()))

    def enable_grad(self, x):
        with torch.no_grad():
            h = self.bn(x)
            with torch.enable_grad():
                h = self.relu(self.bn2(h))
        return h

    def normal_mode(self, x):
        with torch.inference_mode(False):
            h = self.relu(self.bn(x))
        return h + 1

    def no_grad_between(self, x):
        h = self.bn(x)
        with torch.no_grad():
            h = self.relu(h)
        return h + x

    return autocast_off, autocast_on, enable_grad, normal_mode, no_grad_between


@pytest.mark.parametrize("forward", contexts(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("outer", ["none", "autocast", "no_grad", "inference_mode"])
def test_contexts(forward, outer, same_masks):  # noqa: F811
    plain, ours = both(forward)
    if forward.__name__ == "autocast_on":
        plain.conv.float(), plain.bn.float()
        ours.conv.float(), ours.bn.float()
    around = {
        "none": lambda: torch.enable_grad(),
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
    }[outer]
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if forward.__name__ == "autocast_on" else TOLERANCE  # float32
    x, results = images(), []
    for model in (ours, plain):
        with around():
            y = model(x)
        results.append((y, y.requires_grad, y.is_inference(), model.state_dict()))
    torch.testing.assert_close(*results, **tolerance)
    if outer == "none":
        assert_same(ours, plain, tolerance)


def branches():
    """Forwards, and what is changed between two calls."""

    def on_p(self, x):
        h = self.bn(x)
        return self.drop(self.relu(h)) if self.drop.p > 0 else self.silu(h)

    def on_mode_of_child(self, x):
        return self.relu(self.bn(x)) if self.bn.training else self.bn2(x)

    def on_options(self, x):
        return self.relu(self.bn(x)) if self.options.act else self.bn2(x)

    def on_list_of_options(self, x):
        h = self.bn(x)
        for step in self.options.steps:
            h = self.relu(self.bn2(h)) + step
        return h

    def on_dict(self, x):
        return self.relu(self.bn(x)) if self.flags["act"] else self.bn2(x)

    def on_class(self, x):
        h = self.bn(x)
        return self.relu(h) if self.extra else h

    def on_none(self, x):
        h = self.bn(x)
        if self.skip is not None:
            h = h + self.skip
        return self.relu(h)

    def on_grad_mode(self, x):
        return self.relu(self.bn(x)) if torch.is_grad_enabled() else self.bn2(x)

    def on_type(self, x):
        return self.relu(self.bn(x)) if type(x) is torch.Tensor else self.bn2(x)

    changes = {
        on_p: lambda m: setattr(m.drop, "p", 0.0),
        on_mode_of_child: lambda m: m.bn.eval(),
        on_options: lambda m: setattr(m.options, "act", False),
        on_list_of_options: lambda m: m.options.steps.append(3),
        on_dict: lambda m: m.flags.update(act=False),
        on_class: lambda m: None,
        on_none: lambda m: setattr(m, "skip", nn.Parameter(images().detach())),
        on_grad_mode: lambda m: None,
        on_type: lambda m: None,
    }
    return changes.items()


@pytest.mark.parametrize("forward, change", branches(), ids=lambda value: getattr(value, "__name__", None))
def test_branches(forward, change, same_masks, monkeypatch):  # noqa: F811
    plain, ours = both(forward)
    assert fused_calls(copy.deepcopy(ours), images()) > 0
    assert_same(ours, plain)
    if forward.__name__ == "on_class":
        monkeypatch.setattr(Layers, "extra", False)
    else:
        change(plain), change(ours)
    torch.testing.assert_close(outcome(ours), outcome(plain), **TOLERANCE)
    assert_same(ours, plain)


def test_own_generators(same_masks):  # noqa: F811
    def forward(self, x):
        h = self.bn(x)
        noise = torch.rand(h.shape, generator=self.generator, dtype=h.dtype)
        return self.drop(self.relu(h + noise)) + torch.rand(1).double()

    plain, ours = both(forward)
    assert_same(ours, plain)
    states = ours.generator.get_state(), plain.generator.get_state()
    assert torch.equal(*states)


def lacking():
    def has(self, x):
        h = self.bn(x)
        if hasattr(h, "tensors"):
            h = h.tensors
        return self.relu(h)

    def default(self, x):
        h = self.bn(x)
        h = getattr(h, "sample", h)
        return self.relu(h)

    def tries(self, x):
        h = self.bn(x)
        try:
            h = h.features
        except AttributeError:
            h = h * 1
        return self.relu(h)

    return has, default, tries


@pytest.mark.parametrize("forward", lacking(), ids=lambda f: f.__name__)
def test_attributes_that_tensors_lack(forward):
    plain, ours = both(forward)
    assert_same(ours, plain)


class Collects(Layers):
    def forward(self, x):
        h = self.bn(x)
        self.features.append(h)
        h = self.relu(h)
        self.features.append(h.detach())
        return h


def test_lists_that_forward_fills():
    """With tensors, which pickle and copy."""
    plain, ours = both(None, Collects)
    assert_same(ours, plain)
    with torch.no_grad():
        for model in (ours, plain):
            model.features.clear()
            model(images())
    assert [type(value) for value in ours.features] == [torch.Tensor] * 2
    other = pickle.loads(pickle.dumps(ours))
    torch.testing.assert_close(other.features, plain.features, **TOLERANCE)
    assert len(fastreg.report(other).fused) == 0 and isinstance(other, Collects)


def test_first_calls_in_threads():
    """Of copies and of unpickled models, all at once; no name of Python's changes."""
    plain, ours = both(None, Residual)
    x, expected = images(), plain(images())
    before = dict(vars(builtins))
    pickled = pickle.dumps(ours)
    models = [copy.deepcopy(ours) for _ in range(4)] + [pickle.loads(pickled) for _ in range(4)]
    barrier, results = threading.Barrier(9), {}

    def call(i, model):
        barrier.wait()
        results[i] = model(x)

    def convert():
        barrier.wait()
        results[8] = fastreg.convert(copy.deepcopy(plain).train())(x)

    threads = [threading.Thread(target=call, args=pair) for pair in enumerate(models)]
    threads.append(threading.Thread(target=convert))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    finally:
        sys.setswitchinterval(interval)
    assert len(results) == 9 and dict(vars(builtins)) == before
    for i in range(8):
        torch.testing.assert_close(results[i], expected, **TOLERANCE)
        torch.testing.assert_close(models[i].state_dict(), plain.state_dict(), **TOLERANCE)
    assert results[8].shape == expected.shape


@pytest.mark.parametrize("what", ["class", "method", "layer's class", "instance", "function of torch"])
def test_patched_after_convert(what, monkeypatch):
    class Patched(Layers):
        def forward(self, x):
            return self.act(self.bn(x))

        def act(self, x):
            return F.relu(x) + self.silu(self.bn2(x))

    plain, ours = both(None, Patched)
    assert fused_calls(ours, images()) > 0
    plain(images())
    if what == "class":
        monkeypatch.setattr(Patched, "forward", lambda self, x: self.silu(self.bn(x)) * 3)
    elif what == "method":
        monkeypatch.setattr(Patched, "act", lambda self, x: F.gelu(x))
    elif what == "layer's class":
        monkeypatch.setattr(nn.SiLU, "forward", lambda self, x: x * 5)
    elif what == "function of torch":
        monkeypatch.setattr(F, "relu", lambda x: x * 7)
    else:
        for model in (plain, ours):
            model.act = lambda x: x * 4
    assert_same(ours, plain)


def test_revert_after_fully_shard():
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain, ours = both(None, Residual)
        mesh = dist.init_device_mesh("cpu", (1,))
        for model in (plain, ours):
            fully_shard(model, mesh=mesh)
        name = type(plain).__name__
        assert_sharded_same(ours, plain)
        fastreg.revert(ours)
        assert [type(m).__name__ for m in ours.modules()] == [type(m).__name__ for m in plain.modules()]
        assert type(ours.bn) is nn.BatchNorm2d and type(ours).__name__ == name
        assert not any(base.__module__.startswith("fastreg") for base in type(ours).__mro__)
        assert_sharded_same(ours, plain)
    finally:
        dist.destroy_process_group()


def assert_sharded_same(ours, plain):
    x, results = images(), []
    for model in (ours, plain):
        y = model(x)
        y.sum().backward()
        results.append((y, [parameter.grad.full_tensor() for parameter in model.parameters()], model.bn.running_mean))
        model.zero_grad()
    torch.testing.assert_close(*results, **TOLERANCE)
