"""torch's own functions and modules under patch_torch(), in torch's own databases of inputs: they are fastreg's."""

import pytest
import torch
from torch.testing._internal.common_utils import noncontiguous_like

import fastreg
from tests.common import channels_last, contiguous, in_layout
from tests.functional import test_batch_norm_databases as norms
from tests.functional import test_dropout_databases as dropouts

SEED = 5
layouts = pytest.mark.parametrize("layout", [contiguous, channels_last, noncontiguous_like])
pytestmark = pytest.mark.filterwarnings("ignore:dropout[23]d")


@pytest.fixture(autouse=True)
def patched():
    torch.manual_seed(0)
    with fastreg.patch_torch():
        yield


def samples(name, dtype, layout=contiguous):
    """(torch's function, the formula with the mask that fastreg draws after SEED, input) of each entry."""
    for function, expected, x, keywords in dropouts.samples(name, "cpu", dtype, layout):
        torchs = getattr(torch.nn.functional, function.__name__)
        torch.manual_seed(SEED)
        state = fastreg.draw_rng_state()

        def call(x, inplace=False, torchs=torchs, keywords=keywords):
            torch.manual_seed(SEED)
            return torchs(x, **keywords, inplace=inplace)

        yield call, lambda x, expected=expected, state=state: expected(x, state), x


@dropouts.entries
@pytest.mark.parametrize("dtype", list(dropouts.TOLERANCE), ids=str)
@layouts
def test_dropout(name, dtype, layout):
    for call, expected, x in samples(name, dtype, layout):
        weights, results = torch.linspace(-1, 1, x.numel(), dtype=dtype).view_as(x), []
        for function in (call, expected):
            leaf = in_layout(x, lambda x: x).requires_grad_()
            y = function(leaf * 1)
            results.append((y, torch.autograd.grad(y, leaf, weights)[0]))
        tolerance = dropouts.TOLERANCE[dtype]
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@dropouts.entries
def test_dropout_derivatives(name):
    for call, _, x in samples(name, torch.float64):
        leaf = x.detach().requires_grad_()
        assert torch.autograd.gradcheck(call, leaf, fast_mode=True, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, leaf, fast_mode=True)


@dropouts.entries
def test_dropout_in_place(name):
    for call, _, x in samples(name, torch.float32):
        expected, written = call(x), x.clone()
        assert call(written, inplace=True) is written and torch.equal(written, expected)


@dropouts.entries
def test_dropout_errors(name):
    info = dropouts.ENTRIES[name]
    for error in info.error_inputs("cpu") if info.error_inputs_func else ():
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            info.op(sample.input, *sample.args, **sample.kwargs)


@norms.modules
@norms.dtypes
@norms.trainings
@layouts
def test_batch_norm_module(name, dtype, training, layout):
    for _, module, input in norms.cases(name, "cpu", dtype, training):
        twin = norms.copy.deepcopy(module)
        results = norms.gradients(module, layout(input))
        fastreg.unpatch_torch()
        try:
            expected = norms.gradients(twin, layout(input))
        finally:
            fastreg.patch_torch()
        assert "BatchNorm" not in type(results[0].grad_fn).__name__ or not input.numel()
        torch.testing.assert_close(results, expected, **norms.TOLERANCE[dtype])
        torch.testing.assert_close(module.state_dict(), twin.state_dict(), **norms.TOLERANCE[dtype])
        assert results[0].stride() == expected[0].stride() or not input.numel()


@norms.dtypes
@layouts
def test_batch_norm(dtype, layout):
    for call, leaves in norms.samples("cpu", dtype):
        leaves = [layout(leaves[0]).detach().requires_grad_(), *leaves[1:]]
        results = []
        for function in (torch.nn.functional.batch_norm, fastreg.functional.batch_norm):
            output, statistics = call(function, *leaves)
            weights = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output)
            results.append((output, statistics, torch.autograd.grad(output, leaves, weights, allow_unused=True)))
        torch.testing.assert_close(*results, rtol=0, atol=0)


def test_batch_norm_derivatives():
    for call, leaves in norms.samples("cpu", torch.float64):

        def output(*values, call=call):
            return call(torch.nn.functional.batch_norm, *values)[0]

        if leaves[0].numel():
            assert torch.autograd.gradcheck(output, leaves, fast_mode=True, check_forward_ad=True)
            assert torch.autograd.gradgradcheck(output, leaves, fast_mode=True)


@norms.modules
@norms.trainings
def test_batch_norm_module_errors(name, training):
    info = norms.MODULES[name]
    for error in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
    ):
        entry = error.module_error_input
        construction = entry.constructor_input
        with pytest.raises(error.error_type, match=error.error_regex):
            module = info.module_cls(*construction.args, **construction.kwargs)
            module(*entry.forward_input.args, **entry.forward_input.kwargs)
