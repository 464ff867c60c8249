"""What tests of forwards share: layers to call, and all that is seen of a call."""

import copy
import types

import torch
from torch import nn

import fastreg

SHAPE = (4, 8, 5, 5)
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


class Layers(nn.Module):
    """What the forwards here call."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.bn2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.relu, self.silu, self.drop = nn.ReLU(), nn.SiLU(), nn.Dropout(0.5)
        self.features, self.flags, self.skip = [], {"act": True}, None
        self.options = types.SimpleNamespace(act=True, steps=[1, 2])
        self.register_buffer("scale", torch.ones(8, 1, 1))
        self.generator = torch.Generator()
        self.double()

    extra = True  # of the class


def with_forward(forward):
    return type("Model", (Layers,), {"forward": forward})


def both(forward, cls=None):
    torch.manual_seed(0)
    plain = (cls or with_forward(forward))()
    return plain, fastreg.convert(copy.deepcopy(plain))


def images(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(SHAPE, dtype=dtype)


def seen(model, x):
    """All that a call does: result, gradients, and what the model keeps."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(2)
    model.generator.manual_seed(3)
    model.zero_grad()
    y = model(x)
    values = [y, model.features, y.requires_grad]
    if y.requires_grad:
        with torch.enable_grad():
            (y.double() * torch.linspace(-1, 1, y.numel()).double().view_as(y)).sum().backward()
        values += [x.grad, *(parameter.grad for parameter in model.parameters())]
    return [*values, dict(model.state_dict()), torch.rand(1)]


def assert_same(ours, plain, tolerance=TOLERANCE):
    """In training and in evaluation, with a gradient and without."""
    for training in (True, False):
        ours.train(training), plain.train(training)
        for mode in (torch.enable_grad, torch.no_grad):
            with mode():
                one, other = outcome(ours), outcome(plain)
                assert (one == "error") == (other == "error")
                torch.testing.assert_close(one, other, **tolerance) if other != "error" else None


def outcome(model):
    """What is seen, or the error."""
    try:
        return seen(model, images())
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        return "error"


class Residual(Layers):
    def forward(self, x):
        h = self.relu(self.bn(self.conv(x)))
        h = self.bn2(h)
        h += x
        return self.relu(h)
