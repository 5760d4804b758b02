"""Shapes of regions: erosion, and suppression of repeated ones (ModuSeg: arXiv 2604.07021)."""

from typing import NamedTuple

import cv2
import numpy as np

from wsss.arrays import Bool, Float, Int, UInt8

# published: 20 erosions by a 3x3 square, for pictures of about 500 pixels
EROSION, FEWEST_PIXELS, MOST_OVERLAP = 20, 300, 0.4


class LabelledRegions(NamedTuple):
    """Regions of a label map.

    Attributes:
        labels: the label of each region, (n,).
        masks: their pixels, (n, h, w).
    """

    labels: UInt8[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n h w"]


def eroded_regions(
    labels: UInt8[np.ndarray, "h w"],
    *,
    erosion: int = EROSION,
    share: float | None = None,
    components: bool = False,
    fewest_pixels: int = FEWEST_PIXELS,
) -> LabelledRegions:
    """The inner parts of the regions of each label: classes in ascending order, then the background.

    A pixel is kept if all pixels within a distance (the larger of those along rows and columns) have its label. Pixels outside the
    picture count as having it, so the border of the picture erodes nothing.

    Args:
        labels: 0 is background, 255 belongs to no region.
        erosion: the distance in pixels.
        share: if given, the distance is this share of the square root of the region's area instead, rounded.
        components: each 8-connected component of a label is a region; otherwise all its pixels are one region.
        fewest_pixels: smaller regions are left out, after the erosion.
    """
    found, masks = [], []
    present = np.unique(labels)
    for label in [*present[(present > 0) & (present < 255)].tolist(), *present[present == 0].tolist()]:
        whole = labels == label
        inner = cv2.distanceTransform(whole.astype(np.uint8), cv2.DIST_C, 3) if not whole.all() else None
        for part in _components(whole) if components else [whole]:
            reach = erosion if share is None else round(share * float(np.sqrt(part.sum())))
            kept = part if inner is None else part & (inner > reach)
            if kept.sum() >= max(1, fewest_pixels):
                found.append(label)
                masks.append(kept)
    stacked = np.stack(masks) if masks else np.zeros((0, *labels.shape), bool)
    return LabelledRegions(np.array(found, np.uint8), stacked)


def _components(mask: Bool[np.ndarray, "h w"]) -> list[Bool[np.ndarray, "h w"]]:
    count, numbers = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [numbers == number for number in range(1, count)]


def without_small_parts(mask: Bool[np.ndarray, "h w"], fewest: int) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """A mask without small holes and islands, and whether it had any, as in Segment Anything (Kirillov et al., ICCV 2023).

    Holes, the 8-connected components of the other pixels, are filled if they have fewer pixels than `fewest`; then components of the mask
    that have fewer are removed, except for the largest one if all have fewer.
    """
    had = False
    for holes in (True, False):
        _, numbers, stats, _ = cv2.connectedComponentsWithStats((mask ^ holes).astype(np.uint8), connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        small = areas < fewest
        had |= bool(small.any())
        if not holes and small.all() and len(small):
            small[areas.argmax()] = False
        # number 0 is that of the pixels of no component
        mask = mask ^ np.concatenate([[False], small])[numbers]
    return mask, had


def distinct(
    shared: Int[np.ndarray, "n n"],
    labels: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    most_overlap: float = MOST_OVERLAP,
) -> Int[np.ndarray, " k"]:
    """Regions that repeat no better region of the same label, as indices by descending score; equal scores keep their order.

    A region is dropped if its overlap |A & B| / (|A or B| + 1e-8) with a kept one of its label is above the limit.

    Args:
        shared: number of pixels that two regions share (`Regions.intersections`).
        labels, scores: of each region.
        most_overlap: the limit.
    """
    areas = np.diagonal(shared)
    repeats = shared / (areas[:, None] + areas - shared + 1e-8) > most_overlap
    repeats &= labels[:, None] == labels
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not repeats[index, kept].any():
            kept.append(int(index))
    return np.array(kept, np.int64)
