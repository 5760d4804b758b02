"""Instances from displacement fields (IRNet, Ahn et al., CVPR 2019): cells displaced to the same position form an instance."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from wsss.arrays import Bool, Float, Float32, Int32, Integer

_STEPS = 300
# length in cells below which a cell counts as not displaced
_SHORT = 2.5


class Detections(NamedTuple):
    """The fragments of masks with their scores."""

    scores: Float32[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n h w"]
    classes: Int32[np.ndarray, " n"]
    """0-based, without background"""


def centroids(displacement: Float[np.ndarray, "2 h w"], steps: int = _STEPS) -> Int32[np.ndarray, "2 h w"]:
    """The position that each cell reaches by following the displacements step by step.

    Between cells the field is interpolated bilinearly; positions are clipped to the map, and rounded half to even at the end.

    Args:
        displacement: dy and dx in cells.

    Returns:
        Row and column of each cell's centroid.
    """
    field = displacement.astype(np.float64)
    limits = np.array(field.shape[1:]).reshape(2, 1, 1) - 1
    position = np.indices(field.shape[1:]).astype(np.float32)
    for _ in range(steps):
        top, left = np.floor(position).astype(np.intp)
        bottom, right = np.ceil(position).astype(np.intp)
        down, across = position - np.floor(position)
        upper = field[:, top, left] * (1 - across) + field[:, top, right] * across
        lower = field[:, bottom, left] * (1 - across) + field[:, bottom, right] * across
        moved = np.clip(position + upper * (1 - down) + lower * down, 0, limits).astype(np.float32)
        if np.array_equal(moved, position):
            break
        position = moved
    return np.rint(position).astype(np.int32)


def instance_map(displacement: Float[np.ndarray, "2 h w"], steps: int = _STEPS) -> Int32[np.ndarray, "h w"]:
    """Instance of each cell, 0 .. n - 1.

    Cells that are displaced by less than 2.5 cells are centres. 4-connected centres form an instance, numbered in row-major order
    of their first cells. Each cell belongs to the instance that contains its centroid. Cells whose centroids are outside all centres
    form one instance, the first.

    Args:
        displacement: dy and dx in cells.
        steps: maximum number of steps.
    """
    row, column = centroids(displacement, steps)
    centres, _ = ndimage.label(np.sqrt((displacement**2).sum(0)) < _SHORT)
    return np.unique(centres[row, column], return_inverse=True)[1].reshape(row.shape).astype(np.int32)


def split_cams(cams: Float[np.ndarray, "k h w"], instances: Integer[np.ndarray, "h w"]) -> Float[np.ndarray, "k n h w"]:
    """Activation maps of each instance: those of the classes inside the instance, 0 elsewhere."""
    return cams[:, None] * (instances == np.arange(instances.max() + 1)[:, None, None])


def detections(
    scores: Float[np.ndarray, "m h w"],
    masks: Bool[np.ndarray, "m h w"],
    classes: Integer[np.ndarray, " m"],
    smallest: float = 0,
) -> Detections:
    """Split masks into detections: each 4-connected fragment is one; its score is the maximum inside it.

    Args:
        scores: 0 or more.
        masks: one for each map of scores.
        classes: 0-based class of each mask.
        smallest: fragments with fewer pixels get score 0; 1 % of the picture in IRNet.

    Returns:
        Mask by mask, with fragments in row-major order of their first pixels.
    """
    found: list[tuple[float, np.ndarray, int]] = []
    for score, mask, label in zip(scores, masks, classes, strict=True):
        fragments, count = ndimage.label(mask)
        numbers = np.arange(1, count + 1)
        highest = ndimage.maximum(score, fragments, numbers) if count else []
        areas = np.bincount(fragments.ravel(), minlength=count + 1)[1:]
        for number, best, area in zip(numbers, highest, areas, strict=True):
            found.append((best if area >= smallest else 0.0, fragments == number, label))
    return Detections(
        np.array([score for score, _, _ in found], np.float32),
        np.array([mask for _, mask, _ in found], bool).reshape(-1, *masks.shape[1:]),
        np.array([label for _, _, label in found], np.int32),
    )
