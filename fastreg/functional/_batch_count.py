"""num_batches_tracked: the operators count one int64 value on the input's device; any other is counted here."""

import torch
from torch import Tensor


def is_counted_by_operators(count: Tensor, input: Tensor) -> bool:
    return (
        count.dtype is torch.int64
        and (count.is_cpu and input.is_cpu or count.device == input.device)
        and count.numel() == 1
    )


def count_batch(count: Tensor, momentum: float | None) -> float:
    """The batch's weight in the running statistics, after it was counted as torch's modules count it."""
    count.add_(1)
    return 1.0 / float(count) if momentum is None else momentum
