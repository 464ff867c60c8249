"""Forwards that find nothing worth fusing run as they are, and what is remembered of them is forgotten by revert."""

import copy

import pytest
import torch
from torch import nn

import fastreg
from fastreg.conversion import held


class Block(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(channels), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(torch.relu(self.norm(x)) + x)


@pytest.fixture
def sites(monkeypatch):
    """The number of fused sites that have run, and small tensors of up to 64 elements."""
    monkeypatch.setattr(held, "SMALL", 64)
    ran = []
    run = held._run

    def counted(site):
        ran.extend([1] * isinstance(site.input, torch.Tensor))  # not where a forward is only read
        run(site)

    monkeypatch.setattr(held, "_run", counted)
    return ran


SMALL, LARGE = torch.arange(64.0).view(8, 8), torch.arange(128.0).view(16, 8)


def test_small_ones_run_as_they_are(sites):
    model = fastreg.convert(Block())
    model(SMALL)
    assert not sites and held.runs_as_it_is(model, SMALL) and not held.runs_as_it_is(model, LARGE)
    model(SMALL)
    assert not sites
    model(LARGE)
    assert sites


def test_larger_ones_are_not_remembered(sites):
    model = fastreg.convert(Block())
    model(LARGE)
    assert sites and not held.runs_as_it_is(model, LARGE)
    model(SMALL)
    assert held.runs_as_it_is(model, SMALL) and not held.runs_as_it_is(model, LARGE)


class Grows(nn.Module):
    """The tensors inside are larger than the input, as a generator's are."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 32), nn.BatchNorm1d(32)

    def forward(self, x):
        return torch.relu(self.norm(self.linear(x)))


def test_inputs_that_grow(sites):
    model = fastreg.convert(Grows())
    for _ in range(3):
        model(torch.randn(8, 4))  # 32 elements, then 256
    assert len(sites) == 3 and not held.runs_as_it_is(model, torch.randn(8, 4))


def test_of_a_watched_call_nothing_is_remembered(sites):
    model = fastreg.convert(Block())
    handle = nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    try:
        model(LARGE)  # each layer by itself
    finally:
        handle.remove()
    assert not held.runs_as_it_is(model, LARGE)
    model(LARGE)
    assert sites


@pytest.mark.parametrize("training", [True, False])
def test_what_comes_out_is_the_same(sites, training):
    plain = fastreg.convert(Block(), fuse=False).train(training)
    model = fastreg.convert(copy.deepcopy(plain))
    for _ in range(3):
        torch.manual_seed(0)
        expected = plain(SMALL)
        torch.manual_seed(0)
        assert torch.equal(model(SMALL), expected)
    assert held.runs_as_it_is(model, SMALL)
    assert torch.equal(model.norm.running_mean, plain.norm.running_mean)


def test_revert_forgets(sites):
    model = fastreg.convert(Block())
    model(SMALL)
    assert held.SMALL_INPUT in vars(model)
    fastreg.revert(model)
    assert held.SMALL_INPUT not in vars(model) and type(model) is Block


def test_nothing_to_fuse_in_evaluation():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

        def forward(self, x):
            seen.append(self.drop.training)
            return self.drop(torch.relu(self.linear(x))) + x

    seen = []
    model = fastreg.convert(Drops())
    (site,) = fastreg.report(model).fused
    assert site.training and not site.evaluation
    expected = Drops.forward(model.eval(), SMALL)
    assert torch.equal(model(SMALL), expected) and seen == [False, False]
    model.drop.train()  # as for Monte Carlo dropout
    torch.manual_seed(0)
    kept = (model(SMALL) - SMALL != 0).float().mean()
    assert 0 < kept < 1
    model.train()
    assert fastreg.report(model).fused == [site]
