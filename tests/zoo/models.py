"""The models, small inputs for them, and how many sites a reader of each would count."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.zoo import nets  # noqa: F401


@dataclass(frozen=True)
class Model:
    """make() gives the model; shape is its input's; sites counts what is fused, by its parts."""

    name: str
    make: Callable
    shape: tuple[int, ...]
    sites: dict[str, int] = field(default_factory=dict)


def torchvisions(name, shape, sites, models="models", **settings):
    def make():
        import torchvision

        module = torchvision.models
        if models != "models":
            module = getattr(module, models)
        return getattr(module, name)(weights=None, num_classes=10, **settings)

    return Model(f"torchvision.{name}", make, shape, sites)


def timms(name, shape, sites, **settings):
    def make():
        import timm

        return timm.create_model(name, num_classes=10, **settings)

    return Model(f"timm.{name}", make, shape, sites)


def small_vit():
    import torchvision

    return torchvision.models.VisionTransformer(32, 8, 3, 4, 24, 48, dropout=0.1, num_classes=10)


def frozen_resnet():
    """As the backbones of torchvision's detectors are."""
    import torchvision

    return torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d, num_classes=10)


IMAGES = (4, 3, 64, 64)
SMALL = (4, 3, 32, 32)
CLIPS = (2, 3, 4, 32, 32)
BN_ACT = "batch norm + {}".format
RELU, ADD_RELU = "batch norm + relu", "batch norm + add + relu"

MODELS = [
    torchvisions("resnet18", IMAGES, {}),
]
