"""The parts of `python -m bench`, made from its arguments. Raises ValueError where those do not fit."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from bench import environment, results
from bench.end_to_end import charts as end_to_end_charts
from bench.end_to_end import report as end_to_end_report
from bench.end_to_end import run as end_to_end_run
from bench.part import Part
from bench.timings import charts, providers, report
from bench.timings.cases import Choice, key
from bench.timings.run import Job
from bench.training import experiments

CHARTS = {
    "timings": charts.CHARTS,
    "end-to-end": end_to_end_charts.CHARTS,
}
TITLES = {
    "timings": "fastreg against PyTorch, layer by layer",
    "end-to-end": "Whole networks: training steps, converted to fastreg and not",
}
SHARE_OF_MEMORY = 0.7  # that the timings may fill


def _timings(args: Namespace) -> Part:
    choice = Choice(args.ops, args.modes, args.shapes, args.dtypes, args.layouts)
    memory = int(SHARE_OF_MEMORY * environment.available_memory(args.device))
    cases, too_large = choice.cases(args.device, memory, args.quick)
    if too_large:
        print(f"left out, for want of memory: {len(too_large)} cases, such as {' '.join(too_large[0].key)}")
    chosen, absent = providers.choose(args.providers)
    for name, reason in absent.items():
        print(f"absent: {name} ({reason})")
    kept = _kept("timings", args)
    job = Job(
        cases,
        chosen,
        args.device,
        args.minutes,
        args.quick,
        every_mode=args.providers is not None,
        done={key(row) for row in kept},
    )
    return Part(TITLES["timings"], job.run, report.report, CHARTS["timings"], kept=kept)


def _end_to_end(args: Namespace) -> Part:
    kept = _kept("end-to-end", args)
    job = end_to_end_run.Job(
        args.device, args.quick, args.networks, args.variants, done={end_to_end_run.key(row) for row in kept}
    )
    return Part(TITLES["end-to-end"], job.run, end_to_end_report.report, CHARTS["end-to-end"], kept=kept)


def _training(args: Namespace) -> Part:
    return experiments.part("digits-batchnorm", experiments.Choice(args.device, seeds=args.seeds, epochs=args.epochs))


PARTS = {"timings": _timings, "end-to-end": _end_to_end, "training": _training}
DEFAULT = ("timings", "training")


def _kept(name: str, args: Namespace) -> list[dict]:
    """With --resume the rows of the part's file, the partial one if there is one; else none."""
    paths = [args.out / f"{name}{partial}.json" for partial in (".partial", "")]
    path = next((path for path in paths if path.exists()), None) if args.resume else None
    if path is None:
        if args.resume:
            print(f"nothing to resume in {args.out}: {name} starts anew", file=sys.stderr)
        return []
    try:
        document = results.read_document(path)
    except ValueError as error:
        raise ValueError(f"--resume {error}") from None
    _check_same(path, document["environment"], args.described)
    return document["rows"]


def _check_same(path: Path, before: dict, now: dict) -> None:
    keys = [key for key in now if key not in ("started", "fastreg_build")]
    if differences := environment.differences(before, now, keys):
        raise ValueError(f"--resume must go on where {path} was written, got {differences}")
