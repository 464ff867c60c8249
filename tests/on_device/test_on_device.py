"""tests/on_device, which runs the C++ tests on a GPU, on a fake CUDA runtime."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def selftest(tmp_path_factory):
    program = tmp_path_factory.mktemp("on_device") / "selftest"
    folder = ROOT / "tests/on_device"
    includes = [f"-I{path}" for path in (folder / "selftest", folder, ROOT / "tests", ROOT / "tests/cpp")]
    sources = [folder / "executor.cpp", ROOT / "tests/cpp/testing.cpp", folder / "selftest/selftest.cpp"]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run(
        [
            compiler,
            "-std=c++17",
            "-DFASTREG_ON_DEVICE",
            "-Wall",
            "-Wextra",
            "-Werror",
            *includes,
            *sources,
            "-o",
            program,
        ],
        check=True,
    )

    def call(*arguments, **environ):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, env={**os.environ, **environ})
        return done.returncode, done.stdout

    return call


@pytest.mark.parametrize("bare", [False, True])
def test_on_device_correct(selftest, bare):
    status, output = selftest("correct", **({"FASTREG_ON_DEVICE_BARE": "1"} if bare else {}))
    assert status == 0, output
    assert output.endswith("5 tests, 0 failed, 1 cut short\n")


def test_on_device_planted(selftest):
    status, output = selftest("planted")
    assert status == 1
    assert output.count("FAILED planted") == 5
    assert output.endswith("5 tests, 5 failed, 0 cut short\n")


def test_a_kernel_that_faults_ends_the_program_and_is_named(selftest):
    status, output = selftest("fatal")
    lines = output.splitlines()
    assert status == 1 and lines[1] == "running fatal: a kernel that faults"
    assert lines[-2:] == [
        "the device is broken after fatal: a kernel that faults: an error",
        "1 tests, 1 failed, 0 cut short",
    ]
    assert "after the fatal one" not in output


def test_a_file_is_a_group(selftest):
    assert selftest("--group", "selftest_no")[1].endswith("0 tests, 0 failed, 0 cut short\n")
    assert "running planted: a write past the end\n" in selftest("--group", "selftest")[1]


def test_on_device_without_a_device(selftest):
    status, output = selftest(FAKE_NO_DEVICE="1")
    assert status == 77 and output.startswith("no CUDA device, nothing has been tested")
