"""`python -m bench.renew [PART...]`: on a machine that runs nothing else, measure anew all that bench/results has of
its CPU, draw the charts, and write the README's results. Each part ends at once where something else runs."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from bench import environment, quiet

CORES = os.cpu_count()
THREADS = {"timings": CORES, "users": CORES, "end-to-end": CORES, "kernelbench": CORES, "training": 1, "studies": 1}


def commands(part: str, folder: Path) -> list[list[str]]:
    """Of `python -m`, for a part whose results go to the folder."""
    threads = ["--device", "cpu", "--threads", str(THREADS[part])]
    if part in ("timings", "users", "end-to-end", "kernelbench"):
        more = ["--more", "--minutes", "20"] if part == "timings" else []
        return [["bench", "--only", part, *threads, *more, "--out", str(folder)]]
    studies = ["fashion-dropout", "--study"] if part == "studies" else []
    training = ["bench.training", *studies, "all", *threads, "--out", str(folder / "training")]
    return [["bench.data"], training]  # or else digits would stand in


def folder_name(model: str, instruction_set: str, threads: int) -> str:
    """cpu-intel-xeon-avx512-2-threads"""
    words = re.sub(r"\(\w+\)|@.*|\b(cpu|processor|\d+-core)\b", " ", model.lower())
    slug = "-".join(re.findall(r"[a-z0-9]+", words))
    return f"cpu-{slug}-{instruction_set}-{threads}-thread{'s' * (threads > 1)}"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: that of the first command that fails, or 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.renew", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(THREADS)} (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and run nothing")
    args = parser.parse_args(argv)
    if unknown := [part for part in args.parts if part not in THREADS]:
        parser.error(f"PART must be one of {', '.join(THREADS)}, got {', '.join(unknown)}")
    instruction_set = environment.describe(environment.find_device("cpu"))["instruction_set"]
    steps = []
    for part in args.parts or THREADS:
        name = folder_name(environment.cpu_model(), instruction_set, THREADS[part])
        steps += commands(part, quiet.RESULTS.relative_to(quiet.ROOT) / name)
    for step in [*steps, ["bench.redraw"], ["bench.readme"]]:
        print("$ python -m", *step, flush=True)
        if not args.dry_run and (status := subprocess.run([sys.executable, "-m", *step], cwd=quiet.ROOT).returncode):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
