"""The graph of one module's forward, its children being leaves; or the reason why there is none.

torch.fx follows Python with symbolic arguments. What it would get wrong without a word is refused here: random numbers
drawn outside of the graph, gradient modes and checkpointing, attributes that forward sets, tensors made in forward, and
questions about the type of a value that the graph does not know.
"""

import builtins
import random
import sys
from contextlib import contextmanager

import numpy
import torch
from torch import Tensor, nn
from torch.fx import Graph, Proxy, Tracer

from fastreg.conversion.layers import CONTAINERS, is_hooked, qualified_name
from fastreg.nn.derived import original_of

TENSOR = "tensor"


class Untraceable(Exception):
    """forward cannot be followed; the message says why."""


def kind(argument):
    """What a plan has to know about an argument, hashable; None where no plan is made for it."""
    if isinstance(argument, Tensor):
        return TENSOR
    if type(argument) in (list, tuple) and all(isinstance(item, Tensor) for item in argument):
        return type(argument), len(argument)
    if argument is None or type(argument) in (bool, int, float, str):
        return "constant", type(argument), argument
    return None


def is_container(module: nn.Module) -> bool:
    """Whether a module calls its children one after the other and does nothing else."""
    own = original_of(type(module))
    return (own.forward is nn.Sequential.forward or qualified_name(own) in CONTAINERS) and not is_hooked(module)


class Argument(Proxy):
    """A proxy of an argument that is known to be a tensor: ``isinstance(argument, Tensor)`` holds."""


def _ambience():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch._C._autograd._top_saved_tensors_default_hooks(True) is None,
    )


class ForwardTracer(Tracer):
    """Traces a module's own forward.

    inline: the paths of the containers that are followed; every other child is a leaf.
    Nodes carry ``meta["container"]``, the paths of the containers around them, the innermost last.
    """

    def __init__(self, inline, arguments, keywords):
        super().__init__()
        self.proxy_buffer_attributes = True
        self.inline, self.arguments, self.keywords = inline, arguments, keywords
        self.containers = ()
        self.ambience = _ambience()

    def is_leaf_module(self, module, path):
        return path not in self.inline

    def call_module(self, module, forward, args, kwargs):
        path = self.path_of_module(module)
        if path not in self.inline:
            return super().call_module(module, forward, args, kwargs)
        outer, self.containers = self.containers, (*self.containers, path)
        try:
            return super().call_module(module, forward, args, kwargs)
        finally:
            self.containers = outer

    def create_node(self, *args, **kwargs):
        if _ambience() != self.ambience:
            raise Untraceable("forward changes the gradient mode, autocast or what is saved for the backward pass")
        node = super().create_node(*args, **kwargs)
        node.meta["container"] = self.containers
        return node

    def create_arg(self, a):
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            raise Untraceable("forward makes a tensor, or uses one that is neither a parameter nor a buffer")
        if isinstance(a, dict) and type(a) is not dict:
            raise Untraceable(f"forward makes a {type(a).__name__}")
        return super().create_arg(a)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        counter = iter(range(sys.maxsize))
        values = [self._symbol(argument, counter) for argument in self.arguments]
        keywords = {name: self._symbol(argument, counter) for name, argument in self.keywords}
        forward = original_of(type(self.root)).forward
        return lambda: forward(self.root, *values, **keywords), []

    def _symbol(self, argument, counter):
        if argument == TENSOR:
            return Argument(self.create_node("placeholder", f"input_{next(counter)}", (), {}), self)
        name, count = argument[:2]
        if name == "constant":
            return argument[2]
        whole = Proxy(self.create_node("placeholder", f"input_{next(counter)}", (), {}), self)
        return name(Argument(whole[i].node, self) for i in range(count))


@contextmanager
def _types_of_proxies():
    """isinstance() in forward: true to an argument's type, refused for other proxies.

    Only the function that Python code sees is replaced. A class that calls itself a tensor would be taken for one by
    torch's C++ code, too.
    """
    real = builtins.isinstance

    def isinstance_of_proxies(value, classes):
        answer = real(value, classes)
        if answer or not issubclass(type(value), Proxy):
            return answer
        module = sys._getframe(1).f_globals.get("__name__", "")
        if module.startswith(("torch.", "fastreg.")) and not module.startswith("torch.nn.modules."):
            return answer
        if type(value) is Argument:
            return issubclass(Tensor, classes)
        raise Untraceable("forward asks for the type of an intermediate value")

    builtins.isinstance = isinstance_of_proxies
    try:
        yield
    finally:
        builtins.isinstance = real


@contextmanager
def _no_random_numbers():
    """Refuses forward where it drew random numbers that the graph does not have, and takes the draws back."""
    torchs, pythons, numpys = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    try:
        yield
        drawn = pythons != random.getstate() or not torch.equal(torchs, torch.get_rng_state())
        drawn = drawn or any(numpy.any(a != b) for a, b in zip(numpys, numpy.random.get_state(), strict=True))
        if drawn:
            raise Untraceable("forward draws random numbers")
    finally:
        torch.set_rng_state(torchs)
        random.setstate(pythons)
        numpy.random.set_state(numpys)


def _contents(value):
    return list(value.items()) if isinstance(value, dict) else list(value) if isinstance(value, list | set) else value


@contextmanager
def _no_attributes(root):
    """Refuses forward where it set attributes of its module, and takes that back."""
    before = dict(root.__dict__)
    contents = {name: _contents(value) for name, value in before.items()}

    def same(name, value):
        now = _contents(root.__dict__.get(name))
        if isinstance(value, list):
            return isinstance(now, list) and len(now) == len(value) and all(map(_is, now, value))
        return now is value or now is before[name]

    try:
        yield
        if root.__dict__.keys() != before.keys() or not all(same(*item) for item in contents.items()):
            raise Untraceable("forward sets attributes of its module")
    finally:
        for name in root.__dict__.keys() - before.keys():
            del root.__dict__[name]
        root.__dict__.update(before)


def _is(a, b):
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_is, a, b))
    return a is b


def trace(root: nn.Module, inline, arguments, keywords=()) -> Graph:
    """The graph of root's own forward.

    inline: paths of containers to follow. arguments, keywords: the :func:`kind` of each argument, and (name, kind).

    Raises:
        Untraceable: forward cannot be followed, or not truly.
    """
    try:
        with torch.enable_grad(), _no_attributes(root), _no_random_numbers(), _types_of_proxies():
            return ForwardTracer(inline, arguments, keywords).trace(root)
    except Untraceable:
        raise
    except Exception as error:  # forward is anyone's code, and meets arguments that it was not made for
        raise Untraceable(f"torch.fx cannot follow forward: {str(error).strip().splitlines()[0:1]}") from error
