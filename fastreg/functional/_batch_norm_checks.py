"""What every kind of batch norm refuses."""

from torch import Tensor


def check_batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool, eps: float
) -> None:
    """Raise what torch raises where the operators would not, or in other words."""
    if not training:
        if not eps >= 0.0:
            raise ValueError(f"batch_norm: eps must not be negative, got {eps}")
        for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
            if statistic is None:
                raise RuntimeError(f"batch_norm: {name} must be given in evaluation, got None")
        return
    if not eps > 0.0 or (running_mean is None) != (running_var is None):
        check_statistics_of_training("batch_norm", running_mean, running_var, eps)
    shape = input.shape
    if len(shape) >= 2 and input.numel() == shape[1] != 0:
        raise ValueError(
            f"batch_norm: input must have more than 1 value per channel when training, got input size {list(shape)}"
        )


def check_statistics_of_training(
    operation: str, running_mean: Tensor | None, running_var: Tensor | None, eps: float
) -> None:
    if not eps > 0.0:
        raise ValueError(f"{operation}: eps must be positive in training, got {eps}")
    if (running_mean is None) != (running_var is None):
        raise ValueError(
            f"{operation}: running_mean and running_var must be given both or neither, got None for "
            f"{'running_mean' if running_mean is None else 'running_var'}"
        )
