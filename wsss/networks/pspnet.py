"""PSPNet (Zhao et al., Pyramid scene parsing network, CVPR 2017) on Res2Net-101 or ResNet-38.

The segmenter of the extended training of PMM (Li et al., Pseudo-mask matters in WSSS, ICCV 2021), which ICAM adopts.
Layers and state-dict names are those of MMSegmentation 0.8.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wsss.arrays import Float
from wsss.errors import BadInput
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Body, ParamGroup
from wsss.networks.deeplab import ConvBatchNorm, resize_logits

_POOLS = (1, 2, 3, 6)


@dataclass(frozen=True)
class PSPNetLayers:
    """The architecture of a PSPNet."""

    backbone: str = "res2net101d"
    """res2net101d (Res2Net-101 v1b) or resnet38, the published backbones, or any other backbone"""
    output_stride: int = 8
    """pixels per cell of the deepest feature; the published backbones have 8"""


class Res2Net(Body):
    """Res2Net (Gao et al., Res2Net: a new multi-scale backbone architecture, TPAMI 2021), version v1b, at stride 8.

    Images are RGB, normalised with ImageNet's mean and standard deviation. Dilations are 1, 1, 2 and 4, also in the first block of a stage.

    Args:
        name: timm's name, `res2net50d` or `res2net101d`: 26 channels in each of 4 groups.
    """

    NAMES = r"res2net(50|101)d"
    IMAGENET = "timm"
    LEFT_OUT = ("fc.*",)

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm  # slow to import

        body: Any = timm.create_model(name)
        self.conv1, self.bn1, self.act1, self.maxpool = body.conv1, body.bn1, body.act1, body.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        for layer, dilation in ((body.layer3, 2), (body.layer4, 4)):
            for block in layer:
                for conv in block.convs:
                    conv.stride, conv.padding, conv.dilation = (1, 1), (dilation, dilation), (dilation, dilation)
            layer[0].pool.stride = 1
            layer[0].downsample[0] = nn.Identity()
        self.channels = [64, 256, 512, 1024, 2048]
        self.strides = [4, 4, 8, 8, 8]

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a state dict of the full network, or of a classifier on timm's features."""
        return {name.removeprefix("body."): value for name, value in state.items()}

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        """The features of the stem and of the four stages."""
        features = [self.maxpool(self.act1(self.bn1(self.conv1(image))))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features.append(layer(features[-1]))
        return features


class PyramidHead(nn.Module):
    """Concatenates the feature with its averages over 1, 4, 9 and 36 parts of the picture, and mixes them with a 3x3 convolution."""

    def __init__(self, channels: int, n_classes: int, width: int = 512) -> None:
        super().__init__()
        self.conv_seg = _classifier(width, n_classes)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(pool), ConvBatchNorm(channels, width, 1)) for pool in _POOLS
        )
        self.bottleneck = ConvBatchNorm(channels + len(_POOLS) * width, width, 3)
        self.dropout = nn.Dropout2d(0.1)

    def forward(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l h w"]:
        pooled = [resize_logits(module(feature), feature.shape[-2:]) for module in self.psp_modules]
        return self.conv_seg(self.dropout(self.bottleneck(torch.cat([feature, *pooled], 1))))


class AuxiliaryHead(nn.Module):
    """Logits from an earlier feature, for an auxiliary loss."""

    def __init__(self, channels: int, n_classes: int, width: int = 256) -> None:
        super().__init__()
        self.conv_seg = _classifier(width, n_classes)
        self.convs = nn.Sequential(ConvBatchNorm(channels, width, 3))
        self.dropout = nn.Dropout2d(0.1)

    def forward(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l h w"]:
        return self.conv_seg(self.dropout(self.convs(feature)))


def _classifier(channels: int, n_classes: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, n_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class PSPNet(nn.Module):
    """The complete network; images are RGB, normalised with ImageNet's mean and standard deviation. All layers are trained with one rate.

    Args:
        n_classes: including the background.
        settings: the architecture.

    Raises:
        BadInput: there is no such backbone, or it does not support this stride.
    """

    def __init__(self, n_classes: int, settings: PSPNetLayers = PSPNetLayers()) -> None:
        super().__init__()
        name, stride = settings.backbone, settings.output_stride
        if re.fullmatch(Res2Net.NAMES, name) and stride != 8:
            raise BadInput(f"output stride of {name}", str(stride), "8, the only one it has", "Set it to 8.")
        self.backbone: Body = Res2Net(name) if re.fullmatch(Res2Net.NAMES, name) else create_backbone(name, stride)
        self.decode_head = PyramidHead(self.backbone.channels[-1], n_classes)
        self.auxiliary_head = AuxiliaryHead(self.backbone.channels[-2], n_classes)
        for head in (self.decode_head, self.auxiliary_head):
            for layer in head.modules():
                if isinstance(layer, ConvBatchNorm):
                    nn.init.kaiming_normal_(layer.conv.weight, mode="fan_out", nonlinearity="relu")
                    layer.bn.momentum = 0.1

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l h w"] | list[Float[Tensor, "b l h w"]]:
        """Logits at the size of the image; in training also those of the auxiliary head."""
        features = self.backbone(image)
        heads = [self.decode_head(features[-1])]
        if self.training:
            heads.append(self.auxiliary_head(features[-2]))
        logits = [resize_logits(logits, image.shape[-2:]) for logits in heads]
        return logits if self.training else logits[0]

    def param_groups(self, lr: float, weight_decay: float = 5e-4) -> list[ParamGroup]:
        """A single group: batch norms and biases also decay, as published."""
        return [{"params": list(self.parameters()), "lr": lr, "weight_decay": weight_decay}]
