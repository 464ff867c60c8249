"""What all tests share: CUDA tests are left out, and counted, where there is no GPU.

With FASTREG_TEST_KERNELS=host-executor the tests of the CPU run the CUDA kernels instead, on the CPU.
"""

import os
import sys

import hypothesis
import pytest
import torch

if os.environ.get("FASTREG_TEST_KERNELS") == "host-executor":
    from tests.host_executor import extension

    sys.modules["fastreg._C"] = extension.load()

from fastreg import _extension  # noqa: E402

# No test asserts a time; a failure prints what reproduces it.
hypothesis.settings.register_profile("fastreg", deadline=None, print_blob=True)
hypothesis.settings.load_profile("fastreg")

LEFT_OUT = pytest.StashKey[int]()


def pytest_report_header():
    return f"torch {torch.__version__}, fastreg {_extension.build_info()}"


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("cuda")]
    config.stash[LEFT_OUT] = len(left_out)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("cuda")]


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} tests need a GPU and have not run: there is none here", yellow=True)
