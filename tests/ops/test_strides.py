"""Strides of results: torch's, contiguous or channels-last, whatever the input's are."""

import itertools

import pytest
import torch
from torch import nn
from torch._prims_common import suggest_memory_format

import fastreg
from fastreg.functional import batch_norm, batch_norm_act
from fastreg.reference.batch_norm import empty_normalized_like, normalized_format
from tests.common import COMPILED_BACKENDS

pytestmark = [pytest.mark.skipif(not COMPILED_BACKENDS, reason="needs the operators")]

SHAPES = [(3, 4), (1, 4), (2, 3, 5), (2, 3, 1), (2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 8, 1, 1), (2, 3, 1, 5)]
SHAPES += [(2, 3, 2, 4, 5), (1, 3, 2, 4, 5), (2, 3, 1, 1, 1), (2, 2, 3, 1, 2, 2)]


def layouts(shape):
    """Tensors of a shape: in each order of dimensions, dense, with gaps, and cut; expanded; and with any strides of the
    dimensions of size one."""
    dims = len(shape)
    orders = list(itertools.permutations(range(dims)))
    for order in orders if dims < 5 else orders[:: 7 if dims == 5 else 101]:
        inverse = [order.index(d) for d in range(dims)]
        yield torch.randn([shape[d] for d in order]).permute(inverse)
        for d in range(dims):
            doubled = torch.randn([shape[e] * (2 if e == d else 1) for e in order])
            yield doubled.permute(inverse).narrow(d, 0, shape[d])
            yield doubled.permute(inverse)[(slice(None),) * d + (slice(None, None, 2),)]
    for d in range(dims):
        yield torch.randn([1 if e == d else shape[e] for e in range(dims)]).expand(shape)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(dims, torch.contiguous_format)
    ones = [d for d in range(dims) if shape[d] == 1]
    for memory_format in {torch.contiguous_format, last}:
        strides = list(torch.empty(shape, memory_format=memory_format).stride())
        for some in itertools.product((1, 2, 8, 64) if len(ones) < 3 else (1, 6), repeat=len(ones)):
            for d, stride in zip(ones, some, strict=True):
                strides[d] = stride
            yield torch.randn(8192).as_strided(shape, strides)


def statistics(x, dtype):
    return torch.zeros(x.shape[1], dtype=dtype), torch.ones(x.shape[1], dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(shape, training):
    """Those of torch, and so are the gradient's where torch's do not depend on the output's gradient."""
    for x in layouts(shape):
        if training and x.numel() == x.shape[1]:
            continue
        expected = nn.functional.batch_norm(x, *statistics(x, x.dtype), training=training)
        leaf = x.requires_grad_()
        y = batch_norm(leaf, *statistics(x, x.dtype), training=training)
        assert y.stride() == expected.stride(), (x.stride(), x.storage_offset())
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=2e-4)
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
        assert gradient.stride() == expected.stride()
        fused = batch_norm_act(leaf, *statistics(x, x.dtype), training=training, act="silu", residual=x.detach())
        assert fused.stride() == expected.stride()
        torch.testing.assert_close(fused, nn.functional.silu(expected + x), rtol=1e-4, atol=2e-4)
        fake = empty_normalized_like(torch.empty_strided(shape, x.stride(), device="meta"))
        assert fake.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("wide", [True, False])
def test_batch_norm_of_other_dtypes(dtype, wide):
    for x in layouts((2, 3, 1, 5)):
        x = torch.randn(8192).to(dtype).as_strided(x.shape, x.stride())
        arguments = statistics(x, torch.float32 if wide and dtype is torch.bfloat16 else dtype)
        expected = nn.functional.batch_norm(x, *(t.clone() for t in arguments), training=True)
        assert batch_norm(x, *arguments, training=True).stride() == expected.stride()


def test_strides_on_cuda():
    """Those of cuDNN, which takes the format that the strides suggest, without a GPU."""
    with torch._subclasses.FakeTensorMode():
        x = torch.empty_strided((2, 8, 1, 1), (8, 1, 8, 8), device="cuda")
        assert normalized_format(x) is torch.channels_last
        assert empty_normalized_like(x).stride() == (8, 1, 8, 8)
        assert empty_normalized_like(x.cpu()).stride() == (8, 1, 1, 1)
        for strides, expected in {
            (60, 1, 15, 3): (60, 1, 15, 3),
            (20, 40, 5, 1): (60, 20, 5, 1),
            (60, 5, 15, 1): (60, 20, 5, 1),
            (240, 1, 60, 6): (60, 1, 15, 3),
        }.items():
            x = torch.empty_strided((2, 3, 4, 5), strides, device="cuda")
            assert empty_normalized_like(x).stride() == expected
        x = torch.empty_strided((4, 3, 7), (21, 1, 3), device="cuda")
        assert empty_normalized_like(x).is_contiguous()


def test_views_of_results():
    """What users write after torch's batch norm."""
    x = torch.randn(4, 7, 3).transpose(1, 2)
    for layer in (fastreg.nn.BatchNorm1d(3), fastreg.nn.BatchNormAct1d(3, drop=0.5)):
        for training in (True, False):
            assert layer.train(training)(x).view(4, -1).shape == (4, 21)
    x = torch.randn(16).as_strided((2, 8, 1, 1), (8, 1, 8, 8))
    assert fastreg.nn.BatchNorm2d(8)(x).stride() == nn.BatchNorm2d(8)(x).stride() == (8, 1, 1, 1)
    # From here on a layout is what the next layer computes in.
    resize = nn.Upsample(scale_factor=4)
    assert resize(fastreg.nn.BatchNorm2d(8)(x)).is_contiguous() and resize(fastreg.nn.Dropout()(x)).is_contiguous()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dropout(shape):
    """Of elements exactly torch's; of features and samples those of the format that the next layer takes from it."""
    torch.manual_seed(0)
    for x in layouts(shape):
        for name, settings in (("dropout", ()), ("alpha_dropout", (True,))):
            expected = getattr(nn.functional, name)(x, 0.5, *settings)
            assert getattr(fastreg.functional, name)(x, 0.5, *settings).stride() == expected.stride(), x.stride()
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)
    state = torch.tensor([5, 16])
    for x in (
        torch.randn(shape),
        torch.randn(shape).to(memory_format=last),
        torch.randn(shape[::-1]).permute(*range(len(shape))[::-1]),
    ):
        for y, expected in (
            (fastreg.functional.act_dropout(x, "silu", 0.5), nn.functional.dropout(nn.functional.silu(x))),
            (fastreg.functional.feature_alpha_dropout(x, 0.5, True), torch.feature_alpha_dropout(x, 0.5, True)),
            (torch.ops.fastreg.feature_dropout(x, 2, 0.5, state), torch.feature_dropout(x, 0.5, True)),
            (fastreg.functional.drop_path(x, 0.5), x * torch.ones([shape[0], *[1] * (x.dim() - 1)])),
        ):
            assert y.is_contiguous() == expected.is_contiguous()
            assert suggest_memory_format(y) is suggest_memory_format(expected), x.stride()


def test_masks_follow_the_result():
    """Fused or not, elements are numbered in the memory order of the batch norm's result."""
    state = torch.tensor([5, 16])
    for shape in ((2, 3, 4, 5), (4, 3, 7)):
        for x in layouts(shape):
            y = batch_norm_act(x, *statistics(x, x.dtype), act="sigmoid", p=0.5, rng_state=state)
            unfused = batch_norm(x, *statistics(x, x.dtype)).sigmoid()
            assert torch.equal(y != 0, fastreg.functional.dropout(unfused, 0.5, rng_state=state) != 0)


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((1, 3, 4, 5), (15, 1, 15, 3)),
        ((2, 3, 4, 5), (20, 40, 5, 1)),
        ((2, 3, 4, 5), (60, 5, 15, 1)),
        ((2, 3, 4, 5), (60, 1, 15, 3)),
        ((2, 3, 4, 5), (0, 20, 5, 1)),
        ((2, 8, 1, 1), (8, 1, 8, 8)),
    ],
)
def test_compiled_results_have_the_same(shape, strides):
    torch._dynamo.reset()
    x, c = torch.randn(8192).as_strided(shape, strides), shape[1]
    ours = nn.ModuleList([fastreg.nn.BatchNorm2d(c), fastreg.nn.Dropout(0.5), fastreg.nn.Dropout2d(0.5)])
    ours += [fastreg.nn.BatchNormAct2d(c, drop=0.5), fastreg.nn.ActDropout("silu", 0.5)]
    for layer in ours:
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        results = []
        for module in (layer, compiled):
            leaf = x.detach().requires_grad_()
            y = module(leaf)
            (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
            is_norm = isinstance(layer, nn.modules.batchnorm._NormBase)  # others' follow the output's gradient
            results.append((y.stride(), gradient.stride() if is_norm else None))
        assert results[0] == results[1]


def test_second_derivatives_see_the_same_mask():
    state = torch.tensor([5, 16])
    for order in itertools.permutations(range(3)):
        x = (
            torch.randn(4, 3, 5, dtype=torch.float64)
            .permute(order)
            .contiguous()
            .permute(torch.tensor(order).argsort().tolist())
        )

        def fused(x):
            return batch_norm_act(x, None, None, training=True, act="sigmoid", p=0.5, rng_state=state)

        def unfused(x):
            y = batch_norm(x, None, None, training=True).sigmoid()
            return fastreg.functional.dropout(y, 0.5, rng_state=state)

        results = []
        for function in (fused, unfused):
            leaf = x.detach().requires_grad_()
            (first,) = torch.autograd.grad(function(leaf).sin().sum(), leaf, create_graph=True)
            results.append((first, *torch.autograd.grad(first.square().sum(), leaf)))
        torch.testing.assert_close(*results, check_stride=False)


@pytest.mark.parametrize("shape", [(2, 8, 1, 1), (2, 3, 1, 5), (1, 3, 2, 2, 2)], ids=str)
def test_fake_kernels_tell_the_same(shape):
    ops, state = torch.ops.fastreg, torch.tensor([5, 16])
    act, fused = ("silu", 0.0), ("identity", 0.0, None, "silu", 0.0, None, False)
    stats = ops.batch_norm_train(torch.randn(shape), None, None, None, None, None, 0.0, 1e-5)[1]
    calls = [
        lambda x: ops.dropout(x, 0.5, state),
        lambda x: ops.dropout_seeded(x, 0.5),
        lambda x: ops.feature_dropout(x, 2, 0.5, state),
        lambda x: ops.feature_dropout_seeded(x, 1, 0.5),
        lambda x: ops.act_dropout(x, None, *act, 0.5, state, None, None),
        lambda x: ops.act_dropout_seeded(x, None, *act, 0.5, None, None),
        lambda x: ops.batch_norm_train(x, None, None, None, None, None, 0.0, 1e-5),
        lambda x: ops.batch_norm_eval(x, None, None, stats[0], stats[2], 1e-5),
        lambda x: ops.batch_norm_train_backward(x, x, None, stats, [True] * 3),
        lambda x: ops.batch_norm_eval_backward(x, x, None, stats[0], stats[2], 1e-5, [True] * 3),
        lambda x: ops.batch_norm_normalize(x, None, None, stats),
        lambda x: ops.batch_norm_grad_input(x, x, None, stats, stats[:2].contiguous()),
        lambda x: ops.batch_norm_act_train(x, None, None, None, None, None, 0.0, 1e-5, *fused, 0.5, state),
        lambda x: ops.batch_norm_act_train_seeded(x, None, None, None, None, None, 0.0, 1e-5, *fused, 0.5),
        lambda x: ops.batch_norm_act_eval(x, None, None, stats[0], stats[2], 1e-5, *fused, 0.5, state),
        lambda x: ops.batch_norm_act_train_backward(
            x, x, None, None, stats, "identity", 0.0, x, None, *act, None, 0.0, None, [True] * 5
        ),
    ]
    for x in itertools.islice(layouts(shape), 0, None, 3):
        strides_of_empty_like = torch.empty_like(x).stride()
        for index, call in enumerate(calls):
            with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
                fake = torch.empty_strided(x.shape, x.stride())
                if index < 6 and torch.empty_like(fake).stride() != strides_of_empty_like:
                    continue  # torch's own fake kernel tells others
                faked = call(fake)
            found, expected = (
                [t.stride() for t in torch.utils._pytree.tree_leaves(results)] for results in (faked, call(x))
            )
            assert found == expected, (index, x.stride())
