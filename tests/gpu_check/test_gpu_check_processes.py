"""tests/gpu_check on real processes: nothing is left running, tests are noted as they go, last words are read. No test
asserts a time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu_check import cpp_tests, python_tests
from tests.gpu_check import system as system_module
from tests.gpu_check.gpu_check_jobs import make_job, records
from tests.gpu_check.runner import Run
from tests.gpu_check.steps import CUT_SHORT, DONE, FAILED, Command, Outcome, Phase, Unit
from tests.gpu_check.system import TOKEN, System

ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


class Late(System):
    """Time stands still until a file has a text, and then it is late, and runs fast."""

    def __init__(self, path, text=""):
        self._path, self._text, self._late = path, text, False

    def now(self):
        self._late = self._late or (self._path.exists() and self._text in self._path.read_text())
        return 1e6 + 20 * super().now() if self._late else 0.0


def run(tmp_path, arguments, seconds=9999, judge=None, environ=None, system=None):
    """The outcome of a unit of one command."""
    seen = []

    def one(job, left):
        result = yield Command(arguments, environ or {})
        seen.append(result)
        return (judge or (lambda result: Outcome(DONE)))(result)

    phase = Phase("a", lambda job: [Unit("unit", one, seconds)], limit=9999, estimate=lambda job: 1)
    Run([phase], make_job(tmp_path, system=system or System()), say=lambda line: None).go()
    return seen[0], records(tmp_path / "results")["a"]["units"]["unit"]


def python(code):
    return [sys.executable, "-c", code]


def wait_for(condition):
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_a_command_sees_the_environment_that_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREG_EXPECT", "cpu")
    code = "import os; print(os.environ.get('FASTREG_EXPECT'))"
    for index, (environ, expected) in enumerate([({}, "None\n"), ({"FASTREG_EXPECT": "cuda"}, "cuda\n")]):
        (tmp_path / str(index)).mkdir()
        result, _ = run(tmp_path / str(index), python(code), environ=environ)
        assert (result.status, result.output) == (0, expected)


def test_a_command_that_is_late_may_write_what_it_has(tmp_path):
    code = "import sys, time\nprint('begun', flush=True)\nopen(sys.argv[1], 'w')\n"
    code += "try: time.sleep(600)\nexcept KeyboardInterrupt: print('kept')"
    ready = tmp_path / "ready"
    result, record = run(
        tmp_path, [*python(code), ready], 20, lambda result: Outcome(FAILED, result.ended), system=Late(ready)
    )
    assert (result.status, result.output) == (None, "begun\nkept\n")
    assert record["note"] == "ran past the limit of 20 s"


LEAVES = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
for new in (False, True):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=new)
open(sys.argv[1], "w").write("ready")
if len(sys.argv) > 2:
    time.sleep(600)
"""


def alive(token):
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if token.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            pass
    return found


@linux
@pytest.mark.parametrize("stays", [True, False])
def test_nothing_of_a_command_is_left(tmp_path, stays):
    """Neither what heeds no interrupt nor what has a session of its own, nor what a command leaves when it ends."""
    mark = f"FASTREG_TEST_MARK={tmp_path}"
    environ = dict([mark.split("=")])
    arguments = [*python(LEAVES), tmp_path / "ready", *["stay"] * stays]
    system = Late(tmp_path / "ready", "ready") if stays else System()
    result, _ = run(tmp_path, arguments, 20, environ=environ, system=system)
    assert result.status == (None if stays else 0)
    assert wait_for(lambda: not alive(mark))


MAIN = """
import signal, sys
from pathlib import Path
from tests.gpu_check import __main__ as command, machine, runner
from tests.gpu_check.gpu_check_jobs import GPU, unit
from tests.gpu_check.steps import Command, Outcome, Phase, Unit
folder = Path(sys.argv[1])
def steps(job, left):
    result = yield Command([sys.executable, "-c", (folder / "leaves.py").read_text(), folder / "ready", "stay"])
    return Outcome("failed", result.ended)
runner.SECONDS_TO_END = 0.5
machine.ROOT, machine.probe = folder, lambda: GPU
command.PHASES[:] = [Phase("a", lambda job: [Unit("a", steps, 999)], limit=999, estimate=lambda job: 1)]
sys.exit(command.main(["--out", str(folder / "out")]))
"""


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_running(tmp_path, number):
    (tmp_path / "leaves.py").write_text(LEAVES)
    mark = f"FASTREG_TEST_MARK={tmp_path}"
    environ = os.environ | dict([mark.split("=")])
    command = [sys.executable, "-c", MAIN, tmp_path]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
    assert wait_for((tmp_path / "ready").exists)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number and f"interrupted by {number.name}" in output
    assert wait_for(lambda: not alive(mark))
    assert records(tmp_path / "out")["a"]["status"] == CUT_SHORT


# Tests in Python, planted


PLANTED = """
import ctypes, time, pytest
pytestmark = pytest.mark.cuda
def test_passes(): pass
def test_skips(): pytest.skip("why")
def test_fails(): assert False
def test_ends_the_process(): {last}
def test_is_not_run(): pass
"""


def without_cuda(**changes):
    """The environment of a command that asks for the CUDA backend, which is not built here."""
    return {**os.environ, **changes, "FASTREG_EXPECT": "cpu"}


NO_DEVICE = """
import torch
torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = lambda: None
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Runs a file of planted tests as the phase does: (phase's unit record, journal)."""

    def call(last, seconds, system):
        (tmp_path / "tests").mkdir()
        (tmp_path / "device.py").write_text(NO_DEVICE)
        path = tmp_path / "tests/test_planted.py"
        path.write_text(PLANTED.replace("{last}", last))
        for module in (python_tests, system_module):
            monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests"))))
        options = f"-c {ROOT / 'pyproject.toml'} --rootdir {tmp_path} -p device -p tests.conftest"
        monkeypatch.setenv("PYTEST_ADDOPTS", options)
        monkeypatch.setattr("tests.gpu_check.runner.child_environ", without_cuda)
        unit = Unit("test_planted.py", python_tests._file(path), seconds)
        phase = Phase("a", lambda job: [unit], limit=9999, estimate=lambda job: 1)
        job = make_job(tmp_path, system=system)
        Run([phase], job, say=lambda line: None).go()
        text = (job.work / "journals/test_planted.jsonl").read_text()
        return records(tmp_path / "results")["a"]["units"]["test_planted.py"], text

    return call


def test_a_test_that_ends_the_process_is_named(planted):
    record, journal = planted("ctypes.string_at(0)", 9999, System())
    assert record["status"] == FAILED
    assert record["results"]["counts"] == {"passed": 1, "skipped": 1, "failed": 1, "not run": 1}
    assert record["results"]["failed"][0] == "test_fails"
    assert "ended with signal 11 in tests/test_planted.py::test_ends_the_process" in record["note"]
    assert any("Fatal Python error: Segmentation fault" in line for line in record["log"])  # of faulthandler
    assert json.loads(journal.splitlines()[0]) == {"collected": 5}


def test_a_test_that_hangs_is_named(planted, tmp_path):
    system = Late(tmp_path / "work/journals/test_planted.jsonl", "test_ends_the_process")
    record, _ = planted("time.sleep(600)", 50, system)
    assert record["status"] == FAILED
    assert "ran past the limit of 50 s in tests/test_planted.py::test_ends_the_process" in record["note"]


# Tests in C++, planted


@pytest.fixture(scope="module")
def selftest(tmp_path_factory):
    """kernels_on_device on a fake CUDA runtime."""
    program = tmp_path_factory.mktemp("program") / "kernels_on_device"
    folder = ROOT / "tests/on_device"
    includes = [f"-I{path}" for path in (folder / "selftest", folder, ROOT / "tests", ROOT / "tests/cpp")]
    sources = [folder / "executor.cpp", ROOT / "tests/cpp/testing.cpp", folder / "selftest/selftest.cpp"]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++17", "-DFASTREG_ON_DEVICE", *includes, *sources, "-o", program], check=True)
    return program


def test_a_kernel_that_faults_is_named(tmp_path, selftest):
    _, record = run(tmp_path, [selftest, "fatal"], judge=cpp_tests.outcome)
    assert record["results"]["failed"] == [
        "fatal: a kernel that faults",
        "the device is broken after fatal: a kernel that faults: an error",
    ]


def test_a_kernel_that_never_ends_is_named(tmp_path, selftest):
    system = Late(tmp_path / "work/logs/a/unit.log", "running endless")
    _, record = run(tmp_path, [selftest, "correct", "endless"], 60, cpp_tests.outcome, system=system)
    assert record["status"] == FAILED
    assert record["results"]["failed"] == ["endless: a kernel that never ends: ran past the limit of 60 s"]
    assert record["results"]["counts"] == {"passed": 4, "cut short": 1}


def test_the_token_is_in_the_environment(tmp_path):
    assert run(tmp_path, python(f"import os; print(len(os.environ['{TOKEN}']))"))[0].output == "16\n"
