"""fastreg's modules import in order, and what is out of order is found."""

import pytest

from tests.build.import_order import PACKAGE, problems_of


def test_fastreg():
    assert problems_of(PACKAGE) == []


@pytest.fixture
def package(tmp_path):
    """A package called fastreg, in order, of files by their names; files replace them."""

    def package(files):
        ours = {
            "__init__.py": "from fastreg import nn",
            "_routing.py": "import torch",
            "ops/__init__.py": "from fastreg.ops import dropout",
            "ops/dropout.py": "from fastreg import _routing",
            "functional/__init__.py": "from fastreg.functional._dropout import dropout",
            "functional/_dropout.py": "from fastreg import ops\ndef dropout(): from fastreg import sharded_tensors",
            "sharded_tensors.py": "import fastreg.ops.dropout",
            "nn/__init__.py": "from ..functional import dropout",
        }
        for name, text in (ours | files).items():
            (tmp_path / "fastreg" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fastreg" / name).write_text(text)
        return tmp_path / "fastreg"

    return package


def test_in_order(package):
    assert problems_of(package({})) == []


@pytest.mark.parametrize(
    "line",
    [
        "from fastreg.functional._dropout import dropout",
        "from fastreg.functional import _dropout",
        "import fastreg.functional._dropout as ours",
        "from .functional import _dropout",
        "def inside():\n    if True:\n        from fastreg.functional import _dropout",
    ],
)
def test_an_import_from_above(package, line):
    """Besides, it closes a circle: what is above imports this module."""
    above, circle = problems_of(package({"sharded_tensors.py": line}))
    at = line.count("\n") + 1
    assert above == (
        f"fastreg/sharded_tensors.py:{at}: fastreg.sharded_tensors must not import fastreg.functional._dropout, "
        "which is above it"
    )
    assert "circle" in circle


@pytest.mark.parametrize("line", ["import fastreg", "from fastreg import __version__"])
def test_an_import_of_the_whole(package, line):
    assert "_routing must not import fastreg, which is above it" in problems_of(package({"_routing.py": line}))[0]


def test_a_circle(package):
    """Within a layer, closed by an import inside a function."""
    files = {
        "nn/one.py": "from fastreg.nn.two import f",
        "nn/two.py": "from . import three",
        "nn/three.py": "def f():\n    from fastreg.nn import one",
    }
    (problem,) = problems_of(package(files))
    one, two, three = (f"fastreg.nn.{name}" for name in ("one", "two", "three"))
    circles = [(one, two, three, one), (two, three, one, two), (three, one, two, three)]
    assert problem in [f"imports must not go round in a circle: {' -> '.join(circle)}" for circle in circles]


def test_a_module_without_a_place(package):
    (problem,) = problems_of(package({"new.py": ""}))
    assert problem == "fastreg/new.py: LAYERS must have a place for fastreg.new"
