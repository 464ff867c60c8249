"""The operators behind batch_norm_act and act_dropout in PyTorch's programs: compiled, transformed, checkpointed, under
opcheck."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastreg.functional import act_dropout, batch_norm_act
from tests.common import DEVICES, channels_last, contiguous
from tests.ops.fused_operands import EPS, STATE, C, operands, ops


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    (x, residual, weight, bias), grad = operands(torch.float32)
    mean, var = torch.zeros(C), torch.ones(C)

    def call(x, residual, rng_state):
        y = batch_norm_act(x, mean, var, weight, bias, True, act="relu", residual=residual, p=0.5, rng_state=rng_state)
        return act_dropout(y, "gelu", 0.5, bias=x.new_ones(3), residual=x, rng_state=rng_state)

    compiled = torch.compile(call, fullgraph=True, backend=backend)
    for one in (contiguous, channels_last):
        leaves = [one(t.detach()).requires_grad_() for t in (x, residual)]
        y, expected = compiled(*leaves, STATE), call(*leaves, STATE)
        assert y.stride() == expected.stride() and torch.equal(y, expected)
        ours, theirs = (torch.autograd.grad(t, (*leaves, weight, bias), grad) for t in (y, expected))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    drawn = torch.compile(lambda x: (call(x, None, None), call(x, None, None)), fullgraph=True, backend=backend)
    one, other = drawn(x)
    assert not torch.equal(one == x, other == x)


def test_transforms_see_every_step():
    (x, residual, weight, bias), _ = operands(shape=(4, C))

    def call(x):
        y = batch_norm_act(x, None, None, weight, bias, True, act="silu", residual=residual, p=0.5, rng_state=STATE)
        return act_dropout(y, "gelu", 0.5, bias=bias, rng_state=STATE).square().sum()

    (expected,) = torch.autograd.grad(call(x), x)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.grad(call)(x), expected)
    tangent = torch.randn_like(x)
    _, derivative = torch.func.jvp(call, (x,), (tangent,))
    torch.testing.assert_close(derivative, (tangent * expected).sum())


def test_operators_refuse_tangents():
    x = torch.randn(4, C)
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(x, x)
        for call in (
            lambda: ops.act_dropout(x, None, "relu", 0.0, 0.0, None, None, None),
            lambda: ops.batch_norm_act_eval(
                x, None, None, x[0], x[0], EPS, "identity", 0.0, None, "relu", 0.0, None, False, 0.0, None
            ),
        ):
            with pytest.raises(NotImplementedError, match="must not have tangents"):
                call()


def test_checkpointed():
    (x, residual, weight, bias), _ = operands(shape=(16, C))

    def call(x):
        y = batch_norm_act(x, None, None, weight, bias, True, act="relu", residual=residual, p=0.5)
        return act_dropout(y, "tanh", 0.5, residual=x)

    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(call(x).square().sum(), x)
    for reentrant in (False, True):
        torch.manual_seed(1)
        y = checkpoint(call, x, use_reentrant=reentrant)
        y.square().sum().backward()
        torch.testing.assert_close(x.grad, expected)
        x.grad = None


def test_a_state_made_in_inference_mode():
    with torch.inference_mode():
        state = STATE.clone()
    x = torch.randn(8, C, requires_grad=True)
    batch_norm_act(x, None, None, training=True, p=0.5, rng_state=state).sum().backward()
    act_dropout(x, "tanh", 0.5, rng_state=state).sum().backward()


def arguments_of_operators(device):
    x, residual, grad = torch.randn(3, 4, C, 5, 3, device=device, requires_grad=True).unbind()
    leaves = [t.detach().requires_grad_() for t in (x, residual)]
    x, residual, grad = *leaves, grad.detach()
    weight, bias = torch.ones(C, device=device).requires_grad_(), torch.zeros(C, device=device).requires_grad_()
    mean, var, count = torch.zeros(C, device=device), torch.ones(C, device=device), torch.tensor(0, device=device)
    state = STATE.to(device)
    mask = (True, True, True, True, False)
    relu, silu, identity = ("relu", 0.0), ("silu", 0.0), ("identity", 0.0)
    train, train_backward = ops.batch_norm_act_train.default, ops.batch_norm_act_train_backward.default
    evaluate, eval_backward = ops.batch_norm_act_eval.default, ops.batch_norm_act_eval_backward.default
    for act, addend, p in ((relu, residual, 0.3), (silu, residual, 0.0)):
        settings = (*identity, addend, *act, None, False, p, state if p else None)
        with_gate = (*identity, None if addend is None else addend.detach(), *act, None, True, p, state if p else None)
        yield train, (x, weight, bias, mean, var, count, 0.1, EPS, *settings)
        yield evaluate, (x, weight, bias, mean, var, EPS, *settings)
        with torch.no_grad():
            _, stats, gate = train(x, weight, bias, None, None, None, 0.1, EPS, *with_gate)
        gate = gate if gate.numel() else None
        saved = None if gate is not None else addend
        used = (*identity, saved, gate, *act, None, p, state if p else None, mask)
        shift = None if gate is not None else bias
        yield train_backward, (grad, x, weight, shift, stats, *used)
        yield eval_backward, (grad, x, weight, shift, mean, var, EPS, *used)
    last = torch.ones(3, device=device, requires_grad=True)
    for act, p, dims in ((relu, 0.3, None), (identity, 0.3, 1)):
        used = state if p else None
        yield ops.act_dropout.default, (x, last, *act, p, used, residual, dims)
        yield ops.act_dropout_backward.default, (grad, x, last, *act, p, used, dims, list(x.stride()))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    for operator, arguments in arguments_of_operators(device):
        torch.library.opcheck(operator, arguments)
    x = torch.randn(4, C, device=device, requires_grad=True)
    seeded = ("test_schema", "test_autograd_registration", "test_faketensor")  # the others compare two draws
    settings = (None, None, None, None, None, 0.1, EPS, "identity", 0.0, x.detach(), "relu", 0.0, None, False, 0.5)
    torch.library.opcheck(ops.batch_norm_act_train_seeded.default, (x, *settings), test_utils=seeded)
    torch.library.opcheck(ops.act_dropout_seeded.default, (x, None, "relu", 0.0, 0.5, x, None), test_utils=seeded)
