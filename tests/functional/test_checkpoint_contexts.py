"""checkpoint_contexts: the second call has the masks of the first, without the states of generators."""

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import fastreg
from tests.common import DEVICES

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def again(function, *arguments, context_fn=fastreg.checkpoint_contexts, **keywords):
    settings = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": context_fn, **keywords}
    return checkpoint(function, *arguments, **settings)


def block(x):
    """Positive where it is not dropped; its gradient is twice itself, if the masks are the same."""
    y = fastreg.functional.dropout(x)
    y = fastreg.functional.drop_path(y, 0.1)
    return fastreg.functional.act_dropout(y, p=0.3).square()


def ones(device):
    return torch.ones(50, 40, device=device, requires_grad=True)


def assert_same_masks(x, y):
    y.sum().backward(retain_graph=True)
    torch.testing.assert_close(x.grad, 2 * y)  # products of the same scales, in another order
    assert (y == 0).any() and (y != 0).any()


def test_without_it_masks_differ(device):
    """What it is for."""
    x = ones(device)
    y = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    y.sum().backward()
    assert not torch.equal(x.grad != 0, y != 0)


def test_masks_are_the_same(device):
    x = ones(device)
    assert_same_masks(x, again(block, x))


def test_draws_are_those_without(device):
    """And the second call leaves the generator alone."""
    x = ones(device)
    y = block(x)
    expected = fastreg.draw_rng_state(device)
    torch.manual_seed(0)
    z = again(block, x)
    z.sum().backward()
    assert torch.equal(z, y) and torch.equal(fastreg.draw_rng_state(device), expected)


def test_backward_twice(device):
    x = ones(device)
    y = again(block, x)
    for _ in range(2):
        x.grad = None
        assert_same_masks(x, y)


@pytest.mark.parametrize("early_stop", [True, False])
def test_several_and_interleaved(device, early_stop):
    with torch.utils.checkpoint.set_checkpoint_early_stop(early_stop):
        x = ones(device)
        y = again(lambda x: fastreg.functional.dropout(x, 0.2).square(), x)
        z = fastreg.functional.dropout(y, 0.2)
        z = again(lambda x: fastreg.functional.dropout(x, 0.2).square(), z)
        z.sum().backward()
    assert torch.equal(x.grad != 0, z != 0)
    torch.testing.assert_close(x.grad * x, 4 * z)  # of degree four


@pytest.mark.parametrize("early_stop", [True, False])
def test_nested(device, early_stop):
    """Also where the inner one has none of its own."""

    def outer(x):
        y = fastreg.functional.dropout(again(block, fastreg.functional.dropout(x, 0.1)), 0.1)
        return y * again(fastreg.functional.dropout, torch.ones_like(y), 0.1)

    with torch.utils.checkpoint.set_checkpoint_early_stop(early_stop):
        x = ones(device)
        assert_same_masks(x, again(outer, x))


def test_selective(device):
    """Whether dropout's results are kept or computed again."""
    for policy in (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_RECOMPUTE):

        def choose(context, op, *arguments, policy=policy, **keywords):
            return policy if "fastreg" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE

        selective = functools.partial(create_selective_checkpoint_contexts, choose)
        x = ones(device)
        y = again(block, x, context_fn=functools.partial(fastreg.checkpoint_contexts, selective))
        assert_same_masks(x, y)


def test_given_contexts_are_entered(device):
    """Each call has its own, around it."""
    entered = []

    @contextlib.contextmanager
    def telling(name):
        entered.append(name)
        yield
        entered.append(f"{name} left")

    def tell(x):
        entered.append("called")
        return block(x)

    make = functools.partial(fastreg.checkpoint_contexts, lambda: (telling("first"), telling("second")))
    again(tell, ones(device), context_fn=make).sum().backward()
    assert entered[:5] == ["first", "called", "first left", "second", "called"]


def test_recording_and_replaying(device):
    """Around it: what is recorded once is what both calls had."""
    x = ones(device)
    with fastreg.record_rng_states() as states:
        y = again(block, x)
        assert_same_masks(x, y)
    assert len(states) == 3
    x.grad = None
    with fastreg.replay_rng_states(states):
        z = again(block, x)
    assert torch.equal(z, y)
    assert_same_masks(x, z)


def test_sharded_batch(device):
    """Entered within the function, and refused around it."""

    def sharded(x):
        with fastreg.sharded_batch(len(x)):
            return block(x)

    x = ones(device)
    assert_same_masks(x, again(sharded, x))
    with fastreg.sharded_batch(50), pytest.raises(RuntimeError, match="must enter the context itself"):
        again(block, x)


def test_torchs_dropout_while_patched(device):
    lstm = torch.nn.LSTM(40, 8, 2, dropout=0.5).to(device)
    with fastreg.patch_torch():
        x = ones(device)
        y = again(lambda x: F.dropout2d(F.dropout(x).view(50, 40, 1)[..., None], 0.2).view(50, 40).square(), x)
        assert_same_masks(x, y)
        results = []
        for run in (lambda x: lstm(x)[0], lambda x: again(lambda x: lstm(x)[0], x)):
            torch.manual_seed(1)
            x = ones(device)
            run(x).sum().backward()
            results.append(x.grad)
        assert torch.equal(*results)


def test_contexts_that_are_used_again(device):
    """A pair that was made once serves one checkpoint after the other."""
    pair = fastreg.checkpoint_contexts()
    for _ in range(2):
        x = ones(device)
        assert_same_masks(x, again(block, x, context_fn=lambda: pair))


def test_second_call_that_draws_more(device):
    calls = []

    def function(x):
        calls.append(x)
        y = fastreg.functional.dropout(x)
        return fastreg.functional.dropout(y) if len(calls) > 1 else y.square()

    with pytest.raises(RuntimeError, match="must draw what the first drew, got more than 1 draws"):
        again(function, ones(device)).sum().backward()


def test_exceptions_leave_nothing(device):
    def fails(x):
        raise KeyError

    with pytest.raises(KeyError):
        again(fails, ones(device))
    assert fastreg.rng_states.source is None


@pytest.mark.parametrize("of_its_own", [False, True])
@pytest.mark.parametrize("within_a_recording", [False, True])
def test_drawn_states_are_kept(device, of_its_own, within_a_recording):
    """Those that the function draws itself, from the device's generator or its own; a recording has none of them."""
    generator = torch.Generator(device).manual_seed(1) if of_its_own else None

    def function(x):
        state = fastreg.draw_rng_state(device, generator)
        return fastreg.functional.dropout(fastreg.functional.dropout(x), rng_state=state).square()

    x = ones(device)
    recording = fastreg.record_rng_states() if within_a_recording else contextlib.nullcontext([None])
    with recording as states:
        y = again(again, function, x)
    assert_same_masks(x, y)
    assert len(states) == 1


def test_a_recording_within(device):
    def function(x):
        with fastreg.record_rng_states():
            return block(x)

    x = ones(device)
    assert_same_masks(x, again(function, x))


@pytest.mark.parametrize("inner, outer", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("drawn", [False, True])
def test_generators_in_checkpoints_that_do_not_keep_states(device, inner, outer, drawn):
    """All of those around a call must: torch restores no generator but the devices' own."""
    generator = torch.Generator(device).manual_seed(1)
    before = generator.get_state()

    def function(x):
        if drawn:
            return fastreg.functional.dropout(x, rng_state=fastreg.draw_rng_state(device, generator))
        return fastreg.functional.dropout(x, generator=generator)

    def call(function, keeps, x):
        return again(function, x) if keeps else checkpoint(function, x, use_reentrant=False)

    with pytest.raises(RuntimeError, match="context_fn fastreg.checkpoint_contexts around dropout with a generator"):
        call(functools.partial(call, function, inner), outer, ones(device))
    assert torch.equal(generator.get_state(), before)
