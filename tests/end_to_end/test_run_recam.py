"""`wsss run recam`: from tags to a scored segmenter, alone and with all methods; it goes on after a kill."""

import json

import pytest
import yaml

from tests.conftest import tree
from tests.end_to_end.conftest import TINY, kill_at, ok
from tests.end_to_end.taught import AUGMENT, FEW
from tests.end_to_end.test_run_all import CONTENT
from wsss.data.files import read_cams, read_mask
from wsss.data.shapes import make_shapes
from wsss.weights import WEIGHTS, read_weights

# as many sums in the same order as in the process that is killed
pytestmark = pytest.mark.usefixtures("one_torch_thread")

STAGES = (
    "baseline", "classifier", "cams", "cams-scores", "masks", "masks-scores", "segmenter", "predictions", "predictions-scores",
)  # fmt: skip
SETTINGS = {
    "baseline": {**TINY["classifier"], "training": {**FEW, "optimizer": "adamw", "lr": 0.003}},
    "classifier": {"augment": AUGMENT, "frozen": "nothing", "training": {**FEW, "steps": 4, "lr": 0.01}},
    "inference": {"scales": [1.0, 0.5]},
    "segmenter": {**TINY["segmenter"], "init": "classifier", "training": {**FEW, "accumulate": 1, "lr": 0.001}},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings of a run that takes seconds."""
    path = tmp_path_factory.mktemp("config") / "recam.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes, settings, one_torch_thread):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert (
        "maps at the best threshold" in ok("run", "recam", "--data", shapes, "--config", settings, "--out", out).stdout
    )
    return out


def test_every_stage_is_there(whole, shapes):
    for name in (shapes / "ImageSets/Segmentation/train.txt").read_text().split():
        _, maps = read_cams(whole / "cams" / f"{name}.npz")
        assert 0 <= maps.min() <= maps.max() <= 1
        assert read_mask(whole / "masks" / f"{name}.png").shape == maps.shape[1:]
    for stage in STAGES:
        assert (whole / stage / "done.json").exists()
    baseline, trained = (read_weights(whole / stage / WEIGHTS)[0] for stage in ("baseline", "classifier"))
    assert trained.keys() - baseline.keys() == {"predictor.weight"}
    assert "ReCAM" in (whole / "report.html").read_text()
    history = json.loads((whole / "classifier" / "history.json").read_text())
    assert all(update["softmax"] > 0 and update["classification"] > 0 for update in history)


@pytest.mark.slow  # tests/methods stops it after an update, and goes on
def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, whole, shapes):
    section = {**SETTINGS["classifier"], "init": str(whole / "baseline" / WEIGHTS)}
    (tmp_path / "recam.yaml").write_text(yaml.safe_dump(section))
    words = ("train", "recam", "--data", shapes, "--config", tmp_path / "recam.yaml", "--out", tmp_path / "recam")
    kill_at(tmp_path / "recam", "checkpoint.pt", *words)
    assert not (tmp_path / "recam" / "done.json").exists()
    ok(*words)
    assert tree(tmp_path / "recam") == tree(whole / "classifier")


def test_trained_weights_stand_in_for_both_trainings(tmp_path, whole, shapes, settings):
    weights = ("--weights", whole / "classifier")
    ok("run", "recam", "--data", shapes, "--config", settings, *weights, "--out", tmp_path / "run")
    for file in (whole / "cams").glob("*.npz"):
        assert (tmp_path / "run" / "cams" / file.name).read_bytes() == file.read_bytes()
    assert not (tmp_path / "run" / "baseline").exists()


@pytest.mark.slow
def test_it_is_run_and_compared_with_the_other_methods(tmp_path):
    data = make_shapes(tmp_path / "few", train=8, val=4, size=48)
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"common": CONTENT["common"]}))
    words = ("--data", data, "--config", tmp_path / "all.yaml", "--out", tmp_path / "all", "--methods", "cam,recam")
    ok("run", "all", *words)
    weights = [tmp_path / "all" / place / WEIGHTS for place in ("cam/classifier", "recam/baseline")]
    assert weights[0].samefile(weights[1])
    compared = {run["name"]: run for run in json.loads((tmp_path / "all" / "compare.json").read_text())["runs"]}
    assert compared["recam"]["status"] == "finished"
    assert compared["recam"]["protocol"]["method"] == "ReCAM"
    assert set(compared["recam"]["scores"]) == {"maps", "pseudo masks", "predictions"}
