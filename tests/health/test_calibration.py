"""A good run has no note, and each spoiled run has the right ones: `make_runs` made their statistics, and docs/health.md lists them."""

from pathlib import Path

import numpy as np
import pytest

from wsss.cli import main
from wsss.configs import CONFIGS
from wsss.data.images import Images
from wsss.health import notes
from wsss.health.data import tag_health
from wsss.health.maps import MapStatistics, judged_maps
from wsss.health.masks import judged_masks, judged_predictions
from wsss.health.note import Note
from wsss.health.tags import judged_tags

RUNS = Path(__file__).parents[1] / "data" / "health"
SHAPES = ("ball", "boat", "cross", "ring", "star")


def notes_of(name: str) -> list[Note]:
    """The notes that a run with these statistics has."""
    with np.load(RUNS / f"{name}.npz") as stored:
        found = dict(stored)
    labels = found["labels"]
    classes = SHAPES if labels.shape[1] == len(SHAPES) else ("shape",)
    images = Images.from_arrays([np.zeros((8, 8, 3), np.uint8)] * len(labels), labels, classes)
    health = [tag_health(images)]
    if "descriptions" in found:
        health.append(judged_tags(images.names, classes, labels, found["descriptions"].astype(np.float32))[0])
    if "maps" in found:
        maps = [MapStatistics(int(label), mean, deviation) for label, mean, deviation in found["maps"].tolist()]
        health.append(judged_maps(maps, found["histogram"], classes))
    if "masks" in found:
        health.append(judged_masks(found["masks"], labels, classes))
    if "predictions" in found:
        health.append(judged_predictions(found["predictions"], found["predicted_labels"], classes))
    return [note for one in health for note in one.notes]


def test_a_good_run_has_no_note():
    assert notes_of("good") == []


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("shuffled", {"no-better-than-frequencies"}),
        ("one-class", {"class-everywhere", "flat-maps", "one-hump", "masks-cover-everything"}),
        ("together", {"always-together"}),
        ("rate-0.3", {"tags-never-believed", "flat-maps", "masks-are-empty", "class-never-wins"}),
        ("rate-3", {"tags-never-believed", "flat-maps", "class-never-wins", "class-always-wins"}),
        ("threshold-0", {"masks-cover-everything"}),
        ("threshold-1", {"masks-are-empty"}),
        ("segmenter-1-step", {"other-classes-predicted"}),
    ],
)
def test_a_spoiled_run_has_the_right_notes(run, expected):
    found = notes_of(run)
    assert expected <= {note.kind for note in found}
    assert all(note.found and note.why and note.do for note in found)


@pytest.mark.slow
def test_a_run_of_the_demo_has_no_note(tmp_path):
    data, out = str(tmp_path / "shapes"), str(tmp_path / "run")
    assert main(["data", "shapes", data, "--train", "200", "--val", "20", "--size", "112"]) == 0
    assert main(["run", "cam", "--data", data, "--config", str(CONFIGS / "demo_cam.yaml"), "--out", out]) == 0
    assert notes(Path(out)) == []
