"""All checks that need a GPU, and the benchmarks, in phases that can be resumed.

    python -m tests.gpu_check                    every phase
    python -m tests.gpu_check --resume           those that this device has not done yet with these sources
    python -m tests.gpu_check --phase sanitizer  one phase, or one group of them

Results go to bench/results/<device>/ as each phase ends: gpu_check.json with the environment, counts, summaries and the
ends of the logs, and the files of the benchmarks. Whole logs stay in build/gpu_check/. Without a GPU the CPU backend is
built, and all else is left out, and said to be. The Python that runs this needs torch; nothing is downloaded.
"""
