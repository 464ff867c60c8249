"""bench/results has figures that no other program disturbed, unless --disturbed says otherwise."""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from bench import environment
from bench.results import CONTENDED

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
REFUGE = ROOT / "bench/out/disturbed"
SECONDS_TO_LISTEN = 2.0
STATUS = 4  # of a command whose results were kept out


class Disturbed(Exception):
    """A part's results were kept out of the folder that they were for."""


def add_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--disturbed", action="store_true", help="write into bench/results also what other programs disturbed"
    )


def guards(folder: Path) -> bool:
    """Whether it is one of the folders that are committed."""
    return folder.resolve().is_relative_to(RESULTS)


def check(args: argparse.Namespace) -> bool:
    """Whether --out is guarded; so that a machine that is busy now is told before the work, and not after it.

    Raises:
        ValueError: it is, and other programs are running.
    """
    if args.disturbed or not guards(args.out):
        return False
    contention = environment.Contention()
    time.sleep(SECONDS_TO_LISTEN)
    if (share := contention.since_last()) > CONTENDED:
        raise ValueError(
            f"--out must be a folder outside bench/results while other programs take {share:.0%} of the CPU time, got "
            f"{args.out} (--disturbed writes there all the same)"
        )
    return True


def share(rows: list[dict]) -> float:
    """What other programs took of the CPU time while the rows were measured."""
    return statistics.mean(row["contention"] for row in rows) if rows else 0.0


def folder_of(rows: list[dict], wanted: Path) -> Path:
    """The wanted one, or where its results go instead."""
    return wanted if share(rows) <= CONTENDED else refuge(wanted)


def refuge(wanted: Path) -> Path:
    """Nothing there is committed."""
    return REFUGE / wanted.resolve().relative_to(RESULTS)
