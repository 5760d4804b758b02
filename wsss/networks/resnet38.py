"""ResNet-38 (Wu et al., Wider or deeper: revisiting the ResNet model for visual recognition, Pattern Recognition 2019).

Model A1 of the paper at stride 8: the wide trunk of the CAM and affinity networks of PSA, SEAM and ICAM, with their tensor names.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float
from wsss.errors import BadInput
from wsss.networks.body import Backbone

NAMES = r"resnet38(-narrow\d+)?"

# the heads that PSA, SEAM and ICAM save with their trunks, and the ImageNet classifier
PSA_HEADS = ("fc8*", "f8_*", "gn8_*", "f9.*", "linear1000*")

# the layers whose input, after batch norm and ReLU, is a feature: conv2 .. conv6
_FEATURE_LAYERS = ("b3", "b4", "b5", "b6", "bn7")


class Basic(nn.Module):
    """Pre-activation block of two 3x3 convolutions: a = ReLU(bn(x)) is the input of the branch and of a projected shortcut.

    Returns the block's output, and a.

    Args:
        dilations: of the two convolutions.
    """

    def __init__(self, channels: int, mid: int, out: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        first, second = dilations
        self.bn_branch2a = nn.BatchNorm2d(channels)
        self.conv_branch2a = nn.Conv2d(channels, mid, 3, stride, first, first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(mid)
        self.conv_branch2b1 = nn.Conv2d(mid, out, 3, 1, second, second, bias=False)
        self.conv_branch1: nn.Conv2d | None = None
        if channels != out or stride != 1:
            self.conv_branch1 = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d hs ws"], Float[Tensor, "b c h w"]]:
        a = F.relu(self.bn_branch2a(x))
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(a)
        branch = self.conv_branch2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(a))))
        return shortcut + branch, a


class Bottleneck(nn.Module):
    """Pre-activation block of a dilated 3x3 convolution between two 1x1 convolutions, with channel dropout; see `Basic`."""

    def __init__(self, channels: int, out: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(channels)
        self.conv_branch2a = nn.Conv2d(channels, out // 4, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(out // 4)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(out // 4, out // 2, 3, 1, dilation, dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(out // 2)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(out // 2, out, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b c h w"]]:
        a = F.relu(self.bn_branch2a(x))
        branch = self.conv_branch2a(a)
        branch = self.conv_branch2b1(self.dropout_2b1(F.relu(self.bn_branch2b1(branch))))
        branch = self.conv_branch2b2(self.dropout_2b2(F.relu(self.bn_branch2b2(branch))))
        return self.conv_branch1(a) + branch, a


def create(name: str, output_stride: int) -> "ResNet38":
    """`resnet38`, or `resnet38-narrow<n>` with 1/n of its channels; at stride 8."""
    _, _, narrow = name.partition("-narrow")
    divisor = int(narrow or 1)
    if divisor < 1 or 64 % divisor:
        raise BadInput(
            f"backbone {name}", f"a width divided by {divisor}", "1, 2, 4, 8, 16, 32 or 64", "Choose one of these."
        )
    if output_stride != 8:
        raise BadInput(f"output stride of {name}", str(output_stride), "8, the only one it has", "Set it to 8.")
    return ResNet38(divisor)


class ResNet38(Backbone):
    """The trunk, for RGB pictures normalised with ImageNet's mean and standard deviation; a side of n pixels has ceil(n / 8) cells.

    Its features are conv2 .. conv6: the activations that enter b3, b4, b5 and b6, and the output of bn7. Its batch
    norms are not frozen; networks that freeze them do so themselves.

    Args:
        width_divisor: divides all numbers of channels, for small experiments; 1, 2, 4 .. 64.
    """

    IMAGENET = None
    INITIAL = "ilsvrc-cls_rna-a1_cls1000_ep-0001.params (ademxapp)"
    LEFT_OUT = PSA_HEADS

    def __init__(self, width_divisor: int = 1) -> None:
        super().__init__()
        base = 64 // width_divisor
        self.conv1a = nn.Conv2d(3, base, 3, padding=1, bias=False)
        channels = base
        for stage, blocks, mid, out, stride, dilation in (
            (2, 3, 2 * base, 2 * base, 2, 1),
            (3, 3, 4 * base, 4 * base, 2, 1),
            (4, 6, 8 * base, 8 * base, 2, 1),
            (5, 3, 8 * base, 16 * base, 1, 2),
        ):
            # the first convolution of a stage is not dilated
            self.add_module(f"b{stage}", Basic(channels, mid, out, stride, (1, dilation)))
            for block in range(1, blocks):
                self.add_module(f"b{stage}_{block}", Basic(out, mid, out, 1, (dilation, dilation)))
            channels = out
        self.b6 = Bottleneck(16 * base, 32 * base, 4, 0.3)
        self.b7 = Bottleneck(32 * base, 64 * base, 4, 0.5)
        self.bn7 = nn.BatchNorm2d(64 * base)
        self.channels = [2 * base, 4 * base, 8 * base, 16 * base, 64 * base]
        self.strides = [2, 4, 8, 8, 8]

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict unchanged: the names of PSA, SEAM and ICAM are those used here."""
        return dict(state)

    def parameters_until(self, feature: int) -> list[nn.Parameter]:
        parameters: list[nn.Parameter] = []
        for name, layer in self.named_children():
            if name == _FEATURE_LAYERS[feature]:
                return parameters + list(getattr(layer, "bn_branch2a", layer).parameters())
            parameters += layer.parameters()
        raise AssertionError(f"no layer {_FEATURE_LAYERS[feature]}")

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        """The features conv2 (stride 2), conv3 (4), conv4, conv5 and conv6 (8)."""
        features = []
        x = self.conv1a(image)
        for name, block in self.named_children():
            if isinstance(block, Basic | Bottleneck):
                x, a = block(x)
                if name in _FEATURE_LAYERS:
                    features.append(a)
        return [*features, F.relu(self.bn7(x))]
