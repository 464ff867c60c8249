"""Loading of fastreg._C, the compiled operators, and what the environment says about it.

FASTREG_DISABLE=1         do not load it: everything runs in torch's own functions
FASTREG_EXPECT=cpu|cuda   a backend that is missing is an ImportError ("cuda": built and loaded; no GPU is needed)
FASTREG_AUTOGRAD=cpp|python  what differentiates the compiled operators: the nodes in C++ (default), which take less
                          time per call, or fastreg/autograd

csrc/operators/results.cpp describes FASTREG_CPU_CACHE.
"""

import importlib
import importlib.machinery
import mmap
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

REMEDY = "In fastreg's source folder, run: pip install --no-build-isolation --force-reinstall --no-deps ."


def _built_for(path):
    """The torch version that the extension at path was compiled against, read without loading it; None if unknown."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        match = re.search(rb"fastreg\._C was built for torch ([\w.+]+)", content)
        return match[1].decode() if match else None


def _load(path, torch_version):
    """(module, None), or (None, why the extension at path cannot be used); path is None where there is none."""
    if path is None:
        return None, _not_built(Path(__file__).parents[1])
    built_for = _built_for(path)
    if built_for is None or built_for.split("+")[0] != torch_version.split("+")[0]:
        return None, f"the extension was built for torch {built_for}, but torch {torch_version} is installed. {REMEDY}"
    try:
        return importlib.import_module("fastreg._C"), None
    except ImportError as error:
        return None, f"the extension built for torch {built_for} does not load with {torch_version}: {error}. {REMEDY}"


def _not_built(folder):
    """folder: the one that holds this package."""
    if (folder / "setup.py").exists():
        return (
            f"the extension was not built in the source folder {folder}, from which fastreg was imported. If pip has "
            "installed fastreg, run Python in another folder; to build it here, with a C++ compiler, run: "
            "pip install --no-build-isolation -e ."
        )
    return f"the extension was not built: there may have been no C++ compiler. {REMEDY}"


def _missing(expected, info):
    """What FASTREG_EXPECT asks for and build_info() lacks, or None."""
    if expected not in ("", "cpu", "cuda"):
        return f"FASTREG_EXPECT must be cpu or cuda, got {expected!r}"
    if expected and expected not in info["backends"]:
        return f"FASTREG_EXPECT={expected}, but the backends are {info['backends']}"
    return None


def _find():
    """The extension beside this file, if any: another copy of the package may have one, of other sources."""
    paths = [Path(__file__).with_name(f"_C{suffix}") for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    return next((path for path in paths if path.exists()), None)


def _describe(module):
    if module is None:
        return {"backends": []}
    info = module.build_info()
    return {"backends": ["cpu", "cuda"] if info["cuda"] else ["cpu"], **info}


def _unknown_autograd(choice):
    if choice not in ("", "cpp", "python"):
        return f"FASTREG_AUTOGRAD must be cpp or python, got {choice!r}"
    return None


_DISABLED = os.environ.get("FASTREG_DISABLE", "0") not in ("", "0")
_module, _problem = (None, "FASTREG_DISABLE is set.") if _DISABLED else _load(_find(), torch.__version__)
_info = _describe(_module)
_AUTOGRAD = os.environ.get("FASTREG_AUTOGRAD", "")

if unknown := _unknown_autograd(_AUTOGRAD):
    raise ImportError(f"fastreg: {unknown}")
if not _DISABLED:
    if missing := _missing(os.environ.get("FASTREG_EXPECT", ""), _info):
        raise ImportError(f"fastreg: {missing}: {_problem or REMEDY}")
    if _problem:
        warnings.warn(f"fastreg runs in slow fallbacks: {_problem}", stacklevel=2)


def disabled() -> bool:
    """Whether FASTREG_DISABLE sends everything to torch's own functions."""
    return _DISABLED


def available(device_type: str) -> bool:
    """Whether compiled kernels for tensors on this type of device ("cpu", "cuda") are loaded."""
    return device_type in _info["backends"]


def differentiates_in_python() -> bool:
    """Whether FASTREG_AUTOGRAD asks for the derivatives of fastreg/autograd."""
    return _AUTOGRAD == "python"


def build_info() -> dict[str, Any]:
    """How the extension was built.

    Returns:
        dict: ``backends``, the list of compiled backends (empty without the extension), and with the extension
        ``torch``, ``compiler``, ``instruction_set`` (of the CPU kernels), ``openmp`` (whether they share their work
        among torch's threads), ``cuda`` and ``cuda_architectures`` (the last two None without the CUDA backend).
    """
    return dict(_info)


def problem() -> str | None:
    """Why the extension is not in use and what to do about it, or None."""
    return _problem


def module():
    """The compiled extension, or an error that says why there is none."""
    if _module is None:
        raise RuntimeError(f"fastreg: {_problem}")
    return _module


def empty_cache() -> None:
    """Give the memory that is kept for large results on the CPU back to the system.

    What is kept is as much as was in use at once, up to 1 GiB or the environment variable ``FASTREG_CPU_CACHE``, in
    MiB (0: nothing). All but 64 MiB the system takes by itself when it runs short of memory. For CUDA there is
    ``torch.cuda.empty_cache``, as fastreg's tensors come from torch's allocator.
    """
    if _module is not None:
        _module.empty_cache()
