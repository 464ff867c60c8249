"""patch_torch: which calls it takes, which it leaves, and that nothing of it is left behind."""

import os
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.two_tensor import TwoTensor

import fastreg
from fastreg import patching
from fastreg.calls import NOTHING_DROPPED, Calls

SEED = 3


def kernels():
    """All that the dispatcher knows of torch's operators."""
    return [torch._C._dispatch_dump(f"aten::{name}") for name in patching._OPERATORS]


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    torch.manual_seed(0)
    before = kernels(), torch.compiler.config.cache_key_tag
    yield
    assert (kernels(), torch.compiler.config.cache_key_tag) == before and patching._patches == 0


def x(*shape, dtype=torch.float32):
    return torch.randn(shape or (8, 16), dtype=dtype, requires_grad=True)


def is_ours(y):
    return "fastreg" in y.grad_fn.name()


def graph_of(y):
    """The names of all nodes behind a tensor."""
    seen, nodes = {}, [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen[node] = node.name()
            nodes += [parent for parent, _ in node.next_functions if parent is not None]
    return sorted(seen.values())


CALLS = {
    "dropout": lambda: F.dropout(x()),
    "dropout in place": lambda: F.dropout(x() * 1, inplace=True),
    "Dropout": lambda: torch.nn.Dropout(0.3)(x()),
    "dropout1d": lambda: F.dropout1d(x(2, 3, 4)),
    "dropout2d": lambda: F.dropout2d(x(2, 3, 4, 5)),
    "dropout3d in place": lambda: F.dropout3d(x(2, 3, 4, 5, 6) * 1, inplace=True),
    "alpha_dropout": lambda: F.alpha_dropout(x(), training=True),
    "feature_alpha_dropout": lambda: F.feature_alpha_dropout(x(), training=True),
    "batch_norm": lambda: F.batch_norm(x(), None, None, training=True),
    "BatchNorm1d": lambda: torch.nn.BatchNorm1d(16)(x()),
    "BatchNorm1d in evaluation": lambda: torch.nn.BatchNorm1d(16).eval()(x()),
    "LSTM": lambda: torch.nn.LSTM(16, 4, 2, dropout=0.5)(x(5, 3, 16))[0],
    "GRU": lambda: torch.nn.GRU(16, 4, 2, dropout=0.5)(x(5, 3, 16))[0],
    "attention": lambda: F.scaled_dot_product_attention(x(2, 4, 8), x(2, 4, 8), x(2, 4, 8), dropout_p=0.5),
    "MultiheadAttention": lambda: torch.nn.MultiheadAttention(16, 2, 0.5)(*[x(5, 3, 16)] * 3)[0],
    "without weights": lambda: torch.nn.MultiheadAttention(16, 2, 0.5)(*[x(5, 3, 16)] * 3, need_weights=False)[0],
    "TransformerEncoderLayer": lambda: torch.nn.TransformerEncoderLayer(16, 2, 8)(x(5, 3, 16)),
}


def run(call):
    torch.manual_seed(SEED)
    return call()


@pytest.mark.parametrize("name", CALLS)
def test_is_taken_and_given_back(name):
    before = run(CALLS[name])
    with fastreg.patch_torch():
        patched = run(CALLS[name])
        patched.sum().backward()
    after = run(CALLS[name])
    assert any("fastreg" in node for node in graph_of(patched))
    assert graph_of(after) == graph_of(before) and torch.equal(after, before)
    assert not any("fastreg" in node for node in graph_of(after))


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_is_what_fastregs_functions_compute(p):
    input = x(40, 50)
    with fastreg.patch_torch():
        for name in ("dropout", "alpha_dropout", "feature_alpha_dropout"):
            results = []
            for functions in (F, fastreg.functional):
                torch.manual_seed(SEED)
                results.append(getattr(functions, name)(input, p, True))
            assert torch.equal(*results)


def test_native_dropout_gives_its_mask():
    """Also in torch's own derivative, and for memory in another order."""
    for input in (x(30, 40), x(30, 40).t(), x(2, 3, 4, 5).detach().to(memory_format=torch.channels_last)):
        with fastreg.patch_torch():
            torch.manual_seed(SEED)
            y, mask = torch.native_dropout(input, 0.5, True)
            torch.manual_seed(SEED)
            expected = F.dropout(input, 0.5)
        assert torch.equal(y, expected) and torch.equal(mask, y != 0) and mask.dtype is torch.bool
        assert torch.equal(y, input * mask * 2)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_errors_are_torchs(p):
    messages = []
    for context in (None, fastreg.patch_torch):
        with context() if context else torch.enable_grad(), pytest.raises(RuntimeError) as error:
            torch.dropout(x(), p, True)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.batch_norm(x(), torch.zeros(3), torch.ones(3), training=True),
        lambda: F.batch_norm(x(), None, None),
        lambda: torch.batch_norm(x(), None, None, torch.zeros(16), None, False, 0.1, 1e-5, False),
        lambda: F.batch_norm(x(), torch.zeros(16, dtype=torch.float64), torch.ones(16), training=True),
        lambda: F.batch_norm(torch.ones(4, 16, dtype=torch.int64), None, None, training=True),
        lambda: torch.feature_dropout(x(3), 0.5, True),
        lambda: F.dropout(x(), inplace=True),
        lambda: F.dropout(torch.ones(3, dtype=torch.int64)),
    ],
)
def test_refused_as_by_torch(call):
    errors = []
    for patched in (False, True):
        context = fastreg.patch_torch() if patched else torch.enable_grad()
        with context, pytest.raises(Exception) as error:  # noqa: B017
            call()
        errors.append((error.type, str(error.value).split("\n")[0]))
    assert errors[0] == errors[1]


def test_what_is_left_to_torch():
    """With the results that it has without the patch."""
    subclass = TwoTensor(torch.ones(4), torch.ones(4))

    def with_shared_memory():
        shared = torch.ones(16)
        return F.batch_norm(x(), shared, torch.ones(16), shared, training=True)

    calls = {
        "a tensor subclass with a dispatch of its own": lambda: F.dropout(subclass).a,
        NOTHING_DROPPED: lambda: F.dropout(torch.ones(3), 0.0),
        "eps is not positive": lambda: torch.batch_norm(x(), None, None, None, None, True, 0.1, 0.0, False),
        "one value per channel": lambda: torch.batch_norm(x(1, 16), None, None, None, None, True, 0.1, 1e-5, False),
        "running statistics in shared memory": with_shared_memory,
        "no elements": lambda: F.batch_norm(x(0, 16), None, None, training=True),
    }
    for why, call in calls.items():
        before = run(call)
        calls_made = Calls()
        with fastreg.patch_torch():
            calls_made.start()
            try:
                after = run(call)
            finally:
                calls_made.stop()
        assert why in [site.why_left for site in calls_made.counts]
        assert torch.equal(after, before) or after.isnan().all()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout):
    """Torch's, whatever it then drops elements of."""
    nested = torch.nested.nested_tensor([torch.ones(200), torch.ones(300)], layout=layout)
    with fastreg.patch_torch():
        parts = F.dropout(nested).unbind()
    assert [len(part) for part in parts] == [200, 300]
    assert all(set(part.tolist()) == {0.0, 2.0} for part in parts)


def test_evaluation_returns_the_tensor_itself():
    input = x()
    with fastreg.patch_torch():
        assert F.dropout(input, 0.5, False).data_ptr() == input.data_ptr()
        assert F.dropout(input, 0.0).data_ptr() == input.data_ptr()


def test_inference_mode_and_autocast():
    with fastreg.patch_torch(), torch.inference_mode():
        torch.manual_seed(SEED)
        y = F.dropout(torch.ones(100))
        torch.manual_seed(SEED)
        assert torch.equal(y, fastreg.functional.dropout(torch.ones(100)))
    with fastreg.patch_torch(), torch.autocast("cpu", torch.bfloat16):
        hidden = torch.nn.Linear(16, 16)(x())
        y = torch.nn.BatchNorm1d(16)(hidden)
        assert (y.dtype, is_ours(y)) == (torch.bfloat16, True)
        assert is_ours(F.dropout(hidden)) and F.dropout(hidden).dtype is torch.bfloat16


# ---- counting, threads, processes


def test_is_counted():
    with fastreg.patch_torch():
        with fastreg.patch_torch():
            pass
        assert is_ours(F.dropout(x()))
        fastreg.patch_torch()
        fastreg.unpatch_torch()
        assert is_ours(F.dropout(x()))
    assert not is_ours(F.dropout(x()))
    with pytest.raises(RuntimeError, match="unpatch_torch: torch must be patched"):
        fastreg.unpatch_torch()


def test_a_context_ends_once():
    patch = fastreg.patch_torch()
    with patch:
        pass
    with patch:
        pass


def test_an_exception_ends_it():
    with pytest.raises(KeyError), fastreg.patch_torch():
        raise KeyError


def test_threads_patch_while_others_compute():
    """Each call is torch's or fastreg's, and has a right gradient."""
    stop, errors = threading.Event(), []

    def compute():
        while not stop.is_set():
            leaf = torch.ones(64, 16, requires_grad=True)
            y = F.dropout(leaf)
            y.sum().backward()
            if not torch.equal(leaf.grad, y) or not set(y.unique().tolist()) <= {0.0, 2.0}:
                errors.append(y)

    def patch():
        for _ in range(200):
            with fastreg.patch_torch():
                F.dropout(torch.ones(3))

    computing = [threading.Thread(target=compute) for _ in range(2)]
    patching_threads = [threading.Thread(target=patch) for _ in range(2)]
    for thread in computing + patching_threads:
        thread.start()
    for thread in patching_threads:
        thread.join()
    stop.set()
    for thread in computing:
        thread.join()
    assert not errors


def test_forked_workers_have_it_and_end_it_for_themselves():
    with fastreg.patch_torch():
        child = os.fork()
        if child == 0:
            status = 1
            try:
                taken = is_ours(F.dropout(x()))
                fastreg.unpatch_torch()
                status = 0 if taken and not is_ours(F.dropout(x())) else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert is_ours(F.dropout(x()))


def test_without_the_extension(monkeypatch):
    from fastreg import _extension

    monkeypatch.setattr(_extension, "_module", None)
    monkeypatch.setattr(_extension, "_problem", "there is none.")
    with pytest.raises(RuntimeError, match="there is none"):
        fastreg.patch_torch()


# ---- states that are given


def test_recorded_and_replayed():
    model = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.AlphaDropout(0.4), torch.nn.Dropout(0.2, inplace=True))
    input = x()
    with fastreg.patch_torch():
        with fastreg.record_rng_states() as states:
            y = model(input * 1)
        assert len(states) == 3
        with fastreg.replay_rng_states(states):
            assert torch.equal(model(input * 1), y)
        assert not torch.equal(model(input * 1), y)


def test_sharded_batch():
    with fastreg.patch_torch(), fastreg.sharded_batch(8):
        assert is_ours(F.dropout(x()))


def test_momentum():
    for momentum in (0.3, 1.0):
        mean, expected, given = torch.zeros(16), torch.zeros(16), x()
        F.batch_norm(given, expected, torch.ones(16), training=True, momentum=momentum)
        with fastreg.patch_torch():
            F.batch_norm(given, mean, torch.ones(16), training=True, momentum=momentum)
        torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("train", [True, None])
def test_mask_of_native_dropout(train):
    """That of the result, whatever the strides; train=None is training."""
    given = torch.rand(6, 40, 50) + 0.5
    for tensor in (given, given.transpose(0, 2), given[:, ::2], given.view(6, 40, 5, 10).transpose(1, 3)):
        with fastreg.patch_torch():
            y, mask = torch.native_dropout(tensor, 0.5, train)
        assert torch.equal(y != 0, mask) and 0.4 < mask.double().mean() < 0.6


def test_statistics_that_require_grad_are_torchs():
    """Who refuses them."""
    mean = torch.zeros(16, requires_grad=True)
    with fastreg.patch_torch(), pytest.raises(RuntimeError, match="native_batch_norm' is not differentiable"):
        F.batch_norm(x(), mean, torch.ones(16), training=False)
