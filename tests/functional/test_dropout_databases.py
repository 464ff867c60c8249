"""fastreg's dropouts in place of torch's in torch's own database of operator inputs, judged by torch's formulas with
fastreg's masks; dropout1d and the modules, which the databases lack, by hand."""

import copy
import pickle

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_utils import noncontiguous_like

import fastreg
from tests.common import DEVICES, channels_last, contiguous
from tests.functional.dropout_family import alpha, inverted

# (torch's formula, how many leading dimensions are counted in an input of so many)
KINDS = {
    "dropout": (inverted, lambda dim: None),
    "alpha_dropout": (alpha, lambda dim: None),
    "dropout2d": (inverted, lambda dim: 2),
    "dropout3d": (inverted, lambda dim: 2 if dim == 5 else 1),
    "feature_alpha_dropout": (alpha, lambda dim: 2),
}
ENTRIES = {
    f"{info.name} {info.variant_test_name}".strip(): info
    for info in op_db
    if info.name.removeprefix("nn.functional.") in KINDS
}
MODULES = {
    "Dropout": (5, 6),
    "Dropout1d": (4, 3, 5),
    "Dropout2d": (4, 3, 5, 6),
    "Dropout3d": (4, 3, 2, 5, 6),
    "AlphaDropout": (5, 6),
    "FeatureAlphaDropout": (4, 3, 5),
}
# Both round once or twice.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2, torch.float16: 2e-3}

devices = pytest.mark.parametrize("device", DEVICES)
entries = pytest.mark.parametrize("name", ENTRIES)
modules = pytest.mark.parametrize("name", MODULES)
ignore_deprecated_shapes = pytest.mark.filterwarnings("ignore:dropout[23]d")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_database_has_the_kinds():
    assert {name.split()[0].removeprefix("nn.functional.") for name in ENTRIES} == set(KINDS)


def samples(name, device, dtype, layout=contiguous):
    """(fastreg's function of input and rng_state, torch's formula, input, keywords) of each entry."""
    short = ENTRIES[name].name.removeprefix("nn.functional.")
    function = getattr(fastreg.functional, short)
    formula, counted = KINDS[short]
    for sample in ENTRIES[name].sample_inputs(device, dtype, requires_grad=False):
        x = layout(sample.input)
        keywords = {k: v for k, v in sample.kwargs.items() if k != "inplace"}
        p = keywords.get("p", 0.5)
        training = keywords.get("training", short in ("dropout", "dropout2d", "dropout3d"))

        def expected(x, state, p=p, training=training, formula=formula, counted=counted):
            if not training or p == 0.0:
                return x
            strides = torch.empty_like(x).stride() if counted(x.dim()) is None else None
            keep = fastreg.dropout_mask(x.shape, p, state, dims=counted(x.dim()), strides=strides)
            return formula(x, keep, p) if p < 1.0 else x * 0

        yield function, expected, x, keywords


@devices
@entries
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last, noncontiguous_like])
@ignore_deprecated_shapes
def test_values_and_gradients(device, name, dtype, layout):
    state = torch.tensor([3, 8], device=device)
    for function, expected, x, keywords in samples(name, device, dtype, layout):
        weights, results = torch.linspace(-1, 1, x.numel(), dtype=dtype, device=device).view_as(x), []
        for call, given in ((function, {**keywords, "rng_state": state}), (expected, {"state": state})):
            leaf = x.detach().requires_grad_()
            y = call(leaf * 1, **given)
            results.append((y, torch.autograd.grad(y, leaf, weights)[0]))
        torch.testing.assert_close(*results, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        y = function(x, **keywords, rng_state=state)
        assert y is x or y.stride() == torch.empty_like(x).stride()


@devices
@entries
@ignore_deprecated_shapes
def test_derivatives(device, name):
    state = torch.tensor([3, 8], device=device)
    for function, _, x, keywords in samples(name, device, torch.float64):
        leaf = x.detach().requires_grad_()

        def f(x, function=function, keywords=keywords):
            return function(x, **keywords, rng_state=state)

        assert torch.autograd.gradcheck(f, leaf, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, leaf, fast_mode=True)


@devices
@entries
@ignore_deprecated_shapes
def test_in_place(device, name):
    state = torch.tensor([3, 8], device=device)
    for function, _, x, keywords in samples(name, device, torch.float32):
        expected, written = function(x, **keywords, rng_state=state), x.clone()
        version = written._version
        assert function(written, **keywords, inplace=True, rng_state=state) is written
        assert torch.equal(written, expected) and (written._version > version) == (expected is not x)


@devices
@entries
@ignore_deprecated_shapes
def test_errors(device, name):
    info = ENTRIES[name]
    for error in info.error_inputs(device) if info.error_inputs_func else ():
        function = getattr(fastreg.functional, info.name.removeprefix("nn.functional."))
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            function(sample.input, *sample.args, **sample.kwargs)


@devices
@modules
@pytest.mark.parametrize("layout", [contiguous, channels_last, noncontiguous_like])
def test_modules(device, name, layout):
    """Copies, training and evaluation, dtype movement, and what torch's module would compute with the mask."""
    module = getattr(fastreg.nn, name)(0.4).to(device)
    x = layout(torch.randn(MODULES[name], device=device))
    for copied in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.to(torch.float64)):
        twin = copied(module)
        assert type(twin) is type(module) and repr(twin) == repr(getattr(torch.nn, name)(0.4)) and twin.p == 0.4
        results = []
        for m in (module, twin):
            torch.manual_seed(1)
            results.append(m(x))
        assert torch.equal(*results) and not torch.equal(results[0], x)
        assert twin.eval()(x) is x
        module.train()
    with fastreg.record_rng_states() as states:
        y = module(x)
    dims = None if name in ("Dropout", "AlphaDropout") else 2
    strides = torch.empty_like(x).stride() if dims is None else None
    keep = fastreg.dropout_mask(x.shape, 0.4, states[0], dims=dims, strides=strides)
    formula = alpha if "Alpha" in name else inverted
    torch.testing.assert_close(y, formula(x, keep, 0.4), rtol=1e-6, atol=1e-6)
