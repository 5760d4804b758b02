"""`wsss regions`, `wsss localize corrclip`, `wsss run corrclip`: with the demo's CLIP, which also compares patches."""

import json
import shutil

import numpy as np
import pytest
import yaml

from tests.end_to_end.conftest import TINY, kill_at, ok, wsss
from tests.end_to_end.test_run_cam import prefixed
from tests.methods.taught import write_clip
from wsss.configs import CONFIGS
from wsss.data.files import read_cams, read_mask
from wsss.data.open import open_dataset
from wsss.run import read_record

CLIP = CONFIGS / "demo_clip"
NETWORKS = ("--clip", CLIP, "--dino", "none", "--words", CLIP / "words.yaml", "--level", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes):
    """A run with the regions of similar colours; its mode refiner is the published correction."""
    folder = tmp_path_factory.mktemp("corrclip")
    content = {
        "proposer": {"kind": "tree", "coarseness": [60.0]},
        "inference": {"clip": str(CLIP), "dino": "none", "words": str(CLIP / "words.yaml"), "level": 2},
        "refiner": {"kind": "regions", "mode": {"level": 2}},
        "segmenter": TINY["segmenter"],
    }
    (folder / "corrclip.yaml").write_text(yaml.safe_dump(content))
    ok("run", "corrclip", "--data", shapes, "--config", folder / "corrclip.yaml", "--out", folder / "run")
    return folder / "run"


def test_every_stage_is_there(run, shapes):
    images = open_dataset(shapes).split("train")
    differ = 0
    for index, name in enumerate(images.names):
        classes, maps = read_cams(run / "cams" / f"{name}.npz")
        assert classes.tolist() == images.classes(index)
        assert 0 <= maps.min() <= maps.max() <= 1
        labels = np.concatenate([[0], classes + 1])
        before = labels[np.concatenate([np.full_like(maps[:1], 0.5), maps]).argmax(0)]
        np.testing.assert_array_equal(read_mask(run / "masks-uncorrected" / f"{name}.png"), before)
        differ += (read_mask(run / "masks" / f"{name}.png") != before).any()
    assert differ > 0
    # the refiner has taken the regions of the maps
    assert sorted(path.name for path in run.glob("regions*")) == ["regions"]
    used = read_record(run / "cams")["inputs"]["inputs"]["regions"]
    assert used == read_record(run / "masks")["inputs"]["regions"]
    assert "CorrCLIP on" in (run / "report.html").read_text()


def test_the_stage_alone_makes_the_same_maps(tmp_path, run, shapes):
    words = ("localize", "corrclip", "--data", shapes, *NETWORKS, "--regions", run / "regions")
    # the run has a configuration and no preset; the preset of the stage chooses bfloat16 on some processors
    ok(*words, "--precision", "no", "--out", tmp_path / "cams")
    for path in (run / "cams").glob("*.npz"):
        assert (tmp_path / "cams" / path.name).read_bytes() == path.read_bytes()


def test_words_alone(tmp_path, run, shapes):
    words = ("localize", "corrclip", "--data", shapes, *NETWORKS, "--regions", run / "regions")
    ok(*words, "--words_only", "true", "--threshold", "0.2", "--short_side", "56", "--out", tmp_path / "cams")
    images = open_dataset(shapes).split("train")
    found = [read_cams(tmp_path / "cams" / f"{name}.npz") for name in images.names]
    assert {int(cls) for classes, _ in found for cls in classes} > {0}
    assert any(classes.tolist() != images.classes(index) for index, (classes, _) in enumerate(found))
    # a class without a pixel has no map
    assert all((maps.max((1, 2)) >= 0.5).all() for _, maps in found)


def test_what_cannot_work_is_one_line(tmp_path, run, shapes, squares):
    small = write_clip(tmp_path / "small", squares)
    localize = ("localize", "corrclip", "--data", shapes, *NETWORKS)
    regions = ("--regions", run / "regions")
    at_run = (
        "run",
        "corrclip",
        "--data",
        shapes,
        "--inference.clip",
        CLIP,
        "--inference.dino",
        "clip",
        "--segmenter.init",
        "none",
    )
    for words, message in (
        (localize, "--regions: found none"),
        ((*localize, "--regions", tmp_path / "none"), "none: found no such folder"),
        ((*localize, *regions, "--clip", small), "found 2 blocks; expected at least 3"),
        ((*localize, *regions, "--dino", tmp_path / "missing"), "missing: found no such file or folder"),
        ((*localize, *regions, "--backgrounds", "false"), "inference.backgrounds: found false"),
        ((*at_run, "--proposer", "tree", "--refiner.proposer", "sam"), "refiner.proposer: found Segment Anything"),
        ((*at_run, "--inference.regions", run / "regions", "--both_splits", "true"), "both_splits: found true"),
    ):
        done = wsss(*words, "--out", tmp_path / "out")
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def plain(folder, shapes, count=8):
    """A folder of pictures and nothing else, and the names of the classes."""
    folder.mkdir()
    for path in sorted((shapes / "JPEGImages").iterdir())[:count]:
        shutil.copy(path, folder)
    return folder, ", ".join((shapes / "classes.txt").read_text().split())


def test_a_plain_folder_of_pictures(tmp_path, shapes):
    pictures, classes = plain(tmp_path / "pictures", shapes)
    data = ("--data", pictures, "--classes", classes)
    ok("regions", *data, "--coarseness", "[60]", "--out", tmp_path / "regions")
    localize = ("localize", "corrclip", *data, *NETWORKS, "--regions", tmp_path / "regions")
    ok(*localize, "--words_only", "true", "--out", tmp_path / "cams")
    assert any(len(read_cams(path)[0]) for path in (tmp_path / "cams").glob("*.npz"))
    ok("refine", *data, "--cams", tmp_path / "cams", "--by", "threshold", "--out", tmp_path)
    assert len(list((tmp_path / "masks").glob("*.png"))) == 8
    done = wsss(*localize, "--out", tmp_path / "no")
    assert done.returncode == 2
    assert "8 pictures outside any class folder" in done.stderr
    done = wsss(*localize, "--tags", "none", "--out", tmp_path / "no")
    assert done.returncode == 2
    assert "--tags: found none; expected tags, from which corrclip" in done.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_run_on_a_plain_folder_with_another_refiner_and_segmenter(tmp_path, shapes):
    pictures, classes = plain(tmp_path / "pictures", shapes, 24)
    networks = ("--inference.clip", CLIP, "--inference.dino", "none", "--inference.words", CLIP / "words.yaml")
    run = ("run", "corrclip", "--data", pictures, "--classes", classes, "--preset", "quick", *networks)
    run = (*run, "--inference.words_only", "true", "--refiner", "crf", "--segmenter", "retrieval")
    done = ok(*run, "--segmenter.features.source", CLIP, "--out", tmp_path / "run")
    assert "segmenter predicts" not in done.stdout
    assert not [line for line in done.stderr.splitlines() if "regions" in line and "not estimated" in line]
    assert len(list((tmp_path / "run" / "masks").glob("*.png"))) == 24
    assert json.loads((tmp_path / "run" / "classifier-health" / "done.json").read_text())["result"][
        "checked"
    ].startswith("no")
    ok("predict", "--weights", tmp_path / "run", "--pictures", pictures, "--out", tmp_path / "predicted")
    assert len(list((tmp_path / "predicted").rglob("*.png"))) == 24


# 24 pictures with regions of one scale, and a frozen head on the demo's CLIP
WITH_FROZEN = {
    "proposer": {"kind": "tree", "coarseness": [60.0]},
    "inference": {"clip": str(CLIP), "dino": "none", "words": str(CLIP / "words.yaml"), "level": 2},
    "refiner": {"kind": "crf", "by": "crf"},
    "segmenter": {
        "kind": "frozen",
        "features": {"source": str(CLIP)},
        "training": {"batch": 8, "epochs": None, "steps": 4, "workers": 1, "checkpoint_steps": 2},
    },
}


@pytest.fixture(scope="module")
def with_frozen(tmp_path_factory, shapes):
    """A run to the end that nothing disturbed, and its settings."""
    folder = tmp_path_factory.mktemp("corrclip-frozen")
    (folder / "settings.yaml").write_text(yaml.safe_dump(WITH_FROZEN))
    words = ("run", "corrclip", "--data", shapes, "--config", folder / "settings.yaml")
    ok(*words, "--out", folder / "run")
    return words, folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["regions/*.npz", "cams/*.npz"])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path, with_frozen, moment):
    words, whole = with_frozen
    kill_at(tmp_path / "run", moment, *words, "--out", tmp_path / "run")
    ok(*words, "--out", tmp_path / "run")
    for name in ("regions", "cams", "cams-scores", "masks", "masks-scores", "segmenter", "predictions"):
        assert prefixed(tmp_path / "run", name) == prefixed(whole, name)


@pytest.mark.slow
def test_two_processes_make_the_same_maps_and_masks(tmp_path, with_frozen):
    words, whole = with_frozen
    ok(*words, "--out", tmp_path / "run", processes=2)
    for name in ("regions", "cams", "cams-scores", "masks", "masks-scores"):
        assert prefixed(tmp_path / "run", name) == prefixed(whole, name)
    assert json.loads((tmp_path / "run" / "predictions-scores" / "scores.json").read_text())
