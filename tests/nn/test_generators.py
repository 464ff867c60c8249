"""Modules with a generator of their own: what they draw from, hold, copy, pickle and say."""

import copy
import io
import pickle

import pytest
import torch

import fastreg
from fastreg import nn

SHAPE = (40, 50, 2, 2)
# Each as a function of its keywords, and a shape that it takes.
MODULES = {
    "Dropout": (nn.Dropout, SHAPE),
    "Dropout1d": (nn.Dropout1d, (40, 50, 2)),
    "Dropout2d": (nn.Dropout2d, SHAPE),
    "Dropout3d": (nn.Dropout3d, (40, 50, 2, 1, 2)),
    "AlphaDropout": (nn.AlphaDropout, SHAPE),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout, SHAPE),
    "DropPath": (nn.DropPath, (200, 2)),
    "DropConnectLinear": (lambda **keywords: nn.DropConnectLinear(20, 30, **keywords), (10, 20)),
    "BatchNormAct2d": (lambda **keywords: nn.BatchNormAct2d(50, drop=0.5, **keywords), SHAPE),
    "ActDropout": (nn.ActDropout, SHAPE),
    "BiasActDropoutAdd": (lambda **keywords: nn.BiasActDropoutAdd(2, **keywords), SHAPE),
}
modules = pytest.mark.parametrize("name", MODULES)


def own(seed=7):
    return torch.Generator().manual_seed(seed)


def made(name, **keywords):
    torch.manual_seed(0)
    return MODULES[name][0](**keywords)


def ones(name):
    return torch.rand(MODULES[name][1]) + 0.5


@modules
def test_draws_from_it(name):
    """As the module without it draws from the device's own."""
    generator, x = own(), ones(name)
    module, plain = made(name, generator=generator), made(name)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = [module(x) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before) and not torch.equal(*found)
    torch.manual_seed(7)
    assert all(map(torch.equal, found, [plain(x) for _ in range(2)]))
    assert torch.equal(torch.get_rng_state(), generator.get_state())
    module.eval()(x)
    assert torch.equal(torch.get_rng_state(), generator.get_state())


@modules
def test_attribute(name):
    """A plain one, that can be set at any time: a module without has none of its own, and says nothing of it."""
    generator, module, plain = own(), made(name, generator=own()), made(name)
    assert plain.generator is None and "generator" not in plain.__dict__ and "generator" not in repr(plain)
    assert (
        "generator=torch.Generator('cpu')" in repr(module) and module.state_dict().keys() == plain.state_dict().keys()
    )
    plain.generator = generator
    x = ones(name)
    assert torch.equal(plain(x), module(x))
    plain.generator = None
    torch.manual_seed(7)
    y = plain(x)
    module.generator = own()
    assert torch.equal(y, module(x))


@modules
def test_copies_and_pickles(name):
    """Generators go along, with their states: a copy draws what the module would have drawn."""
    x, module = ones(name), made(name, generator=own())
    module(x)  # not at the beginning
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)]
    expected = [module(x) for _ in range(2)]
    for other in copies:
        assert other.generator is not module.generator
        assert all(map(torch.equal, [other(x) for _ in range(2)], expected))


def test_generators_that_are_shared_stay_so():
    generator = own()
    model = torch.nn.Sequential(nn.Dropout(generator=generator), nn.DropPath(generator=generator))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[0].generator is other[1].generator is not generator


@modules
def test_refused(name):
    kind = type(made(name)).__name__
    with pytest.raises(TypeError, match=f"{kind}: generator must be a torch.Generator or None, got int"):
        made(name, generator=5)


def test_sync_batch_norm_act():
    module = nn.SyncBatchNormAct(4, drop=0.5, generator=own())
    assert "generator=torch.Generator('cpu')" in repr(module)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNormAct2d(4, drop=0.5, generator=own()))
    assert type(converted) is nn.SyncBatchNormAct and isinstance(converted.generator, torch.Generator)


def network(generator):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), nn.Dropout(0.5, generator=generator)]
    layers += [torch.nn.Linear(8, 8), torch.nn.GELU(), nn.Dropout(0.4, generator=generator)]
    return torch.nn.Sequential(*layers)


def test_converted_models():
    """Fused dropouts draw from theirs, and so does what is left of a model that is reverted."""
    x = torch.randn(64, 8)
    plain, model, generators = network(own()), None, own()
    model = fastreg.convert(network(generators))
    assert len(fastreg.report(model).fused) == 2
    torch.testing.assert_close(model(x), plain(x))
    assert torch.equal(generators.get_state(), plain[3].generator.get_state())
    torch.testing.assert_close(fastreg.revert(model)(x), plain(x))


def test_layers_that_are_converted_take_one():
    """torch's own layers have none; one that is set on a converted layer holds."""
    layer = fastreg.convert(torch.nn.Dropout(0.5))
    assert layer.generator is None
    layer.generator = own()
    x = torch.ones(100)
    assert torch.equal(layer(x), fastreg.functional.dropout(x, generator=own()))
