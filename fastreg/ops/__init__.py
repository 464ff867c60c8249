"""Autograd formulas and fake kernels of the operators ``torch.ops.fastreg.*``, and the cheap way to call them.

The schemas are in csrc/ops.cpp, the implementations in csrc/cpu and csrc/cuda. Two kinds of autograd:

- Each operator has a formula of its own, registered with the dispatcher: direct calls, ``torch.compile`` and export
  differentiate.
- Eager calls take a classic ``torch.autograd.Function`` (forward with ctx, one output) that calls the operator below
  autograd: it costs a third of the general machinery.
"""

from fastreg._extension import available

if available("cpu"):  # an extension is loaded: the operators exist
    from fastreg.ops import batch_norm, dropout

    __all__ = ["batch_norm", "dropout"]
