"""The kinds of dropout other than the first under opcheck, torch.compile, fake tensors and torch.fx."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastreg
from fastreg import functional as F
from tests.common import COMPILED_BACKENDS, DEVICES, LAYOUTS, channels_last, in_layout
from tests.functional.dropout_family import KINDS
from tests.known_answers import rng_state

pytestmark = pytest.mark.not_on_kernels(
    "what the compiler makes of them calls operators that other tests run, and takes minutes"
)

OPS = torch.ops.fastreg
all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
ALPHA = (0.9, 0.5, -0.7)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device, requires_grad):
    def x():
        return channels_last(torch.randn(2, 3, 4, 5, device=device)).requires_grad_(requires_grad)

    def written():
        return x().mul(1) if requires_grad else x()

    state, index_map = rng_state(1, 8, device), (8, 40, 80)
    check = torch.library.opcheck
    check(OPS.dropout.default, (x(), 0.3, state, None, index_map, ALPHA))
    check(OPS.dropout_.default, (written(), 0.3, state, index_map, ALPHA))
    for dims in (1, 2):
        check(OPS.feature_dropout.default, (x(), dims, 0.3, state))
        check(OPS.feature_dropout.default, (x(), dims, 0.3, state, index_map, ALPHA))
        check(OPS.feature_dropout.default, (x(), dims, 0.3, state, None, None, x()))
        check(OPS.feature_dropout_.default, (written(), dims, 0.3, state, index_map, ALPHA))
        # Two runs draw two states: what the checks compare must not depend on them.
        check(OPS.feature_dropout_seeded.default, (x(), dims, 1.0, None, None, x()))
        check(OPS.feature_dropout_seeded_.default, (written(), dims, 1.0))


def test_random_operators_are_tagged():
    for op in (OPS.feature_dropout_seeded, OPS.feature_dropout_seeded_):
        assert torch.Tag.nondeterministic_seeded in op.default.tags


@pytest.mark.parametrize("device", DEVICES)
@all_kinds
@pytest.mark.parametrize("layout", LAYOUTS[1:3])
@pytest.mark.parametrize("inplace", [False, True])
def test_compiled_as_eager(device, kind, layout, inplace):
    def f(x, state):
        y = kind(x * 1, 0.4, state, inplace=inplace)
        return y.flatten(1).sin(), y.sum()

    x, state = in_layout(torch.randn(kind.shape, device=device), layout), rng_state(3, 8, device)
    results = []
    for function in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        y, total = function(leaf, state)
        (y.sum() + total).backward()
        results.append((y, leaf.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_draws(device, backend):
    """Each call its own mask, and backward the mask of its forward; a residual goes along."""

    @torch.compile(fullgraph=True, backend=backend)
    def f(x):
        return F.dropout2d(x), F.dropout2d(x), F.drop_path(x, residual=x), F.alpha_dropout(x, 0.5, True)

    x = torch.ones(32, 32, 2, 2, device=device, requires_grad=True)
    first, second, path, alpha = f(x)
    again = f(x)[0]
    assert not torch.equal(first, second) and not torch.equal(first, again)
    assert torch.equal(path.unique(), torch.tensor([1.0, 3.0], device=device)) and alpha.unique().numel() == 2
    for y, slope in ((first, first), (second, second), (path, path)):
        assert torch.equal(torch.autograd.grad(y.sum(), x, retain_graph=True)[0], slope)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_mask(device):
    state = rng_state(5, 8, device)
    f = torch.compile(
        lambda state: fastreg.dropout_mask((40, 3), 0.3, state, dims=1), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(f(state), fastreg.dropout_mask((40, 3), 0.3, state, dims=1))


@pytest.mark.parametrize("device", COMPILED_BACKENDS)
@all_kinds
def test_fake_tensors(device, kind):
    with FakeTensorMode():
        x = channels_last(torch.empty(kind.shape, device=device)).requires_grad_()
        for y in (kind(x, 0.5, None), kind(x * 1, 0.5, None, inplace=True), kind(x, 0.5, torch.empty(2).long())):
            assert (y.shape, y.dtype, y.device, y.stride()) == (x.shape, x.dtype, x.device, x.stride())
            assert y.requires_grad


@pytest.mark.parametrize("device", DEVICES)
@all_kinds
def test_functions_in_graphs(device, kind):
    traced = torch.fx.symbolic_trace(lambda x, state: kind(x, 0.5, state))
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [kind.function]
    x, state = torch.randn(kind.shape, device=device), rng_state(2, 0)
    assert torch.equal(copy.deepcopy(traced)(x, state), kind(x, 0.5, state))
