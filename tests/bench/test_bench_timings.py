"""The timings: what is selected, what a call does, statistics, fairness, memory. No test asserts a time."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.statistics import quantiles
from bench.timings import cpu_peers, default, memory, providers, run, shapes
from bench.timings.cases import Case, Choice
from bench.timings.default import DTYPES, LAYOUTS
from bench.timings.ops import MODES, OPS
from bench.timings.providers import COMPILE, FASTREG, TORCH, Provider
from bench.timings.run import Job, make_inputs, measure, summarise
from bench.timings.workloads import Workload, layer_workload
from tests.bench.bench_fixtures import CPU, brief, one_thread  # noqa: F401

CUDA = torch.device("cuda")
PLENTY = 1 << 50
ROOT = Path(__file__).resolve().parents[2]
SHAPES = {1: (6,), 2: (4, 3), 3: (4, 3, 5), 4: (4, 3, 2, 2), 5: (4, 3, 2, 2, 2)}


def cases(device=CPU, memory=PLENTY, **choice):
    return Choice(**choice).cases(device, memory)[0]


# Which


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_default_set(device):
    everything = cases(device)
    assert len(set(everything)) == len(everything)
    ops = {case.op for case in everything}
    assert ops >= {"dropout", "dropout2d", "alpha_dropout", "drop_path", "relu_dropout", "batch_norm"}
    assert ops >= {"batch_norm_relu", "batch_norm_add_relu", "batch_norm_relu_dropout"}
    modes = {case.mode for case in everything}
    assert modes == set(MODES) - (set() if device == CUDA else {"graph"})
    assert {case.layout for case in everything if case.op == "batch_norm_relu_dropout"} == set(LAYOUTS)
    for case in everything:
        assert len(case.shape) in OPS[case.op].ranks


def test_more_than_the_default_set():
    more = cases(more=True)
    assert set(more) > set(cases()) and len(set(more)) == len(more)
    tensors = {(case.op, case.dtype) for case in more}
    for op in ("batch_norm", "batch_norm_relu", "batch_norm_add_relu", "batch_norm_relu_dropout", "relu_dropout"):
        assert {(op, torch.bfloat16), (op, torch.float16)} <= tensors
    assert {len(case.shape) for case in more if case.op == "batch_norm"} == {2, 3, 4, 5}
    assert {case.mode for case in more if case.shape == (8, 64, 56, 56)} >= {"both", "evaluation"}
    assert cases(more=True, ops=["dropout"], shapes=["8"]) == cases(ops=["dropout"], shapes=["8"])


def test_choice_is_each_with_each():
    chosen = cases(ops=["dropout", "batch_norm"], modes=["both", "evaluation"], shapes=["32x100", "4x8x2x2"],
        dtypes=["fp32", "fp16"], layouts=LAYOUTS)  # fmt: skip
    tensors = 2 * (1 + 2)  # dtypes; layouts, of which a matrix has one
    assert len(chosen) == tensors * (1 + 2)  # dropout does nothing in evaluation
    assert {case.dtype for case in chosen} == {DTYPES["fp32"], DTYPES["fp16"]}
    defaults = {case.shape for case in cases() if case.op == "dropout2d"}
    assert {case.shape for case in cases(ops=["dropout2d"], dtypes=["bf16"])} == defaults


def test_shape_sets():
    assert {shape[0] for shape in shapes.SETS["resnet50-64"]} == {64}
    assert all(len(shape) == 5 for shape in shapes.SETS["unet3d"])
    for itemsize in (2, 4):
        sizes = [torch.Size(shape).numel() * itemsize for shape in shapes.named([shapes.SWEEP], itemsize)]
        assert sizes == sorted(sizes) and (sizes[0], sizes[-1]) == (1 << 10, 1 << 32)
    assert shapes.named(["7x5", "mlp", "32x100"], 4) == [(7, 5), *shapes.SETS["mlp"]]
    for wrong in ("mlps", "3x", "0x3", "-1"):
        with pytest.raises(ValueError, match="must be one of resnet50-32, .*, sweep, or sizes such as .*, got"):
            shapes.check(wrong)


def test_what_does_not_fit_is_left_out():
    fitting, left_out = Choice(ops=["dropout"], modes=["forward"], shapes=["sweep"]).cases(CPU, 1 << 30)
    assert fitting and left_out and len(fitting) + len(left_out) == len(shapes.SWEEP_BYTES)
    assert max(case.tensor_bytes for case in fitting) < min(case.tensor_bytes for case in left_out)
    with pytest.raises(ValueError, match="all need more memory than there is"):
        cases(memory=0)
    with pytest.raises(ValueError, match="no operator takes such tensors in such a mode"):
        cases(ops=["dropout2d"], shapes=["32x100"])
    with pytest.raises(ValueError, match="in such a mode"):
        cases(ops=["dropout"], modes=["graph"])  # of CUDA


@pytest.mark.parametrize(
    ("op", "accesses"),
    [
        ("dropout", {"forward": 2, "backward": 2, "both": 4}),
        ("drop_path", {"forward": 3, "backward": 2, "both": 5}),
        ("batch_norm", {"forward": 2, "backward": 3, "both": 5, "evaluation": 2}),
        ("batch_norm_relu_dropout", {"forward": 2, "backward": 3, "both": 5, "evaluation": 2}),
        ("batch_norm_add_relu", {"forward": 3, "backward": 4, "both": 7, "evaluation": 3}),
        ("relu_dropout", {"forward": 2, "backward": 3, "both": 5}),
    ],
)
def test_necessary_bytes(op, accesses):
    assert OPS[op].accesses == accesses | {"graph": accesses["both"]}
    for mode, count in accesses.items():
        assert Case(op, mode, (32, 100)).necessary_bytes == count * 3200 * 4
        assert Case(op, mode, (2, 3, 4, 5), torch.bfloat16).necessary_bytes == count * 120 * 2


# Whose


@pytest.mark.parametrize("op", OPS)
def test_both_sides_compute_the_same(op):
    """In evaluation, and in training where nothing is drawn; the layers are the comparison's two sides."""
    definition = OPS[op]
    for rank in definition.ranks:
        torch.manual_seed(0)
        shape = SHAPES[rank]
        inputs = [torch.randn(shape) for _ in range(1 + definition.residual)]
        ours, theirs = (layer(shape) for layer in (definition.fastreg, definition.torch))
        drawn = any(word in op for word in ("drop", "alpha"))
        if not drawn:
            torch.testing.assert_close(ours(*inputs), theirs(*inputs))
        if op != "drop_path":
            torch.testing.assert_close(ours.eval()(*inputs), theirs.eval()(*inputs))
        if drawn:
            big = (64, *shape[1:]) if rank > 1 else (4096,)
            inputs = [torch.rand(big) + 1 for _ in range(1 + definition.residual)]
            results = [layer(big).train()(*inputs) for layer in (definition.fastreg, definition.torch)]
            kept = [(result != (inputs[1] if definition.residual else 0)).double().mean() for result in results]
            if "alpha" not in op:
                assert abs(kept[0] - kept[1]) < 0.35


def test_absent_providers_are_told(monkeypatch):
    inductor = dict(providers.PROVIDERS)
    missing = Provider("missing", TORCH.layer, module="no_such_module")
    monkeypatch.setattr(providers, "PROVIDERS", {p.name: p for p in (TORCH, missing, FASTREG)})
    found, absent = providers.choose(None)
    assert found == [TORCH, FASTREG]
    assert absent == {"missing": "cannot import no_such_module: No module named 'no_such_module'"}
    assert providers.choose(["torch"]) == ([TORCH, FASTREG], {})
    assert providers.choose(["fastreg"]) == ([FASTREG], {})
    with pytest.raises(ValueError, match="--providers must be installed: missing: cannot import no_such_module"):
        providers.choose(["missing"])
    optional = Provider("optional", TORCH.layer, option="no.such_option", by_name=True)
    assert "has no such option of inductor: no.such_option" in optional.absence()
    assert inductor["compile_cooperative"].absence() is None
    aligned = inductor["compile_aligned_random"].absence()  # of torch 2.13, not of 2.11
    assert aligned is None if torch.__version__ >= "2.13" else aligned is None or "align_random_eager" in aligned
    monkeypatch.setattr(providers, "PROVIDERS", {p.name: p for p in (TORCH, optional, FASTREG)})
    assert providers.choose(None) == ([TORCH, FASTREG], {})  # what takes long to prepare is not even looked for


def test_who_is_timed_where():
    known = [
        provider for provider in providers.PROVIDERS.values() if provider not in (*cpu_peers.PEERS, *cpu_peers.INDUCTOR)
    ]

    def names(case, device=CUDA, everything=False):
        return [p.name for p in providers.of_case(case, device, known, everything)]

    image = (32, 64, 56, 56)
    norm = Case("batch_norm", "both", image)
    assert names(norm, CPU) == ["torch", "compile", "inplace_abn", "fastreg"]
    assert names(norm) == [
        *("torch", "torch_without_cudnn", "compile", "inplace_abn", "compile_cooperative", "flag_gems", "fastreg")
    ]
    half = Case("batch_norm", "both", image, torch.bfloat16, "channels_last")
    assert {"cudnn", "helion"} <= set(names(half)) and "cudnn" not in names(norm)
    assert "apex" in names(Case("batch_norm_add_relu", "both", image, torch.float16, "channels_last"))
    assert names(Case("batch_norm", "forward", image), CPU) == ["torch", "inplace_abn", "fastreg"]
    assert "compile" in names(Case("dropout", "forward", image), CPU, everything=True)
    drawn = ["torch", "triton", "compile_aligned_random", "flag_gems", "helion", "fastreg"]
    assert names(Case("dropout", "both", (8,))) == drawn
    with providers.PROVIDERS["torch_without_cudnn"].settings():
        assert not torch.backends.cudnn.enabled
    with TORCH.settings():
        assert torch.backends.cudnn.enabled


# How


def test_quantiles_interpolate():
    assert quantiles([5, 1, 4, 2, 3]) == pytest.approx([1.8, 3, 4.2])
    assert quantiles([7]) == [7, 7, 7]


def test_ratio_is_paired_by_round():
    samples = {"copy": [1e-6, 1e-6, 1e-6], "torch": [2e-6, 40e-6, 9e-6], "fastreg": [1e-6, 10e-6, 3e-6]}
    rows = {row["provider"]: row for row in summarise(Case("batch_norm", "backward", (10, 25)), samples)}
    assert rows["torch"]["ratio"] == pytest.approx(3)  # of 2, 4 and 3; the medians' ratio is 3 as well, so also:
    assert rows["torch"]["ratio_80"] == pytest.approx(3.6)
    assert rows["fastreg"]["ratio"] == 1
    assert rows["fastreg"]["us"] == pytest.approx(3)
    assert rows["fastreg"]["bytes"] == 3 * 1000
    assert rows["fastreg"]["gb_per_s"] == pytest.approx(3 * 1000 / 3e-6 / 1e9)
    assert rows["copy"]["gb_per_s"] == pytest.approx(2 * 1000 / 1e-6 / 1e9)
    assert rows["fastreg"]["of_copy"] == pytest.approx(0.5)


def test_rounds_alternate_the_order_and_walk_the_pools():
    calls = []
    workloads = {name: Workload(lambda entry, name=name: calls.append((name, entry)), range(3)) for name in ("a", "b")}
    low, high = run.ROUNDS
    samples = run.rounds(workloads, {"a": 1, "b": 2}, CPU, deadline=0)
    assert {name: len(times) for name, times in samples.items()} == {"a": low, "b": low}
    assert calls[:6] == [("a", 0), ("b", 0), ("b", 1), ("b", 2), ("b", 0), ("a", 1)]
    assert low < high


@pytest.mark.parametrize("provider", [TORCH, FASTREG], ids=lambda provider: provider.name)
@pytest.mark.parametrize("case", [case for case in Choice().cases(CPU, PLENTY, quick=True)[0]], ids=str)
def test_steps_do_what_the_case_says(case, provider, monkeypatch):
    monkeypatch.setitem(run.POOL_BYTES, "cpu", 0)
    inputs = make_inputs(case, CPU)
    assert len(inputs) == 2 and all(len(entry) == 1 + case.definition.residual for entry in inputs)
    with torch.set_grad_enabled(case.mode != "evaluation"):
        layer = provider.layer(case)
        workload = layer_workload(case, provider, inputs, layer)
        if case.mode in ("backward", "both"):
            assert next(workload._next)[-1].is_contiguous(
                memory_format=case.memory_format
            )  # the gradient that comes in
        asked = []
        trained = case.mode in ("backward", "both")
        for entry in inputs:
            for x in entry:
                assert x.requires_grad == (case.mode != "evaluation")
                if x.requires_grad:
                    x.register_hook(lambda dx: asked.append(dx.is_contiguous(memory_format=case.memory_format)))
        assert workload.seconds_per_call(4, CPU) > 0
    assert layer.training == (case.mode != "evaluation")
    assert asked == [True] * (4 * len(inputs[0]) if trained else 0)


def test_what_overwrites_its_input_can_be_timed(brief):  # noqa: F811
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, input):
            return input.mul_(2) * self.weight

    provider = Provider("in_place", lambda case: InPlace(), in_place=True)
    samples, columns = measure(Case("batch_norm", "both", (4, 3)), [provider, FASTREG], CPU, 0)
    assert len(samples["in_place"]) == 2
    assert columns["in_place"]["saved_bytes"] is None


def test_a_peer_that_fails_is_left_out_and_told(brief, capsys):  # noqa: F811
    def fail(case):
        raise RuntimeError("no such kernel")

    case = Case("dropout", "forward", (8,))
    samples, _ = measure(case, [Provider("broken", fail), FASTREG], CPU, 0)
    assert set(samples) == {"copy", "fastreg"}
    assert "broken failed: dropout forward 8 float32 contiguous: no such kernel" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="no such kernel"):
        measure(case, [Provider("fastreg", fail)], CPU, 0)


def test_compiled_code_is_timed_compiled(brief, monkeypatch):  # noqa: F811
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    limit = torch._dynamo.config.recompile_limit
    for size in range(8, 10 + limit):
        measure(Case("dropout", "forward", (size,)), [COMPILE, FASTREG], CPU, 0)
        assert len(compiled) == size - 7


def test_job_leaves_out_what_is_done(brief):  # noqa: F811
    some = [Case("dropout", mode, (8,)) for mode in ("forward", "backward", "both")]
    job = Job(some, [TORCH, FASTREG], CPU, done={some[1].key})
    assert [row["mode"] for rows in job.run() for row in rows if row["provider"] == "copy"] == ["forward", "both"]


# Memory


def test_saved_bytes():
    x = torch.randn(64, 32, requires_grad=True)
    assert memory.saved_bytes(nn.ReLU(), (x,)) == x.nbytes
    assert memory.saved_bytes(nn.Linear(32, 8), (x,)) == x.nbytes  # and not the weight
    assert memory.saved_bytes(FASTREG.layer(Case("dropout", "both", x.shape)), (x,)) == 16
    norm = memory.saved_bytes(TORCH.layer(Case("batch_norm", "both", x.shape)), (x,))
    assert x.nbytes < norm < 1.2 * x.nbytes  # and the statistics


def test_peak_bytes():
    x = torch.ones(1000)

    def two_at_a_time():
        y = x + 1
        z = y + 1
        del y
        return z + 1

    assert memory.peak_bytes(two_at_a_time, CPU) == pytest.approx(2 * x.nbytes, rel=0.1)
    assert memory.peak_bytes(lambda: x.add_(1), CPU) < x.nbytes
    assert memory.launches(two_at_a_time, CPU) is None


def test_default_tables_parse():
    assert default._parse("dropout 8 2x3 fp32,bf16 contiguous") == [
        ("dropout", (8,), torch.float32, "contiguous"),
        ("dropout", (2, 3), torch.float32, "contiguous"),
        ("dropout", (8,), torch.bfloat16, "contiguous"),
        ("dropout", (2, 3), torch.bfloat16, "contiguous"),
    ]


TRITON = """
import torch
from bench.timings.triton_dropout import TritonDropout
x = torch.ones(3000, requires_grad=True)
y = TritonDropout(0.25)(x)
y.sum().backward()
assert torch.equal(y, x.grad), "backward draws another mask"
assert 0.7 < (y != 0).double().mean() < 0.8
assert torch.allclose(y[y != 0], torch.tensor(4 / 3))
"""


HELION = """
import torch
from bench.timings.helion_layers import HelionBatchNorm, HelionDropout
x, dy = torch.randn(64, 48, requires_grad=True), torch.randn(64, 48)
results = []
for layer in (HelionBatchNorm(48), torch.nn.BatchNorm1d(48)):
    y = layer(x)
    results.append((y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)))
torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
x = torch.ones(3000, requires_grad=True)
y = HelionDropout(0.25)(x)
y.sum().backward()
assert torch.equal(y, x.grad), "backward draws another mask"
assert 0.7 < (y != 0).double().mean() < 0.8
"""


@pytest.mark.helion
def test_helion_layers():
    """In Helion's interpreter, on the CPU."""
    environ = os.environ | {"HELION_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", HELION], cwd=ROOT, env=environ, check=True)


@pytest.mark.triton
def test_triton_dropout():
    """In Triton's interpreter, on the CPU."""
    environ = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", TRITON], cwd=ROOT, env=environ, check=True)


FAULTS = """
import resource
import torch
from bench import allocator

x = torch.zeros(16 << 20)
x.clone()
print(allocator.keep_freed_memory())
for _ in range(16):  # until the heap has found its size
    x.clone()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    x.clone()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept():
    """In a process of its own, as it is for good: copies of 64 MiB take no new pages."""
    output = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout.split()
    assert output[0] == "False" or int(output[1]) < 1000  # of 163 840
