"""fastreg.nn's batch norms in place of torch.nn's: whatever works with theirs works, and gives the same."""

import copy
import inspect
import itertools
import pickle

import pytest
import torch

import fastreg
from tests.common import channels_last

SHAPES = {1: (6, 4, 5), 2: (6, 4, 3, 5), 3: (6, 4, 2, 3, 2)}
KINDS = [(getattr(fastreg.nn, f"BatchNorm{d}d"), getattr(torch.nn, f"BatchNorm{d}d"), SHAPES[d]) for d in SHAPES]
LAZY = [(getattr(fastreg.nn, f"LazyBatchNorm{d}d"), getattr(torch.nn, f"LazyBatchNorm{d}d"), SHAPES[d]) for d in SHAPES]
TORCH_HAS_BIAS = "bias" in inspect.signature(torch.nn.BatchNorm1d).parameters

OPTIONS = [
    {"affine": affine, "track_running_stats": tracked, "momentum": momentum}
    for affine, tracked, momentum in itertools.product([True, False], [True, False], [0.1, None])
]

kinds = pytest.mark.parametrize("ours, torchs, shape", KINDS)
options = pytest.mark.parametrize("options", OPTIONS, ids=str)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_same_state(one, other, **tolerance):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


def assert_same(one, other, shape, steps=(True, True, False, True, False)):
    """Equal outputs, gradients and statistics in these steps of training and evaluation."""
    for training in steps:
        x = torch.randn(shape) * 2 + 1
        results = []
        for module in (one.train(training), other.train(training)):
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            y.square().sum().backward()
            results.append((y.detach(), leaf.grad, [p.grad for p in module.parameters()]))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
        assert_same_state(one, other)


@kinds
def test_is_torchs(ours, torchs, shape):
    assert issubclass(ours, torchs) and ours.__name__ == torchs.__name__ and ours.__module__.startswith("fastreg")
    mine, theirs = (inspect.signature(kind).parameters for kind in (ours, torchs))
    assert mine["bias"].kind is inspect.Parameter.KEYWORD_ONLY and mine["bias"].default is True
    assert [p.replace(annotation=None) for name, p in mine.items() if name != "bias"] == [
        p.replace(annotation=None) for name, p in theirs.items() if name != "bias"
    ]


@kinds
@options
def test_same_results(ours, torchs, shape, options):
    one, other = ours(4, **options), torchs(4, **options)
    assert repr(one) == repr(other) and one.__dict__.keys() == other.__dict__.keys()
    assert_same_state(one, other)
    assert_same(one, other, shape)


@kinds
def test_state_dict_both_ways(ours, torchs, shape):
    for source, target in ((ours, torchs), (torchs, ours)):
        trained = source(4)
        for _ in range(2):
            trained(torch.randn(shape))
        loaded = target(4)
        loaded.load_state_dict(trained.state_dict())
        assert_same_state(loaded, trained, rtol=0, atol=0)
        assert loaded.num_batches_tracked == 2
        assert_same(loaded, trained, shape)


def test_old_state_dict_without_a_count():
    module = fastreg.nn.BatchNorm2d(4)
    state = {name: value for name, value in module.state_dict().items() if name != "num_batches_tracked"}
    module.load_state_dict(state)
    assert module.num_batches_tracked == 0


@kinds
def test_without_bias(ours, torchs, shape):
    """Also where torch's own lacks the argument."""
    module = ours(4, bias=False)
    assert module.bias is None and list(module.state_dict())[0] == "weight" and "bias" not in module.state_dict()
    module.reset_parameters()
    other = torchs(4, **({"bias": False} if TORCH_HAS_BIAS else {}))
    other.bias = None
    if TORCH_HAS_BIAS:
        assert repr(module) == repr(other)
    assert_same(module, other, shape)
    lazy = getattr(fastreg.nn, f"Lazy{ours.__name__}")(bias=False)
    lazy(torch.randn(shape))
    assert type(lazy) is ours and lazy.bias is None and lazy.weight.shape == (4,)
    assert ours(4, affine=False, bias=False).weight is None


@pytest.mark.parametrize("ours, torchs, shape", LAZY)
@options
def test_lazy(ours, torchs, shape, options):
    one, other = ours(**options), torchs(**options)
    assert isinstance(one, torchs) and one.cls_to_become is getattr(fastreg.nn, ours.__name__[4:])
    assert repr(one) == repr(other) and list(one.state_dict()) == list(other.state_dict())
    one.reset_parameters()  # nothing yet
    assert_same(one, other, shape)
    assert type(one) is getattr(fastreg.nn, ours.__name__[4:])
    assert repr(one) == repr(other) and one.num_features == other.num_features


def test_lazy_loads_a_state_dict():
    trained = torch.nn.BatchNorm2d(4)
    trained(torch.randn(2, 4, 3, 3))
    lazy = fastreg.nn.LazyBatchNorm2d()
    lazy.load_state_dict(trained.state_dict())
    assert_same_state(lazy, trained, rtol=0, atol=0)


def flip_tracking_off(module):
    module.track_running_stats = False


def drop_count(module):
    module.num_batches_tracked = None


def drop_statistics(module):
    module.running_mean = module.running_var = None


def cumulative(module):
    module.momentum = None


def cumulative_without_count(module):
    module.momentum = module.num_batches_tracked = None


def freeze(module):
    module.requires_grad_(False)


@pytest.mark.parametrize(
    "change", [flip_tracking_off, drop_count, drop_statistics, cumulative, cumulative_without_count, freeze]
)
def test_changed_later(change):
    one, other = fastreg.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
    assert_same(one, other, SHAPES[2])
    change(one)
    change(other)
    assert_same(one, other, SHAPES[2])


def test_parametrised_weight():
    """What stands in for a parameter or buffer is what counts."""
    one, other = fastreg.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
    for module in (one, other):
        torch.nn.utils.parametrize.register_parametrization(module, "weight", torch.nn.Softplus())
        del module.running_var
        module.running_var = torch.full((4,), 2.0)  # an attribute like any other
    assert_same(one, other, SHAPES[2])
    torch.testing.assert_close(one.running_var, other.running_var)


def test_tracking_flipped_on_later():
    one, other = (kind(4, track_running_stats=False) for kind in (fastreg.nn.BatchNorm2d, torch.nn.BatchNorm2d))
    one.track_running_stats = other.track_running_stats = True
    assert_same(one, other, SHAPES[2])


def test_cumulative_average():
    module = fastreg.nn.BatchNorm1d(4, momentum=None)
    batches = torch.randn(5, 10, 4)
    for batch in batches:
        module(batch)
    torch.testing.assert_close(module.running_mean, batches.mean((0, 1)))
    torch.testing.assert_close(module.running_var, batches.var(1).mean(0))
    assert module.num_batches_tracked == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_moved_to_a_dtype(dtype):
    one, other = fastreg.nn.BatchNorm2d(4).to(dtype), torch.nn.BatchNorm2d(4).to(dtype)
    assert_same_state(one, other)
    for training in (True, False):
        x = torch.randn(6, 4, 3, 3).to(dtype)
        torch.testing.assert_close(one.train(training)(x), other.train(training)(x))
        assert_same_state(one, other)
    assert one.num_batches_tracked.dtype == torch.int64 and fastreg.nn.BatchNorm2d(4, dtype=dtype).weight.dtype == dtype


def test_memory_format():
    module = fastreg.nn.BatchNorm2d(4).to(memory_format=torch.channels_last)
    x = channels_last(torch.randn(2, 4, 3, 5))
    y = module(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, fastreg.nn.BatchNorm2d(4)(x.contiguous()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(copied):
    module = fastreg.nn.BatchNorm2d(4, eps=1e-3, momentum=None, bias=False)
    module(torch.randn(SHAPES[2]))
    other = copied(module)
    assert type(other) is fastreg.nn.BatchNorm2d and repr(other) == repr(module)
    assert_same_state(other, module, rtol=0, atol=0)
    assert_same(other, module, SHAPES[2])


def test_meta_and_to_empty():
    module = fastreg.nn.BatchNorm2d(4, device="meta")
    assert module(torch.empty(2, 4, 3, 3, device="meta")).is_meta
    module.to_empty(device="cpu")
    module.reset_parameters()
    assert_same(module, torch.nn.BatchNorm2d(4), SHAPES[2])


def test_empty_batch():
    one, other = fastreg.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
    for module in (one, other):
        assert module(torch.empty(0, 4, 3, 3)).shape == (0, 4, 3, 3)
    assert_same_state(one, other)


def test_symbolic_trace_keeps_the_module():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), fastreg.nn.BatchNorm2d(4), fastreg.nn.Dropout(0.5))
    traced = torch.fx.symbolic_trace(model)
    nodes = [(node.op, node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert nodes == [("call_module", name) for name in "012"]
    x = torch.randn(2, 3, 6, 6)
    traced(x)
    assert model[1].num_batches_tracked == 1
    assert torch.equal(traced.eval()(x), model.eval()(x)) and model[1].num_batches_tracked == 1


def test_symbolic_trace_of_the_function():
    mean, var = torch.zeros(4), torch.ones(4)
    traced = torch.fx.symbolic_trace(lambda x, m, v: fastreg.functional.batch_norm(x, m, v, training=True))
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [fastreg.functional.batch_norm]
    traced(torch.randn(10, 4), mean, var)
    assert mean.any()


def test_users_subclass():
    class Mine(fastreg.nn.BatchNorm2d):
        def _check_input_dim(self, input):
            if input.dim() != 3:
                raise ValueError("three dimensions, please")

        def forward(self, input):
            return super().forward(input) + 1

    module = Mine(4)
    torch.testing.assert_close(module(torch.randn(6, 4, 5)).mean(), torch.tensor(1.0))
    with pytest.raises(ValueError, match="three dimensions"):
        module(torch.randn(6, 4, 5, 5))


def test_sync_batch_norm_conversion():
    module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(fastreg.nn.BatchNorm2d(4))
    assert type(module) is torch.nn.SyncBatchNorm


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), fastreg.nn.BatchNorm1d(5), fastreg.nn.Dropout()).eval()
    x = torch.randn(6, 4)
    torch.jit.trace(model, x).save(tmp_path / "model.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.pt")(x), model(x))


def test_inference_mode():
    one, other = fastreg.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    x = torch.randn(6, 4)
    with torch.inference_mode():
        torch.testing.assert_close(one(x), other(x))
    assert_same(one, other, SHAPES[1])
