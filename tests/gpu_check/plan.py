"""The phases in order of worth, with the time that each may take; and the whole plan, printed."""

from __future__ import annotations

import math

from tests.gpu_check import benchmarks, builds, cpp_tests, environment, python_tests
from tests.gpu_check.runner import RESERVE
from tests.gpu_check.steps import Outcome, Phase, single

SECONDS = {"short": 110, "timings": 420, "end-to-end": 240, "training": 120}
SHORT_TABLE_WITHIN = 300  # seconds of the start, though all before it takes as long as it may


def _spread(seconds, units, workers):
    """An estimate for so many units of about so many seconds, some at a time."""
    return lambda job: math.ceil(units() / workers(job)) * seconds


def _four(job):
    return max(1, min(4, job.cores))


def _bench(name, share, alone=True):
    seconds = SECONDS[name]
    return Phase(
        f"bench.{name}",
        benchmarks.part(name, seconds),
        limit=seconds,
        estimate=lambda job: 0.8 * seconds,
        share=share,
        least=45,
        needs=["build.extension"],
        products=lambda job: [job.report.folder / f"{name}.json"],
        needs_gpu=False,
        alone=alone,
    )


PHASES = [
    Phase(
        "environment",
        lambda job: single("environment", environment.steps, 15),
        limit=15,
        estimate=lambda job: 5,
        needs_gpu=False,
    ),
    Phase(
        "build.extension",
        builds.extension,
        limit=builds.SECONDS,
        estimate=builds.estimate("build.extension"),
        least=20,
        products=builds.extension_files,
        needs_gpu=False,
    ),
    Phase(
        "build.kernels",
        builds.kernels,
        limit=builds.SECONDS,
        estimate=builds.estimate("build.kernels"),
        least=20,
        products=lambda job: [builds.kernels_binary(job)],
    ),
    Phase(
        "tests.cpp",
        cpp_tests.kernels,
        limit=75,
        estimate=_spread(10, lambda: len(cpp_tests.groups()), _four),
        workers=_four,
        needs=["build.kernels"],
    ),
    _bench("short", share=1.0),
    Phase(
        "tests.python",
        python_tests.units,
        limit=300,
        estimate=_spread(25, lambda: len(python_tests.files()), python_tests.workers),
        share=0.6,
        workers=python_tests.workers,
        needs=["build.extension"],
    ),
    Phase(
        "sanitizer",
        cpp_tests.sanitizers,
        limit=240,
        estimate=_spread(15, lambda: len(cpp_tests.SANITIZED) * len(cpp_tests.TOOLS), _four),
        share=0.6,
        workers=_four,
        needs=["build.kernels"],
    ),
    _bench("timings", share=0.6),
    _bench("end-to-end", share=0.6),
    _bench("training", share=1.0),
]


def describe(phases, job, budget=None):
    """The plan as lines: what begins when if all takes as long as estimated, and the time that each phase may take."""
    end = math.inf if budget is None else budget - RESERVE
    lines = [f"{'phase':<18}{'begins':>8}{'estimate':>10}{'at most':>9}  what runs"]
    begun, alone_until, ends = 0.0, 0.0, {}
    for phase in phases:
        begun = max([begun, alone_until, *(ends[name] for name in phase.needs if name in ends)])
        if phase.alone:
            begun = max([begun, *ends.values()])
        most = min(phase.limit, phase.share * (end - begun))
        if most < phase.least:
            lines.append(f"{phase.name:<18}{begun:>6.0f} s{'':>19}  no time is left")
            continue
        estimate = min(phase.estimate(job), most)
        ends[phase.name] = begun + estimate
        if phase.alone:
            alone_until = ends[phase.name]
        lines.append(f"{phase.name:<18}{begun:>6.0f} s{estimate:>8.0f} s{most:>7.0f} s  {_what(phase, job)}")
    lines.append(f"ends at {max(ends.values(), default=0):.0f} s" + ("" if budget is None else f" of {budget:.0f} s"))
    return lines


def _what(phase, job):
    units = phase.units(job)
    if isinstance(units, Outcome):
        return f"here {units.status}: {units.note}"
    beside = "alone" if phase.alone else f"{phase.workers(job)} at a time"
    names = ", ".join(unit.name for unit in units)
    return beside if names == phase.name else f"{len(units)} units, {beside}: {names}"
