"""What is made of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def quantiles(samples: Sequence[float], at: Sequence[float] = (0.2, 0.5, 0.8)) -> list[float]:
    """Quantiles with linear interpolation between the sorted samples."""
    return np.quantile(samples, at).tolist()
