"""Dropout that draws from a generator of the caller's: what it draws, and that nothing else is drawn from."""

import contextlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastreg
from fastreg import _routing
from fastreg import functional as F
from tests.common import DEVICES
from tests.functional.dropout_family import KINDS
from tests.known_answers import rng_state

devices = pytest.mark.parametrize("device", DEVICES)
SEED = 7


def act_dropout(x, p, training=True, inplace=False, **keywords):
    return F.act_dropout(x, "gelu", p, training, **keywords)


def prelu_dropout(x, p, training=True, inplace=False, **keywords):
    """Composed."""
    return F.act_dropout(x, "prelu", p, training, act_weight=x.new_tensor([0.5]), **keywords)


def added_path(x, p, training=True, inplace=False, **keywords):
    return F.drop_path(x, p, training, residual=torch.ones_like(x), **keywords)


def act_path(x, p, training=True, inplace=False, **keywords):
    return F.act_dropout(x, "gelu", p, training, drop_path=True, residual=torch.ones_like(x), **keywords)


def batch_norm_act(x, p, training=True, inplace=False, **keywords):
    """Its dropout is one by p alone."""
    return F.batch_norm_act(x, None, None, training=True, p=p if training else 0.0, **keywords)


def batch_norm_act_eval(x, p, training=True, inplace=False, **keywords):
    statistics = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
    return F.batch_norm_act(x, *statistics, act="tanh", p=p if training else 0.0, **keywords)


# Each with a shape that it takes: many draws, so that two equal masks are no chance.
CALLS = {name: (kind.function, kind.shape) for name, kind in KINDS.items() if not kind.keywords}
CALLS |= {
    f.__name__: (f, (40, 30, 4))
    for f in (act_dropout, prelu_dropout, added_path, act_path, batch_norm_act, batch_norm_act_eval)
}
INPLACE = {kind.function for kind in KINDS.values()}
calls = pytest.mark.parametrize(("function", "shape"), CALLS.values(), ids=CALLS.keys())


@pytest.fixture(params=[True, False], ids=["operators", "composed"])
def way(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(_routing, "_COMPILED_BACKENDS", frozenset())


def own(device, seed=SEED):
    return torch.Generator(device).manual_seed(seed)


def default_state(device):
    return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()


def inputs(shape, device):
    return torch.rand(shape, device=device) + 0.5  # kept elements are not zero


@devices
@calls
def test_it_is_the_default_one_in_another_place(device, function, shape, way):
    """Two calls: the results and the state that are left are those of the device's own generator."""
    x, generator = inputs(shape, device), own(device)
    torch.manual_seed(SEED + 1)
    before = default_state(device)
    found = [function(x, 0.5, True, generator=generator) for _ in range(2)]
    assert torch.equal(default_state(device), before)
    torch.manual_seed(SEED)
    expected = [function(x, 0.5, True) for _ in range(2)]
    assert all(map(torch.equal, found, expected)) and not torch.equal(*found)
    assert torch.equal(generator.get_state(), default_state(device))


@devices
@calls
def test_in_place(device, function, shape, way):
    if function not in INPLACE:
        return
    x = inputs(shape, device)
    expected = function(x, 0.5, True, generator=own(device))
    y = function(x, 0.5, True, True, generator=own(device))
    assert y is x and torch.equal(y, expected)


@devices
@calls
def test_state_that_is_drawn(device, function, shape):
    """draw_rng_state gives what a call would use, and leaves the generator as the call does."""
    x, one, other = inputs(shape, device), own(device), own(device)
    state = fastreg.draw_rng_state(device, generator=one)
    assert torch.equal(function(x, 0.5, True, rng_state=state), function(x, 0.5, True, generator=other))
    assert torch.equal(one.get_state(), other.get_state())


@devices
@calls
def test_nothing_is_drawn_where_nothing_is_dropped(device, function, shape, way):
    x, generator = inputs(shape, device), own(device)
    before = generator.get_state()
    for p, training in ((0.5, False), (0.0, True), (1.0, True)):
        function(x, p, training, generator=generator)
    if not function.__name__.startswith("batch_norm"):
        function(x[:0], 0.5, True, generator=generator)
    assert torch.equal(generator.get_state(), before)


@devices
@calls
def test_derivatives_have_its_mask(device, function, shape):
    x = inputs(shape, device).double().requires_grad_()
    gradients = []
    for keywords in ({"generator": own(device)}, {"rng_state": fastreg.draw_rng_state(device, own(device))}):
        y = function(x, 0.5, True, **keywords)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        gradients += [dx, torch.autograd.grad(dx.square().sum(), x)[0]]
    assert torch.equal(gradients[0], gradients[2]) and torch.equal(gradients[1], gradients[3])


# ---- contexts


@devices
def test_recorded_and_replayed(device):
    """In the order of the calls, whichever generator they draw from."""
    x, generator = inputs((40, 30), device), own(device)
    torch.manual_seed(1)
    with fastreg.record_rng_states() as states:
        found = F.dropout(x, generator=generator), F.dropout(x), F.act_dropout(x, generator=generator)
    other = own(device)
    assert torch.equal(states[0], fastreg.draw_rng_state(device, other))
    assert torch.equal(states[2], fastreg.draw_rng_state(device, other))
    before = generator.get_state(), default_state(device)
    with fastreg.replay_rng_states(states):
        again = F.dropout(x), F.dropout(x, generator=generator), F.act_dropout(x, generator=generator)
    assert all(map(torch.equal, found, again))
    assert torch.equal(generator.get_state(), before[0]) and torch.equal(default_state(device), before[1])


def block(x, generator):
    return F.act_dropout(F.dropout(x, 0.5, generator=generator), p=0.2, generator=generator).square()


@devices
def test_checkpoint_contexts(device):
    """The second call has the states of the first, and draws from no generator. Around or within a recording, too."""
    for recorded in (False, True):
        x, generator = inputs((40, 30), device).requires_grad_(), own(device)
        with fastreg.record_rng_states() if recorded else contextlib.nullcontext() as states:
            settings = {"preserve_rng_state": False, "context_fn": fastreg.checkpoint_contexts}
            y = checkpoint(block, x, generator, use_reentrant=False, **settings)
            drawn = generator.get_state()
            y.sum().backward()
        assert torch.equal(y, block(x, own(device))) and torch.equal(x.grad != 0, y != 0)
        assert torch.equal(generator.get_state(), drawn) and (not recorded or len(states) == 2)


@devices
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_without_them_are_refused(device, use_reentrant):
    """torch restores the devices' own generators alone: the second call would see another mask."""
    generator = own(device)
    before = generator.get_state()
    for context in (contextlib.nullcontext, fastreg.record_rng_states):
        with context(), pytest.raises(RuntimeError, match="context_fn fastreg.checkpoint_contexts around"):
            checkpoint(block, inputs((40, 30), device).requires_grad_(), generator, use_reentrant=use_reentrant)
    assert torch.equal(generator.get_state(), before)


@devices
def test_sharded_batch_refuses(device):
    x, generator = inputs((40, 30), device), own(device)
    before = generator.get_state()
    with fastreg.sharded_batch(40):
        for function in (F.dropout, F.act_dropout, F.drop_path):
            with pytest.raises(RuntimeError, match="sharded_batch: generator must be None within"):
                function(x, generator=generator)
        with pytest.raises(RuntimeError, match="sharded_batch: generator must be None within"):
            fastreg.draw_rng_state(device, generator)
        F.dropout(x, 0.5, False, generator=generator)  # draws nothing
    assert torch.equal(generator.get_state(), before)


@pytest.mark.cuda
def test_graph_replays_draw_anew():
    x, generator = torch.ones(4, 1000, device="cuda"), own("cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        F.dropout(x, generator=generator)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    generator.manual_seed(SEED)
    with torch.cuda.graph(graph):
        captured = F.dropout(x, generator=generator), F.act_dropout(x, generator=generator)
    found = []
    for _ in range(3):
        graph.replay()
        found += [y.clone() for y in captured]
    other = own("cuda")
    for i, y in enumerate(found):
        assert torch.equal(y, (F.dropout if i % 2 == 0 else F.act_dropout)(x, generator=other))


# ---- bad input


def assert_refused(exception, words, function, x, generator, **keywords):
    before, default = x.clone(), torch.get_rng_state()
    inner = generator.get_state() if isinstance(generator, torch.Generator) else None
    with pytest.raises(exception) as raised:
        function(x, 0.5, True, generator=generator, **keywords)
    assert words in str(raised.value)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), default)
    assert inner is None or torch.equal(generator.get_state(), inner)


@calls
def test_refused(function, shape, way):
    x = torch.ones(shape)
    for wrong in (5, "cpu", torch.default_generator.get_state()):
        words = f"generator must be a torch.Generator or None, got {type(wrong).__name__}"
        assert_refused(TypeError, words, function, x, wrong)
    words = "generator must be None where rng_state is given, got both"
    assert_refused(ValueError, words, function, x, own("cpu"), rng_state=rng_state(1, 0))
    words = "generator must be on cpu, got one on meta"
    assert_refused(RuntimeError, words, function, x, elsewhere())
    if function in INPLACE:
        words = f"{function.__name__}: generator must be a torch.Generator or None, got int"
        assert_refused(TypeError, words, function, x, 5, inplace=True)


def elsewhere():
    """A generator that says it is on another device: of those there are one needs a GPU to be made."""

    class Elsewhere(torch.Generator):
        device = torch.device("meta")

    return Elsewhere()


def test_operator_refuses():
    """The check of those who call the operator past the functions."""
    like = torch.empty(0)
    draw = torch.ops.fastreg.draw_rng_state
    assert torch.equal(draw(like, own("cpu")), fastreg.draw_rng_state("cpu", own("cpu")))
    with pytest.raises(RuntimeError, match="Generator"):
        draw(like, 5)


def test_statistics_are_not_written():
    """batch_norm_act refuses before it normalises, also where it is composed."""
    x = torch.rand(8, 4)
    for keywords in ({}, {"pre_act": "prelu", "pre_act_weight": torch.ones(1)}):
        mean, var = torch.zeros(4), torch.ones(4)
        for wrong, exception in ((5, TypeError), (elsewhere(), RuntimeError)):
            with pytest.raises(exception, match="batch_norm_act: generator must be"):
                F.batch_norm_act(x, mean, var, training=True, p=0.5, generator=wrong, **keywords)
        assert torch.equal(mean, torch.zeros(4)) and torch.equal(var, torch.ones(4))


def test_torchs_own_dropout_has_none():
    for x in (torch.ones(4, 4, device="meta"), torch.ones(4, 4, dtype=torch.complex64)):
        with pytest.raises(NotImplementedError, match="dropout: generator must be None for input that torch's own"):
            F.dropout(x, generator=own("cpu"))
        assert F.dropout(x, 0.5, False, generator=own("cpu")) is x


def test_drawing_refuses():
    with pytest.raises(TypeError, match="draw_rng_state: generator must be a torch.Generator or None, got int"):
        fastreg.draw_rng_state("cpu", 5)
    with pytest.raises(RuntimeError, match="draw_rng_state: generator must be on cpu, got one on meta"):
        fastreg.draw_rng_state("cpu", elsewhere())


@pytest.mark.cuda
def test_refuses_a_generator_of_another_device():
    for device, other in (("cuda", "cpu"), ("cpu", "cuda")):
        with pytest.raises(RuntimeError, match=rf"generator must be on {device}.*, got one on {other}"):
            F.dropout(torch.ones(4, device=device), generator=own(other))
        with pytest.raises(RuntimeError, match="generator must be on"):
            torch.ops.fastreg.draw_rng_state(torch.ones(4, device=device), own(other))
