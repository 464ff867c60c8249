"""The order of fastreg's modules: none imports one of a layer above its own, and no imports go round in a circle.

Imports inside functions count as well: where one is there because a module takes long to import, the order holds too.

    python -m tests.build.import_order
"""

import ast
import graphlib
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "fastreg"
# From below; of packages, all modules. "" is the package itself: fastreg/__init__.py.
LAYERS = (
    ("_activation", "_extension", "_routing", "reference"),
    ("ops",),
    ("autograd",),
    ("rng_states", "sharded_tensors", "sharding"),
    ("functional",),
    ("nn",),
    ("composed_patch", "conversion", "explanation", "export", "patching"),
    ("calls",),
    ("", "__main__", "running"),
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}


def modules_of(package):
    """The path of each module, by its name."""
    paths = {path: path.relative_to(package.parent).with_suffix("").parts for path in sorted(package.rglob("*.py"))}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in paths.items()}


def imports_of(name, path, modules):
    """(line, module) for each import of one of the modules, wherever it stands."""
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            named = [f"{base}.{alias.name}" for alias in node.names]
            imported = [module if module in modules else base for module in named]
        else:
            continue
        yield from ((node.lineno, module) for module in imported if module in modules)


def layer_of(package, module):
    top = module.removeprefix(package.name).removeprefix(".").split(".")[0]
    return LAYER_OF.get(top)


def problems_of(package):
    """What is wrong, a sentence each."""
    modules, problems, graph = modules_of(package), [], {}
    for name, path in modules.items():
        where, own = path.relative_to(package.parent), layer_of(package, name)
        if own is None:
            problems.append(f"{where}: LAYERS must have a place for {name}")
            continue
        imports = list(imports_of(name, path, modules))
        graph[name] = {module for _, module in imports}
        for line, module in imports:
            if (layer := layer_of(package, module)) is not None and layer > own:
                problems.append(f"{where}:{line}: {name} must not import {module}, which is above it")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        problems.append(f"imports must not go round in a circle: {' -> '.join(reversed(error.args[1]))}")
    return problems


if __name__ == "__main__":
    found = problems_of(PACKAGE)
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    sys.exit(bool(found))
