"""What training and validation images go through: sizes, crops, mirror images, normalisation.

The functions that end in `_view` take the drawn numbers; the classes draw them, in the order of the published code,
and call these. Images are uint8 RGB (h, w, 3) on the way in, float32 (3, h, w) on the way out; labels stay uint8,
255 where the crop shows no image.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torchvision.transforms import functional

from wsss.data.images import IGNORE
from wsss.errors import BadInput, check_pair, check_range

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# the Caffe networks' mean colour (deeplab-pytorch)
CAFFE_MEAN_BGR = (104.008, 116.669, 122.675)

# Below it nothing is left to see; settings with smaller ones are mistakes
SMALLEST_SCALE = 0.01

SizeHW = tuple[int, int]
ColourRule = Literal["imagenet", "caffe", "clip"]


def scaled_size(size_hw: SizeHW, scale: float) -> SizeHW:
    """Both sides times `scale`, rounded half to even as IRNet does, and never below 1."""
    height, width = size_hw
    return max(1, round(height * scale)), max(1, round(width * scale))


def truncated_size(size_hw: SizeHW, scale: float) -> SizeHW:
    """Both sides times `scale`, cut off as deeplab-pytorch does, and never below 1."""
    height, width = size_hw
    return max(1, int(height * scale)), max(1, int(width * scale))


def long_side_scale(size_hw: SizeHW, long_side: int) -> float:
    """The scale that makes the longer side `long_side` pixels long."""
    return long_side / max(size_hw)


def long_side_size(size_hw: SizeHW, long_side: int) -> SizeHW:
    """The size with a longer side of `long_side` pixels; the other is one quotient, where `long_side_scale` rounds twice (PSA)."""
    height, width = size_hw
    return max(1, round(height * long_side / max(size_hw))), max(1, round(width * long_side / max(size_hw)))


def resize_bicubic(image: UInt8[np.ndarray, "h w 3"], size_hw: SizeHW) -> UInt8[np.ndarray, "hs ws 3"]:
    """Pillow's bicubic filter; an image that has the size already is left alone."""
    return _resize_pillow(image, size_hw, Image.Resampling.BICUBIC)


def resize_nearest(label: UInt8[np.ndarray, "h w"], size_hw: SizeHW) -> UInt8[np.ndarray, "hs ws"]:
    """Pillow's nearest neighbour, for label maps."""
    return _resize_pillow(label, size_hw, Image.Resampling.NEAREST)


def _resize_pillow(array: np.ndarray, size_hw: SizeHW, resample: Image.Resampling) -> np.ndarray:
    if array.shape[:2] == size_hw:
        return array
    return np.array(Image.fromarray(array).resize(size_hw[::-1], resample))


def reduce_label(label: UInt8[np.ndarray, "h w"], stride: int) -> UInt8[np.ndarray, "hs ws"]:
    """A label map at one cell per `stride` pixels, nearest neighbour; at stride 4 cell i takes pixel 4 i + 2."""
    return resize_nearest(label, scaled_size(label.shape, 1 / stride))


def centre_offset(side: int, crop: int) -> int:
    """The offset, as `crop_at` takes it, that centres a crop; half to even."""
    return round(abs(side - crop) / 2)


def crop_at(
    array: Shaped[np.ndarray, "h w *c"], crop: int, top: int, left: int, fill: int
) -> Shaped[np.ndarray, "crop crop *c"]:
    """A square of `crop` pixels.

    Args:
        top, left: along an axis where the array is longer, where the crop starts in the array; elsewhere, where the
            array starts in the crop. With 0 and 0 it is the top-left crop.
        fill: value of the pixels beside the array.
    """
    rows, canvas_rows = _overlap(array.shape[0], crop, top)
    columns, canvas_columns = _overlap(array.shape[1], crop, left)
    canvas = np.full((crop, crop, *array.shape[2:]), fill, array.dtype)
    canvas[canvas_rows, canvas_columns] = array[rows, columns]
    return canvas


def _overlap(side: int, crop: int, offset: int) -> tuple[slice, slice]:
    if side > crop:
        return slice(offset, offset + crop), slice(0, crop)
    return slice(0, side), slice(offset, offset + side)


def mean_and_deviation(colours: Literal["imagenet", "clip"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What RGB values in [0, 1] are normalised by."""
    return (IMAGENET_MEAN, IMAGENET_STD) if colours == "imagenet" else (CLIP_MEAN, CLIP_STD)


@lru_cache
def _table(colours: Literal["imagenet", "clip"]) -> np.ndarray:
    # one entry per pixel value: the published code divides and subtracts in double precision, then rounds to float32
    mean, std = mean_and_deviation(colours)
    values = np.arange(256)[:, None] / 255.0
    return ((values - mean) / std).astype(np.float32)


def normalise(image: Shaped[np.ndarray, "h w 3"], colours: ColourRule = "imagenet") -> Float[np.ndarray, "3 h w"]:
    """RGB values 0..255 as a network takes them.

    Args:
        image: uint8, or float32 for `caffe`.
        colours: `imagenet` and `clip`: RGB, (v / 255 - mean) / deviation, each with its own. `caffe`: BGR, v - mean, as the
            published DeepLab takes it.
    """
    planes = np.empty((3, *image.shape[:2]), np.float32)
    for channel in range(3):
        if colours != "caffe":
            planes[channel] = _table(colours)[:, channel][image[..., channel]]
        else:
            # subtracted in double precision and rounded once, as published
            planes[channel] = image[..., 2 - channel] - np.float64(CAFFE_MEAN_BGR[channel])
    return planes


def denormalised(planes: Float[np.ndarray, "3 h w"], colours: ColourRule = "imagenet") -> UInt8[np.ndarray, "h w 3"]:
    """The RGB picture that `normalise` made planes of, in single precision and cut off to 8 bits.

    It is what the dense CRF of ICAM's random walk sees: many values come out one lower.
    """
    if colours == "caffe":
        values = planes[::-1] + np.array(CAFFE_MEAN_BGR[::-1], np.float32)[:, None, None]
    else:
        shift, scale = (np.array(rule, np.float32)[:, None, None] for rule in mean_and_deviation(colours))
        values = (planes * scale + shift) * 255
    return values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def normalised_crop(
    image: Shaped[np.ndarray, "h w 3"],
    crop: int,
    top: int = 0,
    left: int = 0,
    flip: bool = False,
    colours: ColourRule = "imagenet",
) -> Float[np.ndarray, "3 crop crop"]:
    """The image mirrored if `flip`, cropped as by `crop_at`, normalised; 0, the mean colour, where it does not reach.

    With the defaults it is the view that IRNet validates on: the top-left crop.
    """
    if flip:
        image = image[:, ::-1]
    rows, canvas_rows = _overlap(image.shape[0], crop, top)
    columns, canvas_columns = _overlap(image.shape[1], crop, left)
    canvas = np.zeros((3, crop, crop), np.float32)
    canvas[:, canvas_rows, canvas_columns] = normalise(image[rows, columns], colours)
    return canvas


def classifier_view(
    image: UInt8[np.ndarray, "h w 3"],
    long_side: int,
    flip: bool,
    left: int,
    top: int,
    crop: int,
    colours: ColourRule = "imagenet",
) -> Float[np.ndarray, "3 crop crop"]:
    """Resized to a long side, mirrored if `flip`, then cropped; see `crop_at` for the offsets, 0 outside the image."""
    size_hw = image.shape[:2]
    resized = resize_bicubic(image, scaled_size(size_hw, long_side_scale(size_hw, long_side)))
    return normalised_crop(resized, crop, top, left, flip, colours)


def affinity_view(
    image: UInt8[np.ndarray, "h w 3"],
    label: UInt8[np.ndarray, "h w"],
    scale: float,
    flip: bool,
    left: int,
    top: int,
    crop: int,
    label_stride: int,
) -> tuple[Float[np.ndarray, "3 crop crop"], UInt8[np.ndarray, "hs ws"]]:
    """Scaled, mirrored if `flip`, cropped; the label map is then reduced to one cell per `label_stride` pixels."""
    size_hw = scaled_size(image.shape[:2], scale)
    view = normalised_crop(resize_bicubic(image, size_hw), crop, top, left, flip, "imagenet")
    label = resize_nearest(label, size_hw)
    return view, reduce_label(crop_at(label[:, ::-1] if flip else label, crop, top, left, IGNORE), label_stride)


def posterior_view(
    image: UInt8[np.ndarray, "h w 3"],
    maps: Float[np.ndarray, "c h w"],
    flip: bool,
    left: int,
    top: int,
    crop: int,
    stride: int,
    colours: ColourRule = "imagenet",
) -> tuple[Float[np.ndarray, "3 crop crop"], Float[np.ndarray, "c hs ws"]]:
    """Cropped, normalised, mirrored if `flip`; the maps are then averaged over squares of `stride` pixels.

    Beside the picture the crop is black, not of the mean colour, and the maps are 0: PSA fills up before it normalises.
    """
    view = normalise(crop_at(image, crop, top, left, 0), colours)
    planes = crop_at(maps.transpose(1, 2, 0), crop, top, left, 0).transpose(2, 0, 1)
    if flip:
        view, planes = view[:, :, ::-1].copy(), planes[:, :, ::-1]
    cells = crop // stride
    return view, planes.reshape(len(planes), cells, stride, cells, stride).mean((2, 4))


def colour_jitter(
    image: UInt8[np.ndarray, "h w 3"],
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "h w 3"]:
    """torchvision's ColorJitter: each factor is drawn from 1 - x .. 1 + x (the hue's shift from -x .. x), in a random order.

    Where x is 0, nothing is done: even a shift of 0 would round the hue.
    """
    steps = (
        (functional.adjust_brightness, brightness, rng.uniform(1 - brightness, 1 + brightness)),
        (functional.adjust_contrast, contrast, rng.uniform(1 - contrast, 1 + contrast)),
        (functional.adjust_saturation, saturation, rng.uniform(1 - saturation, 1 + saturation)),
        (functional.adjust_hue, hue, rng.uniform(-hue, hue)),
    )
    picture = Image.fromarray(image)
    for step in rng.permutation(len(steps)):
        adjust, strength, factor = steps[step]
        if strength > 0:
            picture = adjust(picture, factor)
    return np.array(picture)


def segmenter_view(
    image: UInt8[np.ndarray, "h w 3"],
    label: UInt8[np.ndarray, "h w"],
    scale: float,
    top: int,
    left: int,
    flip: bool,
    crop: int,
    colours: ColourRule,
) -> tuple[Float[np.ndarray, "3 crop crop"], UInt8[np.ndarray, "crop crop"]]:
    """Scaled, filled up at the right and bottom to the crop's size, cropped, then mirrored if `flip`.

    The image is resized by OpenCV (bilinear), the label map by Pillow (nearest neighbour).

    Args:
        top, left: where the crop starts; 0 along an axis where the image is not longer than the crop.
    """
    size_hw = truncated_size(image.shape[:2], scale)
    label = crop_at(resize_nearest(label, size_hw), crop, top, left, IGNORE)
    pixels = image.astype(np.float32) if colours == "caffe" else image
    if image.shape[:2] != size_hw:
        pixels = cv2.resize(pixels, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    view = normalised_crop(pixels, crop, top, left, False, colours)
    return (view[:, :, ::-1].copy(), label[:, ::-1].copy()) if flip else (view, label)


@dataclass(frozen=True)
class ClassifierAugment:
    """Training images of the classifiers of IRNet, CLIMS and QA-CLIMS."""

    long_side: tuple[int, int] = (320, 640)
    """smallest and largest length of the longer side after resizing, drawn uniformly"""
    crop: int = 512
    """side of the square crop; smaller images are put at a random place in it"""
    flip: float = 0.5
    """probability of the mirror image"""

    def __post_init__(self) -> None:
        check_pair("augment.long_side", self.long_side, 1)
        check_range("augment.crop", self.crop, 1)
        check_range("augment.flip", self.flip, 0, 1)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, colours: ColourRule = "imagenet"
    ) -> Float[np.ndarray, "3 crop crop"]:
        """A random view; draws the long side, the flip, the left offset, the top offset."""
        long_side = int(rng.integers(self.long_side[0], self.long_side[1] + 1))
        flip = bool(rng.random() < self.flip)
        size_hw = image.shape[:2]
        height, width = scaled_size(size_hw, long_side_scale(size_hw, long_side))
        left, top = _draw_offset(width, self.crop, rng), _draw_offset(height, self.crop, rng)
        return classifier_view(image, long_side, flip, left, top, self.crop, colours)


@dataclass(frozen=True)
class JitteredAugment:
    """Training images of the classifiers of PSA, SEAM and ICAM, whose colours change too."""

    long_side: tuple[int, int] = (448, 768)
    """smallest and largest length of the longer side after resizing, drawn uniformly"""
    crop: int = 448
    """side of the square crop; smaller images are put at a random place in it"""
    flip: float = 0.5
    """probability of the mirror image"""
    jitter: float = 0.3
    """how much brightness, contrast and saturation change, as a share"""
    hue: float = 0.1
    """how much the hue changes, as a share of the circle"""

    def __post_init__(self) -> None:
        check_pair("augment.long_side", self.long_side, 1)
        check_range("augment.crop", self.crop, 1)
        check_range("augment.flip", self.flip, 0, 1)
        check_range("augment.jitter", self.jitter, 0, 1)
        check_range("augment.hue", self.hue, 0, 0.5)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, colours: ColourRule = "imagenet"
    ) -> Float[np.ndarray, "3 crop crop"]:
        """A random view; draws the long side, the flip, the colours, the left offset, the top offset."""
        long_side = int(rng.integers(self.long_side[0], self.long_side[1] + 1))
        flip = bool(rng.random() < self.flip)
        resized = resize_bicubic(image, long_side_size(image.shape[:2], long_side))
        resized = colour_jitter(resized, self.jitter, self.jitter, self.jitter, self.hue, rng)
        left, top = _draw_offset(resized.shape[1], self.crop, rng), _draw_offset(resized.shape[0], self.crop, rng)
        return normalised_crop(resized, self.crop, top, left, flip, colours)


@dataclass(frozen=True)
class AffinityAugment:
    """Training images and confident labels of IRNet."""

    scale: tuple[float, float] = (0.5, 1.5)
    """smallest and largest scale, drawn uniformly"""
    crop: int = 512
    """side of the square crop; smaller images are put at a random place in it"""
    flip: float = 0.5
    """probability of the mirror image"""
    label_stride: int = 4
    """pixels per cell of the label map that comes out"""

    def __post_init__(self) -> None:
        check_pair("augment.scale", self.scale, SMALLEST_SCALE)
        check_range("augment.crop", self.crop, 1)
        check_range("augment.flip", self.flip, 0, 1)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "3 crop crop"], UInt8[np.ndarray, "hs ws"]]:
        """A random view; draws the scale, the flip, the left offset, the top offset."""
        scale = self.scale[0] + rng.random() * (self.scale[1] - self.scale[0])
        flip = bool(rng.random() < self.flip)
        height, width = scaled_size(image.shape[:2], scale)
        left, top = _draw_offset(width, self.crop, rng), _draw_offset(height, self.crop, rng)
        return affinity_view(image, label, scale, flip, left, top, self.crop, self.label_stride)


@dataclass(frozen=True)
class PosteriorAugment:
    """Training images and the class probabilities of their pixels of AffinityNet (PSA)."""

    crop: int = 448
    """side of the square crop, a multiple of 8; smaller images are put at a random place in it"""
    flip: float = 0.5
    """probability of the mirror image"""
    jitter: float = 0.3
    """how much brightness, contrast and saturation change, as a share"""
    hue: float = 0.1
    """how much the hue changes, as a share of the circle"""
    stride: int = 8
    """pixels per cell of the maps that come out"""

    def __post_init__(self) -> None:
        check_range("augment.stride", self.stride, 1)
        check_range("augment.crop", self.crop, self.stride)
        check_range("augment.flip", self.flip, 0, 1)
        check_range("augment.jitter", self.jitter, 0, 1)
        check_range("augment.hue", self.hue, 0, 0.5)
        if self.crop % self.stride:
            raise BadInput("augment.crop", str(self.crop), f"a multiple of {self.stride}", "Change it.")

    def __call__(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        maps: Float[np.ndarray, "c h w"],
        rng: np.random.Generator,
        colours: ColourRule = "imagenet",
    ) -> tuple[Float[np.ndarray, "3 crop crop"], Float[np.ndarray, "c hs ws"]]:
        """A random view; draws the colours, the left offset, the top offset, the flip."""
        image = colour_jitter(image, self.jitter, self.jitter, self.jitter, self.hue, rng)
        left, top = _draw_offset(image.shape[1], self.crop, rng), _draw_offset(image.shape[0], self.crop, rng)
        flip = bool(rng.random() < self.flip)
        return posterior_view(image, maps, flip, left, top, self.crop, self.stride, colours)


@dataclass(frozen=True)
class SegmenterAugment:
    """Training images and pseudo masks of DeepLab v2."""

    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    """scales, of which one is drawn; the networks that start from ImageNet weights have 1.75 and 2 besides"""
    crop: int = 321
    """side of the square crop; smaller images are filled up at the right and bottom"""
    flip: float = 0.5
    """probability of the mirror image"""

    def __post_init__(self) -> None:
        check_range("augment.scales", self.scales, SMALLEST_SCALE)
        check_range("augment.crop", self.crop, 1)
        check_range("augment.flip", self.flip, 0, 1)

    def __call__(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        label: UInt8[np.ndarray, "h w"],
        rng: np.random.Generator,
        colours: ColourRule = "caffe",
    ) -> tuple[Float[np.ndarray, "3 crop crop"], UInt8[np.ndarray, "crop crop"]]:
        """A random view; draws the scale, the top offset, the left offset, the flip.

        Colours are `caffe` (BGR less the mean) for the published ResNet-101, `imagenet` for backbones of torchvision and timm.
        """
        scale = self.scales[int(rng.integers(len(self.scales)))]
        height, width = truncated_size(image.shape[:2], scale)
        top = int(rng.integers(max(height - self.crop, 0) + 1))
        left = int(rng.integers(max(width - self.crop, 0) + 1))
        flip = bool(rng.random() < self.flip)
        return segmenter_view(image, label, scale, top, left, flip, self.crop, colours)


def _draw_offset(side: int, crop: int, rng: np.random.Generator) -> int:
    return int(rng.integers(abs(side - crop) + 1))
