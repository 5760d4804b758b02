"""Boxes around the regions of a small map (CLIP-ES: Lin et al., CVPR 2023; TagCLIP: Lin et al., AAAI 2024)."""

import cv2
import numpy as np

from wsss.arrays import Bool, Float


def box_mask(scores: Float[np.ndarray, "h w"], threshold: float) -> Bool[np.ndarray, "h w"]:
    """True inside the bounding boxes of the regions above a threshold.

    Regions are 8-connected cells with trunc(255 m) > trunc(threshold * max trunc(255 m)). A box ends before
    min(x + width, w - 1), so the last row and the last column are never inside, as published.

    Args:
        scores: float32 m in [0, 1].
        threshold: fraction of the maximum.
    """
    grey = (scores.astype(np.float32) * np.float32(255)).astype(np.uint8)
    height, width = grey.shape
    regions = cv2.connectedComponentsWithStats((grey > int(threshold * grey.max())).astype(np.uint8), connectivity=8)
    inside = np.zeros(grey.shape, bool)
    for left, top, across, down, _ in regions[2][1:]:
        inside[top : min(top + down, height - 1), left : min(left + across, width - 1)] = True
    return inside
