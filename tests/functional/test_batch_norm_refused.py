"""What batch norm refuses, with which exception and words, and that nothing is written before."""

import itertools
import math

import pytest
import torch

import fastreg
from fastreg import functional as F


def ones(*shape, **options):
    return torch.ones(shape, **options)


REFUSED = {
    "one value per channel": (ValueError, "more than 1 value per channel when training, got input size [1, 3, 1, 1]",
                              {"input": ones(1, 3, 1, 1)}),
    "one value, no spatial dimensions": (ValueError, "got input size [1, 3]", {"input": ones(1, 3)}),
    "one dimension": (ValueError, "input must have at least 2 dimensions, got 1", {"input": ones(3)}),
    "no dimension": (ValueError, "input must have at least 2 dimensions, got 0", {"input": torch.tensor(1.0)}),
    "integers": (NotImplementedError, "batch_norm: input must be floating point, got torch.int64",
                 {"input": ones(4, 3).long()}),
    "weight too long": (RuntimeError, "batch_norm: weight must have shape [3]", {"weight": ones(4)}),
    "weight of two dimensions": (RuntimeError, "batch_norm: weight must have shape [3]", {"weight": ones(3, 1)}),
    "bias too short": (RuntimeError, "batch_norm: bias must have shape [3]", {"bias": ones(1)}),
    "running_mean too long": (RuntimeError, "batch_norm: running_mean must have shape [3]", {"running_mean": ones(4)}),
    "running_var too long": (RuntimeError, "batch_norm: running_var must have shape [3]", {"running_var": ones(4)}),
    "weight of another dtype": (RuntimeError, "batch_norm: weight must be of the input's dtype",
                                {"weight": ones(3).double()}),
    "bias of 16 bits": (RuntimeError, "batch_norm: bias must be of the input's dtype", {"bias": ones(3).half()}),
    "integer weight": (RuntimeError, "batch_norm: weight must be of the input's dtype", {"weight": ones(3).long()}),
    "running_var of another dtype": (RuntimeError, "batch_norm: running_var must be of the input's dtype",
                                     {"running_var": ones(3).double()}),
    "input of 64 bits alone": (RuntimeError, "must be of the input's dtype", {"input": ones(4, 3).double()}),
    "weight on another device": (RuntimeError, "batch_norm: weight must be on cpu, got meta",
                                 {"weight": ones(3, device="meta")}),
    "running_mean on another device": (RuntimeError, "batch_norm: running_mean must be on cpu, got meta",
                                       {"running_mean": ones(3, device="meta")}),
    "running_mean alone": (ValueError, "must be given both or neither, got None for running_var",
                           {"running_var": None}),
    "running_var alone": (ValueError, "must be given both or neither, got None for running_mean",
                          {"running_mean": None}),
    "differentiable statistics": (RuntimeError, "batch_norm: running_mean must not require grad",
                                  {"running_mean": ones(3, requires_grad=True)}),
    "eps 0": (ValueError, "batch_norm: eps must be positive in training, got 0.0", {"eps": 0.0}),
    "eps NaN": (ValueError, "batch_norm: eps must be positive in training, got nan", {"eps": math.nan}),
    "momentum None": (TypeError, "batch_norm: momentum must be a float, got None", {"momentum": None}),
}  # fmt: skip

REFUSED_IN_EVALUATION = {
    "no running_mean": (RuntimeError, "running_mean must be given in evaluation, got None", {"running_mean": None}),
    "no running_var": (RuntimeError, "running_var must be given in evaluation, got None", {"running_var": None}),
    "eps below 0": (ValueError, "batch_norm: eps must not be negative, got -1.0", {"eps": -1.0}),
    **{case: REFUSED[case] for case in ("one dimension", "integers", "weight too long", "running_mean too long",
                                        "running_var of another dtype", "weight on another device",
                                        "differentiable statistics")},
}  # fmt: skip


@pytest.mark.parametrize(
    "training, case", [(True, case) for case in REFUSED] + [(False, case) for case in REFUSED_IN_EVALUATION]
)
def test_refused(training, case):
    exception, words, changes = (REFUSED if training else REFUSED_IN_EVALUATION)[case]
    arguments = {"input": torch.randn(4, 3), "running_mean": ones(3), "running_var": ones(3)}
    arguments |= {"weight": ones(3), "bias": ones(3), "training": training} | changes
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(exception) as raised:
        F.batch_norm(**arguments)
    assert words in str(raised.value)
    for name, value in before.items():
        assert value.is_meta or torch.equal(value, arguments[name])


@pytest.mark.parametrize("case", ["one value per channel", "integers", "no dimension", "eps 0"])
def test_torch_raises_the_same_type(case):
    exception, _, changes = REFUSED[case]
    arguments = {"input": torch.randn(4, 3), "running_mean": None, "running_var": None, "training": True} | changes
    expected = IndexError if case == "no dimension" else exception  # torch stumbles over the missing shape
    with pytest.raises(expected):
        torch.nn.functional.batch_norm(**arguments)


MODULES = {
    "rank of BatchNorm1d": (fastreg.nn.BatchNorm1d, ones(4, 3, 2, 2), "expected 2D or 3D input (got 4D input)"),
    "rank of BatchNorm2d": (fastreg.nn.BatchNorm2d, ones(4, 3, 2), "expected 4D input (got 3D input)"),
    "rank of BatchNorm3d": (fastreg.nn.BatchNorm3d, ones(4, 3, 2, 2), "expected 5D input (got 4D input)"),
    "one value per channel": (fastreg.nn.BatchNorm1d, ones(1, 3), "more than 1 value per channel when training"),
}


@pytest.mark.parametrize("case", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_modules(case, dtype):
    kind, input, words = MODULES[case]
    module = kind(3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises((ValueError, NotImplementedError)) as raised:
        module(input.to(dtype))
    assert words in str(raised.value) or dtype == torch.int64
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


WRITTEN = ["running_mean", "running_var"]


SHARING = [("running_mean", "running_var"), *itertools.product(WRITTEN, ["weight", "bias", "input"])]


@pytest.mark.parametrize("written, other", SHARING)
@pytest.mark.parametrize("shared", ["all", "part"])
def test_shared_memory(written, other, shared):
    """Statistics are written to: nothing else that is read or written may lie in their memory."""
    memory = torch.ones(12)
    arguments = {"input": torch.randn(4, 3), "running_mean": ones(3), "running_var": ones(3)}
    arguments |= {"weight": ones(3), "bias": ones(3)}
    arguments[other] = memory.view(4, 3) if other == "input" else memory[:3]
    arguments[written] = memory[:3] if shared == "all" else memory[2:5]
    with pytest.raises(RuntimeError) as raised:
        F.batch_norm(**arguments, training=True)
    assert f"batch_norm: {written} must not share memory with {other}, got overlapping" in str(raised.value)
    assert memory.eq(1).all()
    F.batch_norm(**arguments)  # in evaluation nothing is written


def test_shared_count():
    memory = torch.ones(4, dtype=torch.float64)
    module = fastreg.nn.BatchNorm1d(3, dtype=torch.float64)
    module.running_var = memory[:3]
    module.num_batches_tracked = memory.view(torch.int64)[2]
    with pytest.raises(RuntimeError, match="running_var must not share memory with num_batches_tracked"):
        module(torch.randn(4, 3, dtype=torch.float64))
    assert memory.eq(1).all()


def test_columns_of_one_matrix_are_apart():
    mean, var = torch.ones(3, 2).unbind(1)
    F.batch_norm(torch.randn(4, 3), mean, var, training=True)
    mean, var = torch.ones(6).split(3)
    F.batch_norm(torch.randn(4, 3), mean, var, training=True)


def test_statistic_that_overlaps_itself():
    with pytest.raises(RuntimeError, match="single memory location"):
        F.batch_norm(torch.randn(4, 3), torch.ones(1).expand(3), ones(3), training=True)


def test_wrong_number_of_channels():
    module = fastreg.nn.BatchNorm2d(3)
    with pytest.raises(RuntimeError, match="must have shape"):
        module(torch.ones(2, 4, 5, 5))
    assert module.num_batches_tracked == 0
