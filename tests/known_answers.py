"""Known answers of the dropout stream: every backend must give them."""

import torch

# Philox4x32-10: counter, key, output (the vectors published with Random123).
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

# p, seed, offset, which of the first 64 elements are kept, how many of the first NUMEL are dropped.
NUMEL = 1_000_003
MASKS = [
    (0.5, 0, 0, "1011111101011001100100000110110101010000111100000001011101011000", 498715),
    (0.1, 42, 8, "0111111111111111111111001111011111111111111111011110101111111111", 99623),
    (1 / 3, 2**63 + 12345, 2**34, "1110111101111010011111011010111011001111011000111111111001001101", 333983),
    (0.001, 7, 4, "1" * 64, 979),
    # The 16-bit draw meets the high half of p * 2**32 18 times here; 7 of these elements are kept.
    ((32768 * 65536 + 32768) / 2.0**32, 1, 0, None, 500214),
]


def rng_state(seed, offset, device="cpu"):
    """A state from unsigned 64-bit numbers."""
    signed = [value - 2**64 if value >= 2**63 else value for value in (seed, offset)]
    return torch.tensor(signed, dtype=torch.int64, device=device)


def assert_mask(kept, first, dropped):
    """kept: bool[NUMEL]."""
    assert kept.shape == (NUMEL,)
    assert first is None or "".join("1" if k else "0" for k in kept[:64].tolist()) == first
    assert int((~kept).sum()) == dropped
