"""`wsss run weclip` to its end; a killed training; maps alone; predicted tags; the decoder as a segmenter."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from transformers import Dinov2Config, Dinov2Model

from tests.conftest import tree
from tests.end_to_end.conftest import TINY, kill_at, ok, wsss
from tests.end_to_end.test_run_cam import prefixed
from wsss.configs import CONFIGS
from wsss.data.files import read_cams, read_mask
from wsss.run import read_record

pytestmark = pytest.mark.slow

STAGES = (
    "classifier",
    "labels",
    "cams",
    "cams-scores",
    "masks",
    "masks-scores",
    "segmenter",
    "predictions",
    "predictions-scores",
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Settings of a run that takes seconds, with the demo's CLIP and a DINOv2 of random weights."""
    folder = tmp_path_factory.mktemp("config")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder / "dino")
    clip = str(CONFIGS / "demo_clip")
    content = {
        "classifier": {
            "clip": clip,
            "dino": str(folder / "dino"),
            "embedding": 16,
            "heads": 2,
            "decoder_blocks": 1,
            "test_side": 64,
            "views": {"crop": 48},
            "training": {"batch": 4, "steps": 6, "lr": 0.003, "warmup": 2, "workers": 1, "checkpoint_steps": 2},
        },
        "tagger": {"clip": clip, "backgrounds": False, "templates": ["a photo of a {}."], "votes": 2},
        "test": {"scales": [1.0], "flip": False, "crf": None},
    }
    (folder / "weclip.yaml").write_text(yaml.safe_dump(content))
    return folder / "weclip.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes, settings):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = ok("run", "weclip", "--data", shapes, "--config", settings, "--out", out)
    assert "maps at the best exponent" in done.stdout
    assert "predictions" in done.stdout
    assert re.search(r"labels of the first step [\d.]+ mIoU, of the last step [\d.]+ mIoU", done.stderr)
    return out


def test_every_stage_is_there(whole, shapes):
    for name in (shapes / "ImageSets/Segmentation/train.txt").read_text().split():
        classes, maps = read_cams(whole / "cams" / f"{name}.npz")
        assert 0 <= maps.min() <= maps.max() <= 1
        assert set(np.unique(read_mask(whole / "masks" / f"{name}.png"))) <= {0, *(classes + 1)}
    for name in (shapes / "ImageSets/Segmentation/val.txt").read_text().split():
        assert read_mask(whole / "predictions" / f"{name}.png").max() <= 5
    assert all((whole / stage / "done.json").exists() for stage in STAGES)
    assert read_record(whole / "masks")["inputs"]["settings"]["by"] == "par"
    history = json.loads((whole / "classifier" / "history.json").read_text())
    assert [*history[0]] == ["step", "lr", "segmentation", "dice", "cross", "affinity"]
    # the decoder is the segmenter
    weights = [(whole / stage / "weights.safetensors").read_bytes() for stage in ("classifier", "segmenter")]
    assert weights[0] == weights[1]
    report = (whole / "report.html").read_text()
    assert "WeCLIP+" in report
    assert "networks trained on image-text pairs: <b>demo_clip</b>" in report
    assert "mIoU of the labels of the last step" in report


def test_a_killed_run_ends_in_the_same_bytes(tmp_path, whole, shapes, settings):
    words = ("run", "weclip", "--data", shapes, "--config", settings, "--out", tmp_path / "killed")
    kill_at(tmp_path / "killed", "classifier/checkpoint.pt", *words)
    ok(*words)
    for stage in STAGES:
        assert prefixed(tmp_path / "killed", stage) == prefixed(whole, stage)


def test_two_processes_make_the_same_maps_and_masks(tmp_path, whole, shapes, settings):
    shutil.copytree(whole / "classifier", tmp_path / "run" / "classifier")
    ok("run", "weclip", "--data", shapes, "--config", settings, "--out", tmp_path / "run", processes=2)
    for stage in STAGES:
        assert prefixed(tmp_path / "run", stage) == prefixed(whole, stage)


def test_stages_alone(tmp_path, whole, shapes):
    ok("localize", "weclip", "--data", shapes, "--weights", whole / "classifier", "--out", tmp_path / "cams")
    assert tree(tmp_path / "cams").keys() >= {path.name for path in (whole / "cams").glob("*.npz")}
    for path in (whole / "cams").glob("*.npz"):
        assert (tmp_path / "cams" / path.name).read_bytes() == path.read_bytes()
    ok(
        "refine",
        "--data",
        shapes,
        "--cams",
        tmp_path / "cams",
        "--refiner.by",
        "par",
        "--refiner.exponent",
        "1.0",
        "--out",
        tmp_path,
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "masks").glob("*.png")} == {
        path.name: path.read_bytes() for path in (whole / "masks").glob("*.png")
    }
    ok(
        "predict",
        "--weights",
        whole,
        "--pictures",
        shapes / "JPEGImages",
        "--scales",
        "[1.0]",
        "--out",
        tmp_path / "new",
    )
    assert len(list((tmp_path / "new").glob("*.png"))) == len(list((shapes / "JPEGImages").iterdir()))


def test_predicted_tags_and_another_segmenter(tmp_path, shapes, settings):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted((shapes / "JPEGImages").iterdir())[:8]:
        shutil.copy(path, pictures)
    classes = ", ".join((shapes / "classes.txt").read_text().split())
    content = yaml.safe_load(settings.read_text())
    content["classifier"]["variant"] = "weclip"
    content["segmenter"] = {"kind": "deeplab", **TINY["segmenter"]}
    config = tmp_path / "weclip.yaml"
    config.write_text(yaml.safe_dump(content))
    words = ("run", "weclip", "--data", pictures, "--classes", classes, "--tags", "tagclip", "--config", config)
    ok(*words, "--out", tmp_path / "run")
    assert len(list((tmp_path / "run" / "masks").glob("*.png"))) == 8
    assert read_record(tmp_path / "run" / "segmenter")["kind"] == "train"


def test_what_cannot_work_is_one_line(tmp_path, whole, shapes, settings, tiny):
    for words, message in (
        (("run", "cam", "--config", tiny, "--segmenter", "weclip"), "segmenter.kind: found weclip"),
        (("run", "weclip", "--config", settings, "--corrected", whole / "masks"), "with corrected masks"),
        (
            ("run", "weclip", "--config", settings, "--classifier.dino", tmp_path / "none"),
            "none: found no such file or folder",
        ),
        (("segment", "--masks", whole / "masks", "--segmenter", "weclip"), "segmenter.kind: found weclip"),
        (("export", "model", whole), "a decoder on frozen networks"),
    ):
        place = () if words[0] == "export" else ("--data", shapes)
        done = wsss(*words, *place, "--out", tmp_path / words[0])
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
