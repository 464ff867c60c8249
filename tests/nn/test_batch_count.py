"""num_batches_tracked: of any dtype, size and device that torch's layers count with."""

import copy

import pytest
import torch
from torch import nn

import fastreg
from fastreg.functional._fused import batch_norm_act_with_count
from tests.common import COMPILED_BACKENDS

COUNTS = {
    "int64": torch.tensor(7),
    "int64[1]": torch.tensor([7]),
    "int32": torch.tensor(7, dtype=torch.int32),
    "float32": torch.tensor(7.5),
    "float64": torch.tensor(7.0, dtype=torch.float64),
    "bfloat16": torch.tensor(256.0, dtype=torch.bfloat16),  # where one more is the same
    "uint8": torch.tensor(255, dtype=torch.uint8),  # where one more is none
    "int64[2]": torch.tensor([3, 4]),
    "bool": torch.tensor(True),
    "float32 on meta": torch.tensor(7.0, device="meta"),
    "int64 on meta": torch.tensor(7, device="meta"),
    "None": None,
}
KINDS = {
    "BatchNorm1d": lambda: fastreg.nn.BatchNorm1d(4),
    "BatchNormAct1d": lambda: fastreg.nn.BatchNormAct1d(4, act="silu"),
    "BatchNormAct1d of nothing": lambda: fastreg.nn.BatchNormAct1d(4, act=None),
    "BatchNormAct1d with prelu before": lambda: fastreg.nn.BatchNormAct1d(4, act=None, pre_act="prelu"),
}


def theirs_of(kind):
    if kind == "BatchNormAct1d":
        return nn.Sequential(nn.BatchNorm1d(4), nn.SiLU())
    return nn.Sequential(*([nn.PReLU()] if "prelu" in kind else []), nn.BatchNorm1d(4))


def run(model, count, momentum, x):
    """Output, statistics and the count after two batches, or the type of the error that a batch raises."""
    norm = next(m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase))
    norm.momentum = momentum
    norm.num_batches_tracked = copy.deepcopy(count)
    try:
        for _ in range(2):
            y = model(x)
    except Exception as error:
        return type(error)
    counted = norm.num_batches_tracked
    return [y.detach(), norm.running_mean, norm.running_var, None if counted is None or counted.is_meta else counted]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_counts_as_torch_does(kind, name, momentum):
    torch.manual_seed(0)
    x = 3 * torch.randn(16, 4) + 1
    expected = run(theirs_of(kind), COUNTS[name], momentum, x)
    found = run(KINDS[kind](), COUNTS[name], momentum, x)
    if isinstance(expected, type):
        assert isinstance(found, type) and issubclass(found, (RuntimeError, expected))
        return
    torch.testing.assert_close(found, expected)
    if found[3] is not None:
        assert found[3].dtype == expected[3].dtype == COUNTS[name].dtype and found[3].shape == COUNTS[name].shape


@pytest.mark.parametrize("cast", [torch.FloatTensor, torch.float64, torch.bfloat16, torch.HalfTensor], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cast_of_all_buffers(cast, kind):
    ours, theirs = KINDS[kind]().type(cast), theirs_of(kind).type(cast)
    x = torch.randn(16, 4).to(ours.weight.dtype)
    tolerance = {"rtol": 0.02, "atol": 0.02} if x.dtype.itemsize == 2 else {}
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x), **tolerance)
    count = next(m for m in theirs if isinstance(m, nn.BatchNorm1d)).num_batches_tracked
    torch.testing.assert_close(ours.num_batches_tracked, count, rtol=0, atol=0)
    assert ours.num_batches_tracked == 2


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_without_it(kind):
    """Loaded into a model on the meta device, whose count stays there."""
    theirs = theirs_of(kind)
    norm = next(m for m in theirs if isinstance(m, nn.BatchNorm1d))
    state = norm.state_dict()
    del state["num_batches_tracked"]
    if "prelu" in kind:
        state["pre_act.weight"] = theirs[0].weight.detach()
    with torch.device("meta"):
        ours = KINDS[kind]()
    ours.load_state_dict(copy.deepcopy(state), strict=False, assign=True)
    assert ours.num_batches_tracked.is_meta
    x = torch.randn(64, 4)
    for model in (ours, theirs):
        model.zero_grad()
        model(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, norm.weight.grad)
    torch.testing.assert_close(ours.running_var, norm.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_nothing_is_counted_where_the_call_is_refused():
    for count in (torch.tensor(3), torch.tensor(3.0)):
        layer = fastreg.nn.BatchNorm1d(4)
        layer.num_batches_tracked = count
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(torch.randn(1, 4))
        assert count == 3


def test_evaluation_does_not_count():
    for kind in KINDS:
        layer = KINDS[kind]().eval()
        layer.num_batches_tracked = torch.tensor(2.5)
        layer(torch.randn(3, 4))
        assert layer.num_batches_tracked == 2.5


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compiled(momentum):
    torch.manual_seed(0)
    x = torch.randn(16, 4)
    for count in (torch.tensor(7.5), torch.tensor([7])):
        layers = [fastreg.nn.BatchNorm1d(4), fastreg.nn.BatchNormAct1d(4)]
        for layer in layers:
            layer.num_batches_tracked, layer.momentum = count.clone(), momentum
            other = copy.deepcopy(layer)
            torch.testing.assert_close(torch.compile(other, backend="aot_eager")(x), layer(x))
            torch.testing.assert_close(other.state_dict(), layer.state_dict())


@pytest.mark.skipif(not COMPILED_BACKENDS, reason="needs the operators")
def test_operators_refuse_what_they_do_not_count_with():
    """Whatever device the count is on: one on the meta device brings a call to the fake kernels."""
    ops = torch.ops.fastreg
    x, mean, var = torch.randn(8, 4), torch.zeros(4), torch.ones(4)
    fused = ("identity", 0.0, None, "relu", 0.0, None, False, 0.0)
    moments = ops.batch_norm_moments(x)[None]
    for name in ("float32", "int64[2]", "int64 on meta", "float32 on meta"):
        for call in (
            lambda count: ops.batch_norm_train(x, None, None, mean, var, count, 0.1, 1e-5),
            lambda count: ops.batch_norm_act_train(x, None, None, mean, var, count, 0.1, 1e-5, *fused, None),
            lambda count: ops.batch_norm_act_train_seeded(x, None, None, mean, var, count, 0.1, 1e-5, *fused),
            lambda count: ops.batch_norm_merge(moments, mean, var, count, 0.1, 1e-5),
        ):
            with pytest.raises(RuntimeError, match="num_batches_tracked must be one int64 value on cpu"):
                call(COUNTS[name])
    assert (mean == 0).all() and (var == 1).all()
    with pytest.raises(RuntimeError, match="residual must have"):
        fused = ("identity", 0.0, torch.empty(8, 4, device="meta"), "relu", 0.0, None, False, 0.0)
        ops.batch_norm_act_train(x, None, None, None, None, None, 0.1, 1e-5, *fused, None)


def test_the_function_with_a_count():
    x, act = torch.randn(8, 4), fastreg.functional.Activation("silu")
    for count in (torch.tensor(2), torch.tensor(2.0), torch.tensor([2], dtype=torch.int16)):
        mean, var = torch.zeros(4), torch.ones(4)
        batch_norm_act_with_count(x, mean, var, count, None, None, True, None, 1e-5, act)
        assert count == 3
        torch.testing.assert_close(mean, x.mean(0) / 3)
        torch.testing.assert_close(var, 2 / 3 + x.var(0) / 3)
