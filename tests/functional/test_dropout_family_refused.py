"""What the kinds of dropout refuse, with which exception and words, before anything is written or drawn."""

import math

import pytest
import torch

import fastreg
from fastreg import _routing
from fastreg import functional as F
from tests.functional.dropout_family import KINDS
from tests.known_answers import rng_state

all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
STATE = rng_state(1, 0)


@pytest.fixture(params=[True, False], ids=["operators", "composed"], autouse=True)
def way(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(_routing, "_COMPILED_BACKENDS", frozenset())


def assert_refused(exception, words, function, input, *arguments, **keywords):
    before, state = input.clone(), torch.get_rng_state()
    with pytest.raises(exception) as raised:
        function(input, *arguments, **keywords)
    assert words in str(raised.value)
    assert torch.equal(input, before) and torch.equal(torch.get_rng_state(), state)


@all_kinds
@pytest.mark.parametrize("inplace", [False, True])
def test_p_and_dtype(kind, inplace):
    name, x = kind.function.__name__, torch.ones(kind.shape)
    for p in (1.5, -0.1, math.nan):
        for training in (True, False):
            assert_refused(ValueError, f"{name}: p must lie in [0, 1], got {p}", kind.function, x, p, training, inplace)
    words = f"{name}: input must be floating point where elements are dropped, got torch.int64"
    assert_refused(RuntimeError, words, kind.function, x.long(), 0.5, True, inplace)


@all_kinds
@pytest.mark.parametrize("inplace", [False, True])
def test_state(kind, inplace):
    x = torch.ones(kind.shape)
    for state, exception, words in (
        (torch.ones(2), TypeError, "rng_state must be"),
        (torch.ones(2).int(), TypeError, "rng_state must be"),
        (torch.ones(3).long(), ValueError, "rng_state must have shape [2], got [3]"),
        (torch.ones(2, 1).long(), ValueError, "rng_state must have shape [2], got [2, 1]"),
        (torch.ones(2, device="meta").long(), RuntimeError, "rng_state must be on cpu or the CPU, got meta"),
    ):
        assert_refused(exception, words, kind.function, x, 0.5, True, inplace, rng_state=state)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.keywords])
def test_scaling(kind):
    name, x = kind.function.__name__, torch.ones(kind.shape)
    for training in (True, False):
        words = f"{name}: scaling must be 'train' or 'test', got 'both'"
        assert_refused(ValueError, words, kind.function, x, 0.5, training, scaling="both")


@pytest.mark.parametrize(
    "name, least", [("dropout2d", 2), ("feature_alpha_dropout", 2), ("dropout3d", 1), ("drop_path", 1)]
)
def test_dimensions(name, least):
    words = f"{name}: input must have at least {least} dimensions, got {least - 1}"
    with pytest.warns() if name in ("dropout2d", "dropout3d") else pytest.MonkeyPatch.context():
        assert_refused(RuntimeError, words, getattr(F, name), torch.ones([3] * (least - 1)), 0.5, True)


def test_residual():
    x = torch.ones(4, 3)
    for training in (True, False):
        for residual, exception, words in (
            (torch.ones(3), ValueError, "drop_path: residual must have the input's shape [4, 3], got [3]"),
            (
                x.double(),
                RuntimeError,
                "residual must have the input's dtype and device, torch.float32 on cpu",
            ),
            (x.to("meta"), RuntimeError, "got torch.float32 on meta"),
        ):
            assert_refused(exception, words, F.drop_path, x, 0.5, training, residual=residual)
        words = "drop_path: inplace must be False where residual is given, got True"
        assert_refused(ValueError, words, F.drop_path, x, 0.5, training, True, residual=torch.ones(4, 3))


@all_kinds
def test_unwritable(kind):
    """torch's own errors, and nothing written."""
    leaf = torch.ones(kind.shape, requires_grad=True)
    for x, words in ((leaf, "a leaf Variable"), (leaf.view(-1).view(kind.shape), "a view of a leaf Variable")):
        with pytest.raises(RuntimeError, match=words):
            kind(x, 0.9, STATE, inplace=True)
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        kind(torch.ones(1).expand(kind.shape), 0.9, STATE, inplace=True)
    assert (leaf == 1).all()


def test_mask():
    for arguments, keywords, exception, words in (
        (((3, 4), 1.5, STATE), {}, ValueError, "dropout_mask: p must lie in [0, 1], got 1.5"),
        (
            ((3, 4), 0.5, torch.ones(2)),
            {},
            TypeError,
            "dropout_mask: rng_state must be an int64 tensor",
        ),
        (((3, 4), 0.5, torch.ones(3).long()), {}, ValueError, "dropout_mask: rng_state must have shape [2], got [3]"),
        (((3, 4), 0.5, STATE), {"dims": 3}, ValueError, "dropout_mask: dims must lie in [0, 2], got 3"),
        (((3, 4), 0.5, STATE), {"dims": -1}, ValueError, "dropout_mask: dims must lie in [0, 2], got -1"),
        (((3, 4), 0.5, STATE), {"dims": 1, "strides": (4, 1)}, ValueError, "strides must be None where dims is given"),
        (
            ((3, 4), 0.5, STATE),
            {"strides": (8, 2)},
            ValueError,
            "strides must be those of a dense tensor of shape",
        ),
        (((3, 4), 0.5, STATE), {"strides": (1, 1)}, ValueError, "strides must be those of a dense tensor"),
        (((3, 4), 0.5, STATE), {"strides": (1,)}, ValueError, "strides must be those of a dense tensor"),
    ):
        with pytest.raises(exception) as raised:
            fastreg.dropout_mask(*arguments, **keywords)
        assert words in str(raised.value)


@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout", "dropout2d"])
def test_left_to_torch(name):
    """What fastreg has no kernels for, with torch's results."""

    class Subclass(torch.Tensor):
        pass

    ours, torchs = getattr(F, name), getattr(torch.nn.functional, name)
    x = torch.ones(20, 30, 2, 2).as_subclass(Subclass)
    results = []
    for function in (ours, torchs):
        torch.manual_seed(0)
        results.append(function(x, 0.25, True))
    assert type(results[0]) is Subclass and torch.equal(*results)
    with pytest.raises(NotImplementedError, match=f"{name}: rng_state must be None for input that torch's own"):
        ours(x, 0.25, True, rng_state=STATE)


def test_drop_path_of_others():
    """Composed of torch's dropout: complex numbers, here."""
    x, residual = torch.full((500, 2), 1 + 2j), torch.full((500, 2), 1j)
    y = F.drop_path(x, 0.25, residual=residual) - residual
    assert ((y == 0) | torch.isclose(y, x / 0.75)).all() and (y[:, 0] == y[:, 1]).all()
    assert 50 < int((y[:, 0] == 0).sum()) < 200
    assert set(F.drop_path(x, 0.25, scaling="test").real.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(F.drop_path(x, 0.25, False, scaling="test"), x * 0.75)
    assert F.drop_path(x, 0.25, False) is x
