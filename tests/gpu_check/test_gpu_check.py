"""How tests/gpu_check runs phases: order, budget, limits, resumption, interruption. Time and processes are fakes."""

import errno
import os
import signal

import pytest

from tests.gpu_check import report, runner
from tests.gpu_check.gpu_check_jobs import CPU, GPU, HANGS, SOURCES, FakeSystem, Script, make_job, phase, records, unit
from tests.gpu_check.runner import SECONDS_TO_END, Run
from tests.gpu_check.steps import CUT_SHORT, DONE, FAILED, LEFT_OUT, Outcome


def run(phases, job, budget=None):
    return Run(phases, job, budget, say=lambda line: None).go()


def statuses(tmp_path):
    return {name: record["status"] for name, record in records(tmp_path / "results").items()}


# Phases and units


def test_a_failure_costs_its_own_unit(tmp_path):
    def explode(result):
        raise ZeroDivisionError("by zero")

    system = FakeSystem(("bad", Script(status=3, output="line 1\nline 2\n")))
    parts = [unit("good"), unit("bad"), unit("broken", judge=explode), unit("last")]
    assert not run([phase("a", *parts), phase("b")], make_job(tmp_path, system=system))
    found = records(tmp_path / "results")
    assert [part["status"] for part in found["a"]["units"].values()] == [DONE, FAILED, FAILED, DONE]
    assert found["a"]["failed"] == ["a: bad: ended with status 3", "a: broken: ZeroDivisionError: by zero"]
    assert found["a"]["units"]["bad"]["log"] == ["$ bad", "line 1", "line 2"]
    assert any("Traceback" in line for line in found["a"]["units"]["broken"]["log"])
    assert (found["a"]["status"], found["b"]["status"]) == (FAILED, DONE)


def test_each_result_is_there_at_once(tmp_path):
    """Also what is running: a run that is cut off at any second leaves what it had."""
    seen = []
    look = Script(at_start=lambda command: seen.append(records(tmp_path / "results")["a"]))
    run([phase("a", unit("one"), unit("two"))], make_job(tmp_path, system=FakeSystem(("two", look))))
    (record,) = seen
    assert record["status"] == "running"
    assert {name: part["status"] for name, part in record["units"].items()} == {"one": DONE, "two": "running"}
    assert "=== a: one: done" in (tmp_path / "results/logs.txt").read_text()


def test_order_and_company(tmp_path):
    """A phase begins once those before it have, and what it needs has ended; what is timed is alone."""
    system = FakeSystem(("long", Script(30)), ("short", Script(10)), ("timed", Script(20)))
    phases = [phase("long"), phase("short"), phase("user", needs=["short"]), phase("timed", alone=True), phase("last")]
    assert run(phases, make_job(tmp_path, system=system))
    assert [(when, name) for when, name in system.started] == [
        (0, "long"),
        (0, "short"),
        (10, "user"),
        (30, "timed"),
        (50, "last"),
    ]


def test_several_units_at_a_time(tmp_path):
    system = FakeSystem(("", Script(10)))
    units = [unit(str(number)) for number in range(7)]
    run([phase("a", *units, workers=lambda job: 3)], make_job(tmp_path, system=system))
    assert [when for when, _ in system.started] == [0, 0, 0, 10, 10, 10, 20]


def test_what_is_needed_must_be_of_these_sources(tmp_path):
    needs = phase("b", needs=["a"])
    assert not run([needs], make_job(tmp_path))
    assert not run([phase("a"), needs], make_job(tmp_path, system=FakeSystem(("a", Script(status=1)))))
    assert run([phase("a"), needs], make_job(tmp_path))
    job = make_job(tmp_path, sources=SOURCES | {"fingerprint": "2"})
    assert not run([needs], job) and job.system.started == []
    assert records(tmp_path / "results")["b"]["note"] == "needs a, which is not done with these sources"


def test_without_a_gpu_it_is_left_out_and_said(tmp_path):
    job = make_job(tmp_path, CPU)
    assert run([phase("a"), phase("b", needs_gpu=False)], job)
    assert statuses(tmp_path) == {"a": LEFT_OUT, "b": DONE}
    assert job.report.lines("a") == ["left out: a: needs a GPU"] and job.report.lines("c") == ["not run: c"]


# Limits and the budget


def test_a_unit_that_hangs_costs_its_own_limit(tmp_path):
    """It may write what it has; if it does not end then, it is killed."""
    system = FakeSystem(("deaf", Script(HANGS, deaf=HANGS)), ("hangs", Script(HANGS)), ("", Script(5)))
    units = [unit("deaf", 20), unit("hangs", 20), unit("fine", 20)]
    assert not run([phase("a", *units), phase("b")], make_job(tmp_path, system=system))
    found = records(tmp_path / "results")
    assert found["a"]["failed"] == ["a: deaf: ran past the limit of 20 s", "a: hangs: ran past the limit of 20 s"]
    assert found["a"]["units"]["fine"]["status"] == DONE and found["b"]["status"] == DONE
    assert system.interrupted == ["deaf", "hangs"] and system.left == []
    assert (20 + SECONDS_TO_END, "hangs") in system.started


def test_a_phase_keeps_its_limit(tmp_path):
    system = FakeSystem(("", Script(40)))
    run([phase("a", *[unit(name) for name in "xyz"]), phase("b")], make_job(tmp_path, system=system))
    found = records(tmp_path / "results")["a"]
    assert [found["units"][name]["status"] for name in "xyz"] == [DONE, DONE, CUT_SHORT]
    assert found["failed"] == ["a: z: cut short: ran past the limit of 100 s"]
    assert statuses(tmp_path)["b"] == DONE


@pytest.mark.parametrize("deaf", [0.5, HANGS])
@pytest.mark.parametrize("budget", [30, 100, 140, 560])
def test_no_run_is_longer_than_its_budget(tmp_path, budget, deaf):
    """Though everything hangs."""
    system = FakeSystem(("", Script(HANGS, deaf=deaf)))
    phases = [phase("a"), phase("b", unit("x"), unit("y"), share=0.5), phase("c", alone=True)]
    job = make_job(tmp_path, system=system)
    run(phases, job, budget)
    assert system.now() - 1000 <= budget and system.left == []
    assert set(statuses(tmp_path).values()) <= {FAILED, CUT_SHORT}


def test_phases_get_what_is_left_by_their_worth(tmp_path):
    system = FakeSystem(("", Script(HANGS)))
    phases = [phase("a", limit=50), phase("b", unit("b", 999), share=0.5, limit=999), phase("c", limit=999)]
    for one in phases:
        object.__setattr__(one, "alone", True)
    assert not run(phases, make_job(tmp_path, system=system), 256)
    begun = dict((name, when) for when, name in system.started)
    assert begun["a"] == 0 and 50 <= begun["b"] <= 52  # its limit
    assert 150 <= begun["c"] <= 152  # half of the 200 s that were left
    assert statuses(tmp_path) == {"a": FAILED, "b": CUT_SHORT, "c": CUT_SHORT}


def test_what_there_is_no_time_for_is_no_failure_and_can_be_resumed(tmp_path):
    system = FakeSystem(("a", Script(60)))
    assert run([phase("a"), phase("b", alone=True, least=40)], make_job(tmp_path, system=system), 100)
    assert statuses(tmp_path) == {"a": DONE, "b": CUT_SHORT}
    assert "not begun: 32 s are left" in records(tmp_path / "results")["b"]["note"]
    assert run([phase("a"), phase("b", least=40)], make_job(tmp_path, resume=True))
    assert statuses(tmp_path) == {"a": DONE, "b": DONE}


def test_what_needs_something_that_was_cut_short_has_not_failed(tmp_path):
    assert run([phase("a", limit=5, least=9), phase("b", needs=["a"])], make_job(tmp_path))
    assert statuses(tmp_path) == {"a": CUT_SHORT, "b": CUT_SHORT}


# Resumption


def test_resume_skips_units_that_are_done(tmp_path):
    several = [phase("a"), phase("b", unit("good"), unit("bad"), unit("slow", 20)), phase("c")]
    scripts = [("bad", Script(status=1)), ("slow", Script(HANGS))]
    run(several, make_job(tmp_path, system=FakeSystem(*scripts)))
    job = make_job(tmp_path, resume=True)
    assert run(several, job)
    assert job.system.commands() == ["bad", "slow"]
    found = records(tmp_path / "results")["b"]
    assert (found["status"], found["failed"], found["note"]) == (DONE, [], "3 done")


def test_what_is_not_begun_again_keeps_what_was_done(tmp_path):
    several = phase("a", unit("good"), unit("slow", 20))
    run([several], make_job(tmp_path, system=FakeSystem(("slow", Script(HANGS)))))
    object.__setattr__(several, "least", 999.0)
    run([several], make_job(tmp_path, resume=True))
    units = records(tmp_path / "results")["a"]["units"]
    assert units["good"]["status"] == DONE and statuses(tmp_path)["a"] == CUT_SHORT
    object.__setattr__(several, "least", 1.0)
    job = make_job(tmp_path, resume=True)
    assert run([several], job) and job.system.commands() == ["slow"]


def test_without_resume_all_run_again(tmp_path):
    for _ in range(2):
        job = make_job(tmp_path)
        run([phase("a")], job)
        assert job.system.commands() == ["a"]


@pytest.mark.parametrize(
    ("found", "sources", "again"),
    [
        (GPU, SOURCES, False),
        (GPU, SOURCES | {"commit": "another, of the same files"}, False),
        (GPU, SOURCES | {"fingerprint": "2"}, True),
        (GPU | {"torch": "2.1"}, SOURCES, True),
    ],
)
def test_resume_is_for_the_same_sources_and_torch(tmp_path, found, sources, again):
    run([phase("a", unit("x"), unit("y"))], make_job(tmp_path))
    job = make_job(tmp_path, found, sources, resume=True)
    run([phase("a", unit("x"), unit("y"))], job)
    assert job.system.commands() == (["x", "y"] if again else [])


def test_resume_misses_products(tmp_path):
    """As on a machine that is a fresh one, with the results of another."""
    product = tmp_path / "product"
    product.touch()
    build = phase("a", products=lambda job: [product])
    for gone in (False, False, True):
        product.unlink() if gone else None
        job = make_job(tmp_path, resume=True)
        run([build], job)
    assert job.system.commands() == ["a"]


# Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_and_keeps_what_there_is(tmp_path, number):
    system = FakeSystem(("deaf", Script(HANGS, deaf=HANGS)), ("slow", Script(HANGS)))
    job = make_job(tmp_path, system=system)
    parts = [unit("quick"), unit("deaf", 90), unit("slow", 90), unit("never")]
    going = Run([phase("a", *parts, workers=lambda job: 2), phase("b")], job, say=lambda line: None)
    system.during[30] = lambda: setattr(going, "stopped_by", number)
    assert not going.go()
    assert system.left == [] and system.now() - 1000 < 30 + SECONDS_TO_END + 1
    units = records(tmp_path / "results")["a"]["units"]
    kinds = {name: part["status"] for name, part in units.items()}
    assert kinds == {"quick": DONE, "deaf": CUT_SHORT, "slow": CUT_SHORT, "never": CUT_SHORT}
    assert f"interrupted by {number.name}" in units["slow"]["note"] and statuses(tmp_path)["b"] == DONE


# Full disks


def test_a_full_disk_is_named_and_the_others_run(tmp_path, monkeypatch):
    system = FakeSystem(("full", Script(status=1)))
    system.free = 1 << 20
    assert not run([phase("full"), phase("b")], make_job(tmp_path, system=system))
    assert records(tmp_path / "results")["full"]["note"] == "ended with status 1; the disk is full"
    assert statuses(tmp_path)["b"] == DONE


def test_a_log_that_cannot_be_written_costs_its_unit(tmp_path):
    job = make_job(tmp_path)
    (job.work / "logs").mkdir()
    (job.work / "logs/a").touch()  # where a folder should be
    assert not run([phase("a"), phase("b")], job)
    assert statuses(tmp_path) == {"a": FAILED, "b": DONE}
    assert "Error" in records(tmp_path / "results")["a"]["note"]


def test_results_that_cannot_be_written_are_kept_and_written_later(tmp_path, monkeypatch):
    replace, full = os.replace, [True]

    def refuse(*paths):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*paths)

    monkeypatch.setattr(report.os, "replace", refuse)
    job = make_job(tmp_path)
    assert run([phase("a")], job)
    assert "No space left on device" in job.report.problem and job.report.lines("a") == ["done: a: ended with status 0"]
    full[0] = False
    assert run([phase("b")], job)
    assert job.report.problem is None and statuses(tmp_path) == {"a": DONE, "b": DONE}


# The report


def test_results_of_other_sources_are_not_presented_as_of_these(tmp_path):
    run([phase("a")], make_job(tmp_path))
    (line,) = make_job(tmp_path, sources=SOURCES | {"fingerprint": "2"}).report.lines("a")
    assert line.startswith("not run with these sources: a (done on") and "c0ffee" in line


def test_a_folder_is_of_one_device(tmp_path):
    run([phase("a")], make_job(tmp_path))
    with pytest.raises(ValueError, match="holds results of Abacus 9000, and this is Slide Rule"):
        make_job(tmp_path, CPU)


def test_number_and_sizes_of_files_are_limited(tmp_path, monkeypatch):
    job = make_job(tmp_path)
    for number in range(report.MOST_FILES):
        (job.report.folder / f"{number}.csv").touch()
    assert job.report.too_much() is None
    (job.report.folder / "one more").touch()
    assert "one more" in job.report.too_much()
    (job.report.folder / "one more").unlink()
    (job.report.folder / "0.csv").write_text("12345")
    monkeypatch.setattr(report, "MOST_BYTES", 4)
    assert job.report.too_much().endswith("MiB: 0.csv")


def test_logs_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LOGS_BYTES", 800)
    job = make_job(tmp_path)
    job.report.begin("a", keep=False)
    for number in range(50):
        job.report.record_unit("a", str(number), Outcome(DONE), 1, "x" * 500)
    text = (tmp_path / "results/logs.txt").read_text()
    assert len(text) < 1000 and text.startswith("=== a: 0: done: \n" + "x" * 100 + "\n")


def test_of_a_long_output_the_end_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LONGEST_OUTPUT", 9)
    seen = []
    judge = unit("a", judge=lambda result: seen.append(result.output) or Outcome(DONE))
    run([phase("a", judge)], make_job(tmp_path, system=FakeSystem(("a", Script(output="x" * 99 + "\nthe end\n")))))
    assert seen == ["\nthe end\n"]


def test_counts_are_added_up(tmp_path):
    units = [
        unit(name, judge=lambda result, n=n: Outcome(DONE, "", {"counts": {"passed": n, "skipped": 1}}))
        for n, name in enumerate(("x", "y", "z"))
    ]
    run([phase("a", *units)], make_job(tmp_path))
    assert records(tmp_path / "results")["a"]["note"] == "3 done; 3 passed, 3 skipped"


def test_logs_are_trimmed():
    log = f"first {report.ROOT}/x\n" + "\n".join(map(str, range(500))) + "\n1 of 2\r2 of 2\n" + "x" * 1000 + "\n"
    lines = report.trimmed(log)
    assert lines[0] == "first ./x" and lines[-2] == "2 of 2" and lines[-1] == "x" * report.LINE_LENGTH
    assert len(lines) == report.FIRST_LINES + report.LAST_LINES + 1 and "... 458 lines ..." in lines
    assert report.trimmed("") == [] and report.trimmed("a\nb\n") == ["a", "b"]
