"""Autograd formulas and fake kernels of the operators ``torch.ops.fastreg.*``, and the cheap way to call them.

The schemas are in csrc/ops.cpp, the implementations in csrc/cpu and csrc/cuda. Autograd:

- First derivatives are nodes in C++, registered with the dispatcher (csrc/autograd): eager calls, direct calls,
  ``torch.compile`` and export take the same.
- Dropout is its own derivative; the second derivatives of batch norm and of the fused operators are here.

``torch.func.vmap``: vmap.py has the rules.
"""

from fastreg._extension import available

if available("cpu"):  # an extension is loaded: the operators exist
    from fastreg.ops import act_dropout, batch_norm, batch_norm_act, dropout, vmap

    __all__ = ["act_dropout", "batch_norm", "batch_norm_act", "dropout", "vmap"]
