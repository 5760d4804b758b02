"""`wsss run clims`: from tags to a scored segmenter on every layout of data; it goes on after a kill, and from published weights."""

import json
import shutil

import pytest
import torch
import yaml

from tests.conftest import tree
from tests.data.conftest import write_coco, write_voc
from tests.end_to_end.conftest import TINY, kill_at
from wsss.cli import CONFIGS, main
from wsss.data.files import read_cams, read_mask
from wsss.methods import cam
from wsss.weights import read_weights

# as many sums in the same order as in the process that is killed
pytestmark = pytest.mark.usefixtures("one_torch_thread")

FEW = {"batch": 2, "epochs": None, "steps": 2, "workers": 0, "checkpoint_steps": 1}
AUGMENT = {"long_side": [48, 64], "crop": 48}
CONTENT = {
    "classifier": {**TINY["classifier"], "training": {**FEW, "optimizer": "adamw", "lr": 0.003}},
    "clims": {
        "clip": str(CONFIGS / "demo_clip"),
        "threshold": 0.1,
        "augment": AUGMENT,
        "training": {**FEW, "steps": 4, "lr": 0.01},
    },
    "inference": {"scales": [1.0, 0.5]},
    "tail": {
        "irnet": {
            "network": {
                "backbone": "test_resnet",
                "init": "classifier",
                "radius": 4,
                "augment": {"crop": 48},
                "training": {**FEW, "lr": 0.01},
            },
            "walk": {"doublings": 3},
        },
        "segmenter": {**TINY["tail"]["segmenter"], "training": {**FEW, "accumulate": 1, "lr": 0.001}},
    },
}
STAGES = (
    "classifier",
    "clims",
    "cams",
    "irnet-labels",
    "irnet",
    "irnet-walk",
    "masks",
    "segmenter",
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings of a run that takes seconds."""
    path = tmp_path_factory.mktemp("config") / "clims.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes, settings, one_torch_thread):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["run", "clims", "--data", str(shapes), "--config", str(settings), "--out", str(out)]) == 0
    return out


def test_every_stage_is_there(whole, shapes):
    for name in (shapes / "ImageSets/Segmentation/train.txt").read_text().split():
        _, maps = read_cams(whole / "cams" / f"{name}.npz")
        assert 0 <= maps.min() <= maps.max() <= 1
        assert read_mask(whole / "masks" / f"{name}.png").shape == maps.shape[1:]
    for stage in (*STAGES, "cams-scores", "irnet-walk-scores", "masks-scores", "predictions", "predictions-scores"):
        assert (whole / stage / "done.json").exists()
    baseline, _ = read_weights(whole / "classifier" / "weights.safetensors")
    taught, _ = read_weights(whole / "clims" / "weights.safetensors")
    assert baseline.keys() == taught.keys()
    assert not torch.equal(baseline["classifier.weight"], taught["classifier.weight"])
    history = json.loads((whole / "clims" / "history.json").read_text())
    assert all(update["object_text"] > 0 for update in history)
    assert "clims on" in (whole / "report.html").read_text()


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path, whole, shapes):
    alone = {**CONTENT["clims"], "init": str(whole / "classifier" / "weights.safetensors")}
    (tmp_path / "clims.yaml").write_text(yaml.safe_dump(alone))
    words = ["train", "clims", "--data", str(shapes), "--config", str(tmp_path / "clims.yaml")]
    words += ["--out", str(tmp_path / "clims")]
    kill_at(tmp_path / "clims", "checkpoint.pt", *words)
    assert not (tmp_path / "clims" / "done.json").exists()
    assert main(words) == 0
    assert tree(tmp_path / "clims") == tree(whole / "clims")


@pytest.mark.parametrize("layout", ["voc", "coco", "folder"])
def test_every_layout_of_data(tmp_path, settings, shapes, layout, capsys):
    if layout == "folder":
        data = tmp_path / "data"
        names = (shapes / "ImageSets/Segmentation/train.txt").read_text().split()[:4]
        for number, name in enumerate(names):
            (data / "images").mkdir(parents=True, exist_ok=True)
            shutil.copy(shapes / "JPEGImages" / f"{name}.jpg", data / "images" / f"{number}.jpg")
        # the last one has no tag
        tags = ("gnome", "gnome;fox", "fox", "")
        rows = "".join(f"images/{number}.jpg,{tag}\n" for number, tag in enumerate(tags))
        (data / "tags.csv").write_text(f"image,tags\n{rows}")
        words = tmp_path / "words.yaml"
        words.write_text("prompts: {gnome: garden gnome}\ncooccurring: {gnome: [lawn, hedge]}\n")
        options = ["--clims.words", str(words)]
    else:
        data = {"voc": write_voc, "coco": write_coco}[layout](tmp_path / layout)
        options = []
    run = ["run", "clims", "--data", str(data), "--config", str(settings), "--out", str(tmp_path / "run"), *options]
    assert main(run) == 0, capsys.readouterr().err[-3000:]
    for stage in STAGES:
        assert (tmp_path / "run" / stage / "done.json").exists()


def test_trained_weights_stand_in_for_both_trainings(tmp_path, whole, shapes, settings, capsys):
    run = ["run", "clims", "--data", str(shapes), "--config", str(settings), "--refine", "crf"]
    assert main([*run, "--weights", str(whole / "clims"), "--out", str(tmp_path / "run")]) == 0
    for file in (whole / "cams").glob("*.npz"):
        assert (tmp_path / "run" / "cams" / file.name).read_bytes() == file.read_bytes()
    assert not (tmp_path / "run" / "classifier").exists()
    assert "segmenter" in capsys.readouterr().out


def test_published_weights_localize_without_training(tmp_path, capsys):
    data = write_voc(tmp_path / "voc")
    network = cam.Network("resnet50", 20)
    state = network.state_dict()
    torch.save(state | {"newly_added.0.weight": state["classifier.weight"]}, tmp_path / "res50_clims.pth")
    words = ["--weights", str(tmp_path / "res50_clims.pth"), "--data", str(data), "--scales", "[1.0]"]
    assert main(["localize", "clims", *words, "--out", str(tmp_path / "cams")]) == 0, capsys.readouterr().err
    classes, maps = read_cams(tmp_path / "cams" / "2007_000032.npz")
    assert classes.tolist() == [0, 14]
    assert maps.shape == (2, 30, 40)


def test_what_cannot_be_used_is_refused_before_the_baseline_is_trained(tmp_path, shapes, settings, capsys):
    words = ["--data", str(shapes), "--config", str(settings), "--clims.clip", "none.pt"]
    assert main(["run", "clims", *words, "--out", str(tmp_path / "run")]) == 2
    assert "none.pt: found no such file" in capsys.readouterr().err
    assert not (tmp_path / "run" / "classifier").exists()


def test_training_alone_asks_for_a_classifier(tmp_path, shapes, capsys):
    assert main(["train", "clims", "--data", str(shapes), "--out", str(tmp_path / "clims")]) == 2
    assert "`baseline`, which a run trains" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["clims_coco", "clims_camera_ready"])
def test_published_settings(tmp_path, name, capsys):
    config = CONFIGS / f"{name}.yaml"
    words = ["--data", str(tmp_path), "--out", str(tmp_path), "--config", str(config), "--print_config"]
    with pytest.raises(SystemExit):
        main(["run", "clims", *words])
    printed = yaml.safe_load(capsys.readouterr().out)
    for key, value in flat(yaml.safe_load(config.read_text())).items():
        assert flat(printed)[key] == value


def flat(content, prefix=""):
    if not isinstance(content, dict):
        return {prefix: content}
    return {name: item for key, value in content.items() for name, item in flat(value, f"{prefix}.{key}").items()}
