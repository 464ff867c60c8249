"""The command line: see tests/gpu_check/__init__.py."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.gpu_check import __doc__ as ABOUT
from tests.gpu_check import machine
from tests.gpu_check.phases import PHASES
from tests.gpu_check.report import Report
from tests.gpu_check.runner import Job, run_phases


def parse(argv):
    names = [phase.name for phase in PHASES]
    groups = list(dict.fromkeys(name.split(".")[0] for name in names))
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu_check", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = dict.fromkeys([*groups, *names])
    parser.add_argument(
        "--phase", action="append", choices=choices, metavar="NAME", help=f"{', '.join(choices)}; can be repeated"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="results (default: bench/results/<device>)")
    parser.add_argument("--resume", action="store_true", help="skip what is done on this device with these sources")
    parser.add_argument("--limit", type=float, default=570, metavar="S", help="seconds a phase (default: %(default)g)")
    parser.add_argument("--cpu-timings", action="store_true", help="without a GPU, time the CPU backend")
    return parser.parse_args(argv)


def selected(phases, wanted):
    """Those that are named, by themselves or by their group; all where none is."""
    return [p for p in phases if not wanted or p.name in wanted or p.name.split(".")[0] in wanted]


def main(argv=None):
    """Returns the exit status: 0, 1 where a phase has failed, 130 after Ctrl-C."""
    args = parse(argv)
    try:
        found = machine.probe()
    except RuntimeError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    sources = machine.describe_sources()
    # The name tells results of a CPU from those of a GPU.
    name = machine.slug(found["device"] if found["backend"] == "cuda" else f"cpu {found['device']}")
    folder = args.out or machine.ROOT / "bench/results" / name
    try:
        report = Report(folder.resolve(), found["device"], found["torch"], sources)
    except (OSError, ValueError) as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    job = Job(found, sources, report, machine.ROOT / "build/gpu_check" / name, args.limit, args.cpu_timings)
    try:
        status = 0 if run_phases(selected(PHASES, args.phase), job, args.resume) else 1
    except KeyboardInterrupt:
        status = 130
    print(f"\n{found['device']}: {os.path.relpath(folder)}", *(report.line(p.name) for p in PHASES), sep="\n")
    if problem := report.too_many_files():
        print(f"gpu_check: {problem}", file=sys.stderr)
        status = status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
