"""The operators in plain PyTorch: slow, obvious, and made of differentiable torch operations.

They are the oracle of the tests, and run where no extension was built or a transform has to see every step.
"""

from fastreg.reference import batch_norm, dropout, fused

__all__ = ["batch_norm", "dropout", "fused"]
