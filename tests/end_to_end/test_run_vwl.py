"""`wsss run vwl` with a memory bank: from tags to a scored segmenter; kill and resume; two processes."""

import json
import shutil

import pytest
import yaml

from tests.end_to_end.conftest import TINY, kill_at, ok
from tests.end_to_end.test_run_cam import prefixed
from wsss.data.files import read_cams, read_mask
from wsss.weights import read_weights

pytestmark = pytest.mark.slow

VWL = {**TINY["classifier"], "words": 16, "heads_lr": 1.0}
del VWL["classifier_lr"]
STAGES = (
    "classifier",
    "words",
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
    """Settings of a run with a memory bank that takes seconds, refined by a dense CRF, IRNet has its own tests."""
    content = {
        "classifier": {**VWL, "variant": "vwl-m", "bank_rate": 0.1},
        "words": {"pictures": 12, "words": 6, "patches": 4, "examples": 3},
        "inference": TINY["inference"],
        "refiner": "crf",
        "segmenter": TINY["segmenter"],
    }
    path = tmp_path_factory.mktemp("config") / "vwl.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes, settings):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = ok("run", "vwl", "--data", shapes, "--config", settings, "--out", out)
    assert "maps at the best threshold" in done.stdout
    return out


def test_every_stage_is_there(whole, shapes):
    for name in (shapes / "ImageSets/Segmentation/train.txt").read_text().split():
        _, maps = read_cams(whole / "cams" / f"{name}.npz")
        assert 0 <= maps.min() <= maps.max() <= 1
        assert read_mask(whole / "masks" / f"{name}.png").shape == maps.shape[1:]
    for stage in STAGES:
        assert (whole / stage / "done.json").exists()
    state, metadata = read_weights(whole / "classifier" / "weights.safetensors")
    assert metadata["variant"] == "vwl-m"
    assert state["bank.updates"] == 12
    assert state["bank.codebook"].shape[0] == 16
    result = json.loads((whole / "words" / "done.json").read_text())["result"]
    assert (result["pictures"], result["words"]) == (12, 16)
    assert (whole / "words" / "figure.jpg").stat().st_size > 10_000


def test_a_killed_run_ends_in_the_same_bytes(tmp_path, whole, shapes, settings):
    words = ("run", "vwl", "--data", shapes, "--config", settings, "--out", tmp_path / "killed")
    kill_at(tmp_path / "killed", "classifier/checkpoint.pt", *words)
    shutil.copytree(whole / "segmenter", tmp_path / "killed" / "segmenter")
    ok(*words)
    for stage in STAGES:
        assert prefixed(tmp_path / "killed", stage) == prefixed(whole, stage)


def test_two_processes_make_the_same_maps(tmp_path, whole, shapes):
    # without it, a preset may choose bfloat16
    options = (
        "--weights",
        whole / "classifier",
        "--scales",
        "[1.0, 0.5]",
        "--precision",
        "no",
        "--out",
        tmp_path / "cams",
    )
    ok("localize", "vwl", "--data", shapes, *options, processes=2)
    assert maps(tmp_path) == maps(whole)


def maps(run):
    return {name: content for name, content in prefixed(run, "cams").items() if name.endswith(".npz")}
