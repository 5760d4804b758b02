"""`wsss run icam` to its end with AffinityNet, both splits scored; kill and resume; the follow-up's maps; its stages alone."""

import json
import shutil

import numpy as np
import pytest
import yaml

from tests.end_to_end.conftest import kill_at, ok, wsss
from tests.end_to_end.test_run_cam import prefixed
from wsss.data.files import read_cams, read_mask
from wsss.run import read_record
from wsss.weights import read_weights

pytestmark = pytest.mark.slow

TRAINING = {"batch": 8, "epochs": None, "steps": 3, "lr": 0.002, "workers": 1, "checkpoint_steps": 1}
AUGMENT = {"long_side": [48, 64], "crop": 48}
ICAM = {"backbone": "test_resnet", "init": "none", "view_scale": 0.5, "augment": AUGMENT, "training": TRAINING}
AFFINITYNET = {"backbone": "test_resnet", "init": "none", "radius": 3, "augment": {"crop": 48}, "training": TRAINING}
SEGMENTER = {
    "init": "none",
    "network": {"backbone": "test_resnet", "dilation": 2},
    "augment": {"crop": 48},
    "training": {**TRAINING, "steps": 2},
}
STAGES = (
    "classifier",
    "cams",
    "cams-scores",
    "affinitynet-labels",
    "affinitynet",
    "masks",
    "masks-scores",
    "segmenter",
)
STAGES += ("predictions", "predictions-scores", "predictions-train", "predictions-train-scores")
STAGES += ("cams-val", "cams-val-scores", "masks-val", "masks-val-scores")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings of a run that takes seconds."""
    content = {
        "classifier": ICAM,
        "inference": {"scales": [1.0, 0.5]},
        "test": {"scales": [1.0]},
        "segmenter": SEGMENTER,
        "refiner": {"network": AFFINITYNET, "walk": {"radius": 3}},
    }
    path = tmp_path_factory.mktemp("config") / "icam.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes, settings):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = ok("run", "icam", "--data", shapes, "--config", settings, "--out", out)
    assert "maps (cams-val) at the best threshold" in done.stdout
    return out


def test_every_stage_is_there(whole, shapes):
    for split, maps_folder, masks_folder, predictions in (
        ("train", "cams", "masks", "predictions-train"),
        ("val", "cams-val", "masks-val", "predictions"),
    ):
        for name in (shapes / f"ImageSets/Segmentation/{split}.txt").read_text().split():
            classes, maps = read_cams(whole / maps_folder / f"{name}.npz")
            assert 0 <= maps.min() <= maps.max() <= 1
            for folder in (masks_folder, predictions):
                mask = read_mask(whole / folder / f"{name}.png")
                assert mask.shape == maps.shape[1:]
            assert set(np.unique(read_mask(whole / masks_folder / f"{name}.png"))) <= {0, *(classes + 1)}
    for stage in STAGES:
        assert (whole / stage / "done.json").exists()
    for stage in STAGES:
        if stage.endswith("-scores"):
            scores = json.loads((whole / stage / "scores.json").read_text())
            assert scores["scores"]["miou"] is not None
            assert scores["contour"]["mean_f"] is not None
    assert (whole / "report.html").read_text().count("predictions-train") > 0


def test_published_settings_are_the_defaults_of_the_rest(whole):
    """A YAML file that sets some of them leaves the others as ICAM has them."""
    labels = read_record(whole / "affinitynet-labels")["inputs"]["settings"]
    assert (labels["low"], labels["high"]) == (2, 4)
    walk = read_record(whole / "masks")["inputs"]["settings"]
    assert (walk["alpha"], walk["beta"], walk["doublings"], walk["shrink"], walk["radius"]) == (6, 8, 6, True, 3)
    assert json.loads((whole / "cams-scores" / "scores.json").read_text())["protocol"]["threshold"] == 0.5


def test_a_killed_run_ends_in_the_same_bytes(tmp_path, whole, shapes, settings):
    words = ("run", "icam", "--data", shapes, "--config", settings, "--out", tmp_path / "killed")
    kill_at(tmp_path / "killed", "classifier/checkpoint.pt", *words)
    for stage in ("segmenter", "affinitynet"):
        shutil.copytree(whole / stage, tmp_path / "killed" / stage)
    ok(*words)
    for stage in STAGES:
        assert prefixed(tmp_path / "killed", stage) == prefixed(whole, stage)


def test_the_follow_up_stage_by_stage(tmp_path, shapes):
    config = tmp_path / "hfpl.yaml"
    config.write_text(yaml.safe_dump({**ICAM, "variant": "hfpl"}))
    ok("train", "icam", "--data", shapes, "--config", config, "--out", tmp_path / "hfpl")
    _, metadata = read_weights(tmp_path / "hfpl" / "weights.safetensors")
    assert metadata["variant"] == "hfpl"
    options = ("--weights", tmp_path / "hfpl", "--scales", "[1.0]", "--data", shapes)
    ok("localize", "icam", *options, "--out", tmp_path / "one")
    ok("localize", "icam", *options, "--out", tmp_path / "two", processes=2)
    maps = [{path.name: path.read_bytes() for path in (tmp_path / folder).glob("*.npz")} for folder in ("one", "two")]
    assert len(maps[0]) == 24
    assert maps[0] == maps[1]


def test_bad_input_is_one_line(tmp_path, shapes, settings):
    words = ("run", "icam", "--data", shapes, "--config", settings, "--out", tmp_path / "run")
    for change, message in (
        (("--classifier.backbone", "nothing_like_it"), "backbone nothing_like_it: found no network with this name"),
        (("--weights", tmp_path / "missing.pth"), "missing.pth: found no such folder"),
    ):
        done = wsss(*words, *change)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
