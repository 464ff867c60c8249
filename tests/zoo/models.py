"""The models, small inputs for them, and how many sites a reader of each would count: those of a training step, in
which dropouts with p = 0 have no part."""

from collections.abc import Callable
from dataclasses import dataclass

from fastreg import _activation
from tests.zoo import nets


@dataclass(frozen=True)
class Model:
    """make() gives the model; shape is its input's; sites counts what is fused, by its parts."""

    name: str
    make: Callable
    shape: tuple[int, ...]
    sites: dict[str, int]


def torchvisions(name, shape, sites, *, module="", **settings):
    def make():
        import torchvision

        models = getattr(torchvision.models, module) if module else torchvision.models
        return getattr(models, name)(weights=None, num_classes=10, **settings)

    return Model(f"torchvision {name}", make, shape, sites)


def timms(name, shape, sites, **settings):
    def make():
        import timm

        return timm.create_model(name, num_classes=10, **settings)

    return Model(f"timm {name}", make, shape, sites)


def vgg():
    import torch
    import torchvision

    model = torchvision.models.vgg11_bn(weights=None, init_weights=False, num_classes=10)
    model.classifier[0], model.classifier[3] = torch.nn.Linear(512 * 49, 32), torch.nn.Linear(32, 32)
    model.classifier[6] = torch.nn.Linear(32, 10)
    return model


def vit():
    import torchvision

    return torchvision.models.VisionTransformer(32, 8, 3, 4, 24, 48, dropout=0.1, num_classes=10)


def swin():
    import torchvision

    return torchvision.models.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [4, 4], dropout=0.1, stochastic_depth_prob=0.2, num_classes=10
    )


def convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], stochastic_depth_prob=0.2, num_classes=10)


def frozen_resnet():
    """As the backbones of torchvision's detectors are."""
    import torchvision

    return torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d, num_classes=10)


IMAGES, SMALL, LARGE, CLIPS, ROWS = (4, 3, 64, 64), (4, 3, 32, 32), (4, 3, 112, 112), (2, 3, 4, 32, 32), (128, 16)
RELU, ADD_RELU, ADD = "batch norm + relu", "batch norm + add + relu", "batch norm + add"
SILU, HARDSWISH = "batch norm + silu", "batch norm + hardswish"
PATH_ADD, DROP_ADD, GELU_DROP = "drop path + add", "dropout + add", "gelu + dropout"
ACTIVATIONS = [act for act in _activation.TABLE if act != "identity"]

MODELS = [
    torchvisions("resnet18", IMAGES, {RELU: 9, ADD_RELU: 8}),
    torchvisions("resnet50", IMAGES, {RELU: 33, ADD_RELU: 16}, width_per_group=16),
    torchvisions("densenet121", IMAGES, {RELU: 121}, drop_rate=0.1),
    torchvisions("mobilenet_v2", IMAGES, {"batch norm + relu6": 35, ADD: 11}, width_mult=0.25),
    torchvisions("mobilenet_v3_small", IMAGES, {HARDSWISH: 18, RELU: 5, ADD: 6, "hardswish + dropout": 1}),
    torchvisions("efficientnet_b0", IMAGES, {SILU: 33, PATH_ADD: 9}),
    torchvisions("regnet_y_400mf", IMAGES, {RELU: 33, ADD_RELU: 16}),
    torchvisions("inception_v3", LARGE, {RELU: 94}, aux_logits=False, init_weights=False),
    torchvisions("googlenet", IMAGES, {RELU: 57}, aux_logits=False, init_weights=False),
    torchvisions("mnasnet0_5", IMAGES, {RELU: 35, ADD: 10}),
    torchvisions("shufflenet_v2_x0_5", IMAGES, {RELU: 37}),
    torchvisions("r3d_18", CLIPS, {RELU: 9, ADD_RELU: 8}, module="video"),
    torchvisions("r2plus1d_18", CLIPS, {RELU: 26, ADD_RELU: 8}, module="video"),
    torchvisions("mc3_18", CLIPS, {RELU: 9, ADD_RELU: 8}, module="video"),
    torchvisions(
        "deeplabv3_mobilenet_v3_large",
        IMAGES,
        {HARDSWISH: 20, ADD: 10, RELU: 17, "batch norm + relu + dropout": 1},
        module="segmentation",
        weights_backbone=None,
    ),
    Model("torchvision vgg11_bn", vgg, SMALL, {RELU: 8, "relu + dropout": 2}),
    Model("torchvision vit", vit, SMALL, {DROP_ADD: 6, GELU_DROP: 3}),
    Model("torchvision swin", swin, SMALL, {PATH_ADD: 6, DROP_ADD: 1, GELU_DROP: 4}),
    Model("torchvision convnext", convnext, SMALL, {PATH_ADD: 3}),
    Model("torchvision resnet18, frozen", frozen_resnet, IMAGES, {RELU: 9, ADD_RELU: 8}),
    timms("resnet18", IMAGES, {RELU: 9, ADD_RELU: 4, PATH_ADD: 4}, drop_path_rate=0.1, drop_rate=0.1),
    timms("seresnet18", IMAGES, {RELU: 9, ADD_RELU: 3}),
    timms("resnet26d", IMAGES, {RELU: 19, ADD_RELU: 8}),
    timms("densenet121", IMAGES, {RELU: 121}, growth_rate=8),
    timms("mobilenetv3_small_050", IMAGES, {HARDSWISH: 18, RELU: 5, ADD: 7}),
    timms("efficientnet_b0", IMAGES, {SILU: 33, PATH_ADD: 9}, drop_path_rate=0.2),
    timms("regnety_002", IMAGES, {RELU: 27, ADD_RELU: 13}),
    timms("dla34", IMAGES, {RELU: 21, ADD_RELU: 12}),
    timms("vovnet39a", IMAGES, {RELU: 39}),
    timms("convnext_atto", IMAGES, {PATH_ADD: 11}, drop_path_rate=0.2),
    timms(
        "vit_tiny_patch16_224",
        IMAGES,
        {GELU_DROP: 3, DROP_ADD: 1, PATH_ADD: 4},
        img_size=64,
        embed_dim=48,
        depth=3,
        proj_drop_rate=0.1,
        drop_path_rate=0.2,
    ),
    timms(
        "mixer_s32_224",
        IMAGES,
        {GELU_DROP: 16, PATH_ADD: 16},
        img_size=64,
        proj_drop_rate=0.1,
        drop_path_rate=0.2,
    ),
    Model("U-Net", nets.UNet, SMALL, {"batch norm + leaky_relu": 5, "batch norm + leaky_relu + dropout": 5}),
    Model("MLP, activation first", nets.mlp_act_norm_drop, ROWS, {"relu + batch norm + dropout": 4}),
    Model("MLP, norm first", nets.mlp_norm_act, ROWS, {f"batch norm + {act}": 1 for act in ACTIVATIONS}),
    Model("MLP, dropout", nets.mlp_act_drop, ROWS, {GELU_DROP: 1, "tanh + dropout": 1}),
]
