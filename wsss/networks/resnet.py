"""ResNet backbones (He et al., Deep residual learning for image recognition, CVPR 2016) with torchvision's tensor names."""

from collections.abc import Mapping, Sequence
from typing import Any

import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from wsss.errors import BadInput
from wsss.networks.body import Backbone

DEPTHS = (18, 34, 50, 101, 152)
NAMES = rf"resnet({'|'.join(map(str, DEPTHS))})"

# strides and dilations of layer1..layer4 by output stride
_LAYOUTS = {32: ((1, 2, 2, 2), (1, 1, 1, 1)), 16: ((1, 2, 2, 1), (1, 1, 1, 1)), 8: ((1, 2, 1, 1), (1, 1, 2, 2))}


def create(name: str, output_stride: int) -> "ResNet":
    """A ResNet by its name and the stride of its deepest feature: 8, 16 or 32."""
    if output_stride not in _LAYOUTS:
        raise BadInput(f"output stride of {name}", str(output_stride), "8, 16 or 32", "Choose one of these.")
    return ResNet(int(name.removeprefix("resnet")), *_LAYOUTS[output_stride])


class ResNet(Backbone):
    """A torchvision ResNet without its classifier, with configurable strides and dilations.

    The published weakly supervised networks (IRNet, CLIMS, QA-CLIMS) use ResNet-50 with strides (1, 2, 2, 1) and no
    dilation, for an output stride of 16. In a dilated stage the first block keeps dilation 1.

    Args:
        depth: 18, 34, 50, 101 or 152.
        strides: of layer1..layer4; the stem has 4.
        dilations: of layer1..layer4.
    """

    IMAGENET = "torchvision"
    LEFT_OUT = ("fc.*", "classifier.*", "cam_head.*")

    def __init__(
        self, depth: int, strides: Sequence[int] = (1, 2, 2, 1), dilations: Sequence[int] = (1, 1, 1, 1)
    ) -> None:
        super().__init__()
        body = torchvision.models.get_model(f"resnet{depth}", weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = body.conv1, body.bn1, body.relu, body.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        self.channels = [64]
        self.strides = [4]
        for layer, stride, dilation in zip(self.stages(), strides, dilations, strict=True):
            set_stride(layer[0], stride)
            for block in layer[1:]:
                dilate(block, dilation)
            last: Any = layer[-1]
            self.channels.append((last.conv3 if hasattr(last, "conv3") else last.conv2).out_channels)
            self.strides.append(self.strides[-1] * stride)

    def stages(self) -> list[nn.Sequential]:
        """layer1..layer4."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict unchanged: torchvision's names are those used here."""
        return dict(state)

    def parameters_until(self, feature: int) -> list[nn.Parameter]:
        modules = [self.conv1, self.bn1, *self.stages()[:feature]]
        return [parameter for module in modules for parameter in module.parameters()]

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        """Features of the stem (stride 4) and of layer1..layer4."""
        features = [self.maxpool(self.relu(self.bn1(self.conv1(image))))]
        for layer in self.stages():
            features.append(layer(features[-1]))
        return features


def _strided_conv(block: Any) -> nn.Conv2d:
    # in torchvision, the stride is in the 3x3 convolution of a bottleneck, and in the first convolution of a basic block
    return block.conv2 if hasattr(block, "conv3") else block.conv1


def set_stride(block: Any, stride: int) -> None:
    """Set the stride of a block of a torchvision or timm ResNet."""
    _strided_conv(block).stride = (stride, stride)
    if block.downsample is not None:
        block.downsample[0].stride = (stride, stride)


def dilate(block: Any, dilation: int) -> None:
    """Set the dilation of the 3x3 convolutions in a block of a torchvision or timm ResNet."""
    convs = [block.conv2] if hasattr(block, "conv3") else [block.conv1, block.conv2]
    for conv in convs:
        conv.dilation = conv.padding = (dilation, dilation)
