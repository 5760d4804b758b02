"""The rules of the health notes, on made-up statistics; `test_calibration` has those of real runs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.health import Health, Note, notes
from wsss.health.data import INSEPARABLE, inseparable_pairs, tag_health
from wsss.health.maps import MapStatistics, judged_maps, map_statistics
from wsss.health.masks import Decided, always_win, decided_by, judged_masks, judged_predictions, label_shares, never_win
from wsss.health.note import HEALTH
from wsss.health.sample import SAMPLE, sampled
from wsss.ops.thresholds import BINS, highest_values
from wsss.run import RECORD_VERSION
from wsss.storage import write_json

CLASSES = ("cat", "dog", "owl")
TWO_HUMPS = highest_values(np.array([[[0.1] * 60 + [0.9] * 40]]))


def tagged(labels) -> Images:
    labels = np.asarray(labels, bool)
    pictures = [np.zeros((8, 8, 3), np.uint8)] * len(labels)
    return Images.from_arrays(pictures, labels, CLASSES[: labels.shape[1]])


def kinds(health: Health) -> list[str]:
    return [note.kind for note in health.notes]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[1]] * 20, ["class-everywhere"]),
        ([[1]] * 18 + [[0]] * 2, []),  # pictures without it
        ([[1, 0], [1, 1]] * 10, ["class-everywhere"]),
        ([[1, 1], [0, 0]] * 10, ["always-together"]),
        ([[1, 1]] * 9 + [[1, 0], [0, 1]] + [[0, 0]] * 9, []),
        ([[1, 0], [0, 1], [1, 1]] * 5, []),
        ([[1, 1], [0, 0]] * 4, []),  # too few to tell
    ],
)
def test_tags(labels, expected):
    assert kinds(tag_health(tagged(labels))) == expected


def test_the_only_class_is_told_to_need_pictures_without_it():
    (note,) = tag_health(tagged([[1]] * 20)).notes
    assert note.found == "`cat` is in 20 of 20 pictures (the only class, and nothing to compare it with)."
    assert "--negative" in note.do


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=30))
def test_pairs_are_those_with_nearly_the_same_pictures(rows):
    labels = np.array(rows)
    classes = [c for c in range(3) if labels[:, c].any()]
    sets = [set(np.flatnonzero(labels[:, c]).tolist()) for c in range(3)]
    expected = [
        (a, b, len(sets[a] & sets[b]) / len(sets[a] | sets[b]))
        for a in classes
        for b in classes
        if a < b and len(sets[a] & sets[b]) > INSEPARABLE * len(sets[a] | sets[b])
    ]
    assert inseparable_pairs(labels, classes) == expected


def test_statistics_of_maps():
    maps = np.zeros((2, 4, 4), np.float16)
    maps[1, :2] = 1
    assert map_statistics(np.array([0, 2]), maps) == [MapStatistics(0, 0, 0), MapStatistics(2, 0.5, 0.5)]


@pytest.mark.parametrize(
    ("flat", "peaked", "expected"),
    [
        ([0] * 3, [0, 1] * 6, ["flat-maps"]),
        ([0] * 2, [0, 1] * 6, []),
        ([2] * 5, [0, 1] * 20, ["flat-maps"]),
        ([], [], []),
    ],
)
def test_flat_maps(flat, peaked, expected):
    maps = [MapStatistics(c, 0.9, 0.01) for c in flat] + [MapStatistics(c, 0.3, 0.25) for c in peaked]
    health = judged_maps(maps, TWO_HUMPS, CLASSES)
    assert kinds(health) == expected
    assert health.measured["flat maps"] == len(flat)


def test_values_in_one_group():
    maps = [MapStatistics(0, 0.3, 0.25)] * 10
    one = highest_values(np.random.default_rng(0).normal(0.4, 0.05, (1, 50, 50)))
    assert kinds(judged_maps(maps, one, CLASSES)) == ["one-hump"]
    assert kinds(judged_maps(maps, np.zeros(BINS, np.int64), CLASSES)) == []


def test_the_class_with_flat_maps_is_named():
    maps = [MapStatistics(2, 0.9, 0.01)] * 5 + [MapStatistics(0, 0.3, 0.25)] * 40
    (note,) = judged_maps(maps, TWO_HUMPS, CLASSES).notes
    assert "`owl`" in note.found
    assert "`cat`" not in note.found


def test_shares_leave_ignored_pixels_out():
    mask = np.array([[0, 0, 2, 255], [1, 2, 2, 255]], np.uint8)
    np.testing.assert_allclose(label_shares(mask, 3), [2 / 6, 1 / 6, 3 / 6])
    np.testing.assert_array_equal(label_shares(np.full((2, 2), 255, np.uint8), 3), [0, 0, 0])


def shares(*rows):
    return np.array(rows, float)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([0.05, 0.95, 0, 0], "masks-cover-everything"),
        ([0.995, 0.005, 0, 0], "masks-are-empty"),
        ([0.5, 0.5, 0, 0], None),
    ],
)
def test_masks_of_one_kind(mask, expected):
    good = [0.6, 0.4, 0, 0]
    labels = np.tile([True, False, False], (10, 1))
    few, many = shares(mask, *[good] * 9), shares(*[mask] * 3, *[good] * 7)
    assert kinds(judged_masks(few, labels, CLASSES)) == []
    assert kinds(judged_masks(many, labels, CLASSES)) == ([expected] if expected else [])


def test_pictures_without_tags_may_be_empty_and_the_threshold_is_named():
    labels = np.zeros((10, 3), bool)
    assert kinds(judged_masks(shares(*[[1, 0, 0, 0]] * 10), labels, CLASSES)) == []
    labels[:, 0] = True
    (note,) = judged_masks(shares(*[[1, 0, 0, 0]] * 10), labels, CLASSES, Decided("threshold", 0.9)).notes
    assert "Lower --refiner.threshold (0.9 was used)" in note.do
    # the background score is (1 - highest map) to the power of the exponent
    (note,) = judged_masks(shares(*[[1, 0, 0, 0]] * 10), labels, CLASSES, Decided("exponent", 1.0)).notes
    assert "Raise --refiner.exponent (1 was used)" in note.do


def test_the_threshold_of_masks_after_votes_is_that_of_the_averages(tmp_path):
    empty = {"record": RECORD_VERSION, **dict.fromkeys(("kind", "makes", "title", "identity", "tables", "files"), "")}

    def finish(name, result, **inputs):
        write_json(tmp_path / name / "done.json", {**empty, "inputs": inputs, "result": result})

    finish("cams-votes", {"threshold": 0.36})
    finish("masks", {"threshold": 0.5}, cams={"folder": "../cams-votes", "stage": "regions"})
    assert decided_by(tmp_path / "masks") == Decided("threshold", 0.36, "refiner.masks")
    finish("plain", {"exponent": 2}, cams={"folder": "../cams", "stage": "localize"})
    assert decided_by(tmp_path / "plain").advice("foreground") == "Raise --refiner.exponent (2 was used)"


def test_classes_that_never_and_always_win():
    labels = np.tile([True, True, False], (6, 1))
    won = shares(*[[0.5, 0.5, 0, 0]] * 6)
    assert never_win(won, labels) == [1]
    assert always_win(won, labels) == [0]
    assert kinds(judged_masks(won, labels, CLASSES)) == ["class-never-wins", "class-always-wins"]
    won[0] = [0.5, 0.3, 0.2, 0]
    assert never_win(won, labels) == []
    assert always_win(won, labels) == []


@pytest.mark.parametrize(("other", "expected"), [(0.02, []), (0.03, ["masks-of-other-classes"])])
def test_masks_of_classes_that_are_no_tags(other, expected):
    """As from maps that were made for other tags."""
    labels = np.tile([True, False, False], (10, 1))
    found = judged_masks(shares(*[[0.5, 0.5 - other, other, 0]] * 10), labels, CLASSES)
    assert kinds(found) == expected
    assert found.measured["foreground in other classes"] == other / 0.5


def test_masks_of_pictures_without_tags():
    labels = np.zeros((10, 3), bool)
    masks = shares(*[[0.5, 0.5, 0, 0]] * 10)
    # nobody has tagged a picture
    assert kinds(judged_masks(masks, labels, CLASSES)) == []
    labels[:9, 0] = True
    found = judged_masks(masks, labels, CLASSES)
    assert kinds(found) == ["masks-of-other-classes"]
    assert found.measured["foreground in other classes"] == 0.1


def test_all_classes_empty_is_another_note():
    labels = np.tile([True, True, False], (6, 1))
    assert never_win(shares(*[[1, 0, 0, 0]] * 6), labels) == []


def test_predictions():
    labels = np.tile([True, True, False], (6, 1))
    assert kinds(judged_predictions(shares(*[[1, 0, 0, 0]] * 6), labels, CLASSES)) == ["one-label-predicted"]
    assert kinds(judged_predictions(shares(*[[0, 0, 1, 0]] * 6), labels, CLASSES)) == ["one-label-predicted"]
    others = judged_predictions(shares(*[[0.5, 0.1, 0.1, 0.3]] * 6), labels, CLASSES)
    assert kinds(others) == ["other-classes-predicted"]
    assert others.measured["foreground in other classes"] == 0.6
    missing = judged_predictions(shares(*[[0.5, 0.5, 0, 0]] * 6), labels, CLASSES)
    assert kinds(missing) == ["class-never-predicted"]
    assert missing.measured["never predicted"] == ["dog"]
    assert kinds(judged_predictions(shares(*[[0.5, 0.3, 0.2, 0]] * 6), labels, CLASSES)) == []


def test_the_sample_depends_on_names_alone():
    images = tagged(np.ones((SAMPLE + 50, 1)))
    chosen = sampled(images)
    assert len(chosen) == SAMPLE
    assert chosen == sorted(set(chosen))
    back = images.subset(range(len(images))[::-1])
    assert {images.names[i] for i in chosen} == {back.names[i] for i in sampled(back)}
    assert sampled(images.subset(range(7))) == list(range(7))


def test_notes_of_a_run_in_the_order_of_its_stages(tmp_path):
    first, second = (Note(kind, f"{kind}!", "Bad.", "Repair it.") for kind in ("first", "second"))
    assert notes(tmp_path) == []
    write_json(tmp_path / "masks-health" / HEALTH, Health({}, [second]).plain())
    write_json(tmp_path / "data-health" / HEALTH, Health({"n": 1}, [first]).plain())
    assert notes(tmp_path) == [first, second]
    assert first.rendered() == "note: first! Bad.\n      Repair it."


@pytest.mark.parametrize(
    "content", [[], {"notes": []}, {"measured": {}, "notes": [{"kind": "x"}]}, {"measured": 3, "notes": []}]
)
def test_a_damaged_file_is_refused(tmp_path, content):
    write_json(tmp_path / "data-health" / HEALTH, content)
    with pytest.raises(BadInput, match=r"health\.json"):
        notes(tmp_path)
