"""What all tests share: tests that need a GPU, nvcc or much time are left out, and counted, where there is none.

With FASTREG_TEST_KERNELS=host-executor the tests marked kernels run, and no others: the tests of the CPU run the CUDA
kernels instead, on the CPU.
"""

import importlib.util
import os
import sys

import hypothesis
import pytest
import torch

EXECUTED = os.environ.get("FASTREG_TEST_KERNELS") == "host-executor"
if EXECUTED:
    from tests.host_executor import extension

    sys.modules["fastreg._C"] = extension.load()

from fastreg import _extension  # noqa: E402

# No test asserts a time; a failure prints what reproduces it.
hypothesis.settings.register_profile("fastreg", deadline=None, print_blob=True)
hypothesis.settings.load_profile("fastreg")

LEFT_OUT = pytest.StashKey[dict[str, int]]()


def has_nvcc():
    from tests.codegen import toolchain

    return toolchain.find_nvcc() is not None


def has_zoo():
    return all(importlib.util.find_spec(name) for name in ("torchvision", "timm"))


# Markers of tests that cannot run everywhere: whether they can here, and what the summary says where they cannot.
NEEDS = {
    "cuda": (lambda config: torch.cuda.is_available(), "need a GPU and have not run: there is none here"),
    "executor": (lambda config: EXECUTED, "need the host executor and have not run: make kernel-test runs them"),
    "nvcc": (lambda config: has_nvcc(), "need nvcc and have not run: there is none here"),
    "triton": (
        lambda config: importlib.util.find_spec("triton") is not None,
        "need Triton and have not run: there is none here",
    ),
    "zoo": (
        lambda config: has_zoo(),
        "need torchvision and timm (the extra zoo) and have not run: there are none here",
    ),
    "full": (lambda config: config.getoption("--full"), "take long and have not run: --full runs them"),
}


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the tests marked full, too")


def pytest_report_header():
    return f"torch {torch.__version__}, fastreg {_extension.build_info()}"


def pytest_collection_modifyitems(config, items):
    if EXECUTED:
        others = [item for item in items if not item.get_closest_marker("kernels")]
        leave_out(config, items, others, "are not marked kernels and have not run: make py-test runs them")
    for marker, (available, what) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not available(config):
            leave_out(config, items, marked, what)


def leave_out(config, items, left_out, what):
    """Deselect tests, and have the summary say how many and what of them."""
    if left_out:
        config.stash.setdefault(LEFT_OUT, {})[what] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
        kept = set(items).difference(left_out)
        items[:] = [item for item in items if item in kept]


def pytest_terminal_summary(terminalreporter, config):
    for what, count in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.write_line(f"{count} tests {what}", yellow=True)
