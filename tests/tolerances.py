"""How far results may lie from the exact ones, and why: every tolerance of the suite.

Errors are judged by torch's own error against the same float64 reference: at most MULTIPLE of it, plus some units in
the last place (ulp) of the largest exact value.
"""

import math

import torch

from tests.host_executor import EXECUTED

MULTIPLE = 2.0
ULPS = {
    # Rounded once from float32 or better; where torch happens to be exact, ours may still round the other way.
    "output": 1.0,
    "grad_input": 1.0,
    # Sums over N and the spatial dimensions, rounded once. See `summed`.
    "grad_parameter": 2.0,
    # Moments that are exact to an ulp or so, one product, one sum, rounded once.
    "running": 4.0,
    # Formulas of ours in float32 against the same in float64: some ten roundings of terms that partly cancel.
    "double_backward": 32.0,
}
# In float64 the reference rounds as much as what it judges.
REFERENCE_ULPS = 4.0
# The CUDA kernels, as torch's, take moments in float32, where CPU backends have double: each thread relative to the
# first value that it meets, so that the roundings of its squares are up to some ten units of the variance's last place,
# half as many of all that is divided by the deviation.
MOMENTS_ULPS = 3.0


def ulp(dtype, magnitude):
    """The distance between neighbours of a number of this magnitude."""
    return torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(magnitude)) if magnitude > 0 else 0.0


def error(value, exact):
    return (value.double() - exact).abs().max().item() if exact.numel() else 0.0


def assert_accurate(kind, value, of_torch, exact, summed=None):
    """value is as near to the exact result as torch's is (of_torch None: within the ulps alone).

    summed: where values are sums that may cancel, the sums of their terms' magnitudes. Trees of float32, as on CUDA,
    and sums of float64 over blocks of float32, as on the CPU, err by an ulp or two of these.
    """
    assert value.shape == exact.shape
    largest = exact.abs().max().item() if exact.numel() else 0.0
    ulps = ULPS[kind] + (REFERENCE_ULPS if value.dtype == torch.float64 else 0.0)
    if EXECUTED or value.is_cuda:
        ulps += MOMENTS_ULPS
    bound = ulps * ulp(value.dtype, largest)
    if summed is not None:
        bound += 2.0 * ulp(torch.promote_types(value.dtype, torch.float32), summed.max().item())
    if of_torch is not None:
        assert value.dtype == of_torch.dtype
        bound += MULTIPLE * error(of_torch, exact)
    assert error(value, exact) <= bound, f"{kind}: error {error(value, exact):.3g} exceeds {bound:.3g}"
