"""The features compared by the kernels of the dense CRF: positions and colours of pixels, in units of standard deviations."""

import numpy as np
from jaxtyping import Float32, UInt8

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
