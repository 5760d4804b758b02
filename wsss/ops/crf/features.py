"""The features compared by the kernels of the dense CRF: positions and colours of pixels, in units of standard deviations."""

from typing import NamedTuple

import numpy as np

from wsss.arrays import Float32, UInt8
from wsss.ops.crf.presets import Picture

BGR_MEAN = (104.008, 116.669, 122.675)  # subtracted by deeplab-pytorch and CLIP-ES, for B, G, R


def channels_of(image: UInt8[np.ndarray, "h w 3"], picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """The channels of an RGB image that the appearance kernel uses."""
    if picture == "rgb":
        return image
    return image[..., ::-1] if picture == "bgr" else wrapped_bgr(image)


def wrapped_bgr(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """BGR minus its mean, cast to uint8 as on x86: truncated toward zero, then modulo 256, so that dark pixels become bright.

    The CRF of deeplab-pytorch (main.py), CLIMS and CLIP-ES is given this picture, so their published results depend on it.
    """
    centred = image[..., ::-1].astype(np.float32) - np.array(BGR_MEAN, np.float32)
    return (centred.astype(np.int32) & 255).astype(np.uint8)


def position_features(size_hw: tuple[int, int], sxy: float | tuple[float, float]) -> Float32[np.ndarray, "2 n"]:
    """(x / sx, y / sy) of each pixel, row by row."""
    sx, sy = np.broadcast_to(np.asarray(sxy, np.float32), 2)
    y, x = np.indices(size_hw, np.float32)
    return np.stack([x / sx, y / sy]).reshape(2, -1)


def bilateral_features(
    picture: UInt8[np.ndarray, "h w 3"], sxy: float | tuple[float, float], srgb: float | tuple[float, float, float]
) -> Float32[np.ndarray, "5 n"]:
    """(x / sx, y / sy, c0 / s0, c1 / s1, c2 / s2) of each pixel, row by row, with the channels c in the given order.

    The order matters: the lattice treats its axes differently, so RGB and BGR give different results.
    """
    deviations = np.broadcast_to(np.asarray(srgb, np.float32), 3)
    colours = [np.divide(picture[..., c], deviations[c], dtype=np.float32).ravel() for c in range(3)]
    return np.concatenate([position_features(picture.shape[:2], sxy), colours])


class Features(NamedTuple):
    """What the features of n points are computed from, block by block: for a picture a fraction of their memory.

    The features of a point are its position and colours in units of `deviations`, then those `given`; each of the three may be missing.
    """

    width: int
    """of the picture, whose points are numbered row by row; 0 for points without a position"""
    colours: UInt8[np.ndarray, "n c"]
    deviations: Float32[np.ndarray, "_"]
    """standard deviations of x and y, if there are positions, and of each colour"""
    given: Float32[np.ndarray, "f n"]
    size: int
    """n"""

    def limits(self) -> tuple[Float32[np.ndarray, "d"], Float32[np.ndarray, "d"]]:
        """The lowest and the highest value of each feature."""
        last = [(self.width - 1, (self.size - 1) // self.width)] if self.width else []
        low = np.concatenate([np.zeros(2 * len(last)), self.colours.min(0)]).astype(np.float32) / self.deviations
        high = np.concatenate([*last, self.colours.max(0)]).astype(np.float32) / self.deviations
        return np.concatenate([low, self.given.min(1)]), np.concatenate([high, self.given.max(1)])


def given_features(features: Float32[np.ndarray, "d n"]) -> Features:
    """Features that are all given."""
    n = features.shape[1]
    return Features(0, _read_only(np.empty((n, 0), np.uint8)), np.empty(0, np.float32), features, n)


def picture_features(
    picture: UInt8[np.ndarray, "h w c"],
    sxy: float | tuple[float, float],
    srgb: float | tuple[float, ...] = (),
) -> Features:
    """`bilateral_features` of a picture with three channels, or `position_features` of one with none."""
    height, width, channels = picture.shape
    deviations = [np.broadcast_to(np.asarray(of, np.float32), n) for of, n in ((sxy, 2), (srgb, channels))]
    colours = np.ascontiguousarray(picture.reshape(height * width, channels))
    n = height * width
    return Features(width, _read_only(colours), np.concatenate(deviations), np.empty((0, n), np.float32), n)


def _read_only(colours: UInt8[np.ndarray, "n c"]) -> UInt8[np.ndarray, "n c"]:
    """A view of one type, whether the picture can be written or not: numba would compile everything for both."""
    view = colours.view()
    view.flags.writeable = False
    return view
