"""Builds of the host executor's extension exclude each other, and survive that one is killed."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host_executor.extension import building

ROOT = Path(__file__).resolve().parents[2]

# Takes torch's lock as its builds do, says so, and waits to be told to end.
BUILD = """
import sys
from pathlib import Path
from torch.utils.file_baton import FileBaton
from tests.host_executor.extension import building

directory = Path(sys.argv[1])
with building(directory):
    baton = FileBaton(str(directory / "lock"))
    assert baton.try_acquire()
    print("building", flush=True)
    sys.stdin.readline()
    baton.release()
print("built", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    processes = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", BUILD, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_killed_build_does_not_stop_the_next(start, tmp_path):
    killed = start()
    assert killed.stdout.readline() == "building\n"
    killed.kill()
    killed.wait()
    assert (tmp_path / "lock").exists()
    with building(tmp_path):
        assert not (tmp_path / "lock").exists()


def test_a_build_keeps_others_out(start, tmp_path):
    one = start()
    assert one.stdout.readline() == "building\n"
    with open(tmp_path / "building") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert one.communicate("\n")[0] == "built\n"
    with building(tmp_path):
        pass
