"""The build's decisions, the loading of the extension, and what both say when something is missing.

setup.py and fastreg/_extension.py run here against a stand-in for torch: nothing is compiled.
"""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastreg.__main__ as report
from fastreg import _extension

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="fastreg_setup")

STAND_IN_TORCH = """
__version__ = "9.8.7+cu130"
class version: cuda = "13.0"
class cuda: device_count = staticmethod(lambda: 0)
"""
STAND_IN_CPP_EXTENSION = """
from setuptools.command.build_ext import build_ext as BuildExtension
include_paths = library_paths = lambda device: []
"""


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def run(tmp_path):
    """run(arguments, **environment): Python in a copy of the package's files, with the stand-in for torch."""
    write(tmp_path / "site/torch/__init__.py", STAND_IN_TORCH)
    write(tmp_path / "site/torch/utils/__init__.py", "")
    write(tmp_path / "site/torch/utils/cpp_extension.py", STAND_IN_CPP_EXTENSION)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    write(tmp_path / "fastreg/__init__.py", '__version__ = "1.2.3"\n')
    shutil.copy(ROOT / "fastreg/_extension.py", tmp_path / "fastreg")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FASTREG_", "CUDA_"))}

    def run(*arguments, **environment):
        environment = {**inherited, "PYTHONPATH": str(tmp_path / "site"), **environment}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def fake_nvcc(folder, release="13.0", top=None):
    dryrun = f'echo "#$ TOP={top}" >&2' if top else ":"
    return write(
        folder / "nvcc", f'#!/bin/sh\ncase "$1" in --dryrun) {dryrun};; *) echo release {release},;; esac\n', 0o755
    )


class TestBackendChoice:
    @pytest.mark.parametrize(
        ("request_", "torch_cuda", "release", "expected"),
        [
            (None, "13.0", "13.0", True),
            ("", "13.0", "13.2", True),
            ("1", "13.0", "13.0", True),
            ("0", "13.0", "13.0", False),
            ("0", "13.0", "12.4", False),
            (None, None, "13.0", False),
            (None, "13.0", None, False),
        ],
    )
    def test_choice(self, request_, torch_cuda, release, expected):
        assert SETUP["use_cuda"](request_, torch_cuda, release)[0] is expected

    def test_cuda_torch_without_nvcc_says_so(self):
        assert "nvcc, of the CUDA 13.0 that torch" in SETUP["use_cuda"](None, "13.0", None)[1]

    @pytest.mark.parametrize(
        ("request_", "torch_cuda", "release", "message"),
        [
            (None, "13.0", "12.4", "nvcc is of CUDA 12.4, but torch is built for CUDA 13.0.*FASTREG_CUDA=0"),
            ("1", "12.6", "13.0", "nvcc is of CUDA 13.0, but torch is built for CUDA 12.6"),
            ("1", "13.0", None, "nvcc, of the CUDA 13.0 that torch is built for, was not found"),
            ("1", None, "13.0", "not a CUDA build"),
            ("yes", "13.0", "13.0", "FASTREG_CUDA must be 0 or 1, got 'yes'"),
        ],
    )
    def test_refusal(self, request_, torch_cuda, release, message):
        with pytest.raises(SystemExit, match=message):
            SETUP["use_cuda"](request_, torch_cuda, release)


class TestToolkit:
    def test_behind_a_wrapper(self, tmp_path):
        fake_nvcc(tmp_path / "cuda/bin")
        fake_nvcc(tmp_path / "elsewhere", top=f"{tmp_path}/cuda/bin/..")
        assert SETUP["find_toolkit"]({"PATH": f"{tmp_path}/elsewhere:{os.defpath}"}) == tmp_path / "cuda"

    def test_beside_nvcc(self, tmp_path):
        fake_nvcc(tmp_path / "cuda/bin")
        assert SETUP["find_toolkit"]({"PATH": f"{tmp_path}/cuda/bin:{os.defpath}"}) == tmp_path / "cuda"

    def test_cuda_home_comes_first(self, tmp_path):
        fake_nvcc(tmp_path / "named/bin")
        fake_nvcc(tmp_path / "cuda/bin")
        environ = {"CUDA_HOME": f"{tmp_path}/named", "PATH": f"{tmp_path}/cuda/bin:{os.defpath}"}
        assert SETUP["find_toolkit"](environ) == tmp_path / "named"

    def test_none(self, tmp_path):
        assert SETUP["find_toolkit"]({"CUDA_HOME": str(tmp_path)}) is None

    def test_release(self, tmp_path):
        fake_nvcc(tmp_path / "bin", release="12.4")
        assert SETUP["nvcc_release"](tmp_path) == "12.4"
        assert SETUP["nvcc_release"](None) is None


class TestArchitectures:
    CUDA_13 = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121}

    def test_default(self):
        assert SETUP["choose_gpus"]([], self.CUDA_13) == [75, 80, 86, 90, 100, 120]

    def test_older_nvcc(self):
        assert SETUP["choose_gpus"]([], {70, 75, 80, 86, 89, 90}) == [75, 80, 86, 90]

    def test_present(self):
        assert SETUP["choose_gpus"]([90, 90, 80], self.CUDA_13) == [80, 90]

    def test_present_but_newer_than_nvcc(self):
        assert SETUP["choose_gpus"]([140], self.CUDA_13) == [75, 80, 86, 90, 100, 120]

    def test_flags(self):
        assert SETUP["gencode_flags"]([75, 80, 86, 90, 100, 120]) == [
            "-gencode=arch=compute_75,code=[sm_75]",
            "-gencode=arch=compute_80,code=[sm_80,sm_86]",
            "-gencode=arch=compute_90,code=[sm_90,sm_100,sm_120,compute_90]",
        ]
        assert SETUP["gencode_flags"]([89]) == ["-gencode=arch=compute_80,code=[sm_89,compute_80]"]

    def test_too_old(self):
        with pytest.raises(SystemExit, match="got sm_70"):
            SETUP["gencode_flags"]([70])


class TestSetup:
    def test_build_isolation(self, run, tmp_path):
        write(tmp_path / "site/torch/__init__.py", "raise ImportError(\"No module named 'torch'\")")
        result = run("setup.py", "build")
        assert result.returncode != 0
        assert "No module named 'torch'" in result.stderr
        assert "pip install --no-build-isolation ." in result.stderr

    def test_metadata_needs_no_torch(self, run, tmp_path):
        write(tmp_path / "site/torch/__init__.py", "raise ImportError")
        assert run("setup.py", "egg_info").returncode == 0
        assert "Name: fastreg\nVersion: 1.2.3" in (tmp_path / "fastreg.egg-info/PKG-INFO").read_text()

    def test_no_compiler(self, run, tmp_path):
        result = run("setup.py", "build", "--build-lib=built", CXX="/nonexistent/c++")
        assert result.returncode == 0, result.stderr
        assert "pure Python only, which is slow: no C++ compiler (/nonexistent/c++)" in result.stderr
        assert (tmp_path / "built/fastreg/_extension.py").exists()

    @pytest.mark.parametrize("variable", ["FASTREG_REQUIRE_EXT", "FASTREG_CUDA"])
    def test_no_compiler_but_required(self, run, variable):
        result = run("setup.py", "build", CXX="/nonexistent/c++", **{variable: "1"})
        assert result.returncode != 0
        assert "no C++ compiler (/nonexistent/c++)" in result.stderr

    def test_mismatched_nvcc(self, run, tmp_path):
        fake_nvcc(tmp_path / "cuda/bin", release="12.4")
        result = run("setup.py", "build", CUDA_HOME=str(tmp_path / "cuda"))
        assert result.returncode != 0
        assert "nvcc is of CUDA 12.4, but torch is built for CUDA 13.0" in result.stderr


class TestLoading:
    LOAD = ("-c", "from fastreg import _extension as e; print(e.available('cpu'), e.build_info(), e.problem())")

    def fake_extension(self, tmp_path, torch_version):
        suffix = SETUP["sysconfig"].get_config_var("EXT_SUFFIX")
        return write(tmp_path / f"fastreg/_C{suffix}", f"..fastreg._C was built for torch {torch_version}\0..")

    def test_absent(self, run):
        result = run(*self.LOAD)
        assert result.stdout.startswith("False {'backends': []}")
        assert result.stderr.count("UserWarning: fastreg runs in slow fallbacks: the extension was not built") == 1

    def test_absent_where_it_is_installed(self, run, tmp_path):
        (tmp_path / "setup.py").unlink()
        assert "the extension was not built: there may have been no C++ compiler" in run(*self.LOAD).stderr

    def test_the_source_folder_hides_what_is_installed(self, run):
        assert "If pip has installed fastreg, run Python in another folder" in run(*self.LOAD).stderr

    def test_absent_but_expected(self, run):
        result = run(*self.LOAD, FASTREG_EXPECT="cpu")
        assert "ImportError: fastreg: FASTREG_EXPECT=cpu, but the backends are []" in result.stderr
        assert "pip install --no-build-isolation" in result.stderr

    def test_built_for_another_torch(self, run, tmp_path):
        self.fake_extension(tmp_path, "9.8.6+cpu")
        result = run(*self.LOAD)
        assert "the extension was built for torch 9.8.6+cpu, but torch 9.8.7+cu130 is installed" in result.stderr
        assert "pip install --no-build-isolation" in result.stderr

    def test_does_not_load(self, run, tmp_path):
        self.fake_extension(tmp_path, "9.8.7+cpu")
        result = run(*self.LOAD)
        assert "the extension built for torch 9.8.7+cpu does not load with 9.8.7+cu130" in result.stderr

    def test_disabled(self, run):
        result = run(*self.LOAD, FASTREG_DISABLE="1", FASTREG_EXPECT="cpu")
        assert result.stdout.startswith("False {'backends': []} FASTREG_DISABLE is set")
        assert result.stderr == ""

    @pytest.mark.parametrize(
        ("expected", "backends", "message"),
        [
            ("", [], None),
            ("cpu", ["cpu"], None),
            ("cuda", ["cpu", "cuda"], None),
            ("cuda", ["cpu"], "FASTREG_EXPECT=cuda, but the backends are ['cpu']"),
            ("gpu", ["cpu", "cuda"], "FASTREG_EXPECT must be cpu or cuda, got 'gpu'"),
        ],
    )
    def test_expectation(self, expected, backends, message):
        assert _extension._missing(expected, {"backends": backends}) == message


class TestThisBuild:
    """The extension that this test run uses. Whether there must be one, FASTREG_EXPECT says: make test sets it."""

    def test_is_the_one_beside_the_sources(self):
        assert Path(_extension.__file__).parent == ROOT / "fastreg"

    def test_build_info(self):
        info = _extension.build_info()
        assert [_extension.available(device) for device in ("cpu", "cuda", "mps")] == [
            _extension.problem() is None,
            bool(info.get("cuda")),
            False,
        ]
        if info["backends"]:
            assert info["torch"] == torch.__version__
            assert _extension._built_for(_extension._find()) == torch.__version__

    def test_report(self, capsys):
        report.main([])
        output = capsys.readouterr().out
        assert torch.__version__ in output
        assert (", ".join(_extension.build_info()["backends"]) or "none") in output
        assert "\nNext:\n" in output

    def test_what_to_do_next(self):
        assert "fastreg.convert(model)" in "\n".join(report.report({"backends": ["cpu"], "cuda": None}, None, []))
        missing = "\n".join(report.report({"backends": []}, "not built", []))
        assert "! not built" in missing and "docs/building.md" in missing and "fastreg.convert(model)" not in missing


class TestAdvice:
    CPU = {"backends": ["cpu"], "cuda": None}
    CUDA = {"backends": ["cpu", "cuda"], "cuda": "13.0", "cuda_architectures": "8.0 9.0+PTX"}

    @pytest.mark.parametrize(
        ("architectures", "capability", "expected"),
        [
            ("8.0 9.0", (8, 0), True),
            ("8.0 9.0", (8, 6), True),
            ("8.6", (8, 0), False),
            ("8.0 9.0", (10, 0), False),
            ("8.0;9.0+PTX", (10, 0), True),
            ("8.0+PTX 9.0", (7, 5), False),
            ("10.0a", (10, 0), True),
            ("Ampere", (9, 0), True),
        ],
    )
    def test_runs_on(self, architectures, capability, expected):
        assert report.runs_on(architectures, capability) is expected

    def test_nothing_missing(self):
        assert report.advice(self.CUDA, None, "13.0", [("H200", (9, 0))]) == []
        assert report.advice(self.CPU, None, None, []) == []

    @pytest.mark.parametrize(
        ("info", "problem", "torch_cuda", "gpus", "message"),
        [
            ({"backends": []}, "not built", "13.0", [], "not built"),
            (CPU, None, "13.0", [], "the toolkit of CUDA 13.0 (nvcc)"),
            (CUDA, None, "13.0", [("T4", (7, 5))], "T4 (sm_75) is not among the architectures"),
        ],
    )
    def test_missing(self, info, problem, torch_cuda, gpus, message):
        (sentence,) = report.advice(info, problem, torch_cuda, gpus)
        assert message in sentence
        assert problem or "pip install --no-build-isolation" in sentence


@pytest.mark.parametrize("gpu", [False, True])
def test_cuda_tests_are_counted(pytester, monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    pytester.makeconftest((ROOT / "tests/conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = cuda: needs a GPU")
    pytester.makepyfile("""
        import pytest
        def test_anywhere(): pass
        @pytest.mark.cuda
        def test_on_gpu(): pass
    """)
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=2 if gpu else 1, deselected=0 if gpu else 1)
    assert ("1 tests need a GPU and have not run" in result.stdout.str()) is not gpu


@pytest.mark.parametrize("executed", [False, True])
def test_what_runs_on_the_kernels(pytester, executed):
    """Operators, functions and modules, but for what is marked; what is left out is counted, by reasons."""
    pytester.makeconftest(f"{(ROOT / 'tests/conftest.py').read_text()}\nEXECUTED = {executed}")
    pytester.makeini("[pytest]\nmarkers = not_on_kernels(reason): not there")
    for folder in ("functional", "zoo"):
        pytester.mkdir(folder)
        (pytester.path / folder / f"test_{folder}.py").write_text("""
import pytest
def test_of_kernels(): pass
@pytest.mark.not_on_kernels("it is too late")
def test_left_out(): pass
""")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1 if executed else 4, deselected=3 if executed else 0)
    assert ("2 tests are of other things than the kernels" in result.stdout.str()) is executed
    assert ("1 tests have not run on the kernels: it is too late" in result.stdout.str()) is executed
