"""Dropout and batch norm as functions, with the signatures of ``torch.nn.functional``; and what it lacks.

Where a call goes:

- CPU and CUDA tensors whose backend was compiled: fastreg's operators;
- under ``torch.jit.trace``, and where no backend was compiled: dropout composed of torch's operators, with the same
  masks, and torch's own batch norm;
- everything else (other devices, dtypes and layouts, tensor subclasses, ``FASTREG_DISABLE=1``): torch's own functions.
"""

from fastreg._activation import Activation
from fastreg.functional._batch_norm import batch_norm
from fastreg.functional._drop_path import drop_path
from fastreg.functional._dropout import (
    alpha_dropout,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
)
from fastreg.functional._dropout_mask import dropout_mask
from fastreg.functional._fused import act_dropout, batch_norm_act

__all__ = [
    "Activation",
    "act_dropout",
    "alpha_dropout",
    "batch_norm",
    "batch_norm_act",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_mask",
    "feature_alpha_dropout",
]
