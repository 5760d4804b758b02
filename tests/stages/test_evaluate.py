"""Scores of maps and masks against counting by hand; the protocol that goes with them."""

import dataclasses
import json

import numpy as np
import pytest

from tests.conftest import finished
from tests.stages.test_refine import write_maps
from wsss.data.files import write_cams, write_mask
from wsss.errors import BadInput
from wsss.stages.evaluate import (
    PER_IMAGE,
    PER_IMAGE_CONTOUR,
    SCORES,
    ScoreSettings,
    best_threshold,
    evaluate_cams,
    evaluate_masks,
)


def by_hand(truths, masks, n):
    """Mean IoU over labels in the truth, pixel by pixel."""
    counts = np.zeros((n, n), int)
    for truth, mask in zip(truths, masks, strict=True):
        for t, m in zip(truth.ravel(), mask.ravel(), strict=True):
            if t != 255:
                counts[t, m] += 1
    iou = [counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c]) for c in range(n) if counts[c].any()]
    return float(np.mean(iou))


def noisy(squares, seed=0):
    rng = np.random.default_rng(seed)
    truths = [squares.read_mask(i) for i in range(len(squares))]
    return truths, [
        np.where(rng.random(t.shape) < 0.2, rng.integers(0, 3, t.shape), t).astype(np.uint8) for t in truths
    ]


def test_masks(tmp_path, squares):
    truths, masks = noisy(squares)
    for name, mask in zip(squares.names, masks, strict=True):
        write_mask(tmp_path / "masks" / f"{name}.png", mask)
    evaluate_masks(ScoreSettings(), squares, masks=finished(tmp_path / "masks"), out=tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / SCORES).read_text())
    assert scores["scores"]["miou"] == pytest.approx(by_hand(truths, masks, 3))
    assert scores["protocol"]["split"] == "squares"
    assert scores["protocol"]["images"] == 12
    assert scores["labels"] == ["background", "red", "blue"]
    per_image = json.loads((tmp_path / "scores" / PER_IMAGE).read_text())
    assert per_image[squares.names[4]] == pytest.approx(by_hand(truths[4:5], masks[4:5], 3))


def test_unsure_pixels_count_as_background(tmp_path, squares):
    truths, masks = noisy(squares)
    for name, mask in zip(squares.names, masks, strict=True):
        write_mask(tmp_path / "masks" / f"{name}.png", np.where(mask == 2, 255, mask).astype(np.uint8))
    evaluate_masks(ScoreSettings(), squares, masks=finished(tmp_path / "masks"), out=tmp_path / "scores")
    expected = by_hand(truths, [np.where(mask == 2, 0, mask) for mask in masks], 3)
    assert json.loads((tmp_path / "scores" / SCORES).read_text())["scores"]["miou"] == pytest.approx(expected)


def test_maps_are_scored_at_every_threshold_and_fully_at_the_best(tmp_path, squares):
    rng, thresholds = np.random.default_rng(1), (0.1, 0.3, 0.5, 0.7)
    kept = []
    for index, name in enumerate(squares.names):
        classes, truth = squares.classes(index), squares.read_mask(index)
        maps = np.stack([0.6 * (truth == c + 1) + 0.4 * rng.random(truth.shape) for c in classes]).astype(np.float16)
        write_cams(tmp_path / "cams" / f"{name}.npz", np.array(classes), maps)
        kept.append((truth, np.array(classes), maps.astype(np.float32)))
    expected = []
    for threshold in thresholds:
        masks = [
            np.concatenate([[0], classes + 1])[
                np.concatenate([np.full((1, *t.shape), threshold, np.float32), m]).argmax(0)
            ]
            for t, classes, m in kept
        ]
        expected.append(by_hand([t for t, _, _ in kept], masks, 3))
    evaluate_cams(
        ScoreSettings(thresholds=thresholds), squares, cams=finished(tmp_path / "cams"), out=tmp_path / "scores"
    )
    scores = json.loads((tmp_path / "scores" / SCORES).read_text())
    np.testing.assert_allclose(scores["curve"]["miou"], expected)
    assert best_threshold(tmp_path / "scores") == thresholds[int(np.argmax(expected))]
    assert scores["scores"]["miou"] == pytest.approx(max(expected))


def test_perfect_maps_score_one(tmp_path, squares):
    write_maps(squares, tmp_path / "cams")
    evaluate_cams(ScoreSettings(), squares, cams=finished(tmp_path / "cams"), out=tmp_path / "scores")
    scores = json.loads((tmp_path / "scores" / SCORES).read_text())
    assert scores["scores"]["miou"] == 1
    assert scores["contour"]["mean_f"] == 1


def test_contour_scores_of_single_pictures_and_of_classes_that_occur(tmp_path, squares):
    more = dataclasses.replace(
        squares, class_names=("red", "blue", "green"), labels=np.pad(squares.labels, ((0, 0), (0, 1)))
    )
    for index, name in enumerate(more.names):
        truth = more.read_mask(index)
        write_mask(tmp_path / "masks" / f"{name}.png", np.where(truth == 2, 0, truth) if index % 3 == 0 else truth)
    finished(tmp_path / "masks")
    found = {}
    for convention in ("present", "icam"):
        out = tmp_path / convention
        evaluate_masks(ScoreSettings(convention=convention), more, masks=tmp_path / "masks", out=out)
        found[convention] = json.loads((out / SCORES).read_text())["contour"]
    red, blue, green = found["icam"]["f"]
    assert (red, green) == (1, 1)
    assert 0 < blue < 1
    assert found["present"]["f"] == [red, blue, None]
    assert found["present"]["mean_f"] == pytest.approx((red + blue) / 2)
    assert found["icam"]["mean_f"] == pytest.approx((red + blue + green) / 3)
    assert (found["present"]["n_scored"], found["icam"]["n_scored"]) == (2, 3)
    single = json.loads((tmp_path / "present" / PER_IMAGE_CONTOUR).read_text())
    for index, name in enumerate(more.names):
        has_blue = index % 3 == 0 and 1 in more.classes(index)
        assert single[name] == ((len(more.classes(index)) - 1) / len(more.classes(index)) if has_blue else 1)
    evaluate_masks(ScoreSettings(contour=False), more, masks=tmp_path / "masks", out=tmp_path / "none")
    assert not (tmp_path / "none" / PER_IMAGE_CONTOUR).exists()


def test_contour_tolerance_in_pixels(tmp_path, squares):
    for i, name in enumerate(squares.names):
        write_mask(tmp_path / "masks" / f"{name}.png", np.roll(squares.read_mask(i), 3, axis=1))
    masks, measured = finished(tmp_path / "masks"), {}
    for pixels in (1, 2, 3):
        out = tmp_path / str(pixels)
        evaluate_masks(ScoreSettings(contour_tolerance=pixels), squares, masks=masks, out=out)
        measured[pixels] = json.loads((out / SCORES).read_text())["contour"]["mean_f"]
    assert measured[1] <= measured[2] < measured[3]
    assert measured[3] > 0.99
    with pytest.raises(BadInput, match=r"contour tolerance: found 2\.5"):
        ScoreSettings(contour_tolerance=2.5)


def test_without_true_masks(tmp_path, squares):
    blind = dataclasses.replace(squares, masks=(*squares.masks[:-1], None))
    with pytest.raises(BadInput, match="1 of 12 pictures without a true mask"):
        evaluate_masks(ScoreSettings(), blind, masks=finished(tmp_path), out=tmp_path / "scores")


def test_a_missing_prediction_is_named(tmp_path, squares):
    (tmp_path / "masks").mkdir()
    with pytest.raises(BadInput, match=r"bild_\d+ß\.png: found no such file"):
        evaluate_masks(ScoreSettings(), squares, masks=finished(tmp_path / "masks"), out=tmp_path / "scores")
