"""Batch norm under opcheck, torch.compile, fake tensors and export."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastreg
from tests.common import COMPILED_BACKENDS, DEVICES, DTYPES, channels_last, contiguous, in_layout, sliced

pytestmark = pytest.mark.not_on_kernels(
    "what the compiler makes of them calls operators that other tests run, and takes minutes"
)

OPS = torch.ops.fastreg


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


def arguments(device, layout=contiguous, dtype=torch.float32, requires_grad=True):
    """input, weight, bias, running_mean, running_var"""
    x = in_layout(torch.randn(4, 3, 5, 6).to(device, dtype), layout).requires_grad_(requires_grad)
    weight, bias = (torch.randn(3).to(device, dtype).requires_grad_(requires_grad) for _ in range(2))
    return x, weight, bias, torch.randn(3).to(device, dtype), torch.rand(3).to(device, dtype) + 0.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "layout, dtype", [(contiguous, torch.bfloat16), (channels_last, torch.float32), (sliced, torch.float32)]
)
def test_opcheck(device, layout, dtype):
    x, weight, bias, mean, var = arguments(device, layout, dtype)
    count = torch.tensor(2, device=device)
    opcheck = torch.library.opcheck
    for momentum in (0.1, None):
        opcheck(OPS.batch_norm_train.default, (x, weight, bias, mean, var, count, momentum, 1e-5))
    opcheck(OPS.batch_norm_train.default, (x, None, None, None, None, None, 0.1, 1e-5))
    opcheck(OPS.batch_norm_eval.default, (x, weight, bias, mean, var, 1e-5))
    opcheck(OPS.batch_norm_eval.default, (x, None, bias, mean, var, 1e-5))
    g = torch.randn_like(x).requires_grad_()
    stats = OPS.batch_norm_train(x.detach(), None, None, None, None, None, 0.1, 1e-5)[1]
    for mask in ([True] * 3, [True, False, False], [False, True, True]):
        opcheck(OPS.batch_norm_train_backward.default, (g, x, weight, stats, mask))
        opcheck(OPS.batch_norm_eval_backward.default, (g, x, weight, mean, var, 1e-5, mask))
    opcheck(OPS.batch_norm_train_backward.default, (g, x, None, stats, [True] * 3))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
def test_direct_calls_differentiate(device, training):
    x, weight, bias, mean, var = arguments(device, dtype=torch.float64)
    if training:
        y, stats = OPS.batch_norm_train(x, weight, bias, mean.clone(), var.clone(), None, 0.1, 1e-5)
        assert stats.shape == (3, 3) and not stats.requires_grad
    else:
        y = OPS.batch_norm_eval(x, weight, bias, mean, var, 1e-5)
    expected = torch.nn.functional.batch_norm(x, mean, var, weight, bias, training)
    g = torch.randn_like(y)
    torch.testing.assert_close(y, expected)
    inputs = x, weight, bias
    torch.testing.assert_close(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_module(device, layout, momentum, dynamic):
    """Three steps of training, buffers included, then evaluation: as in eager mode."""
    eager, compiled = (fastreg.nn.BatchNorm2d(3, momentum=momentum, device=device) for _ in range(2))
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for training in (True, True, True, False):
        eager.train(training)
        compiled.train(training)
        x = in_layout(torch.randn(4, 3, 5, 6, device=device), layout)
        results = []
        for module in (eager, step):
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            y.flatten(1).square().sum().backward()
            results.append((y, leaf.grad))
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other) and one.stride() == other.stride()
    for one, other in zip(eager.state_dict().values(), compiled.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(eager.weight.grad, compiled.weight.grad) and eager.num_batches_tracked == 3


@pytest.mark.parametrize("device", DEVICES)
def test_inductor(device):
    modules = [
        torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.ReLU(), fastreg.nn.BatchNorm1d(8), fastreg.nn.Dropout(0.0)
        ).to(device)
        for _ in range(2)
    ]
    modules[1].load_state_dict(modules[0].state_dict())
    modules[1].compile(fullgraph=True)
    for _ in range(2):
        x = torch.randn(16, 6, device=device)
        results = [module(x) for module in modules]
        for y in results:
            y.square().mean().backward()
        torch.testing.assert_close(*results)
    torch.testing.assert_close(*(dict(module.named_buffers()) for module in modules))
    torch.testing.assert_close(*([p.grad for p in module.parameters()] for module in modules), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", COMPILED_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_fake_tensors(device, dtype, training):
    """Without the autograd engine, which wants a GPU for tensors on "cuda"."""
    with FakeTensorMode():
        parameter_dtype = torch.promote_types(dtype, torch.float32)
        module = fastreg.nn.BatchNorm2d(3, device=device, dtype=parameter_dtype).train(training)
        x = channels_last(torch.empty(2, 3, 4, 5, device=device, dtype=dtype)).requires_grad_()
        y = module(x)
        assert (y.shape, y.dtype, y.device, y.stride()) == (x.shape, x.dtype, x.device, x.stride())
        _, stats = OPS.batch_norm_train(x, None, None, None, None, None, 0.1, 1e-5)
        assert (stats.shape, stats.device) == ((3, 3), x.device)
        assert stats.dtype == parameter_dtype
        statistics = module.running_mean, module.running_var
        for gradients in (
            OPS.batch_norm_train_backward(y, x, module.weight, stats, [True] * 3),
            OPS.batch_norm_eval_backward(y, x, module.weight, *statistics, 1e-5, [True] * 3),
        ):
            assert [g.dtype for g in gradients] == [dtype, parameter_dtype, parameter_dtype]
            assert [g.shape for g in gradients] == [x.shape, (3,), (3,)] and gradients[0].stride() == x.stride()
        with pytest.raises(RuntimeError, match="weight must have shape"):
            OPS.batch_norm_eval(x, torch.empty(4, device=device), None, *statistics, 1e-5)


def test_export():
    module = fastreg.nn.BatchNorm2d(3).train()
    x = torch.randn(4, 3, 5, 6)
    program = torch.export.export(module, (x,))
    expected = fastreg.nn.BatchNorm2d(3)
    assert torch.equal(program.module()(x), expected(x))
    written = program.run_decompositions({}).graph_signature.buffers_to_mutate.values()
    assert set(written) == {"running_mean", "running_var", "num_batches_tracked"}
