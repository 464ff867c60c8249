"""Small models of Hugging Face, of random weights, and how many sites a reader of each would count in a training step.

The sums of MobileNetV2 are not fused: the batch norm stands at the end of a block's forward, which may pad its input,
and the sum in another's. Nor is the last activation of EfficientNet, whose name a comprehension reads.
"""

import types

import fastreg
from tests.zoo.models import ADD_RELU, IMAGES, PATH_ADD, RELU, SILU, Model


def hugging_faces(name, kind, shape, sites, **settings):
    def make():
        import transformers
        from torch import nn

        class Logits(nn.Module):
            def __init__(self):
                super().__init__()
                config = getattr(transformers, f"{kind}Config")(num_labels=10, **settings)
                self.model = getattr(transformers, f"{kind}ForImageClassification")(config)

            def forward(self, x):
                return self.model(x).logits

        return Logits()

    return Model(f"Hugging Face {name}", make, shape, sites)


def draw_fastregs_masks(model):
    """Drop paths of Hugging Face's draw fastreg's masks. Each module gets a forward of its own: a class with another
    forward is another class."""

    def forward(self, x):
        return fastreg.functional.drop_path(x, self.drop_prob, self.training)

    for module in model.modules():
        if type(module).__name__.endswith("DropPath") and type(module).__module__.startswith("transformers."):
            module.forward = types.MethodType(forward, module)


RESIDUAL = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2]}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "drop_path_rate": 0.3}

HUGGING_FACE = [
    hugging_faces("ResNet", "ResNet", IMAGES, {RELU: 5, ADD_RELU: 4}, layer_type="basic", **RESIDUAL),
    hugging_faces("ResNet, bottleneck", "ResNet", IMAGES, {RELU: 9, ADD_RELU: 4}, **RESIDUAL),
    hugging_faces("RegNetX", "RegNet", IMAGES, {RELU: 9, ADD_RELU: 4}, layer_type="x", groups_width=4, **RESIDUAL),
    hugging_faces("RegNetY", "RegNet", IMAGES, {RELU: 9, ADD_RELU: 4}, groups_width=4, **RESIDUAL),
    hugging_faces("MobileNetV1", "MobileNetV1", IMAGES, {"batch norm + relu6": 27}, depth_multiplier=0.25),
    hugging_faces(
        "MobileNetV1, no padding of its own",
        "MobileNetV1",
        IMAGES,
        {"batch norm + relu6": 27},
        depth_multiplier=0.25,
        tf_padding=False,
    ),
    hugging_faces("MobileNetV2", "MobileNetV2", IMAGES, {"batch norm + relu6": 35}, depth_multiplier=0.25),
    hugging_faces(
        "EfficientNet",
        "EfficientNet",
        IMAGES,
        {SILU: 32, "batch norm + dropout": 9},
        width_coefficient=0.25,
        depth_coefficient=1.0,
        hidden_dim=320,
    ),
    hugging_faces("ConvNext", "ConvNext", IMAGES, {PATH_ADD: 3}, **CONVNEXT),
    hugging_faces("ConvNextV2", "ConvNextV2", IMAGES, {PATH_ADD: 3}, **CONVNEXT),
]
