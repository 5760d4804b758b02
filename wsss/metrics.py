"""Scores of label maps: confusion matrix, threshold sweep, and contour F-score.

Label maps are uint8 (H, W): 0 background, 1..C foreground classes, 255 ignored in the truth. The counts over a dataset are
one int64 array `counts` of constant size; `merge` adds the counts of another part of the dataset, so that several processes
can count. The scores are computed from the counts only.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Literal, NamedTuple, get_args

import numpy as np
from numba import njit

from wsss.arrays import Float, Int64, Shaped
from wsss.errors import BadInput
from wsss.ops.contour import boundary_counts

Convention = Literal["present", "nan", "zero", "icam", "devkit"]
Background = Literal["constant", "power"]

# Added to each union in conventions where a label that never occurs counts as 0: 1e-10 pixels in PSA's, SEAM's and camera-ready CLIMS's
# scripts; ICAM's script adds it to counts in units of 100 000 pixels.
_UNION_EPSILON = {"zero": 1e-10, "icam": 1e-5}


class ConfusionMatrix:
    """Counts of pixels by true label (rows) and predicted label (columns), background included."""

    def __init__(self, n_labels: int) -> None:
        """Start from zero, for labels 0..n_labels-1.

        Raises:
            BadInput: fewer than 1 or more than 255 labels.
        """
        self.n_labels = _checked_n_labels(n_labels)
        self.counts: Int64[np.ndarray, "n n"] = np.zeros((n_labels, n_labels), np.int64)

    def add(
        self,
        truth: Shaped[np.ndarray, "..."],
        prediction: Shaped[np.ndarray, "..."],
        where: str,
        unknown_as: int | None = None,
    ) -> None:
        """Count one picture.

        Args:
            truth: uint8 (h, w), 255 ignored.
            prediction: uint8 (h, w).
            where: name for error messages, for example the file of the prediction.
            unknown_as: label for a predicted 255 (IRNet scores its pseudo masks with 0); if it is None, a 255 is an
                error.

        Raises:
            BadInput: a map is not uint8 (h, w), the sizes differ, or a label is out of range. Then nothing is counted.
        """
        prediction = _checked_masks(truth, prediction, self.n_labels, where, unknown_as)
        pairs = truth.astype(np.uint16) * np.uint16(self.n_labels) + prediction
        # An ignored pixel's number is 255 n or more, which is beyond the n n pairs.
        counted = np.bincount(pairs.ravel(), minlength=self.counts.size)[: self.counts.size]
        self.counts += counted.reshape(self.counts.shape)

    def merge(self, counts: Shaped[np.ndarray, "..."]) -> None:
        """Add the `counts` of another part of the dataset.

        Raises:
            BadInput: they are not int64, or belong to another number of labels.
        """
        self.counts += _checked_counts(counts, self.counts, "confusion matrix")


class Ranks(NamedTuple):
    """What a threshold sweep knows of a picture: its labels at each of the swept values follow.

    Attributes:
        labels: uint8 (h, w), the label (1..C) of the first highest map; 0 in pictures without maps.
        ranks: uint8 or uint16 (h, w), the number of background scores below the highest map.
    """

    labels: Shaped[np.ndarray, "h w"]
    ranks: Shaped[np.ndarray, "h w"]


class ThresholdSweep:
    """Confusion matrices of class maps at many background scores, in one pass over the pictures.

    The prediction at a background score is the argmax over [background, maps], where ties go to the first: background iff
    the highest map is not above it, otherwise the class of the first highest map. So the rank of the highest map among the
    background scores is sufficient, and pixels are counted by truth, class of the highest map, and rank. The result equals
    that of scoring each background score separately, in the floating-point type of the maps.

    The background score is either a constant t ("constant", rounded to the type of the maps, as NumPy does in a concatenation), or
    (1 - max map)^alpha, computed in that type, for maps in [0, 1] ("power", CLIP-ES).
    """

    def __init__(self, values: Sequence[float], n_classes: int, background: Background = "constant") -> None:
        """Start from zero.

        Args:
            values: thresholds t or exponents alpha, ascending.
            n_classes: number of foreground classes C.
            background: what the values mean.

        Raises:
            BadInput: values that are not ascending and finite (exponents: positive), an unknown kind of background, or
                more than 254 classes.
        """
        if background not in get_args(Background):
            raise BadInput("background of a sweep", repr(background), "constant or power", "Choose one of these.")
        steps = np.asarray(values, np.float64)
        ascending = steps.ndim == 1 and steps.size and np.isfinite(steps).all() and (np.diff(steps) > 0).all()
        if not ascending or (background == "power" and steps[0] <= 0):
            wanted = "ascending thresholds" if background == "constant" else "ascending exponents above 0"
            raise BadInput("values of a sweep", str(list(values)), wanted, "Sort them, and remove duplicates.")
        n_labels = _checked_n_labels(n_classes + 1)
        self.values = tuple(steps.tolist())
        self.background: Background = background
        self.counts: Int64[np.ndarray, "n n ranks"] = np.zeros((n_labels, n_labels, steps.size + 1), np.int64)

    def add(
        self,
        truth: Shaped[np.ndarray, "..."],
        maps: Shaped[np.ndarray, "..."],
        classes: Shaped[np.ndarray, "..."],
        where: str,
    ) -> None:
        """Count one picture.

        Args:
            truth: uint8 (h, w), 255 ignored.
            maps: float16, float32 or float64 (k, h, w); with no maps (k = 0) all pixels are background.
            classes: integers (k,), the maps' classes, 0-based without background.
            where: name for error messages, for example the file of the maps.

        Raises:
            BadInput: sizes or types differ from the above, a label or class is out of range, a class occurs twice, a map
                contains NaN, or values outside [0, 1] while the background is a power. Then nothing is counted.
        """
        self.count(truth, self.ranked(truth, maps, classes, where))

    def ranked(
        self,
        truth: Shaped[np.ndarray, "..."],
        maps: Shaped[np.ndarray, "..."],
        classes: Shaped[np.ndarray, "..."],
        where: str,
    ) -> Ranks:
        """The ranks of one picture, without counting it; arguments and errors as for `add`."""
        _check_truth(truth, len(self.counts), where)
        self._check_layout(truth, maps, classes, where)
        ranks = np.zeros(truth.shape, np.min_scalar_type(len(self.values)))
        labels = np.zeros(truth.shape, np.uint8)
        if not maps.size:
            return Ranks(labels, ranks)
        limits = _highest_background(self.values, self.background, maps.dtype)
        if maps.dtype == np.float16:  # numba does not support it; float32 represents each of its values
            maps, limits = maps.astype(np.float32), limits.astype(np.float32)
        self._check_values(maps, where)
        flat = np.ascontiguousarray(maps).reshape(len(maps), -1)
        _rank(flat, classes.astype(np.uint8) + np.uint8(1), limits, labels.reshape(-1), ranks.reshape(-1))
        return Ranks(labels, ranks)

    def count(self, truth: Shaped[np.ndarray, "..."], ranked: Ranks) -> None:
        """Count one picture, whose truth is that which it was ranked with."""
        _count_ranks(truth.ravel(), ranked.labels.ravel(), ranked.ranks.ravel(), self.counts)

    def labelled(self, ranked: Ranks, value: float) -> Shaped[np.ndarray, "h w"]:
        """The labels of one picture, uint8 (h, w), at one of the swept values."""
        place = self.values.index(value)
        limit = place if self.background == "constant" else len(self.values) - 1 - place
        return np.where(ranked.ranks > limit, ranked.labels, np.uint8(0))

    def merge(self, counts: Shaped[np.ndarray, "..."]) -> None:
        """Add the `counts` of another part of the dataset, swept with the same values.

        Raises:
            BadInput: they are not int64, or belong to another number of classes or values.
        """
        self.counts += _checked_counts(counts, self.counts, "threshold sweep")

    def matrices(self) -> Int64[np.ndarray, "t n n"]:
        """The confusion matrix of each value, in the order of `values`."""
        above = np.flip(np.flip(self.counts, 2).cumsum(2), 2)  # of rank r or more
        matrices = np.moveaxis(above[:, :, 1:], 2, 0).copy()
        matrices[:, :, 0] = above[:, :, 0].sum(1) - matrices.sum(2)
        # A higher exponent gives a lower background score: limits ascend while exponents descend.
        return matrices[::-1] if self.background == "power" else matrices

    def scores(self, convention: Convention = "present") -> list["Scores"]:
        """The scores of each value, in the order of `values`."""
        return [scores(matrix, convention) for matrix in self.matrices()]

    def best(self, convention: Convention = "present", first_peak: bool = False) -> tuple[float, "Scores"]:
        """The value with the highest mIoU (the lowest one if several are equal), and its scores.

        With `first_peak`, the search ends at the first value that is not better than the previous one, as in QA-CLIMS,
        which may be a local maximum.

        Raises:
            BadInput: the mIoU is undefined at every value, because nothing was counted, or by the convention.
        """
        best: tuple[float, Scores] | None = None
        highest = -math.inf
        for value, scored in zip(self.values, self.scores(convention), strict=True):
            if scored.miou is not None and scored.miou > highest:
                best, highest = (value, scored), scored.miou
            elif first_peak and best is not None:
                break
        if best is None:
            raise BadInput(
                "threshold sweep",
                f"no defined mIoU with the convention {convention}",
                "at least one",
                "Score pictures with true masks.",
            )
        return best

    def _check_layout(self, truth: np.ndarray, maps: np.ndarray, classes: np.ndarray, where: str) -> None:
        if maps.shape[1:] != truth.shape or maps.dtype not in (np.float16, np.float32, np.float64):
            raise BadInput(
                where,
                f"{maps.dtype} maps of shape {maps.shape}",
                f"floating maps of shape (k, {truth.shape[0]}, {truth.shape[1]}), the size of the truth",
                "Resize the maps to the picture first.",
            )
        if classes.shape != maps.shape[:1] or classes.dtype.kind not in "iu":
            raise BadInput(
                where,
                f"{classes.dtype} classes of shape {classes.shape}",
                f"one integer for each of the {len(maps)} maps",
                "Write classes and maps together.",
            )
        n_classes = len(self.counts) - 1
        if len(set(classes.tolist())) < len(classes) or not all(0 <= c < n_classes for c in classes.tolist()):
            raise BadInput(
                where,
                f"classes {classes.tolist()}",
                f"distinct classes in 0..{n_classes - 1}",
                "Check that the maps were made for this dataset.",
            )

    def _check_values(self, maps: np.ndarray, where: str) -> None:
        highest = maps.max()
        if math.isnan(highest) or (self.background == "power" and not 0 <= maps.min() <= highest <= 1):
            raise BadInput(
                where,
                f"maps with values from {maps.min()} to {highest}",
                "numbers in [0, 1]" if self.background == "power" else "numbers, not NaN",
                "Make the maps again, and check how they are normalised.",
            )


class ContourCounts:
    """Counts for the contour F-score: matched and total outline pixels of each foreground class (ICAM's protocol).

    The columns are those of `wsss.ops.contour.boundary_counts`.
    """

    def __init__(self, n_classes: int, threshold: float = 0.008) -> None:
        """Start from zero, for foreground classes 1..n_classes; `threshold` as in `wsss.ops.contour.tolerance_radius`.

        Raises:
            BadInput: more than 254 classes.
        """
        self.n_labels = _checked_n_labels(n_classes + 1)
        self.threshold = threshold
        self.counts: Int64[np.ndarray, "c 4"] = np.zeros((n_classes, 4), np.int64)

    def add(
        self,
        truth: Shaped[np.ndarray, "..."],
        prediction: Shaped[np.ndarray, "..."],
        where: str,
        unknown_as: int | None = None,
    ) -> None:
        """Count one picture; arguments and errors as in `ConfusionMatrix.add`, but a true 255 counts as background."""
        prediction = _checked_masks(truth, prediction, self.n_labels, where, unknown_as)
        self.counts += boundary_counts(truth, prediction, len(self.counts), self.threshold)

    def merge(self, counts: Shaped[np.ndarray, "..."]) -> None:
        """Add the `counts` of another part of the dataset.

        Raises:
            BadInput: they are not int64, or belong to another number of classes.
        """
        self.counts += _checked_counts(counts, self.counts, "contour counts")


@dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix: shares in [0, 1], None if undefined (0 / 0).

    `dataclasses.asdict` converts it for JSON.

    Attributes:
        convention: of `miou` and `iou`, see `scores`.
        miou: mean intersection over union.
        n_scored: number of labels in that mean.
        pixel_accuracy: share of all pixels that are correct.
        mean_accuracy: mean recall of the labels in the truth.
        frequency_weighted_iou: mean intersection over union, weighted by the frequency of the labels in the truth.
        iou: per label, background first.
        precision: per label, share of its predicted pixels that are correct.
        recall: per label, share of its true pixels that are found; also called class accuracy.
        irnet_background_fp: 1 - truth / union of the background, which IRNet prints as its false positives.
        irnet_background_fn: 1 - predicted / union of the background, which IRNet prints as its false negatives.
        irnet_foreground_fp: mean of 1 - truth / union over the foreground classes; undefined if a class never occurs.
        irnet_foreground_fn: mean of 1 - predicted / union over the foreground; likewise.
        clims_fp: mean of (predicted - correct) / union over the foreground classes as in camera-ready CLIMS; a class that
            never occurs counts as 0.
        clims_fn: mean of (truth - correct) / union over the foreground classes; likewise.
        background_among_foreground: share of the predicted foreground pixels that are background; called among_predfg_bg
            in CLIMS and QA-CLIMS.
    """

    convention: Convention
    miou: float | None
    n_scored: int
    pixel_accuracy: float | None
    mean_accuracy: float | None
    frequency_weighted_iou: float | None
    iou: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    irnet_background_fp: float | None
    irnet_background_fn: float | None
    irnet_foreground_fp: float | None
    irnet_foreground_fn: float | None
    clims_fp: float | None
    clims_fn: float | None
    background_among_foreground: float | None


def scores(counts: Int64[np.ndarray, "n n"], convention: Convention = "present") -> Scores:
    """All scores of a confusion matrix (rows truth, columns prediction, background first).

    The conventions for the mean IoU differ in the treatment of labels that do not occur; if all occur in the truth, they agree:

    - "present": mean over the labels in the truth (deeplab-pytorch, VWL, CLIP-ES);
    - "nan": mean over the labels in truth or prediction (ChainerCV, hence IRNet, CLIMS, QA-CLIMS; mmseg);
    - "zero": mean over all labels, where one that never occurs counts as 0 (PSA, SEAM, camera-ready CLIMS);
    - "icam": the same with 1e-5 instead of 1e-10 pixels added to each union, which matters only for tiny datasets (ICAM);
    - "devkit": mean over all labels, undefined if one never occurs (PASCAL VOC development kit).

    Raises:
        BadInput: unknown convention.
    """
    _check_convention(convention, "mIoU")
    right, truth, predicted = (x.astype(np.float64) for x in (counts.diagonal(), counts.sum(1), counts.sum(0)))
    union, in_truth = truth + predicted - right, truth > 0
    never_empty = union[1:] + _UNION_EPSILON["zero"]
    with np.errstate(divide="ignore", invalid="ignore"):
        iou, recall, total = right / union, right / truth, truth.sum()
        scored = {"present": in_truth, "nan": union > 0}.get(convention, np.ones_like(in_truth))
        reported = right / (union + _UNION_EPSILON[convention]) if convention in _UNION_EPSILON else iou
        irnet_fp, irnet_fn = 1 - truth / union, 1 - predicted / union
        return Scores(
            convention=convention,
            miou=_mean(reported[scored]),
            n_scored=int(scored.sum()),
            pixel_accuracy=_defined(right.sum() / total),
            mean_accuracy=_mean(recall[in_truth]),
            frequency_weighted_iou=_defined((truth[in_truth] * iou[in_truth]).sum() / total),
            iou=_each(reported),
            precision=_each(right / predicted),
            recall=_each(recall),
            irnet_background_fp=_defined(irnet_fp[0]),
            irnet_background_fn=_defined(irnet_fn[0]),
            irnet_foreground_fp=_mean(irnet_fp[1:]),
            irnet_foreground_fn=_mean(irnet_fn[1:]),
            clims_fp=_mean((predicted - right)[1:] / never_empty),
            clims_fn=_mean((truth - right)[1:] / never_empty),
            background_among_foreground=_defined(counts[0, 1:].sum() / predicted[1:].sum()),
        )


def coverage(counts: Int64[np.ndarray, "n n"], labels: Sequence[str], n_scored: int) -> str | None:
    """A remark on labels that do not occur in the truth, and so are missing from a mean IoU or distort it; None if all occur.

    Args:
        counts: confusion matrix with the truth in rows.
        labels: their names, background first.
        n_scored: number of labels in the mean.
    """
    absent = [name for name, occurs in zip(labels, counts.sum(1) > 0, strict=True) if not occurs]
    if not absent:
        return None
    named = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
    verb, counted = ("does", "counts") if len(absent) == 1 else ("do", "count")
    extra = f", yet {counted} in the mean" if n_scored == len(labels) else ""
    return f"mIoU over {n_scored} of {len(labels)} labels ({named} {verb} not occur in the truth{extra})"


@dataclass(frozen=True)
class ContourScores:
    """Contour scores: shares in [0, 1], per foreground class in the order of the labels.

    `dataclasses.asdict` converts it for JSON.

    Attributes:
        convention: of `mean_f` and `f`, see `contour_scores`.
        mean_f: mean of `f` over the classes that the convention includes; None if there are none.
        n_scored: number of classes in that mean.
        f: harmonic mean of precision and recall, 0 if both are 0.
        precision: share of the predicted outline within the tolerance of a true one.
        recall: share of the true outline within the tolerance of a predicted one.
    """

    convention: Convention
    mean_f: float | None
    n_scored: int
    f: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]


def contour_scores(counts: Int64[np.ndarray, "c 4"], convention: Convention = "icam") -> ContourScores:
    """Contour F-scores of outline pixels summed over the dataset, as in ICAM.

    A class whose outline occurs in only one of truth and prediction has F = 0. DAVIS averages the F of single pictures instead,
    so the two are not comparable. The conventions are those of the mean IoU, applied to classes without any outline; if all
    classes have outlines in the truth, they agree:

    - "present": mean over the classes in the truth;
    - "nan": mean over the classes in truth or prediction;
    - "icam" (ICAM), "zero", "devkit": mean over all classes, where one that is in neither counts as 1.

    Raises:
        BadInput: unknown convention.
    """
    _check_convention(convention, "contour F-score")
    truth_matched, prediction_matched, truth, prediction = counts.T.astype(np.float64)
    in_either = (truth > 0) | (prediction > 0)
    scored = {"present": truth > 0, "nan": in_either}.get(convention, np.ones_like(in_either))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(prediction > 0, prediction_matched / prediction, 1.0)
        recall = np.where(truth > 0, truth_matched / truth, 1.0)
        f = np.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0.0)
        mean = _mean(f[scored])
    shown = in_either | scored
    of_each = (_each(np.where(shown, values, np.nan)) for values in (f, precision, recall))
    return ContourScores(convention, mean, int(scored.sum()), *of_each)


@dataclass(frozen=True, eq=False)
class Scored:
    """The result of `score`.

    Attributes:
        scores: intersection over union and the other scores of a confusion matrix.
        contour: contour F-scores, None if they were not requested.
        confusion: pixels by true (rows) and predicted label, background first.
    """

    scores: Scores
    contour: ContourScores | None
    confusion: Int64[np.ndarray, "n n"]

    @property
    def miou(self) -> float | None:
        """Mean intersection over union in [0, 1], over all pictures together."""
        return self.scores.miou

    @property
    def iou(self) -> tuple[float | None, ...]:
        """Intersection over union of each label, background first."""
        return self.scores.iou

    @property
    def contour_f(self) -> float | None:
        """Mean contour F-score of the classes in [0, 1]."""
        return self.contour.mean_f if self.contour else None


def score(
    predictions: Iterable[Shaped[np.ndarray, "..."]],
    truths: Iterable[Shaped[np.ndarray, "..."]],
    n_classes: int,
    *,
    convention: Convention = "present",
    unknown_as: int | None = None,
    contour: bool = True,
) -> Scored:
    """Scores of label maps over a whole dataset (mIoU of PASCAL VOC, Everingham et al., IJCV 2015; contour F-score as in ICAM).

    Pixels of all pictures are counted together, which gives the mIoU that papers report, not a mean over pictures.

    Args:
        predictions: uint8 (h, w): 0 background, 1..n_classes. A generator is accepted.
        truths: uint8 (h, w), likewise; 255 is ignored in the mIoU, and background in the contour F-score.
        n_classes: number of foreground classes, at most 254.
        convention: how classes that do not occur count in the means; see `scores`.
        unknown_as: label for a predicted 255; if it is None, a 255 is an error. IRNet scores pseudo masks with 0.
        contour: also measure the contour F-score.

    Raises:
        BadInput: no pictures, different numbers of predictions and truths, or a map of the wrong type, size or labels.

    Example:
        >>> import numpy as np
        >>> import wsss
        >>> truth = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)
        >>> prediction = np.array([[0, 0, 0, 1], [0, 0, 1, 1]], np.uint8)
        >>> found = wsss.score([prediction], [truth], n_classes=1)
        >>> [round(iou, 3) for iou in found.iou], round(found.miou, 3)
        ([0.8, 0.667], 0.733)
    """
    matrix, contours = ConfusionMatrix(n_classes + 1), ContourCounts(n_classes)
    missing, count = object(), 0
    for prediction, truth in zip_longest(predictions, truths, fillvalue=missing):
        if prediction is missing or truth is missing:
            lacking = "predictions" if prediction is missing else "truths"
            raise BadInput(lacking, f"{count}", "as many predictions as truths", "Give both for each picture.")
        for name, labels in (("prediction", prediction), ("truth", truth)):
            if not isinstance(labels, np.ndarray):
                found = type(labels).__name__
                raise BadInput(f"{name} {count}", found, "a uint8 array (h, w)", "Convert it with np.asarray.")
        assert isinstance(truth, np.ndarray)
        assert isinstance(prediction, np.ndarray)
        matrix.add(truth, prediction, f"picture {count}", unknown_as)
        if contour:
            contours.add(truth, prediction, f"picture {count}", unknown_as)
        count += 1
    if count == 0:
        raise BadInput("predictions", "none", "at least one picture", "Give some.")
    outlines = contour_scores(contours.counts, convention) if contour else None
    return Scored(scores(matrix.counts, convention), outlines, matrix.counts)


def _check_convention(convention: str, score: str) -> None:
    if convention not in get_args(Convention):
        raise BadInput(f"convention of the {score}", repr(convention), " or ".join(get_args(Convention)), "Choose one.")


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _mean(values: np.ndarray) -> float | None:
    return _defined(values.sum() / np.float64(values.size))


def _each(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(_defined(value) for value in values)


def _checked_n_labels(n_labels: int) -> int:
    if not 1 <= n_labels <= 255:
        raise BadInput(
            "number of labels",
            f"{n_labels} with background",
            "1 to 255",
            "8-bit masks cannot hold more, since 255 means ignored.",
        )
    return n_labels


def _checked_counts(counts: np.ndarray, expected: np.ndarray, what: str) -> np.ndarray:
    if counts.shape != expected.shape or counts.dtype != np.int64:
        raise BadInput(
            f"counts to merge into a {what}",
            f"{counts.dtype} of shape {counts.shape}",
            f"int64 of shape {expected.shape}",
            "Score all parts with the same settings.",
        )
    return counts


def _check_truth(truth: np.ndarray, n_labels: int, where: str) -> None:
    if truth.dtype != np.uint8 or truth.ndim != 2:
        raise BadInput(
            where,
            f"a truth of type {truth.dtype} and shape {truth.shape}",
            "uint8 labels (h, w)",
            "Read the mask as one channel of labels, not as the colours of its palette.",
        )
    if (truth + np.uint8(1)).max(initial=0) > n_labels:  # 255 wraps to 0
        labels = [label for label in np.unique(truth).tolist() if n_labels <= label < 255]
        raise BadInput(
            where,
            f"true labels {labels}",
            f"labels 0..{n_labels - 1}, or 255 for ignored pixels",
            "Check that the truth and the list of classes belong to the same dataset.",
        )


def _checked_masks(
    truth: np.ndarray, prediction: np.ndarray, n_labels: int, where: str, unknown_as: int | None
) -> np.ndarray:
    """The prediction, with 255 replaced by `unknown_as`."""
    _check_truth(truth, n_labels, where)
    if prediction.dtype != np.uint8 or prediction.shape != truth.shape:
        raise BadInput(
            where,
            f"a prediction of type {prediction.dtype} and shape {prediction.shape}",
            f"uint8 labels of shape {truth.shape}, the size of the truth",
            "Predict at the size of the picture.",
        )
    if unknown_as is not None:
        prediction = np.where(prediction == 255, np.uint8(unknown_as), prediction)
    if prediction.max(initial=0) >= n_labels:
        labels = [label for label in np.unique(prediction).tolist() if label >= n_labels]
        do = (
            "Say which label 255 stands for (unknown_as)."
            if labels == [255]
            else "Check that it was made for these classes."
        )
        raise BadInput(where, f"predicted labels {labels}", f"labels 0..{n_labels - 1}", do)
    return prediction


@lru_cache(maxsize=32)
def _highest_background(values: tuple[float, ...], background: Background, dtype: np.dtype) -> Float[np.ndarray, "t"]:
    """For each background score, the largest value of the highest map that still counts as background; in ascending order."""
    if background == "constant":
        return np.asarray(values, dtype)
    # Non-negative floats are ordered like their bit patterns, so bisection over bit patterns finds the last one that is not
    # above the background. The power is computed by NumPy on an array, as for a whole map, since its rounding matters.
    bits = np.dtype(f"i{dtype.itemsize}")
    limits = []
    for alpha in reversed(values):
        low, high = np.zeros(1, bits), np.ones(1, dtype).view(bits)
        while high[0] - low[0] > 1:
            middle = low + (high - low) // 2
            best = middle.view(dtype)
            if best[0] > np.power(1 - best, alpha)[0]:
                high = middle
            else:
                low = middle
        limits.append(low.view(dtype)[0])
    return np.array(limits, dtype)


@njit(nogil=True, cache=True)
def _rank(maps: np.ndarray, of_maps: np.ndarray, limits: np.ndarray, labels: np.ndarray, ranks: np.ndarray) -> None:
    """Find the label of the first highest map, and the number of limits below the value of that map."""
    rank = 0
    for i in range(labels.size):
        best, label = maps[0, i], of_maps[0]
        for k in range(1, len(maps)):
            if maps[k, i] > best:
                best, label = maps[k, i], of_maps[k]
        # Neighbouring pixels have similar ranks, so the search starts at the previous rank.
        while rank < limits.size and limits[rank] < best:
            rank += 1
        while rank > 0 and limits[rank - 1] >= best:
            rank -= 1
        labels[i], ranks[i] = label, rank


@njit(nogil=True, cache=True)
def _count_ranks(truth: np.ndarray, labels: np.ndarray, ranks: np.ndarray, counts: np.ndarray) -> None:
    """Count pixels by truth, label and rank."""
    for i in range(truth.size):
        if truth[i] != 255:
            counts[truth[i], labels[i], ranks[i]] += 1
