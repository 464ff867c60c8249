"""Jobs for the tests of tests/gpu_check: machines, sources, and a folder for the results."""

from tests.gpu_check import report
from tests.gpu_check.runner import Job

GPU = {"backend": "cuda", "device": "Abacus 9000", "capability": "9.0", "torch": "2.0", "cuda": "13.0"}
CPU = {"backend": "cpu", "device": "Slide Rule", "torch": "2.0", "cuda": None}
SOURCES = {"commit": "c0ffee", "modified": False, "fingerprint": "1"}


def make_job(folder, found=GPU, sources=SOURCES, seconds=60):
    results = report.Report(folder / "results", found["device"], found["torch"], sources)
    return Job(found, sources, results, folder / "work", seconds)
