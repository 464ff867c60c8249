"""Networks of kinds that torchvision and timm do not have: a U-Net and multilayer perceptrons."""

import torch
from torch import nn


class DoubleConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        return self.drop(self.act(self.bn2(self.conv2(x))))


class UNet(nn.Module):
    """Ronneberger et al. 2015, with batch norm."""

    def __init__(self, channels=(4, 8, 16)):
        super().__init__()
        pairs = list(zip((3, *channels), channels, strict=False))
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in pairs)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs[1:]))
        self.merge = nn.ModuleList(DoubleConv(2 * a, a) for a, _ in reversed(pairs[1:]))
        self.head = nn.Conv2d(channels[0], 2, 1)

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], 1))
        return self.head(x)


def mlp_act_norm_drop():
    """Linear, activation, batch norm, dropout: four times."""
    sizes = [16, 24, 24, 24, 24]
    layers = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.BatchNorm1d(b), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(24, 10))


def mlp_norm_act():
    """Linear, batch norm, activation, with every activation that there is."""
    acts = [nn.ReLU(True), nn.ReLU6(), nn.LeakyReLU(0.2), nn.PReLU(24), nn.ELU(), nn.SiLU(), nn.Mish(), nn.GELU()]
    acts += [nn.GELU("tanh"), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh()]
    layers = [nn.Linear(16, 24)]
    for act in acts:
        layers += [nn.BatchNorm1d(24), act, nn.Linear(24, 24)]
    return nn.Sequential(*layers)


def mlp_act_drop():
    """Linear, activation, dropout: twice."""
    return nn.Sequential(
        nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.3), nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.3), nn.Linear(32, 4)
    )
