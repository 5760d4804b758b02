"""`wsss run cam`: what it leaves behind, that it goes on after a kill, that two processes do what one does."""

import json
import shutil

import numpy as np
import pytest
import yaml

from tests.conftest import tree
from tests.end_to_end.conftest import TINY, kill_at, ok, wsss
from wsss.data.files import read_cams, read_mask
from wsss.stages.check import CONTENTS
from wsss.weights import read_weights

STAGES = (
    "classifier",
    "cams",
    "cams-scores",
    "masks",
    "masks-scores",
    "segmenter",
    "predictions",
    "predictions-scores",
    "data-health",
    "classifier-health",
    "cams-health",
    "masks-health",
    "segmenter-health",
)


def stages(run):
    """The bytes of all stages of a run."""
    return {name: content for stage in STAGES for name, content in prefixed(run, stage).items()}


def prefixed(run, stage):
    return {f"{stage}/{name}": content for name, content in tree(run / stage).items()}


def test_every_stage_is_there(finished, shapes):
    names = (shapes / "ImageSets/Segmentation/train.txt").read_text().split()
    for name in names:
        _, maps = read_cams(finished / "cams" / f"{name}.npz")
        assert maps.min() >= 0
        assert maps.max() <= 1
        assert read_mask(finished / "masks" / f"{name}.png").shape == maps.shape[1:]
    for name in (shapes / "ImageSets/Segmentation/val.txt").read_text().split():
        assert (finished / "predictions" / f"{name}.png").exists()
    for stage in STAGES:
        assert (finished / stage / "done.json").exists()
    scores = json.loads((finished / "cams-scores" / "scores.json").read_text())
    assert (
        scores["protocol"]["threshold"]
        == max(zip(scores["curve"]["miou"], [-t for t in scores["curve"]["thresholds"]], strict=True))[1] * -1
    )
    assert (finished / "report.html").stat().st_size > 10_000


def test_the_same_command_does_nothing_twice(finished, shapes, tiny):
    def times():
        # files that were written less than two seconds before the first run are remembered by the second
        unlike = {"report.html", CONTENTS}
        return {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name not in unlike}

    before = times()
    done = ok("run", "cam", "--data", shapes, "--config", tiny, "--out", finished)
    assert times() == before
    assert "mIoU" in done.stdout


def test_other_settings_are_refused(finished, shapes, tiny):
    done = wsss("run", "cam", "--data", shapes, "--config", tiny, "--out", finished, "--classifier.training.lr", "0.5")
    assert done.returncode == 2
    assert "settings.training.lr was 0.003 and is now 0.5" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "moment",
    [
        "classifier/checkpoint.pt",
        pytest.param("cams/*.npz", marks=pytest.mark.slow),  # CLIP-ES has it too, in its tests
        "masks/*.png",
        pytest.param("segmenter/checkpoint.pt", marks=pytest.mark.slow),  # continues as the classifier does
    ],
)
def test_a_killed_run_ends_in_the_same_bytes(tmp_path, finished, shapes, tiny, moment):
    words = ("run", "cam", "--data", shapes, "--config", tiny, "--out", tmp_path / "killed")
    stopped_in = STAGES.index(moment.partition("/")[0])
    for earlier in STAGES[:stopped_in]:
        shutil.copytree(finished / earlier, tmp_path / "killed" / earlier)
    kill_at(tmp_path / "killed", moment, *words)
    assert not (tmp_path / "killed" / "predictions-scores" / "done.json").exists()
    page = (tmp_path / "killed" / "report.html").read_text()
    assert 'http-equiv="refresh"' in page
    assert page.endswith("</html>")
    if not moment.startswith("segmenter"):  # its record says which masks it was trained on
        shutil.copytree(finished / "segmenter", tmp_path / "killed" / "segmenter")
    ok(*words)
    assert stages(tmp_path / "killed") == stages(finished)
    assert 'http-equiv="refresh"' not in (tmp_path / "killed" / "report.html").read_text()


def test_two_processes_train_like_one(tmp_path, shapes):
    # SGD, because AdamW divides by gradients that are all rounding error where the true ones are 0; one epoch, because
    # rounding grows with the updates, by how much depends on the processor. tests/test_launch.py trains in float64.
    changed = {"optimizer": "sgd", "lr": 0.05, "epochs": 1}
    classifier = {**TINY["classifier"], "training": {**TINY["classifier"]["training"], **changed}}
    (tmp_path / "sgd.yaml").write_text(yaml.safe_dump(classifier))
    for processes in (1, 2):
        out = tmp_path / str(processes)
        ok("train", "cam", "--data", shapes, "--config", tmp_path / "sgd.yaml", "--out", out, processes=processes)
    one, _ = read_weights(tmp_path / "1" / "weights.safetensors")
    two, _ = read_weights(tmp_path / "2" / "weights.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name].numpy(), value.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)


def test_two_processes_go_on_from_the_same_weights_to_the_same_bytes(tmp_path, finished, shapes, tiny):
    shutil.copytree(finished / "classifier", tmp_path / "run" / "classifier")
    ok("run", "cam", "--data", shapes, "--config", tiny, "--out", tmp_path / "run", processes=2)
    for stage in ("classifier-health", "cams", "cams-health", "cams-scores", "masks", "masks-health", "masks-scores"):
        assert prefixed(tmp_path / "run", stage) == prefixed(finished, stage)
    assert (tmp_path / "run" / "report.html").exists()
