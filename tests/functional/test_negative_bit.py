"""Tensors that are lazily negated, as the imaginary part of a conjugate is: read and written in place as others are."""

import pytest
import torch
from torch import nn

import fastreg
import fastreg.functional as F


def negated(x):
    """x, with the negative bit and -x in memory."""
    view = torch.view_as_complex(torch.stack([torch.zeros_like(x), -x], -1)).conj().imag
    assert view.is_neg() and torch.equal(view, x)
    return view


def both(call, *tensors):
    """The results, and the tensors, after calls with the tensors and with the same lazily negated."""
    for made in (torch.clone, negated):
        torch.manual_seed(0)
        arguments = [made(t) for t in tensors]
        result = call(*arguments)
        yield [result.detach().clone(), *(t.detach().clone() for t in arguments)], arguments


def assert_same(call, *tensors):
    (expected, _), (found, written) = both(call, *tensors)
    torch.testing.assert_close(found, expected, check_stride=False)
    assert all(t.is_neg() for t in written)


STATE = torch.tensor([3, 8])
DROPOUTS = {
    "dropout": lambda x, **k: F.dropout(x, 0.5, inplace=True, **k),
    "dropout1d": lambda x, **k: F.dropout1d(x, 0.5, inplace=True, **k),
    "alpha_dropout": lambda x, **k: F.alpha_dropout(x, 0.5, True, inplace=True, **k),
    "feature_alpha_dropout": lambda x, **k: F.feature_alpha_dropout(x, 0.5, True, inplace=True, **k),
    "drop_path": lambda x, **k: F.drop_path(x, 0.5, inplace=True, **k),
}


@pytest.mark.parametrize("name", DROPOUTS)
@pytest.mark.parametrize("keywords", [{}, {"rng_state": STATE}], ids=["drawn", "given"])
def test_dropout_in_place(name, keywords):
    def call(x):
        y = DROPOUTS[name](x, **keywords)
        assert y is x
        return y

    assert_same(call, torch.randn(6, 3, 5))
    assert_same(lambda x: call(x.transpose(1, 2)), torch.randn(6, 3, 5))
    assert_same(lambda x: call(x[:, ::2]), torch.randn(6, 4, 5))


def test_autograd_hears_of_the_write():
    x = negated(torch.randn(6, 5))
    version = x._version
    F.dropout(x, 0.5, inplace=True)
    assert x._version > version

    leaf = torch.randn(6, 5, requires_grad=True)
    y = torch.view_as_complex(torch.stack([leaf, -leaf], -1)).conj().imag
    assert y.is_neg()
    z = F.dropout(y, 0.5, inplace=True, rng_state=STATE)
    assert z is y
    (gradient,) = torch.autograd.grad(z.sum(), leaf)
    assert torch.equal(gradient, 2.0 * fastreg.dropout_mask((6, 5), 0.5, STATE))

    kept = negated(torch.randn(6, 5))
    product = (kept * leaf).sum()
    F.dropout(kept, 0.5, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training):
    def call(x, mean, var, weight, bias):
        return F.batch_norm(x, mean, var, weight, bias, training)

    def fused(x, mean, var, weight, bias, residual):
        return F.batch_norm_act(x, mean, var, weight, bias, training, act="silu", residual=residual)

    def dropped(x, mean, var):
        return F.batch_norm_act(x, mean, var, training=training, p=0.5)

    x, c = torch.randn(6, 3, 5), torch.rand(4, 3) + 0.5
    assert_same(call, x, *c)
    assert_same(fused, x, *c, torch.randn(6, 3, 5))
    assert_same(dropped, x, *c[:2])


def test_one_statistic_alone():
    """An operator takes them mixed."""
    x, mean = torch.randn(6, 3), negated(torch.ones(3))
    var, other_mean, other_var = torch.ones(3), torch.ones(3), torch.ones(3)
    count = torch.tensor(0)
    y = torch.ops.fastreg.batch_norm_train(x, None, None, mean, var, count, 0.1, 1e-5)[0]
    torch.testing.assert_close(y, nn.functional.batch_norm(x, other_mean, other_var, training=True))
    torch.testing.assert_close(mean, other_mean)
    torch.testing.assert_close(var, other_var)
    assert count == 1 and mean.is_neg() and not var.is_neg()


def test_complex_tensors_are_torchs():
    """Which knows how to drop them on some devices."""
    z = torch.randn(6, 5, dtype=torch.complex64).conj()
    assert z.is_conj()
    outcomes = []
    for functions in (nn.functional, F):
        torch.manual_seed(0)
        x = z.clone().conj().conj_physical().conj()
        try:
            outcomes.append((functions.dropout(x, 0.5, True, True) is x, x))
        except Exception as error:
            outcomes.append(type(error))
    if isinstance(outcomes[0], type):
        assert outcomes[0] is outcomes[1]
    else:
        torch.testing.assert_close(*outcomes)
