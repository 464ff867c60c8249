"""The random states of dropout calls: who draws which, recording and replaying them, and that no two share a mask."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastreg
from fastreg import functional as F
from fastreg import record_rng_states as record
from fastreg import replay_rng_states as replay
from tests.common import DEVICES
from tests.functional.dropout_family import KINDS
from tests.known_answers import rng_state

pytestmark = pytest.mark.parametrize("device", DEVICES)
reentrant = pytest.mark.parametrize("use_reentrant", [False, True])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def model(device):
    nn = fastreg.nn
    return torch.nn.Sequential(
        nn.Dropout(0.5), nn.Dropout(0.5), nn.AlphaDropout(0.4), nn.DropPath(0.3), nn.DropConnectLinear(40, 40)
    ).to(device)


def generator_state(device):
    return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()


def assert_all_differ(masks):
    """256 elements or more, half of them dropped: two equal masks have probability 2**-256."""
    masks = [tuple(mask.flatten().tolist()) for mask in masks]
    assert len(set(masks)) == len(masks)


# ---- masks are never shared


def test_two_modules_and_two_calls(device):
    x = torch.ones(16, 32, device=device)
    modules = [fastreg.nn.Dropout(), fastreg.nn.Dropout(), fastreg.nn.AlphaDropout()]
    assert_all_differ([module(x) > 0.9 for _ in range(3) for module in modules])
    x = torch.ones(32, 32, 2, 2, device=device)
    modules = [fastreg.nn.Dropout2d(), fastreg.nn.Dropout2d(), fastreg.nn.FeatureAlphaDropout()]
    assert_all_differ([module(x)[:, :, 0, 0] > 0.9 for _ in range(3) for module in modules])
    x = torch.ones(512, 2, device=device)
    assert_all_differ([fastreg.nn.DropPath()(x)[:, 0] for _ in range(3)])


def test_one_sequence_of_states(device):
    """All kinds draw from the same stream of states, each call one."""
    with record() as states:
        for kind in KINDS.values():
            kind(torch.ones(kind.shape, device=device), 0.5, None)
    torch.manual_seed(0)
    expected = [fastreg.draw_rng_state(device) for _ in KINDS]
    assert torch.equal(torch.stack(states), torch.stack(expected))
    assert len({tuple(state.tolist()) for state in states}) == len(KINDS)


def test_manual_seed_repeats(device):
    x = torch.randn(50, 40, device=device)
    network = model(device)
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append([network(x) for _ in range(2)])
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(*runs[0])


def test_fork_rng_restores(device):
    x = torch.ones(1000, device=device)
    with torch.random.fork_rng():
        inside = F.dropout(x)
    assert torch.equal(F.dropout(x), inside)


@reentrant
def test_checkpointing_restores(device, use_reentrant):
    """The gradient has the mask of the first pass, and later draws do not see the second."""
    x = torch.rand(50, 40, device=device).add(1).requires_grad_()
    network = model(device)
    results = []
    for run in (network, lambda x: checkpoint(network, x, use_reentrant=use_reentrant)):
        x.grad = None
        torch.manual_seed(3)
        run(x).square().sum().backward()
        results.append((x.grad, F.dropout(torch.ones(100, device=device))))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.cuda
def test_graph_replays_draw_anew(device):
    """A captured sequence and its replays share no mask, in forward and backward alike."""
    x = torch.ones(4, 1000, device="cuda", requires_grad=True)

    def step():
        y, z = F.dropout(x), F.dropout2d(x.view(4, 250, 2, 2)).view_as(x)
        return y, z, *(torch.autograd.grad(output.sum(), x)[0] for output in (y, z))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    runs = []
    for _ in range(3):
        graph.replay()
        runs.append([result.clone() for result in captured])
    runs.append(step())
    for masks in zip(*runs, strict=True):
        assert_all_differ(masks)
    for y, z, gradient_y, gradient_z in runs:
        assert torch.equal(gradient_y, y) and torch.equal(gradient_z, z)


# ---- drawing


def test_draw_is_a_calls_own(device):
    x = torch.ones(1000, device=device)
    state = fastreg.draw_rng_state(device)
    after = generator_state(device)
    assert (state.shape, state.dtype, state.device.type) == ((2,), torch.int64, device)
    torch.manual_seed(0)
    y = F.dropout(x)
    assert torch.equal(y, F.dropout(x, rng_state=state)) and torch.equal(generator_state(device), after)


# ---- recording and replaying


def test_replay_gives_the_same_masks(device):
    """Also to a copy of the model, in place or not, and leaves the generator alone."""
    x = torch.randn(50, 40, device=device)
    network = model(device)
    with record() as states:
        y = network(x)
    assert len(states) == 5
    torch.manual_seed(11)
    before = generator_state(device)
    for module in network:
        module.inplace = True
    with replay(states):
        z = network(x.clone())
    assert torch.equal(z, y) and torch.equal(generator_state(device), before)


def test_recording_changes_nothing(device):
    x = torch.randn(50, 40, device=device)
    network = model(device)
    torch.manual_seed(1)
    y, after = network(x), generator_state(device)
    torch.manual_seed(1)
    with record():
        assert torch.equal(network(x), y)
    assert torch.equal(generator_state(device), after)


def test_only_draws_are_recorded(device):
    x = torch.ones(4, 4, device=device)
    with record() as states:
        F.dropout(x, 0.5, False), F.dropout(x, 0.0), F.dropout(x, 1.0), F.dropout(x[:0])
        F.dropout(x, rng_state=rng_state(1, 0)), F.drop_path(x, 1.0)
    assert states == []


def test_contexts_nest(device):
    x = torch.ones(100, device=device)
    with record() as outer:
        F.dropout(x)
        with record() as inner:
            F.dropout(x)
        with replay(inner):
            F.dropout(x)
        F.dropout(x)
    assert (len(outer), len(inner)) == (2, 1)
    F.dropout(x)
    assert len(outer) == 2


def test_numbers_of_calls_and_states_must_agree(device):
    x = torch.ones(100, device=device)
    states = [fastreg.draw_rng_state(device)]
    with (
        pytest.raises(RuntimeError, match="a state for each call, got 1 states and a call"),
        replay(states),
    ):
        F.dropout(x), F.dropout(x)
    with pytest.raises(RuntimeError, match="each state must be used, got 1 states and 0 calls"), replay(states):
        pass
    with pytest.raises(KeyError), replay(states):
        raise KeyError  # not hidden by the count
    F.dropout(x)


@reentrant
def test_recording_with_checkpoints(device, use_reentrant):
    """The second calls are not recorded, and the states are those of the forward pass."""
    x = torch.ones(1000, device=device, requires_grad=True)
    with record() as states:
        checkpoint(lambda x: F.dropout(F.dropout(x)).square(), x, use_reentrant=use_reentrant).sum().backward()
    assert len(states) == 2
    with replay(states):
        y = F.dropout(F.dropout(x))
    assert torch.equal(x.grad, 8 * y)


@reentrant
def test_replaying_with_checkpoints(device, use_reentrant):
    """Within the function it works; around it, where the second call would see another mask, it is refused."""
    states = [rng_state(1, 0), rng_state(1, 8)]

    def block(x):
        return F.dropout(F.dropout(x)).square()

    def replayed(x):
        with replay(states):
            return block(x)

    x = torch.ones(1000, device=device, requires_grad=True)
    y = F.dropout(F.dropout(x.detach(), rng_state=states[0]), rng_state=states[1])
    checkpoint(replayed, x, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(x.grad, 8 * y)
    with pytest.raises(RuntimeError, match="a checkpointed function must enter the context itself"), replay(states):
        checkpoint(block, x, use_reentrant=use_reentrant)


def test_compiled_code_is_refused(device):
    """Compiled before or not: it would draw states of its own."""
    torch._dynamo.reset()
    f = torch.compile(lambda x: F.dropout(x), fullgraph=True, backend="aot_eager")
    x = torch.ones(1000, device=device)
    assert (f(x) == 0).any()
    for context in (record(), replay([rng_state(1, 0)])):
        with pytest.raises(Exception, match="rng_states|[Oo]bserved exception"), context:
            f(x)
    assert (f(x) == 0).any()
