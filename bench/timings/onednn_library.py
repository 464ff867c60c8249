"""oneDNN itself, where it is installed: `pip install onednn onednn-devel`, or a folder named by DNNLROOT.

Its classes of C++ are reached by functions of C, onednn.cpp, which is compiled here."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("onednn.cpp")
BUILT = Path(__file__).resolve().parents[2] / "build/onednn"
OLDEST = (3, 13)  # dropout by seed and offset, without a mask


def root() -> Path:
    """Where the headers and the library are. Raises ImportError where they are not, or too old."""
    folders = [Path(folder) for folder in (os.environ.get("DNNLROOT"), sys.prefix, "/usr/local", "/usr") if folder]
    for folder in folders:
        header = folder / "include/oneapi/dnnl/dnnl_version.h"
        if header.exists() and (folder / "lib/libdnnl.so").exists():
            found = re.findall(r"define DNNL_VERSION_(?:MAJOR|MINOR) (\d+)", header.read_text())
            if tuple(map(int, found)) < OLDEST:
                oldest, version = (".".join(map(str, each)) for each in (OLDEST, found))
                raise ImportError(f"oneDNN must be {oldest} or later, got {version} in {folder}")
            return folder
    raise ImportError("there is no oneDNN; pip install onednn onednn-devel, or name its folder by DNNLROOT")


def build(folder: Path) -> Path:
    """onednn.cpp as a shared library; compiled once for each source and folder. Raises ImportError."""
    compiler = os.environ.get("CXX", "c++")
    if not shutil.which(compiler):
        raise ImportError(f"{SOURCE.name} must be compiled, and there is no {compiler}")
    key = hashlib.sha256(SOURCE.read_bytes() + str(folder).encode()).hexdigest()[:12]
    path = BUILT / f"onednn-{key}.so"
    if not path.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        # The old kind of tag: libraries that libdnnl needs are found beside it as well.
        options = ["-O2", "-std=c++17", "-shared", "-fPIC", f"-I{folder}/include", f"-L{folder}/lib"]
        links = ["-ldnnl", f"-Wl,--disable-new-dtags,-rpath,{folder}/lib", "-Wl,--allow-shlib-undefined"]
        command = [compiler, *options, str(SOURCE), *links, "-o", str(scratch)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise ImportError(f"{SOURCE.name} does not compile: {(errors or [done.stderr.strip()])[0]}")
        os.replace(scratch, path)
    return path


def load() -> ctypes.CDLL:
    """The functions of onednn.cpp. Raises ImportError."""
    folder = root()
    # Read when the library starts its threads: as many as PyTorch has. The build by pip runs CPUs by OpenCL.
    os.environ.setdefault("DPCPP_CPU_NUM_CUS", str(torch.get_num_threads()))
    if (driver := folder / "lib/libintelocl.so").exists():
        os.environ.setdefault("OCL_ICD_FILENAMES", str(driver))
    try:
        library = ctypes.CDLL(str(build(folder)))
    except OSError as error:
        raise ImportError(str(error)) from None
    sizes, shape = ctypes.POINTER(c_int64), (c_int, ctypes.POINTER(c_int64), c_int, c_int)
    for name, result, arguments in (
        ("last_error", ctypes.c_char_p, ()),
        ("make_batch_norm", c_void_p, (*shape, c_int, c_int, c_float)),
        ("gate_bytes", c_int64, (c_void_p,)),
        ("batch_norm_forward", c_int, (c_void_p,) * 8),
        ("batch_norm_backward", c_int, (c_void_p,) * 11),
        ("free_batch_norm", None, (c_void_p,)),
        ("make_dropout", c_void_p, (c_int, sizes, c_int, c_int, c_float)),
        ("apply_dropout", c_int, (c_void_p, c_int64, c_void_p, c_void_p)),
        ("free_dropout", None, (c_void_p,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
