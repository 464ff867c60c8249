"""Benchmarks of fastreg against PyTorch: `python -m bench` from the repository root (`python -m bench --help`)."""

import os

# Read when torch is imported: its profiler reports each start and stop otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
