"""prelu after batch norm, in the operator: its values, and the gradient of its slope, one or one per channel. The
reference is torch, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastreg
from fastreg.functional import batch_norm_act
from fastreg.reference import fused
from fastreg.reference.batch_norm import empty_normalized_like
from tests.common import DEVICES, DTYPES, LAYOUTS, channels_last, contiguous
from tests.ops.fused_operands import mask_of
from tests.tolerances import assert_accurate

ops = torch.ops.fastreg
STATE = torch.tensor([11, 24])
EPS = 1e-5
# Channels whose elements one block or task has, or several; planes and rows that do not divide into equal parts.
SHAPES = [(4, 6, 5, 3), (40, 6), (3, 6, 8, 16), (2, 3, 61, 53), (300, 130), (40, 1100), (5, 24, 7, 7)]


def slopes(kind, channels, dtype, device="cpu"):
    """Different ones, so that no channel has another's; some negative, one 0, one above 1."""
    number = 1 if kind == "one" else channels
    return (torch.arange(number, device=device).remainder(7).double() * 0.25 - 0.3 + 0.05 * (number == 1)).to(dtype)


def operands(shape, dtype=torch.float64, device="cpu", layout=contiguous, kind="each", slope_dtype=None):
    torch.manual_seed(0)
    channels = shape[1]
    x, residual, grad = (layout(2 * torch.randn(shape, device=device).to(dtype)) for _ in range(3))
    weight = torch.linspace(0.5, 1.5, channels, device=device).to(dtype)
    bias, slope = torch.randn(channels, device=device).to(dtype), slopes(kind, channels, slope_dtype or dtype, device)
    return [t.requires_grad_() for t in (x, residual, weight, bias, slope)], grad


def statistics_of(channels, device="cpu"):
    return torch.linspace(-1, 1, channels, device=device).double(), torch.linspace(
        0.5, 2, channels, device=device
    ).double()


def exact(x, residual, weight, bias, slope, mask=None, p=0.0, statistics=None):
    y = fused.batch_norm_act(
        x, weight, bias, EPS, lambda x: x, lambda z: F.prelu(z, slope), statistics=statistics, residual=residual
    )
    return y if mask is None else torch.where(mask, y / (1.0 - p), 0.0)


def assert_near(kind, ours, torchs, reference, summed=None):
    if ours.dtype == torch.float64:  # in which the reference rounds as well, thousands of terms of a sum
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-11, check_stride=False)
    else:
        assert_accurate(kind, ours, torchs, reference, summed)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["one", "each"])
def test_values_and_gradients(device, dtype, layout, shape, kind):
    """No worse than the single operations, which round after each."""
    (x, residual, weight, bias, slope), grad = operands(shape, dtype, device, layout, kind)
    mask = mask_of(x, 0.25, STATE)
    for addend, training in ((residual, True), (None, True), (residual, False)):
        wanted = [t for t in (x, addend, weight, bias, slope) if t is not None]
        double = dict(zip(map(id, wanted), [t.detach().double().requires_grad_() for t in wanted], strict=True))
        statistics = None if training else statistics_of(shape[1], device)
        running = (None, None) if training else [s.to(dtype) for s in statistics]
        settings = {"act": "prelu", "act_weight": slope, "residual": addend, "p": 0.25, "rng_state": STATE}
        y = batch_norm_act(x, *running, weight, bias, training, **settings)
        torchs = F.batch_norm(x, *running, weight, bias, training, 0.1, EPS)
        torchs = F.prelu(torchs if addend is None else torchs + addend, slope) * mask / 0.75
        if statistics is not None:
            statistics = [s.double() for s in running]
        tensors = [None if t is None else double[id(t)] for t in (x, addend, weight, bias, slope)]
        expected = exact(*tensors, mask, 0.25, statistics)
        assert y.dtype == dtype and y.stride() == empty_normalized_like(x).stride()
        assert_near("output", y, torchs, expected)
        found, of_torch = torch.autograd.grad(y, wanted, grad), torch.autograd.grad(torchs, wanted, grad)
        references = torch.autograd.grad(expected, list(double.values()), grad.double())
        for tensor, ours, theirs, reference in zip(wanted, found, of_torch, references, strict=True):
            is_sum = tensor is weight or tensor is bias or tensor is slope
            terms = (grad.double().abs() * (1 + expected.abs())).detach().transpose(0, 1).flatten(1).sum(1)
            summed = (terms.sum() if tensor.shape == (1,) else terms) if is_sum else None
            assert_near("grad_parameter" if is_sum else "grad_input", ours, theirs, reference, summed)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_layouts(device, layout, training):
    (x, residual, weight, bias, slope), grad = operands((4, 6, 5, 3), device=device, layout=layout)
    statistics = statistics_of(6, device)
    mask = mask_of(x, 0.3, STATE)
    settings = {"act": "prelu", "act_weight": slope, "residual": residual, "p": 0.3, "rng_state": STATE}
    y = batch_norm_act(x, *(s.clone() for s in statistics), weight, bias, training, **settings)
    expected = exact(x, residual, weight, bias, slope, mask, 0.3, None if training else statistics)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12, check_stride=False)
    wanted = (x, residual, weight, bias, slope)
    for ours, reference in zip(
        torch.autograd.grad(y, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-11, check_stride=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tier", ["slab", "cluster", "grid", "l2", "streamed"])
@pytest.mark.parametrize("shape", [(16, 8, 8, 8), (3, 24, 7, 7)], ids=str)
def test_tiers(device, dtype, tier, shape, monkeypatch):
    """Of the CUDA kernels. Teams of blocks do not know prelu: what is asked of them is streamed."""
    monkeypatch.setenv("FASTREG_BATCH_NORM_TIER", tier)
    (x, residual, weight, bias, slope), grad = operands(shape, dtype, device)
    wanted = (x, residual, weight, bias, slope)
    doubles = [t.detach().double().requires_grad_() for t in wanted]
    y = batch_norm_act(x, None, None, weight, bias, True, act="prelu", act_weight=slope, residual=residual)
    torchs = F.prelu(F.batch_norm(x, None, None, weight, bias, True, 0.1, EPS) + residual, slope)
    expected = exact(*doubles)
    assert_near("output", y, torchs, expected)
    found, of_torch = torch.autograd.grad(y, wanted, grad), torch.autograd.grad(torchs, wanted, grad)
    references = torch.autograd.grad(expected, doubles, grad.double())
    terms = (grad.double().abs() * (1 + expected.abs())).detach().transpose(0, 1).flatten(1).sum(1)
    for i, (ours, theirs, reference) in enumerate(zip(found, of_torch, references, strict=True)):
        kind, summed = ("grad_parameter", terms) if i > 1 else ("grad_input", None)
        assert_near(kind, ours, theirs, reference, summed)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["one", "each"])
def test_slope_in_float32(device, dtype, kind):
    """Under 16 bits: as autocast has it. Its gradient is float32's, not rounded to the input's dtype."""
    (x, _, weight, bias, slope), grad = operands((16, 6, 5, 3), dtype, device, kind=kind, slope_dtype=torch.float32)
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias, slope)]
    y = batch_norm_act(x, None, None, weight, bias, True, act="prelu", act_weight=slope)
    (found,) = torch.autograd.grad(y, slope, grad)
    (reference,) = torch.autograd.grad(exact(leaves[0], None, *leaves[1:]), leaves[3], grad.double())
    assert y.dtype == dtype and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["one", "each"])
@pytest.mark.parametrize("with_residual", [True, False])
def test_derivatives(device, kind, with_residual):
    """gradcheck and gradgradcheck, with a mask, and where only some gradients are asked for."""
    (x, residual, weight, bias, slope), _ = operands((3, 6, 2), device=device, kind=kind)
    statistics = statistics_of(6, device)
    residual = residual if with_residual else None

    def in_training(*tensors):
        return call(None, None, True, *tensors)

    def in_evaluation(*tensors):
        return call(*statistics, False, *tensors)

    def call(mean, var, training, x, residual, weight, bias, slope):
        settings = {"act": "prelu", "act_weight": slope, "residual": residual, "p": 0.3, "rng_state": STATE}
        return batch_norm_act(x, mean, var, weight, bias, training, pre_act="tanh", **settings)

    for function in (in_training, in_evaluation):
        for arguments in (
            (x, residual, weight, bias, slope),
            (x.detach(), residual, weight, None, slope),
            (x, residual, None, bias, slope.detach()),
            (x.detach(), None, weight.detach(), bias.detach(), slope),
        ):
            assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
            assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_third_derivative():
    (x, residual, weight, bias, slope), _ = operands((3, 6))

    def first(x, slope):
        y = batch_norm_act(x, None, None, weight, bias, True, act="prelu", act_weight=slope, residual=residual)
        return torch.autograd.grad(y.square().sum(), (x, slope), create_graph=True)

    assert torch.autograd.gradgradcheck(first, (x, slope), atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", [(3, 6, 7, 7), (5, 6, 16, 3), (33, 6)], ids=str)
def test_exact_values(device, dtype, layout, shape):
    """The argument of act takes some fifty values, 0 among them, without rounding: nor is there any in sums."""
    torch.manual_seed(0)
    # Statistics that batch norm leaves x as it is by: 0, and 1 of which eps is a part.
    statistics = torch.zeros(6, device=device).to(dtype), torch.full((6,), 0.5, device=device).to(dtype)
    x, residual = (layout(torch.randint(-14, 15, shape, device=device).to(dtype) / 4) for _ in range(2))
    slope = (torch.arange(6, device=device) / 4 - 0.25).to(dtype).requires_grad_()
    for addend in (residual, None):
        x.requires_grad_()
        z = (x if addend is None else x + addend).detach().requires_grad_()
        y = batch_norm_act(x, *statistics, eps=0.5, act="prelu", act_weight=slope, residual=addend)
        of_z, of_slope = (t.detach().double().requires_grad_() for t in (z, slope))
        expected = F.prelu(of_z, of_slope)
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=0)
        found = torch.autograd.grad(y.sum(), (x, slope))
        for ours, reference in zip(found, torch.autograd.grad(expected.sum(), (of_z, of_slope)), strict=True):
            torch.testing.assert_close(ours, reference.to(dtype), rtol=0, atol=0, check_stride=False)


@pytest.mark.parametrize("device", DEVICES)
def test_special_values(device):
    """As torch's: what the slope does not multiply is no part of its gradient, whatever it is."""
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[1.0, -1.0, -inf, inf, -2.0, 3.0]], device=device).T.expand(6, 3).contiguous().requires_grad_()
    grad = torch.tensor([[inf, 2.0, 1.0, nan, 1.0, -inf]], device=device).T.expand(6, 3).contiguous()
    slope = torch.tensor([0.5, -0.25, 2.0], device=device, requires_grad=True)
    statistics = torch.zeros(3, device=device), torch.full((3,), 0.5, device=device)
    for of_x, of_grad in ((x, grad), (x[:2], grad[:2]), (x[1:], grad[1:])):
        y = batch_norm_act(of_x, *statistics, eps=0.5, act="prelu", act_weight=slope)
        expected = F.prelu(of_x, slope)
        torch.testing.assert_close(y, expected, equal_nan=True)
        ours, torchs = (torch.autograd.grad(t, (x, slope), of_grad) for t in (y, expected))
        for one, other in zip(ours, torchs, strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_repeatable(device, dtype, shape):
    for layout in (contiguous, channels_last):
        (x, residual, weight, bias, slope), grad = operands(shape, dtype, device, layout, "one")

        def call(tensors=(x, residual, weight, bias, slope), grad=grad):
            x, residual, weight, bias, slope = tensors
            settings = {"act": "prelu", "act_weight": slope, "residual": residual, "p": 0.5, "rng_state": STATE}
            y = batch_norm_act(x, None, None, weight, bias, True, **settings)
            return y, *torch.autograd.grad(y, tensors, grad)

        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 3):
                torch.set_num_threads(count)
                results.append(call())
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
def test_empty(device, training):
    slope = torch.ones(1, device=device, requires_grad=True)
    x = torch.randn(0, 6, 3, device=device, requires_grad=True)
    statistics = torch.zeros(6, device=device), torch.ones(6, device=device)
    batch_norm_act(x, *statistics, training=training, act="prelu", act_weight=slope).sum().backward()
    assert torch.equal(slope.grad, torch.zeros_like(slope))


def test_is_one_operator():
    (x, residual, weight, bias, slope), _ = operands((4, 6, 5, 3), torch.float32)
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        for training in (True, False):
            y = batch_norm_act(
                x,
                torch.zeros(6),
                torch.ones(6),
                weight,
                bias,
                training,
                act="prelu",
                act_weight=slope,
                residual=residual,
            )
            assert "BatchNormAct" in y.grad_fn.name()
            assert len([node for node, _ in y.grad_fn.next_functions if node is not None]) == 5
    kept = {t.data_ptr() for t in (x, residual, weight, bias, slope)}
    assert sum(size for at, size in sizes.items() if at not in kept) == 3 * 6 * 4 + 2 * 6 * 4  # statistics, of either
    y = batch_norm_act(x, None, None, weight, bias, True, act="identity", pre_act="prelu", pre_act_weight=slope)
    assert "BatchNormAct" not in y.grad_fn.name()  # composed, as documented


@pytest.mark.parametrize("device", DEVICES)
def test_views_of_slopes(device):
    """Slopes that do not lie next to each other, a slope without dimensions, and one channel's, which is both."""
    (x, residual, weight, bias, slope), grad = operands((4, 6, 5, 3), device=device)
    apart = slope.detach().repeat_interleave(3)[::3].requires_grad_()
    scalar = torch.tensor(0.3, device=device, dtype=torch.float64, requires_grad=True)
    for one, tensors in ((apart, (x, weight, bias)), (scalar, (x, weight, bias))):
        y = batch_norm_act(tensors[0], None, None, *tensors[1:], True, act="prelu", act_weight=one)
        expected = exact(tensors[0], None, *tensors[1:], one)
        (ours,), (reference,) = torch.autograd.grad(y, one, grad), torch.autograd.grad(expected, one, grad)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-11)
    (x, _, weight, bias, slope), grad = operands((6, 1, 50), device=device)
    y, expected = (
        batch_norm_act(x, None, None, weight, bias, True, act="prelu", act_weight=slope),
        exact(x, None, weight, bias, slope),
    )
    (ours,), (reference,) = torch.autograd.grad(y, slope, grad), torch.autograd.grad(expected, slope, grad)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_refused(device):
    x, count = torch.randn(4, 6, device=device), torch.tensor(0, device=device)
    mean, var, slope = torch.zeros(6, device=device), torch.ones(6, device=device), torch.ones(6, device=device)

    def operator(act, act_weight, pre_act="identity"):
        settings = (pre_act, 0.0, None, act, 0.0, act_weight, False, 0.0, None)
        return ops.batch_norm_act_train(x, None, None, mean, var, count, 0.1, EPS, *settings)

    def function(act, act_weight):
        return batch_norm_act(x, mean, var, training=True, act=act, act_weight=act_weight)

    for call in (operator, function):
        with pytest.raises(RuntimeError, match="act_weight must have 1 or 6 elements for prelu, got None"):
            call("prelu", None)
        with pytest.raises(RuntimeError, match=r"act_weight must have 1 or 6 elements for prelu, got shape \[5\]"):
            call("prelu", slope[:5])
        with pytest.raises(RuntimeError, match=r"act_weight must have 1 or 6 elements for prelu, got shape \[1, 6\]"):
            call("prelu", slope[None])
        with pytest.raises(RuntimeError, match="act_weight must be of the input's dtype.* got .*with input"):
            call("prelu", slope.double())
        with pytest.raises(ValueError, match="act_weight must be None where the activation is relu"):
            call("relu", slope)
    with pytest.raises(ValueError, match="pre_act must be one of identity, relu, .*tanh, got prelu"):
        operator("prelu", slope, "prelu")
    with pytest.raises(RuntimeError, match="running_mean must not share memory with act_weight"):
        operator("prelu", mean)
    with pytest.raises(ValueError, match="act must be one of identity, relu, .*tanh, got prelu"):
        ops.act_dropout(x, None, "prelu", 0.0, 0.0, None, None, None)
    assert (mean == 0).all() and (var == 1).all() and count == 0


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    (x, residual, weight, bias, slope), grad = operands((4, 6, 5, 3), torch.float32, device)
    statistics = torch.zeros(6, device=device), torch.ones(6, device=device)
    one = torch.full((1,), 0.25, device=device, requires_grad=True)
    for act_weight, addend, mask in ((slope, residual, [True] * 5), (one, None, [True] * 3 + [False, True])):
        before = ("identity", 0.0, addend)
        after = ("prelu", 0.0, act_weight)
        torch.library.opcheck(
            ops.batch_norm_act_train.default,
            (x, weight, bias, *statistics, None, 0.1, EPS, *before, *after, False, 0.0, None),
        )
        torch.library.opcheck(
            ops.batch_norm_act_eval.default, (x, weight, bias, *statistics, EPS, *before, *after, False, 0.0, None)
        )
        with torch.no_grad():
            stats = ops.batch_norm_train(x, weight, bias, None, None, None, 0.1, EPS)[1]
        settings = (*before, None, *after, 0.0, None, mask)
        torch.library.opcheck(
            ops.batch_norm_act_train_backward.default, (grad.detach(), x, weight, bias, stats, *settings)
        )
        torch.library.opcheck(
            ops.batch_norm_act_eval_backward.default, (grad.detach(), x, weight, bias, *statistics, EPS, *settings)
        )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    (x, residual, weight, bias, slope), grad = operands((4, 6, 5, 3), torch.float32)
    wanted = (x, residual, weight, bias, slope)

    def call(x, residual, weight, bias, slope):
        settings = {"act": "prelu", "act_weight": slope, "residual": residual, "p": 0.5, "rng_state": STATE}
        return batch_norm_act(x, None, None, weight, bias, True, **settings)

    y, expected = torch.compile(call, fullgraph=True, backend=backend)(*wanted), call(*wanted)
    assert torch.equal(y, expected)
    ours, eager = (torch.autograd.grad(t, wanted, grad) for t in (y, expected))
    assert all(torch.equal(one, other) for one, other in zip(ours, eager, strict=True))


def test_transforms_see_every_step():
    (x, residual, weight, bias, slope), _ = operands((4, 6))

    def loss(slope, x=x):
        settings = {"act": "prelu", "act_weight": slope, "residual": residual, "p": 0.5, "rng_state": STATE}
        return batch_norm_act(x, None, None, weight, bias, True, **settings).square().sum()

    (expected,) = torch.autograd.grad(loss(slope), slope)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.grad(loss)(slope), expected)
    tangent = torch.randn_like(slope)
    torch.testing.assert_close(torch.func.jvp(loss, (slope,), (tangent,))[1], (tangent * expected).sum())
    several = torch.stack([slope, slope * 2, slope - 1]).detach()
    torch.testing.assert_close(torch.func.vmap(loss)(several), torch.stack([loss(one) for one in several]))
    half = x.detach().bfloat16()
    with torch.no_grad():
        composed = torch.func.vmap(
            lambda s: batch_norm_act(half, None, None, None, None, True, act="prelu", act_weight=s)
        )
        assert composed(several.float()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    module = fastreg.nn.BatchNormAct2d(6, act="prelu")
    x = torch.randn(4, 6, 5, 3).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = module(x)
    assert y.dtype == dtype and "BatchNormAct" in y.grad_fn.name()
    y.sum().backward()
    assert x.grad.dtype == dtype and module.act.weight.grad.dtype == torch.float32


class Block(nn.Module):
    """Of a residual network whose activations are learned, as those for faces are."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU(6)
        self.conv2, self.bn2, self.act2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU()

    def forward(self, x):
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(y + x)


@pytest.mark.parametrize("training", [True, False])
def test_converted(training):
    """The same numbers. The sum before prelu is kept as torch keeps it: not the residual, which others may write to."""
    torch.manual_seed(0)
    plain = nn.Sequential(Block(), Block()).double()
    ours = nn.Sequential(Block(), Block()).double()
    ours.load_state_dict(plain.state_dict())
    fastreg.convert(ours)
    assert len(fastreg.report(ours).fused) == 4
    plain.train(training), ours.train(training)
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    y, expected = ours(x), plain(x)
    assert "Prelu" in y.grad_fn.name() and "BatchNormAct" in y.grad_fn.next_functions[0][0].name()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    y.square().sum().backward(), expected.square().sum().backward()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9, msg=name)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())


def test_programs_without_fastreg():
    module = fastreg.nn.BatchNormAct2d(6, act="prelu").eval()
    x = torch.randn(4, 6, 5, 3)
    program = torch.export.export(module, (x,)).run_decompositions(fastreg.export_decompositions())
    assert not any("fastreg" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), module(x))
