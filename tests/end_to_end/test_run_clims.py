"""`wsss run clims`: from tags to a scored segmenter on every layout of data; it goes on after a kill, and from published weights."""

import pytest
import yaml

from tests.conftest import tree
from tests.end_to_end.conftest import kill_at
from tests.end_to_end.taught import (
    AROUND,
    AUGMENT,
    FEW,
    STAGES,
    check_config,
    check_published_weights,
    check_whole,
    write_layout,
)
from wsss.cli import main
from wsss.configs import CONFIGS

# as many sums in the same order as in the process that is killed
pytestmark = pytest.mark.usefixtures("one_torch_thread")

CLIMS = {
    "clip": str(CONFIGS / "demo_clip"),
    "threshold": 0.1,
    "augment": AUGMENT,
    "training": {**FEW, "steps": 4, "lr": 0.01},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings of a run that takes seconds."""
    path = tmp_path_factory.mktemp("config") / "clims.yaml"
    path.write_text(yaml.safe_dump({**AROUND, "classifier": CLIMS}))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes, settings, one_torch_thread):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["run", "clims", "--data", str(shapes), "--config", str(settings), "--out", str(out)]) == 0
    return out


def test_every_stage_is_there(whole, shapes):
    assert all(update["object_text"] > 0 for update in check_whole(whole, shapes, "CLIMS"))


@pytest.mark.slow  # tests/methods stops it after an update, and goes on
def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, whole, shapes):
    alone = {**CLIMS, "init": str(whole / "baseline" / "weights.safetensors")}
    (tmp_path / "clims.yaml").write_text(yaml.safe_dump(alone))
    words = ["train", "clims", "--data", str(shapes), "--config", str(tmp_path / "clims.yaml")]
    words += ["--out", str(tmp_path / "clims")]
    kill_at(tmp_path / "clims", "checkpoint.pt", *words)
    assert not (tmp_path / "clims" / "done.json").exists()
    assert main(words) == 0
    assert tree(tmp_path / "clims") == tree(whole / "classifier")


# the other tests have VOC's
@pytest.mark.parametrize("layout", [pytest.param("voc", marks=pytest.mark.slow), "coco", "folder"])
def test_every_layout_of_data(tmp_path, settings, shapes, layout, capsys):
    words = {"prompts": {"gnome": "garden gnome"}, "cooccurring": {"gnome": ["lawn", "hedge"]}}
    data = write_layout(tmp_path, layout, shapes, "clims", words)
    run = ["run", "clims", *data, "--config", str(settings), "--out", str(tmp_path / "run")]
    assert main(run) == 0, capsys.readouterr().err[-3000:]
    for stage in STAGES:
        assert (tmp_path / "run" / stage / "done.json").exists()


def test_trained_weights_stand_in_for_both_trainings(tmp_path, whole, shapes, settings, capsys):
    run = ["run", "clims", "--data", str(shapes), "--config", str(settings), "--refiner", "crf"]
    assert main([*run, "--weights", str(whole / "classifier"), "--out", str(tmp_path / "run")]) == 0
    for file in (whole / "cams").glob("*.npz"):
        assert (tmp_path / "run" / "cams" / file.name).read_bytes() == file.read_bytes()
    assert not (tmp_path / "run" / "baseline").exists()
    assert "predictions" in capsys.readouterr().out


def test_published_weights_localize_without_training(tmp_path):
    check_published_weights(tmp_path, "clims")


def test_what_cannot_be_used_is_refused_before_the_baseline_is_trained(tmp_path, shapes, settings, capsys):
    words = ["--data", str(shapes), "--config", str(settings), "--classifier.clip", "none.pt"]
    assert main(["run", "clims", *words, "--out", str(tmp_path / "run")]) == 2
    assert "none.pt: found no such file" in capsys.readouterr().err
    assert not (tmp_path / "run" / "baseline").exists()


def test_training_alone_asks_for_a_classifier(tmp_path, shapes, capsys):
    words = ["--clip", str(CONFIGS / "demo_clip"), "--words", str(CONFIGS / "demo_clip" / "words.yaml")]
    assert main(["train", "clims", "--data", str(shapes), *words, "--out", str(tmp_path / "clims")]) == 2
    assert "`baseline`, which only `wsss run` trains" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["clims_coco", "clims_camera_ready"])
def test_published_settings(tmp_path, name, capsys):
    check_config(tmp_path, "clims", name, capsys)
