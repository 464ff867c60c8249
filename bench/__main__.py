"""`python -m bench`: time fastreg's layers against PyTorch's, train with both, print tables, write files and charts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import torch

    from bench import charts, environment, results, timing
    from bench.arguments import positive
    from bench.part import Part
    from bench.training import experiments
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"bench: {error}; `make bench` installs what is needed, or: pip install -e '.[bench]'")

PARTS = {
    "timings": lambda args: Part(
        "fastreg against PyTorch, layer by layer",
        lambda: timing.run(args.device, args.quick),
        timing.report,
        charts.speed,
    ),
    "training": lambda args: experiments.part(
        "digits-batchnorm", experiments.Choice(args.device, seeds=args.seeds, epochs=args.epochs)
    ),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, checked: whatever is wrong with them ends the program here, before any work, with status 2."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="one part of the job (default: all)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: a GPU where there is one)"
    )
    parser.add_argument("--threads", type=positive, help="CPU threads of both sides (default: PyTorch's)")
    parser.add_argument(
        "--out", type=Path, default=Path("bench/out"), metavar="DIR", help="results (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=positive, help="of the training (default: 100; 3 if --quick)")
    parser.add_argument("--seeds", type=positive, default=1, help="trainings, for the spread (default: %(default)s)")
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
        if not PARTS[name](args).run(name, args.out, described):
            return 130
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
