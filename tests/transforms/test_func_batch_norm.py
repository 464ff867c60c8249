"""Batch norm under torch.func and forward-mode AD: functions, modules, and direct calls of the operators."""

import copy

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import fastreg
from fastreg import functional as F
from tests.common import DEVICES, channels_last, contiguous, in_layout

OPS = torch.ops.fastreg
pytestmark = pytest.mark.usefixtures("derivatives")
devices = pytest.mark.parametrize("device", DEVICES)
trainings = pytest.mark.parametrize("training", [True, False])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def arguments(device, dtype=torch.float64):
    """input, weight, bias, running_mean, running_var"""
    x = torch.randn(4, 3, 5).to(device, dtype)
    return x, *(torch.randn(3).to(device, dtype) for _ in range(3)), torch.rand(3).to(device, dtype) + 0.5


@devices
@trainings
@pytest.mark.parametrize("given", ["input weight bias", "input", "input weight", "input bias"])
def test_derivatives(device, training, given):
    """First and second ones, forward and reverse and both, and batches of them."""
    x, weight, bias, *statistics = arguments(device)
    statistics = (None, None) if training else statistics

    def f(input, *parameters):
        return F.batch_norm(
            input, *statistics, training=training, **dict(zip(given.split()[1:], parameters, strict=True))
        )

    leaves = {"input": x, "weight": weight, "bias": bias}
    inputs = [leaves[name].requires_grad_() for name in given.split()]
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@devices
@trainings
def test_tangents_of_parameters_alone(device, training):
    x, weight, bias, *statistics = arguments(device)
    for one in (1, 2):
        tangents = []
        for batch_norm in (F.batch_norm, torch.nn.functional.batch_norm):
            with dual_level():
                given = [x, weight, bias]
                given[one] = make_dual(given[one], given[one].cos())
                y = batch_norm(given[0], *(t.clone() for t in statistics), *given[1:], training)
                tangents.append(unpack_dual(y))
        torch.testing.assert_close(*tangents)


@devices
def test_tangents_of_statistics_are_refused(device):
    x, weight, bias, mean, var = arguments(device)
    with dual_level(), pytest.raises(RuntimeError, match="running_var must not have a tangent"):
        F.batch_norm(x, mean, make_dual(var, var), weight, bias)


@devices
@trainings
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_function_transforms(device, training, layout, dtype):
    """As torch's, from which results differ by rounding."""
    x, weight, bias, *statistics = arguments(device, dtype)
    x = in_layout(x, layout)
    v = x.cos()

    def f(batch_norm, x):
        return (batch_norm(x, *(t.clone() for t in statistics), weight, bias, training) ** 3).sum()

    def ours(x):
        return f(F.batch_norm, x)

    def torchs(x):
        return f(torch.nn.functional.batch_norm, x)

    # bfloat16: sums of 60 terms, each rounded to 8 bits at several places, in both.
    tolerance = {"rtol": 0.1, "atol": 0.5} if dtype is torch.bfloat16 else {"rtol": 1e-9, "atol": 1e-9}

    def close(one, other):
        torch.testing.assert_close(one, other, **tolerance)

    slope = grad(torchs)(x)
    close(grad(ours)(x), slope)
    close(vjp(ours, x)[1](torch.ones((), dtype=dtype, device=device))[0], slope)
    close(jvp(ours, (x,), (v,))[1], jvp(torchs, (x,), (v,))[1])
    if dtype is torch.bfloat16:
        return
    # torch's own jvp of batch norm in training cannot be differentiated truly: all are judged by reverse over reverse.
    along = grad(lambda x: (grad(torchs)(x) * v).sum())(x)
    close(grad(lambda x: (grad(ours)(x) * v).sum())(x), along)
    close(grad(lambda x: jvp(ours, (x,), (v,))[1])(x), along)
    close(jvp(grad(ours), (x,), (v,))[1], along)
    close(jvp(lambda x: jvp(ours, (x,), (v,))[1], (x,), (v,))[1], (along * v).sum())
    x = x[..., :1]
    curvature = jacrev(jacrev(torchs))(x)
    for second in (hessian(ours), jacrev(jacrev(ours)), jacfwd(jacfwd(ours)), jacrev(jacfwd(ours))):
        close(second(x), curvature)


@devices
@trainings
@pytest.mark.parametrize("batched", ["x", "xw", "w", "xwbs", "s"])
def test_vmap_is_a_loop(device, training, batched):
    """Whichever arguments are batched; statistics ("s") are written to in training."""
    x, weight, bias, mean, var = arguments(device)
    given = {"x": x, "w": weight, "b": bias, "m": mean, "v": var}
    names = batched.replace("s", "mv")
    batches = {
        n: torch.stack([t, t + 0.5, t + 2], t.dim() if n == "x" else 0) if n in names else t for n, t in given.items()
    }
    dims = tuple((given[n].dim() if n == "x" else 0) if n in names else None for n in given)
    written = training and "s" not in batched and "x" in batched

    def f(batch_norm, x, weight, bias, mean, var):
        statistics = (None, None) if written else (mean, var)
        return batch_norm(x, *statistics, weight, bias, training)

    copies = [copy.deepcopy(batches) for _ in range(2)]
    result = vmap(lambda *a: f(F.batch_norm, *a), dims)(*copies[0].values())
    loop = [
        f(F.batch_norm, *(t if d is None else t.select(d, n) for t, d in zip(copies[1].values(), dims, strict=True)))
        for n in range(3)
    ]
    torch.testing.assert_close(result, torch.stack(loop), rtol=0, atol=0)
    if "s" in batched:
        for n in "mv":
            assert torch.equal(copies[0][n], copies[1][n]) and torch.equal(copies[0][n], batches[n]) != training
    elif batched == "w" and training:
        # The same batch for all samples moves the statistics once.
        once = {n: t.clone() for n, t in given.items()}
        F.batch_norm(x, once["m"], once["v"], weight, bias, True)
        assert torch.equal(copies[0]["m"], once["m"]) and torch.equal(copies[0]["v"], once["v"])


@devices
def test_unbatched_statistics_are_refused(device):
    """Where the input is batched and they would be written, as torch refuses them; nothing is written."""
    x, weight, bias, mean, var = arguments(device)
    batch, before = torch.stack([x, x]), mean.clone()
    for call in (
        lambda x: F.batch_norm(x, mean, var, weight, bias, True),
        lambda x: torch.nn.functional.batch_norm(x, mean, var, weight, bias, True),
        lambda x: OPS.batch_norm_train(x, weight, bias, mean, var, None, 0.1, 1e-5)[0],
    ):
        with pytest.raises(RuntimeError, match="batched"):
            vmap(call)(batch)
    assert torch.equal(mean, before)
    module = fastreg.nn.BatchNorm1d(3, device=device, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="running_mean must be batched"):
        vmap(module)(batch)
    assert module.num_batches_tracked == 0
    assert torch.equal(vmap(module.eval())(batch)[1], module(x))


@devices
@pytest.mark.parametrize("momentum", [0.1, None])
def test_ensemble(device, momentum):
    """Modules stacked by torch.func, statistics and counts included, and the gradients of their parameters."""
    models = [
        torch.nn.Sequential(torch.nn.Linear(4, 3), fastreg.nn.BatchNorm1d(3, momentum=momentum)).to(device).double()
        for _ in range(3)
    ]
    for _ in range(2):
        models[1](torch.randn(5, 4, dtype=torch.float64, device=device))  # counts differ
    parameters, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(6, 4, dtype=torch.float64, device=device)

    def loss(parameters, buffers, x):
        return functional_call(skeleton, (parameters, buffers), (x,)).pow(3).sum()

    gradients = vmap(grad(loss), (0, 0, None))(parameters, buffers, x)
    for n, model in enumerate(models):
        model(x).pow(3).sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name][n], parameter.grad)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[name][n], buffer, rtol=1e-12, atol=1e-12)


@devices
def test_gradients_of_samples(device):
    """In evaluation mode, as with a frozen network."""
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), fastreg.nn.BatchNorm2d(3), torch.nn.ReLU())
    model = model.to(device).double().eval()
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64, device=device)
    parameters = dict(model.named_parameters())

    def loss(parameters, x):
        return functional_call(model, parameters, (x.unsqueeze(0),)).square().sum()

    gradients = vmap(grad(loss), (None, 0))(parameters, x)
    for n, sample in enumerate(x):
        for name, gradient in grad(loss)(parameters, sample).items():
            torch.testing.assert_close(gradients[name][n], gradient)


@devices
@trainings
def test_direct_calls(device, training):
    """No tangent, gradient or dimension of samples is lost where operators are called as such."""
    x, weight, bias, mean, var = arguments(device)

    def ours(x, weight, bias):
        if training:
            return OPS.batch_norm_train(x, weight, bias, None, None, None, 0.1, 1e-5)[0]
        return OPS.batch_norm_eval(x, weight, bias, mean, var, 1e-5)

    def torchs(x, weight, bias):
        statistics = (None, None) if training else (mean, var)
        return torch.nn.functional.batch_norm(x, *statistics, weight, bias, training)

    inputs = x, weight, bias
    tangents = tuple(t.cos() for t in inputs)
    batches = tuple(torch.stack([t, 2 * t, t + 1]) for t in inputs)
    for one, other in (
        (jvp(ours, inputs, tangents), jvp(torchs, inputs, tangents)),
        (vjp(ours, *inputs)[1](x.sin()), vjp(torchs, *inputs)[1](x.sin())),
        (vmap(ours)(*batches), vmap(torchs)(*batches)),
        (vmap(ours, (None, 0, None))(x, batches[1], bias), vmap(torchs, (None, 0, None))(x, batches[1], bias)),
        (
            vmap(lambda *a: jvp(ours, a, tangents)[1])(*batches),
            vmap(lambda *a: jvp(torchs, a, tangents)[1])(*batches),
        ),
    ):
        torch.testing.assert_close(one, other)


@devices
@trainings
@pytest.mark.parametrize("mask", [(True, True, True), (True, False, False), (False, True, True)])
def test_backward_operators(device, training, mask):
    """Tangents of what they are given, the gradient alone included; empty tensors stay what they are."""
    x, weight, _, mean, var = arguments(device)
    g = torch.randn_like(x)
    stats = OPS.batch_norm_train(x, None, None, None, None, None, 0.1, 1e-5)[1]

    def call(g, x, weight):
        if training:
            return OPS.batch_norm_train_backward(g, x, weight, stats, mask)
        return OPS.batch_norm_eval_backward(g, x, weight, mean, var, 1e-5, mask)

    value, tangent = jvp(lambda g: call(g, x, weight), (g,), (g.cos(),))
    torch.testing.assert_close(value, call(g, x, weight))
    torch.testing.assert_close(tangent, call(g.cos(), x, weight))
    batched = vmap(call, (0, None, None))(torch.stack([g, g.cos()]), x, weight)
    torch.testing.assert_close(tuple(t[1] for t in batched), call(g.cos(), x, weight))


def test_no_grad_outside_of_a_transform():
    """Levels that record nothing stay so, inner ones record."""
    x = torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        slope = grad(lambda x: F.batch_norm(x, None, None, training=True).pow(3).sum())(x)
    assert not slope.requires_grad and slope.abs().sum() > 0
    slope = grad(lambda x: F.batch_norm(x, None, None, training=True).pow(3).sum())(x)
    assert slope.requires_grad
    with torch.no_grad():
        assert not F.batch_norm(x, None, None, training=True).requires_grad
