"""A segmenter as one graph: from the pixels of pictures to labels and probabilities at the size of the pictures."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float, UInt8
from wsss.data.augment import CAFFE_MEAN_BGR, ColourRule, mean_and_deviation
from wsss.networks.deeplab import resize_logits
from wsss.segmenters.trained import TrainedSegmenter, logits_of
from wsss.stages.predict import SIZE_TOLERANCE

# Scales are rounded to fractions with at most this denominator, since sizes in a graph are computed with whole numbers
_DENOMINATOR = 1000


class Deployed(NamedTuple):
    """What the graph computes for a batch of pictures of one size.

    Attributes:
        labels: the most probable label of each pixel: 0 for background, otherwise class + 1.
        confidence: its probability.
        probabilities: probability of each label, background first.
    """

    labels: UInt8[Tensor, "b h w"]
    confidence: Float[Tensor, "b h w"]
    probabilities: Float[Tensor, "b l h w"]


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of a picture over which scores are averaged."""

    scales: tuple[float, ...] = (1.0,)
    """scales of the picture"""
    flip: bool = False
    """also the mirrored picture"""


class DeployedSegmenter(nn.Module):
    """A segmenter that includes normalisation, resizing, and the average over views; it contains no dense CRF.

    It differs from `wsss predict` in two ways: pictures are resized by antialiased bilinear interpolation, and a PSPNet sees the whole picture
    at once, not in windows. Where nothing is resized, the others predict the same.

    Args:
        trained: the segmenter, on the CPU; its adaptive pools are replaced by equal ones that can be exported.
        views: scales and mirror images.
        long_sides: the smallest and largest usual longest sides of the training pictures, in pixels: as in `wsss predict`, pictures that are
            much smaller or larger are resized to them. None: pictures keep their size.
    """

    def __init__(
        self, trained: TrainedSegmenter, views: Views = Views(), long_sides: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.long_sides = long_sides
        self.factor: Tensor
        self.shift: Tensor
        self.trained, self.network = trained, trained.network.requires_grad_(False)
        _make_pools_exportable(self.network)
        self.fractions = [Fraction(scale).limit_denominator(_DENOMINATOR) for scale in views.scales]
        self.mirrored = (False, True) if views.flip else (False,)
        factor, shift, self.reverse = _colours(trained.colours)
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)
        self.eval()

    def forward(self, picture: UInt8[Tensor, "b h w 3"]) -> Deployed:
        """Labels and probabilities of RGB pictures with values 0 to 255."""
        return self.predicted(self.prepared(picture), picture)

    def prepared(self, picture: UInt8[Tensor, "b h w 3"]) -> list[Float[Tensor, "b 3 _ _"]]:
        """The normalised pictures at each scale."""
        planes = picture.permute(0, 3, 1, 2)
        planes = planes.flip(1) if self.reverse else planes
        image = planes.to(torch.float32) * self.factor + self.shift
        size_hw = (picture.shape[1], picture.shape[2])
        return [_resized(image, self._size(size_hw, fraction)) for fraction in self.fractions]

    def predicted(self, views: Sequence[Float[Tensor, "b 3 _ _"]], picture: UInt8[Tensor, "b h w 3"]) -> Deployed:
        """Labels and probabilities from the output of `prepared`; of the pictures, only the size is used."""
        size_hw = (picture.shape[1], picture.shape[2])
        total: Tensor | None = None
        for view in views:
            for mirrored in self.mirrored:
                logits = self._logits(view.flip(3) if mirrored else view, size_hw)
                logits = logits.flip(3) if mirrored else logits
                scores = logits if self.trained.averaged == "logits" else logits.softmax(1)
                total = scores if total is None else total + scores
        assert total is not None
        mean = total / (len(views) * len(self.mirrored))
        probabilities = mean.softmax(1) if self.trained.averaged == "logits" else mean
        confidence, labels = probabilities.max(1)
        return Deployed(labels.to(torch.uint8), confidence, probabilities)

    def _size(self, size_hw: tuple[int, int], fraction: Fraction) -> tuple[int, int] | None:
        """The size of a view; None if it is that of the picture."""
        if self.trained.fit is None:
            size_hw = size_hw if self.long_sides is None else _usual(size_hw, *self.long_sides)
            return None if fraction == 1 and self.long_sides is None else _scaled(size_hw, fraction)
        long_side, short_side = (max(1, int(side * fraction)) for side in self.trained.fit)
        longest, shortest = _larger(*size_hw), _smaller(*size_hw)
        height, width = (
            _larger(_smaller(_ratio(side * long_side, longest), _ratio(side * short_side, shortest)), 1)
            for side in size_hw
        )
        return height, width

    def _logits(self, view: Float[Tensor, "b 3 hs ws"], size_hw: tuple[int, int]) -> Float[Tensor, "b l h w"]:
        if self.trained.window is None:
            return logits_of(self.trained, view, size_hw)
        return resize_logits(self.network(view), size_hw)


class ExportablePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products, for graphs whose input can have any size.

    Args:
        cells: number of rows and of columns of the result.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c n n"]:
        rows, columns = (self._weights(feature, axis) for axis in (2, 3))
        return rows @ feature @ columns.mT

    def _weights(self, feature: Tensor, axis: int) -> Float[Tensor, "n side"]:
        """Row i averages the positions from floor(i side / n) up to, not including, ceil((i + 1) side / n)."""
        # counted from the feature, since a graph does not know its size in advance
        position = torch.ones_like(feature[0, 0].select(3 - axis, 0)).cumsum(0) - 1
        side = position[-1] + 1
        cell = torch.arange(self.cells, device=feature.device, dtype=feature.dtype)[:, None]
        first, last = (cell * side / self.cells).floor(), ((cell + 1) * side / self.cells).ceil()
        inside = ((position >= first) & (position < last)).to(feature.dtype)
        return inside / (last - first)


def _make_pools_exportable(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                assert isinstance(child.output_size, int)
                setattr(module, name, ExportablePool(child.output_size))


def _colours(colours: ColourRule) -> tuple[Tensor, Tensor, bool]:
    """Factor and shift of each plane for values 0 to 255, and whether the planes are in reverse order (BGR)."""
    if colours == "caffe":
        return torch.ones(3, 1, 1), -torch.tensor(CAFFE_MEAN_BGR)[:, None, None], True
    if colours == "raw":
        return torch.ones(3, 1, 1), torch.zeros(3, 1, 1), False
    mean, deviation = (
        torch.tensor(values, dtype=torch.float64)[:, None, None] for values in mean_and_deviation(colours)
    )
    return (1 / (255 * deviation)).float(), (-mean / deviation).float(), False


def _resized(image: Float[Tensor, "b 3 h w"], size_hw: Sequence[int] | None) -> Float[Tensor, "b 3 hs ws"]:
    if size_hw is None:
        return image
    return F.interpolate(image, tuple(size_hw), mode="bilinear", align_corners=False, antialias=True)


def _usual(size_hw: tuple[int, int], low: int, high: int) -> tuple[int, int]:
    """The size of a picture in the network; see `wsss.stages.predict.Segmenter.working_size`."""
    side = _larger(*size_hw)
    # 1 or 0, without a condition on a size
    below = _smaller(_larger(ceil(low / SIZE_TOLERANCE) - side, 0), 1)
    above = _smaller(_larger(side - floor(high * SIZE_TOLERANCE), 0), 1)
    target = side + below * (low - side) + above * (high - side)
    height, width = (_larger(_ratio(length * target, side), 1) for length in size_hw)
    return height, width


def _scaled(size_hw: tuple[int, int], fraction: Fraction) -> tuple[int, int]:
    height, width = (_larger(_ratio(side * fraction.numerator, fraction.denominator), 1) for side in size_hw)
    return height, width


# Sizes are symbolic while a graph is exported, and tensors while it is traced; none of them is negative


def _ratio(a: int, b: int) -> int:
    """a / b, rounded half up."""
    return (2 * a + b) // (2 * b)


def _larger(a: int, b: int) -> int:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return cast(int, torch.maximum(torch.as_tensor(a), torch.as_tensor(b)))
    return cast(int, torch.sym_max(a, b))


def _smaller(a: int, b: int) -> int:
    return a + b - _larger(a, b)
