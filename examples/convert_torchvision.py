"""A model of torchvision, converted and back: the same parameters and outputs, fewer passes over memory.

pip install torchvision
python examples/convert_torchvision.py
"""

import copy
import sys

import torch

import fastreg

try:
    from torchvision.models import resnet18
except ImportError:
    sys.exit("this example needs torchvision, and there is none here: pip install torchvision")


def step(model, x, y):
    """Loss and gradients of one training step."""
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def main():
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    plain = copy.deepcopy(model)
    x, y = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))

    fastreg.convert(model)
    print(fastreg.report(model))
    assert list(model.state_dict()) == list(plain.state_dict())

    (loss, gradients), (plain_loss, plain_gradients) = step(model, x, y), step(plain, x, y)
    print(f"\nloss {loss:.6f}, by torch's layers {plain_loss:.6f}")
    torch.testing.assert_close(loss, plain_loss)
    for name, gradient in plain_gradients.items():  # of the same size up to rounding, through 18 layers
        assert (gradients[name] - gradient).norm() <= 1e-3 * gradient.norm(), name

    fastreg.revert(model)
    assert type(model.bn1) is torch.nn.BatchNorm2d and type(model.layer1[0]) is type(plain.layer1[0])
    print("reverted")


if __name__ == "__main__":
    main()
