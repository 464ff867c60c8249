"""Which calls are fastreg's, and which of its ways they take."""

import sys

import torch
from torch import Tensor, strided
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.compiler import is_exporting
from torch.jit import is_tracing

from fastreg._extension import available, disabled

PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor))
_FLOATING_DTYPES = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))
_DEVICES = frozenset(() if disabled() else ("cpu", "cuda"))
_COMPILED_BACKENDS = frozenset(device for device in _DEVICES if available(device))


def device_type(tensor: Tensor) -> str:
    """tensor.device.type, of which torch makes a new string each time: in a small call that takes long."""
    return "cpu" if tensor.is_cpu else "cuda" if tensor.is_cuda else tensor.device.type


def is_sharded(input) -> bool:
    """Whether input is a DTensor whose parts are tensors that fastreg computes with."""
    if type(input) in PLAIN_TYPES:
        return False
    # Nobody has a DTensor before its module is imported, which takes long.
    module = sys.modules.get("torch.distributed.tensor")
    return (
        module is not None
        and type(input) is module.DTensor
        and input.dtype in _FLOATING_DTYPES
        and input.device.type in _DEVICES
    )


def is_ours(input) -> bool:
    """Whether input is a tensor that fastreg computes with: anything else is torch's."""
    return (
        type(input) in PLAIN_TYPES
        and input.dtype in _FLOATING_DTYPES
        and device_type(input) in _DEVICES
        and input.layout is strided
        and not input.is_nested
    )


def has_operators(device_type: str) -> bool:
    """Whether the operators run on devices of this type. All of torch's transforms follow them, but for the tracer of
    ``torch.jit`` and the export to ONNX, whose programs are to run without fastreg."""
    if device_type not in _COMPILED_BACKENDS or is_tracing():
        return False
    return not is_exporting() or not torch.onnx.is_in_onnx_export()


def is_transformed() -> bool:
    """Whether torch.func's transforms or forward-mode AD are at work: results may hold more than their types tell, and
    must not be written to."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def takes_dropout(input) -> bool:
    """Whether fastreg drops elements of input, or of its parts; else torch does."""
    return is_ours(input) or is_sharded(input)
