"""The gates that batch_norm_act keeps for its backward pass where there is a residual: a bit for each element."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastreg
from tests.common import DEVICES, channels_last, contiguous

pytestmark = [
    pytest.mark.skipif(
        fastreg._extension.problem() is not None, reason=f"no extension: {fastreg._extension.problem()}"
    ),
]
ops = torch.ops.fastreg

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Runs of whole bytes and of others, of whole vectors and of others, of groups of channels; rows of all of these.
SHAPES = [(4, 8, 4, 4), (3, 5, 14, 14), (16, 12, 7, 7), (9, 3, 3, 3), (33, 20), (5, 16, 6, 2), (2, 3, 1), (1, 1, 2)]


def size_of(numel):
    """Bytes: one bit for each element, in whole words of 32."""
    return (numel + 31) // 32 * 4


def forward(x, residual, act="relu", p=0.0, state=None, save=True):
    settings = ("identity", 0.0, residual, act, 0.1, None, save, p, state)
    return ops.batch_norm_act_train(x, None, None, None, None, None, 0.1, 1e-5, *settings)


def backward(grad, x, stats, residual, gate, act="relu", p=0.0, state=None):
    settings = ("identity", 0.0, residual, gate, act, 0.1, None, p, state, [True, False, False, True, False])
    return ops.batch_norm_act_train_backward(grad, x, None, None, stats, *settings)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_size(device, dtype):
    for numel in (2, 31, 32, 33, 64, 8 * 49, 1000):
        x = torch.randn(numel, 1, device=device).to(dtype)
        _, _, gate = forward(x, x)
        assert (gate.dtype, gate.device, gate.shape) == (torch.uint8, x.device, (size_of(numel),))
        with FakeTensorMode() as mode:
            fake = mode.from_tensor(x)
            assert forward(fake, fake)[2].shape == gate.shape
        # None without a residual, for other activations, or where nobody asks.
        assert (
            forward(x, None)[2].numel() == forward(x, x, "silu")[2].numel() == forward(x, x, save=False)[2].numel() == 0
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tells_what_the_argument_tells(device, dtype, layout, shape):
    """Backward with the gate gives what it gives with the residual, bit for bit."""
    torch.manual_seed(len(shape))
    x, residual, grad = (layout(torch.randn(shape, device=device).to(dtype)) for _ in range(3))
    state = torch.tensor([5, 8])
    for act, p in (("relu", 0.0), ("leaky_relu", 0.5), ("relu6", 0.0), ("hardsigmoid", 0.25)):
        random = (p, state if p else None)
        y, stats, gate = forward(x, residual, act, *random)
        assert gate.shape == (size_of(x.numel()),)
        by_gate = backward(grad, x, stats, None, gate, act, *random)
        by_argument = backward(grad, x, stats, residual, None, act, *random)
        for ours, expected in zip(by_gate, by_argument, strict=True):
            assert torch.equal(ours, expected), act
        if act == "relu" and dtype is torch.float32:
            open_gates = sum(bin(byte).count("1") for byte in gate.tolist())
            assert open_gates == (y > 0).sum()


@pytest.mark.parametrize("device", DEVICES)
def test_is_what_is_kept(device):
    x, residual = (torch.randn(8, 16, 14, 14, device=device, requires_grad=True) for _ in range(2))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        fastreg.functional.batch_norm_act(x, None, None, training=True, act="relu", residual=residual)
    assert sorted(sizes) == [3 * 16 * 4, x.numel() // 8, x.nbytes]


@pytest.mark.parametrize("device", DEVICES)
def test_refused(device):
    x = torch.randn(4, 3, 5, 5, device=device)
    _, stats, gate = forward(x, x)
    assert gate.shape == (40,)
    for wrong in (gate[:-1], gate.int(), torch.cat([gate, gate])[::2], gate.view(2, 20)):
        with pytest.raises(
            RuntimeError, match=r"^batch_norm_act: gate must be a contiguous uint8 tensor of shape \[40\]"
        ):
            backward(x, x, stats, None, wrong)
