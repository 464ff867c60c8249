"""All checks that need a GPU, and the benchmarks, in order of worth, within a budget.

    python -m tests.gpu_check                      every phase
    python -m tests.gpu_check --budget 560         as much as fits into so many seconds
    python -m tests.gpu_check --resume             what this device has not done yet with these sources
    python -m tests.gpu_check --phase sanitizer    one phase, or one group of them
    python -m tests.gpu_check --dry-run            the plan

Results go to --out as each of a phase's units ends: gpu_check.json with the environment, counts, what failed and the
ends of its logs; logs.txt; and the benchmarks' JSON files, from which `python -m bench.redraw` and `bench.readme` make
a chart and a table. What fails costs its own file, case or phase. Without a GPU the CPU backend is built, and all else
is left out, and said to be. The Python that runs this needs torch; nothing is downloaded.
"""
