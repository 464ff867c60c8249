"""How fastreg's modules appear in ``torch.fx`` graphs, and why not in ``torch.jit.script``'s."""

from typing import Any

import torch
from torch.fx import Proxy, Tracer

from fastreg.nn.derived import CONVERTED, Derived


def traced_call(module: torch.nn.Module, *inputs: Any) -> Any:
    """The graph node of a call of this module, where the first input is traced symbolically; else None. It stands for
    the result.

    A tracer takes the modules of torch.nn for leaves, and follows all others into forward, where branches on shapes
    fail and the training flag becomes a constant. This makes a leaf of any module.
    """
    input = inputs[0]
    if not isinstance(input, Proxy) or not isinstance(input.tracer, Tracer) or module is input.tracer.root:
        return None
    converted = CONVERTED in module.__dict__ or isinstance(module, Derived)
    if converted and type(input.tracer).__module__.startswith("torch.ao.quantization"):
        raise RuntimeError(
            f"quantisation of a converted model: {type(module).__name__} would be left as it is, and fold into no "
            "convolution: call fastreg.revert(model) first"
        )
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(module), inputs, {})


def not_scriptable(module: torch.nn.Module) -> None:
    """``__prepare_scriptable__`` of fastreg's modules: what ``torch.jit.script`` calls before it compiles."""
    name = type(module).__name__
    remedy = "use torch.jit.trace or torch.export"
    if hasattr(torch.nn, name):
        remedy = (
            f"script the model with torch.nn.{name} in its place, which takes the same state_dict (fastreg.revert "
            f"makes it of a converted layer), or {remedy}"
        )
    raise RuntimeError(f"torch.jit.script cannot compile fastreg.nn.{name}: {remedy}")
