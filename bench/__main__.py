"""`python -m bench`: time fastreg's layers against PyTorch's and others', train with both, print tables, write files
and charts; or compare two files of timings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import torch

    from bench import allocator, compare, environment, failures, parts, quiet, results
    from bench.arguments import factor, positive, shape_name
    from bench.end_to_end.kernelbench import PROBLEMS
    from bench.end_to_end.networks import NAMES
    from bench.end_to_end.step import VARIANTS
    from bench.timings.default import DTYPES, LAYOUTS
    from bench.timings.ops import MODES, OPS
    from bench.timings.providers import FASTREG, PROVIDERS
    from bench.timings.shapes import SETS, SWEEP
    from bench.users.networks import NAMES as USERS
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"bench: {error}; `make bench` installs what is needed, or: pip install -e '.[bench]'")


def parser() -> argparse.ArgumentParser:
    """Of the arguments, in groups by the part that they are for."""
    command = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = command.add_argument
    add("--only", choices=parts.PARTS, help=f"one part of the job (default: {' and '.join(parts.DEFAULT)})")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: a GPU where there is one)")
    add("--threads", type=positive, help="CPU threads of all sides (default: PyTorch's)")
    add("--out", type=Path, default=Path("bench/out"), metavar="DIR", help="results (default: %(default)s)")
    quiet.add_argument(command)
    add("--quick", action="store_true", help="a few small cases: does everything run?")
    add("--resume", action="store_true", help="keep the rows that the files in DIR have, and add the missing ones")
    add("--json-only", action="store_true", help="no charts (python -m bench.redraw draws them), and each row is kept "
        "at once, whatever ends the process")  # fmt: skip
    add("--fail-if-slower", type=factor, metavar="RATIO", help="status 1 where fastreg takes RATIO times as long as "
        "the fastest other, or with --compare as before")  # fmt: skip

    add = command.add_argument_group("timings", "what to time instead of the default set, each with each").add_argument
    add("--ops", nargs="+", choices=OPS, metavar="OP", help=", ".join(OPS))
    add("--modes", nargs="+", choices=MODES, metavar="MODE", help=f"{', '.join(MODES)} (replayed CUDA graph of both)")
    add("--shapes", nargs="+", type=shape_name, metavar="SET", help=f"{', '.join([*SETS, SWEEP])}; or 32x64x56x56")
    add("--dtypes", nargs="+", choices=DTYPES, metavar="DTYPE", help=", ".join(DTYPES))
    add("--layouts", nargs="+", choices=LAYOUTS, metavar="LAYOUT", help=", ".join(LAYOUTS))
    add("--providers", nargs="+", choices=PROVIDERS, metavar="NAME",
        help=f"{', '.join(PROVIDERS)} (default: those installed; fastreg is always among them)")  # fmt: skip
    add("--more", action="store_true", help="the default set, and 16-bit types, small batches, 2-D and 3-D tensors")
    add("--minutes", type=factor, default=5, help="for all of them, as far as possible (default: %(default)s)")
    add("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="run nothing: what changed, beyond noise")

    add = command.add_argument_group("end-to-end, kernelbench and users").add_argument
    add("--networks", nargs="+", choices=(*NAMES, *PROBLEMS, *USERS), metavar="NAME",
        help=f"end-to-end: {', '.join(NAMES)}; kernelbench: {', '.join(PROBLEMS)}; users: {', '.join(USERS)} (default: "
        "all that are installed)")  # fmt: skip
    add("--variants", nargs="+", choices=VARIANTS, metavar="NAME", help="; ".join(VARIANTS) + " (default: all)")

    add = command.add_argument_group("training").add_argument
    add("--epochs", type=positive, help="default: 100; 3 if --quick")
    add("--seeds", type=positive, default=1, help="trainings, for the spread (default: %(default)s)")
    return command


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
    """The arguments, and the parts to run by name; what is wrong ends the program here, with status 2."""
    command = parser()
    args = command.parse_args(argv)
    if args.compare:
        return args, {}
    args.epochs = args.epochs or (3 if args.quick else 100)
    try:
        args.device = environment.find_device(args.device)
        if args.threads:
            torch.set_num_threads(args.threads)
        if args.device.type == "cuda":
            torch.cuda.set_device(args.device)
        args.described = environment.describe(args.device)
        chosen = {name: parts.make(name, args) for name in ([args.only] if args.only else parts.DEFAULT)}
        results.prepare_folder(args.out)
        args.guarded = quiet.check(args)
    except ValueError as error:
        command.error(str(error))
    except OSError as error:
        command.error(f"--out must be a folder that can be written, got {args.out} ({error.strerror})")
    return args, chosen


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 where fastreg fails, or --fail-if-slower finds something; 2 for bad input; 3 where
    the device is broken, and --resume can go on in a new process; 4 where results were kept out of bench/results; 130
    after Ctrl-C."""
    args, chosen = parse(argv)
    if args.compare:
        return _compare(*args.compare, args.fail_if_slower)
    allocator.keep_freed_memory()
    print(environment.caption(args.described), flush=True)
    status = 0
    for name, part in chosen.items():
        try:
            if not part.run(name, args.out, args.described, args.guarded):
                return 130
        except quiet.Disturbed as error:
            print(f"bench: not written to {args.out}: {error}", file=sys.stderr)
            status = quiet.STATUS
        except failures.BrokenDevice as error:
            print(f"bench: the device is broken after {error}", file=sys.stderr)
            return 3
    if any(failure["provider"] in (FASTREG.name, failures.ALL) for part in chosen.values() for failure in part.failed):
        return 1
    slower = []
    for name in ("timings", "users") if args.fail_if_slower and not status else ():
        if name in chosen:
            rows = results.read_document(args.out / f"{name}.json")["rows"]
            slower += compare.slower_than_others(rows, args.fail_if_slower)
    return _fail(slower) or status


def _compare(before: Path, after: Path, limit: float | None) -> int:
    try:
        comparison = compare.compare_files(before, after)
    except (ValueError, OSError) as error:
        print(f"bench: --compare {error}", file=sys.stderr)
        return 2
    print(comparison.report())
    return _fail(comparison.slower_fastreg(limit)) if limit else 0


def _fail(slower: list[str]) -> int:
    for line in slower:
        print(f"slower: {line}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
