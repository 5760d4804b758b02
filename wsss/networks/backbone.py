"""Create backbones by name: those published with the methods, with their published tensor names, and the models of timm.

To add an architecture, write a module with a `Backbone` that knows its published tensor names, and add a line to `ARCHITECTURES`.
"""

import re
from collections.abc import Callable

from torch import nn

from wsss.errors import BadInput
from wsss.networks import resnet, resnet38
from wsss.networks.body import Backbone

# the first matching pattern is used; all other names are timm's
ARCHITECTURES: tuple[tuple[str, Callable[[str, int], Backbone]], ...] = (
    (resnet38.NAMES, resnet38.create),
    (resnet.NAMES, resnet.create),
)


def create_backbone(name: str, output_stride: int = 16) -> Backbone:
    """A backbone with new weights.

    Args:
        name: `resnet18` .. `resnet152` have torchvision's layers and state-dict names, `resnet38` has PSA's (`resnet38-narrow<n>`
            has 1/n of its channels); all other names are timm's.
        output_stride: of the deepest feature. A ResNet at 16 has no dilation, as in IRNet and CLIMS; at 8 its
            layer3 and layer4 have dilation 2, as in an unused variant of CLIMS. ResNet-38 has 8; a ViT has the side of its patches.

    Raises:
        BadInput: there is no such backbone, it does not support this stride, or it only accepts pictures of a single size.
    """
    create = next((create for names, create in ARCHITECTURES if re.fullmatch(names, name)), None)
    if create is not None:
        return create(name, output_stride)
    import timm  # slow to import, as is our module on its models

    from wsss.networks import timm_backbone

    if not timm.is_model(name):
        ours = [f"resnet{depth}" for depth in resnet.DEPTHS] + ["resnet38"]
        raise BadInput(
            f"backbone {name}",
            "no network with this name",
            f"{', '.join(ours)}, or the name of a timm model",
            timm_backbone.near(name, ours),
        )
    return timm_backbone.TimmBackbone(name, output_stride)


def freeze_batch_norm(network: nn.Module) -> None:
    """Make every batch norm use its running statistics; call it after each `train()`."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
