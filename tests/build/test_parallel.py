import pytest

from tests.parallel import arguments


@pytest.mark.parametrize(
    ("jobs", "has_xdist", "has_gpu", "expected"),
    [
        (2, True, False, "-n 2 --dist loadfile"),
        (16, True, False, "-n 8 --dist loadfile"),
        (1, True, False, ""),
        (2, False, False, ""),
        (2, True, True, ""),
    ],
)
def test_processes(jobs, has_xdist, has_gpu, expected):
    assert arguments(jobs, has_xdist, has_gpu) == expected
