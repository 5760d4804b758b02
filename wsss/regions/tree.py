"""A hierarchy of regions of similar colours, without any weights."""

import dataclasses
from typing import ClassVar, Literal

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from wsss.errors import check_range
from wsss.ops.graph_regions import graph_regions
from wsss.ops.region_tree import cuts, merge_order
from wsss.ops.regions import Regions
from wsss.regions.proposer import Proposer


@dataclasses.dataclass(frozen=True)
class TreeSettings:
    """Graph-based segmentation, and its regions merged level by level; each level divides the whole picture."""

    title: ClassVar[str] = "hierarchy of colours"

    kind: Literal["tree"] = "tree"
    """regions of similar colours, merged level by level; needs no weights"""
    scale: float = 30.0
    """scale of the smallest regions: higher ones are larger (k of Felzenszwalb and Huttenlocher, for colours from 0 to 255)"""
    sigma: float = 0.8
    """standard deviation of the Gaussian that smooths the picture first, in pixels"""
    smallest: int = 20
    """smallest regions with fewer pixels are joined with a neighbour"""
    ratio: float = 2.0
    """how many times fewer regions each level has than the one below it; the last level has one region, which is left out"""
    longest: int = 1024
    """larger pictures are shrunk until their longer side has this many pixels; their regions are enlarged again"""

    def __post_init__(self) -> None:
        check_range("proposer.scale", self.scale, 0)
        check_range("proposer.sigma", self.sigma, 0, 100)
        check_range("proposer.smallest", self.smallest, 1)
        # more levels than a byte can number are never needed
        check_range("proposer.ratio", self.ratio, 1.1)
        check_range("proposer.longest", self.longest, 16)

    def check(self) -> None:
        """See `wsss.regions.proposer.Proposable`; nothing has to be there."""

    def proposer(self) -> Proposer:
        """See `wsss.regions.proposer.Proposable`."""
        return Tree(self)


@dataclasses.dataclass(frozen=True)
class Tree:
    """See `wsss.regions.proposer.Proposer`."""

    settings: TreeSettings

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Regions:
        """All the work: it needs no network."""
        settings, size_hw = self.settings, image.shape[:2]
        small = _shrunk(image, settings.longest)
        leaves = graph_regions(small, settings.scale, settings.sigma, settings.smallest)
        n = int(leaves.max()) + 1
        numbers = [n]
        while (fewer := int(numbers[-1] / settings.ratio)) > 1:
            numbers.append(fewer)
        parts, scores = [], []
        for belongs in cuts(n, merge_order(small, leaves), numbers):
            _, region = np.unique(belongs, return_inverse=True)
            parts.append(region[leaves])
            scores.append(contrasts(small, parts[-1]))
        return Regions.of_partitions([_enlarged(part, size_hw) for part in parts], scores).without_repeats()

    def regions(self, prepared: Regions) -> Regions:
        """See `wsss.regions.proposer.Proposer`."""
        return prepared


def contrasts(image: UInt8[np.ndarray, "h w 3"], regions: Int[np.ndarray, "h w"]) -> Float[np.ndarray, " n"]:
    """How much each region stands out: b / (a + b), with the mean difference of neighbouring pixels in it, a, and across its outline, b.

    Args:
        image: RGB.
        regions: numbers from 0; each occurs.

    Returns:
        In [0, 1]; 0 for a region without an outline, which fills the picture.
    """
    n, colours = int(regions.max()) + 1, image.astype(np.float32)
    inner, outer, inside, across = (np.zeros(n) for _ in range(4))
    for axis in (0, 1):
        difference = np.sqrt((np.diff(colours, axis=axis) ** 2).sum(axis=2)).ravel()
        first, second = (np.delete(regions, end, axis).ravel() for end in (-1, 0))
        same = first == second
        inner += np.bincount(first[same], difference[same], n)
        inside += np.bincount(first[same], minlength=n)
        for one in (first[~same], second[~same]):
            outer += np.bincount(one, difference[~same], n)
            across += np.bincount(one, minlength=n)
    a, b = inner / np.maximum(inside, 1), outer / np.maximum(across, 1)
    return b / np.maximum(a + b, 1e-9)


def _shrunk(image: UInt8[np.ndarray, "h w 3"], longest: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    height, width = image.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _enlarged(regions: Int[np.ndarray, "h2 w2"], size_hw: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """The regions at the picture's size: of each pixel, the pixel under its centre."""
    rows, columns = (
        (2 * np.arange(large) + 1) * small // (2 * large) for large, small in zip(size_hw, regions.shape, strict=True)
    )
    return regions[rows[:, None], columns]
