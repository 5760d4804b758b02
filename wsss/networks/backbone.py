"""Backbones by name: those that were published with methods, under their published names, and the models of timm.

An architecture is a file with a `Backbone` that knows its published names, and a line in `ARCHITECTURES`.
"""

import re
from collections.abc import Callable

import timm
from torch import nn

from wsss.errors import BadInput
from wsss.networks import resnet, resnet38, timm_backbone
from wsss.networks.body import Backbone

# the first pattern that a name matches decides
ARCHITECTURES: tuple[tuple[str, Callable[[str, int], Backbone]], ...] = (
    (resnet38.NAMES, resnet38.create),
    (resnet.NAMES, resnet.create),
    (timm_backbone.NAMES, timm_backbone.TimmBackbone),
)


def create_backbone(name: str, output_stride: int = 16) -> Backbone:
    """A backbone with new weights.

    Args:
        name: `resnet18` .. `resnet152` give torchvision's layers and state-dict names, `resnet38` gives PSA's (with an n-th
            of the channels as `resnet38-narrow<n>`); every other name is timm's.
        output_stride: of the deepest feature. A ResNet at 16 has no dilation at all, as in IRNet and CLIMS; at 8 its
            layer3 and layer4 have dilation 2, as in CLIMS' unused variant. ResNet-38 has 8; a ViT has the side of its patches.

    Raises:
        BadInput: there is no such backbone, it does not give that stride, or it takes pictures of a single size only.
    """
    create = next((create for names, create in ARCHITECTURES if re.fullmatch(names, name)), None)
    ours = [f"resnet{depth}" for depth in resnet.DEPTHS] + ["resnet38"]
    if create is None or (create is timm_backbone.TimmBackbone and not timm.is_model(name)):
        raise BadInput(
            f"backbone {name}",
            "no network of that name",
            f"{', '.join(ours)}, or the name of a timm model",
            timm_backbone.near(name, ours),
        )
    return create(name, output_stride)


def freeze_batch_norm(network: nn.Module) -> None:
    """Let every batch norm use its running statistics; call it after each `train()`."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
