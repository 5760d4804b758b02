"""ResNet backbones (He et al., Deep residual learning for image recognition, CVPR 2016) with torchvision's tensor names."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from wsss.arrays import Float
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


class Basic(nn.Module):
    """Two 3x3 convolutions, the first with the stride, and the input added to their output.

    Args:
        inputs, width: channels of the input and of the output.
        stride: of the first convolution.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        shortcut = _shortcut(inputs, width, stride)
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.relu: nn.Module = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hs ws"]:
        """The output of the block."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += identity
        return self.relu(x)


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1, the second with the stride, and the input added to their output.

    Args:
        inputs: channels of the input.
        width: channels of the 3x3 convolution; the output has four times as many.
        stride: of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        shortcut = _shortcut(inputs, outputs, stride)
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.relu: nn.Module = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hs ws"]:
        """The output of the block."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += identity
        return self.relu(x)


def _conv(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """What brings the input of a block to the size of its output; None if it has that size."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _layer(block: type[Basic | Bottleneck], inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
    outputs = width * block.expansion
    return nn.Sequential(block(inputs, width, stride), *(block(outputs, width) for _ in range(count - 1)))


# block and numbers of blocks in layer1..layer4 by depth
_BLOCKS: Mapping[int, tuple[type[Basic | Bottleneck], tuple[int, int, int, int]]] = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(Backbone):
    """A ResNet without its classifier, with configurable strides and dilations.

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
        block, counts = _BLOCKS[depth]
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _layer(block, 64, 64, counts[0], 1)
        self.layer2 = _layer(block, 64 * block.expansion, 128, counts[1], 2)
        self.layer3 = _layer(block, 128 * block.expansion, 256, counts[2], 2)
        self.layer4 = _layer(block, 256 * block.expansion, 512, counts[3], 2)
        # torchvision draws the weights of a classifier before it draws those of the convolutions anew: a seed gives the same weights as there
        nn.Linear(512 * block.expansion, 1000)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.channels = [64]
        self.strides = [4]
        for layer, stride, dilation in zip(self.stages(), strides, dilations, strict=True):
            set_stride(layer[0], stride)
            for later in layer[1:]:
                dilate(later, dilation)
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
