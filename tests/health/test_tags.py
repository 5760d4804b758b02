"""Suspicious tags: what is found on made-up descriptions, and the table that people correct."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image

import wsss
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.health.suspects import SUSPECTS, Suspect, read_suspects, write_review
from wsss.health.tags import judged_tags, skill, suspects
from wsss.storage import write_json

CLASSES = ("cat", "dog")


def pictures(n: int = 60, noise: float = 0.3):
    """Tags of `n` pictures, and descriptions that show them."""
    rng = np.random.default_rng(0)
    labels = rng.random((n, 2)) < 0.4
    return labels, labels @ rng.normal(size=(2, 12)) + noise * rng.normal(size=(n, 12))


def names(n: int) -> list[str]:
    return [f"p{index}" for index in range(n)]


def test_flipped_tags_come_first():
    true, descriptions = pictures()
    given, flips = true.copy(), [(3, 0), (17, 1), (40, 0)]
    for row, column in flips:
        given[row, column] ^= True
    health, found = judged_tags(names(60), CLASSES, given, descriptions)
    assert {(one.image, one.tag) for one in found[:3]} == {(f"p{row}", CLASSES[column]) for row, column in flips}
    for one in found[:3]:
        row = int(one.image[1:])
        assert one.present == given[row, CLASSES.index(one.tag)]
        assert one.direction == ("tagged, but not believed" if one.present else "not tagged, but believed")
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(0.5 < one.score <= 1 for one in found)
    assert health.notes == []


def test_tags_without_any_relation_to_the_pictures():
    _, descriptions = pictures()
    labels = np.random.default_rng(1).random((60, 2)) < 0.4
    health, _ = judged_tags(names(60), CLASSES, labels, descriptions)
    assert [note.kind for note in health.notes] == ["no-better-than-frequencies"]


def test_a_class_that_no_description_shows_is_named():
    labels, descriptions = pictures()
    labels[:, 1] = np.random.default_rng(2).random(60) < 0.3
    health, _ = judged_tags(names(60), CLASSES, labels, descriptions)
    (note,) = health.notes
    assert note.kind == "tags-never-believed"
    assert "`dog`" in note.found
    assert "`cat`" not in note.found


def test_rare_classes_and_few_pictures_are_not_judged():
    labels, descriptions = pictures()
    labels[:, 1] = False
    labels[:2, 1] = True
    assert not any(one.tag == "dog" for one in judged_tags(names(60), CLASSES, labels, descriptions)[1])
    few, found = judged_tags(names(10), CLASSES, labels[:10], descriptions[:10])
    assert (few.notes, found) == ([], [])
    assert few.measured["checked"].startswith("no: fewer than")


def test_a_network_of_nan_is_said_so():
    labels, descriptions = pictures()
    health, found = judged_tags(names(60), CLASSES, labels, np.full_like(descriptions, np.nan))
    assert found == []
    assert "not finite" in health.measured["checked"]


def test_skill_is_one_for_the_truth_and_zero_for_the_frequency():
    labels = np.array([[1, 1], [0, 1], [0, 1], [1, 1]], bool)
    others = (labels.sum(0) - labels) / 3
    np.testing.assert_allclose(skill(labels, labels.astype(float))[0], 1)
    np.testing.assert_allclose(skill(labels, others)[0], 0, atol=1e-12)
    assert np.isnan(skill(labels, others)[1])


def test_equal_scores_keep_the_order_of_the_pictures():
    labels = np.array([[True, False]] * 5 + [[False, True]] * 5)
    found = suspects(names(10), CLASSES, labels, np.full((10, 2), 0.5) + np.where(labels, -0.2, -0.4))
    assert [one.image for one in found] == [f"p{row}" for row in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]


@pytest.fixture
def folders(tmp_path):
    """Pictures in folders of their classes, with a validation split."""
    for split, counts in (("train", {"cat": 4, "dog": 3}), ("val", {"cat": 1, "dog": 1})):
        for tag, count in counts.items():
            for index in range(count):
                path = tmp_path / "data" / split / tag / f"a.{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                rgb = np.random.default_rng([len(split), len(tag), index, count]).integers(0, 256, (16, 16, 3))
                Image.fromarray(rgb.astype(np.uint8)).save(path)
    return tmp_path / "data"


def test_the_table_can_be_corrected_and_used(folders, tmp_path):
    data = wsss.open_dataset(folders)
    images = data.split("train")
    found = [Suspect(images.names[5], "dog", True, 0.91), Suspect(images.names[5], "cat", False, 0.8)]
    table = tmp_path / "tags-review.csv"
    assert write_review(table, data, images, found, {})
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert rows[0] == {
        "image": images.names[5],
        "tags": "dog",
        "split": "train",
        "suspicious": "dog;cat",
        "why": "tagged, but not believed;not tagged, but believed",
        "score": "0.910;0.800",
        "suggested": "cat",
    }
    assert all(row["suspicious"] == "" for row in rows[1:])
    # as it is, it holds the tags of the dataset
    again = wsss.open_dataset(folders, tags=table)
    for split in ("train", "val"):
        before, after = data.split(split), again.split(split)
        known = dict(zip(after.names, after.labels.tolist(), strict=True))
        assert [known[name] for name in before.names] == before.labels.tolist()
    # and with the suggestion in the column `tags`, the corrected ones
    rows[0]["tags"] = rows[0]["suggested"]
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    corrected = wsss.open_dataset(folders, tags=table).split("train")
    position = corrected.names.index(images.names[5])
    assert [corrected.class_names[c] for c in corrected.classes(position)] == ["cat"]


def test_scores_of_the_tagger_are_listed(folders, tmp_path):
    data = wsss.open_dataset(folders)
    images = data.split("train")
    scored = {name: {"cat": 0.25, "dog": 0.75} for name in images.names}
    assert write_review(tmp_path / "t.csv", data, images, [Suspect(images.names[0], "dog", False, 0.7)], scored)
    first, second, *_ = csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8"))
    assert first["tagger_score"] == "0.750"
    assert second["tagger_score"] == ""


def test_names_that_no_table_can_hold(tmp_path):
    images = Images.from_arrays([np.zeros((8, 8, 3), np.uint8)], np.ones((1, 1), bool), ("salt, pepper",))
    data = wsss.data.images.Dataset.of(images)
    assert not write_review(tmp_path / "t.csv", data, images, [], {})
    assert not (tmp_path / "t.csv").exists()


def test_a_damaged_list_is_refused(tmp_path):
    write_json(tmp_path / SUSPECTS, [dataclasses.asdict(Suspect("a", "cat", True, 0.7))])
    assert read_suspects(tmp_path) == [Suspect("a", "cat", True, 0.7)]
    write_json(tmp_path / SUSPECTS, [{"image": "a"}])
    with pytest.raises(BadInput, match=r"suspects\.json"):
        read_suspects(tmp_path)
