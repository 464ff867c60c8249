"""The examples do what they say: each asserts its claim itself."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
ELSEWHERE = {"many_processes.py", "transformer.py"}  # in processes of their own
MARKS = {"convert_torchvision.py": pytest.mark.zoo}


def started(*arguments):
    """The output of a process."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in EXAMPLES])
def test_example_runs(name, capsys, monkeypatch):
    path = str(ROOT / "examples" / name)
    if name in ELSEWHERE:
        assert not started(path).endswith("; with fastreg\n")
        return
    monkeypatch.setattr(sys, "argv", [path])
    runpy.run_path(path, run_name="__main__")
    assert capsys.readouterr().out


def test_a_program_as_it_is_runs_with_fastreg():
    output = started("-m", "fastreg", "run", "examples/transformer.py")
    assert output.splitlines()[-1].endswith("; with fastreg")


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_short(name):
    assert len((ROOT / "examples" / name).read_text().splitlines()) <= 100


def test_an_example_of_a_missing_package_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(SystemExit, match="needs torchvision, and there is none here: pip install torchvision"):
        runpy.run_path(str(ROOT / "examples/convert_torchvision.py"), run_name="__main__")
