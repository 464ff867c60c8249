"""`python -m bench`: time fastreg's layers against PyTorch's, train with both, print tables, write files and charts."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

try:
    import torch

    from bench import charts, environment, results, timing, training
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"bench: {error}; `make bench` installs what is needed, or: pip install -e '.[bench]'")

PARTIAL = " (partial: interrupted)"


@dataclass(frozen=True)
class Part:
    """A part of the job: its rows, in the batches in which they come; a table and a chart of the rows."""

    title: str
    rows: Callable[[argparse.Namespace], Iterator[list[dict]]]
    report: Callable[[list[dict]], str]
    chart: Callable[[list[dict], str, str, Path], None]


PARTS = {
    "timings": Part(
        "fastreg against PyTorch, layer by layer",
        lambda args: timing.run(args.device, args.quick),
        timing.report,
        charts.speed,
    ),
    "training": Part(
        "The digits network with either kind of layer",
        lambda args: training.run(args.device, args.epochs, args.seeds),
        training.report,
        charts.curves,
    ),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, checked: whatever is wrong with them ends the program here, before any work, with status 2."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="one part of the job (default: all)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: a GPU where there is one)"
    )
    parser.add_argument("--threads", type=_positive, help="CPU threads of both sides (default: PyTorch's)")
    parser.add_argument(
        "--out", type=Path, default=Path("bench/out"), metavar="DIR", help="results (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=_positive, help="of the training (default: 100; 3 if --quick)")
    parser.add_argument("--seeds", type=_positive, default=1, help="trainings, for the spread (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few small cases: does everything run?")
    args = parser.parse_args(argv)
    args.epochs = args.epochs or (3 if args.quick else 100)
    try:
        args.device = environment.find_device(args.device)
        results.prepare_folder(args.out)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out must be a folder that can be written, got {args.out} ({error.strerror})")
    return args


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text}")
    return int(text)


def run_part(name: str, args: argparse.Namespace, described: dict) -> bool:
    """Run one part, print and write what it gave, also when it is cut short. Returns whether it was complete."""
    part, rows, complete = PARTS[name], [], False
    contention = environment.Contention()
    try:
        for batch in part.rows(args):
            share = contention.since_last()
            rows += [row | {"contention": share} for row in batch]
        complete = True
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted, keeping what there is", file=sys.stderr)
    finally:
        caption = environment.caption(described)
        title = part.title if complete else part.title + PARTIAL
        paths = results.write_results(args.out, name, described, rows, complete)
        if rows:
            share = statistics.mean(row["contention"] for row in rows)
            if share > results.CONTENDED:
                caption += f" · NOT ALONE: other programs took {share:.0%} of the CPU time"
            paths.append(results.result_path(args.out, name, "png", complete))
            part.chart(rows, title, caption, paths[-1])
            print(f"\n{title}\n{caption}\n\n{part.report(rows)}\n")
        print("wrote", *paths, flush=True)
    return complete


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 130 after Ctrl-C."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)
    described = environment.describe(args.device)
    print(environment.caption(described), flush=True)
    for name in [args.only] if args.only else PARTS:
        if not run_part(name, args, described):
            return 130
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
