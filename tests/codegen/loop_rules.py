"""Rules for loops over memory, and the exceptions to them.

kilobytes: what the threads that a multiprocessor has the registers for have in flight together in the main loop. By
Little's law a device that moves 4.8 TB/s to 132 multiprocessors, and answers after 600 to 700 ns under load, needs 22
to 26 KB in flight on each; 40 leave room for threads that are not loading at the moment.
"""

import math
import re
from dataclasses import dataclass

from tests.codegen.measure import has_wide_vectors

LEAST_KILOBYTES = {90: 40}  # of kernels with 16-byte vectors
LEAST_PARTIALS = 4
REGISTERS = 65536  # of a multiprocessor
MOST_THREADS = {75: 1024, 86: 1536, 120: 1536}  # of a multiprocessor; else 2048: CUDA C++ Programming Guide, table 27


def resident_threads(registers, threads, gpu):
    """Of a multiprocessor, of blocks of so many threads. A warp's registers come in units of 256."""
    of_block = math.ceil(threads / 32) * math.ceil(registers * 32 / 256) * 256
    return threads * min(REGISTERS // of_block, MOST_THREADS.get(gpu, 2048) // threads)


def measured(m, gpu):
    """{column: value} of a Measurement with machine code."""
    found = m.code.loops
    return {
        "loads": found.loads,
        "kilobytes": found.bytes and found.bytes * resident_threads(m.registers, m.threads, gpu) / 1024,
        "partials": found.partials,
        "divisions": found.divisions,
        "fences": found.fences,
    }


@dataclass(frozen=True)
class Allowed:
    kernels: str  # a pattern
    column: str
    bound: float  # the least of kilobytes and partials, the most of divisions and fences
    reason: str


LONG = r".*[^n]Epilogue<\w+> >"  # with the code of all activations, and of Philox
EXCEPTIONS = (
    Allowed("batch_norm_grid_", "fences", 3, "one thread of a block hands over to its set and team, once a group"),
    Allowed("batch_norm_slab_", "fences", 1, "the warps that exchange channels within a cluster, once for each item"),
    Allowed("batch_norm_grid_" + LONG, "partials", 1, "no registers for more; sets make them few"),
    Allowed("batch_norm_merge", "divisions", 2, "there are as many turns as processes"),
    Allowed("batch_norm_moments_kernel<double", "divisions", 4, "fp64; sets make them few"),
    Allowed("batch_norm_grad_.*LeanEpilogue", "kilobytes", 18, "three or four vectors of two tensors: no registers"),
    Allowed("batch_norm_(?!slab)" + LONG, "kilobytes", 12, "Philox and erf take the registers"),
    Allowed(
        "batch_norm_(moments|grid_train|grad_input)", "kilobytes", 32, "four vectors and 512 threads: no registers"
    ),
    Allowed("act_dropout", "kilobytes", 8, "not mended: one vector at a time"),
    Allowed("dropout", "kilobytes", 32, "four vectors and 512 threads: Philox takes the registers"),
)


def allowed(kernel, column, exceptions):
    return [e for e in exceptions if e.column == column and re.match(e.kernels, kernel)]


def failures(kernel, gpu, m, exceptions=EXCEPTIONS):
    """What breaks a rule: one line each."""
    now = measured(m, gpu)
    least = {"partials": LEAST_PARTIALS}
    if has_wide_vectors(kernel):
        least["kilobytes"] = LEAST_KILOBYTES.get(gpu, 0)
    most = {"divisions": 0, "fences": 0}
    wrong = []
    for column, bound in {**least, **most}.items():
        value = now[column]
        bound = next((e.bound for e in allowed(kernel, column, exceptions)), bound)
        if value is None or (value >= bound if column in least else value <= bound):
            continue
        wrong.append(LINES[column].format(value=value, bound=bound))
    return wrong


LINES = {
    "kilobytes": "{value:.1f} KB in flight on a multiprocessor in its main loop, at least {bound} are wanted",
    "partials": "{value:.1f} loads in flight in a sum of partial results, at least {bound} are wanted",
    "divisions": "{value} divisions in loops over memory, {bound} are allowed",
    "fences": "{value} fences of the whole GPU in loops over memory, {bound} are allowed",
}
