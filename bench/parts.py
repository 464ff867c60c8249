"""The parts of `python -m bench`, made from its arguments. Raises ValueError where those do not fit."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

from bench import environment, results
from bench.end_to_end import charts as end_to_end_charts
from bench.end_to_end import report as end_to_end_report
from bench.end_to_end import run as end_to_end_run
from bench.end_to_end.kernelbench import problems
from bench.end_to_end.networks import networks
from bench.part import Part
from bench.timings import charts, providers, report, short
from bench.timings.cases import Choice, key
from bench.timings.run import Job
from bench.training import experiments
from bench.users import report as users_report
from bench.users import run as users_run

CHARTS = {
    "timings": charts.CHARTS,
    "short": {"": charts.speed},
    "end-to-end": end_to_end_charts.CHARTS,
    "kernelbench": end_to_end_charts.CHARTS,
    "users": {},
}
TITLES = {
    "timings": "fastreg against PyTorch, layer by layer",
    "short": "fastreg against PyTorch: the short table",
    "end-to-end": "Whole networks: training steps, converted to fastreg and not",
    "kernelbench": "KernelBench's problems with batch norm or dropout: forward, backward and update",
    "users": "Small networks, converted and plain",
}
SHARE_OF_MEMORY = 0.7  # that the timings may fill


def _timings(args: Namespace) -> Part:
    choice = Choice(args.ops, args.modes, args.shapes, args.dtypes, args.layouts, args.more)
    cases, too_large = choice.cases(args.device, _memory(args), args.quick)
    if too_large:
        print(f"left out, for want of memory: {len(too_large)} cases, such as {' '.join(too_large[0].key)}")
    chosen, absent = providers.choose(args.providers)
    for name, reason in absent.items():
        print(f"absent: {name} ({reason})")
    kept, failed = _kept("timings", args)
    job = Job(
        cases,
        chosen,
        args.device,
        args.minutes,
        args.quick,
        every_mode=args.providers is not None,
        done={key(row) for row in kept + failed},
        failed=failed,
    )
    return Part(TITLES["timings"], job.run, report.report, CHARTS["timings"], kept=kept, failed=failed)


def _short(args: Namespace) -> Part:
    kept, failed = _kept("short", args)
    chosen, _ = providers.choose(short.PROVIDERS)
    cases = [case for case in short.cases(args.quick) if case.fits(_memory(args))]
    job = Job(
        cases,
        chosen,
        args.device,
        args.minutes,
        args.quick,
        done={key(row) for row in kept + failed},
        seconds=None if args.quick else short.SECONDS,
        needs=False,  # the profiler, which counts launches, slows what comes after it
        failed=failed,
    )
    return Part(TITLES["short"], job.run, report.report, CHARTS["short"], kept=kept, failed=failed)


def _memory(args: Namespace) -> int:
    return int(SHARE_OF_MEMORY * environment.available_memory(args.device))


def _end_to_end(args: Namespace, name: str = "end-to-end", known=networks) -> Part:
    kept, failed = _kept(name, args)
    job = end_to_end_run.Job(
        args.device,
        args.quick,
        args.networks,
        args.variants,
        done={end_to_end_run.key(row) for row in kept + failed},
        failed=failed,
        known=known,
    )
    return Part(TITLES[name], job.run, end_to_end_report.report, CHARTS[name], kept=kept, failed=failed)


def _kernelbench(args: Namespace) -> Part:
    return _end_to_end(args, "kernelbench", problems)


def _users(args: Namespace) -> Part:
    kept, failed = _kept("users", args)
    job = users_run.Job(
        args.device, args.minutes, args.quick, args.networks, done={key(row) for row in kept + failed}, failed=failed
    )
    return Part(TITLES["users"], job.run, users_report.report, CHARTS["users"], kept=kept, failed=failed)


def _training(args: Namespace) -> Part:
    return experiments.part("digits-batchnorm", experiments.Choice(args.device, seeds=args.seeds, epochs=args.epochs))


PARTS = {
    "timings": _timings,
    "short": _short,
    "end-to-end": _end_to_end,
    "kernelbench": _kernelbench,
    "users": _users,
    "training": _training,
}
DEFAULT = ("timings", "training")


def make(name: str, args: Namespace) -> Part:
    """With --json-only: no tables and charts beside the data, which is written as it comes."""
    part = PARTS[name](args)
    if not args.json_only:
        return part
    write = partial(part.write, suffixes=["json"]) if part.write is results.write_results else part.write
    return dataclasses.replace(part, charts={}, write=write, at_once=True)


def _kept(name: str, args: Namespace) -> tuple[list[dict], list[dict]]:
    """With --resume the rows of the part's file, the partial one if there is one, and what had failed; else none."""
    paths = [args.out / f"{name}{partial}.json" for partial in (".partial", "")]
    path = next((path for path in paths if path.exists()), None) if args.resume else None
    if path is None:
        if args.resume:
            print(f"nothing to resume in {args.out}: {name} starts anew", file=sys.stderr)
        return [], []
    try:
        document = results.read_document(path)
    except ValueError as error:
        raise ValueError(f"--resume {error}") from None
    _check_same(path, document["environment"], args.described)
    return document["rows"], document.get("failed", [])


def _check_same(path: Path, before: dict, now: dict) -> None:
    keys = [key for key in now if key not in ("started", "fastreg_build")]
    if differences := environment.differences(before, now, keys):
        raise ValueError(f"--resume must go on where {path} was written, got {differences}")
