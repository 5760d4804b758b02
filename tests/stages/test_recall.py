"""Recall of regions against counting by hand."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import finished
from wsss.cli import main
from wsss.errors import BadInput
from wsss.ops.regions import Regions
from wsss.regions.files import write_regions
from wsss.stages.recall import COUNTS, RECALL, best_overlaps, evaluate_regions, objects


def test_objects_are_components_that_are_large_enough():
    truth = np.zeros((20, 30), np.uint8)
    truth[:6, :6], truth[6:12, 6:12] = 3, 3  # touch diagonally
    truth[:8, 20:28], truth[14:16, :15] = 1, 1
    truth[18:, 20:] = 255
    numbers, labels = objects(truth)
    assert labels.tolist() == [1, 3]
    np.testing.assert_array_equal(numbers == 2, truth == 3)
    np.testing.assert_array_equal(numbers == 1, (truth == 1) & (np.indices(truth.shape)[0] < 14))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(0, 6))
def test_the_best_overlap_of_each_object(seed, n):
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([0, 0, 1, 2, 255], np.uint8), (3, 4)).repeat(7, 0).repeat(7, 1)
    masks = rng.random((n, 3, 4)).repeat(7, 1).repeat(7, 2) < 0.5
    scores = rng.choice([0.2, 0.4, 0.8], n)
    labels, best = best_overlaps(Regions.of_masks(masks, scores), truth, (1, 2, 5))
    numbers, expected_labels = objects(truth)
    np.testing.assert_array_equal(labels, expected_labels)
    order = sorted(range(n), key=lambda region: -scores[region])
    counted = truth != 255
    for object_, row in enumerate(best):
        inside = numbers == object_ + 1
        for count, found in zip((1, 2, 5), row, strict=True):
            overlaps = [(masks[r] & inside).sum() / ((masks[r] & counted) | inside).sum() for r in order[:count]]
            assert found == pytest.approx(max(overlaps, default=0))


@pytest.fixture
def proposed(tmp_path, squares):
    """The true objects, of a high score, and the whole picture."""
    for index, name in enumerate(squares.names):
        truth = squares.read_mask(index)
        masks = [np.ones(truth.shape, bool), *(truth == label for label in np.unique(truth) if label)]
        regions = Regions.of_masks(np.stack(masks), np.array([0.1, *[0.9] * (len(masks) - 1)]))
        write_regions(tmp_path / "regions" / f"{name}.npz", regions)
    return finished(tmp_path / "regions")


def test_the_stage_writes_curves(tmp_path, squares, proposed):
    evaluate_regions(squares, regions=proposed, out=tmp_path / "out")
    content = json.loads((tmp_path / "out" / RECALL).read_text())
    assert content["counts"] == list(COUNTS)
    curve = content["all"]
    assert curve["recall at 0.75"] == sorted(curve["recall at 0.75"])
    # squares that cut one another are several objects
    assert curve["mean best IoU"][-1] > 0.9
    assert set(content["classes"]) == {"red", "blue"}
    assert sum(one["objects"] for one in content["classes"].values()) == curve["objects"]
    assert content["regions per picture"] == pytest.approx(np.mean([2 + row.sum() - 1 for row in squares.labels]))


def test_pictures_without_masks_or_regions_are_named(tmp_path, squares, proposed):
    unmasked = dataclasses.replace(squares, masks=(None, *squares.masks[1:]))
    with pytest.raises(BadInput, match="1 of 12 pictures without a true mask"):
        evaluate_regions(unmasked, regions=proposed, out=tmp_path / "out")
    (proposed / f"{squares.names[3]}.npz").unlink()
    with pytest.raises(BadInput, match=r"bild_3ß\.npz"):
        evaluate_regions(squares, regions=proposed, out=tmp_path / "other")


def test_the_command_takes_one_folder(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    words = ["evaluate", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main([*words, "--regions", "a", "--masks", "b"]) == 2
    assert "--cams, --masks and --regions: found 2 of them; expected exactly one" in capsys.readouterr().err
    assert main(words) == 2
    assert "found none" in capsys.readouterr().err
