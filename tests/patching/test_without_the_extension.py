"""patch_torch and python -m fastreg run where no extension was built: nothing is patched unless it is forced."""

import shutil
import sys

import pytest

from tests.patching.test_run import ENVIRONMENT, ROOT, RUN, losses, run

PROGRAM = """\
import sys
import torch
import torch.nn.functional as F
import fastreg
assert fastreg.build_info()["backends"] == []
class Subclass(torch.Tensor): pass
"""


@pytest.fixture
def without(tmp_path):
    """The environment of a process whose fastreg has no extension, and a folder with that fastreg."""
    shutil.copytree(ROOT / "fastreg", tmp_path / "site/fastreg", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    return {**ENVIRONMENT, "PYTHONPATH": str(tmp_path / "site"), "FASTREG_EXPECT": "", "PYTHONWARNINGS": "ignore"}


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "program.py"
        path.write_text(PROGRAM + text)
        return path

    return write


def python(path, environment, *arguments):
    return run(sys.executable, path, *arguments, env=environment, cwd=path.parent)


def test_nothing_is_run(without, script):
    path = script("print('ran')")
    result = run(*RUN, path, env=without, cwd=path.parent)
    assert result.returncode == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert "the extension was not built" in result.stderr and "unless it is forced (--force)" in result.stderr


@pytest.mark.parametrize("options", [[], ["--force"]])
def test_disabled(without, script, options):
    """Not even where it is forced: everything is torch's then."""
    path = script("print('ran')")
    environment = {**ENVIRONMENT, "FASTREG_DISABLE": "1", "FASTREG_EXPECT": ""}
    result = run(*RUN, *options, path, env=environment)
    assert result.returncode == 2 and result.stdout == "" and "FASTREG_DISABLE is set" in result.stderr


def test_patch_torch_refuses(without, script):
    text = """
before = torch._C._dispatch_dump("aten::dropout")
try:
    fastreg.patch_torch()
except RuntimeError as error:
    print(error)
assert torch._C._dispatch_dump("aten::dropout") == before
"""
    result = python(script(text), without)
    assert result.returncode == 0, result.stderr
    assert "patch_torch: the extension was not built" in result.stdout and "unless it is forced" in result.stdout


def test_forced(without, script):
    """Masks are fastreg's, and nothing is left behind."""
    text = """
def state():
    torch.manual_seed(1)
    return fastreg.draw_rng_state()

def seeded(function, *arguments, **keywords):
    torch.manual_seed(1)
    return function(*arguments, **keywords)

from fastreg import patching
operators = [f"aten::{name}" for name in patching._OPERATORS]
before = [torch._C._dispatch_dump(name) for name in operators]
x = (torch.rand(8, 6, 4, 3) + 0.5).requires_grad_()
with fastreg.patch_torch(force=True):
    with fastreg.patch_torch(force=True):
        pass
    for function in (F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout):
        ours = getattr(fastreg.functional, function.__name__)
        expected = ours(x, 0.4, True, rng_state=state())
        y = seeded(function, x, 0.4, True)
        assert torch.equal(y, expected), function
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])
        z = x.detach().clone()
        assert seeded(function, z, 0.4, True, True) is z and torch.equal(z, expected), function
    torch.manual_seed(0)
    attention, lstm = torch.nn.MultiheadAttention(8, 2, 0.5), torch.nn.LSTM(8, 4, 2, dropout=0.5)
    s = torch.rand(5, 3, 8)
    with fastreg.record_rng_states() as states:
        attention(s, s, s), lstm(s)
    assert len(states) == 2
    for left in (x.detach().as_subclass(Subclass), x.detach()[:0]):
        with fastreg.record_rng_states() as states:
            F.dropout(left)
        assert states == []
    assert F.dropout(x, 0.5, False) is x
    compiled = torch.compile(lambda x: F.dropout(x * 1), backend="aot_eager")
    assert set(compiled(torch.ones(100)).tolist()) == {0.0, 2.0}
assert [torch._C._dispatch_dump(name) for name in operators] == before
assert not torch.equal(seeded(F.dropout, x, 0.4, True), fastreg.functional.dropout(x, 0.4, True, rng_state=state()))
try:
    fastreg.unpatch_torch()
except RuntimeError as error:
    print(error)
"""
    result = python(script(text), without)
    assert result.returncode == 0, result.stderr
    assert "unpatch_torch: torch must be patched" in result.stdout


def test_forced_run_reports(without, script):
    text = """
x = torch.ones(32, 100, requires_grad=True)
for _ in range(3):
    F.dropout(x)
F.dropout2d(torch.ones(4, 5, 2, 2, requires_grad=True))
F.dropout(x, training=False)
F.dropout(x.as_subclass(Subclass))
"""
    path = script(text)
    result = run(*RUN, "--report", "--force", path, env=without, cwd=path.parent)
    assert result.returncode == 0, result.stderr
    assert "4 calls taken over, 1 left to torch, 1 with nothing to drop; 37.5 KiB of masks not stored" in result.stderr
    assert "       3  dropout [32, 100] float32  program.py:10\n" in result.stderr
    assert "float32  program.py:13: a tensor that fastreg does not compute with" in result.stderr


def test_forced_program(without):
    """One of other people's kind: the same losses at p = 0, those of other masks at p = 0.5."""
    program = ROOT / "tests/patching/programs/transformer.py"
    plain = losses(run(sys.executable, program, 0.0))
    forced = [losses(run(*RUN, "--force", "--convert", program, p, env=without)) for p in (0.0, 0.5)]
    assert (forced[0] - plain).abs().max() < 1e-4 and forced[1].isfinite().all() and not (forced[1] == plain).all()
