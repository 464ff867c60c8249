"""What the docstrings of fastreg's public names must say.

Every argument with its default, results, errors; of functions and modules on tensors the shapes, the dtypes, and a
source: a paper or a formula. A docstring may leave that to the one that it refers to, by :func: or :class:.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

import fastreg
from fastreg import conversion

LAYERS = (fastreg.functional, fastreg.nn)
MODULES = (fastreg, *LAYERS, conversion)


def public_names():
    """Of everything that fastreg exports; each once, by its shortest name."""
    names, seen = [], set()
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, ModuleType) and id(value) not in seen:
                seen.add(id(value))
                names.append(f"{module.__name__}.{name}")
    # dropout_mask is known by both; it belongs to the functions.
    return sorted("fastreg.functional.dropout_mask" if name == "fastreg.dropout_mask" else name for name in names)


def value_of(name):
    value = fastreg
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def problems_of(name):
    """What the docstring of a public name lacks, a sentence each."""
    return problems(value_of(name), name.startswith(tuple(f"{module.__name__}." for module in LAYERS)))


def problems(value, is_layer):
    text = inspect.getdoc(value) or ""
    if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        fields = getattr(value, "_fields", None) or [field.name for field in dataclasses.fields(value)]
        return [f"{field} must be described" for field in fields if not re.search(rf"\b{field}\b", text)]
    is_class = inspect.isclass(value)
    signature = inspect.signature(value.__init__ if is_class else value)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    # What it leaves to others: everything but its own result.
    whole = "\n".join([text, *referred(text)])
    found = []
    for parameter in parameters:
        if parameter.annotation is inspect.Parameter.empty:
            found.append(f"{parameter.name} must have a type")
    if not is_class and signature.return_annotation is inspect.Signature.empty:
        found.append("must have the type of its result")
    for parameter in parameters:
        line = described(parameter.name, whole)
        if line is None:
            found.append(f"{parameter.name} must be among its arguments")
        elif not has_default(parameter, line):
            found.append(f"{parameter.name} must have its default")
    nothing = (None, "None", Iterator[None])
    if not is_class and signature.return_annotation not in nothing and not re.search("Returns:|Yields:", text):
        found.append("must say what it returns")
    if parameters and "Raises:" not in whole:
        found.append("must say what it raises")
    if is_layer:
        if not re.search(r"\[[^\]]*(\b[NCLHWD]\b|features|\.\.\.)[^\]]*\]|any shape|output: any", whole):
            found.append("must say the shapes")
        if "float32" not in whole:
            found.append("must say the dtypes")
        if "Source:" not in whole:
            found.append("must name its source")
    return found


def described(name, text):
    """The paragraph of the arguments that describes one; None where there is none."""
    for part in re.findall(r"^Args:\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE):
        for paragraph in re.split(r"\n(?=    \S)", part):
            head = paragraph.partition(":")[0]
            if re.search(rf"(?<!\w){name}(?!\w)", head.partition("(")[0]):
                return paragraph
    return None


def has_default(parameter, paragraph):
    """Optional ones say it by that word; several in a row, and those that are as elsewhere, have theirs there."""
    if parameter.default in (inspect.Parameter.empty, None):
        return True
    return "Default:" in paragraph or re.search(r":\s+as\s+(in\s+)?:", paragraph) is not None


def referred(text, seen=None):
    """The docstrings that one refers to, and those that they refer to."""
    seen = set() if seen is None else seen
    found = []
    for name in re.findall(r":(?:func|class):`~?([\w.]+)`", text):
        last = name.rpartition(".")[2]
        module = next((m for m in MODULES if hasattr(m, last) and not name.startswith("torch.")), None)
        if module is not None and last not in seen:
            seen.add(last)
            other = inspect.getdoc(getattr(module, last)) or ""
            found += [other, *referred(other, seen)]
    return found
