"""Models of torchvision, timm and Hugging Face, converted, against the same models as they come."""

import copy
import importlib
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

import fastreg
from tests.zoo.hugging_face import HUGGING_FACE, draw_fastregs_masks
from tests.zoo.models import MODELS

pytestmark = pytest.mark.zoo

# Rounding in float64, amplified by some hundred layers.
TOLERANCE = 1e-9

hugging_face = [pytest.param(model, marks=pytest.mark.package("transformers")) for model in HUGGING_FACE]
all_models = pytest.mark.parametrize("model", [*MODELS, *hugging_face], ids=lambda model: model.name)
some_models = pytest.mark.parametrize(
    "model",
    [model for model in MODELS if "resnet18" in model.name or "efficientnet" in model.name],
    ids=lambda m: m.name,
)


@pytest.fixture(autouse=True)
def same_masks(monkeypatch):
    """Whatever drops elements or samples in the plain models draws fastreg's masks."""

    def drop_path(x, drop_prob=0.0, training=False, scale_by_keep=True):
        return fastreg.functional.drop_path(x, drop_prob, training)

    def stochastic_depth(input, p, mode, training=True):
        return fastreg.functional.drop_path(input, p, training)

    monkeypatch.setattr(F, "dropout", fastreg.functional.dropout)
    monkeypatch.setattr(importlib.import_module("timm.layers.drop"), "drop_path", drop_path)
    monkeypatch.setattr(
        importlib.import_module("torchvision.ops.stochastic_depth"), "stochastic_depth", stochastic_depth
    )


def made(model, dtype=torch.float64):
    """The model as it comes, and the same one converted."""
    torch.manual_seed(0)
    plain = model.make()
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.min() == parameter.max():  # zeros, ones and 1e-6 that models begin with cut branches off
                parameter += 0.2 * torch.randn_like(parameter)
    plain.to(dtype)
    converted = fastreg.convert(copy.deepcopy(plain))
    draw_fastregs_masks(plain)
    return plain, converted


def images(model, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(model.shape).to(dtype)


def output(model, x):
    y = model(x)
    return y["out"] if isinstance(y, dict) else y


def loss(y):
    return (y * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape)).sum()


def trained(model, x, steps):
    """Outputs of some steps, the first step's gradients, and the state after them."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.001)
    outputs, gradients = [], None
    for _ in range(steps):
        y = output(model, x)
        optimiser.zero_grad()
        loss(y).backward()
        if gradients is None:
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimiser.step()
        outputs.append(y.detach())
    return outputs, gradients, list(model.state_dict().values())


def assert_close(ours, plain):
    """Within the tolerance of the largest value of all."""
    assert len(ours) == len(plain)
    largest = max((value.abs().max().item() for value in plain if value.numel()), default=0.0)
    torch.testing.assert_close(ours, plain, rtol=TOLERANCE, atol=TOLERANCE * max(largest, 1.0))


def hardsigmoid(x, inplace=False):
    """torch's own multiplies gradients by 1/6 rounded to float32, in float64 too."""
    return torch.nn.functional.relu6(x + 3.0) / 6.0


@all_models
def test_float64(model, monkeypatch):
    plain, ours = made(model)
    monkeypatch.setattr(torch.nn.functional, "hardsigmoid", hardsigmoid)
    x = images(model)
    types = [type(module) for module in plain.modules()]
    assert Counter(str(site) for site in fastreg.report(ours).fused if site.training) == model.sites
    with fastreg.record_rng_states() as states:
        expected = trained(plain, x, 2)
    with fastreg.replay_rng_states(states):
        computed = trained(ours, x, 2)
    for one, other in zip(computed, expected, strict=True):
        assert_close(one, other)
    plain.eval(), ours.eval()
    with torch.no_grad():
        assert_close([output(ours, x)], [output(plain, x)])
    state = copy.deepcopy(ours.state_dict())
    assert state.keys() == plain.state_dict().keys()
    fastreg.revert(ours)
    assert [type(module) for module in ours.modules()] == types
    assert ours.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())


@all_models
def test_bfloat16(model):
    """About as far from float64 as torch's own layers are: one draw of rounding errors, which gates that flip amplify
    in either."""
    plain, ours = made(model, torch.bfloat16)
    x = images(model, torch.bfloat16)
    exact = copy.deepcopy(plain).double()
    with fastreg.record_rng_states() as states:
        of_exact = trained(exact, x.double(), 1)
    with fastreg.replay_rng_states(states):
        of_plain = trained(plain, x, 1)
    with fastreg.replay_rng_states(states):
        of_ours = trained(ours, x, 1)
    for one, other, reference in zip(of_ours, of_plain, of_exact, strict=True):
        one, other, reference = (
            torch.cat([v.double().flatten() for v in values]) for values in (one, other, reference)
        )
        ulps = 2 * torch.finfo(torch.bfloat16).eps * reference.norm()
        assert (one - reference).norm() <= 2 * (other - reference).norm() + ulps


@some_models
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(model, copied):
    plain, ours = made(model, torch.float32)
    other = copied(ours)
    assert repr(other) == repr(ours) == repr(plain)
    assert fastreg.report(other).fused == fastreg.report(ours).fused
    x = images(model, torch.float32)
    assert torch.equal(other.eval()(x), ours.eval()(x))


@some_models
def test_symbolic_trace(model):
    plain, ours = made(model, torch.float32)
    x = images(model, torch.float32)
    traced = torch.fx.symbolic_trace(ours.eval())
    torch.testing.assert_close(traced(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", MODELS[:1], ids=lambda model: model.name)
def test_feature_extractor(model):
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    plain, ours = made(model, torch.float32)
    x = images(model, torch.float32)
    assert get_graph_node_names(ours) == get_graph_node_names(plain)
    nodes = ["layer1.0.bn2", "layer2.0.relu_1", "avgpool"]
    for training in (True, False):
        one = create_feature_extractor(ours.train(training), nodes)(x)
        other = create_feature_extractor(plain.train(training), nodes)(x)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@some_models
def test_hook_and_evaluation_of_one_layer(model):
    plain, ours = made(model)
    x = images(model)
    with fastreg.record_rng_states() as states:
        expected = changed(plain, x)
    with fastreg.replay_rng_states(states):
        computed = changed(ours, x)
    assert_close(*[[y for y, _ in results] for results in (computed, expected)])
    assert_close(computed[-1][1], expected[-1][1])


def changed(model, x):
    """Outputs and what a hook saw: as it is, with a norm in evaluation, with other p, with a hook, with another
    activation."""
    seen, results = [], [(output(model, x).detach(), [])]
    norms = [module for module in model.modules() if hasattr(module, "running_mean")]
    norms[1].eval()
    results.append((output(model, x).detach(), []))
    for module in model.modules():
        for name in {"p", "drop_prob"} & vars(module).keys():
            setattr(module, name, 0.5)
    results.append((output(model, x).detach(), []))
    norms[2].register_forward_hook(lambda module, args, y: seen.append(y.detach().clone()))
    results.append((output(model, x).detach(), seen))
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU | torch.nn.SiLU):
                setattr(module, name, torch.nn.Softplus())
    results.append((output(model, x).detach(), seen))
    return results
