"""Regions that a bank explains: their boxes and neighbours, the file, and what the report shows of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import write_squares
from wsss.errors import BadInput
from wsss.ops.regions import Regions
from wsss.ops.retrieval import vote
from wsss.segmenters.bank import Bank
from wsss.segmenters.explained import explained
from wsss.segmenters.retrieval import Decided
from wsss.stages.nearest import NEAREST, nearest_regions, read_nearest

CLASSES = ("red", "blue")


def small_bank() -> Bank:
    """Seven regions of three pictures; those of label 1 lie along one axis, those of label 2 along the other."""
    angles = np.array([0.0, 0.1, 0.2, 1.3, 1.4, 1.5, 0.3])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    labels = np.array([1, 1, 1, 2, 2, 2, 1], np.uint8)
    pictures = np.array([0, 1, 2, 0, 1, 2, 2], np.int32)
    boxes = np.arange(28, dtype=np.int32).reshape(7, 4)
    return Bank(("a", "b", "c"), vectors, labels, pictures, np.ones(7, np.int32), boxes)


def decided(queries: np.ndarray) -> Decided:
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:8, 3:9], masks[1, 5:19, 10:28], masks[2, :, :] = True, True, True
    bank = small_bank()
    votes = vote(queries.astype(np.float32), bank.unit_vectors(), bank.labels.astype(int), 3, k=5)
    return Decided(Regions.of_masks(masks), votes, np.array([0, 1, 2]))


def test_the_largest_regions_with_a_class_and_their_neighbours():
    found = decided(np.array([[1, 0], [0, 1], [0, 0.9]]))
    labels = found.votes.labels.copy()
    labels[2] = 0  # background is not explained
    trained = SimpleNamespace(bank=small_bank(), classes=CLASSES)
    first, second = explained(trained, "new", found._replace(votes=found.votes._replace(labels=labels)))
    assert (first.label, first.box) == (2, (5, 10, 19, 28))
    assert (second.label, second.box) == (1, (2, 3, 8, 9))
    assert [near.image for near in second.nearest] == ["a", "b", "c", "c", "a"]
    assert [near.label for near in second.nearest] == [1, 1, 1, 1, 2]
    assert second.nearest[1].box == (4, 5, 6, 7)
    assert second.nearest[0].similarity == pytest.approx(1, abs=1e-3)
    assert second.share == pytest.approx(0.8)


def region(image: str, near: str) -> dict[str, object]:
    nearest = {"image": near, "label": 1, "similarity": 0.9, "box": [0, 0, 9, 9]}
    return {"image": image, "label": 2, "share": 0.7, "box": [2, 2, 20, 20], "nearest": [nearest]}


def test_the_report_shows_both_pictures_and_their_tags(tmp_path):
    train, val = write_squares(tmp_path / "train", 4), write_squares(tmp_path / "val", 3, seed=1)
    # a validation picture may have the name of a training picture
    content = {"classes": CLASSES, "regions": [region(val.names[0], train.names[1]), region(val.names[1], "elsewhere")]}
    (tmp_path / NEAREST).write_text(json.dumps(content))
    stage = SimpleNamespace(folder=tmp_path, fingerprint="val")
    first, second = nearest_regions([stage], {"train": train, "val": val})
    assert (first["label"], first["image"]) == ("blue", val.names[0])
    assert str(first["uri"]).startswith("data:image/jpeg")
    (near,) = first["nearest"]
    assert (near["label"], near["similarity"]) == ("red", 0.9)
    assert near["tags"] == [CLASSES[label] for label in train.classes(1)]
    assert str(near["uri"]).startswith("data:image/jpeg")
    # a picture of a bank that was made from other data
    assert second["nearest"][0]["uri"] is None


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"classes": []},
        {"classes": [], "regions": [{"image": "a"}]},
        {"classes": [], "regions": [region("a", "b")]},
        {"classes": CLASSES, "regions": [{**region("a", "b"), "box": [0, 0, "9", 9]}]},
        {"classes": CLASSES, "regions": [{**region("a", "b"), "box": [0, 0]}]},
    ],
)
def test_a_damaged_file(tmp_path, content):
    (tmp_path / NEAREST).write_text(json.dumps(content))
    with pytest.raises(BadInput, match="nearest training regions"):
        read_nearest(tmp_path)


def test_no_file(tmp_path):
    assert read_nearest(tmp_path) is None
