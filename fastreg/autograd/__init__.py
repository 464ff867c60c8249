"""Derivatives in Python: one page per operation, on which forward, backward and what is kept between them can be read.

As ``torch.autograd.Function``s they are taken

- over the operators, in place of the nodes in C++ (csrc/autograd), with the environment variable
  ``FASTREG_AUTOGRAD=python``: operators.py registers them with the dispatcher;
- over the reference, where no extension was built: dropout.

Second derivatives are here in either case: dropout is its own derivative, and of batch norm and of the fused operators
there are none in C++.
"""

from fastreg._extension import available
from fastreg.autograd import dropout

if available("cpu"):  # an extension is loaded: the operators exist
    from fastreg.autograd import act_dropout, batch_norm, batch_norm_act, operators  # noqa: F401

__all__ = ["dropout"]
