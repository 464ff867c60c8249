"""nvcc, cuobjdump and c++filt: finding them, running them, and keeping what they compiled."""

import functools
import hashlib
import importlib.util
import os
import re
import runpy
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="fastreg_setup")
FLAGS = ["-c", "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "-Xcompiler=-Wall,-Wextra"]


@dataclass(frozen=True)
class Compiled:
    source: Path
    gpu: int
    object: Path
    log: str  # everything that nvcc and what it calls have said


def kernel_sources():
    return sorted((ROOT / "csrc/kernels").rglob("*.cu"))


@functools.cache
def find_nvcc():
    """The toolkit's nvcc, as setup.py finds it, or None."""
    toolkit = SETUP["find_toolkit"](os.environ)
    return toolkit / "bin/nvcc" if toolkit else None


def find_disassembler():
    """cuobjdump from beside nvcc or from the triton package (it comes with CUDA builds of torch), or None."""
    candidates = [find_nvcc().with_name("cuobjdump")] if find_nvcc() else []
    if (triton := importlib.util.find_spec("triton")) and triton.origin:
        candidates.append(Path(triton.origin).with_name("backends") / "nvidia/bin/cuobjdump")
    return next((path for path in candidates if path.exists()), None)


@functools.cache
def known_gpus():
    """The compute capabilities that nvcc compiles for."""
    return {int(code) for code in re.findall(r"^sm_(\d+)$", run(find_nvcc(), "--list-gpu-code"), re.MULTILINE)}


def run(*command, text=None):
    result = subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


@functools.cache
def fingerprint(source):
    """Of all that decides what nvcc makes of source."""
    headers = [path for suffix in ("h", "cuh", "inl") for path in (ROOT / "csrc").rglob(f"*.{suffix}")]
    digest = hashlib.sha256(run(find_nvcc(), "--version").encode())
    for path in [source, *sorted(headers)]:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def compile_for(source, gpu, folder=ROOT / "build/codegen"):
    """Compiled, from folder where the same has been compiled before."""
    flags = [*FLAGS, *SETUP["gencode_flags"]([gpu])]
    key = hashlib.sha256(" ".join([fingerprint(source), *flags]).encode()).hexdigest()[:16]
    stem = f"{source.parent.name}.{source.stem}.sm_{gpu}"
    made, log = folder / f"{stem}.{key}.o", folder / f"{stem}.{key}.log"
    if not log.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(f"{stem}.*"):
            stale.unlink()
        result = subprocess.run([find_nvcc(), *flags, source, "-o", made], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{source.name} does not compile for sm_{gpu}:\n{result.stdout}{result.stderr}")
        log.write_text(result.stdout + result.stderr)
    return Compiled(source, gpu, made, log.read_text())


def compile_all(sources, gpus):
    """[Compiled] of every source for every GPU, on all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(lambda job: compile_for(*job), [(source, gpu) for source in sources for gpu in gpus]))


def disassemble(compiled):
    return run(find_disassembler(), "-sass", compiled.object)


def dump_information(compiled):
    return run(find_disassembler(), "-elf", compiled.object)


def demangle(names):
    """Short names, such as dropout_kernel<float, 4, true>."""
    return [short_name(line) for line in run("c++filt", text="\n".join(names)).splitlines()]


def short_name(demangled):
    """A function's name and template arguments: without return type, namespaces of ours, and parameters."""
    text = demangled.replace("fastreg::", "").replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return text[:at]
    return text
