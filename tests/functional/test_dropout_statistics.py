"""What dropout does on average: drop rates, moments, independence, uniform draws.

Each test of a statistic rejects beyond SIGMAS standard deviations of what independent draws of the exact probability
would give: a false alarm has probability 2e-9 for a normal statistic, and seeds are fixed, so it would stay away or be
seen by all. A relative error of 6e-4 in a p of one half is found with 10**7 draws, of 2e-4 with the 10**8 of --full.
"""

import math

import pytest
import torch

import fastreg
from fastreg import functional as F
from fastreg import reference
from tests.common import DEVICES
from tests.known_answers import rng_state
from tests.ops.dropout_matrix import TIE

SIGMAS = 6.0
PROBABILITIES = [0.001, 0.1, 0.3, 1 / 3, 0.5, 0.9, 0.999, 1 - 2.0**-33]
N = 10_000_000  # for rates and ties
M = 2_000_000  # for everything else

pytestmark = pytest.mark.parametrize("device", DEVICES)
probabilities = pytest.mark.parametrize("p", PROBABILITIES[:-1])


def mask(n, p, seed, offset=0, device="cpu"):
    return fastreg.dropout_mask((n,), p, rng_state(seed, offset, device))


def assert_count(count, n, probability):
    """Of a binomial: the number of successes in n draws."""
    assert abs(count - n * probability) <= SIGMAS * math.sqrt(n * probability * (1 - probability))


def assert_uncorrelated(one, other, p):
    """Of two masks, or a mask and itself, shifted: for independent draws the correlation has variance 1 / n."""
    n = one.numel()
    both = int((~one & ~other).sum())
    excess = both - p * int((~one).sum()) - p * int((~other).sum()) + n * p * p
    # Few events are Poisson's, whose tail is a little longer.
    assert abs(excess) <= SIGMAS * math.sqrt(n) * p * (1 - p) + (12 if n * p * p < 1000 else 0)


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("n", [N, pytest.param(10 * N, marks=pytest.mark.full)])
def test_drop_rate(device, p, n):
    exact = math.floor(p * 2.0**32 + 0.5) / 2.0**32
    dropped = n - int(mask(n, p, 17, device=device).sum())
    assert_count(dropped, n, exact)
    assert dropped < n or p == PROBABILITIES[-1]  # which rounds to 1


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_drop_rate_of_features(device, dims, p):
    function = F.drop_path if dims == 1 else F.dropout2d
    n = 1_000_000
    shape = (n, 1, 2, 1) if dims == 1 else (n // 100, 100, 2, 1)
    y = function(torch.ones(shape, device=device), p, rng_state=rng_state(3, 0))
    assert_count(int((y[..., 0, 0] == 0).sum()), n, p)


@probabilities
@pytest.mark.parametrize("scaling", ["train", "test"])
def test_moments(device, p, scaling):
    """The mean over masks is the input (times 1 - p); E[y**2] is that of the input, divided by 1 - p (times it)."""
    factor = 1.0 if scaling == "train" else 1 - p
    x = torch.full((M,), 2.0, device=device)
    y = F.dropout(x, p, scaling=scaling, rng_state=rng_state(23, 0))
    error = SIGMAS * 2 * factor * math.sqrt(p / (1 - p) / M)
    assert abs(y.double().mean().item() - 2 * factor) <= error
    square = y.double().square().mean().item()
    value = 2 * factor / (1 - p)
    assert abs(square - value**2 * (1 - p)) <= SIGMAS * value**2 * math.sqrt(p * (1 - p) / M) + 1e-6 * value**2


@pytest.mark.parametrize("p", [0.001, 0.1, 0.3, 1 / 3, 0.5, 0.9])
def test_alpha_keeps_mean_and_variance(device, p):
    """Of an input with mean 0 and variance 1, here exactly."""
    x = torch.ones(M, device=device)
    x[1::2] = -1.0
    y = F.alpha_dropout(x, p, True, rng_state=rng_state(29, 0)).double()
    assert abs(y.mean().item()) <= SIGMAS * y.std().item() / math.sqrt(M)
    square = y.square()
    assert abs(square.mean().item() - 1) <= SIGMAS * square.std().item() / math.sqrt(M) + 1e-6


@probabilities
def test_neighbours_and_rows_are_independent(device, p):
    """Within a block of 8, across blocks, and at the distances of rows."""
    whole = mask(M, p, 31, device=device)
    for lag in (1, 2, 3, 4, 7, 8, 9, 16, 64, 100, 1024, 3136, 65536):
        assert_uncorrelated(whole[lag:], whole[:-lag], p)


@probabilities
def test_calls_are_independent(device, p):
    """Consecutive offsets of one seed, neighbouring seeds, and states that two calls draw."""
    first = mask(M, p, 37, device=device)
    for seed, offset in ((37, 8), (37, 16), (37, 2**34), (38, 0), (37 ^ 1 << 32, 0), (2**63 + 37, 0)):
        assert_uncorrelated(first, mask(M, p, seed, offset, device), p)
    torch.manual_seed(0)
    one, other = (fastreg.dropout_mask((M,), p, fastreg.draw_rng_state(device)) for _ in range(2))
    assert_uncorrelated(one, other, p)


def test_masks_are_monotone_in_p(device):
    """One draw per element: what a smaller p drops, a larger one drops."""
    masks = [mask(100_000, p, 41, device=device) for p in (0.1, 0.3, 1 / 3, TIE, 0.501, 0.9)]
    for smaller, larger in zip(masks, masks[1:], strict=False):
        assert not (larger & ~smaller).any() and not torch.equal(larger, smaller)


def test_high_bits_are_uniform(device):
    """How many of 63 thresholds keep an element tells the top 6 bits of its draw: chi-square over 64 cells."""
    n = 1 << 18
    rank = sum(mask(n, k / 64, 43, device=device).int() for k in range(1, 64))
    assert_uniform(torch.bincount(rank.cpu(), minlength=64))


def test_draws_are_uniform(device):
    """All 16 bits, by the reference, whose masks are the kernels' (test_dropout_identity): chi-square over 65536 cells,
    and over the pairs of neighbours' top 8 bits."""
    draws = reference.dropout.draws(torch.arange(1 << 18, device=device), torch.tensor(47), torch.tensor(0)).cpu()
    assert_uniform(torch.bincount(draws.flatten(), minlength=65536))
    top = draws >> 8
    for slot in range(7):
        assert_uniform(torch.bincount(top[:, slot] << 8 | top[:, slot + 1], minlength=65536))


def assert_uniform(counts):
    expected = counts.sum().item() / counts.numel()
    freedom = counts.numel() - 1
    chi_square = ((counts.double() - expected) ** 2).sum().item() / expected
    # Both tails: counts that are too even are as suspicious. A cell's variance adds 1 / expected to chi-square's.
    assert abs(chi_square - freedom) <= SIGMAS * math.sqrt(freedom * (2 + 1 / expected))


@pytest.mark.parametrize("low", [1, 4096, 32768, 65535])
def test_ties(device, low):
    """Where the first 16 bits equal those of p, the second 16 decide, with the probability that is left."""
    high = 32768
    state = rng_state(53, 0, device)
    below, p, above = (fastreg.dropout_mask((N,), (high * 65536 + t) / 2.0**32, state) for t in (0, low, 65536))
    tied = below & ~above
    count = int(tied.sum())
    assert_count(count, N, 2.0**-16)
    assert not (p & ~below).any() and not (above & ~p).any()
    assert_count(int((tied & ~p).sum()), count, low / 65536)
