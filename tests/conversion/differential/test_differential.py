"""Random programs: models that are converted compute what their Python says, at every call.

Where a case fails: ``python -m tests.conversion.differential --seed SEED --count 1`` prints the smallest such program.
"""

import functools
from collections import Counter

import pytest

from tests.conversion.differential import planted
from tests.conversion.differential.programs import generate
from tests.conversion.differential.runner import check, same
from tests.conversion.differential.shrinking import shrink

COUNT, PER_CASE = 2000, 50
AT_LEAST = 25  # programs with each feature
AT_LEAST_FUSED = 8  # programs of a case that call fused functions

# What forwards do that conversion must not change: the name before the slash in each feature and each planted fault.
ROWS = {
    "contexts": "autocast, gradient modes, inference mode and random states around and between layers",
    "branches": "on settings, attributes, containers, modes, types, shapes and values, which change between calls",
    "draws": "random numbers, of own generators also, and seeds between layers",
    "aliases": "tensors that are seen under other names, and written to",
    "order": "shared batch norms, and inputs, settings, parameters and statistics that change between operations",
    "attributes": "attributes that tensors lack, and errors of layers, that forward expects",
    "state": "lists, dicts, attributes and counters that forward fills",
    "threads": "first calls of copies at the same time",
    "patches": "forwards and methods that are replaced after convert",
    "later": "inputs, residuals and results that are written to after a call, or made in inference mode",
    "hooks": "of modules, of all modules, and of tensors",
}

# Programs with a relu at a value that is 0 but for rounding, of which the gradient then depends.
ROUNDED = {1841}

generated = functools.lru_cache(maxsize=None)(generate)
all_faults = pytest.mark.parametrize("name", planted.PLANTED)


@pytest.mark.parametrize("first", range(0, COUNT, PER_CASE))
def test_converted_is_plain(first):
    failed, fused = {}, 0

    def count(plain, ours):
        nonlocal fused
        fused += ours.fused > 0

    for seed in sorted(set(range(first, first + PER_CASE)) - ROUNDED):
        if (found := check(generate(seed), record=count)) is not None:
            failed[seed] = str(found)
    lines = [f"seed {seed}: {found}" for seed, found in failed.items()]
    assert not failed, "\n".join([*lines, generate(next(iter(failed))).source])
    assert fused >= AT_LEAST_FUSED


def test_each_feature_occurs():
    counts = Counter(feature for seed in range(COUNT) for feature in generated(seed).features)
    assert {feature: n for feature, n in counts.items() if n < AT_LEAST} == {}
    assert ROWS.keys() <= {feature.split("/")[0] for feature in counts}


def test_each_row_has_a_fault():
    assert {name.split("/")[0] for name in planted.PLANTED} == ROWS.keys()


def failure(fault, program):
    return check(program, fault.convert or same, same, source=fault.source(program))


@all_faults
def test_planted_fault_is_found(name):
    fault = planted.PLANTED[name]
    programs = filter(fault.applies, map(generated, range(COUNT)))
    assert any(failure(fault, program) is not None for program in programs)


def test_the_same_program_does_not_differ():
    assert all(check(generated(seed), same, same) is None for seed in range(PER_CASE))


def test_failing_program_is_made_smaller():
    fault = planted.PLANTED["aliases/+= out of place"]
    programs = filter(fault.applies, map(generated, range(COUNT)))
    program, found = next((p, found) for p in programs if (found := failure(fault, p)) is not None)
    smaller = shrink(program, lambda program: failure(fault, program), found.kind)
    assert failure(fault, smaller).kind == found.kind
    assert len(smaller.source.splitlines()) < len(program.source.splitlines()) / 2
