"""What the tests of the benchmarks share."""

import functools

import pytest
import torch

from bench.timings import run
from bench.timings.cases import Case
from bench.timings.run import COPY, summarise

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other take long where the cores are shared, and the work here is tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def brief(monkeypatch):
    """Two rounds of a few calls for every case; torch.compile without a compiler, which takes long."""
    monkeypatch.setattr(run, "ROUNDS", (2, 2))
    monkeypatch.setattr(run, "BLOCK_SECONDS", 0)
    monkeypatch.setattr(run, "SECONDS_PER_CASE", {True: 0, False: 0})
    monkeypatch.setitem(run.POOL_BYTES, "cpu", 0)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def rows_of(case=Case("dropout", "forward", (4,)), **samples):  # noqa: B008
    """Rows of a case with the given samples, in seconds, of each provider; by default all take a second."""
    return list(summarise(case, {COPY: [1.0], "torch": [1.0], "fastreg": [1.0]} | samples))


def run_command(main, *arguments):
    """The exit status of a command."""
    try:
        return main(list(map(str, arguments)))
    except SystemExit as exit:
        return exit.code
