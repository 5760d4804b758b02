"""`wsss segment --segmenter ...`, `wsss predict`, `wsss evaluate`; any recipe with another segmenter."""

import json
import shutil

import pytest
import yaml

from tests.end_to_end.conftest import TINY, ok
from wsss.cli import main
from wsss.data.files import read_mask
from wsss.weights import read_weights

TRAINING = {"batch": 8, "steps": 2, "workers": 0}
TINY_SEGMENTERS = {
    "emanet": {
        "network": {"backbone": "test_resnet", "channels": 32, "bases": 8},
        "init": "none",
        "augment": {"crop": 49},
        "training": TRAINING,
    },
    "deeplab_v1": {
        "network": {"backbone": "test_resnet", "dilation": 2},
        "init": "none",
        "augment": {"crop": 48},
        "training": TRAINING,
    },
    "pspnet": {
        "network": {"backbone": "test_resnet"},
        "init": "none",
        "augment": {"fit": [64, 48], "crop": 48},
        "training": TRAINING,
    },
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "segment.yaml"
    for kind, content in TINY_SEGMENTERS.items():
        path.with_name(f"{kind}.yaml").write_text(yaml.safe_dump(content))
    return path.parent


def run(*words) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("kind", ["emanet", "deeplab_v1", pytest.param("pspnet", marks=pytest.mark.slow)])
def test_segment_predict_evaluate(shapes, settings, tmp_path, kind):
    data = ("--data", shapes, "--device", "cpu")
    words = (
        "segment",
        *data,
        "--masks",
        shapes / "SegmentationClass",
        "--segmenter",
        settings / f"{kind}.yaml",
        "--segmenter.kind",
        kind,
    )
    assert run(*words, "--out", tmp_path / "segmenter") == 0
    _, metadata = read_weights(tmp_path / "segmenter" / "weights.safetensors")
    assert metadata["kind"] == kind
    record = json.loads((tmp_path / "segmenter" / "done.json").read_text())["inputs"]["settings"]
    assert record["network"]["backbone"] == "test_resnet"
    assert record["training"]["steps"] == 2
    assert record["kind"] == kind
    pictures = shapes / "JPEGImages"
    words = (
        "predict",
        "--pictures",
        pictures,
        "--weights",
        tmp_path / "segmenter",
        "--scales",
        "[1.0]",
        "--device",
        "cpu",
    )
    assert run(*words, "--out", tmp_path / "masks") == 0
    assert len(list((tmp_path / "masks").glob("*.png"))) == len(list(pictures.iterdir()))
    assert run("evaluate", *data, "--masks", tmp_path / "masks", "--out", tmp_path / "scores") == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["scores"]["pixel_accuracy"] is not None


def test_bad_choices(shapes, tmp_path, capsys):
    words = ("segment", "--data", shapes, "--masks", shapes / "SegmentationClass", "--out", tmp_path / "out")
    assert run(*words, "--segmenter", "fcn") == 2
    assert "deeplab_v1" in capsys.readouterr().err
    assert run(*words, "--segmenter", "deeplab_v1", "--preset", "paper") == 2
    assert "`imagenet`, which no library offers for resnet38" in capsys.readouterr().err
    assert run(*words, "--segmenter", "emanet", "--segmenter.head_lr", "[1, 1]") == 2
    assert "--segmenter.head_lr: found a setting of deeplab, while kind is emanet" in capsys.readouterr().err
    words = ("run", "vwl", "--data", shapes, "--out", tmp_path / "run", "--segmenter.kind", "emanet")
    assert run(*words, "--segmenter.head_lr", "[2, 2]", "--classifier.init", "none") == 2
    assert "segmenter.head_lr: found a setting of deeplab" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_recipe_with_another_segmenter(finished, shapes, tmp_path):
    # it starts from the classifier of the run, whose backbone it has
    emanet = {**TINY_SEGMENTERS["emanet"], "init": "classifier"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**TINY, "segmenter": {"kind": "emanet", **emanet}}))
    for stage in ("classifier", "cams", "cams-scores", "masks", "masks-scores"):
        shutil.copytree(finished / stage, tmp_path / "run" / stage)
    words = ("run", "cam", "--data", shapes, "--config", tmp_path / "run.yaml", "--out", tmp_path / "run")
    printed = ok(*words).stdout
    assert "predictions" in printed
    assert (tmp_path / "run" / "report.html").exists()
    state, metadata = read_weights(tmp_path / "run" / "segmenter" / "weights.safetensors")
    assert metadata["kind"] == "emanet"
    classifier, _ = read_weights(tmp_path / "run" / "classifier" / "weights.safetensors")
    name = "body.conv1.0.weight"
    # two updates at a rate of 9e-3
    assert (state[f"extractor.{name}"] - classifier[f"backbone.{name}"]).abs().max() < 0.1
    val = (shapes / "ImageSets/Segmentation/val.txt").read_text().split()
    assert read_mask(tmp_path / "run" / "predictions" / f"{val[0]}.png").ndim == 2
