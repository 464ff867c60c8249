"""What the operators behind batch_norm_act and act_dropout drop, which side of an activation they take, what they keep
for the backward pass, and what they draw."""

import pytest
import torch

import fastreg
from fastreg.functional import act_dropout, batch_norm_act, drop_path, dropout
from tests.common import DEVICES, DTYPES, LAYOUTS, channels_last, contiguous, expanded, sliced, transposed
from tests.ops.fused_operands import EPS, NATIVE, STATE, C, function, mask_of, operands, ops
from tests.tolerances import assert_accurate

GATED = ["relu", "relu6", "leaky_relu", "hardsigmoid"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_of_act_dropout(device, layout, dtype):
    """Those of dropout and drop_path of a tensor like the input, whatever the order of gradient and residual."""
    torch.manual_seed(0)
    x = layout(torch.rand(6, 5, 3, 8, device=device).to(dtype) + 1).requires_grad_()
    residual = transposed(torch.rand(6, 5, 3, 8, device=device).to(dtype))
    bias = torch.rand(8, device=device).to(dtype)
    for path in (False, True):
        unfused = drop_path if path else dropout
        mask = unfused(torch.ones_like(x.detach()), 0.5, rng_state=STATE) != 0
        y = act_dropout(x, "relu", 0.5, bias=bias, drop_path=path, rng_state=STATE)
        assert torch.equal(y != 0, mask) and y.stride() == torch.empty_like(x).stride()
        for grad in (torch.ones_like(y), transposed(torch.ones_like(y)), expanded(torch.ones_like(y))):
            (gradient,) = torch.autograd.grad(y, x, grad, retain_graph=True)
            torch.testing.assert_close(gradient, mask * y.new_tensor(2.0), check_stride=False)
        y = act_dropout(x, "relu", 0.5, bias=bias, residual=residual, drop_path=path, rng_state=STATE)
        exact_y = torch.where(mask, 2 * (x + bias).double(), 0.0) + residual.double()
        torchs = torch.where(mask, (x + bias).relu() * 2, 0.0) + residual
        assert_accurate("output", y, torchs, exact_y)
        y = act_dropout(x, "identity", 0.5, residual=residual, drop_path=path, rng_state=STATE)
        (gradient,) = torch.autograd.grad(y, x, transposed(torch.ones_like(y)))
        torch.testing.assert_close(gradient, mask * y.new_tensor(2.0), check_stride=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_given(device, layout):
    """As compiled code gives them: elements are numbered in their order, forward and backward."""
    strides = channels_last(torch.empty(6, 5, 3, 8)).stride()
    keep = fastreg.reference.dropout.keep_mask(6 * 5 * 3 * 8, 0.5, STATE).as_strided((6, 5, 3, 8), strides).to(device)
    x = layout(torch.rand(6, 5, 3, 8, device=device) + 1).requires_grad_()
    for act in ("relu", "identity"):
        y = ops.act_dropout(x, None, act, 0.0, 0.5, STATE, None, None, strides)
        assert torch.equal(y != 0, keep) and y.stride() == strides
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient, keep * 2.0, check_stride=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last, transposed, sliced])
def test_masks_of_batch_norm_act(device, layout):
    x = layout(torch.randn(6, C, 3, 7, device=device))
    for training in (True, False):
        statistics = (None, None) if training else (torch.zeros(C, device=device), torch.ones(C, device=device))
        y = batch_norm_act(x, *statistics, training=training, act="sigmoid", p=0.5, rng_state=STATE)
        assert torch.equal(y != 0, mask_of(x, 0.5))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", GATED)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", [(3, C, 7, 7), (5, C, 16, 3), (33, C)], ids=str)
def test_gates(device, dtype, act, layout, shape):
    """Forward and backward agree on each element's side, zero and the other ends themselves included: the argument of
    act takes some fifty values, exactly, in every dtype."""
    torch.manual_seed(0)
    # Statistics that batch norm leaves x as it is by: 0, and 1 of which eps is a part.
    statistics = torch.zeros(C, device=device).to(dtype), torch.full((C,), 0.5, device=device).to(dtype)
    x, residual = (layout(torch.randint(-14, 15, shape, device=device).to(dtype) / 4) for _ in range(2))
    for addend in (residual, None):
        x.requires_grad_()
        z = (x if addend is None else x + addend).detach().requires_grad_()
        y = batch_norm_act(x, *statistics, eps=0.5, act=act, residual=addend)
        expected = function(act)(z)
        torch.testing.assert_close(y, expected)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        (reference,) = torch.autograd.grad(expected.sum(), z)
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_residual", [True, False])
def test_forward_and_backward_see_the_same_argument(device, dtype, with_residual):
    """relu of values around zero, none of them exact: what backward computes again must round as forward's did."""
    (x, residual, weight, bias), _ = operands(dtype, device, shape=(64, C, 9, 7))
    residual = (residual * 2.0**-8).detach() if with_residual else None
    statistics = x.detach().float().mean((0, 2, 3)).to(dtype), torch.ones(C, device=device).to(dtype)
    y = batch_norm_act(x, *statistics, weight, act="relu", residual=residual)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y > 0, gradient > 0)


def saved_bytes(call):
    """What autograd keeps for the backward pass of a call, parameters and arguments of the call apart."""
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        call()
    return sizes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_kept(device, dtype):
    (x, residual, weight, bias), _ = operands(dtype, device, shape=(8, C, 16, 16))
    stats, state = 3 * C * 4, 16

    def kept(act, addend=None, p=0.0):
        found = saved_bytes(lambda: batch_norm_act(x, None, None, weight, bias, True, act=act, residual=addend, p=p))
        assert found.pop(x.data_ptr()) == x.nbytes
        found.pop(weight.data_ptr(), None), found.pop(bias.data_ptr(), None)
        return sum(found.values())

    for act in NATIVE:
        assert kept(act) == stats
        assert kept(act, p=0.5) == stats + state
        assert saved_bytes(lambda act=act: act_dropout(x, act, 0.5, bias=None, residual=residual)).keys() >= (
            set() if act == "identity" else {x.data_ptr()}
        )
    assert kept("identity", residual) == stats
    for act in GATED:
        assert kept(act, residual) == stats + x.numel() // 8  # one bit per element
        assert kept(act, residual, p=0.5) == kept(act, residual) + state
    assert kept("gelu", residual, p=0.5) == stats + state + residual.nbytes
    kept_by = saved_bytes(lambda: act_dropout(x, "identity", 0.5, residual=residual))
    assert sum(kept_by.values()) == state
    kept_by = saved_bytes(lambda: act_dropout(x, "gelu", 0.5, residual=residual))
    assert sum(kept_by.values()) == state + x.nbytes


@pytest.mark.parametrize("device", DEVICES)
def test_the_generator(device):
    x = torch.randn(4, C, 8, device=device)
    settings = (None, None, None, None, None, 0.1, EPS, "identity", 0.0, None, "relu", 0.0, None, False)
    torch.manual_seed(3)
    y, _, _, state = ops.batch_norm_act_train_seeded(x, *settings, 0.5)
    torch.manual_seed(3)
    assert torch.equal(fastreg.draw_rng_state(device), state)
    assert torch.equal(ops.batch_norm_act_train(x, *settings, 0.5, state)[0], y)
    assert torch.equal(ops.batch_norm_act_train(x, *settings, 0.5, state.cpu())[0], y)
    torch.manual_seed(3)
    y, state = ops.act_dropout_seeded(x, None, "tanh", 0.0, 0.5, None, None)
    torch.manual_seed(3)
    assert torch.equal(fastreg.draw_rng_state(device), state)
    assert torch.equal(ops.act_dropout(x, None, "tanh", 0.0, 0.5, state, None, None), y)

    torch.manual_seed(3)
    before = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    for p, input in ((1.0, x), (0.5, x[:0])):
        for training in (True, False):
            statistics = torch.zeros(C, device=device), torch.ones(C, device=device)
            y = batch_norm_act(input, *statistics, training=training, p=p)
            assert y.shape == input.shape and (y == 0).all()
        assert (act_dropout(input, "sigmoid", p, residual=torch.ones_like(input)) == 1).all()
        assert (act_dropout(input, "sigmoid", p, drop_path=True) == 0).all()
    batch_norm_act(x, None, None, training=True)
    after = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    assert torch.equal(before, after)


def test_states_are_recorded_and_replayed():
    x = torch.randn(8, C)

    def call():
        yield batch_norm_act(x, None, None, training=True, p=0.5)
        yield batch_norm_act(x, torch.zeros(C), torch.ones(C), p=0.5)
        yield act_dropout(x, "tanh", 0.5)
        yield act_dropout(x, "tanh", 0.5, drop_path=True, residual=x)

    with fastreg.record_rng_states() as states:
        results = list(call())
    assert len(states) == 4
    with fastreg.replay_rng_states(states):
        assert all(torch.equal(one, other) for one, other in zip(results, call(), strict=True))
    state = torch.get_rng_state()
    unrecorded = list(call())
    torch.set_rng_state(state)
    with fastreg.record_rng_states():
        assert all(torch.equal(one, other) for one, other in zip(unrecorded, call(), strict=True))
