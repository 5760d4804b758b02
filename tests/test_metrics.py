"""Scores against slow definitions, part by part against the whole, and what is refused."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq

from wsss.errors import BadInput
from wsss.metrics import (
    Background,
    ConfusionMatrix,
    ContourCounts,
    Convention,
    ThresholdSweep,
    contour_scores,
    scores,
)
from wsss.ops.contour import boundary_counts

CONVENTIONS: tuple[Convention, ...] = ("present", "nan", "zero", "icam", "devkit")
sizes = st.tuples(st.integers(1, 7), st.integers(1, 9))


def label_maps(shape: tuple[int, int], n_labels: int, ignored: bool) -> st.SearchStrategy[np.ndarray]:
    labels = st.integers(0, n_labels - 1)
    return arrays(np.uint8, shape, elements=labels | st.just(255) if ignored else labels)


@st.composite
def pairs(draw: st.DrawFn, n_labels: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """A few pictures of any sizes: truth and prediction."""
    shapes = draw(st.lists(sizes, min_size=1, max_size=4))
    return [(draw(label_maps(s, n_labels, True)), draw(label_maps(s, n_labels, False))) for s in shapes]


def slow_confusion(data: list[tuple[np.ndarray, np.ndarray]], n_labels: int) -> list[list[int]]:
    counts = [[0] * n_labels for _ in range(n_labels)]
    for truth, prediction in data:
        for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if t != 255:
                counts[t][p] += 1
    return counts


def confusion(data: list[tuple[np.ndarray, np.ndarray]], n_labels: int = 5) -> ConfusionMatrix:
    matrix = ConfusionMatrix(n_labels)
    for truth, prediction in data:
        matrix.add(truth, prediction, "drawn")
    return matrix


@given(pairs())
def test_confusion_counts_pixels(data: list[tuple[np.ndarray, np.ndarray]]) -> None:
    assert confusion(data).counts.tolist() == slow_confusion(data, 5)


@given(pairs(255))
def test_confusion_of_as_many_labels_as_masks_hold(data: list[tuple[np.ndarray, np.ndarray]]) -> None:
    assert confusion(data, 255).counts.tolist() == slow_confusion(data, 255)


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def mean(values: list[float | None]) -> float | None:
    """Plain mean: undefined if one of the values is, or if there are none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined and len(defined) == len(values) else None


def slow_scores(counts: list[list[int]]) -> dict[str, Any]:
    """From the definitions, a label at a time; the mean IoU of every convention."""
    labels = range(len(counts))
    right = [counts[c][c] for c in labels]
    truth = [sum(counts[c]) for c in labels]
    predicted = [sum(row[c] for row in counts) for c in labels]
    union = [truth[c] + predicted[c] - right[c] for c in labels]
    iou = [ratio(right[c], union[c]) for c in labels]
    recall = [ratio(right[c], truth[c]) for c in labels]
    occurring, total = [c for c in labels if truth[c]], sum(truth)
    fp, fn = ([None if not union[c] else 1 - side[c] / union[c] for c in labels] for side in (truth, predicted))
    foreground = labels[1:]
    return {
        "miou": {
            "present": mean([iou[c] for c in occurring]),
            "nan": mean([iou[c] for c in labels if union[c]]),
            "zero": mean([right[c] / (union[c] + 1e-10) for c in labels]),
            "icam": mean([right[c] / 1e5 / (union[c] / 1e5 + 1e-10) for c in labels]),
            "devkit": mean(iou),
        },
        "n_scored": {
            "present": len(occurring),
            "nan": sum(u > 0 for u in union),
            "zero": len(labels),
            "icam": len(labels),
            "devkit": len(labels),
        },
        "pixel_accuracy": ratio(sum(right), total),
        "mean_accuracy": mean([recall[c] for c in occurring]),
        "frequency_weighted_iou": ratio(sum(truth[c] * right[c] / union[c] for c in occurring), total),
        "iou": iou,
        "precision": [ratio(right[c], predicted[c]) for c in labels],
        "recall": recall,
        "irnet_background_fp": fp[0],
        "irnet_background_fn": fn[0],
        "irnet_foreground_fp": mean(fp[1:]),
        "irnet_foreground_fn": mean(fn[1:]),
        "clims_fp": mean([(predicted[c] - right[c]) / union[c] if union[c] else 0.0 for c in foreground]),
        "clims_fn": mean([(truth[c] - right[c]) / union[c] if union[c] else 0.0 for c in foreground]),
        "background_among_foreground": ratio(sum(counts[0][1:]), sum(predicted[1:])),
    }


@given(arrays(np.int64, st.integers(1, 6).map(lambda n: (n, n)), elements=st.just(0) | st.integers(0, 10**12)))
def test_scores_follow_their_definitions(counts: np.ndarray) -> None:
    expected = slow_scores(counts.tolist())
    for convention in CONVENTIONS:
        found = dataclasses.asdict(scores(counts, convention))
        assert json.loads(json.dumps(found, allow_nan=False)).keys() == found.keys()
        assert found.pop("convention") == convention
        assert found.pop("n_scored") == expected["n_scored"][convention]
        assert found.pop("miou") == pytest.approx(expected["miou"][convention], abs=1e-9)
        iou = found.pop("iou")
        if convention in ("zero", "icam"):
            assert [value or 0.0 for value in expected["iou"]] == pytest.approx(iou, abs=1e-4)
        else:
            assert iou == pytest.approx(tuple(expected["iou"]), abs=1e-9)
        for name, value in found.items():
            wanted = expected[name]
            assert value == pytest.approx(tuple(wanted) if isinstance(wanted, list) else wanted, abs=1e-9), name


def test_conventions_of_the_mean_iou() -> None:
    counts = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    counts[0, 2] = 4  # predicted, never true; label 3 never occurs
    iou = 6 / 13, 3 / 6
    assert scores(counts, "present").miou == pytest.approx(sum(iou) / 2)
    assert scores(counts, "nan").miou == pytest.approx(sum(iou) / 3)
    assert scores(counts, "zero").miou == pytest.approx(sum(iou) / 4)
    assert scores(counts, "devkit").miou is None
    assert scores(counts).convention == "present"


def test_nothing_counted_leaves_everything_undefined() -> None:
    scored = scores(np.zeros((3, 3), np.int64))
    assert scored.iou == scored.precision == scored.recall == (None, None, None)
    assert (scored.miou, scored.n_scored, scored.pixel_accuracy) == (None, 0, None)


@given(pairs(), st.integers(0, 4))
def test_confusion_of_parts_adds_up(data: list[tuple[np.ndarray, np.ndarray]], split: int) -> None:
    whole, part = confusion(data), confusion(data[:split])
    part.merge(confusion(data[split:]).counts)
    np.testing.assert_array_equal(part.counts, whole.counts)


def test_predicted_255_counts_as_the_label_named() -> None:
    truth, prediction = np.array([[0, 1, 255]], np.uint8), np.array([[255, 255, 255]], np.uint8)
    matrix = ConfusionMatrix(2)
    matrix.add(truth, prediction, "made up", unknown_as=0)
    assert matrix.counts.tolist() == [[1, 0], [1, 0]]
    assert prediction.tolist() == [[255, 255, 255]]


# Thresholds, their neighbours in each floating type, and what lies around them: ties in plenty.
THRESHOLDS = [0.0, 0.05, 0.1, 0.3, 0.6, 0.7]


def map_values(dtype: type) -> st.SearchStrategy[float]:
    values = np.array([*THRESHOLDS, 0.45, 1.0], dtype)
    near = [np.nextafter(values, dtype(side)) for side in (0, 1)]
    return st.sampled_from(np.concatenate([values, *near]).tolist())


@st.composite
def swept(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Truth, maps and classes (in any order) of a few pictures of any floating types."""
    pictures = []
    for shape in draw(st.lists(sizes, min_size=1, max_size=3)):
        dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
        classes = draw(st.lists(st.integers(0, 3), unique=True, max_size=3))
        maps = draw(arrays(dtype, (len(classes), *shape), elements=map_values(dtype)))
        pictures.append((draw(label_maps(shape, 5, True)), maps, np.array(classes, np.int16)))
    return pictures


def joined_prediction(background: np.ndarray, maps: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Argmax over the background in front of the maps, in the maps' own type."""
    joined = np.concatenate([background.astype(maps.dtype)[None], maps])
    assert joined.dtype == maps.dtype
    return np.append(0, classes + 1).astype(np.uint8)[joined.argmax(0)]


def separately(
    pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]], value: float, background: Background
) -> np.ndarray:
    matrix = ConfusionMatrix(5)
    for truth, maps, classes in pictures:
        if background == "constant" or not len(maps):
            plane = np.full(truth.shape, value, maps.dtype)
        else:
            plane = np.power(1 - maps.max(0), value)
        matrix.add(truth, joined_prediction(plane, maps, classes), "separately")
    return matrix.counts


def sweep_of(
    pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]], values: list[float], background: Background
) -> ThresholdSweep:
    sweep = ThresholdSweep(values, 4, background)
    for truth, maps, classes in pictures:
        sweep.add(truth, maps, classes, "swept")
    return sweep


@settings(deadline=None)
@given(swept(), st.sampled_from(["constant", "power"]))
def test_sweep_equals_scoring_each_value(
    pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]], background: Background
) -> None:
    values = THRESHOLDS if background == "constant" else [0.5, 1.0, 2.0, 3.0, 10.0]
    sweep = sweep_of(pictures, values, background)
    matrices = [separately(pictures, value, background) for value in values]
    np.testing.assert_array_equal(sweep.matrices(), matrices)
    assert sweep.scores("nan") == [scores(matrix, "nan") for matrix in matrices]

    parts = sweep_of(pictures[:1], values, background)
    parts.merge(sweep_of(pictures[1:], values, background).counts)
    np.testing.assert_array_equal(parts.matrices(), matrices)


def test_threshold_is_rounded_to_the_type_of_the_maps() -> None:
    truth, classes = np.zeros((1, 1), np.uint8), np.array([0])
    for dtype, foreground in ((np.float16, 0), (np.float32, 0), (np.float64, 1)):
        sweep = ThresholdSweep([0.3], 1)
        # 0.3 rounded up to float32 is above 0.3 itself, which only float64 sees.
        maps = np.full((1, 1, 1), np.float32(0.3) if dtype is not np.float16 else np.float16(0.3), dtype)
        sweep.add(truth, maps, classes, "made up")
        assert sweep.matrices()[0, 0, 1] == foreground


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_power_background_at_every_rounding(dtype: type) -> None:
    exponents = [0.5, *range(1, 11)]
    if dtype is np.float16:
        best = np.arange(np.ones(1, dtype).view(np.int16)[0] + 1, dtype=np.int16).view(dtype)
    else:
        bits = np.dtype(f"i{np.dtype(dtype).itemsize}")
        roots = [brentq(lambda m, e=exponent: m - (1 - m) ** e, 0, 1, xtol=1e-16) for exponent in exponents]
        near = np.array(roots, dtype).view(bits)[:, None] + np.arange(-3000, 3001, dtype=bits)
        best = np.concatenate([np.linspace(0, 1, 5000, dtype=dtype), near.view(dtype).ravel()])
    maps = best[None, None]
    truth = np.zeros(maps.shape[1:], np.uint8)
    sweep = ThresholdSweep([float(e) for e in exponents], 1, "power")
    sweep.add(truth, maps, np.array([0]), "every value")
    foreground = [(best > np.power(1 - best, exponent)).sum() for exponent in exponents]
    np.testing.assert_array_equal(sweep.matrices()[:, 0, 1], foreground)


def two_pictures() -> ThresholdSweep:
    """The mIoU rises, falls, and rises higher: 0.1 is the first peak, 0.4 the best."""
    sweep = ThresholdSweep([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 1)
    truth = np.array([[0, 1, 0, 0, 0, 1, 1, 1]], np.uint8)
    maps = np.array([[[0.05, 0.15, 0.35, 0.35, 0.35, 0.45, 0.6, 0.6]]], np.float32)
    sweep.add(truth, maps, np.array([0]), "made up")
    return sweep


def test_best_value_and_first_peak() -> None:
    sweep = two_pictures()
    curve = [scored.miou for scored in sweep.scores()]
    assert curve[0] < curve[1] > curve[2] < curve[4] > curve[5]
    assert sweep.best() == (0.4, sweep.scores()[4])
    assert sweep.best(first_peak=True) == (0.1, sweep.scores()[1])
    assert sweep.best("zero")[1].convention == "zero"


def test_best_takes_the_first_of_equals() -> None:
    sweep = ThresholdSweep([0.1, 0.2, 0.3], 1)
    sweep.add(np.array([[0, 1]], np.uint8), np.array([[[0.0, 1.0]]], np.float32), np.array([0]), "made up")
    assert sweep.best()[0] == sweep.best(first_peak=True)[0] == 0.1


def test_best_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="no defined mIoU with the convention devkit"):
        ThresholdSweep([0.1], 3).best("devkit")


@settings(deadline=None)
@given(pairs(4), st.integers(0, 4), st.sampled_from([0.008, 0.2, 2]))
def test_contour_of_parts_adds_up(data: list[tuple[np.ndarray, np.ndarray]], split: int, threshold: float) -> None:
    parts = [ContourCounts(3, threshold) for _ in range(2)]
    for i, (truth, prediction) in enumerate(data):
        parts[i < split].add(truth, prediction, "drawn")
    parts[0].merge(parts[1].counts)
    expected = sum(boundary_counts(truth, prediction, 3, threshold) for truth, prediction in data)
    np.testing.assert_array_equal(parts[0].counts, expected)


def test_contour_scores_by_hand() -> None:
    counts = np.array(
        [
            [6, 2, 8, 4],  # recall 3/4, precision 1/2
            [0, 0, 5, 0],  # only in the truth
            [0, 0, 0, 5],  # only predicted
            [0, 0, 0, 0],  # in neither
            [0, 0, 3, 3],  # nothing matches
        ]
    )
    scored = contour_scores(counts)
    assert scored.recall == (0.75, 0.0, 1.0, 1.0, 0.0)
    assert scored.precision == (0.5, 1.0, 0.0, 1.0, 0.0)
    assert scored.f == pytest.approx((0.6, 0.0, 0.0, 1.0, 0.0))
    assert scored.mean_f == pytest.approx(1.6 / 5)
    assert json.loads(json.dumps(dataclasses.asdict(scored), allow_nan=False))["f"][3] == 1.0


@pytest.mark.parametrize(
    ("convention", "mean", "n_scored", "in_neither"),
    [("present", 0.2, 3, None), ("nan", 0.15, 4, None), ("icam", 0.32, 5, 1.0), ("zero", 0.32, 5, 1.0)],
)
def test_contour_conventions(convention: Convention, mean: float, n_scored: int, in_neither: float | None) -> None:
    counts = np.array([[6, 2, 8, 4], [0, 0, 5, 0], [0, 0, 0, 5], [0, 0, 0, 0], [0, 0, 3, 3]])
    scored = contour_scores(counts, convention)
    assert (scored.n_scored, scored.f[3]) == (n_scored, in_neither)
    assert scored.mean_f == pytest.approx(mean)
    present = contour_scores(counts[[0, 1, 4]], convention)
    assert present.mean_f == pytest.approx(0.2), "they agree where all classes are in the truth"


def test_contour_of_no_class() -> None:
    assert contour_scores(np.zeros((2, 4), np.int64), "present").mean_f is None
    with pytest.raises(BadInput, match="convention of the contour F-score"):
        contour_scores(np.zeros((2, 4), np.int64), "other")  # type: ignore[arg-type]


def test_contour_ignored_truth_is_background() -> None:
    truth = np.zeros((9, 9), np.uint8)
    truth[3:6, 3:6] = 1
    banded = truth.copy()
    banded[2], banded[6] = 255, 255
    for prediction in (truth, np.roll(truth, 2, 1)):
        plain, with_band = ContourCounts(1, 1), ContourCounts(1, 1)
        plain.add(truth, prediction, "plain")
        with_band.add(banded, prediction, "banded")
        np.testing.assert_array_equal(plain.counts, with_band.counts)
    unknown = ContourCounts(1, 1)
    unknown.add(truth, np.where(truth == 1, np.uint8(255), np.uint8(0)), "unknown", unknown_as=1)
    assert contour_scores(unknown.counts).mean_f == 1.0


GOOD = np.array([[0, 1], [2, 255]], np.uint8)
PREDICTED = np.array([[0, 1], [2, 2]], np.uint8)
BAD_MASKS: dict[str, tuple[np.ndarray, np.ndarray, str]] = {
    "truth above": (np.full((2, 2), 3, np.uint8), PREDICTED, r"true labels \[3\]; expected labels 0..2, or 255"),
    "truth type": (GOOD.astype(np.int64), PREDICTED, "int64"),
    "truth colours": (np.zeros((2, 2, 3), np.uint8), PREDICTED, r"\(2, 2, 3\)"),
    "sizes": (GOOD, PREDICTED[:1], r"shape \(1, 2\); expected uint8 labels of shape \(2, 2\)"),
    "prediction above": (GOOD, PREDICTED + np.uint8(1), r"predicted labels \[3\]; expected labels 0..2\."),
    "prediction above where ignored": (GOOD, np.array([[0, 0], [0, 7]], np.uint8), r"predicted labels \[7\]"),
    "prediction unknown": (GOOD, GOOD, r"predicted labels \[255\].*unknown_as"),
    "prediction type": (GOOD, PREDICTED.astype(np.int32), "int32"),
}


@pytest.mark.parametrize("what", BAD_MASKS)
def test_bad_masks_are_refused_and_not_counted(what: str) -> None:
    truth, prediction, message = BAD_MASKS[what]
    for accumulator in (ConfusionMatrix(3), ContourCounts(2)):
        with pytest.raises(BadInput, match=f"^some file: found .*{message}"):
            accumulator.add(truth, prediction, "some file")
        assert not accumulator.counts.any()


MAPS = np.full((1, 2, 2), 0.5, np.float32)
BAD_MAPS: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, str]] = {
    "truth above": (np.full((2, 2), 3, np.uint8), MAPS, np.array([0]), r"true labels \[3\]"),
    "sizes": (GOOD, MAPS[:, :1], np.array([0]), r"shape \(1, 1, 2\); expected floating maps of shape \(k, 2, 2\)"),
    "integers": (GOOD, MAPS.astype(np.int32), np.array([0]), "int32 maps"),
    "one map less": (GOOD, MAPS, np.array([0, 1]), r"classes of shape \(2,\); expected one integer for each of the 1"),
    "classes no integers": (GOOD, MAPS, np.array([0.0]), "float64 classes"),
    "class above": (GOOD, MAPS, np.array([2]), r"classes \[2\]; expected distinct classes in 0..1"),
    "class negative": (GOOD, MAPS, np.array([-1]), r"classes \[-1\]"),
    "class twice": (GOOD, MAPS.repeat(2, 0), np.array([1, 1]), r"classes \[1, 1\]"),
    "not a number": (GOOD, np.array([[[0, 1], [np.nan, 0]]], np.float32), np.array([0]), "nan; expected numbers"),
}


@pytest.mark.parametrize("what", BAD_MAPS)
def test_bad_maps_are_refused_and_not_counted(what: str) -> None:
    truth, maps, classes, message = BAD_MAPS[what]
    for sweep in (ThresholdSweep([0.3], 2), ThresholdSweep([1], 2, "power")):
        with pytest.raises(BadInput, match=f"^some file: found .*{message}"):
            sweep.add(truth, maps, classes, "some file")
        assert not sweep.counts.any()


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_power_background_needs_maps_between_0_and_1(value: float) -> None:
    maps = np.full((1, 2, 2), value, np.float16)
    ThresholdSweep([0.3], 2).add(GOOD, maps, np.array([0]), "some file")
    with pytest.raises(BadInput, match=r"^some file: .*expected numbers in \[0, 1\]"):
        ThresholdSweep([1], 2, "power").add(GOOD, maps, np.array([0]), "some file")


@pytest.mark.parametrize("values", [[], [0.2, 0.1], [0.1, 0.1], [0.1, math.nan], [0.1, math.inf]])
def test_bad_thresholds_are_refused(values: list[float]) -> None:
    with pytest.raises(BadInput, match="ascending thresholds"):
        ThresholdSweep(values, 20)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(BadInput, match="exponents above 0"):
        ThresholdSweep([0, 1], 20, "power")
    with pytest.raises(BadInput, match="constant or power"):
        ThresholdSweep([0.1], 20, "mean")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="present or nan or zero"):
        scores(np.eye(2, dtype=np.int64), "voc")  # type: ignore[arg-type]
    for n_labels in (0, 256):
        with pytest.raises(BadInput, match="1 to 255"):
            ConfusionMatrix(n_labels)
    for accumulator in (ConfusionMatrix(3), ThresholdSweep([0.3], 2), ContourCounts(2)):
        for counts in (np.zeros((5, 5), np.int64), accumulator.counts.astype(np.float64)):
            with pytest.raises(BadInput, match="to merge"):
                accumulator.merge(counts)
