"""patch_torch with what transforms, traces, compiles, exports and recomputes programs."""

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import fastreg
from fastreg.calls import Calls


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


@pytest.fixture
def patched():
    with fastreg.patch_torch():
        yield


def backend(graphs):
    """One that runs what it is given, and keeps the names of the operators."""

    def keep(module, _):
        graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return make_boxed_func(module)

    return aot_autograd(fw_compiler=keep, bw_compiler=keep)


def step(x):
    return F.batch_norm(F.dropout(F.dropout(torch.relu(x))), None, None, training=True)


def test_compiled_before_within_and_after():
    """Each has its own operators, and two dropouts two masks."""
    graphs, leaf = [], torch.randn(40, 50, requires_grad=True)
    compiled = torch.compile(step, backend=backend(graphs), fullgraph=True)

    def operators():
        graphs.clear()
        compiled(leaf).sum().backward()
        return [name for graph in graphs for name in graph]

    before = operators()
    assert "aten.native_dropout.default" in before and not any("fastreg" in name for name in before)
    with fastreg.patch_torch():
        within = operators()
        assert within.count("fastreg.dropout.default") == 4 and within.count("aten.randint.low") == 2
        assert "fastreg.batch_norm_train_backward.default" in within
        assert not any("native" in name for name in within)
        twice = torch.compile(lambda x: F.dropout(F.dropout(x)), backend="aot_eager", fullgraph=True)
        kept = (twice(torch.ones(10000)) != 0).float().mean()
        assert abs(kept - 0.25) < 0.03  # 7 standard deviations
    assert operators() == before


@pytest.mark.parametrize("name", ["aot_eager", "inductor"])
def test_compiled_gradient(patched, name):
    x = torch.ones(64, 32, requires_grad=True)
    y = torch.compile(lambda x: F.dropout(x.mul(2), 0.5), backend=name, fullgraph=True)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y) and 0.3 < (y != 0).float().mean() < 0.7


def test_what_inductor_keeps_is_told_apart():
    """Its caches on disk, too."""
    x = torch.ones(64, 32)

    def compiled():
        return torch.compile(lambda x: F.dropout(x, 0.5) + 1, fullgraph=True)

    def states(function):
        torch._dynamo.reset()
        calls = []
        for _ in range(2):
            torch.manual_seed(1)
            calls.append(function()(x))
        assert torch.equal(*calls)
        return calls[0]

    plain = states(compiled)
    with fastreg.patch_torch():
        patched_result = states(compiled)
    assert not torch.equal(plain, patched_result) and torch.equal(states(compiled), plain)


def test_compiled_subclass_stays_torchs(patched):
    """It knows torch's operators, and need not know fastreg's."""
    graphs, x = [], TwoTensor(torch.ones(50, 40), torch.ones(50, 40))
    compiled = torch.compile(lambda x: F.dropout(x), backend=backend(graphs), fullgraph=True)
    assert set(compiled(x).a.unique().tolist()) == {0.0, 2.0}
    assert graphs and not any("fastreg" in name for graph in graphs for name in graph)


def test_sharded_tensors(patched):
    """A DTensor's dropout is torch's, of the part that lies here fastreg's."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        whole = distribute_tensor(torch.ones(50, 40), init_device_mesh("cpu", (1,)), [Shard(0)])
        assert set(F.dropout(whole).full_tensor().unique().tolist()) == {0.0, 2.0}
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_module_with_statistics(patched):
    graphs, plain, twin = [], torch.nn.BatchNorm1d(8), torch.nn.BatchNorm1d(8)
    compiled = torch.compile(twin, backend=backend(graphs), fullgraph=True)
    for _ in range(3):
        x = torch.randn(16, 8)
        torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(twin.state_dict(), plain.state_dict())
    assert not any("native" in name for graph in graphs for name in graph)


def test_export(patched):
    """The program keeps torch's names, and needs no fastreg; decomposed while patched it has fastreg's operators."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(), torch.nn.BatchNorm1d(4))
    program = torch.export.export(model, (torch.randn(3, 4),))
    names = [str(node.target) for node in program.graph.nodes]
    assert "aten.dropout.default" in names and not any("fastreg" in name for name in names)
    assert program.module()(torch.randn(3, 4)).shape == (3, 4)
    names = [str(node.target) for node in program.run_decompositions().graph.nodes]
    assert "fastreg.dropout.default" in names


def test_traced_program_is_plain(patched):
    traced = torch.jit.trace(lambda x: F.dropout(x, 0.5), (torch.ones(5),), check_trace=False)
    assert "aten::dropout" in str(traced.graph) and "fastreg" not in str(traced.graph)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_programs(patched):
    """Also the parts that torch differentiates for itself, which ask for the mask: their dropout is fastreg's."""

    @torch.jit.script
    def program(x, w):
        return torch.tanh(torch.relu(F.dropout(x * w, 0.5, True)) * w)

    x, w = torch.ones(64, 16, requires_grad=True), torch.ones(16, requires_grad=True)
    calls = Calls()
    calls.start()
    try:
        for _ in range(5):
            x.grad = None
            y = program(x, w)
            y.sum().backward()
            assert torch.equal(x.grad != 0, y != 0)
    finally:
        calls.stop()
    assert sum(calls.counts.values()) == 5 and all(site.why_left is None for site in calls.counts)


def test_func_transforms(patched):
    ones = torch.ones(50)
    assert set(torch.func.grad(lambda x: F.dropout(x).sum())(ones).tolist()) == {0.0, 2.0}
    y, tangent = torch.func.jvp(lambda x: F.dropout(x), (ones,), (3 * ones,))
    assert torch.equal(tangent, 3 * y)
    rows = torch.func.vmap(F.dropout, randomness="different")(torch.ones(3, 50))
    assert len({tuple(row.tolist()) for row in rows}) == 3
    rows = torch.func.vmap(F.dropout, randomness="same")(torch.ones(3, 50))
    assert len({tuple(row.tolist()) for row in rows}) == 1
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.func.vmap(F.dropout)(torch.ones(3, 50))
    per_sample = torch.func.vmap(torch.func.grad(lambda x: F.dropout(x).sum()), randomness="different")
    assert set(per_sample(torch.ones(3, 50)).unique().tolist()) == {0.0, 2.0}
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(ones, 3 * ones)
        y, tangent = torch.autograd.forward_ad.unpack_dual(F.dropout(dual))
        assert torch.equal(tangent, 3 * y)


def test_attention_under_vmap(patched):
    q = torch.randn(3, 2, 4, 8)

    def attend(q):
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)

    assert torch.func.vmap(attend, randomness="different")(q).shape == q.shape
    gradient = torch.func.vmap(torch.func.grad(lambda q: attend(q).sum()), randomness="different")(q)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_ensembles(patched, training):
    """Layers that vmap stacks: each as alone."""
    x = torch.randn(3, 8, 4)

    def normalise(x, mean, var):
        return F.batch_norm(x, mean, var, training=training), mean, var

    means, variances = torch.zeros(3, 4), torch.ones(3, 4)
    alone = [normalise(*each) for each in zip(x, means.clone(), variances.clone(), strict=True)]
    stacked = torch.func.vmap(normalise)(x, means, variances)
    for results, expected in zip(stacked, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(results, torch.stack(expected))


def test_what_vmap_refuses_is_torchs(patched):
    """An input that torch takes, fastreg not: torch's own rules hold."""
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.func.vmap(lambda x: F.dropout(x.to(torch.complex64)))(torch.ones(3, 50))


def test_functionalize_and_modes(patched):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    def in_place(x):
        y = x * 1
        return F.dropout(y, inplace=True)

    mean, var = torch.zeros(4), torch.ones(4)
    torch.func.functionalize(lambda x: F.batch_norm(x, mean, var, training=True))(torch.ones(3, 4))
    assert torch.equal(mean, torch.full((4,), 0.1))
    y = torch.func.functionalize(in_place)(torch.ones(100))
    assert set(y.tolist()) == {0.0, 2.0}
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.ones(3, 4, requires_grad=True))
        assert F.dropout(fake).shape == (3, 4) and F.batch_norm(fake, None, None, training=True).shape == (3, 4)
    with FlopCounterMode(display=False):
        assert set(F.dropout(torch.ones(100)).tolist()) == {0.0, 2.0}
    graph = make_fx(in_place, tracing_mode="symbolic")(torch.ones(100))
    assert "fastreg.dropout" in str(graph.code)
    assert set(graph(torch.ones(100)).tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed(patched, use_reentrant):
    x = torch.ones(1000, requires_grad=True)
    y = checkpoint(lambda x: F.dropout(F.dropout(x)).square(), x, use_reentrant=use_reentrant)
    y.sum().backward()
    assert torch.equal(x.grad, 2 * y)


def test_compiling_where_states_are_given_is_refused(patched):
    compiled = torch.compile(lambda x: F.dropout(x), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="dropout must not be compiled"), fastreg.record_rng_states():
        compiled(torch.ones(10))
