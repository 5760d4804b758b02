"""Augmentation of training images and masks for EMANet, DeepLab v1 and PSPNet.

The classes draw a `View` in the order of the published code, and apply it. Inputs are uint8 RGB (h, w, 3), outputs float32 (3, h, w),
normalised with ImageNet's mean and deviation; labels stay uint8, 255 outside the picture.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from wsss.arrays import Float, Shaped, UInt8
from wsss.data.augment import (
    SMALLEST_SCALE,
    SizeHW,
    View,
    crop_array,
    crop_labels,
    crop_picture,
    normalise,
    normalise_crop,
    offsets_anywhere,
    offsets_inside,
    resize_bilinear,
    scaled_size,
    truncated_size,
)
from wsss.data.images import IGNORE
from wsss.errors import check_pair, check_range

Planes = Float[np.ndarray, "3 crop crop"]
Labels = UInt8[np.ndarray, "crop crop"]


def resize_align_corners(planes: Float[np.ndarray, "c h w"], size_hw: SizeHW) -> Float[np.ndarray, "c hs ws"]:
    """torch's bilinear filter with aligned corners."""
    if planes.shape[1:] == size_hw:
        return planes
    return F.interpolate(torch.from_numpy(planes)[None], size_hw, mode="bilinear", align_corners=True)[0].numpy()


def resize_labels_floor(label: UInt8[np.ndarray, "h w"], scale: float) -> UInt8[np.ndarray, "hs ws"]:
    """The scaled label map, whose pixel i is pixel floor(i / scale); sizes are truncated, at least 1."""
    if scale == 1:
        return label
    # torch's filter, as published: it has special rules if sizes stay the same or double. A side below one pixel becomes one pixel
    by = {"scale_factor": scale} if min(label.shape) * scale >= 1 else {"size": truncated_size(label.shape, scale)}
    return F.interpolate(torch.from_numpy(label)[None, None].float(), **by)[0, 0].byte().numpy()


@dataclass(frozen=True)
class EMANetAugment:
    """Training images and pseudo masks of EMANet."""

    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    """scales, one of which is drawn"""
    crop: int = 513
    """side of the square crop; smaller images are padded at the right and bottom"""
    flip: float = 0.5
    """probability of a horizontal flip"""

    def __post_init__(self) -> None:
        check_range("augment.scales", self.scales, SMALLEST_SCALE)
        check_range("augment.crop", self.crop, 1)
        check_range("augment.flip", self.flip, 0, 1)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], rng: np.random.Generator
    ) -> tuple[Planes, Labels]:
        """A random view of a picture and its labels; draws the scale, the top offset, the left offset, the flip."""
        scale = self.scales[int(rng.integers(len(self.scales)))]
        size_hw = truncated_size(label.shape, scale)
        top, left = offsets_inside(size_hw, self.crop, rng)
        view = View.flipped_last(size_hw, bool(rng.random() < self.flip), top, left, self.crop)
        return self.apply(view, scale, image, label)

    @staticmethod
    def apply(
        view: View, scale: float, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"]
    ) -> tuple[Planes, Labels]:
        """A view of a picture and its labels. EMANet (dataset.py) normalises before it resizes."""
        planes = resize_align_corners(normalise(image), view.size_hw)
        square = crop_array(view, planes.transpose(1, 2, 0), 0).transpose(2, 0, 1)
        return np.ascontiguousarray(square), crop_labels(
            view, label, lambda label, _: resize_labels_floor(label, scale)
        )


def shift_hsv(image: UInt8[np.ndarray, "h w 3"], hue: int, saturation: int, value: int) -> UInt8[np.ndarray, "h w 3"]:
    """Hue (of 180), saturation and value (of 255) shifted by integers, in OpenCV's 8-bit HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.int16) + np.array([hue, saturation, value], np.int16)
    hsv[..., 0] %= 180
    return cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)


def resize_by_factor(
    array: Shaped[np.ndarray, "h w *c"], scale: float, interpolation: int
) -> Shaped[np.ndarray, "hs ws *c"]:
    """OpenCV's resizing by a factor, which it uses for sampling, whatever the rounded size is."""
    height, width = scaled_size(array.shape[:2], scale)
    if min(array.shape[:2]) * scale > 0.5:
        return cv2.resize(array, None, fx=scale, fy=scale, interpolation=interpolation)
    return cv2.resize(array, (width, height), interpolation=interpolation)


@dataclass(frozen=True)
class DeepLabV1Augment:
    """Training images and pseudo masks of ICAM's DeepLab v1."""

    hsv: int = 10
    """largest shift of hue, saturation and value, in OpenCV's units; 0 leaves colours unchanged"""
    scale: tuple[float, float] = (0.5, 1.5)
    """smallest and largest scale, drawn uniformly"""
    crop: int = 448
    """side of the square crop; smaller images are placed in it at random"""
    flip: float = 0.5
    """probability of a horizontal flip"""

    def __post_init__(self) -> None:
        check_range("augment.hsv", self.hsv, 0, 90)
        check_pair("augment.scale", self.scale, SMALLEST_SCALE)
        check_range("augment.crop", self.crop, 1)
        check_range("augment.flip", self.flip, 0, 1)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], rng: np.random.Generator
    ) -> tuple[Planes, Labels]:
        """A random view of a picture and its labels; draws the colours, the flip, the scale, the left offset, the top offset."""
        shifts = rng.integers(-self.hsv, self.hsv + 1, 3).tolist()
        if self.hsv:
            image = shift_hsv(image, *shifts)
        flip = bool(rng.random() < self.flip)
        scale = self.scale[0] + rng.random() * (self.scale[1] - self.scale[0])
        size_hw = scaled_size(label.shape, scale)
        view = View(size_hw, flip, *offsets_anywhere(size_hw, self.crop, rng), self.crop)
        return self.apply(view, scale, image, label)

    @staticmethod
    def apply(
        view: View, scale: float, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"]
    ) -> tuple[Planes, Labels]:
        """A view of a picture and its labels, scaled by OpenCV (cubic; nearest neighbour for labels)."""
        if view.flip:
            # ICAM flips before it scales
            image, label = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(label[:, ::-1])
            view = replace(view, flip=False)
        return (
            crop_picture(view, image, resize=lambda image, _: resize_by_factor(image, scale, cv2.INTER_CUBIC)),
            crop_labels(view, label, lambda label, _: resize_by_factor(label, scale, cv2.INTER_NEAREST)),
        )


def size_within(size_hw: SizeHW, long_side: int, short_side: int) -> SizeHW:
    """The largest size with the same aspect ratio within these sides, rounded as in MMCV."""
    scale = min(long_side / max(size_hw), short_side / min(size_hw))
    height, width = (max(1, int(side * scale + 0.5)) for side in size_hw)
    return height, width


def distort(
    image: UInt8[np.ndarray, "h w 3"],
    brightness: float = 0.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: int = 0,
    contrast_first: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """MMSegmentation's photometric distortion, truncated to 8 bits after each step.

    Args:
        image: RGB.
        brightness: added to all values.
        contrast: factor of all values.
        saturation: factor of the saturation.
        hue: added to the hue (of 180).
        contrast_first: whether the contrast changes before saturation and hue, or after them.
    """
    image = _linear(image, 1.0, brightness)
    if contrast_first:
        image = _linear(image, contrast, 0.0)
    # each is converted to 8-bit HSV and back separately, as published
    if saturation != 1:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _linear(hsv[..., 1], saturation, 0.0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image if contrast_first else _linear(image, contrast, 0.0)


def _linear(values: np.ndarray, factor: float, shift: float) -> np.ndarray:
    if factor == 1 and shift == 0:
        return values
    return (values.astype(np.float32) * factor + shift).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class PSPNetAugment:
    """Training images and pseudo masks of PMM's extended training."""

    fit: tuple[int, int] = (2048, 512)
    """largest long side and largest short side of a picture at scale 1, also in tests; small pictures are enlarged to it"""
    scale: tuple[float, float] = (0.5, 2.0)
    """smallest and largest scale, drawn uniformly; both sides of `fit` are multiplied by it"""
    crop: int = 512
    """side of the square crop, and of the windows in tests; smaller images are padded at the right and bottom"""
    fullest: float = 0.75
    """a crop is drawn again, at most ten times, until no label covers this share of its labelled pixels"""
    flip: float = 0.5
    """probability of a horizontal flip"""
    distort: bool = True
    """change brightness, contrast, saturation and hue, each in half of the pictures"""

    def __post_init__(self) -> None:
        check_range("augment.fit", self.fit, 1)
        check_pair("augment.scale", self.scale, SMALLEST_SCALE)
        check_range("augment.crop", self.crop, 1)
        check_range("augment.fullest", self.fullest, 0, 1)
        check_range("augment.flip", self.flip, 0, 1)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], rng: np.random.Generator
    ) -> tuple[Planes, Labels]:
        """A random view of a picture and its labels; draws the scale, offsets (top, left) until labels are mixed, the flip, the colours."""
        scale = rng.uniform(*self.scale)
        size_hw = size_within(label.shape, *(int(side * scale) for side in self.fit))
        image, label = (
            resize_bilinear(image, size_hw),
            cv2.resize(label, size_hw[::-1], interpolation=cv2.INTER_NEAREST),
        )
        top, left = offsets_inside(size_hw, self.crop, rng)
        for _ in range(10):
            if self._mixed(label[top : top + self.crop, left : left + self.crop]):
                break
            top, left = offsets_inside(size_hw, self.crop, rng)
        flip = bool(rng.random() < self.flip)
        # MMSegmentation flips the crop before it pads it at the right and bottom
        view = View(size_hw, flip, top, max(size_hw[1] - self.crop, 0) - left if flip else left, self.crop)
        part = np.ascontiguousarray(view.part(image))
        if self.distort:
            part = self._random_distortion(part, rng)
        return normalise_crop(view, part, "imagenet"), crop_labels(view, label)

    def _mixed(self, label: np.ndarray) -> bool:
        counts = np.bincount(label[label != IGNORE].ravel())
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.fullest * counts.sum())

    @staticmethod
    def _random_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        chosen = [bool(rng.integers(2)) for _ in range(5)]
        brightness, contrast, saturation, contrast_first, hue = chosen
        return distort(
            image,
            rng.uniform(-32, 32) if brightness else 0.0,
            rng.uniform(0.5, 1.5) if contrast else 1.0,
            rng.uniform(0.5, 1.5) if saturation else 1.0,
            # NumPy's integers end before 18
            int(rng.integers(-18, 18)) if hue else 0,
            contrast_first,
        )
