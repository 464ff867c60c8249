"""fastreg's batch norm in place of torch's in torch's own databases of module and operator inputs."""

import copy
import inspect
import pickle

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.testing._internal.common_utils import freeze_rng_state, noncontiguous_like

import fastreg
from tests.common import DEVICES, channels_last, contiguous

MODULES = {info.name: info for info in module_db if issubclass(info.module_cls, torch.nn.modules.batchnorm._BatchNorm)}
(OPERATOR,) = (info for info in op_db if info.name == "nn.functional.batch_norm" and not info.variant_test_name)
DTYPES = [torch.float32, torch.float64]
# Both round differently; gradients are sums of some hundred terms of magnitude 100 at most.
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}

devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
modules = pytest.mark.parametrize("name", MODULES)
trainings = pytest.mark.parametrize("training", [True, False])
layouts = pytest.mark.parametrize("layout", [contiguous, channels_last, noncontiguous_like])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_databases_have_batch_norm():
    assert list(MODULES) == ["nn.BatchNorm1d", "nn.BatchNorm2d", "nn.BatchNorm3d"]
    assert OPERATOR.supports_gradgrad and OPERATOR.op is torch.nn.functional.batch_norm


def ours(info):
    return getattr(fastreg.nn, info.module_cls.__name__)


def cases(name, device, dtype, training):
    """(fastreg's module, torch's with the same state, input) for each entry, in training or evaluation."""
    info = MODULES[name]
    for entry in info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=False, training=training):
        arguments, keywords = entry.constructor_input.args, entry.constructor_input.kwargs
        one, other = (
            kind(*arguments, **keywords, device=device, dtype=dtype).train(training)
            for kind in (ours(info), info.module_cls)
        )
        for value in other.parameters():
            torch.nn.init.normal_(value)
        if other.running_mean is not None:
            torch.nn.init.normal_(other.running_mean)
            torch.nn.init.uniform_(other.running_var, 0.5, 2.0)
        one.load_state_dict(other.state_dict())
        yield one, other, entry.forward_input.args[0]


def gradients(module, input):
    leaf = input.detach().requires_grad_()
    output = module(leaf)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return output, torch.autograd.grad(output, [leaf, *module.parameters()], weights)


@devices
@modules
@dtypes
@trainings
@layouts
def test_module(device, name, dtype, training, layout):
    """Outputs, gradients, state and memory formats, twice in a row."""
    for one, other, input in cases(name, device, dtype, training):
        for _ in range(2):
            (y, gradient), (expected, expected_gradient) = (gradients(m, layout(input)) for m in (one, other))
            torch.testing.assert_close(y, expected, **TOLERANCE[dtype])
            torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE[dtype])
            assert y.stride() == expected.stride() or device != "cpu" or y.numel() == 0
            torch.testing.assert_close(one.state_dict(), other.state_dict(), **TOLERANCE[dtype])


@devices
@modules
@trainings
def test_module_derivatives(device, name, training):
    for module, _, input in cases(name, device, torch.float64, training):

        def call(input, *parameters, module=module):
            names = [n for n, _ in module.named_parameters()]
            return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), input)

        leaves = [t.detach().requires_grad_() for t in (input, *module.parameters())]
        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@devices
@modules
@trainings
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_module_copies(device, name, training, copied):
    for module, _, input in cases(name, device, torch.float32, training):
        module(input)
        twin = copied(module)
        assert type(twin) is type(module) and twin.training is training
        assert torch.equal(twin(input), module(input))
        for key, value in module.state_dict().items():
            assert torch.equal(twin.state_dict()[key], value)


@devices
@modules
def test_training_and_evaluation_differ(device, name):
    for module, _, input in cases(name, device, torch.float32, True):
        y = module(input)
        assert (module.running_mean is None or not input.numel()) == torch.equal(module.eval()(input), y)


@devices
@modules
@trainings
def test_module_errors(device, name, training):
    info = MODULES[name]
    errors = info.module_error_inputs_func(
        info, device=device, dtype=torch.float32, requires_grad=False, training=training
    )
    assert errors
    for error in errors:
        entry = error.module_error_input
        construction = entry.constructor_input
        with pytest.raises(error.error_type, match=error.error_regex):
            module = ours(info)(*construction.args, **construction.kwargs)
            assert error.error_on is ModuleErrorEnum.FORWARD_ERROR
            module(*entry.forward_input.args, **entry.forward_input.kwargs)


def samples(device, dtype):
    """Functions of the differentiable arguments, in torch's and fastreg's version, and these arguments.

    Statistics are new at every call: they are written to."""
    for sample in OPERATOR.sample_inputs(device, dtype, requires_grad=True):
        signature = inspect.signature(torch.nn.functional.batch_norm)
        bound = signature.bind(sample.input, *sample.args, **sample.kwargs).arguments
        leaves = {n: bound.pop(n) for n in ("input", "weight", "bias") if bound.get(n) is not None}
        bound.pop("cudnn_enabled", None)
        statistics = {n: bound.pop(n).detach().abs() for n in ("running_mean", "running_var") if bound[n] is not None}
        names = tuple(leaves)

        def call(function, *values, names=names, bound=bound, statistics=statistics):
            copies = {n: t.clone() for n, t in statistics.items()}
            output = function(**dict(zip(names, values, strict=True)), **copies, **bound)
            return output, copies

        yield call, [t.detach().requires_grad_() for t in leaves.values()]


@devices
@dtypes
@layouts
def test_operator(device, dtype, layout):
    for call, leaves in samples(device, dtype):
        leaves = [layout(leaves[0]).detach().requires_grad_(), *leaves[1:]]
        results = []
        for function in (fastreg.functional.batch_norm, torch.nn.functional.batch_norm):
            output, statistics = call(function, *leaves)
            weights = torch.linspace(-1, 1, output.numel(), dtype=dtype, device=device).view_as(output)
            results.append((output, statistics, torch.autograd.grad(output, leaves, weights, allow_unused=True)))
        torch.testing.assert_close(*results, **TOLERANCE[dtype])


@devices
def test_operator_derivatives(device):
    for call, leaves in samples(device, torch.float64):

        def output(*values, call=call):
            return call(fastreg.functional.batch_norm, *values)[0]

        if leaves[0].numel():
            assert torch.autograd.gradcheck(output, leaves, fast_mode=True)
            assert torch.autograd.gradgradcheck(output, leaves, fast_mode=True)


@devices
def test_operator_errors(device):
    """Whatever the database lists, today nothing."""
    with freeze_rng_state():
        errors = list(OPERATOR.error_inputs(device)) if OPERATOR.error_inputs_func else []
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            fastreg.functional.batch_norm(sample.input, *sample.args, **sample.kwargs)
