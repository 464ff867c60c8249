"""The command line: see tests/gpu_check/__init__.py."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
from pathlib import Path

from tests.gpu_check import __doc__ as ABOUT
from tests.gpu_check import bundle, machine, plan
from tests.gpu_check.plan import PHASES
from tests.gpu_check.report import Report
from tests.gpu_check.runner import Run
from tests.gpu_check.steps import Job
from tests.gpu_check.system import System

SOME_GPU = {"backend": "cuda", "device": "a GPU of this plan", "capability": "9.0", "cuda": "13.0"}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def parse(argv):
    names = [phase.name for phase in PHASES]
    groups = list(dict.fromkeys(name.split(".")[0] for name in names))
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu_check", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = dict.fromkeys([*groups, *names])
    add = parser.add_argument
    add("--phase", action="append", choices=choices, metavar="NAME", help=f"{', '.join(choices)}; can be repeated")
    add("--out", type=Path, metavar="DIR", help="results, anywhere (default: bench/results/<device>)")
    add("--resume", action="store_true", help="skip what is done on this device with these sources")
    add(
        "--budget", type=float, metavar="S", help="seconds for all, ending included (default: no limit but the phases')"
    )
    add("--bundle", type=Path, metavar="DIR", default=bundle.FOLDER, help="of make gpu-bundle (default: %(default)s)")
    add("--cores", type=int, default=os.cpu_count(), metavar="N", help="to use (default: all)")
    add("--dry-run", action="store_true", help="print the plan of a GPU with its estimates, and run nothing")
    add("--cpu-timings", action="store_true", help="without a GPU, time the CPU backend")
    return parser.parse_args(argv)


def selected(phases, wanted):
    """Those that are named, by themselves or by their group; all where none is."""
    return [p for p in phases if not wanted or p.name in wanted or p.name.split(".")[0] in wanted]


def main(argv=None, system=None):
    """Returns the exit status: 0, 1 where something has failed, 128 + the number of a signal that ended it."""
    args = parse(argv)
    system = system or System()
    begun = system.now()
    _on_signal(lambda number, frame: sys.exit(128 + number))  # nothing runs yet
    try:
        found = machine.probe()
    except RuntimeError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    phases = selected(PHASES, args.phase)
    if args.dry_run and found["backend"] != "cuda":
        found = found | SOME_GPU
    sources = machine.describe_sources()
    # The name tells results of a CPU from those of a GPU.
    name = machine.slug(found["device"] if found["backend"] == "cuda" else f"cpu {found['device']}")
    folder = (args.out or machine.ROOT / "bench/results" / name).resolve()
    job = Job(
        found, sources, None, machine.ROOT / "build/gpu_check" / name, system,
        args.cores, args.bundle.resolve(), args.resume, args.cpu_timings,
    )  # fmt: skip
    if args.dry_run:
        for line in plan.describe(phases, job, args.budget):
            print(textwrap.fill(line, 120, subsequent_indent=" " * 47))
        return 0
    try:
        job.report = Report(folder, found["device"], found["torch"], sources)
        job.work.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    budget = None if args.budget is None else args.budget - (system.now() - begun)
    run = Run(phases, job, budget, say=lambda line: print(line, flush=True))
    _on_signal(lambda number, frame: setattr(run, "stopped_by", number))
    succeeded = run.go()
    print(f"\n{found['device']}: {os.path.relpath(folder)}", *_summary(job.report), sep="\n", flush=True)
    return 128 + run.stopped_by if run.stopped_by else _status(succeeded, job.report)


def _on_signal(handler):
    for number in SIGNALS:
        signal.signal(number, handler)


def _summary(report):
    return [line for phase in PHASES for line in report.lines(phase.name)]


def _status(succeeded, report):
    problems = [problem for problem in (report.problem, report.too_much()) if problem]
    for problem in problems:
        print(f"gpu_check: {problem}", file=sys.stderr)
    return 0 if succeeded and not problems else 1


if __name__ == "__main__":
    sys.exit(main())
