"""What tests/conftest.py does for tests of a GPU and where a package is missing, on tests that are planted."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A device on which an error shows at the next synchronisation, once or from then on.
DEVICE = """
import torch
errors = []
def synchronize():
    if errors:
        error = errors[0] if errors[0] == "sticky" else errors.pop()
        raise RuntimeError(f"CUDA error: {error}\\nadvice")
torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = synchronize
"""
TESTS = """
import pytest
from device import errors
pytestmark = pytest.mark.cuda
def test_passes(): pass
def test_leaves_an_error(): errors.append("once")
def test_passes_again(): pass
def test_breaks_the_device(): errors.append("sticky")
def test_is_not_run(): pass
"""
WITHOUT_EXPECTTEST = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "expecttest" else find(name, *rest)
"""


def run(folder, plugin, *names):
    """pytest of tests in a folder, with this project's settings and conftest; the plugin comes first."""
    (folder / "device.py").write_text(plugin)
    path = os.pathsep.join(map(str, (folder, ROOT)))
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", folder, "-p", "device"]
    command += ["-p", "tests.conftest", "-p", "no:cacheprovider", "-v", *(folder / name for name in names)]
    environ = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder, env=environ)
    return done.returncode, done.stdout


def test_an_error_of_the_device_is_that_of_its_test(tmp_path):
    (tmp_path / "test_planted.py").write_text(TESTS)
    status, output = run(tmp_path, DEVICE, "test_planted.py")
    assert status == 1, output
    for name in ("test_passes", "test_passes_again"):
        assert f"::{name} PASSED" in output
    for name in ("test_leaves_an_error", "test_breaks_the_device"):
        assert f"::{name} FAILED" in output
    assert "the device is broken after test_planted.py::test_breaks_the_device: CUDA error: sticky" in output
    assert "test_is_not_run" not in output


def test_files_that_need_a_missing_package_are_left_out_and_counted(tmp_path):
    (tmp_path / "test_some_databases.py").write_text("import expecttest_that_is_not_there")
    (tmp_path / "test_other.py").write_text("def test_passes(): pass")
    status, output = run(tmp_path, WITHOUT_EXPECTTEST, "test_some_databases.py", "test_other.py")
    assert status == 0, output
    assert (
        "1 passed" in output
        and "1 files need expecttest and have not run: there is none here: test_some_databases.py" in output
    )
