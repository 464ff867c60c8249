"""The operators of dropout against their definition: transforms, features in every memory order, residuals."""

import math

import pytest
import torch

import fastreg  # noqa: F401
from fastreg import reference

ops = torch.ops.fastreg
STATE = torch.tensor([12345, 2**34 + 16])
P = 0.3
TRANSFORM = (1.1, 0.3, -0.7)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Periods and widths below, at and above the 64 elements that one word of keep bits decides, and ends of all kinds.
SHAPES = [(7, 5), (5, 3, 4), (40, 2, 7), (2, 70, 9, 11), (2, 64, 8, 8), (3, 130, 5, 3), (2, 37, 2, 5, 3), (5, 1, 100)]
ORDERS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "not dense": lambda x: x.repeat_interleave(2, -1)[..., ::2],
}


def tensor(shape, dtype, seed=0):
    """Some numbers that are not finite among numbers of few digits, so that a product of two fits in the compute type
    of the 16-bit types, and in fp64 those of fp32: one rounding, as by a fused multiply-add."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-(2**7), 2**7, shape, generator=generator) / 16
    values.view(-1)[seed % 5 :: 97] = math.inf if seed == 0 else 1.0
    values.view(-1)[seed % 5 + 1 :: 89] = math.nan if seed == 0 else 1.0
    return values.to(dtype)


def transformed(x, keep, transform, residual=None):
    """The definition. fp64 has no wider type for the product to be exact in: numbers of few digits make it so."""
    compute = torch.promote_types(x.dtype, torch.float32)
    scale, shift, fill = (torch.tensor(value, dtype=compute).double() for value in transform)
    if residual is not None:
        shift = fill = residual.double()
    kept = (x.double() * scale + shift).to(compute).to(x.dtype)
    return torch.where(keep, kept, fill.to(compute).to(x.dtype))


def exact(transform, dtype):
    """For fp64 a transform whose products and sums are exact."""
    return (1.25, 0.5, -0.75) if dtype is torch.float64 else transform


def feature_mask(shape, dims, index_map=None):
    draws = reference.dropout.keep_mask(math.prod(shape[:dims]), P, STATE, index_map)
    return draws.view(*shape[:dims], *[1] * (len(shape) - dims)).expand(shape)


def equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, check_stride=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transform_of_elements(dtype):
    transform = exact(TRANSFORM, dtype)
    x = tensor((3, 37, 11), dtype)
    for index_map in (None, (3, x.numel(), 0), (5, 7, 13), (8, 96, 128)):
        keep = reference.dropout.keep_mask(x.numel(), P, STATE, index_map).view_as(x)
        expected = transformed(x, keep, transform)
        equal(ops.dropout(x, P, STATE, None, index_map, transform), expected)
        y = x.clone()
        ops.dropout_(y, P, STATE, index_map, transform)
        equal(y, expected)


def test_default_transform_keeps_the_signs_of_zeros():
    x = torch.tensor([0.0, -0.0]).repeat(100)
    y = ops.dropout(x, 0.0, STATE)
    assert torch.equal(y.signbit(), x.signbit())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features(shape, order):
    for dtype in DTYPES:
        transform = exact(TRANSFORM, dtype)
        x = ORDERS[order](tensor(shape, dtype))
        for dims in (1, 2, len(shape)):
            for index_map in (None, (5, 7, 13)):
                keep = feature_mask(shape, dims, index_map)
                expected = transformed(x, keep, transform)
                y = ops.feature_dropout(x, dims, P, STATE, index_map, transform)
                equal(y, expected)
                assert y.stride() == torch.empty_like(x).stride()
                y = ORDERS[order](x.clone())
                ops.feature_dropout_(y, dims, P, STATE, index_map, transform)
                equal(y, expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_residual(shape, order):
    for dtype in DTYPES:
        x = ORDERS[order](tensor(shape, dtype))
        scale = exact((1 / (1 - P), 0, 0), dtype)[0]
        residual = tensor(shape, dtype, seed=1)
        for dims in (1, 2):
            expected = transformed(x, feature_mask(shape, dims), (scale, 0, 0), residual)
            for memory in (residual, ORDERS[order](residual), ORDERS["transposed"](residual)):
                equal(ops.feature_dropout(x, dims, P, STATE, None, (scale, 9.0, 9.0), memory), expected)


@pytest.mark.parametrize("p", [0.0, 1.0, 1 - 2**-34])
def test_nothing_drawn_for_certain(p):
    before = torch.get_rng_state()
    x, residual = tensor((4, 6, 50), torch.float32), tensor((4, 6, 50), torch.float32, seed=1)
    keep = torch.full(x.shape, p == 0.0)
    equal(ops.feature_dropout_seeded(x, 2, p, None, (2.0, 1.0, 3.0))[0], transformed(x, keep, (2.0, 1.0, 3.0)))
    equal(ops.dropout_seeded(x, p, None, (2.0, 1.0, 3.0))[0], transformed(x, keep, (2.0, 1.0, 3.0)))
    equal(
        ops.feature_dropout_seeded(x, 1, p, None, (2.0, 0, 0), residual)[0], transformed(x, keep, (2.0,) * 3, residual)
    )
    if p in (0.0, 1.0):
        assert torch.equal(before, torch.get_rng_state())


def test_seeded_returns_the_state_that_it_used():
    x = tensor((8, 16, 30), torch.float32)
    y, state = ops.feature_dropout_seeded(x, 2, P)
    equal(y, ops.feature_dropout(x, 2, P, state))
    z = x.clone()
    state = ops.feature_dropout_seeded_(z, 2, P)
    equal(z, ops.feature_dropout(x, 2, P, state))


def test_large_features_in_many_threads():
    x = torch.ones(64, 64, 40, 41)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = ops.feature_dropout(x.to(memory_format=layout), 2, P, STATE)
        equal(y, transformed(x, feature_mask(x.shape, 2), (1 / (1 - P), -0.0, 0)))


REFUSED = {
    "dims 0": (lambda x: ops.feature_dropout(x, 0, P, STATE), ValueError, "dims must lie in [1, 3]"),
    "dims 4": (lambda x: ops.feature_dropout(x, 4, P, STATE), ValueError, "dims must lie in [1, 3]"),
    "transform": (lambda x: ops.dropout(x, P, STATE, None, None, (1.0, 2.0)), ValueError, "transform must be (scale"),
    "shape": (
        lambda x: ops.feature_dropout(x, 1, P, STATE, None, None, x[0]),
        RuntimeError,
        "feature_dropout: residual must have the input's shape [2, 3, 4], got [3, 4]",
    ),
    "dtype": (
        lambda x: ops.feature_dropout(x, 1, P, STATE, None, None, x.double()),
        RuntimeError,
        "feature_dropout: residual must be Float on cpu as the input, got Double on cpu",
    ),
    "overlap": (
        lambda x: ops.feature_dropout_(x[:1].expand(2, 3, 4), 1, P, STATE),
        RuntimeError,
        "more than one element of the written-to tensor refers to a single memory location",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(call, error, message):
    x = torch.ones(2, 3, 4)
    with pytest.raises(error) as caught:
        call(x)
    assert message in str(caught.value)
    assert torch.equal(x, torch.ones(2, 3, 4))
