"""Dropout and batch normalisation for PyTorch, fast on CUDA and CPU: drop-in functions and modules.

fastreg.nn          modules, in place of torch.nn's
fastreg.functional  functions, in place of torch.nn.functional's
fastreg.reference   the same in plain PyTorch
"""

from fastreg import functional, nn, reference
from fastreg._extension import build_info
from fastreg.explanation import explain

__version__ = "0.1.0"

__all__ = ["build_info", "explain", "functional", "nn", "reference"]
