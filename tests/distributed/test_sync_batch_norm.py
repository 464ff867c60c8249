"""SyncBatchNorm on several processes, against batch norm of the joined batch in one."""

import copy
import datetime
import os
import pickle
import types

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

import fastreg
from fastreg.nn import BatchNormAct1d, BatchNormAct2d, SyncBatchNorm, SyncBatchNormAct
from fastreg.nn import sync_batch_norm as implementation
from fastreg.reference.batch_norm import empty_normalized_like
from tests.common import channels_last, contiguous
from tests.distributed.ranks import RankError, Ranks
from tests.functional.test_batch_norm import EPS, Case
from tests.tolerances import assert_accurate

# How many of nine rows each rank has.
ROWS = {2: [(5, 4), (1, 8), (9, 0), (0, 9)], 4: [(3, 2, 2, 2), (1, 6, 0, 2), (0, 0, 9, 0)]}
SHAPES = [(5,), (3, 7), (4, 3, 5), (16, 2, 2, 2)]


def part(tensor, rows):
    """The rows of this rank."""
    return tensor.split(rows)[dist.get_rank()]


def total(tensor):
    tensor = tensor.detach().double()
    dist.all_reduce(tensor)
    return tensor


def layer_of(case, momentum=0.3):
    layer = SyncBatchNorm(case.weight.numel(), EPS, momentum)
    layer.weight, layer.bias = (torch.nn.Parameter(t.detach().clone()) for t in (case.weight, case.bias))
    layer.running_mean, layer.running_var = (t.clone() for t in case.running)
    return layer


# ---- values


def check_equals_joined_batch(dtype, layout):
    for shape in SHAPES:
        case = Case((9, *shape), "cpu", dtype, layout, wide_parameters=True)
        _, (grad_input, *gradients), running = case.run(torch.nn.functional.batch_norm, True)
        exact_output, (exact_grad_input, *exact_gradients), exact_running = case.exact(True)
        of_torch = case.run(torch.nn.functional.batch_norm, True)[0].detach()
        for rows in ROWS[dist.get_world_size()]:
            layer = layer_of(case)
            x = part(case.input.detach(), rows).detach().requires_grad_()
            output = layer(x)
            output.backward(part(case.grad_output, rows))
            assert output.stride() == empty_normalized_like(x).stride()
            assert_accurate("output", output.detach(), part(of_torch, rows), part(exact_output, rows))
            assert_accurate("grad_input", x.grad, part(grad_input, rows), part(exact_grad_input, rows))
            for parameter, theirs, exact, summed in zip(
                (layer.weight, layer.bias), gradients, exact_gradients, case.summed(True), strict=True
            ):
                # Each rank rounds its own sum.
                rounding = dist.get_world_size() * torch.finfo(parameter.dtype).eps * summed.max()
                error = (total(parameter.grad) - exact).abs().max()
                assert error <= 2 * (theirs.double() - exact).abs().max() + rounding
            for name, theirs, exact in zip(("running_mean", "running_var"), running, exact_running, strict=True):
                assert_accurate("running", getattr(layer, name), theirs, exact)
            assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_equals_batch_norm_of_the_joined_batch(ranks, dtype, layout):
    ranks.run(check_equals_joined_batch, dtype, layout)


def check_same_bits():
    layer = SyncBatchNorm(64)
    torch.manual_seed(dist.get_rank())
    x = torch.randn(3 + dist.get_rank(), 64, 5)
    layer(x)
    for own in (layer.running_mean, layer.running_var):
        others = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(others, own)
        assert all(torch.equal(own, other) for other in others)


def test_ranks_get_the_same_bits(ranks):
    ranks.run(check_same_bits)


def check_cumulative_average():
    layer, of_one = SyncBatchNorm(3, momentum=None), torch.nn.BatchNorm1d(3, momentum=None)
    for _ in range(3):
        x = torch.randn(9, 3)
        layer(part(x, ROWS[dist.get_world_size()][1]))
        of_one(x)
    torch.testing.assert_close(layer.state_dict(), of_one.state_dict())


def test_momentum_none_averages(two_ranks):
    two_ranks.run(check_cumulative_average)


def check_no_values():
    layer = SyncBatchNorm(3)
    x = torch.empty(0, 3, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == (0, 3)
    assert torch.equal(layer.weight.grad, torch.zeros(3))
    assert torch.equal(layer.running_var, torch.ones(3)) and layer.num_batches_tracked == 1


def test_all_ranks_empty(two_ranks):
    two_ranks.run(check_no_values)


def check_activation_and_residual():
    rows = ROWS[dist.get_world_size()][1]
    of_one = BatchNormAct2d(4, act="prelu", pre_act="tanh")
    layer = SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(of_one))
    x, residual, g = torch.randn(3, 9, 4, 3, 2).double()
    of_one.double(), layer.double()
    whole = [t.clone().requires_grad_() for t in (x, residual)]
    own = [part(t, rows).clone().requires_grad_() for t in (x, residual)]
    output, expected = layer(*own), of_one(*whole)
    output.backward(part(g, rows))
    expected.backward(g)
    torch.testing.assert_close(output, part(expected, rows))
    for a, b in zip(own, whole, strict=True):
        torch.testing.assert_close(a.grad, part(b.grad, rows))
    for a, b in zip(layer.parameters(), of_one.parameters(), strict=True):
        torch.testing.assert_close(total(a.grad), b.grad)


def test_activation_and_residual(two_ranks):
    two_ranks.run(check_activation_and_residual)


# ---- collectives and groups


def check_collectives():
    layer = SyncBatchNorm(4)
    for _ in range(2):
        x = torch.randn(3, 4, requires_grad=True)
        with CommDebugMode() as forward:
            output = layer(x)
        with CommDebugMode() as backward:
            output.sum().backward()
    with CommDebugMode() as frozen:
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        layer.eval()(x).sum().backward()
    return forward.get_total_counts(), backward.get_total_counts(), frozen.get_total_counts()


def test_one_collective_each_way(two_ranks):
    assert two_ranks.run(check_collectives) == [(1, 1, 0)] * 2


def check_evaluation_and_group_of_one():
    layer, plain = SyncBatchNorm(4), fastreg.nn.BatchNorm1d(4)
    x = torch.randn(6, 4)
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    layer.process_group = groups[dist.get_rank()]
    with CommDebugMode() as mode:
        assert torch.equal(layer.train()(x), plain.train()(x))
    assert mode.get_total_counts() == 0
    assert torch.equal(layer.running_var, plain.running_var)


def test_evaluation_and_a_group_of_one_are_batch_norm(two_ranks):
    two_ranks.run(check_evaluation_and_group_of_one)


def check_groups():
    rank = dist.get_rank()
    if dist.get_world_size() < 4:
        return
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    layer = SyncBatchNorm(4, process_group=groups[rank % 2])
    x = torch.randn(4, 6, 4).double()
    expected = torch.nn.functional.batch_norm(x[rank % 2 :: 2].flatten(0, 1), None, None, training=True)
    torch.testing.assert_close(layer.double()(x[rank]), expected.view(2, 6, 4)[rank // 2])


def test_groups_of_their_own(ranks):
    ranks.run(check_groups)


# ---- training


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 4),
        fastreg.nn.BatchNorm1d(4),
        torch.nn.ReLU(),
        BatchNormAct1d(4, act="prelu"),
        torch.nn.Linear(4, 2),
    ).double()


def losses(model, batches):
    """Of the joined batches, from equal parts."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        found.append(total(loss).item() / dist.get_world_size())
    return found


def check_training(wrap):
    size = dist.get_world_size()
    batches = torch.randn(3, 8, 5, dtype=torch.float64)
    expected = losses(network(), batches)
    model = wrap(SyncBatchNorm.convert_sync_batchnorm(network()))
    assert losses(model, [part(batch, [8 // size] * size) for batch in batches]) == pytest.approx(expected, rel=1e-12)


def static_graph(model):
    return DistributedDataParallel(model, static_graph=True)


def sharded(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


def compiled(model):
    return DistributedDataParallel(torch.compile(model, fullgraph=True, backend="aot_eager"))


@pytest.mark.parametrize("wrap", [DistributedDataParallel, static_graph, sharded, compiled])
def test_training_is_that_of_one_process(two_ranks, wrap):
    two_ranks.run(check_training, wrap)


def check_compiled():
    layer = SyncBatchNorm(4)
    same = copy.deepcopy(layer)
    function = torch.compile(layer, fullgraph=True)
    x, g = torch.randn(2, 3, 4, 2)
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    output, expected = function(own), same(other)
    output.backward(g)
    expected.backward(g)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=0)
    torch.testing.assert_close(layer.state_dict(), same.state_dict(), rtol=0, atol=0)


def test_compiled_in_one_graph(two_ranks):
    two_ranks.run(check_compiled)


# ---- what goes wrong


def check_disagreement(channels, dtypes):
    rank = dist.get_rank()
    layer = SyncBatchNorm(channels[rank]).to(dtypes[rank])
    with pytest.raises(RuntimeError) as raised:
        layer(torch.randn(3, channels[rank], dtype=dtypes[rank]))
    assert layer.num_batches_tracked == 0
    # The group is as it was.
    assert SyncBatchNorm(2)(torch.randn(3, 2)).shape == (3, 2)
    return str(raised.value)


def test_ranks_that_disagree(two_ranks):
    expected = "SyncBatchNorm: input must have as many channels on every rank, got [3, 5] by rank"
    assert two_ranks.run(check_disagreement, (3, 5), (torch.float32,) * 2) == [expected] * 2
    expected = "SyncBatchNorm: input must have as many bytes per statistic on every rank, got [4, 8] by rank"
    assert two_ranks.run(check_disagreement, (3, 3), (torch.float32, torch.float64)) == [expected] * 2


def check_foreign_group():
    group = dist.new_group([1])
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError, match="process_group must be one that this process is a member of"):
            SyncBatchNorm(3, process_group=group)(torch.randn(3, 3))


def test_group_of_others(two_ranks):
    two_ranks.run(check_foreign_group)


def check_second_derivative():
    x = torch.randn(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(SyncBatchNorm(3)(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="derivatives must be of first order"):
        gradient.sum().backward()


def test_no_second_derivative(two_ranks):
    two_ranks.run(check_second_derivative)


def lose_a_rank(how):
    layer = SyncBatchNorm(3, process_group=dist.new_group(timeout=datetime.timedelta(seconds=5)))
    layer(torch.randn(4, 3))
    if dist.get_rank() == 1 and how == "dies":
        os._exit(1)
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError):
            layer(torch.randn(4, 3))
    if how == "hangs":
        dist.barrier()  # of the group of all, whose timeout is longer
    return "goes on"


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_lost_rank_is_an_error(tmp_path, how):
    """At the latest after the group's timeout, whatever became of the other rank."""
    group = Ranks(2, tmp_path)
    try:
        if how == "dies":
            with pytest.raises(RankError) as raised:
                group.run(lose_a_rank, how)
            assert list(raised.value.errors) == [1]
        else:
            assert group.run(lose_a_rank, how) == ["goes on"] * 2
    finally:
        group.close()


def test_no_process_group():
    with pytest.raises(RuntimeError, match="SyncBatchNorm: process_group must be there in training, got none"):
        SyncBatchNorm(3)(torch.randn(4, 3))
    assert SyncBatchNorm(3).eval()(torch.randn(4, 3)).shape == (4, 3)


def test_group_of_another_device():
    group = types.SimpleNamespace(group_name="g", _device_types=[torch.device("cuda")])
    with pytest.raises(RuntimeError, match="input must be on a device of process_group's backend, cuda, got cpu"):
        implementation._agree(SyncBatchNorm(3), "SyncBatchNorm", torch.randn(4, 3), group)


@pytest.mark.parametrize(
    ("input", "words"),
    [
        (torch.randn(3), "input must have at least 2 dimensions, got 1"),
        (torch.randn(4, 5), "input must have 3 channels, got 5"),
    ],
)
@pytest.mark.parametrize("layer", [SyncBatchNorm(3), SyncBatchNormAct(3)])
def test_inputs_that_do_not_fit(layer, input, words):
    with pytest.raises(ValueError, match=words):
        layer(input)


# ---- conversion


def test_signature_and_state_dict_are_torchs():
    layer, theirs = SyncBatchNorm(3, 1e-4, None, True, True, None), torch.nn.SyncBatchNorm(3, 1e-4, None)
    assert layer.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(layer.state_dict())
    assert layer.extra_repr() == fastreg.nn.BatchNorm1d(3, 1e-4, None).extra_repr()
    assert SyncBatchNorm(3, affine=False).weight is None
    assert SyncBatchNorm(3, bias=False).bias is None
    assert SyncBatchNormAct(3, act="prelu").state_dict().keys() == BatchNormAct2d(3, act="prelu").state_dict().keys()


class Named(torch.nn.BatchNorm2d):
    """A subclass that overrides nothing."""


class Own(torch.nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).relu()


NORMS = [
    torch.nn.BatchNorm1d,
    torch.nn.BatchNorm2d,
    torch.nn.BatchNorm3d,
    torch.nn.SyncBatchNorm,
    fastreg.nn.BatchNorm1d,
    fastreg.nn.BatchNorm2d,
    Named,
]


@pytest.mark.parametrize("fastreg_first", [False, True])
@pytest.mark.parametrize("cls", NORMS)
def test_conversion_and_back(cls, fastreg_first):
    layer = cls(3)
    state, calls = layer.state_dict(), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    model = torch.nn.Sequential(layer)
    if fastreg_first:
        fastreg.convert(model)
    assert SyncBatchNorm.convert_sync_batchnorm(model, process_group="group") is model
    assert type(model[0]) is SyncBatchNorm and model[0] is layer and layer.process_group == "group"
    fastreg.convert(model)
    assert type(layer) is SyncBatchNorm
    layer.eval()(torch.randn(2, 3, 2))
    assert calls and all(torch.equal(layer.state_dict()[name], value) for name, value in state.items())
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(torch.nn.Sequential(SyncBatchNorm(3))))
    assert all(type(each[0]) is SyncBatchNorm for each in copies)
    fastreg.revert(model)
    assert type(layer) is cls
    assert hasattr(layer, "process_group") == (cls is torch.nn.SyncBatchNorm)


def test_a_batch_norm_itself_is_converted():
    layer = torch.nn.BatchNorm1d(3)
    assert SyncBatchNorm.convert_sync_batchnorm(layer) is layer
    assert type(layer) is SyncBatchNorm


def test_batch_norm_act_keeps_what_it_has():
    layer = BatchNormAct2d(3, act="silu", pre_act="relu", drop=0.25)
    assert type(SyncBatchNorm.convert_sync_batchnorm(layer)) is SyncBatchNormAct
    x, residual = torch.randn(2, 4, 3, 2, 2)
    expected = copy.deepcopy(layer).eval()(x, residual)
    fastreg.revert(layer)
    assert type(layer) is BatchNormAct2d and layer.p == 0.25
    torch.testing.assert_close(layer.eval()(x, residual), expected)


def test_forwards_of_their_own_are_left():
    model = torch.nn.Sequential(Own(3), torch.nn.BatchNorm2d(3))
    with pytest.warns(UserWarning, match="got Own, which is left as it is"):
        SyncBatchNorm.convert_sync_batchnorm(model)
    assert [type(layer) for layer in model] == [Own, SyncBatchNorm]


def test_lazy_layers_are_refused():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="layers must have seen their first input, got LazyBatchNorm2d"):
        SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model[0]) is torch.nn.BatchNorm2d


def check_fused_parent():
    """A parent that fastreg.convert fused does not go round the synchronisation."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU()).double()
    x = torch.randn(8, 5, dtype=torch.float64)
    expected = copy.deepcopy(model)(x)
    SyncBatchNorm.convert_sync_batchnorm(fastreg.convert(model))
    rows = [3, 5]
    torch.testing.assert_close(model(part(x, rows)), part(expected, rows))
    torch.testing.assert_close(fastreg.convert(model)(part(x, rows)), part(expected, rows))


def test_fused_parents_synchronise(two_ranks):
    two_ranks.run(check_fused_parent)


def test_symbolic_trace():
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(SyncBatchNorm(3), SyncBatchNormAct(3))).graph
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
