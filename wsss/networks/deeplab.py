"""DeepLab v2 (Chen et al., DeepLab: Semantic Image Segmentation with Deep Convolutional Nets ..., TPAMI 2018).

The network, its multi-scale wrapper, and the losses of segmenters on pseudo masks. Layers and
state-dict names are those of the deeplab-pytorch repository, so its weights can be loaded unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float, Integer
from wsss.errors import BadInput
from wsss.networks.backbone import create_backbone, freeze_batch_norm
from wsss.networks.body import ParamGroup
from wsss.precision import at_least_single

IGNORE = 255

# layer names in the deeplab-pytorch of VWL's first author, and those of deeplab-pytorch
_VWL_LAYERS = {
    "batch_norm": "bn",
    "conv7x7": "conv1",
    "conv1": "reduce",
    "conv2": "conv3x3",
    "conv3": "increase",
}
PUBLISHED_BODY = "deeplab-resnet101"


@dataclass(frozen=True)
class DeepLabLayers:
    """The architecture of a DeepLab v2."""

    backbone: str = PUBLISHED_BODY
    """`deeplab-resnet101` (published), or any other backbone"""
    output_stride: int = 8
    """pixels per cell of the deepest feature; the published backbone has 8"""
    atrous_rates: tuple[int, ...] = (6, 12, 18, 24)
    """dilations of the parallel 3x3 convolutions of the head (ASPP)"""
    pyramid_scales: tuple[float, ...] = (0.5, 0.75)
    """additional scales of the input image; empty for a single scale"""
    interpolation: Literal["current", "recompute"] = "current"
    """how images are downscaled: `recompute` as in PyTorch before 1.6, with which the published weights were trained"""
    batch_norm: Literal["frozen", "live"] = "frozen"
    """`frozen`: statistics, scale and shift never change, as published; `live`: all are trained, for training from scratch"""

    @property
    def colours(self) -> Literal["caffe", "imagenet"]:
        """The normalisation of its images: BGR minus the mean, or RGB normalised; see `wsss.data.augment`."""
        return "caffe" if self.backbone == PUBLISHED_BODY else "imagenet"


class ConvBatchNorm(nn.Module):
    """Convolution without bias, batch norm, and optionally ReLU; shape (b, c, h, w) in and out."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, *, relu: bool = True
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride, padding, dilation, bias=False)
        # deeplab-pytorch has a decay of 0.999 of the running statistics; PyTorch's momentum is its complement
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-5, momentum=1e-3)
        self.relu = relu

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hs ws"]:
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


class Bottleneck(nn.Module):
    """Residual block of the Caffe ResNets: the stride is in the first 1x1 convolution.

    Args:
        projection: whether the shortcut is a 1x1 convolution; otherwise it is the identity.
    """

    def __init__(self, channels: int, out_channels: int, stride: int, dilation: int, *, projection: bool) -> None:
        super().__init__()
        width = out_channels // 4
        self.reduce = ConvBatchNorm(channels, width, 1, stride)
        self.conv3x3 = ConvBatchNorm(width, width, 3, dilation=dilation)
        self.increase = ConvBatchNorm(width, out_channels, 1, relu=False)
        self.shortcut = ConvBatchNorm(channels, out_channels, 1, stride, relu=False) if projection else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d hs ws"]:
        return F.relu(self.increase(self.conv3x3(self.reduce(x))) + self.shortcut(x))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the sum of 3x3 convolutions at several dilations, one map per class."""

    def __init__(self, channels: int, n_classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        for i, rate in enumerate(rates):
            conv = nn.Conv2d(channels, n_classes, 3, padding=rate, dilation=rate)
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.add_module(f"c{i}", conv)

    def forward(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n_classes h w"]:
        first, *others = [conv(feature) for conv in self.children()]
        return sum(others, first)


class DeepLabV2(nn.Module):
    """DeepLab v2 at one scale: ResNet-101 at stride 8, then ASPP.

    Images are BGR, 0..255 minus the mean (see `wsss.data.augment`). An image of height h has logits of height
    ceil((h' // 2 + 1) / 2) with h' = ceil(h / 2); likewise the width.

    Args:
        n_classes: including the background.
        rates: dilations of the ASPP.
        n_blocks: number of blocks of layer2..layer5.
    """

    def __init__(
        self,
        n_classes: int,
        rates: Sequence[int] = (6, 12, 18, 24),
        n_blocks: tuple[int, int, int, int] = (3, 4, 23, 3),
    ) -> None:
        super().__init__()
        self.layer1 = nn.Sequential()
        self.layer1.add_module("conv1", ConvBatchNorm(3, 64, 7, 2))
        self.layer1.add_module("pool", nn.MaxPool2d(3, 2, 1, ceil_mode=True))
        self.layer2 = _stage(n_blocks[0], 64, 256, 1, 1)
        self.layer3 = _stage(n_blocks[1], 256, 512, 2, 1)
        self.layer4 = _stage(n_blocks[2], 512, 1024, 1, 2)
        self.layer5 = _stage(n_blocks[3], 1024, 2048, 1, 4)
        self.aspp = ASPP(2048, n_classes, rates)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n_classes hs ws"]:
        x = self.layer1(image)
        for layer in (self.layer2, self.layer3, self.layer4, self.layer5):
            x = layer(x)
        return self.aspp(x)


def _stage(n_blocks: int, channels: int, out_channels: int, stride: int, dilation: int) -> nn.Sequential:
    stage = nn.Sequential()
    for i in range(n_blocks):
        first = i == 0
        block = Bottleneck(
            channels if first else out_channels, out_channels, stride if first else 1, dilation, projection=first
        )
        stage.add_module(f"block{i + 1}", block)
    return stage


class BackboneASPP(nn.Module):
    """DeepLab v2's head on the deepest feature of any backbone.

    Images are normalised as the backbone requires: RGB with ImageNet's mean and standard deviation for those of timm and
    torchvision.
    """

    def __init__(
        self, backbone: str, n_classes: int, rates: Sequence[int] = (6, 12, 18, 24), output_stride: int = 8
    ) -> None:
        super().__init__()
        self.backbone = create_backbone(backbone, output_stride)
        self.aspp = ASPP(self.backbone.channels[-1], n_classes, rates)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n_classes hs ws"]:
        return self.aspp(self.backbone(image)[-1])


class MSC(nn.Module):
    """Multi-scale wrapper: the network is applied to the image at several scales, and the maximum over them is taken.

    In training it returns the logits at full scale, those at each of `scales` (at their own sizes), and the maximum;
    in evaluation only the maximum. The maximum has the size of the full-scale logits.

    Args:
        base: network whose head is `aspp`.
        scales: of the image, in addition to 1.
        interpolation, batch_norm: see `DeepLabLayers`.
    """

    def __init__(
        self,
        base: nn.Module,
        scales: Sequence[float] = (0.5, 0.75),
        *,
        interpolation: Literal["current", "recompute"] = "current",
        batch_norm: Literal["frozen", "live"] = "frozen",
    ) -> None:
        super().__init__()
        self.base = base
        self.scales = tuple(scales)
        self.interpolation = interpolation
        self.batch_norm = batch_norm
        if batch_norm == "frozen":
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.requires_grad_(False)
            freeze_batch_norm(self)

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a state dict of deeplab-pytorch, or of VWL's version of it; initial weights lack the prefix `base.`."""
        if any(".conv7x7." in f".{name}" for name in state):
            state = {
                ".".join(_VWL_LAYERS.get(part, part) for part in name.split(".")): value
                for name, value in state.items()
            }
        if any(name.startswith("base.") for name in state):
            return dict(state)
        return {f"base.{name}": value for name, value in state.items()}

    def train(self, mode: bool = True) -> "MSC":
        super().train(mode)
        if self.batch_norm == "frozen":
            freeze_batch_norm(self)
        return self

    def forward(
        self, image: Float[Tensor, "b 3 h w"], base: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "b n_classes hs ws"] | list[Float[Tensor, "b n_classes _ _"]]:
        """The logits; `base` takes the place of the network at one scale, for example to compute it in tiles."""
        base = base or self.base
        full = base(image)
        pyramid = [base(self._downscaled(image, scale)) for scale in self.scales]
        maximum = full
        for logits in pyramid:
            maximum = torch.maximum(maximum, resize_logits(logits, full.shape[-2:]))
        if not self.training:
            return maximum
        return [full, *pyramid, maximum] if pyramid else [full]

    def _downscaled(self, image: Tensor, scale: float) -> Tensor:
        if self.interpolation == "current" and torch.compiler.is_exporting():
            # torch's exporter cannot judge sizes that were multiplied with a number with a fraction (torch 2.15)
            above, below = Fraction(scale).limit_denominator(1000).as_integer_ratio()
            size_hw = [side * above // below for side in image.shape[-2:]]
            return torch.ops.aten.upsample_bilinear2d.default(image, size_hw, False, scale, scale)
        height, width = (int(side * scale) for side in image.shape[-2:])
        if self.interpolation == "current" and height > 0 and width > 0:
            return F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        # before PyTorch 1.6, positions were computed from the ratio of the sizes, not from the scale; sides have at least one pixel
        return F.interpolate(image, (max(height, 1), max(width, 1)), mode="bilinear", align_corners=False)

    def param_groups(
        self, lr: float, weight_decay: float = 5e-4, head_lr: tuple[float, float] = (10.0, 20.0)
    ) -> list[ParamGroup]:
        """The published groups: backbone with `lr`, ASPP weights with 10 `lr`, ASPP biases with 20 `lr` and without decay.

        `head_lr` are these two factors.

        Frozen batch norms are in no group. Trained batch norms, and the other vectors that a backbone may have (biases,
        layer norms), make a fourth group with `lr` and without decay.
        """
        head = list(self.base.aspp.named_parameters())  # type: ignore[union-attr]
        in_head = {id(parameter) for _, parameter in head}
        body = [p for p in self.base.parameters() if p.requires_grad and id(p) not in in_head]
        groups: list[ParamGroup] = [
            {"params": [p for p in body if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
            {
                "params": [p for name, p in head if name.endswith("weight")],
                "lr": head_lr[0] * lr,
                "weight_decay": weight_decay,
            },
            {"params": [p for name, p in head if name.endswith("bias")], "lr": head_lr[1] * lr, "weight_decay": 0.0},
        ]
        vectors = [p for p in body if p.ndim <= 1]
        if vectors:
            groups.append({"params": vectors, "lr": lr, "weight_decay": 0.0})
        return groups


def create_deeplab(n_classes: int, settings: DeepLabLayers) -> MSC:
    """A DeepLab v2 in its multi-scale wrapper, with new weights.

    Args:
        n_classes: including the background.
        settings: the architecture.

    Raises:
        BadInput: there is no such backbone, or it does not support this stride.
    """
    base: nn.Module
    if settings.backbone == PUBLISHED_BODY:
        if settings.output_stride != 8:
            raise BadInput(
                "output stride",
                str(settings.output_stride),
                f"8, the stride of {PUBLISHED_BODY}",
                "Leave it at 8, or choose another backbone.",
            )
        base = DeepLabV2(n_classes, settings.atrous_rates)
    else:
        base = BackboneASPP(settings.backbone, n_classes, settings.atrous_rates, settings.output_stride)
    return MSC(base, settings.pyramid_scales, interpolation=settings.interpolation, batch_norm=settings.batch_norm)


def resize_logits(
    logits: Float[Tensor, "b c h w"], size_hw: tuple[int, int] | torch.Size
) -> Float[Tensor, "b c hs ws"]:
    """Logits resized bilinearly with half-pixel centres; at the size of the image, their argmax is the prediction."""
    return F.interpolate(at_least_single(logits), size=tuple(size_hw), mode="bilinear", align_corners=False)


@lru_cache(maxsize=1024)
def _pillow_nearest(length: int, new_length: int, device: torch.device) -> Tensor:
    # Pillow's affine transform adds the step cell by cell, in double precision; its rounding errors decide ties
    step = length / new_length
    position = np.cumsum(np.concatenate([[step / 2], np.full(new_length - 1, step)]))
    return torch.from_numpy(np.minimum(position.astype(np.int64), length - 1)).to(device)


def resize_labels(
    labels: Integer[Tensor, "*b h w"], size_hw: tuple[int, int] | torch.Size
) -> Integer[Tensor, "*b hs ws"]:
    """Label maps resized with Pillow's nearest-neighbour rule, on the device of the labels."""
    rows = _pillow_nearest(labels.shape[-2], size_hw[0], labels.device)
    columns = _pillow_nearest(labels.shape[-1], size_hw[1], labels.device)
    return labels.index_select(-2, rows).index_select(-1, columns)


Loss = Callable[[Float[Tensor, "b c h w"], Integer[Tensor, "b h w"]], Float[Tensor, ""]]
Averaged = Callable[[Tensor], Tensor]


def _single_process(value: Tensor) -> Tensor:
    return value


def _pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    # half precision is not accurate enough; float64 is kept
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none")


def cross_entropy(
    logits: Float[Tensor, "b c h w"],
    labels: Integer[Tensor, "b h w"],
    *,
    nan_guard: bool = True,
    over_processes: Averaged = _single_process,
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the cells that are not 255.

    Args:
        logits: of background and classes.
        labels: 255 is ignored.
        nan_guard: return 0 if every cell is 255; otherwise NaN, as published.
        over_processes: averages a tensor over all processes; the mean of the losses and gradients over the processes is then
            that over all cells.
    """
    cells = _pixel_losses(logits, labels)
    return _mean_over(cells, labels != IGNORE, nan_guard, over_processes)


def balanced_cross_entropy(
    logits: Float[Tensor, "b c h w"],
    labels: Integer[Tensor, "b h w"],
    *,
    nan_guard: bool = True,
    over_processes: Averaged = _single_process,
) -> Float[Tensor, ""]:
    """Half the mean over background cells plus half the mean over foreground cells; 255 is in neither.

    This is the loss of the networks that start from ImageNet weights (AdvCAM, CLIMS).

    Args:
        logits: of background and classes.
        labels: 255 is ignored.
        nan_guard: a half without cells counts as 0; otherwise NaN, as published.
        over_processes: see `cross_entropy`.
    """
    cells = _pixel_losses(logits, labels)
    background = _mean_over(cells, labels == 0, nan_guard, over_processes)
    foreground = _mean_over(cells, (labels != 0) & (labels != IGNORE), nan_guard, over_processes)
    return (background + foreground) / 2


def _mean_over(cells: Tensor, chosen: Tensor, nan_guard: bool, over_processes: Averaged) -> Tensor:
    count = over_processes(chosen.sum().to(cells.dtype))
    if nan_guard:
        count = torch.where(count > 0, count, 1.0)
    return (cells * chosen).sum() / count


def pretended_underfitting(
    logits: Float[Tensor, "b c h w"],
    labels: Integer[Tensor, "b h w"],
    rule: Literal["off", "clamp", "pow", "ignore"] = "clamp",
    *,
    beta: float = 0.5,
    k: float = 0.5,
    over_processes: Averaged = _single_process,
) -> Float[Tensor, ""]:
    """Cross-entropy that limits the loss of hard pixels (Li et al., PMM: Pseudo-mask Matters in WSSS, ICCV 2021).

    With l the cross-entropy of a pixel, 0 where the label is 255: while the mean of l over all pixels is below
    `beta`, l is replaced by min(l, k) (clamp), (l + 1e-9)^k (pow), or 0 where l > k (ignore). Returns the mean over all
    pixels; as published, pixels with label 255 count in both means.

    Args:
        logits: of background and classes.
        labels: 255 is ignored.
        rule: how the loss is limited; `off`: not at all.
        beta, k: 0.5 on VOC 2012, 0.8 on COCO 2014.
        over_processes: see `cross_entropy`.
    """
    pixels = _pixel_losses(logits, labels)
    if rule == "off":
        return pixels.mean()
    limited = {
        "clamp": lambda: pixels.clamp(max=k),
        "pow": lambda: (pixels + 1e-9) ** k,
        "ignore": lambda: pixels * (pixels <= k),
    }[rule]()
    underfits = over_processes(pixels.detach().mean()) >= beta
    return torch.where(underfits, pixels, limited).mean()


def output_losses(
    outputs: list[Float[Tensor, "b c _ _"]], labels: Integer[Tensor, "b h w"], loss: Loss = cross_entropy
) -> list[Float[Tensor, ""]]:
    """The loss of each training output of `MSC`, with the labels resized to it; their sum is minimised.

    Args:
        outputs: of `MSC` in training.
        labels: at the size of the image; 0 background, 255 ignored.
        loss: of one output.
    """
    return [loss(logits, resize_labels(labels, logits.shape[-2:])) for logits in outputs]
