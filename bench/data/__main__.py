"""`python -m bench.data [NAME...]`: find MNIST and Fashion-MNIST on this machine, or bring them to it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from bench.data import bring
    from bench.data.sets import BROUGHT, SETS, SIZES, DataSet
    from bench.data.sources import NotHad, folder_source, sources
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"bench: {error}; `make bench` installs what is needed, or: pip install -e '.[bench]'")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; what is wrong ends the program here, with status 2."""
    parser = argparse.ArgumentParser(prog="python -m bench.data", description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"{', '.join(SETS)} (default: both)")
    add("--to", type=Path, metavar="DIR", help="a root that torchvision takes, too (default: where they are found, or "
        f"{BROUGHT})")  # fmt: skip
    add(
        "--from", type=Path, metavar="DIR", dest="folder", help="take the files from this folder, and from nowhere else"
    )
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in SETS]:  # argparse checks no empty list of choices
        parser.error(f"NAME must be one of {', '.join(SETS)}, got {', '.join(unknown)}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 where a set is not to be had, or cannot be written; 2 for bad input; 130 after
    Ctrl-C, and then as well no file is half-written."""
    args, status = parse(argv), 0
    for name in dict.fromkeys(args.names or SETS):
        try:
            print(f"{SETS[name].title}: {_provide(SETS[name], args.to, args.folder)}", flush=True)
        except NotHad as error:
            print(f"bench.data: {SETS[name].title} is not to be had:\n{_indented(str(error))}", file=sys.stderr)
            print(f"  its files ({', '.join(SIZES)}; packed or not) can be taken from a folder: --from DIR",
                file=sys.stderr)  # fmt: skip
            status = 1
        except OSError as error:
            where = error.filename or args.to or BROUGHT
            print(f"bench.data: {SETS[name].title}: cannot write to {where}: {error.strerror}", file=sys.stderr)
            status = 1
        except KeyboardInterrupt:
            print("\nbench.data: interrupted, and nothing of what was not yet whole is kept", file=sys.stderr)
            return 130
    return status


def _provide(dataset: DataSet, to: Path | None, folder: Path | None) -> str:
    """Where the set is, and where it came from."""
    root = to or BROUGHT
    if found := bring.find(dataset, [root / dataset.folder]):
        return f"{found[0]}, already there"
    if folder is not None:
        candidates = [folder_source(bring.within(folder, dataset))]
    else:
        found = bring.find(dataset)
        if found and to is None:
            return f"{found[0]}, already there"
        candidates = [*([folder_source(found[0])] if found else []), *sources(dataset)]
    return "{}, from {}".format(*bring.bring(dataset, root, candidates))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
