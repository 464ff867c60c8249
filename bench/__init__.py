"""Benchmarks of fastreg against PyTorch: `python -m bench` from the repository root (`python -m bench --help`)."""

import os
import sys

# Read when torch is imported: its profiler reports each start and stop otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def _end(kind, error, traceback):
    """Ctrl-C is no error of a command, nor of the modules that it may still be importing."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    print("interrupted", file=sys.stderr)
    sys.exit(130)


if sys.argv[0] == "-m":  # Python is about to run one of the commands here
    sys.excepthook = _end
