"""Look for a program that a converted model does not follow, and print the smallest one like it."""

import argparse
import collections

from tests.conversion.differential.programs import generate
from tests.conversion.differential.runner import check
from tests.conversion.differential.shrinking import shrink


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.conversion.differential", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--count", type=int, default=2000, help="how many programs")
    parser.add_argument("--all", action="store_true", help="go on after failures, and count their kinds")
    parser.add_argument("--whole", action="store_true", help="do not look for a smaller program")
    options = parser.parse_args()
    kinds = collections.defaultdict(list)
    for seed in range(options.seed, options.seed + options.count):
        program = generate(seed)
        found = check(program)
        if found is None:
            continue
        if options.all:
            kinds[found.kind].append(seed)
            continue
        print(f"{program.source}\nseed {seed}: {found}")
        if not options.whole:
            smallest = shrink(program, check, found.kind)
            print(f"\nThe smallest like it: {check(smallest)}\n\n{smallest.source}")
        return 1
    for kind, seeds in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):6} {kind}: seeds {', '.join(map(str, seeds[:8]))}")
    print(f"{sum(map(len, kinds.values()))} of {options.count} programs differ")
    return bool(kinds)


if __name__ == "__main__":
    raise SystemExit(main())
