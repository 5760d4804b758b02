"""EMANet (Li et al., Expectation-maximization attention networks for semantic segmentation, ICCV 2019).

A ResNet with a deep stem and multi-grid dilation, and the EMA unit, which describes each cell by a few bases mu that it
finds in the picture by expectation maximisation. Layers and state-dict names are those of the authors' repository.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wsss.errors import BadInput, check_range
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Body
from wsss.networks.deeplab import ConvBatchNorm
from wsss.networks.resnet import dilate, set_stride

_EPSILON = 1e-6
# EM_MOM of EMANet's settings.py: so much of the old bases stays
_KEPT = 0.9


@dataclass(frozen=True)
class EMANetLayers:
    """What an EMANet is made of."""

    backbone: str = "resnet101s"
    """resnet50s, resnet101s or resnet152s (the published bodies), or any other backbone, without multi-grid"""
    output_stride: int = 8
    """pixels per cell of the deepest feature: 8, or 16"""
    channels: int = 512
    """of the EMA unit: 512, or 256 for the paper's smaller network"""
    bases: int = 64
    """K, how many bases a picture has"""
    stages: int = 3
    """T, how often expectation and maximisation are repeated"""
    norm_momentum: float = 3e-4
    """share of a batch in the running statistics of batch norms; trainings of few updates from new weights want 0.1"""

    def __post_init__(self) -> None:
        for name in ("channels", "bases", "stages"):
            check_range(f"emanet.network.{name}", getattr(self, name), 1)
        check_range("emanet.network.norm_momentum", self.norm_momentum, 0, 1)


class Trunk(Body):
    """A ResNet whose stem has three 3x3 convolutions, and whose last stage is dilated by a multi-grid of 1, 2, 4.

    Images are RGB, normalised with ImageNet's mean and deviation. An image of height h has ceil(h / stride) rows of cells.

    Args:
        name: `resnet50s`, `resnet101s` or `resnet152s`, as timm calls them.
        output_stride: 8 or 16.

    Raises:
        BadInput: another output stride.
    """

    NAMES = r"resnet(50|101|152)s"
    IMAGENET = "timm"
    LEFT_OUT = ("fc.*",)

    def __init__(self, name: str, output_stride: int = 8) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise BadInput(f"output stride of {name}", str(output_stride), "8 or 16", "Choose one of these.")
        body: Any = timm.create_model(name)
        self.parts = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")
        for position, part in enumerate(self.parts):
            self.add_module(str(position), getattr(body, part))
        # a stage's first block has half of its dilation, whatever the grid says there
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
        """A state dict of the whole ResNet, as timm and its authors (PyTorch-Encoding) have it, under the names here."""
        place = {part: str(position) for position, part in enumerate(self.parts)}
        # a classifier on timm's features has them in `body`
        parted = {name: name.removeprefix("body.").partition(".") for name in state}
        return {f"{place.get(part, part)}.{rest}": state[name] for name, (part, _, rest) in parted.items()}

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        """The features of the stem and of the four stages."""
        features, x = [], image
        for position, layer in enumerate(self.children()):
            x = layer(x)
            if position >= 3:
                features.append(x)
        return features


class EMAUnit(nn.Module):
    """Expectation-maximisation attention: what the bases of a picture say of its cells, added to them.

    No gradient passes through the estimation, as published: conv1 keeps its initial weights for ever, and what lies below
    learns through the sum alone. In training each forward pass moves the bases mu that the next one starts from:
    mu <- 0.9 mu + 0.1 (mean of the batch's). They are not normalised again.

    Args:
        bases: K.
        stages: T.
        over_processes: takes a tensor to its mean over all processes, so that all have the same bases.
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
        """The cells, and each picture's bases mu, of length 1 (or less by 1e-6)."""
        # the softmax is over raw products, which half precision would drown
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            said, mu = self._estimated(x.to(torch.promote_types(x.dtype, torch.float32)))
            if self.training:
                self.mu.mul_(_KEPT).add_((1 - _KEPT) * self.over_processes(mu.mean(0, keepdim=True)))
        return F.relu(self.conv2(F.relu(said)) + x), mu

    def _estimated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv1(x).flatten(2)
        mu = self.mu.expand(len(x), -1, -1)
        z = mu.new_empty(0)
        for _ in range(self.stages):
            z = (y.mT @ mu).softmax(2)
            mu = _unit(y @ (z / (_EPSILON + z.sum(1, keepdim=True))))
        # the cells' shares z belong to the bases before the last step, as published
        return (mu @ z.mT).view_as(x), mu


def _unit(mu: Tensor) -> Tensor:
    return mu / (_EPSILON + mu.norm(dim=1, keepdim=True))


class EMANet(nn.Module):
    """The whole network; images are RGB, normalised with ImageNet's mean and deviation.

    Args:
        n_classes: with the background.
        over_processes: see `EMAUnit`.

    Raises:
        BadInput: there is no such backbone, or it does not give that stride.
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
        """Logits, one cell for `output_stride` x `output_stride` pixels."""
        cells, _ = self.emau(self.fc0(self.extractor(image)[-1]))
        return self.fc2(self.fc1(cells))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l h w"]:
        """Logits at the image's size; the corners of the map of cells lie on those of the image."""
        return F.interpolate(self.low(image), image.shape[-2:], mode="bilinear", align_corners=True)

    def param_groups(self, lr: float, weight_decay: float = 1e-4) -> list[dict[str, Any]]:
        """The published groups: weights at `lr`, of convolutions with decay and of norms without, and biases at 2 `lr`."""
        groups: list[list[nn.Parameter]] = [[], [], []]
        for name, parameter in self.named_parameters():
            groups[2 if name.endswith("bias") else int(parameter.ndim <= 1)].append(parameter)
        rates = ((lr, weight_decay), (lr, 0.0), (2 * lr, 0.0))
        return [{"params": group, "lr": rate, "weight_decay": decay} for group, (rate, decay) in zip(groups, rates)]
