"""A parent's forward with its fused sites, compiled, and what has to hold for it to be used."""

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from fastreg.conversion import layers
from fastreg.conversion.patterns import Matcher, Site, rewrite
from fastreg.conversion.tracing import TENSOR, Untraceable, is_container, trace


class Plan:
    """How to compute a module's forward in one mode, for one kind of arguments.

    sites: the fused sites. inlined: paths of the containers that the plan computes itself. reason: why forward could
    not be traced, if so. left: what in it is not replaced or not fused, and why. function: None where nothing is fused.
    """

    def __init__(self, module: nn.Module, arguments=(TENSOR,), keywords=()):
        self.sites: list[Site] = []
        self.inlined: frozenset[str] = frozenset()
        self.left: dict[str, str] = {}
        self.function, self.reason = None, None
        try:
            self._make(module, arguments, keywords)
        except Untraceable as error:
            self.reason = str(error)

    def _make(self, module, arguments, keywords):
        containers = _containers(module)
        graph = trace(module, containers, arguments, keywords)
        matcher = Matcher(module, graph)
        sites = matcher.sites()
        if containers:
            # A site within a container is the container's own; only what a site of this forward crosses is inlined.
            around = [[node.meta["container"] for node in site.nodes] for site in sites]
            crossing = [paths for paths in around if not _common(paths)]
            self.inlined = frozenset(path for paths in crossing for containers in paths for path in containers)
            graph = trace(module, self.inlined, arguments, keywords)
            matcher = Matcher(module, graph)
            sites = matcher.sites()
        self.sites, self.left = sites, matcher.left
        if not sites:
            return
        rewrite(graph, sites)
        code = graph.python_code("self")
        scope = dict(code.globals)
        exec(compile(code.src, f"<fastreg plan of {type(module).__name__}>", "exec"), scope)
        self.function = scope["forward"]
        self._assume(module)

    def _assume(self, module):
        skipped = {path for site in self.sites for path in site.modules}
        self.hookless = [
            (tuple(path.split(".")), type(module.get_submodule(path))) for path in sorted(skipped | self.inlined)
        ]
        lists = [name for name, child in module.named_children() if isinstance(child, nn.ModuleList | nn.ModuleDict)]
        self.children = [
            (tuple(path.split(".")) if path else (), _children(module.get_submodule(path)))
            for path in ("", *sorted(self.inlined), *lists)
        ]
        self.settings = [
            (tuple(path.split(".")) if path else (), _settings(module.get_submodule(path)))
            for path in ("", *sorted(self.inlined))
        ]

    def holds(self, module: nn.Module) -> bool:
        """Whether the module is still as it was when the plan was made, and nothing wants to see the inner values."""
        if module_hooks._has_any_global_hook():
            return False
        for path, children in self.children:
            if _children(_at(module, path)) != children:
                return False
        for path, cls in self.hookless:
            child = _at(module, path)
            if type(child) is not cls or layers.is_hooked(child):
                return False
        for path, settings in self.settings:
            attributes = _at(module, path).__dict__
            for name, value in settings:
                now = attributes.get(name, _MISSING)
                if now is not value and (type(now) is not type(value) or type(now) not in _SCALARS or now != value):
                    return False
        return True


_MISSING = object()
_SCALARS = (bool, int, float, str)
_NOT_SETTINGS = set(nn.Module().__dict__)


def _settings(module):
    """The attributes that forward may depend on: all but those of every module."""
    return [
        (name, value)
        for name, value in module.__dict__.items()
        if name not in _NOT_SETTINGS and not name.startswith("_fastreg") and not isinstance(value, torch.Tensor)
    ]


def _children(module):
    return [(name, type(child)) for name, child in module._modules.items()]


def _at(module, path):
    for name in path:
        module = module._modules[name]
    return module


def _containers(module, prefix=""):
    """The paths of the containers below a module that can be inlined."""
    found = set()
    for name, child in module.named_children():
        if is_container(child):
            found |= {prefix + name} | _containers(child, f"{prefix}{name}.")
        elif prefix == "" and isinstance(child, nn.ModuleList):
            found |= _containers(child, f"{name}.")
    return frozenset(found)


def _common(paths):
    """The containers that are around all nodes of a site."""
    return [same[0] for same in zip(*paths, strict=False) if len(set(same)) == 1]
