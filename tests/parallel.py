"""python -m tests.parallel JOBS: the arguments with which pytest runs in so many processes, where that is of use.

On a GPU the tests run one after the other: they would share its memory, and a fault of one would be the others'.
"""

import importlib.util
import sys

import torch

MOST = 8  # each imports torch, and may use several threads


def arguments(jobs: int, has_xdist: bool, has_gpu: bool) -> str:
    jobs = min(jobs, MOST)
    # The tests of a file share what their fixtures build.
    return f"-n {jobs} --dist loadfile" if jobs > 1 and has_xdist and not has_gpu else ""


if __name__ == "__main__":
    print(arguments(int(sys.argv[1]), importlib.util.find_spec("xdist") is not None, torch.cuda.is_available()))
