"""Groups of processes that live as long as the session."""

import pytest

from tests.distributed.ranks import Ranks


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    """A group of two processes, for all tests."""
    yield from ranks_of(2, tmp_path_factory)


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory):
    """A group of four processes, for all tests."""
    yield from ranks_of(4, tmp_path_factory)


def ranks_of(size, tmp_path_factory):
    group = Ranks(size, tmp_path_factory.mktemp("ranks"))
    yield group
    group.close()


@pytest.fixture(params=["two_ranks", "four_ranks"])
def ranks(request):
    return request.getfixturevalue(request.param)
