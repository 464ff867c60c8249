"""A rehearsal of `python -m tests.gpu_check` without a GPU: nvidia-smi, device, clock and every command are fakes, all
else is real; and with bugs planted, each of which must cost its own file or phase and be named."""

import json
import signal
from pathlib import Path

import pytest

from tests.gpu_check import __main__ as command
from tests.gpu_check import builds, bundle, cpp_tests, environment, machine, plan, python_tests
from tests.gpu_check.gpu_check_jobs import CPU, GPU, HANGS, FakeSystem, Script, records

DRIVER = "Abacus 9000, 580.1, 143771 MiB, 4 MiB, 1980 MHz, 3201 MHz, 345 MHz, 700 W, 30, Enabled, Enabled, 0 %\n"
INFO = json.dumps({"backends": ["cpu", "cuda"]})
CPP = "running one\nok one: 3 expectations, 0 failed, 0.01 s\n1 tests, 0 failed, 0 cut short\n"
CLEAN = "========= ERROR SUMMARY: 0 errors\n"


def words_after(command, option):
    words = command.split()
    return words[words.index(option) + 1]


def write_journal(command, *lines):
    """What the plugin of pytest notes; by default of one test that passes."""
    lines = lines or ({"collected": 1}, {"begin": "f::a"}, {"end": "f::a", "outcome": "passed"})
    Path(words_after(command, "--journal")).write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_timings(command, complete=True, rows=1, failed=()):
    folder, name = Path(words_after(command, "--out")), words_after(command, "--only")
    described = {"backend": "cuda", "device": GPU["device"], "fastreg_kernels": True}
    document = {"complete": complete, "environment": described, "rows": [{}] * rows, "failed": list(failed)}
    partial = folder / f"{name}.partial.json"
    partial.unlink(missing_ok=True) if complete else None
    (folder / f"{name}.json" if complete else partial).write_text(json.dumps(document))


class Rehearsal:
    """A machine with a GPU. __call__: the command with arguments: (exit status, what it printed)."""

    def __init__(self, folder, capsys):
        self.out, self.root, self._capsys = folder / "out", folder, capsys
        self.binary = folder / "build/gpu_check/abacus-9000/cmake/kernels_on_device"
        self.system = self.fresh()

    def fresh(self, *planted):
        """A machine on which everything works, but what is planted; time begins anew."""
        scripts = [
            ("nvidia-smi", Script(1, DRIVER)),
            ("--version", Script(1, "release 13.0\nbuild 7\n")),
            ("setup.py build_ext", Script(100, effect=lambda command: (builds.ROOT / "fastreg/_C.so").touch())),
            ("import fastreg", Script(3, INFO)),
            ("^cmake --build", Script(90, effect=lambda command: self.binary.touch())),
            ("^cmake -S", Script(3, effect=lambda command: self.binary.parent.mkdir(parents=True, exist_ok=True))),
            ("compute-sanitizer --tool", Script(12, CPP + CLEAN)),
            ("kernels_on_device --group", Script(4, CPP)),
            ("-m pytest", Script(20, effect=write_journal)),
            ("bench --only short", Script(80, effect=write_timings)),
            ("bench --only", Script(40, effect=write_timings)),
        ]
        self.system = FakeSystem(*planted, *scripts)
        return self.system

    def __call__(self, *arguments):
        status = command.main(["--out", str(self.out), "--cores", "16", *map(str, arguments)], self.system)
        return status, self._capsys.readouterr().out

    @property
    def phases(self):
        return records(self.out)

    def statuses(self):
        return {name: record["status"] for name, record in self.phases.items()}

    def failed(self):
        return [line for record in self.phases.values() for line in record["failed"]]


@pytest.fixture
def rehearsal(tmp_path, monkeypatch, capsys):
    handlers = {number: signal.getsignal(number) for number in command.SIGNALS}
    for name in ("nvidia-smi", "nvcc", "compute-sanitizer"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
    (tmp_path / "fastreg").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(machine, "probe", lambda: GPU)
    monkeypatch.setattr(machine, "missing", lambda names: None)
    monkeypatch.setattr(machine, "find_nvcc", lambda: tmp_path / "bin/nvcc")
    monkeypatch.setattr(machine, "find_sanitizer", lambda: tmp_path / "bin/compute-sanitizer")
    monkeypatch.setattr(machine, "describe_sources", lambda: {"commit": "c", "modified": False, "fingerprint": "f"})
    monkeypatch.setattr(builds, "ROOT", tmp_path)
    bundle.describe.cache_clear()
    work = tmp_path / "build"
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "requirements", lambda extra: ["pytest"])
    work.mkdir()
    yield Rehearsal(tmp_path, capsys)
    for number, handler in handlers.items():
        signal.signal(number, handler)


ALL = [phase.name for phase in plan.PHASES]


def test_everything_in_order_within_a_budget(rehearsal):
    status, output = rehearsal("--budget", 560)
    assert status == 0, output
    assert rehearsal.statuses() == dict.fromkeys(ALL, "done") and rehearsal.failed() == []
    assert rehearsal.system.now() - 1000 < 560
    begun = dict(reversed([(text.split()[-1], when) for when, text in rehearsal.system.started]))
    short = next(when for when, text in rehearsal.system.started if "--only short" in text)
    assert short < 140 and len(begun) > 50
    units = rehearsal.phases["environment"]["units"]["environment"]["results"]
    assert units["driver"][0]["name"] == "Abacus 9000" and units["nvcc"] == ["release 13.0", "build 7"]
    assert len(rehearsal.phases["tests.cpp"]["units"]) == len(cpp_tests.groups())
    assert len(rehearsal.phases["tests.python"]["units"]) == len(python_tests.files())
    assert {path.name for path in rehearsal.out.iterdir()} == {
        *("gpu_check.json", "logs.txt", "short.json", "timings.json", "end-to-end.json", "training.json")
    }
    assert "done: tests.cpp: 13 done; 13 passed" in output.splitlines()


def test_the_builds_are_side_by_side_and_nothing_is_beside_what_is_timed(rehearsal):
    rehearsal("--budget", 560)
    started = rehearsal.system.started
    assert next(when for when, text in started if "setup.py" in text) == 0
    assert next(when for when, text in started if "cmake -S" in text) == 0
    short = next(when for when, text in started if "--only short" in text)
    assert [text for when, text in started if short < when < short + 80] == []


def test_the_dry_run_prints_the_plan_and_runs_nothing(rehearsal, monkeypatch):
    monkeypatch.setattr(machine, "probe", lambda: CPU)
    status, output = rehearsal("--dry-run", "--budget", 560)
    assert status == 0 and rehearsal.system.started == [] and not rehearsal.out.exists()
    assert [line.split()[0] for line in output.splitlines() if not line.startswith(" ")][1:-1] == ALL
    assert "racecheck: fused teams" in " ".join(output.split())


@pytest.mark.parametrize("budget", [20, 90, 150, 240, 300, 420])
def test_any_budget_is_kept_and_what_is_worth_most_comes_first(rehearsal, budget):
    rehearsal("--budget", budget)
    assert rehearsal.system.now() - 1000 <= budget and rehearsal.system.left == []
    done = [name for name in ALL if rehearsal.statuses().get(name) == "done"]
    worth = [name for name in ALL if name in done]
    assert done == worth and ("bench.short" in done) == (budget >= 240)


def test_a_second_call_goes_on(rehearsal):
    rehearsal("--budget", 300)
    first = rehearsal.statuses()
    assert first["bench.short"] == "done" and "cut short" in first.values()
    rehearsal.fresh()
    status, _ = rehearsal("--resume", "--budget", 560)
    assert status == 0 and set(rehearsal.statuses().values()) == {"done"}
    assert rehearsal.system.commands("setup.py|^cmake|--only short") == []


def test_on_a_fresh_machine_a_second_call_builds_again_and_no_more(rehearsal):
    """Where the results were carried over, and the builds were not."""
    rehearsal("--budget", 300)
    rehearsal.binary.unlink()
    (builds.ROOT / "fastreg/_C.so").unlink()
    rehearsal.fresh()
    assert rehearsal("--resume")[0] == 0
    assert rehearsal.system.commands("setup.py") and rehearsal.system.commands("cmake --build")
    assert rehearsal.system.commands("--group|--only short") == []


def test_a_bundle_saves_the_builds(rehearsal, monkeypatch):
    monkeypatch.setattr(bundle, "misfit", lambda job, name: None)
    monkeypatch.setattr(bundle, "describe", lambda folder: {"extension": {"file": "_C.so"}})
    folder = rehearsal.root / "bundle"
    folder.mkdir()
    for name in ("_C.so", "kernels_on_device"):
        (folder / name).write_text("compiled elsewhere")
    status, output = rehearsal("--bundle", folder)
    assert status == 0 and rehearsal.system.commands("setup.py|^cmake") == []
    assert "done: build.extension: backends cpu, cuda; from the bundle" in output
    assert rehearsal.binary.read_text() == (builds.ROOT / "fastreg/_C.so").read_text() == "compiled elsewhere"


def test_a_bundle_that_does_not_load_is_no_loss(rehearsal, monkeypatch):
    test_a_bundle_saves_the_builds(rehearsal, monkeypatch)
    system = rehearsal.fresh()
    once = Script(2, "ImportError: GLIBC_2.99 not found\n", 1, lambda command: system.scripts.pop(0))
    system.scripts.insert(0, ("import fastreg", once))
    status, output = rehearsal("--bundle", rehearsal.root / "bundle")
    assert status == 0 and "built here (the extension does not load: ImportError: GLIBC_2.99 not found)" in output


def test_without_a_gpu_the_rest_is_left_out(rehearsal, monkeypatch):
    monkeypatch.setattr(machine, "probe", lambda: CPU)
    rehearsal.fresh(("nvidia-smi", Script(1, "NVIDIA-SMI has failed", 9)))
    status, output = rehearsal()
    assert status == 0
    statuses = rehearsal.statuses()
    assert statuses.pop("environment") == statuses.pop("build.extension") == "done"
    assert set(statuses.values()) == {"left out"} and "left out: tests.cpp: needs a GPU" in output
    rehearsal.out = rehearsal.root / "other"
    rehearsal.fresh()
    assert rehearsal()[0] == 1
    assert "nvidia-smi lists Abacus 9000, which torch 2.0, CUDA None does not see" in rehearsal.failed()[0]


# Planted


def only(rehearsal, *phases):
    """All that failed is of these phases; the others are done."""
    statuses = rehearsal.statuses()
    assert {name for name, status in statuses.items() if status != "done"} == set(phases)
    assert set(statuses) == set(ALL)


def test_planted_a_kernel_that_faults(rehearsal):
    """In a C++ file, a Python file and a benchmark case."""
    broken = (
        "running merge\nFAILED merge: 1 expectations, 1 failed, 0.1 s\nthe device is broken after merge: an illegal "
    )
    broken += "memory access was encountered\n1 tests, 1 failed, 0 cut short\n"
    case = {"op": "dropout", "shape": "8", "provider": "fastreg", "error": "CUDA error: misaligned address"}
    message = (
        "!!! the device is broken after tests/functional/test_fused.py::test_x: CUDA error: misaligned address !!!\n"
    )

    def noted(command):
        write_journal(
            command,
            {"collected": 2},
            {"begin": "test_fused.py::test_x"},
            {"end": "test_fused.py::test_x", "outcome": "failed"},
        )

    breaks = iter([False, True])
    rehearsal.fresh(
        ("--group batch_norm_merge_test", Script(2, broken, 1)),
        ("-m pytest tests/functional/test_fused.py", Script(9, message, 1, noted)),
        ("--only timings.*--resume", Script(30, "", 1, lambda c: write_timings(c, next(breaks) or True, 9, [case]))),
        ("--only timings", Script(10, "", 3, lambda c: write_timings(c, False, 4, [case]))),
    )
    status, output = rehearsal("--budget", 560)
    assert status == 1
    only(rehearsal, "tests.cpp", "tests.python", "bench.timings")
    assert rehearsal.failed() == [
        "tests.cpp: batch_norm_merge_test: merge",
        "tests.cpp: batch_norm_merge_test: the device is broken after merge: an illegal memory access was encountered",
        "tests.python: functional/test_fused.py: the device is broken after tests/functional/test_fused.py::test_x: "
        "CUDA error: misaligned address",
        "bench.timings: fastreg: dropout 8: CUDA error: misaligned address",
    ]
    for line in rehearsal.failed()[:3]:
        assert line in output
    assert len(rehearsal.system.commands("--only timings")) == 2  # the second goes on after the case
    units = rehearsal.phases["tests.python"]["units"]
    assert [name for name, part in units.items() if part["status"] != "done"] == ["functional/test_fused.py"]


def test_planted_a_kernel_that_never_ends(rehearsal):
    """It heeds no interrupt, either."""
    hangs = {"collected": 3}, {"begin": "f::a"}, {"end": "f::a", "outcome": "passed"}, {"begin": "f::spins"}
    rehearsal.fresh(
        ("compute-sanitizer --tool racecheck.*teams", Script(HANGS, "running teams\n", deaf=HANGS)),
        ("--group dropout_test", Script(HANGS, "running spins\n", deaf=HANGS)),
        ("test_cuda.py", Script(HANGS, deaf=HANGS, at_start=lambda command: write_journal(command, *hangs))),
        ("--only end-to-end", Script(HANGS, deaf=HANGS, at_start=lambda c: write_timings(c, False, 2))),
    )
    status, output = rehearsal("--budget", 900)
    assert status == 1 and rehearsal.system.left == []
    failed = rehearsal.failed()
    assert f"tests.cpp: dropout_test: spins: ran past the limit of {cpp_tests.SECONDS} s" in failed
    assert f"tests.python: cuda/test_cuda.py: ran past the limit of {python_tests.SECONDS} s in f::spins" in failed
    assert any(line.startswith("sanitizer: racecheck: fused teams: racecheck gave no summary") for line in failed)
    assert any(line.startswith("bench.end-to-end") and "2 rows are kept" in line for line in failed)
    assert rehearsal.statuses()["bench.timings"] == rehearsal.statuses()["bench.training"] == "done"
    assert all(line in output for line in failed if line.startswith("tests"))


def test_planted_a_missing_package(rehearsal, monkeypatch):
    def missing(names):
        return "missing: matplotlib. Remedy: pip install matplotlib" if "bench-extra" in names else None

    monkeypatch.setattr(machine, "missing", missing)
    monkeypatch.setattr(machine, "requirements", lambda extra: [f"{extra}-extra"])
    imports = {"collected": 0}
    rehearsal.fresh(
        ("test_dropout_databases", Script(4, "E   ModuleNotFoundError: No module named 'expecttest'\n", 2,
                                          lambda command: write_journal(command, imports))),
    )  # fmt: skip
    status, output = rehearsal("--budget", 560)
    assert status == 1
    only(rehearsal, "tests.python", *(name for name in ALL if name.startswith("bench.")))
    assert rehearsal.failed()[0].startswith("bench.short: missing: matplotlib. Remedy: pip install matplotlib")
    assert (
        "tests.python: functional/test_dropout_databases.py: ended with status 2 before the first test"
        in rehearsal.failed()
    )
    assert "test-extra" in rehearsal.phases["environment"]["note"]


def test_planted_a_build_that_fails(rehearsal):
    error = "[3/9] nvcc\ncsrc/kernels/x.cu(7): error: no such name\nninja: build stopped\n"
    rehearsal.fresh(("setup.py build_ext", Script(50, error, 1)))
    status, output = rehearsal("--budget", 560)
    assert status == 1
    only(rehearsal, "build.extension", "tests.python", *(name for name in ALL if name.startswith("bench.")))
    assert rehearsal.failed()[0] == (
        "build.extension: setup.py build_ext ended with status 1: csrc/kernels/x.cu(7): error: no such name"
    )
    assert "needs build.extension, which is not done with these sources" in output
    rehearsal.out = rehearsal.root / "other"
    rehearsal.fresh(("^cmake --build", Script(HANGS)))
    assert rehearsal("--budget", 560)[0] == 1
    assert rehearsal.failed()[0] == f"build.kernels: cmake ran past the limit of {builds.SECONDS} s"
    assert rehearsal.statuses()["bench.short"] == "done"


def test_planted_a_full_disk(rehearsal):
    """While one thing is built or run."""
    rehearsal.fresh(("^cmake --build", Script(30, "fatal error: x.o: No space left on device\n", 1)))
    status, _ = rehearsal("--budget", 560)
    assert status == 1
    only(rehearsal, "build.kernels", "tests.cpp", "sanitizer")
    assert rehearsal.failed()[0].endswith("fatal error: x.o: No space left on device")
    rehearsal.out = rehearsal.root / "other"
    system = rehearsal.fresh(("--only timings", Script(30, "", 1, lambda command: setattr(system, "free", 0))))
    assert rehearsal("--budget", 560)[0] == 1
    only(rehearsal, "bench.timings")
    assert rehearsal.failed() == ["bench.timings: bench ended with status 1 and wrote nothing; the disk is full"]


def test_planted_a_signal(rehearsal):
    """From the shell, or from what has a limit of its own for all of it."""
    rehearsal.system.during[150] = lambda: signal.raise_signal(signal.SIGTERM)
    status, output = rehearsal("--budget", 560)
    assert status == 128 + signal.SIGTERM and rehearsal.system.left == []
    assert rehearsal.statuses()["tests.cpp"] == "done" and rehearsal.statuses()["bench.short"] == "cut short"
    assert "interrupted by SIGTERM" in output
    rehearsal.fresh()
    assert rehearsal("--resume")[0] == 0 and set(rehearsal.statuses().values()) == {"done"}


def test_timings_of_other_sources_are_not_gone_on_with(rehearsal):
    """bench refuses them; they are taken anew."""
    rehearsal("--budget", 300)
    rehearsal.fresh(("--only short.*--resume", Script(5, "bench: --resume must go on where", 2)))
    (rehearsal.out / "short.json").unlink()
    assert rehearsal("--resume")[0] == 0
    assert ["--resume" in text for text in rehearsal.system.commands("--only short")] == [True, False]


# The command


def test_a_phase_or_a_group_by_name(rehearsal):
    assert rehearsal("--phase", "build", "--phase", "tests.cpp")[0] == 0
    assert list(rehearsal.phases) == ["build.extension", "build.kernels", "tests.cpp"]
    with pytest.raises(SystemExit):
        rehearsal("--phase", "codegen")


def test_a_folder_that_cannot_be_written_or_is_of_another_device(rehearsal, monkeypatch, capsys):
    rehearsal("--phase", "environment")
    monkeypatch.setattr(machine, "probe", lambda: GPU | {"device": "Gauge"})
    assert rehearsal("--phase", "environment")[0] == 1
    rehearsal.out = rehearsal.root / "bin/nvcc/folder"
    assert rehearsal("--phase", "environment")[0] == 1


def test_too_many_files_fail(rehearsal):
    rehearsal.out.mkdir()
    for number in range(8):
        (rehearsal.out / str(number)).touch()
    assert rehearsal("--phase", "environment")[0] == 1


def test_without_torch_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(machine, "ask", lambda *command, **options: (1, "", "Traceback\nModuleNotFoundError: torch"))
    assert command.main([], FakeSystem()) == 1
    assert "ModuleNotFoundError: torch" in capsys.readouterr().err
    assert environment.QUERY[0] == "name"
