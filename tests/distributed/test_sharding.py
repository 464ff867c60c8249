"""Dropout and batch norm of tensors that are parts of larger ones: the results are those of the whole."""

import functools
import itertools

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils.checkpoint import checkpoint

import fastreg
from fastreg import functional as F
from fastreg.sharding import index_map
from tests.common import channels_last, contiguous

STATE = torch.tensor([7, 16])


# ---- index maps


@st.composite
def blocks(draw):
    whole = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    starts = [draw(st.integers(0, size - 1)) for size in whole]
    return [draw(st.integers(1, size - start)) for size, start in zip(whole, starts, strict=True)], whole, starts


@given(blocks())
def test_index_map_numbers_the_elements_of_a_block(block):
    sizes, whole, starts = block
    elements = torch.arange(torch.Size(whole).numel()).view(whole)
    for d, (size, start) in enumerate(zip(sizes, starts, strict=True)):
        elements = elements.narrow(d, start, size)
    elements = elements.flatten()
    found = index_map(sizes, whole, starts)
    if found is None:
        assert sum(size != all for size, all in zip(sizes, whole, strict=True)) > 1
    else:
        assert fits(elements, *found)


def fits(elements, first, row, row_stride):
    j = torch.arange(elements.numel())
    return torch.equal(elements, first + j // row * row_stride + j % row)


# ---- DTensors

CALLS = {
    "dropout": lambda x, **how: F.dropout(x, 0.4, **how),
    "alpha_dropout": lambda x, **how: F.alpha_dropout(x, 0.4, True, **how),
    "feature_alpha_dropout": lambda x, **how: F.feature_alpha_dropout(x, 0.4, True, **how),
    "dropout2d": lambda x, **how: F.dropout2d(x, 0.4, **how),
    "drop_path": lambda x, **how: F.drop_path(x, 0.4, **how),
    "drop_path with residual": lambda x, **how: F.drop_path(x, 0.4, residual=x.detach() + 1, **how),
    "in place": lambda x, **how: F.dropout(x * 1, 0.4, inplace=True, **how),
}
PLACEMENTS = {
    1: [[Shard(0)], [Shard(1)], [Shard(3)], [Replicate()]],
    2: [[Shard(0), Shard(1)], [Shard(0), Shard(0)], [Replicate(), Shard(0)], [Shard(1), Replicate()]],
}


@functools.cache
def mesh_of(*shape):
    return init_device_mesh("cpu", shape)


def mesh_of_all():
    return mesh_of(*{2: (2,), 4: (2, 2)}[dist.get_world_size()])


def check_dropout(name, layout):
    call = CALLS[name]
    # Sizes that the ranks do not divide, and that leave some of them nothing.
    whole = layout(torch.randn(3, 5, 2, 3)).requires_grad_()
    expected = call(whole, rng_state=STATE)
    g = torch.randn(expected.shape)
    expected.backward(g)
    mesh = mesh_of_all()
    for placements in PLACEMENTS[mesh.ndim]:
        x = distribute_tensor(whole.detach(), mesh, placements).requires_grad_()
        output = call(x, rng_state=STATE)
        assert output.placements == tuple(placements)
        assert torch.equal(output.full_tensor(), expected)
        output.backward(distribute_tensor(g, mesh, placements))
        assert torch.equal(x.grad.full_tensor(), whole.grad)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("name", CALLS)
def test_dtensor_has_the_mask_of_the_whole(ranks, name, layout):
    ranks.run(check_dropout, name, layout)


def check_drawn_states():
    torch.manual_seed(dist.get_rank())
    mesh = mesh_of_all()
    x = DTensor.from_local(torch.ones(40, 3), mesh, [Shard(0)] + [Replicate()] * (mesh.ndim - 1))
    first, second = F.dropout(x).full_tensor(), F.dropout(x).full_tensor()
    assert not torch.equal(first, second)
    whole = DTensor.from_local(torch.ones(40, 3), mesh, [Replicate()] * mesh.ndim)
    local = F.dropout(whole).to_local()
    others = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(others, local)
    assert all(torch.equal(local, other) for other in others)


def test_all_ranks_drop_with_one_state(ranks):
    ranks.run(check_drawn_states)


def check_generators():
    """All ranks have the state of the mesh's first, and each advances its own generator."""
    generator, mesh = torch.Generator().manual_seed(dist.get_rank()), mesh_of_all()
    whole = DTensor.from_local(torch.ones(40, 3), mesh, [Replicate()] * mesh.ndim)
    output = F.dropout(whole, generator=generator).to_local()
    assert torch.equal(output, F.dropout(torch.ones(40, 3), generator=torch.Generator().manual_seed(0)))
    own = torch.Generator().manual_seed(dist.get_rank())
    fastreg.draw_rng_state(generator=own)
    assert torch.equal(generator.get_state(), own.get_state())
    for wrong, exception in ((5, TypeError), (generator, ValueError)):
        with pytest.raises(exception, match="dropout: generator must be"):
            F.dropout(whole, generator=wrong, rng_state=None if wrong == 5 else STATE)


def test_all_ranks_drop_with_the_state_of_the_first_ones_generator(ranks):
    ranks.run(check_generators)


def check_placements():
    mesh = mesh_of(dist.get_world_size())
    x = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
    assert torch.equal(F.dropout(x, rng_state=STATE).full_tensor(), F.dropout(x.full_tensor(), rng_state=STATE))
    assert F.dropout(x, training=False) is x and F.dropout(x, 0.0) is x
    assert (F.dropout(x, 1.0).full_tensor() == 0).all()
    if dist.get_world_size() == 4:
        mesh = mesh_of(2, 2)
        x = distribute_tensor(torch.ones(2, 4, 4), mesh, [Shard(1), Shard(2)])
        with pytest.raises(NotImplementedError, match="dropout: a DTensor must be sharded so that"):
            F.dropout(x)


def test_other_placements(ranks):
    ranks.run(check_placements)


def check_batch_norm(training, layout):
    norm = fastreg.nn.BatchNorm2d(6, momentum=0.3).double().train(training)
    for t in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(t.data)
    state = {name: t.clone() for name, t in norm.state_dict().items()}
    whole = layout(torch.randn(3, 6, 2, 4).double() + 5).requires_grad_()
    g = torch.randn(whole.shape).double()
    expected = norm(whole)
    expected.backward(g)
    new_state = norm.state_dict()

    mesh = mesh_of_all()
    for placements in PLACEMENTS[mesh.ndim]:
        if [p for p in placements if isinstance(p, Shard)] == [Shard(0), Shard(0)]:
            continue
        by_channel = [Shard(0) if p == Shard(1) else Replicate() for p in placements]
        for of_parameters in ([Replicate()] * mesh.ndim, by_channel):
            own = fastreg.nn.BatchNorm2d(6, momentum=0.3).double().train(training)
            own.load_state_dict(state)
            for holder in (own._parameters, own._buffers):
                for name, t in holder.items():
                    where = of_parameters if t.dim() else [Replicate()] * mesh.ndim
                    t = distribute_tensor(t.detach(), mesh, where)
                    holder[name] = torch.nn.Parameter(t) if holder is own._parameters else t
            x = distribute_tensor(whole.detach(), mesh, placements).requires_grad_()
            output = own(x)
            output.backward(distribute_tensor(g, mesh, placements))
            assert output.placements == tuple(placements)
            torch.testing.assert_close(output.full_tensor(), expected)
            torch.testing.assert_close(x.grad.full_tensor(), whole.grad)
            for name in ("weight", "bias"):
                own_grad, grad = getattr(own, name).grad, getattr(norm, name).grad
                torch.testing.assert_close(own_grad.full_tensor(), grad)
            found = {name: t.full_tensor() for name, t in own.state_dict().items()}
            torch.testing.assert_close(found, dict(new_state))


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("training", [True, False])
def test_dtensor_is_normalised_as_the_whole(ranks, training, layout):
    ranks.run(check_batch_norm, training, layout)


def check_functional_batch_norm():
    mesh = mesh_of(dist.get_world_size())
    whole = torch.randn(5, 4)
    x = distribute_tensor(whole, mesh, [Shard(0)])
    running = torch.zeros(4), torch.ones(4)
    output = F.batch_norm(x, *running, torch.ones(4), torch.zeros(4), training=True)
    expected_running = torch.zeros(4), torch.ones(4)
    torch.testing.assert_close(output.full_tensor(), F.batch_norm(whole, *expected_running, training=True))
    torch.testing.assert_close(running, expected_running)
    activated = fastreg.nn.BatchNormAct1d(4)(x)
    torch.testing.assert_close(activated.full_tensor(), fastreg.nn.BatchNormAct1d(4)(whole))


def test_plain_parameters(ranks):
    ranks.run(check_functional_batch_norm)


# ---- sharded_batch


def own_rows(tensor, rows, dim=0):
    return tensor.split(rows, dim)[dist.get_rank()]


def group_of_one():
    return [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]


def joined(local, rows, dim=0):
    shapes = [list(local.shape) for _ in rows]
    for shape, size in zip(shapes, rows, strict=True):
        shape[dim] = size
    parts = [torch.empty(shape) for shape in shapes]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts, dim)


def check_sharded_batch():
    size = dist.get_world_size()
    splits = {2: [(4, 3), (7, 0), (6, 1)], 4: [(1, 2, 0, 4), (2, 2, 2, 1)]}[size]
    x, alone = torch.randn(7, 4, 3, 2), group_of_one()
    for rows, layout, listed in itertools.product(splits, [contiguous, channels_last], [False, True]):
        torch.manual_seed(3)
        with fastreg.sharded_batch(7, alone):
            expected = [call(layout(x)) for call in CALLS.values()]
        torch.manual_seed(3 if dist.get_rank() == 0 else 5)
        with fastreg.sharded_batch(rows if listed else rows[dist.get_rank()]):
            for call, whole in zip(CALLS.values(), expected, strict=True):
                output = call(layout(own_rows(x, rows)))
                assert torch.equal(output, own_rows(whole, rows))


def test_rows_have_the_masks_of_the_batch(ranks):
    ranks.run(check_sharded_batch)


def check_other_dimensions():
    rows = [5, 2]
    own = rows[dist.get_rank()]
    x = torch.ones(3, 7, 4)
    with fastreg.sharded_batch(own, dim=1):
        output = F.dropout(own_rows(x, rows, 1), rng_state=STATE)
        assert torch.equal(output, own_rows(dropout_of_whole(x), rows, 1))
        with pytest.raises(ValueError, match="drop_path: input must have a multiple of . rows in dimension 1"):
            F.drop_path(own_rows(x, rows, 1))
    with fastreg.sharded_batch(own):
        flat = torch.ones(21, 4)  # three of a row's, one after the other
        output = F.dropout(own_rows(flat, [15, 6]), rng_state=STATE)
        assert torch.equal(output, own_rows(dropout_of_whole(flat), [15, 6]))
        with pytest.raises(ValueError, match="got shape .1, 4."):
            F.dropout(torch.ones(1, 4))


def dropout_of_whole(x):
    with fastreg.sharded_batch(x.shape[0], group_of_one()):
        return F.dropout(x, rng_state=STATE)


def check_collectives():
    with fastreg.sharded_batch(2), CommDebugMode() as mode:
        for _ in range(3):
            F.dropout(torch.ones(2, 3))
    return mode.get_total_counts()


def check_gradients_and_parameters():
    torch.manual_seed(1)
    layer = fastreg.nn.DropConnectLinear(4, 3)
    x = torch.ones(2, 4, requires_grad=True)
    torch.manual_seed(dist.get_rank())
    with fastreg.sharded_batch(2):
        output = layer(torch.ones(2, 4))
        kept = F.dropout(x)
        kept.sum().backward()
    assert torch.equal(x.grad, (kept != 0) * 2.0)
    all_outputs = joined(output.detach(), [2, 2])
    assert torch.equal(all_outputs[:2], all_outputs[2:])


def check_states():
    x = torch.ones(4, 8)
    with fastreg.sharded_batch(4), fastreg.record_rng_states() as states:
        outputs = [F.dropout(x), F.dropout(x)]
    assert torch.equal(states[1] - states[0], torch.tensor([0, 8]))
    with fastreg.sharded_batch(4), fastreg.replay_rng_states(states):
        assert all(torch.equal(F.dropout(x), output) for output in outputs)
    whole = joined(outputs[0], [4, 4])
    assert torch.equal(whole != 0, fastreg.dropout_mask((8, 8), 0.5, states[0]))


@pytest.mark.parametrize("check", [check_other_dimensions, check_gradients_and_parameters, check_states])
def test_two_ranks(two_ranks, check):
    two_ranks.run(check)


def test_one_collective_for_all_calls(two_ranks):
    assert two_ranks.run(check_collectives) == [1, 1]


def test_alone_without_a_process_group():
    with fastreg.sharded_batch(4):
        state = fastreg.draw_rng_state()
        x = torch.ones(4, 8)
        assert torch.equal(F.dropout(x, rng_state=state) != 0, fastreg.dropout_mask(x.shape, 0.5, state))
    assert fastreg.sharding.current is None and fastreg.rng_states.source is None


@pytest.mark.parametrize("rows", [-1, [3, 4], [-3]])
def test_rows_that_cannot_be(rows):
    with pytest.raises(ValueError, match="sharded_batch: rows must"), fastreg.sharded_batch(rows):
        pass


def test_checkpointed_functions_enter_themselves():
    x = torch.ones(4, 64, requires_grad=True)

    def enters(x):
        with fastreg.sharded_batch(4):
            return F.dropout(x)

    output = checkpoint(enters, x, use_reentrant=False)
    output.sum().backward()
    assert torch.equal(x.grad, output.detach())
    with fastreg.sharded_batch(4), pytest.raises(RuntimeError, match="must enter the context itself"):
        checkpoint(F.dropout, x, use_reentrant=False)


def test_compiled_code_is_refused():
    function = torch.compile(lambda x: F.dropout(x), backend="eager", fullgraph=True)
    with fastreg.sharded_batch(4), pytest.raises(Exception, match="sharded_batch: dropout must not be compiled"):
        function(torch.ones(4, 4))
