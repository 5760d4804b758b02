"""What training and validation images go through: sizes, crops, mirror images, normalisation.

A `View` says which part of a picture is seen. The classes draw one in the order of the published code; `picture_in` applies it to a picture,
`labels_in` to a label map. What published code does otherwise stands in the class that reproduces it. Images are uint8 RGB (h, w, 3) on the way
in, float32 (3, h, w) on the way out; labels stay uint8, 255 where the crop shows no image.
"""

from collections.abc import Callable
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
Resize = Callable[[np.ndarray, SizeHW], np.ndarray]
"""Brings an array (h, w) or (h, w, channels) to a size"""
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


def resize_bilinear(image: Shaped[np.ndarray, "h w 3"], size_hw: SizeHW) -> Shaped[np.ndarray, "hs ws 3"]:
    """OpenCV's bilinear filter; an image that has the size already is left alone."""
    return image if image.shape[:2] == size_hw else cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_LINEAR)


def _resize_pillow(array: np.ndarray, size_hw: SizeHW, resample: Image.Resampling) -> np.ndarray:
    if array.shape[:2] == size_hw:
        return array
    return np.array(Image.fromarray(array).resize(size_hw[::-1], resample))


def reduce_label(label: UInt8[np.ndarray, "h w"], stride: int) -> UInt8[np.ndarray, "hs ws"]:
    """A label map at one cell per `stride` pixels, nearest neighbour; at stride 4 cell i takes pixel 4 i + 2."""
    return resize_nearest(label, scaled_size(label.shape, 1 / stride))


@dataclass(frozen=True)
class View:
    """A part of a picture: the picture is resized, mirrored if `flip`, and a square is cut out of it."""

    size_hw: SizeHW
    """height and width in pixels after resizing"""
    flip: bool
    """whether the picture is mirrored, left to right"""
    top: int
    """in pixels: where the crop starts in the picture if the picture is higher than it, else where the picture starts in the crop"""
    left: int
    """as `top`, for the width, in the picture that is mirrored already"""
    crop: int
    """side of the square in pixels"""

    @classmethod
    def mirrored_last(cls, size_hw: SizeHW, flip: bool, top: int, left: int, crop: int) -> "View":
        """The view of code that mirrors the whole crop, what lies outside the picture included; `left` is as before that."""
        return cls(size_hw, flip, top, abs(size_hw[1] - crop) - left if flip else left, crop)

    def part(self, array: Shaped[np.ndarray, "h w *c"]) -> Shaped[np.ndarray, "hp wp *c"]:
        """What the view shows of an array that has its size."""
        rows, columns = _overlap(self.size_hw[0], self.crop, self.top), _overlap(self.size_hw[1], self.crop, self.left)
        return (array[:, ::-1] if self.flip else array)[rows[0], columns[0]]

    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the square that `part` fills."""
        rows, columns = _overlap(self.size_hw[0], self.crop, self.top), _overlap(self.size_hw[1], self.crop, self.left)
        return rows[1], columns[1]


def _overlap(side: int, crop: int, offset: int) -> tuple[slice, slice]:
    if side > crop:
        return slice(offset, offset + crop), slice(0, crop)
    return slice(0, side), slice(offset, offset + side)


def top_left(size_hw: SizeHW, crop: int) -> View:
    """The view that IRNet validates on: the top-left crop."""
    return View(size_hw, False, 0, 0, crop)


def seen_in(view: View, array: Shaped[np.ndarray, "h w *c"], fill: int) -> Shaped[np.ndarray, "crop crop *c"]:
    """The square of an array that has the view's size, `fill` where the array does not reach."""
    square = np.full((view.crop, view.crop, *array.shape[2:]), fill, array.dtype)
    square[view.place()] = view.part(array)
    return square


def labels_in(
    view: View, label: UInt8[np.ndarray, "h w"], resize: Resize = resize_nearest
) -> UInt8[np.ndarray, "crop crop"]:
    """The square of a label map, 255 outside."""
    return seen_in(view, resize(label, view.size_hw), IGNORE)


def picture_in(
    view: View,
    image: Shaped[np.ndarray, "h w 3"],
    colours: ColourRule = "imagenet",
    resize: Resize = resize_bicubic,
) -> Float[np.ndarray, "3 crop crop"]:
    """The square of a picture, normalised; 0, the mean colour, outside."""
    return normalised_square(view, view.part(resize(image, view.size_hw)), colours)


def normalised_square(
    view: View, part: Shaped[np.ndarray, "hp wp 3"], colours: ColourRule
) -> Float[np.ndarray, "3 crop crop"]:
    """The square around what a view shows of a picture, normalised; 0, the mean colour, outside."""
    square = np.zeros((3, view.crop, view.crop), np.float32)
    square[:, *view.place()] = normalise(part, colours)
    return square


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
        """A random view of a picture."""
        return picture_in(self.view(image.shape[:2], rng), image, colours)

    def view(self, size_hw: SizeHW, rng: np.random.Generator) -> View:
        """Draws the long side, the flip, the left offset, the top offset."""
        long_side = int(rng.integers(self.long_side[0], self.long_side[1] + 1))
        flip = bool(rng.random() < self.flip)
        resized = scaled_size(size_hw, long_side_scale(size_hw, long_side))
        return View(resized, flip, *offsets_anywhere(resized, self.crop, rng), self.crop)


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
        size_hw = long_side_size(image.shape[:2], long_side)
        resized = colour_jitter(resize_bicubic(image, size_hw), self.jitter, self.jitter, self.jitter, self.hue, rng)
        view = View(size_hw, flip, *offsets_anywhere(size_hw, self.crop, rng), self.crop)
        return picture_in(view, resized, colours)


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
        """A random view of a picture and its labels, these at one cell for each `label_stride` pixels."""
        view = self.view(image.shape[:2], rng)
        return picture_in(view, image), reduce_label(labels_in(view, label), self.label_stride)

    def view(self, size_hw: SizeHW, rng: np.random.Generator) -> View:
        """Draws the scale, the flip, the left offset, the top offset."""
        scale = self.scale[0] + rng.random() * (self.scale[1] - self.scale[0])
        flip = bool(rng.random() < self.flip)
        resized = scaled_size(size_hw, scale)
        return View(resized, flip, *offsets_anywhere(resized, self.crop, rng), self.crop)


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
        """A random view of a picture, whose colours change, and its maps; the maps at one cell for each `stride` pixels, a mean."""
        image = colour_jitter(image, self.jitter, self.jitter, self.jitter, self.hue, rng)
        return self.seen(self.view(image.shape[:2], rng), image, maps, colours)

    def view(self, size_hw: SizeHW, rng: np.random.Generator) -> View:
        """Draws the left offset, the top offset, the flip."""
        top, left = offsets_anywhere(size_hw, self.crop, rng)
        return View.mirrored_last(size_hw, bool(rng.random() < self.flip), top, left, self.crop)

    def seen(
        self, view: View, image: UInt8[np.ndarray, "h w 3"], maps: Float[np.ndarray, "c h w"], colours: ColourRule
    ) -> tuple[Float[np.ndarray, "3 crop crop"], Float[np.ndarray, "c hs ws"]]:
        """A view of a picture and its maps, both of the view's size.

        Outside the picture the crop is black, not of the mean colour, and the maps are 0: PSA fills up before it normalises.
        """
        planes = seen_in(view, maps.transpose(1, 2, 0), 0).transpose(2, 0, 1)
        cells = view.crop // self.stride
        means = planes.reshape(len(planes), cells, self.stride, cells, self.stride).mean((2, 4))
        return normalise(seen_in(view, image, 0), colours), means


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
        """A random view of a picture and its labels.

        Colours are `caffe` (BGR less the mean) for the published ResNet-101, `imagenet` for backbones of torchvision and timm.
        """
        return self.seen(self.view(image.shape[:2], rng), image, label, colours)

    def view(self, size_hw: SizeHW, rng: np.random.Generator) -> View:
        """Draws the scale, the top offset, the left offset, the flip."""
        resized = truncated_size(size_hw, self.scales[int(rng.integers(len(self.scales)))])
        top, left = offsets_inside(resized, self.crop, rng)
        return View.mirrored_last(resized, bool(rng.random() < self.flip), top, left, self.crop)

    @staticmethod
    def seen(
        view: View, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], colours: ColourRule
    ) -> tuple[Float[np.ndarray, "3 crop crop"], UInt8[np.ndarray, "crop crop"]]:
        """A view of a picture and its labels; the picture is resized by OpenCV, with `caffe` in floats, as by deeplab-pytorch."""
        pixels = image.astype(np.float32) if colours == "caffe" else image
        return picture_in(view, pixels, colours, resize_bilinear), labels_in(view, label)


def offsets_anywhere(size_hw: SizeHW, crop: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a view, of which the left is drawn first; a picture smaller than the crop lies at any place in it."""
    left = int(rng.integers(abs(size_hw[1] - crop) + 1))
    return int(rng.integers(abs(size_hw[0] - crop) + 1)), left


def offsets_inside(size_hw: SizeHW, crop: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a view, of which the top is drawn first; a picture smaller than the crop lies at its top and left."""
    top = int(rng.integers(max(size_hw[0] - crop, 0) + 1))
    return top, int(rng.integers(max(size_hw[1] - crop, 0) + 1))
