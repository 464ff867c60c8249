"""python -m fastreg run: programs train as without it, and it behaves as Python does."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

PROGRAMS = sorted((Path(__file__).parent / "programs").glob("*.py"))
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
RUN = [sys.executable, "-m", "fastreg", "run"]


def run(*command, **keywords):
    settings = {"capture_output": True, "text": True, "env": ENVIRONMENT, "timeout": 300, **keywords}
    return subprocess.run([str(part) for part in command], **settings)


def losses(result):
    assert result.returncode == 0, result.stderr
    return torch.tensor([float(line) for line in result.stdout.split()], dtype=torch.float64)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_program(program):
    """With p = 0 the same losses but for rounding, which training multiplies; with p = 0.5 those of other masks."""
    plain = losses(run(sys.executable, program, 0.0))
    assert len(plain) >= 3
    result = run(*RUN, "--report", program, 0.0)
    torch.testing.assert_close(losses(result), plain, rtol=1e-3, atol=1e-4)
    dropped = run(*RUN, "--convert", "--report", program, 0.5)
    found = losses(dropped)
    assert found.isfinite().all() and not torch.allclose(found, plain)
    assert "calls taken over" in dropped.stderr and "left to torch:" not in dropped.stderr
    if program.stem not in ("transformer", "lstm", "selfnormalizing", "compiled"):
        assert "batch_norm [" in result.stderr


@pytest.fixture
def script(tmp_path):
    def write(text, name="program.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


INTROSPECTION = """\
import sys, pickle
class Local: pass
class Show: pass
print(sys.argv, __name__, __file__, __package__, __spec__ and __spec__.name, __doc__, sys.path[0])
print(type(pickle.loads(pickle.dumps(Local()))) is Local, sys.modules["__main__"].Local is Local, sorted(globals()))
"""


def test_script_sees_what_it_would(script, tmp_path):
    path = script(INTROSPECTION)
    for cwd, given in ((tmp_path, path.name), (ROOT, path)):
        plain = run(sys.executable, given, "a", "--report", "-m", cwd=cwd)
        ours = run(*RUN, given, "a", "--report", "-m", cwd=cwd)
        assert ours.stdout == plain.stdout and ours.returncode == 0 and ours.stderr == plain.stderr == ""


def test_module_sees_what_it_would(script, tmp_path):
    script(INTROSPECTION, "program.py")
    (tmp_path / "package").mkdir()
    script(INTROSPECTION, "package/__main__.py")
    for name in ("program", "package"):
        plain = run(sys.executable, "-m", name, "a", "b", cwd=tmp_path)
        ours = run(*RUN, "-m", name, "a", "b", cwd=tmp_path)
        assert ours.stdout == plain.stdout and ours.returncode == 0 and ours.stderr == ""
    plain, ours = run(sys.executable, tmp_path / "package"), run(*RUN, tmp_path / "package")
    assert ours.stdout == plain.stdout and ours.returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "import sys\nsys.exit(7)",
        "raise SystemExit('words')",
        "def f():\n    raise ValueError('inside')\nf()",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('chained') from e",
        "this does not compile",
        "raise KeyboardInterrupt",
        "import os\nos._exit(3)",
    ],
)
def test_end_is_pythons(script, text):
    """Status and traceback."""
    path = script(text)
    plain, ours = run(sys.executable, path), run(*RUN, path)
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_report(script):
    path = script(
        """\
        import torch, sys
        from torch.nn import functional as F
        x = torch.ones(32, 100, requires_grad=True)
        for _ in range(3):
            F.dropout(x)
        torch.nn.BatchNorm1d(100)(x)
        F.dropout(x, training=False)
        torch.batch_norm(x, None, None, None, None, True, 0.1, 0.0, False)
        torch.nn.LSTM(100, 4, 2, dropout=0.5)(x)
        if sys.argv[1:]:
            raise KeyboardInterrupt if sys.argv[1] == "interrupted" else ValueError
        """
    )
    for arguments, status in ((), 0), (("interrupted",), -signal.SIGINT), (("failed",), 1):
        result = run(*RUN, "--report", path, *arguments, cwd=path.parent)
        assert result.returncode == status
        text = result.stderr
        assert "5 calls taken over, 1 left to torch, 1 with nothing to drop; 37.9 KiB of masks not stored" in text
        assert "       3  dropout [32, 100] float32  program.py:5\n" in text
        assert "batch_norm [32, 100] float32  program.py:6\n" in text
        assert "batch_norm [32, 100] float32  program.py:8: eps is not positive" in text
        assert "dropout [32, 1, 4] float32  program.py:9" in text


def test_report_counts_what_backward_would_have_kept(script):
    """And has the lines of what was called most first."""
    path = script(
        """\
        import torch
        from torch.nn import functional as F
        x = torch.ones(32, 100, requires_grad=True)
        F.dropout(x)
        for _ in range(2):
            F.dropout(x.detach())
            with torch.no_grad():
                F.dropout(x)
        for _ in range(3):
            F.feature_alpha_dropout(x[..., None], training=False), F.dropout2d(x.view(32, 10, 5, 2))
        """
    )
    result = run(*RUN, "--report", path, cwd=path.parent)
    # In bytes: 4 * 3200 - 16 of elements, three times 4 * 320 - 16 of channels.
    assert "8 calls taken over, 0 left to torch, 3 with nothing to drop; 16.2 KiB of masks not stored" in result.stderr
    counts = [int(line.split()[0]) for line in result.stderr.splitlines() if "program.py:" in line]
    assert counts == [3, 2, 2, 1]


def test_spawned_processes_begin_as_this_one(script):
    """Patched, converted and reported."""
    path = script(
        """\
        import os

        import torch
        from torch import nn

        def work(rank):
            model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
            model(torch.ones(3, 4))
            y = nn.functional.dropout(torch.ones(3, requires_grad=True))
            line = f"{type(model[1]).__module__} {'fastreg' in y.grad_fn.name()}\\n"
            os.write(1, line.encode())  # at once, as the other process writes, too

        if __name__ == "__main__":
            torch.multiprocessing.spawn(work, nprocs=2)
        """
    )
    result = run(*RUN, "--convert", "--report", path)
    assert sorted(result.stdout.split()) == ["True", "True", *["fastreg.nn.batch_norm"] * 2], result.stderr
    assert result.stderr.count("converted: 1 layers replaced") == 2
    assert result.stderr.count("1 calls taken over") == 2 and result.stderr.count("0 calls taken over") == 1
    plain = run(*RUN, path)
    assert sorted(plain.stdout.split()) == ["True", "True", *["torch.nn.modules.batchnorm"] * 2] and plain.stderr == ""


def test_convert(script):
    path = script(
        """\
        import torch
        from torch import nn
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout())
        for _ in range(2):
            model(torch.randn(4, 8)).sum().backward()
        print(type(model[1]).__module__, model(torch.randn(4, 8)).grad_fn.name())
        """
    )
    result = run(*RUN, "--convert", "--report", path)
    assert "fastreg.nn" in result.stdout and "fastreg" in result.stdout.split()[1]
    assert result.stderr.count("converted: 2 layers replaced") == 1 and "1 sites fused" in result.stderr


def test_converted_models_are_saved_as_they_were(script):
    """Also models that are fused, subclasses, and copies, which are converted at their own first call."""
    path = script(
        """\
        import copy, io, pickle
        import torch
        from torch import nn

        class Drop(nn.Dropout):
            pass

        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.norm, self.drop = nn.Linear(8, 8), nn.BatchNorm1d(8), Drop(0.0)

            def forward(self, x):
                return self.drop(torch.relu(self.norm(self.layer(x))))

            def __reduce__(self):
                return made, (type(self), self.__dict__)

        def made(cls, state):
            module = cls.__new__(cls)
            module.__dict__.update(state)
            return module

        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.0), Own())
        x = torch.randn(4, 8)
        model(x).sum().backward()
        model.eval()
        y = model(x)
        converted = [type(m).__module__ for m in model.modules()]
        file = io.BytesIO()
        torch.save(model, file)
        print("fastreg" in str(file.getvalue()))
        copies = [torch.load(io.BytesIO(file.getvalue()), weights_only=False), copy.deepcopy(model)]
        copies += [pickle.loads(pickle.dumps(model, protocol)) for protocol in (0, 2, 5)]
        for other in copies:
            assert type(other[3]) is nn.Dropout and type(other[1]) is nn.BatchNorm1d and type(other) is nn.Sequential
            assert type(other[4]) is Own and type(other[4].drop) is Drop
            assert not any("_fastreg" in str(m.__dict__.keys()) for m in other.modules())
            torch.testing.assert_close(other(x), y)
            assert [type(m).__module__ for m in other.modules()] == converted
        small = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout())
        small(x)
        file = io.BytesIO()
        torch.save(small, file)
        with torch.serialization.safe_globals([nn.Sequential, nn.Linear, nn.BatchNorm1d, nn.Dropout]):
            torch.load(io.BytesIO(file.getvalue()), weights_only=True)(x)
        assert [type(m).__module__ for m in model.modules()] != converted  # it waits for its next call
        torch.testing.assert_close(model(x), y)
        assert [type(m).__module__ for m in model.modules()] == converted
        copy.deepcopy(model[4].norm)  # a part alone
        model.train()(x).sum().backward()
        assert [type(m).__module__ for m in model.modules()] == converted
        """
    )
    result = run(*RUN, "--convert", "--report", path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False"]
    assert result.stderr.count("Sequential, converted: ") == 8  # the model and five copies, the small one and its own


def test_torchrun(script):
    path = script(
        """\
        import os, torch
        y = torch.nn.functional.dropout(torch.ones(3, requires_grad=True))
        print(os.environ["RANK"], "fastreg" in y.grad_fn.name(), flush=True)
        """
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    result = run(*command, "--module", "fastreg", "run", path)
    assert sorted(result.stdout.split("\n")) == ["", "0 True", "1 True"], result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-file.py"], "the script must be a file, got 'no-such-file.py', which does not exist"),
        (["tests"], "a folder or an archive must have a __main__.py, got 'tests'"),
        (["-m", "no_such_module"], "No module named no_such_module"),
        (["-m", "fastreg.functional"], "No module named fastreg.functional.__main__"),
        (["-m"], "-m must be followed by a module, got nothing"),
        (["--unknown", "x.py"], "options must be --convert, --report, --force or -m, got --unknown"),
        ([], "there must be a script or a module to run, got none"),
    ],
)
def test_bad_input(arguments, message):
    result = run(*RUN, *arguments, cwd=ROOT)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_help():
    result = run(*RUN, "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: python -m fastreg run")


def test_tracing_a_model_that_was_not_called(tmp_path):
    """It is traced as it is: a trace is compared with another."""
    (tmp_path / "trace.py").write_text(
        "import copy, torch\n"
        "from torch import nn\n"
        "x = torch.randn(8, 4)\n"
        "for called in (False, True):\n"
        "    m = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()).eval()\n"
        "    if called: m(x); copy.deepcopy(m)\n"
        "    torch.testing.assert_close(torch.jit.trace(m, x)(x), m(x))\n"
        "print('traced')\n"
    )
    result = run(*RUN, "--convert", tmp_path / "trace.py")
    assert result.returncode == 0 and result.stdout == "traced\n", result.stderr
