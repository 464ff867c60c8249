"""Batch norm and dropout with what stands next to them. Activations are functions of a tensor."""

from fastreg.reference import batch_norm, dropout


def batch_norm_act(
    input, weight, bias, eps, pre_act, act, *, statistics=None, residual=None, p=0.0, rng_state=None, strides=None
):
    """dropout(act(batch_norm(pre_act(input)) + residual)).

    Args:
        input, weight, bias, eps: as in :func:`fastreg.reference.batch_norm.forward`.
        statistics: mean and variance. Default: those of pre_act(input).
        p, rng_state, strides: as in :func:`fastreg.reference.dropout.dropout`; without dropout where p is 0.
    """
    x = pre_act(input)
    z = batch_norm.forward(x, weight, bias, *(statistics or batch_norm.moments(x)), eps)
    y = act(z if residual is None else z + residual)
    return dropout.dropout(y, p, rng_state, strides) if p else y


def act_dropout(input, bias, act, p, rng_state, *, residual=None, dims=None, strides=None):
    """dropout(act(input + bias)) + residual; dims: feature dropout of so many dimensions, None: of elements."""
    y = act(input if bias is None else input + bias)
    if p and dims is None:
        y = dropout.dropout(y, p, rng_state, strides)
    elif p:
        y = dropout.feature_dropout(y, dims, p, rng_state)
    return y if residual is None else y + residual
