"""Autograd formulas and fake kernels of the operators ``torch.ops.fastreg.*``, and the cheap way to call them.

The schemas are in csrc/ops.cpp, the implementations in csrc/cpu and csrc/cuda. Autograd:

- Each operator has a formula of its own, registered with the dispatcher: direct calls, ``torch.compile`` and export
  differentiate.
- Batch norm's is a node in C++ (csrc/batch_norm_autograd.cpp), which eager calls take as well.
- Eager calls of dropout take a classic ``torch.autograd.Function`` (forward with ctx, one output) that calls the
  operator below autograd: it costs a third of the general machinery.
"""

from fastreg._extension import available

if available("cpu"):  # an extension is loaded: the operators exist
    from fastreg.ops import batch_norm, dropout

    __all__ = ["batch_norm", "dropout"]
