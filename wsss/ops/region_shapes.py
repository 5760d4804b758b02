"""Shapes of regions: erosion, suppression of repeated masks, and painting (ModuSeg: arXiv 2604.07021)."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

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


def distinct(
    masks: Bool[np.ndarray, "n h w"],
    labels: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    most_overlap: float = MOST_OVERLAP,
) -> Int[np.ndarray, " k"]:
    """Masks that repeat no better mask of the same label, as indices by descending score; equal scores keep their order.

    A mask is dropped if its overlap |A & B| / (|A or B| + 1e-8) with a kept one of its label is above the limit.
    """
    packed = np.packbits(masks.reshape(len(masks), masks[0].size if len(masks) else 0), axis=1)
    # whole words, for counts of eight bytes at a time
    words = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
    areas = np.bitwise_count(words).sum(1, dtype=np.int64)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        rivals = [other for other in kept if labels[other] == labels[index]]
        shared = np.bitwise_count(words[rivals] & words[index]).sum(1, dtype=np.int64)
        overlap = shared / (areas[rivals] + areas[index] - shared + 1e-8)
        if not (overlap > most_overlap).any():
            kept.append(int(index))
    return np.array(kept, np.int64)


def paint(masks: Bool[np.ndarray, "n h w"], size_hw: Sequence[int]) -> Int[np.ndarray, "h w"]:
    """The first mask that covers each pixel, as its index; -1 where there is none."""
    painted = np.full(tuple(size_hw), -1, np.int64)
    for index in range(len(masks) - 1, -1, -1):
        painted[masks[index]] = index
    return painted
