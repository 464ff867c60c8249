"""The CUDA kernels on the CPU: see README.md. What Python tests need to run on them."""

import os
import sys

EXECUTED = os.environ.get("FASTREG_TEST_KERNELS") == "host-executor"


def use_kernels():
    """Where the tests are to run on the kernels, fastreg of this process runs them for its tensors on the CPU. It must
    not be imported yet."""
    if EXECUTED:
        from tests.host_executor import extension

        sys.modules["fastreg._C"] = extension.load()
