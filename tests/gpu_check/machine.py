"""What this machine has: device, tools, packages; and which sources are being checked."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["csrc", "fastreg", "tests", "bench", "setup.py", "pyproject.toml", "CMakeLists.txt"]
SUFFIXES = {".py", ".h", ".cpp", ".cu", ".cuh", ".inl", ".txt", ".toml", ".tsv"}
NOT_SOURCES = [ROOT / "bench/results", ROOT / "bench/out"]
SECONDS_TO_ANSWER = 60


def ask(*command, environ=None):
    """(exit status, stdout, stderr) of a short command in the project's folder; status None where it cannot run."""
    try:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=environ, timeout=SECONDS_TO_ANSWER
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, "", str(error)
    return done.returncode, done.stdout, done.stderr


def child_environ(**changes):
    """The environment of the commands that phases run; a variable that is set to None is removed."""
    environ = dict(os.environ)
    environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), environ.get("PATH", os.defpath)])
    unset = dict.fromkeys(["FASTREG_EXPECT", "FASTREG_DISABLE", "FASTREG_TEST_KERNELS"])
    for name, value in (unset | changes).items():
        environ.pop(name, None)
        if value is not None:
            environ[name] = value
    return environ


def probe():
    """What tests/gpu_check/probe.py prints. Raises RuntimeError where this Python has no torch that works."""
    status, out, err = ask(sys.executable, "-m", "tests.gpu_check.probe", environ=child_environ(FASTREG_DISABLE="1"))
    if status != 0:
        last = err.strip().splitlines()[-1:] or [f"exit status {status}"]
        raise RuntimeError(f"{last[0]}. {sys.executable} must have torch, from https://pytorch.org, and numpy")
    return json.loads(out.splitlines()[-1])


def slug(name):
    """NVIDIA H200 -> nvidia-h200"""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def fingerprint(names):
    """Twelve digits that change with any source file among these files and folders."""
    digest = hashlib.sha256()
    for path in sorted(path for name in names for path in [ROOT / name, *(ROOT / name).rglob("*")]):
        if path.suffix in SUFFIXES and path.is_file() and not any(path.is_relative_to(f) for f in NOT_SOURCES):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def describe_sources():
    """commit (None without git), modified: whether the files differ from it, fingerprint: of the files themselves."""
    status, commit, _ = ask("git", "rev-parse", "HEAD")
    _, changes, _ = ask("git", "status", "--porcelain", "--", *SOURCES, ":!bench/results")
    return {
        "commit": commit.strip() if status == 0 else None,
        "modified": bool(changes.strip()) if status == 0 else None,
        "fingerprint": fingerprint(SOURCES),
    }


def requirements(extra):
    """The names in a list of pyproject.toml, such as "test", or "requires" for building."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(rf"^{extra} = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)[1]
    return [re.match(r"[\w.-]+", name)[0] for name in re.findall(r'"(.+?)"', listed)]


def missing(names):
    """What is missing of packages or programs, and how to get it; None where all are there."""
    absent = [name for name in dict.fromkeys(names) if not is_there(name)]
    if not absent:
        return None
    listed = " ".join(absent)
    return (
        f"missing: {listed}. Remedy: pip install {listed}; without a network, `pip download -d wheels {listed}` "
        f"where there is one, then `pip install --no-index --find-links wheels {listed}` here"
    )


def is_there(name):
    """As a package or a program."""
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return shutil.which(name, path=child_environ()["PATH"]) is not None


@functools.cache
def find_toolkit():
    """The CUDA toolkit's folder, as setup.py finds it, or None."""
    try:
        return runpy.run_path(str(ROOT / "setup.py"), run_name="fastreg_setup")["find_toolkit"](os.environ)
    except ImportError:  # no setuptools: those who build say so
        return None


def find_nvcc():
    """nvcc itself, or None."""
    toolkit = find_toolkit()
    return toolkit / "bin/nvcc" if toolkit else None


def find_sanitizer():
    """compute-sanitizer from the toolkit, from PATH, or from one of pip's nvidia packages; None if there is none."""
    toolkit = find_toolkit()
    candidates = [toolkit / "bin/compute-sanitizer", toolkit / "compute-sanitizer/compute-sanitizer"] if toolkit else []
    if on_path := shutil.which("compute-sanitizer"):
        candidates.append(Path(on_path))
    packages = importlib.util.find_spec("nvidia")
    for folder in packages.submodule_search_locations or [] if packages else []:
        candidates += sorted(Path(folder).rglob("compute-sanitizer"))
    return next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)
