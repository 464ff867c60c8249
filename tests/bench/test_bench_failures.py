"""The timings: what fails is listed and not the end; the short table; what is predicted. No test asserts a time."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastreg
from bench import failures
from bench.timings import prediction, providers, short
from bench.timings.cases import Case
from bench.timings.default import DTYPES
from bench.timings.providers import COMPILE, FASTREG, TORCH, Provider
from bench.timings.run import Job, summarise
from tests.bench.bench_fixtures import CPU, brief, one_thread  # noqa: F401

CUDA = torch.device("cuda")
ROOT = Path(__file__).resolve().parents[2]


# What fails


def explode(case):
    raise RuntimeError(f"no kernel for {case.shape}\nand more")


def test_a_case_that_fails_is_skipped_and_listed(brief):  # noqa: F811
    ours = Provider("fastreg", lambda case: explode(case) if case.shape == (9,) else FASTREG.layer(case))
    some = [Case("dropout", "forward", (size,)) for size in (8, 9, 10)]
    job = Job(some, [TORCH, Provider("peer", explode), ours], CPU)
    assert [row["shape"] for rows in job.run() for row in rows if row["provider"] == "torch"] == ["8", "10"]
    assert [failures.describe(failure) for failure in job.failed] == [
        "peer: dropout forward 8 float32 contiguous: RuntimeError: no kernel for (8,)",
        "peer: dropout forward 9 float32 contiguous: RuntimeError: no kernel for (9,)",
        "fastreg: dropout forward 9 float32 contiguous: RuntimeError: no kernel for (9,)",
        "peer: dropout forward 10 float32 contiguous: RuntimeError: no kernel for (10,)",
    ]


def test_a_case_is_listed_while_it_runs(brief):  # noqa: F811
    """So that its name is on disk if it ends the process; an interrupted one has not failed."""
    job = Job([Case("dropout", "forward", (8,))], [TORCH, FASTREG], CPU)
    batches = job.run()
    assert next(batches) == [] and [failure["error"] for failure in job.failed] == [failures.DID_NOT_END]
    batches.close()
    assert job.failed == []


def test_a_broken_device_ends_the_process_after_its_case(monkeypatch):
    def fail(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nlong advice")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    failed = []
    with failures.listed(failed, {"shape": "8"}, CUDA):
        raise RuntimeError("out of memory")
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    message = "all: 9: RuntimeError: no; RuntimeError: CUDA error: an illegal memory access was encountered"
    with pytest.raises(failures.BrokenDevice, match=message), failures.listed(failed, {"shape": "9"}, CUDA):
        raise RuntimeError("no")
    with failures.listed(failed, {"shape": "10"}, CUDA):
        pass  # which takes no look at the device
    assert [failure["shape"] for failure in failed] == ["8", "9"]


HANGS = """
import time, torch
from bench import failures
with failures.listed([], {}, torch.device("cuda"), seconds=0.1):
    time.sleep(600)
"""


def test_a_case_that_hangs_ends_the_process_with_a_traceback():
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "line 5 in <module>" in done.stderr


# The short table


def test_short_table():
    """What a GPU's first minutes are for."""
    everything = short.cases()
    assert len(set(everything)) == len(everything)
    assert {case.op for case in everything} == {"dropout", "batch_norm", "batch_norm_relu"}
    shapes = {(32, 64, 56, 56), (256, 64, 56, 56), (256, 256, 56, 56), (256, 1024, 14, 14), (1024, 256), (32, 100)}
    for op in ("dropout", "batch_norm", "batch_norm_relu"):
        for mode in ("forward", "backward"):
            own = [case for case in everything if (case.op, case.mode) == (op, mode)]
            assert {case.shape for case in own} == shapes and {case.dtype for case in own} == set(DTYPES.values())
            assert len(own) == 3 * (4 * 2 + 2)
    chosen = [providers.PROVIDERS[name] for name in short.PROVIDERS]
    compiled = [case for case in everything if COMPILE in providers.of_case(case, CUDA, chosen, False)]
    assert compiled == short.COMPILED and len(compiled) == 3
    assert everything[0].shape == (256, 256, 56, 56)  # the most telling first
    assert short.SECONDS * len(everything) < 90


@pytest.mark.parametrize(
    ("own", "known"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
    ],
)
def test_time_is_estimated_of_devices_that_are_known(monkeypatch, own, known):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: own)
    asked = []

    def explain(x, backward, device_limits, **how):
        asked.append(device_limits)
        return {"estimate": {"microseconds": 2.0 + backward}}

    monkeypatch.setattr(fastreg, "explain", explain)
    norm = Case("batch_norm_relu", "both", (4, 8), torch.float16)
    assert prediction.estimated_us(norm, CUDA) == (5 if known else None)
    assert set(asked) == ({known} if known else set())
    assert prediction.estimated_us(norm, CPU) is None
    assert prediction.estimated_us(Case("dropout", "forward", (4, 8)), CUDA) is None


def test_what_the_plan_moves_predicts_the_time(monkeypatch):
    monkeypatch.setattr(fastreg, "explain", lambda x, **how: {"bytes_per_element": (2 + how["backward"]) * x.itemsize})
    norm = Case("batch_norm_relu", "both", (4, 8), torch.float16)
    assert prediction.bytes_moved(norm, CUDA) == 5 * 64
    assert prediction.bytes_moved(norm, CPU) is None
    assert prediction.bytes_moved(Case("dropout", "forward", (4, 8)), CUDA) == 2 * 128
    samples = {"copy": [2e-6], "torch": [9e-6], "fastreg": [6e-6]}
    rows = {row["provider"]: row for row in summarise(norm, samples, planned=5 * 64, estimated=7.0)}
    assert rows["fastreg"]["estimated_us"] == 7 and rows["torch"]["estimated_us"] is None
    assert rows["fastreg"]["predicted_us"] == pytest.approx(5) and rows["torch"]["predicted_us"] is None

    def none(x, **how):
        raise RuntimeError("the extension was not built")

    monkeypatch.setattr(fastreg, "explain", none)
    assert prediction.bytes_moved(norm, CUDA) is None
