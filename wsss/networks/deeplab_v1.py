"""DeepLab v1 with a large field of view (Chen et al., ICLR 2015) on ResNet-38, as used by SEAM, ICAM and HFPL.

Layers and state-dict names are those of ICAM's final stage.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float
from wsss.errors import check_range
from wsss.networks.backbone import create_backbone, freeze_batch_norm
from wsss.networks.body import ParamGroup
from wsss.precision import at_least_single


@dataclass(frozen=True)
class DeepLabV1Layers:
    """The architecture of a DeepLab v1."""

    backbone: str = "resnet38"
    """resnet38 (the published backbone), or any other backbone"""
    output_stride: int = 8
    """pixels per cell of the deepest feature; resnet38 has 8"""
    dilation: int = 12
    """dilation of the 3x3 convolution of the head"""
    # ICAM's script never calls `train()`, where its backbone would be frozen
    batch_norm: Literal["live", "frozen"] = "live"
    """`live`: batch statistics, and every layer is trained, as published; `frozen`: the statistics of the backbone and the layers
    before its first feature are frozen, as the published code intends; in both cases scales and shifts never change"""
    norm_momentum: float = 3e-4
    """momentum of the running statistics of batch norms; use 0.1 for short trainings from new weights"""

    def __post_init__(self) -> None:
        check_range("deeplab_v1.network.dilation", self.dilation, 1)
        check_range("deeplab_v1.network.norm_momentum", self.norm_momentum, 0, 1)


class DeepLabV1(nn.Module):
    """The complete network; images are RGB, normalised with ImageNet's mean and standard deviation.

    Args:
        n_classes: including the background.
        settings: the architecture.

    Raises:
        BadInput: there is no such backbone, or it does not support this stride.
    """

    def __init__(self, n_classes: int, settings: DeepLabV1Layers = DeepLabV1Layers()) -> None:
        super().__init__()
        self.frozen = settings.batch_norm == "frozen"
        self.backbone = create_backbone(settings.backbone, settings.output_stride)
        rate = settings.dilation
        self.conv_fov = nn.Conv2d(self.backbone.channels[-1], 512, 3, padding=rate, dilation=rate, bias=False)
        self.bn_fov = nn.BatchNorm2d(512)
        self.conv_fov2 = nn.Conv2d(512, 512, 1, bias=False)
        self.bn_fov2 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout(0.5)
        self.cls_conv = nn.Conv2d(512, n_classes, 1)
        for conv in (self.conv_fov, self.conv_fov2, self.cls_conv):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = settings.norm_momentum
                # they are in none of the published parameter groups
                module.requires_grad_(False)
        if self.frozen:
            for parameter in self.backbone.parameters_until(0):
                parameter.requires_grad_(False)
            freeze_batch_norm(self.backbone)

    def train(self, mode: bool = True) -> "DeepLabV1":
        super().train(mode)
        if self.frozen:
            freeze_batch_norm(self.backbone)
        return self

    def low(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l hs ws"]:
        """Logits, one cell per `output_stride` x `output_stride` pixels."""
        x = F.relu(self.bn_fov(self.conv_fov(self.backbone(image)[-1])))
        x = F.relu(self.bn_fov2(self.conv_fov2(x)))
        return self.cls_conv(self.dropout(x))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l h w"]:
        """Logits at the size of the image."""
        return enlarged(self.low(image), image.shape[-2:])

    def param_groups(self, lr: float, weight_decay: float = 5e-4) -> list[ParamGroup]:
        """The published groups: weights and biases of the backbone with `lr` and 2 `lr`, of the head with 10 and 20 `lr`; biases do not
        decay.
        """
        groups: list[list[nn.Parameter]] = [[], [], [], []]
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[2 * (not name.startswith("backbone.")) + name.endswith("bias")].append(parameter)
        rates = ((1, weight_decay), (2, 0.0), (10, weight_decay), (20, 0.0))
        return [
            {"params": group, "lr": factor * lr, "weight_decay": decay}
            for group, (factor, decay) in zip(groups, rates, strict=True)
        ]


def enlarged(logits: Float[Tensor, "b l hs ws"], size_hw: tuple[int, int] | torch.Size) -> Float[Tensor, "b l h w"]:
    """Logits resized bilinearly with aligned corners."""
    return F.interpolate(at_least_single(logits), tuple(size_hw), mode="bilinear", align_corners=True)
