"""How fastreg's modules appear in ``torch.fx`` graphs."""

import torch
from torch.fx import Proxy, Tracer


def traced_call(module: torch.nn.Module, *inputs) -> Proxy | None:
    """The graph node of a call of this module, where the first input is traced symbolically; else None.

    A tracer takes the modules of torch.nn for leaves, and follows all others into forward, where branches on shapes
    fail and the training flag becomes a constant. This makes a leaf of any module.
    """
    input = inputs[0]
    if not isinstance(input, Proxy) or not isinstance(input.tracer, Tracer) or module is input.tracer.root:
        return None
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(module), inputs, {})
