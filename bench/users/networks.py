"""Small networks of the kinds that users convert, each written as such programs write it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.end_to_end.networks import Network

CLASSES = 10


def mlp(width: int, p: float, norm: bool) -> nn.Sequential:
    """Three hidden layers."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(width, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU(), nn.Dropout(p)]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


def _head(features: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, CLASSES)]


def conv_stack() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)):
        layers += [*conv_bn(inputs, outputs, stride=stride), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *_head(128))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, stride=stride)
        self.conv2, self.bn2 = conv_bn(outputs, outputs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*conv_bn(inputs, outputs, 1, stride)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


def residual() -> nn.Sequential:
    """ResNet-18's shape, a quarter as wide."""
    blocks, features = [], 16
    for stage in range(4):
        for block in range(2):
            outputs = 16 << stage
            blocks.append(BasicBlock(features, outputs, 2 if stage and not block else 1))
            features = outputs
    return nn.Sequential(*conv_bn(3, 16), nn.ReLU(inplace=True), *blocks, *_head(features))


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, act: type[nn.Module]):
        super().__init__()
        hidden = 4 * channels
        self.layers = nn.Sequential(
            *conv_bn(channels, hidden, 1),
            act(),
            *conv_bn(hidden, hidden, groups=hidden),
            act(),
            *conv_bn(hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def inverted_residual(act: type[nn.Module]) -> nn.Sequential:
    layers = [*conv_bn(3, 24, stride=2), act(), *(InvertedResidual(24, act) for _ in range(3))]
    layers += [*conv_bn(24, 40, stride=2), act(), *(InvertedResidual(40, act) for _ in range(3))]
    return nn.Sequential(*layers, *_head(40))


class TransformerLayer(nn.Module):
    """[N, T, width]; dropout in attention, after it, and twice in the feed-forward part."""

    def __init__(self, width: int, heads: int = 4, p: float = 0.1):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, p, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout, self.dropout1, self.dropout2 = nn.Dropout(p), nn.Dropout(p), nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.dropout1(self.attention(h, h, h, need_weights=False)[0])
        h = self.linear2(self.dropout(F.gelu(self.linear1(self.norm2(x)))))
        return x + self.dropout2(h)


class Transformer(nn.Module):
    def __init__(self, width: int = 64, layers: int = 2):
        super().__init__()
        self.layers = nn.Sequential(*(TransformerLayer(width) for _ in range(layers)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


class DoubleConv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int):
        super().__init__(
            *conv_bn(inputs, outputs), nn.ReLU(inplace=True), *conv_bn(outputs, outputs), nn.ReLU(inplace=True)
        )


class UNet(nn.Module):
    """Ronneberger et al., MICCAI 2015, with batch norm, three levels, and the mean over the image as its result."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.down1, self.down2, self.bottom = (
            DoubleConv(3, width),
            DoubleConv(width, 2 * width),
            DoubleConv(2 * width, 4 * width),
        )
        self.up2, self.up1 = DoubleConv(6 * width, 2 * width), DoubleConv(3 * width, width)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.up2(torch.cat([b, F.interpolate(c, scale_factor=2)], 1))
        a = self.up1(torch.cat([a, F.interpolate(b, scale_factor=2)], 1))
        return self.head(a).mean((2, 3))


class GraphLayer(nn.Module):
    """A layer of a graph isomorphism network: Xu et al., ICLR 2019. [N, nodes, width], neighbours on a ring."""

    def __init__(self, width: int):
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(1))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.5)

    def forward(self, h: Tensor) -> Tensor:
        neighbours = h.roll(1, 1) + h.roll(-1, 1)
        y = self.mlp(((1 + self.eps) * h + neighbours).flatten(0, 1))
        return h + self.drop(F.relu(self.norm(y))).view_as(h)


class Graph(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.layers = nn.Sequential(*(GraphLayer(width) for _ in range(3)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).sum(1))


def _of_library(module: str, function: str, *args, **kwargs) -> nn.Module:
    return getattr(importlib.import_module(module), function)(*args, **kwargs)


_OWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (partial(mlp, 64, 0.5, False), (64,)),
    "mlp_bn": (partial(mlp, 256, 0.5, True), (256,)),
    "conv": (conv_stack, (3, 32, 32)),
    "residual": (residual, (3, 32, 32)),
    "mobile_relu6": (partial(inverted_residual, nn.ReLU6), (3, 64, 64)),
    "mobile_silu": (partial(inverted_residual, nn.SiLU), (3, 64, 64)),
    "mobile_hardswish": (partial(inverted_residual, nn.Hardswish), (3, 64, 64)),
    "transformer": (Transformer, (32, 64)),
    "unet": (UNet, (3, 64, 64)),
    "graph": (Graph, (30, 64)),
}
_OF_LIBRARIES = {
    "torchvision": (
        "torchvision.models",
        ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "densenet121"),
    ),
    "timm": ("timm.models", ("resnet18d", "mobilenetv3_small_100", "convnext_atto")),
}
NAMES = (*_OWN, *(name for _, names in _OF_LIBRARIES.values() for name in names))


def networks(batch: int) -> list[Network]:
    """Those written here, and those of torchvision and timm where they are installed."""
    found = [Network(name, "bench", build, batch, shape, CLASSES) for name, (build, shape) in _OWN.items()]
    for library, (module, names) in _OF_LIBRARIES.items():
        if importlib.util.find_spec(library):
            build = partial(_of_library, module)
            found += [
                Network(name, library, partial(build, name, num_classes=CLASSES), batch, (3, 64, 64), CLASSES)
                for name in names
            ]
    return found
