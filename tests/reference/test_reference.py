"""The reference itself: known answers of the random stream; batch norm's formulas against torch's autograd."""

import itertools

import pytest
import torch

from fastreg.reference import batch_norm, dropout
from tests.known_answers import MASKS, NUMEL, PHILOX, assert_mask, rng_state


@pytest.mark.parametrize("counter, key, output", PHILOX)
def test_philox(counter, key, output):
    def words(text):
        return [torch.tensor(int(word, 16)) for word in text.split()]

    assert dropout.philox(words(counter), words(key)) == tuple(words(output))


@pytest.mark.parametrize("p, seed, offset, first, dropped", MASKS)
def test_masks(p, seed, offset, first, dropped):
    assert_mask(dropout.keep_mask(NUMEL, p, rng_state(seed, offset)), first, dropped)


def test_ties():
    p, seed, offset, _, _ = MASKS[-1]
    state = rng_state(seed, offset)
    blocks = torch.arange(NUMEL // 8 + 1)
    ties = dropout.draws(blocks, state[0], state[1] >> 2).flatten()[:NUMEL] == 32768
    kept = dropout.keep_mask(NUMEL, p, state)
    assert (int(ties.sum()), int(kept[ties].sum())) == (18, 7)


@pytest.mark.parametrize("first, row, row_stride", [(0, 10, 10), (8, 16, 64), (13, 7, 101), (3, 1, 5)])
def test_index_map(first, row, row_stride):
    state = rng_state(5, 2**64 - 8)
    whole = dropout.keep_mask(2000, 0.3, state)
    part = dropout.keep_mask(63, 0.3, state, (first, row, row_stride))
    element = [first + j // row * row_stride + j % row for j in range(63)]
    assert torch.equal(part, whole[element])


def test_neighbouring_offsets_share_no_draw():
    blocks = torch.arange(1000)
    calls = [dropout.draws(blocks, torch.tensor(1), torch.tensor(call)) for call in range(4)]
    for one, other in itertools.combinations(calls, 2):
        assert 0 <= int((one == other).sum()) < 10  # 8000 pairs, each equal with probability 2**-16


def leaves(*shape, weight=True):
    g, x = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return g, x, torch.randn(shape[1], dtype=torch.float64, requires_grad=True) if weight else None


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 2)])
@pytest.mark.parametrize("weight", [True, False])
def test_train_against_torch(shape, weight):
    g, x, w = leaves(*shape, weight=weight)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    running = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    mean, var = batch_norm.moments(x)
    updated = batch_norm.update_running(*running, mean, var, x.numel() // 3, 0.3)
    y = torch.nn.functional.batch_norm(x, *running, w, bias, True, 0.3, 1e-3)
    torch.testing.assert_close(batch_norm.forward(x, w, bias, mean, var, 1e-3), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(updated, running, rtol=1e-12, atol=1e-12)
    inputs = [t for t in (x, w, bias) if t is not None]
    expected = torch.autograd.grad(y, inputs, g)
    dx, dw, db = batch_norm.train_backward(g, x, w, 1e-3)
    torch.testing.assert_close((dx, dw, db) if weight else (dx, db), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("given", [g for g in itertools.product([True, False], repeat=3) if any(g)])
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_double_backward_against_autograd(given, weight, training):
    g, x, w = leaves(4, 3, 5, weight=weight)
    if training:
        backward, double, statistics = batch_norm.train_backward, batch_norm.train_double_backward, ()
    else:
        backward, double = batch_norm.eval_backward, batch_norm.eval_double_backward
        statistics = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    outputs = backward(g, x, w, *statistics, 1e-2)
    cotangents = [torch.randn_like(output) if one else None for output, one in zip(outputs, given, strict=True)]
    inputs = [t for t in (g, x, w) if t is not None]
    chosen = [output for output, one in zip(outputs, given, strict=True) if one]
    expected = torch.autograd.grad(
        chosen, inputs, [c for c in cotangents if c is not None], allow_unused=True, materialize_grads=True
    )
    actual = double(*cotangents, g, x, w, *statistics, 1e-2)
    torch.testing.assert_close(actual if weight else actual[:2], expected, rtol=1e-11, atol=1e-11)
