"""`python -m bench.training NAME...`: run experiments, print tables, write numbers (JSON) and charts (PNG)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import torch

    from bench import environment, quiet, results
    from bench.arguments import positive
    from bench.training import experiments, loop
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"bench: {error}; `make bench` installs what is needed, or: pip install -e '.[bench]'")

ALL = "all"
STUDIED = "fashion-dropout"


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
    """The arguments, and the parts to run by name; what is wrong ends the program here, with status 2."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    known = [*experiments.EXPERIMENTS, ALL]
    parser.add_argument("names", nargs="+", choices=known, metavar="NAME", help=", ".join(known))
    studies = [*experiments.fashion.STUDIES, ALL]
    parser.add_argument("--study", nargs="+", default=[], choices=studies, help=f"{STUDIED}'s further questions")
    parser.add_argument("--layers", choices=[*loop.PROVIDERS, "both"], default="both", help="default: %(default)s")
    parser.add_argument("--seeds", type=positive, help="default: the experiment's own")
    parser.add_argument("--epochs", type=positive, help="default: the experiment's own")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="IDX files of MNIST or Fashion-MNIST, or torchvision's root (default: "
        "where `python -m bench.data` finds or puts them, and where they are not, digits instead)",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: a GPU where there is one)"
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default: PyTorch's)")
    parser.add_argument(
        "--out", type=Path, default=Path("bench/out/training"), metavar="DIR", help="results (default: %(default)s)"
    )
    quiet.add_argument(parser)
    args = parser.parse_args(argv)
    names = list(experiments.EXPERIMENTS) if ALL in args.names else list(dict.fromkeys(args.names))
    if args.study and names != [STUDIED]:
        parser.error(f"--study goes with {STUDIED} alone, got {', '.join(names)}")
    if args.study:
        names = [f"{STUDIED}-{name}" for name in (experiments.fashion.STUDIES if ALL in args.study else args.study)]
    try:
        args.device = environment.find_device(args.device)
        layers = tuple(loop.PROVIDERS) if args.layers == "both" else (args.layers,)
        choice = experiments.Choice(args.device, layers, args.seeds, args.epochs, args.data)
        parts = {name: experiments.part(name, choice) for name in names}
        results.prepare_folder(args.out)
        if args.threads:
            torch.set_num_threads(args.threads)
        args.guarded = quiet.check(args)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out must be a folder that can be written, got {args.out} ({error.strerror})")
    return args, parts


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0; 2 for bad input; 4 where results were kept out of bench/results; 130 after Ctrl-C."""
    args, parts = parse(argv)
    if args.device.type == "cuda":
        torch.cuda.set_device(args.device)
    status = 0
    for name, part in parts.items():
        try:
            if not part.run(name, args.out, environment.describe(args.device), args.guarded):
                return 130
        except quiet.Disturbed as error:
            print(f"bench.training: not written to {args.out}: {error}", file=sys.stderr)
            status = quiet.STATUS
    return status


if __name__ == "__main__":
    sys.exit(main())
