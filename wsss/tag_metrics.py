"""Scores of tags: average precision, precision, recall and F1 of multi-label classification.

Truth and tags are bool (n, c): pictures by classes. The conventions are those of TagCLIP (Lin et al., AAAI 2024).
"""

from typing import Literal, NamedTuple

import numpy as np

from wsss.arrays import Bool, Float

Mode = Literal["overall", "category", "sample"]


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]; `f1` is NaN where precision and recall are 0.

    Attributes:
        f1: harmonic mean of precision and recall.
        precision: share of the predicted tags that are correct.
        recall: share of the true tags that are predicted.
    """

    f1: float
    precision: float
    recall: float


def average_precision(truth: Bool[np.ndarray, "n c"], scores: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " c"]:
    """Mean of the precision at each picture that has the class, with pictures sorted by descending score, without interpolation.

    Pictures with equal scores keep their order. A class that no picture has gets 0, as published, and lowers
    the mean over classes (mAP).
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(truth, order, 0)
    precision = hits.cumsum(0) / np.arange(1, len(truth) + 1)[:, None]
    return (precision * hits).sum(0) / np.maximum(hits.sum(0), 1)


def precision_recall(truth: Bool[np.ndarray, "n c"], tags: Bool[np.ndarray, "n c"], mode: Mode) -> PrecisionRecall:
    """Precision, recall and F1 of tags.

    0 / 0 counts as 0, for example if nothing is tagged.

    Args:
        truth: true tags.
        tags: predicted tags.
        mode: `overall` pools all counts; `category` averages precision and recall over classes, and takes F1 of the
            means; `sample` does the same over pictures.
    """
    axis = {"overall": None, "category": 0, "sample": 1}[mode]
    hits = (truth & tags).sum(axis)
    precision, recall = (float(np.mean(hits / np.maximum(total.sum(axis), 1))) for total in (tags, truth))
    both = precision + recall
    return PrecisionRecall(2 * precision * recall / both if both else float("nan"), precision, recall)
