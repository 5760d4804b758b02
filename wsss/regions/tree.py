"""A hierarchy of regions of similar colours, without any weights."""

import dataclasses
from typing import ClassVar, Literal

import cv2
import numpy as np

from wsss.arrays import Int32, UInt8
from wsss.errors import BadInput, check_range
from wsss.ops.graph_regions import graph_regions
from wsss.ops.region_tree import cuts, hierarchy, nested
from wsss.ops.regions import Regions
from wsss.regions.proposer import Proposer


@dataclasses.dataclass(frozen=True)
class TreeSettings:
    """Graph-based segmentation at several scales, and the smallest of its regions merged level by level; each level divides the whole picture."""

    title: ClassVar[str] = "hierarchy of colours"

    kind: Literal["tree"] = "tree"
    """regions of similar colours, merged level by level; needs no weights"""
    coarseness: tuple[float, ...] = (30.0, 80.0, 200.0, 500.0)
    """scales of the segmentation, ascending, one for each of the lowest levels: higher ones give larger regions (k of Felzenszwalb and
    Huttenlocher, for colours from 0 to 255)"""
    sigma: float = 0.8
    """standard deviation of the Gaussian that smooths the picture first, in pixels"""
    smallest: int = 20
    """smallest regions with fewer pixels are joined with a neighbour"""
    ratio: float = 2.0
    """how many times fewer regions each level of the merged ones has than the one below it; the last level has one region, which is left out"""
    longest: int = 1024
    """larger pictures are shrunk until their longer side has this many pixels; their regions are enlarged again"""

    def __post_init__(self) -> None:
        if not self.coarseness or list(self.coarseness) != sorted(set(self.coarseness)):
            raise BadInput("proposer.coarseness", f"{self.coarseness}", "ascending numbers", "Change them.")
        check_range("proposer.coarseness", self.coarseness[0], 0)
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
        leaves, *coarser = graph_regions(small, settings.coarseness, settings.sigma, settings.smallest)
        merges, scores = hierarchy(small, leaves)
        n = int(leaves.max()) + 1
        numbers = [n]
        while (fewer := int(numbers[-1] / settings.ratio)) > 1:
            numbers.append(fewer)
        smallest, *larger = cuts(n, merges, numbers)
        # regions of the higher scales are not ranked
        levels, ranked = [smallest], scores.tolist()
        for of_leaves in nested(leaves, coarser):
            levels.append(len(ranked) + of_leaves)
            ranked += [0.0] * (int(of_leaves.max()) + 1)
        return Regions.of_levels(_enlarged(leaves, size_hw), levels + larger, np.array(ranked)).without_repeats()

    def regions(self, prepared: Regions) -> Regions:
        """See `wsss.regions.proposer.Proposer`."""
        return prepared


def _shrunk(image: UInt8[np.ndarray, "h w 3"], longest: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    height, width = image.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _enlarged(regions: Int32[np.ndarray, "h2 w2"], size_hw: tuple[int, int]) -> Int32[np.ndarray, "h w"]:
    """The regions at the picture's size: of each pixel, the pixel under its centre."""
    rows, columns = (
        (2 * np.arange(large) + 1) * small // (2 * large) for large, small in zip(size_hw, regions.shape, strict=True)
    )
    return regions[rows[:, None], columns]
