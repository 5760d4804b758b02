"""`wsss train clip`, `wsss run clip_es`: from pictures and tags, or bare pictures and words, to a scored segmenter."""

import csv
import json
import shutil

import pytest
import yaml
from PIL import Image

from tests.conftest import tree
from tests.end_to_end.conftest import TINY, kill_at, ok, wsss
from tests.end_to_end.test_run_cam import prefixed
from wsss.data.files import read_cams, read_mask

CLIP = {
    "init": "none",
    "architecture": {"patch": 8, "width": 32, "blocks": 3, "heads": 2, "text_width": 16, "text_blocks": 1, "joint": 16},
    "augment": {"long_side": [48, 64], "crop": 48},
    "training": {"batch": 8, "epochs": 2, "lr": 0.003, "warmup": 0, "workers": 1},
}
TAGCLIP = ("--tags", "tagclip")
STAGES = ("tags", "cams", "cams-scores", "masks", "masks-scores", "segmenter", "predictions", "predictions-scores")


@pytest.fixture(scope="module")
def clip(tmp_path_factory, shapes):
    """A CLIP of three blocks that has seen the pictures twice."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "clip.yaml").write_text(yaml.safe_dump(CLIP))
    ok("train", "clip", "--data", shapes, "--config", folder / "clip.yaml", "--out", folder / "clip")
    return folder / "clip"


@pytest.fixture(scope="module")
def settings(tmp_path_factory, clip):
    """Settings of CLIP-ES and TagCLIP with it, and of a segmenter that trains in seconds."""
    inference = {"clip": str(clip), "competitors": "all", "backgrounds": False, "attention_blocks": 2}
    content = {
        "inference": inference,
        "segmenter": TINY["segmenter"],
        "tagger": {"clip": str(clip), "backgrounds": False, "templates": ["a photo of a {}."], "votes": 2},
    }
    path = tmp_path_factory.mktemp("config") / "clip_es.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes, settings):
    """A run with predicted tags that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = ok("run", "clip_es", "--data", shapes, *TAGCLIP, "--config", settings, "--out", out)
    assert "maps at the best exponent" in done.stdout
    assert "predictions" in done.stdout
    return out


def test_every_stage_is_there(whole, shapes):
    for name in (shapes / "ImageSets/Segmentation/train.txt").read_text().split():
        _, maps = read_cams(whole / "cams" / f"{name}.npz")
        assert 0 <= maps.min() <= maps.max() <= 1
        assert read_mask(whole / "masks" / f"{name}.png").shape == maps.shape[1:]
    scores = json.loads((whole / "cams-scores" / "scores.json").read_text())
    assert scores["protocol"]["background"] == "power"
    assert scores["curve"]["thresholds"] == [1.0, 2.0]
    assert "CLIP-ES on" in (whole / "report.html").read_text()


# the masks of CAM are made in the same way, in its tests
@pytest.mark.parametrize("moment", ["cams/*.npz", pytest.param("masks/*.png", marks=pytest.mark.slow)])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path, whole, shapes, settings, moment):
    words = ("run", "clip_es", "--data", shapes, *TAGCLIP, "--config", settings, "--out", tmp_path / "killed")
    kill_at(tmp_path / "killed", moment, *words)
    shutil.copytree(whole / "segmenter", tmp_path / "killed" / "segmenter")
    ok(*words)
    for stage in STAGES:
        assert prefixed(tmp_path / "killed", stage) == prefixed(whole, stage)


@pytest.mark.slow
def test_two_processes_make_the_same_tags_maps_and_masks(tmp_path, whole, shapes, settings):
    shutil.copytree(whole / "segmenter", tmp_path / "run" / "segmenter")
    ok("run", "clip_es", "--data", shapes, *TAGCLIP, "--config", settings, "--out", tmp_path / "run", processes=2)
    for stage in ("tags", "cams", "cams-scores", "masks", "masks-scores"):
        assert prefixed(tmp_path / "run", stage) == prefixed(whole, stage)


def test_tags_are_scored_against_the_true_ones(tmp_path, whole, shapes, clip):
    options = ("--clip", clip, "--backgrounds", "false", "--votes", "2", "--templates", '["a photo of a {}."]')
    ok("tag", "--data", shapes, *options, "--out", tmp_path / "tags")
    assert tree(tmp_path / "tags")["tags.csv"] == tree(whole / "tags")["tags.csv"]
    quality = json.loads((tmp_path / "tags" / "done.json").read_text())["result"]
    assert 0 <= quality["precision"] <= 1
    assert 0 <= quality["recall"] <= 1


def test_bare_pictures_and_words_become_masks(tmp_path, shapes, settings):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted((shapes / "JPEGImages").iterdir())[:10]:
        shutil.copy(path, pictures)
    words = ", ".join((shapes / "classes.txt").read_text().split())
    run = ("run", "clip_es", "--data", pictures, "--classes", words, "--config", settings)
    ok(*run, "--tags", "tagclip", "--out", tmp_path / "run")
    table = tmp_path / "run" / "tags" / "tags.csv"
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(list(pictures.iterdir())) == len(list((tmp_path / "run" / "masks").glob("*.png")))
    assert {tag for row in rows for tag in row["tags"].split(";")} <= set(words.split(", "))
    # a person corrects the table and runs again
    corrected = tmp_path / "corrected.csv"
    corrected.write_text(table.read_text().replace(rows[0]["tags"], words.split(", ")[0], 1))
    ok(*run, "--tags", corrected, "--out", tmp_path / "again")
    assert len(list((tmp_path / "again" / "masks").glob("*.png"))) == len(rows)


def test_words_that_clip_cannot_take(shapes, tmp_path, settings):
    same = tmp_path / "same.yaml"
    same.write_text("prompts: {ball: round, ring: round}\n")
    run = ("run", "clip_es", "--data", shapes, "--config", settings, "--out", tmp_path / "run")
    done = wsss(*run, "--inference.words", same)
    assert done.returncode == 2
    assert "'round' twice" in done.stderr
    assert "Traceback" not in done.stderr
    done = wsss(*run, "--inference.clip", tmp_path / "missing.pt")
    assert done.returncode == 2
    assert "no such file" in done.stderr


def test_a_picture_smaller_than_a_patch_is_named(shapes, tmp_path, settings):
    copy = tmp_path / "data"
    shutil.copytree(shapes, copy)
    name = (copy / "ImageSets/Segmentation/train.txt").read_text().split()[0]

    Image.new("RGB", (40, 5)).save(copy / "JPEGImages" / f"{name}.jpg")
    Image.new("L", (40, 5)).save(copy / "SegmentationClass" / f"{name}.png")
    done = wsss("run", "clip_es", "--data", copy, "--config", settings, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert f"{name}.jpg: found 5x40 pixels; expected at least one patch (8x8)" in done.stderr
