"""The phase that tells what there is."""

from __future__ import annotations

import shutil

from tests.gpu_check import machine
from tests.gpu_check.steps import DONE, FAILED, Command, Outcome

QUERY = [
    *("name", "driver_version", "memory.total", "memory.used", "clocks.max.sm", "clocks.max.memory", "clocks.sm"),
    *("power.limit", "temperature.gpu", "ecc.mode.current", "persistence_mode", "utilization.gpu"),
]
PACKAGES = ["test", "bench", "requires"]


def steps(job, seconds):
    """Drivers, tools, packages: what any of them cannot tell is left out."""
    results = {**job.found, "cores": job.cores, "free_bytes": job.system.free_bytes(job.work)}
    results["driver"] = yield from _driver()
    for name, program, last in (("nvcc", machine.find_nvcc(), 2), ("compute_sanitizer", machine.find_sanitizer(), 1)):
        said = (yield Command([program, "--version"])) if program else None
        results[name] = said.output.splitlines()[-last:] if said and said.status == 0 else None
    wanted = [name for extra in PACKAGES for name in machine.requirements(extra)]
    results["missing"] = [name for name in wanted if not machine.is_there(name)]
    torch = f"torch {job.found['torch']}, CUDA {job.found['cuda']}"
    if results["driver"] and not job.on_gpu:
        return Outcome(FAILED, f"nvidia-smi lists {results['driver'][0]['name']}, which {torch} does not see", results)
    missing = f"; missing: {' '.join(results['missing'])}" if results["missing"] else ""
    return Outcome(DONE, f"{job.found['device'] if job.on_gpu else 'no GPU'}, {torch}{missing}", results)


def _driver():
    """What nvidia-smi says of each GPU, in its own words; [] where there is none."""
    if not shutil.which("nvidia-smi"):
        return []
    result = yield Command(["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"])
    lines = result.output.splitlines() if result.status == 0 else []
    return [dict(zip(QUERY, line.split(", "), strict=False)) for line in lines]
