"""EMANet (Li et al., Expectation-maximization attention networks for semantic segmentation, ICCV 2019).

A ResNet with a deep stem and multi-grid dilation, and the EMA unit, which reconstructs each cell from a few bases mu that are
estimated for each picture by expectation maximisation. Layers and state-dict names are those of the authors' repository.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float
from wsss.errors import BadInput, check_range
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Body, ParamGroup
from wsss.networks.deeplab import ConvBatchNorm
from wsss.networks.resnet import dilate, set_stride

_EPSILON = 1e-6
# EM_MOM of EMANet's settings.py
_MOMENTUM = 0.9


@dataclass(frozen=True)
class EMANetLayers:
    """The architecture of an EMANet."""

    backbone: str = "resnet101s"
    """resnet50s, resnet101s or resnet152s (the published backbones), or any other backbone, without multi-grid"""
    output_stride: int = 8
    """pixels per cell of the deepest feature: 8 or 16"""
    channels: int = 512
    """channels of the EMA unit: 512, or 256 for the paper's smaller network"""
    bases: int = 64
    """K, number of bases of a picture"""
    stages: int = 3
    """T, number of iterations of expectation and maximisation"""
    norm_momentum: float = 3e-4
    """momentum of the running statistics of batch norms; use 0.1 for short trainings from new weights"""

    def __post_init__(self) -> None:
        for name in ("channels", "bases", "stages"):
            check_range(f"emanet.network.{name}", getattr(self, name), 1)
        check_range("emanet.network.norm_momentum", self.norm_momentum, 0, 1)


class Trunk(Body):
    """A ResNet whose stem has three 3x3 convolutions, and whose last stage is dilated with a multi-grid of 1, 2, 4.

    Images are RGB, normalised with ImageNet's mean and standard deviation. An image of height h has ceil(h / stride) rows of cells.

    Args:
        name: timm's name, `resnet50s`, `resnet101s` or `resnet152s`.
        output_stride: 8 or 16.

    Raises:
        BadInput: the output stride is not 8 or 16.
    """

    NAMES = r"resnet(50|101|152)s"
    IMAGENET = "timm"
    LEFT_OUT = ("fc.*",)

    def __init__(self, name: str, output_stride: int = 8) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise BadInput(f"output stride of {name}", str(output_stride), "8 or 16", "Choose one of these.")
        import timm  # slow to import

        body: Any = timm.create_model(name)
        self.parts = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")
        for position, part in enumerate(self.parts):
            self.add_module(str(position), getattr(body, part))
        # the first block of a stage has half the dilation, regardless of the grid
        nominal = 4 if output_stride == 8 else 2
        set_stride(body.layer4[0], 1)
        for block, dilation in zip(body.layer4, (nominal // 2, 2 * nominal, 4 * nominal), strict=True):
            dilate(block, dilation)
        if output_stride == 8:
            set_stride(body.layer3[0], 1)
            for block in body.layer3[1:]:
                dilate(block, 2)
        self.channels = [128, 256, 512, 1024, 2048]
        self.strides = [4, 4, 8, output_stride, output_stride]

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a state dict of the full ResNet with the names of timm or of its authors (PyTorch-Encoding)."""
        positions = {part: str(position) for position, part in enumerate(self.parts)}
        # in a classifier on timm's features, they have the prefix `body`
        split = {name: name.removeprefix("body.").partition(".") for name in state}
        return {f"{positions.get(part, part)}.{rest}": state[name] for name, (part, _, rest) in split.items()}

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        """The features of the stem and of the four stages."""
        features, x = [], image
        for position, layer in enumerate(self.children()):
            x = layer(x)
            if position >= 3:
                features.append(x)
        return features


class EMAUnit(nn.Module):
    """Expectation-maximisation attention: the cells are reconstructed from the bases of the picture, and added to the input.

    As published, no gradient passes through the estimation: conv1 keeps its initial weights, and the layers before it are only
    trained through the residual connection. In training, each forward pass updates the bases mu that the next one starts from:
    mu <- 0.9 mu + 0.1 (mean over the batch). They are not normalised again.

    Args:
        channels: of the input.
        bases: K.
        stages: T.
        over_processes: averages a tensor over all processes, so that all have the same bases.
    """

    def __init__(
        self,
        channels: int,
        bases: int = 64,
        stages: int = 3,
        over_processes: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> None:
        super().__init__()
        self.stages, self.over_processes = stages, over_processes
        mu = torch.randn(1, channels, bases) * sqrt(2 / bases)
        self.mu: Tensor
        self.register_buffer("mu", _unit(mu))
        self.conv1 = nn.Conv2d(channels, channels, 1).requires_grad_(False)
        self.conv2 = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        for conv in (self.conv1, self.conv2[0]):
            nn.init.normal_(conv.weight, std=sqrt(2 / channels))  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c k"]]:
        """The output cells, and the bases mu of each picture, which have norm 1 (up to 1e-6)."""
        # the softmax is over unnormalised products, for which half precision is not accurate enough
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            reconstructed, mu = self._estimate(x.to(torch.promote_types(x.dtype, torch.float32)))
            if self.training:
                self.mu.mul_(_MOMENTUM).add_((1 - _MOMENTUM) * self.over_processes(mu.mean(0, keepdim=True)))
        return F.relu(self.conv2(F.relu(reconstructed)) + x), mu

    def _estimate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv1(x).flatten(2)
        mu = self.mu.expand(x.shape[0], -1, -1)
        z = mu.new_empty(0)
        for _ in range(self.stages):
            z = (y.mT @ mu).softmax(2)
            mu = _unit(y @ (z / (_EPSILON + z.sum(1, keepdim=True))))
        # as published, the responsibilities z are those of the bases before the last step
        return (mu @ z.mT).view_as(x), mu


def _unit(mu: Tensor) -> Tensor:
    return mu / (_EPSILON + mu.norm(dim=1, keepdim=True))


class EMANet(nn.Module):
    """The complete network; images are RGB, normalised with ImageNet's mean and standard deviation.

    Args:
        n_classes: including the background.
        settings: the architecture.
        over_processes: see `EMAUnit`.

    Raises:
        BadInput: there is no such backbone, or it does not support this stride.
    """

    def __init__(
        self,
        n_classes: int,
        settings: EMANetLayers = EMANetLayers(),
        over_processes: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> None:
        super().__init__()
        name, stride = settings.backbone, settings.output_stride
        self.extractor: Body = Trunk(name, stride) if re.fullmatch(Trunk.NAMES, name) else create_backbone(name, stride)
        self.fc0 = ConvBatchNorm(self.extractor.channels[-1], settings.channels, 3)
        self.emau = EMAUnit(settings.channels, settings.bases, settings.stages, over_processes)
        self.fc1 = nn.Sequential(ConvBatchNorm(settings.channels, 256, 3), nn.Dropout2d(0.1))
        self.fc2 = nn.Conv2d(256, n_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = settings.norm_momentum

    def low(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l hs ws"]:
        """Logits, one cell per `output_stride` x `output_stride` pixels."""
        cells, _ = self.emau(self.fc0(self.extractor(image)[-1]))
        return self.fc2(self.fc1(cells))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l h w"]:
        """Logits at the size of the image, resized with aligned corners."""
        return F.interpolate(self.low(image), image.shape[-2:], mode="bilinear", align_corners=True)

    def param_groups(self, lr: float, weight_decay: float = 1e-4) -> list[ParamGroup]:
        """The published groups: weights with `lr`, those of convolutions with decay and those of norms without, and biases with 2 `lr`."""
        groups: list[list[nn.Parameter]] = [[], [], []]
        for name, parameter in self.named_parameters():
            groups[2 if name.endswith("bias") else int(parameter.ndim <= 1)].append(parameter)
        rates = ((lr, weight_decay), (lr, 0.0), (2 * lr, 0.0))
        return [{"params": group, "lr": rate, "weight_decay": decay} for group, (rate, decay) in zip(groups, rates)]
