"""README and manual keep their promises: examples run as printed, files and commands exist, the reference is whole."""

import re
import runpy
from pathlib import Path

import pytest

from tests.build import manual

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}


def found(pattern, flags=re.MULTILINE):
    """(page, match) of a pattern in all pages."""
    return [(page, match) for page, text in TEXTS.items() for match in re.findall(pattern, text, flags)]


EXAMPLES = found(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page, example", EXAMPLES, ids=[page for page, _ in EXAMPLES])
def test_example_runs(page, example, tmp_path):
    path = tmp_path / "example.py"  # a file, so that forwards have a source
    path.write_text(example)
    runpy.run_path(str(path))


def test_readme_has_an_example():
    assert "```python\n" in TEXTS["README.md"]


@pytest.mark.parametrize("target", sorted({target for _, target in found(r"(?:^|`)make ([a-z][a-z-]*)")}))
def test_make_has_the_target(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page, path", sorted(set(found(r"\]\(([^):#]+)\)"))))
def test_linked_file_exists(page, path):
    assert ((ROOT / page).parent / path).exists()


@pytest.mark.parametrize("module", sorted({name for _, name in found(r"python -m ((?:bench|tests|fastreg)[\w.]*)")}))
def test_module_can_be_run(module):
    path = ROOT.joinpath(*module.split("."))
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def test_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 160


@pytest.mark.parametrize("name", manual.public_names())
def test_public_name_is_documented(name):
    assert manual.problems_of(name) == []


@pytest.mark.parametrize("name", manual.public_names())
def test_public_name_has_a_place_in_the_reference(name):
    reference = "\n".join(text for page, text in TEXTS.items() if page.startswith("docs/api/"))
    assert re.search(rf"^\.\. auto(function|class):: {re.escape(name)}$", reference, re.MULTILINE)


def complete(input: "Tensor", p: float = 0.5) -> "Tensor":  # noqa: F821
    """Source: Somebody et al.

    Args:
        input (Tensor): any shape; float32.
        p (float): Default: 0.5.

    Returns:
        Tensor: like input.

    Raises:
        ValueError: p is bad.
    """


def test_a_complete_docstring_is_found_complete():
    assert manual.problems(complete, is_layer=True) == []


@pytest.mark.parametrize(
    "removed, problem",
    [
        ("p (float): Default: 0.5.", "p must be among its arguments"),
        ("Default: 0.5.", "p must have its default"),
        ("Returns:", "must say what it returns"),
        ("Raises:", "must say what it raises"),
        ("any shape", "must say the shapes"),
        ("float32", "must say the dtypes"),
        ("Source:", "must name its source"),
    ],
)
def test_what_a_docstring_lacks_is_found(removed, problem):
    def function(input: "Tensor", p: float = 0.5) -> "Tensor": ...  # noqa: F821

    function.__doc__ = complete.__doc__.replace(removed, "")
    assert problem in manual.problems(function, is_layer=True)


def test_a_missing_annotation_is_found():
    def function(input, p: float = 0.5): ...

    function.__doc__ = complete.__doc__
    assert manual.problems(function, is_layer=True)[:2] == [
        "input must have a type",
        "must have the type of its result",
    ]
