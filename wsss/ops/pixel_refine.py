"""Pixel-adaptive refinement (PAR): maps smoothed along the colours of a picture (Ru et al., AFA: Learning affinity from attention, CVPR 2022).

For each pixel, n are its 8 neighbours at each of several dilations, of which those beyond the border are the nearest pixels of the border.
I are the colours of one channel, d_n the distances to the pixel:

    e_n = mean over channels of -(|I_n - I| / (std of I_n over n + 1e-8) / 0.3)^2,   g_n = -(d_n / (std of d_n over n + 1e-8) / 0.3)^2
    w = softmax_n(e) + 0.01 softmax_n(g);   in each iteration m <- sum_n w_n m_n

Weights sum to 1.01, so maps grow by 1.01 in each iteration, as published; the highest of several maps stays the highest. Only the weights
of all pixels and two copies of the maps are stored.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from wsss.arrays import Float
from wsss.errors import BadInput, check_range

# PAR.py of WeCLIP: the width of both kernels, the weight of that of positions, and what is added to standard deviations
_WIDTH, _POSITION_WEIGHT, _EPSILON = 0.3, 0.01, 1e-8
_DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@dataclasses.dataclass(frozen=True)
class PixelRefinement:
    """Neighbours and number of iterations."""

    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    """distances in pixels, each to 8 neighbours"""
    iterations: int = 20
    """how often each pixel is replaced by the weighted mean of its neighbours"""

    def __post_init__(self) -> None:
        if not self.dilations:
            raise BadInput("dilations", "none", "at least one distance in pixels", "Give some, for example 1, 2, 4.")
        check_range("dilations", self.dilations, 1, 1024)
        check_range("iterations", self.iterations, 0)

    def offsets(self) -> np.ndarray:
        """(dy, dx) of the neighbours, an integer array (n, 2)."""
        return np.array([(d * dy, d * dx) for d in self.dilations for dy, dx in _DIRECTIONS], np.int64)

    def position_weights(self) -> Float[np.ndarray, " n"]:
        """0.01 softmax_n(g), the part of the weights that is the same for all pixels, in float64."""
        distance = np.hypot(*self.offsets().T)
        exponents = -((distance / (distance.std(ddof=1) + _EPSILON) / _WIDTH) ** 2)
        weights = np.exp(exponents - exponents.max())
        return _POSITION_WEIGHT * weights / weights.sum()


def pixel_refine(
    image: Float[Tensor, "3 hi wi"], maps: Float[Tensor, "c h w"], settings: PixelRefinement = PixelRefinement()
) -> Float[Tensor, "c h w"]:
    """The refined maps, without gradient, on the device of the maps.

    Compiled code computes float32 on CPUs, with one thread; torch computes everything else. Both agree up to rounding.

    Args:
        image: colours, in any linear scale. It is resized bilinearly to the size of the maps, with aligned corners.
        maps: for example scores of the background and of classes.
        settings: neighbours and iterations.
    """
    with torch.no_grad():
        size = maps.shape[1:]
        image = image.to(maps)
        if image.shape[1:] != size:
            image = F.interpolate(image[None], size, mode="bilinear", align_corners=True)[0]
        if maps.device.type != "cpu" or maps.dtype != torch.float32:
            return _with_torch(image, maps, settings)
        margin = max(settings.dilations)
        padded = _padded(image, margin).numpy()
        weights = np.empty((size[0], len(settings.offsets()), size[1]), np.float32)
        _find_weights(padded, margin, settings.offsets(), settings.position_weights().astype(np.float32), weights)
        refined = _padded(maps, margin).numpy()
        _iterate(refined, margin, settings.offsets(), weights, settings.iterations)
        return torch.from_numpy(refined[:, margin : margin + size[0], margin : margin + size[1]].copy())


def _padded(planes: Float[Tensor, "c h w"], margin: int) -> Float[Tensor, "c hp wp"]:
    return F.pad(planes[None], (margin,) * 4, mode="replicate")[0]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _find_weights(image: Any, margin: int, offsets: np.ndarray, position: np.ndarray, weights: Any) -> None:
    """Fill the weights (h, n, w) row by row, from the padded picture."""
    height, n, width = weights.shape
    mean, scale = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(height):
        row = weights[y]
        row[:] = 0
        for channel in range(len(image)):
            plane = image[channel]
            centre = plane[margin + y, margin : margin + width]
            mean[:] = 0
            for k in range(n):
                left = margin + offsets[k, 1]
                beside = plane[margin + y + offsets[k, 0], left : left + width]
                for x in range(width):
                    mean[x] += beside[x]
            for x in range(width):
                mean[x] /= np.float32(n)
            scale[:] = 0
            for k in range(n):
                left = margin + offsets[k, 1]
                beside = plane[margin + y + offsets[k, 0], left : left + width]
                for x in range(width):
                    scale[x] += (beside[x] - mean[x]) ** 2
            for x in range(width):
                deviation = np.sqrt(scale[x] / np.float32(n - 1))
                scale[x] = np.float32(1) / ((deviation + np.float32(_EPSILON)) * np.float32(_WIDTH))
            for k in range(n):
                left = margin + offsets[k, 1]
                beside = plane[margin + y + offsets[k, 0], left : left + width]
                for x in range(width):
                    row[k, x] -= ((beside[x] - centre[x]) * scale[x]) ** 2
        _softmax(row, np.float32(1) / np.float32(len(image)), position, mean, scale)


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _softmax(row: Any, factor: Any, added: np.ndarray, highest: Any, total: Any) -> None:
    """Replace exponents (n, w) by softmax_n(factor * exponents) + added; the last two arrays are for intermediate results."""
    n, width = row.shape
    highest[:] = -np.inf
    for k in range(n):
        for x in range(width):
            highest[x] = max(highest[x], row[k, x])
    total[:] = 0
    for k in range(n):
        for x in range(width):
            row[k, x] = np.exp((row[k, x] - highest[x]) * factor)
            total[x] += row[k, x]
    for x in range(width):
        total[x] = np.float32(1) / total[x]
    for k in range(n):
        for x in range(width):
            row[k, x] = row[k, x] * total[x] + added[k]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
def _iterate(maps: Any, margin: int, offsets: np.ndarray, weights: Any, iterations: int) -> None:
    """Replace padded maps by their weighted means, several times."""
    height, n, width = weights.shape
    before = np.empty_like(maps)
    for _ in range(iterations):
        before[:] = maps
        for y in range(height):
            for c in range(len(maps)):
                target = maps[c, margin + y, margin : margin + width]
                target[:] = 0
                for k in range(n):
                    left = margin + offsets[k, 1]
                    beside = before[c, margin + y + offsets[k, 0], left : left + width]
                    weight = weights[y, k]
                    for x in range(width):
                        target[x] += weight[x] * beside[x]
        _extend(maps, margin)


@njit(nogil=True, cache=True)
def _extend(maps: Any, margin: int) -> None:
    """Fill the margin of padded maps with the nearest values inside."""
    for c in range(len(maps)):
        plane = maps[c]
        right, bottom = plane.shape[1] - margin, plane.shape[0] - margin
        for y in range(margin, bottom):
            plane[y, :margin] = plane[y, margin]
            plane[y, right:] = plane[y, right - 1]
        for y in range(margin):
            plane[y] = plane[margin]
            plane[bottom + y] = plane[bottom - 1]


def _with_torch(
    image: Float[Tensor, "3 h w"], maps: Float[Tensor, "c h w"], settings: PixelRefinement
) -> Float[Tensor, "c h w"]:
    """The same on any device and in any precision, a neighbour at a time."""
    margin, offsets = max(settings.dilations), settings.offsets().tolist()
    height, width = maps.shape[1:]

    def neighbours(planes: Tensor, dy: int, dx: int) -> Tensor:
        return planes[:, margin + dy : margin + dy + height, margin + dx : margin + dx + width]

    padded, n = _padded(image, margin), len(offsets)
    mean = torch.zeros_like(image)
    for offset in offsets:
        mean += neighbours(padded, *offset)
    mean /= n
    deviation = torch.zeros_like(image)
    for offset in offsets:
        deviation += (neighbours(padded, *offset) - mean).square()
    deviation = (deviation / (n - 1)).sqrt()
    weights = maps.new_empty(n, height, width)
    for k, offset in enumerate(offsets):
        apart = (neighbours(padded, *offset) - image).abs() / (deviation + _EPSILON) / _WIDTH
        weights[k] = -apart.square().mean(0)
    weights = weights.softmax(0)
    weights += torch.from_numpy(settings.position_weights()).to(maps)[:, None, None]
    for _ in range(settings.iterations):
        padded, maps = _padded(maps, margin), torch.zeros_like(maps)
        for weight, offset in zip(weights, offsets, strict=True):
            maps.addcmul_(weight, neighbours(padded, *offset))
    return maps
