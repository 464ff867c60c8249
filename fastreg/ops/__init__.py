"""Fake kernels of the operators ``torch.ops.fastreg.*``, and the cheap way to call them.

The schemas are in csrc/ops.cpp, the implementations in csrc/cpu and csrc/cuda. Derivatives are registered with the
dispatcher, so that eager calls, direct calls, ``torch.compile`` and export take the same: csrc/autograd has the first,
fastreg/autograd the second. ``torch.func.vmap``: vmap.py has the rules.
"""

from fastreg._extension import available

if available("cpu"):  # an extension is loaded: the operators exist
    from fastreg.ops import act_dropout, batch_norm, batch_norm_act, dropout, vmap

    __all__ = ["act_dropout", "batch_norm", "batch_norm_act", "dropout", "vmap"]
