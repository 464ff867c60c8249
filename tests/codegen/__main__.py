"""The command line: see tests/codegen/__init__.py."""

import argparse
import sys

from tests.codegen import measure, table, toolchain


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.codegen")
    parser.add_argument("action", choices=["check", "update"])
    parser.add_argument("--arch", type=int, nargs="+", help="compute capabilities; default: all that setup.py names")
    arguments = parser.parse_args()
    if toolchain.find_nvcc() is None:
        parser.error("nvcc was not found: put it on PATH or set CUDA_HOME")
    if arguments.action == "update" and toolchain.find_disassembler() is None:
        parser.error("update needs cuobjdump: from the CUDA toolkit, or from the triton package")

    gpus = arguments.arch or toolchain.SETUP["choose_gpus"]([], toolchain.known_gpus())
    sources = toolchain.kernel_sources()
    compiled = toolchain.compile_all(sources, gpus)
    measured = {key: value for each in compiled for key, value in measure.measure(each).items()}
    rows = table.read()
    if arguments.action == "update":
        table.write(table.updated(rows, measured))

    differences = table.differences(measured, rows)
    rows = table.read()
    failures = [f"{each.source.name}: {line}" for each in compiled for line in measure.warnings(each.log)]
    failures += table.too_many(measured, sources)
    failures += table.resource_failures(measured, rows) + table.code_failures(measured, rows)
    print(*differences, *table.summary(measured), sep="\n")
    print(*(f"FAILED {line}" for line in failures), f"{len(failures)} failures", sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
