"""Augmentation of training and validation images: resizing, cropping, flipping, normalisation.

A `View` describes a crop of a resized and possibly flipped picture. The classes draw random views in the order of the published code;
`crop_picture` applies a view to a picture, `crop_labels` to a label map. Peculiarities of published code are in the class that reproduces it.
Inputs are uint8 RGB (h, w, 3), outputs float32 (3, h, w); labels stay uint8, 255 outside the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from wsss.arrays import Float, Shaped, UInt8
from wsss.data.images import IGNORE
from wsss.errors import BadInput, check_pair, check_range

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# the Caffe networks' mean colour (deeplab-pytorch)
CAFFE_MEAN_BGR = (104.008, 116.669, 122.675)

# Smaller scales leave almost nothing of a picture; settings with them are mistakes
SMALLEST_SCALE = 0.01

SizeHW = tuple[int, int]
Resize = Callable[[np.ndarray, SizeHW], np.ndarray]
"""Resizes an array (h, w) or (h, w, channels)"""
ColourRule = Literal["imagenet", "caffe", "clip", "raw"]
Colours = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of RGB values in [0, 1]."""


def scaled_size(size_hw: SizeHW, scale: float) -> SizeHW:
    """Both sides times `scale`, rounded half to even as in IRNet, at least 1."""
    height, width = size_hw
    return max(1, round(height * scale)), max(1, round(width * scale))


def truncated_size(size_hw: SizeHW, scale: float) -> SizeHW:
    """Both sides times `scale`, truncated as in deeplab-pytorch, at least 1."""
    height, width = size_hw
    return max(1, int(height * scale)), max(1, int(width * scale))


def long_side_scale(size_hw: SizeHW, long_side: int) -> float:
    """The scale that makes the longer side `long_side` pixels long."""
    return long_side / max(size_hw)


def long_side_size(size_hw: SizeHW, long_side: int) -> SizeHW:
    """The size with a longer side of `long_side` pixels (PSA); rounded once, while `long_side_scale` and `scaled_size` round twice."""
    height, width = size_hw
    return max(1, round(height * long_side / max(size_hw))), max(1, round(width * long_side / max(size_hw)))


def resize_bicubic(image: UInt8[np.ndarray, "h w 3"], size_hw: SizeHW) -> UInt8[np.ndarray, "hs ws 3"]:
    """Pillow's bicubic filter; an image that already has the size is returned unchanged."""
    return _resize_pillow(image, size_hw, Image.Resampling.BICUBIC)


def resize_nearest(label: UInt8[np.ndarray, "h w"], size_hw: SizeHW) -> UInt8[np.ndarray, "hs ws"]:
    """Pillow's nearest neighbour, for label maps."""
    return _resize_pillow(label, size_hw, Image.Resampling.NEAREST)


def resize_bilinear(image: Shaped[np.ndarray, "h w 3"], size_hw: SizeHW) -> Shaped[np.ndarray, "hs ws 3"]:
    """OpenCV's bilinear filter; an image that already has the size is returned unchanged."""
    return image if image.shape[:2] == size_hw else cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_LINEAR)


def _resize_pillow(array: np.ndarray, size_hw: SizeHW, resample: Image.Resampling) -> np.ndarray:
    if array.shape[:2] == size_hw:
        return array
    return np.array(Image.fromarray(array).resize(size_hw[::-1], resample))


def reduce_label(label: UInt8[np.ndarray, "h w"], stride: int) -> UInt8[np.ndarray, "hs ws"]:
    """A label map with one cell per `stride` pixels, by nearest neighbour; at stride 4, cell i is pixel 4 i + 2."""
    return resize_nearest(label, scaled_size(label.shape, 1 / stride))


@dataclass(frozen=True)
class View:
    """A square crop of a picture that is first resized, and then flipped if `flip`."""

    size_hw: SizeHW
    """height and width in pixels after resizing"""
    flip: bool
    """whether the picture is flipped horizontally"""
    top: int
    """in pixels: the top of the crop in the picture if the picture is higher than the crop, else the top of the picture in the crop"""
    left: int
    """as `top`, for the width, in the flipped picture"""
    crop: int
    """side of the square in pixels"""

    @classmethod
    def flipped_last(cls, size_hw: SizeHW, flip: bool, top: int, left: int, crop: int) -> "View":
        """The view of code that flips the whole crop, including padding; `left` is that before flipping."""
        return cls(size_hw, flip, top, abs(size_hw[1] - crop) - left if flip else left, crop)

    def part(self, array: Shaped[np.ndarray, "h w *c"]) -> Shaped[np.ndarray, "hp wp *c"]:
        """The part of an array of the view's size that lies in the crop."""
        rows, columns = _overlap(self.size_hw[0], self.crop, self.top), _overlap(self.size_hw[1], self.crop, self.left)
        return (array[:, ::-1] if self.flip else array)[rows[0], columns[0]]

    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the crop that `part` fills."""
        rows, columns = _overlap(self.size_hw[0], self.crop, self.top), _overlap(self.size_hw[1], self.crop, self.left)
        return rows[1], columns[1]


def _overlap(side: int, crop: int, offset: int) -> tuple[slice, slice]:
    if side > crop:
        return slice(offset, offset + crop), slice(0, crop)
    return slice(0, side), slice(offset, offset + side)


def top_left(size_hw: SizeHW, crop: int) -> View:
    """The view for validation in IRNet: the top-left crop."""
    return View(size_hw, False, 0, 0, crop)


def crop_array(view: View, array: Shaped[np.ndarray, "h w *c"], fill: int) -> Shaped[np.ndarray, "crop crop *c"]:
    """The crop of an array of the view's size, with `fill` outside the array."""
    square = np.full((view.crop, view.crop, *array.shape[2:]), fill, array.dtype)
    square[view.place()] = view.part(array)
    return square


def crop_labels(
    view: View, label: UInt8[np.ndarray, "h w"], resize: Resize = resize_nearest
) -> UInt8[np.ndarray, "crop crop"]:
    """The crop of a label map, 255 outside the picture."""
    return crop_array(view, resize(label, view.size_hw), IGNORE)


def crop_picture(
    view: View,
    image: Shaped[np.ndarray, "h w 3"],
    colours: ColourRule = "imagenet",
    resize: Resize = resize_bicubic,
) -> Float[np.ndarray, "3 crop crop"]:
    """The crop of a picture, normalised; 0, the mean colour, outside the picture."""
    return normalise_crop(view, view.part(resize(image, view.size_hw)), colours)


def normalise_crop(
    view: View, part: Shaped[np.ndarray, "hp wp 3"], colours: ColourRule
) -> Float[np.ndarray, "3 crop crop"]:
    """The normalised crop from the part of a picture that lies in it; 0, the mean colour, outside the picture."""
    square = np.zeros((3, view.crop, view.crop), np.float32)
    square[:, *view.place()] = normalise(part, colours)
    return square


def mean_and_deviation(colours: Literal["imagenet", "clip"] | Colours) -> Colours:
    """Mean and standard deviation of RGB values in [0, 1] for normalisation."""
    if isinstance(colours, tuple):
        return colours
    return (IMAGENET_MEAN, IMAGENET_STD) if colours == "imagenet" else (CLIP_MEAN, CLIP_STD)


@lru_cache
def _table(colours: Literal["imagenet", "clip"] | Colours) -> np.ndarray:
    # one entry per pixel value: the published code computes in double precision, then rounds to float32
    mean, std = mean_and_deviation(colours)
    values = np.arange(256)[:, None] / 255.0
    return ((values - mean) / std).astype(np.float32)


def normalise(
    image: Shaped[np.ndarray, "h w 3"], colours: ColourRule | Colours = "imagenet"
) -> Float[np.ndarray, "3 h w"]:
    """RGB values 0..255, normalised for a network.

    Args:
        image: uint8, or float32 for `caffe`.
        colours: `imagenet` and `clip`: RGB, (v / 255 - mean) / deviation, with the respective constants or those given. `caffe`: BGR, v - mean,
            as in the published DeepLab. `raw`: RGB, v.
    """
    planes = np.empty((3, *image.shape[:2]), np.float32)
    if colours == "raw":
        planes[:] = image.transpose(2, 0, 1)
        return planes
    for channel in range(3):
        if colours != "caffe":
            planes[channel] = _table(colours)[:, channel][image[..., channel]]
        else:
            # subtracted in double precision and rounded once, as published
            planes[channel] = image[..., 2 - channel] - np.float64(CAFFE_MEAN_BGR[channel])
    return planes


def denormalise(planes: Float[np.ndarray, "3 h w"], colours: ColourRule = "imagenet") -> UInt8[np.ndarray, "h w 3"]:
    """The RGB picture from the output of `normalise`, computed in single precision and truncated to 8 bits.

    The dense CRF of ICAM's random walk uses it: many values are one lower than in the original.
    """
    if colours == "caffe":
        values = planes[::-1] + np.array(CAFFE_MEAN_BGR[::-1], np.float32)[:, None, None]
    elif colours == "raw":
        values = planes
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
    """torchvision's ColorJitter, without its import, which takes seconds.

    Each factor is drawn from 1 - x .. 1 + x (the hue's shift from -x .. x, in turns of the circle), in a random order. If x is 0, the step is
    skipped: even a shift of 0 would round the hue.
    """
    steps: tuple[tuple[Callable[[Image.Image, float], Image.Image], float, float], ...] = (
        (
            lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
            brightness,
            rng.uniform(1 - brightness, 1 + brightness),
        ),
        (
            lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
            contrast,
            rng.uniform(1 - contrast, 1 + contrast),
        ),
        (
            lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
            saturation,
            rng.uniform(1 - saturation, 1 + saturation),
        ),
        (_shift_hue, hue, rng.uniform(-hue, hue)),
    )
    picture = Image.fromarray(image)
    for step in rng.permutation(len(steps)):
        adjust, strength, factor = steps[step]
        if strength > 0:
            picture = adjust(picture, factor)
    return np.array(picture)


def _shift_hue(picture: Image.Image, turns: float) -> Image.Image:
    planes = np.array(picture.convert("HSV"))
    planes[..., 0] += np.uint8(
        int(turns * 255) % 256
    )  # the circle of hues has 256 steps, and 255 of them are a turn in torchvision
    return Image.fromarray(planes, "HSV").convert("RGB")


@dataclass(frozen=True)
class ClassifierAugment:
    """Training images of the classifiers of IRNet, CLIMS and QA-CLIMS."""

    long_side: tuple[int, int] = (320, 640)
    """smallest and largest length of the longer side after resizing, drawn uniformly"""
    crop: int = 512
    """side of the square crop; smaller images are placed in it at random"""
    flip: float = 0.5
    """probability of a horizontal flip"""

    def __post_init__(self) -> None:
        check_pair("augment.long_side", self.long_side, 1)
        check_range("augment.crop", self.crop, 1)
        check_range("augment.flip", self.flip, 0, 1)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, colours: ColourRule = "imagenet"
    ) -> Float[np.ndarray, "3 crop crop"]:
        """A random view of a picture."""
        return crop_picture(self.view(image.shape[:2], rng), image, colours)

    def view(self, size_hw: SizeHW, rng: np.random.Generator) -> View:
        """Draws the long side, the flip, the left offset, the top offset."""
        long_side = int(rng.integers(self.long_side[0], self.long_side[1] + 1))
        flip = bool(rng.random() < self.flip)
        resized = scaled_size(size_hw, long_side_scale(size_hw, long_side))
        return View(resized, flip, *offsets_anywhere(resized, self.crop, rng), self.crop)


@dataclass(frozen=True)
class JitteredAugment:
    """Training images of the classifiers of PSA, SEAM and ICAM, with colour jitter."""

    long_side: tuple[int, int] = (448, 768)
    """smallest and largest length of the longer side after resizing, drawn uniformly"""
    crop: int = 448
    """side of the square crop; smaller images are placed in it at random"""
    flip: float = 0.5
    """probability of a horizontal flip"""
    jitter: float = 0.3
    """largest relative change of brightness, contrast and saturation"""
    hue: float = 0.1
    """largest change of the hue, as a fraction of the colour circle"""

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
        return crop_picture(view, resized, colours)


@dataclass(frozen=True)
class AffinityAugment:
    """Training images and confident labels of IRNet."""

    scale: tuple[float, float] = (0.5, 1.5)
    """smallest and largest scale, drawn uniformly"""
    crop: int = 512
    """side of the square crop; smaller images are placed in it at random"""
    flip: float = 0.5
    """probability of a horizontal flip"""
    label_stride: int = 4
    """pixels per cell of the returned label map"""

    def __post_init__(self) -> None:
        check_pair("augment.scale", self.scale, SMALLEST_SCALE)
        check_range("augment.crop", self.crop, 1)
        check_range("augment.flip", self.flip, 0, 1)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "3 crop crop"], UInt8[np.ndarray, "hs ws"]]:
        """A random view of a picture and its labels, which have one cell per `label_stride` pixels."""
        view = self.view(image.shape[:2], rng)
        return crop_picture(view, image), reduce_label(crop_labels(view, label), self.label_stride)

    def view(self, size_hw: SizeHW, rng: np.random.Generator) -> View:
        """Draws the scale, the flip, the left offset, the top offset."""
        scale = self.scale[0] + rng.random() * (self.scale[1] - self.scale[0])
        flip = bool(rng.random() < self.flip)
        resized = scaled_size(size_hw, scale)
        return View(resized, flip, *offsets_anywhere(resized, self.crop, rng), self.crop)


@dataclass(frozen=True)
class PosteriorAugment:
    """Training images of AffinityNet (PSA) and the class probabilities of their pixels."""

    crop: int = 448
    """side of the square crop, a multiple of 8; smaller images are placed in it at random"""
    flip: float = 0.5
    """probability of a horizontal flip"""
    jitter: float = 0.3
    """largest relative change of brightness, contrast and saturation"""
    hue: float = 0.1
    """largest change of the hue, as a fraction of the colour circle"""
    stride: int = 8
    """pixels per cell of the returned maps"""

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
        """A random view of a picture, with colour jitter, and its maps, averaged over cells of `stride` pixels."""
        image = colour_jitter(image, self.jitter, self.jitter, self.jitter, self.hue, rng)
        return self.apply(self.view(image.shape[:2], rng), image, maps, colours)

    def view(self, size_hw: SizeHW, rng: np.random.Generator) -> View:
        """Draws the left offset, the top offset, the flip."""
        top, left = offsets_anywhere(size_hw, self.crop, rng)
        return View.flipped_last(size_hw, bool(rng.random() < self.flip), top, left, self.crop)

    def apply(
        self, view: View, image: UInt8[np.ndarray, "h w 3"], maps: Float[np.ndarray, "c h w"], colours: ColourRule
    ) -> tuple[Float[np.ndarray, "3 crop crop"], Float[np.ndarray, "c hs ws"]]:
        """A view of a picture and its maps, both of the view's size.

        Outside the picture the crop is black, not of the mean colour, and the maps are 0: PSA pads before it normalises.
        """
        planes = crop_array(view, maps.transpose(1, 2, 0), 0).transpose(2, 0, 1)
        cells = view.crop // self.stride
        means = planes.reshape(len(planes), cells, self.stride, cells, self.stride).mean((2, 4))
        return normalise(crop_array(view, image, 0), colours), means


@dataclass(frozen=True)
class SegmenterAugment:
    """Training images and pseudo masks of DeepLab v2."""

    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    """scales, one of which is drawn; networks that start from ImageNet weights also use 1.75 and 2"""
    crop: int = 321
    """side of the square crop; smaller images are padded at the right and bottom"""
    flip: float = 0.5
    """probability of a horizontal flip"""

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

        Colours are `caffe` (BGR minus the mean) for the published ResNet-101, `imagenet` for backbones of torchvision and timm.
        """
        return self.apply(self.view(image.shape[:2], rng), image, label, colours)

    def view(self, size_hw: SizeHW, rng: np.random.Generator) -> View:
        """Draws the scale, the top offset, the left offset, the flip."""
        resized = truncated_size(size_hw, self.scales[int(rng.integers(len(self.scales)))])
        top, left = offsets_inside(resized, self.crop, rng)
        return View.flipped_last(resized, bool(rng.random() < self.flip), top, left, self.crop)

    @staticmethod
    def apply(
        view: View, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], colours: ColourRule
    ) -> tuple[Float[np.ndarray, "3 crop crop"], UInt8[np.ndarray, "crop crop"]]:
        """A view of a picture and its labels; OpenCV resizes the picture, as float32 for `caffe`, as in deeplab-pytorch."""
        pixels = image.astype(np.float32) if colours == "caffe" else image
        return crop_picture(view, pixels, colours, resize_bilinear), crop_labels(view, label)


@dataclass(frozen=True)
class WeCLIPAugment:
    """Training images of WeCLIP and WeCLIP+."""

    scale: tuple[float, float] = (0.5, 2.0)
    """smallest and largest scale, drawn uniformly"""
    crop: int = 320
    """side of the square crop; smaller images are placed in it at random"""
    flip: float = 0.5
    """probability of a horizontal flip"""

    def __post_init__(self) -> None:
        check_pair("views.scale", self.scale, SMALLEST_SCALE)
        check_range("views.crop", self.crop, 1)
        check_range("views.flip", self.flip, 0, 1)

    def __call__(self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> Float[np.ndarray, "3 crop crop"]:
        """A random view of a picture. Outside the picture the crop is black, not of the mean colour: WeCLIP pads before it normalises."""
        view = self.view(image.shape[:2], rng)
        resized = _resize_pillow(image, view.size_hw, Image.Resampling.BILINEAR)
        return normalise(crop_array(view, resized, 0))

    def view(self, size_hw: SizeHW, rng: np.random.Generator) -> View:
        """Draws the scale, the flip, the left offset, the top offset."""
        scale = self.scale[0] + rng.random() * (self.scale[1] - self.scale[0])
        flip = bool(rng.random() < self.flip)
        resized = truncated_size(size_hw, scale)
        return View(resized, flip, *offsets_anywhere(resized, self.crop, rng), self.crop)


def offsets_anywhere(size_hw: SizeHW, crop: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a view; the left is drawn first. A picture smaller than the crop may be anywhere in it."""
    left = int(rng.integers(abs(size_hw[1] - crop) + 1))
    return int(rng.integers(abs(size_hw[0] - crop) + 1)), left


def offsets_inside(size_hw: SizeHW, crop: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a view; the top is drawn first. A picture smaller than the crop is at its top left."""
    top = int(rng.integers(max(size_hw[0] - crop, 0) + 1))
    return top, int(rng.integers(max(size_hw[1] - crop, 0) + 1))
