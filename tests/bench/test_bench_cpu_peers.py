"""The peers on the CPU compute what torch's layers do, and are timed where they can be."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bench.timings import cpu_peers, onednn_library, providers
from bench.timings.cases import Case
from bench.timings.ops import P
from bench.timings.run import Job
from tests.bench.bench_fixtures import CPU, brief, one_thread  # noqa: F401

NORMS = [
    Case(op, "both", shape, dtype, layout)
    for op in ("batch_norm", "batch_norm_relu")
    for dtype in (torch.float32, torch.bfloat16)
    for shape in ((32, 100), (8, 16, 50), (8, 32, 14, 14), (2, 16, 4, 4, 4))
    for layout in (("contiguous", "channels_last") if len(shape) > 3 else ("contiguous",))
]
# Sums of some hundred values in another order; in bfloat16 the results' last of 8 bits.
TOLERANCE = {torch.float32: {"atol": 1e-4, "rtol": 1e-5}, torch.bfloat16: {"atol": 2e-2, "rtol": 1e-2}}


def name(case):
    return "-".join(case.key)


def expected(case, x, dy):
    """y, dx, dweight and dbias in double precision."""
    x, channels = x.double().requires_grad_(), case.shape[1]
    weight, bias = (make(channels, dtype=torch.double, requires_grad=True) for make in (torch.ones, torch.zeros))
    y = F.batch_norm(x, None, None, weight, bias, training=True)
    y = y.relu() if "relu" in case.op else y
    return y, *torch.autograd.grad(y, [x, weight, bias], dy.double())


def check(case, found, x, dy):
    for mine, right in zip(found, expected(case, x, dy), strict=True):
        torch.testing.assert_close(mine.double(), right, **TOLERANCE[case.dtype])


def tensors(case):
    torch.manual_seed(0)
    make = lambda: torch.randn(case.shape).to(case.dtype).contiguous(memory_format=case.memory_format)  # noqa: E731
    return make(), make()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_mkldnn(dtype):
    case = Case("batch_norm", "both", (8, 32, 14, 14), dtype)
    provider = providers.PROVIDERS["torch_mkldnn"]
    assert provider.takes(case, CPU)
    x, dy = tensors(case)
    layer, own = provider.layer(case), provider.own(x).requires_grad_()
    y = layer(own)
    assert y.layout is torch._mkldnn
    found = torch.autograd.grad(y, [own, layer.weight, layer.bias], provider.own(dy))
    check(case, [each.to_dense() if each.layout is torch._mkldnn else each for each in (y, *found)], x, dy)
    layer.eval()
    assert layer(own.detach()).layout is torch._mkldnn


@pytest.mark.parametrize("op", ["batch_norm", "batch_norm_relu", "batch_norm_relu_dropout"])
def test_functions_of_tensors(op, brief):  # noqa: F811
    case = Case(op, "both", (64, 32, 4, 4))
    layer, theirs = cpu_peers._functional(case), case.definition.torch(case.shape)
    x, _ = tensors(case)
    if "dropout" in op:
        share = (layer(x) == 0).double().mean().item()
        assert abs(share - (1 - (1 - P) / 2)) < 0.02  # relu drops half, dropout P of the rest
    else:
        torch.testing.assert_close(layer(x), theirs(x))
    for evaluated in (layer.eval(), theirs):
        evaluated.eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), [*layer.state_dict().values(), torch.tensor(1)], strict=True)))
    torch.testing.assert_close(layer(x), theirs(x))


def test_who_is_timed_where():
    everything = list(providers.PROVIDERS.values())

    def names(case, device=CPU):
        return {p.name for p in providers.of_case(case, device, everything, True)} & {p.name for p in cpu_peers.PEERS}

    blocked = {"onednn_blocked", "onednn_blocked_given"}
    plain = {"onednn", "onednn_given"}
    image = (8, 32, 14, 14)
    assert names(Case("batch_norm", "both", image)) == {"torch_mkldnn", *plain, *blocked}
    assert names(Case("batch_norm", "both", image, layout="channels_last")) == plain
    assert names(Case("batch_norm_relu", "evaluation", image, torch.bfloat16)) == plain | blocked
    assert names(Case("batch_norm", "both", (8, 20, 14, 14))) == {"torch_mkldnn", *plain}
    assert names(Case("batch_norm", "both", (32, 100))) == names(Case("dropout", "both", (8,))) == plain
    for case in (Case("batch_norm", "both", image, torch.float16), Case("batch_norm_add_relu", "both", image)):
        assert not names(case)
    assert not names(Case("batch_norm", "both", image), torch.device("cuda"))


def test_where_onednn_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(onednn_library.sys, "prefix", str(tmp_path))
    monkeypatch.setenv("DNNLROOT", str(tmp_path / "named"))
    for folder, version in (("named", (2, 6)), (".", (3, 13))):
        (tmp_path / folder / "include/oneapi/dnnl").mkdir(parents=True)
        (tmp_path / folder / "lib").mkdir()
        lines = "".join(f"#define DNNL_VERSION_{n} {v}\n" for n, v in zip(("MAJOR", "MINOR"), version, strict=True))
        (tmp_path / folder / "include/oneapi/dnnl/dnnl_version.h").write_text(lines)
    with pytest.raises(ImportError, match="pip install onednn onednn-devel") if not _installed() else nullcontext():
        onednn_library.root()
    for folder in ("named", "."):
        (tmp_path / folder / "lib/libdnnl.so").touch()
    with pytest.raises(ImportError, match=f"^oneDNN must be 3.13 or later, got 2.6 in {tmp_path}/named$"):
        onednn_library.root()
    monkeypatch.delenv("DNNLROOT")
    assert onednn_library.root() == tmp_path


def _installed():
    """For all of the system."""
    return any(Path(folder, "lib/libdnnl.so").exists() for folder in ("/usr/local", "/usr"))


def test_what_does_not_compile_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(onednn_library, "BUILT", tmp_path / "built")
    with pytest.raises(ImportError, match="^onednn.cpp does not compile: .*error.*dnnl.hpp"):
        onednn_library.build(tmp_path)
    assert not list((tmp_path / "built").iterdir())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ImportError, match="must be compiled, and there is no no-such-compiler"):
        onednn_library.build(tmp_path)


# oneDNN itself


@pytest.mark.onednn
@pytest.mark.parametrize("case", NORMS, ids=name)
def test_onednn_batch_norm(case):
    from bench.timings import onednn

    x, dy = tensors(case)
    for empty in (onednn.allocated, onednn.Given()):
        norm = onednn.operator(case, empty=empty)
        kept = norm.forward(x)
        check(case, (kept[0], *norm.backward(x, dy, kept)), x, dy)
    evaluation = onednn.operator(Case(case.op, "evaluation", case.shape, case.dtype, case.layout))
    y = evaluation.forward(x)[0]
    torch.testing.assert_close(y, x.relu() if "relu" in case.op else x, atol=1e-4, rtol=1e-2)


@pytest.mark.onednn
def test_onednn_in_blocks_of_channels():
    """Which are moved apart and together again here."""
    from bench.timings import onednn

    case = Case("batch_norm_relu", "both", (4, 32, 6, 6))
    x, dy = tensors(case)
    block = lambda t: t.view(4, 2, 16, 36).transpose(2, 3).contiguous()  # noqa: E731
    unblock = lambda t: t.reshape(4, 2, 36, 16).transpose(2, 3).reshape(case.shape)  # noqa: E731
    norm = onednn.operator(case, blocked=True)
    kept = norm.forward(block(x))
    dx, dweight, dbias = norm.backward(block(x), block(dy), kept)
    check(case, (unblock(kept[0]), unblock(dx), dweight, dbias), x, dy)


@pytest.mark.onednn
@pytest.mark.parametrize("shape", [(1 << 16,), (256, 256), (4, 16, 32, 32)], ids=str)
def test_onednn_dropout(shape):
    from bench.timings import onednn

    case = Case("dropout", "both", shape)
    dropout, x = onednn.operator(case), torch.ones(shape)
    y, seed = dropout.forward(x)
    assert set(y.unique().tolist()) == {0, 1 / (1 - P)} and abs((y == 0).double().mean().item() - P) < 0.01
    assert torch.equal(dropout.backward(x, x, (y, seed)), y)
    assert not torch.equal(dropout.forward(x)[0], y)


@pytest.mark.onednn
@pytest.mark.parametrize("mode", ["forward", "backward", "both", "evaluation"])
def test_onednn_is_timed(mode, brief):  # noqa: F811
    names = [provider.name for provider in cpu_peers.PEERS] + ["fastreg"]
    chosen = [providers.PROVIDERS[name] for name in names]
    job = Job([Case("batch_norm", mode, (4, 16, 6, 6)), Case("batch_norm_relu", mode, (4, 16, 6, 6))], chosen, CPU)
    rows = [row for batch in job.run() for row in batch]
    assert not job.failed
    assert {row["provider"] for row in rows if row["op"] == "batch_norm"} == {"copy", *names}
