"""Thresholds chosen without true masks: from all pictures, recorded, used by the masks, and told apart from those that need true masks."""

import json

import numpy as np
import pytest

from tests.conftest import finished, tree
from wsss.data.files import read_cams, read_mask, write_cams
from wsss.errors import BadInput
from wsss.ops.thresholds import BINS, exponent_at, highest_values, otsu, otsu_of_background, otsu_of_roots
from wsss.refiners.affinitynet import AffinityNetLabels, AffinityNetWalk
from wsss.refiners.crf import CRFSettings, MaskSettings, refine
from wsss.refiners.irnet import IRNetSettings
from wsss.refiners.task import RefinementTask
from wsss.run import read_record
from wsss.stages.evaluate import SCORES, ScoreSettings, evaluate_cams, evaluate_masks
from wsss.stages.thresholds import PIXEL_LABELS, THRESHOLDS, choose_thresholds, pixel_labels


@pytest.fixture
def cams(tmp_path, squares):
    """Noisy maps: about 0.7 on objects and 0.2 elsewhere."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(squares.names):
        truth, classes = squares.read_mask(index), squares.classes(index)
        means = [np.where(truth == label + 1, 0.7, 0.2) for label in classes]
        maps = np.stack([rng.normal(mean, 0.1) for mean in means]).clip(0, 1).astype(np.float32)
        write_cams(tmp_path / "cams" / f"{name}.npz", np.array(classes), maps)
    return finished(tmp_path / "cams")


def histogram(squares, cams):
    counts = np.zeros(BINS, np.int64)
    for name in squares.names:
        counts += np.histogram(read_cams(cams / f"{name}.npz")[1].max(0), BINS, (0, 1))[0]
    return counts


def test_all_pictures_count(tmp_path, squares, cams):
    out = choose_thresholds(squares, cams=cams, out=tmp_path / "thresholds")
    counts = histogram(squares, cams)
    found = json.loads((out / THRESHOLDS).read_text())
    assert found["histogram"] == counts.tolist()
    assert (found["otsu"], found["otsu_sqrt"]) == (otsu(counts), otsu_of_roots(counts))
    assert found["lower"] == otsu_of_background(counts)
    assert not found["one_hump"]
    result = read_record(out)["result"]
    assert result[PIXEL_LABELS] == "none"
    assert result["otsu"] == found["otsu"]


def test_pictures_without_tags_do_not_count(tmp_path, squares, cams):
    before = choose_thresholds(squares, cams=cams, out=tmp_path / "before")
    write_cams(cams / f"{squares.names[0]}.npz", np.zeros(0, np.int64), np.zeros((0, *squares.size_hw(0)), np.float32))
    after = choose_thresholds(squares, cams=cams, out=tmp_path / "after")
    of = [json.loads((out / THRESHOLDS).read_text())["histogram"] for out in (before, after)]
    assert sum(of[0]) - sum(of[1]) == np.prod(squares.size_hw(0))


def test_no_map_at_all(tmp_path, squares):
    for index, name in enumerate(squares.names):
        none = np.zeros((0, *squares.size_hw(index)), np.float32)
        write_cams(tmp_path / "cams" / f"{name}.npz", np.zeros(0, np.int64), none)
    with pytest.raises(BadInput, match="no map of any class"):
        choose_thresholds(squares, cams=finished(tmp_path / "cams"), out=tmp_path / "thresholds")


def test_a_stopped_choice_ends_in_the_same_bytes(tmp_path, squares, cams, monkeypatch):
    whole = choose_thresholds(squares, cams=cams, out=tmp_path / "whole")
    calls = []

    def dies(maps):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return highest_values(maps)

    monkeypatch.setattr("wsss.stages.thresholds.highest_values", dies)
    with pytest.raises(KeyboardInterrupt):
        choose_thresholds(squares, cams=cams, out=tmp_path / "stopped")
    assert not (tmp_path / "stopped" / THRESHOLDS).exists()
    choose_thresholds(squares, cams=cams, out=tmp_path / "stopped")
    assert tree(tmp_path / "stopped") == tree(whole)


@pytest.mark.parametrize("rule", ["otsu", "otsu_sqrt"])
def test_masks_at_the_chosen_threshold(tmp_path, squares, cams, rule):
    masks = CRFSettings("threshold", rule).refined(RefinementTask(squares, cams, tmp_path / "run"))
    threshold = {"otsu": otsu, "otsu_sqrt": otsu_of_roots}[rule](histogram(squares, cams))
    given = refine(MaskSettings("threshold", threshold), squares, cams=cams, out=tmp_path / "given")
    for name in squares.names:
        np.testing.assert_array_equal(read_mask(masks / f"{name}.png"), read_mask(given / f"{name}.png"))
    record = read_record(masks)
    assert record["inputs"]["settings"]["threshold"] == rule
    assert record["result"] == {"images": len(squares), "threshold": threshold, PIXEL_LABELS: "none"}
    assert pixel_labels(masks) == "none"


def test_two_thresholds(squares, cams, tmp_path):
    counts = histogram(squares, cams)
    task = RefinementTask(squares, cams, tmp_path / "run")
    result = read_record(CRFSettings("threshold", "otsu", "otsu").refined(task))["result"]
    assert (result["threshold"], result["lower"]) == (otsu(counts), otsu_of_background(counts))


def test_exponents(squares, cams, tmp_path):
    counts = histogram(squares, cams)
    settings = CRFSettings("scores")
    result = read_record(settings.refined(RefinementTask(squares, cams, tmp_path / "run")))["result"]
    assert settings.exponent == "otsu_sqrt"
    assert result["exponent"] == exponent_at(otsu_of_roots(counts))
    thresholds = tmp_path / "run" / "cams-threshold"
    low, high = AffinityNetLabels(low="otsu", high="otsu").alphas(thresholds)
    assert (low, high) == (exponent_at(otsu(counts)), exponent_at(otsu_of_background(counts)))
    assert 0 < low <= high
    assert AffinityNetWalk(alpha="otsu").at(thresholds).alpha == low


def test_the_best_needs_true_masks(tmp_path, squares, cams):
    scores = evaluate_cams(ScoreSettings(), squares, cams=cams, out=tmp_path / "scores")
    task = RefinementTask(squares, cams, tmp_path / "run", scored=squares, cams_scores=scores)
    masks = CRFSettings("threshold", "best").refined(task)
    best = json.loads((scores / SCORES).read_text())["protocol"]
    assert read_record(masks)["result"]["threshold"] == best["threshold"]
    assert best[PIXEL_LABELS] == pixel_labels(masks) == "threshold"
    assert not (tmp_path / "run" / "cams-threshold").exists()
    # what is made of the masks inherits it
    scored = evaluate_masks(ScoreSettings(), squares, masks=masks, out=tmp_path / "run" / "masks-scores")
    assert json.loads((scored / SCORES).read_text())["protocol"][PIXEL_LABELS] == "threshold"


def test_one_threshold_needs_no_true_masks(tmp_path, squares, cams):
    scores = evaluate_cams(ScoreSettings(thresholds=(0.4,)), squares, cams=cams, out=tmp_path / "scores")
    assert json.loads((scores / SCORES).read_text())["protocol"][PIXEL_LABELS] == "none"


def test_files_without_a_record_are_unknown(tmp_path, squares, cams):
    (tmp_path / "theirs").mkdir()
    assert pixel_labels(tmp_path / "theirs") == "unknown"
    masks = refine(MaskSettings("threshold", 0.4), squares, cams=cams, out=tmp_path / "masks")
    (cams / "done.json").unlink()
    assert pixel_labels(masks) == "unknown"


@pytest.mark.parametrize(
    ("settings", "scored", "message"),
    [
        (CRFSettings("crf", "best"), None, r"refiner\.threshold: found best, without scores"),
        (CRFSettings("scores", exponent="best"), None, r"refiner\.exponent: found best"),
        (CRFSettings("scores", exponent="best"), "constant", r"scores\.background: found constant; expected power"),
        (CRFSettings("crf", "best"), "power", r"scores\.background: found power; expected constant"),
        (IRNetSettings(weights="-", labels=MaskSettings(threshold="best")), None, r"refiner\.labels\.threshold"),
        (IRNetSettings(weights="-", masks=MaskSettings("threshold", "best")), None, r"refiner\.masks\.threshold"),
    ],
)
def test_the_best_without_scores_is_refused_at_once(settings, scored, message):
    with pytest.raises(BadInput, match=message):
        settings.check(None, scored)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaskSettings(threshold="best", lower="otsu"),
        lambda: MaskSettings(threshold=0.3, lower="otsu"),
        lambda: MaskSettings(threshold=0.3, lower=0.4),
        lambda: AffinityNetLabels(low="otsu", high=8.0),
    ],
)
def test_thresholds_that_do_not_fit_together(make):
    with pytest.raises(BadInput):
        make()
