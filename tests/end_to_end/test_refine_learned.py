"""`wsss run cam --refiner irnet|affinitynet`, `wsss refine --refiner ...`: a learned affinity between maps and masks."""

import json
import shutil

import pytest
import yaml

from tests.end_to_end.conftest import TINY, kill_at, ok
from tests.end_to_end.test_run_cam import prefixed
from wsss.cli import main
from wsss.data.files import read_cams, read_mask
from wsss.weights import read_weights

pytestmark = pytest.mark.slow

TRAINING = {"batch": 8, "epochs": None, "steps": 6, "lr": 0.05, "workers": 1, "checkpoint_steps": 2}
LEARNED = {
    "irnet": {
        "network": {
            "backbone": "test_resnet",
            "init": "classifier",
            "radius": 4,
            "augment": {"crop": 48},
            "training": TRAINING,
        },
        "walk": {"pad_to": 0},
    },
    "affinitynet": {
        "network": {
            "backbone": "test_resnet",
            "init": "none",
            "radius": 3,
            "augment": {"crop": 48},
            "training": TRAINING,
        },
        "walk": {"doublings": 4},
    },
}
STAGES = {
    "irnet": ("irnet-labels", "irnet", "irnet-walk", "masks"),
    "affinitynet": ("affinitynet-labels", "affinitynet", "masks"),
}


@pytest.fixture(scope="module")
def refine_settings(tmp_path_factory):
    """Files with settings of whole runs, of which `wsss refine` takes its section, by the refiner."""
    folder = tmp_path_factory.mktemp("config")
    for kind, content in LEARNED.items():
        (folder / kind).write_text(yaml.safe_dump({**TINY, "refiner": {"kind": kind, **content}}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shapes, finished, refine_settings):
    """Makes the run with a refiner that nothing disturbed, and what it printed; its classifier and maps are those of CAM's run."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(refiner):
        if refiner not in made:
            out = folder / refiner
            made[refiner] = out, ""
            for stage in ("classifier", "cams", "cams-scores"):
                shutil.copytree(finished / stage, out / stage)
            words = ("--data", shapes, "--config", refine_settings / refiner, "--segmenter.training.steps", 2)
            made[refiner] = out, ok("run", "cam", *words, "--out", out).stdout
        return made[refiner]

    return run


def refine_words(refiner, shapes, finished, settings, out):
    """`wsss refine` in a folder with classifier and maps, where records say the same of them as in a run."""
    for stage in ("classifier", "cams"):
        shutil.copytree(finished / stage, out / stage)
    words = ("--cams", out / "cams", "--classifier", out / "classifier", "--config", settings / refiner, "--out", out)
    return ("refine", "--data", shapes, *words)


@pytest.mark.parametrize("refiner", ["irnet", "affinitynet"])
def test_a_run_goes_to_its_end(runs, finished, shapes, refiner):
    out, printed = runs(refiner)
    assert "pseudo masks" in printed
    assert ("refined maps" in printed) == (refiner == "irnet")
    assert "predictions" in printed
    names = (shapes / "ImageSets/Segmentation/train.txt").read_text().split()
    for name in names:
        _, maps = read_cams(finished / "cams" / f"{name}.npz")
        assert read_mask(out / "masks" / f"{name}.png").shape == maps.shape[1:]
    for stage in (*STAGES[refiner], "masks-scores", "segmenter", "predictions", "predictions-scores"):
        assert (out / stage / "done.json").exists()
    assert json.loads((out / "masks-scores" / "scores.json").read_text())["scores"]["miou"] > 0
    assert (out / "report.html").stat().st_size > 10_000
    state, _ = read_weights(out / refiner / "weights.safetensors")
    assert any(name.startswith("backbone.") for name in state)


@pytest.mark.parametrize(
    ("refiner", "moment"),
    [
        ("irnet", "irnet-walk/*.npz"),
        pytest.param("affinitynet", "affinitynet/checkpoint.pt", marks=pytest.mark.slow),
        pytest.param("irnet", "irnet/checkpoint.pt", marks=pytest.mark.slow),
        pytest.param("affinitynet", "masks/*.png", marks=pytest.mark.slow),
    ],
)
def test_a_killed_refinement_ends_in_the_bytes_of_a_run(
    tmp_path, runs, shapes, finished, refine_settings, refiner, moment
):
    whole, _ = runs(refiner)
    words = refine_words(refiner, shapes, finished, refine_settings, tmp_path / "killed")
    kill_at(tmp_path / "killed", moment, *words)
    assert not (tmp_path / "killed" / "masks" / "done.json").exists()
    assert ok(*words).stdout.strip().endswith(str(tmp_path / "killed" / "masks"))
    for stage in STAGES[refiner]:
        assert prefixed(tmp_path / "killed", stage) == prefixed(whole, stage)


@pytest.mark.slow
@pytest.mark.parametrize("refiner", ["irnet", "affinitynet"])
def test_two_processes_make_the_same_masks_of_the_same_weights(
    tmp_path, runs, shapes, finished, refine_settings, refiner
):
    whole, _ = runs(refiner)
    shutil.copytree(whole / refiner, tmp_path / "two" / refiner)
    words = refine_words(refiner, shapes, finished, refine_settings, tmp_path / "two")
    ok(*words, processes=2)
    for stage in STAGES[refiner]:
        assert prefixed(tmp_path / "two", stage) == prefixed(whole, stage)


@pytest.mark.parametrize(
    ("refiner", "name", "value", "found"),
    [
        ("irnet", "network.augment.crop", "50", "found 50; expected a multiple of 16"),
        ("affinitynet", "network.init", "imagenet", "which no library offers for resnet38"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(tmp_path, shapes, finished, capsys, refiner, name, value, found):
    # missing weights would be said first
    given = ["--refiner.network.init", "classifier", f"--refiner.{name}", value]
    for words in (
        ("run", "cam", "--preset", "paper", "--classifier.init", "none", "--refiner", refiner, *given),
        ("refine", "--preset", "paper", "--refiner", refiner, "--cams", finished / "cams", *given),
    ):
        assert main([str(word) for word in (*words, "--data", shapes, "--out", tmp_path / "run")]) == 2
        assert found in capsys.readouterr().err
        assert not list(tmp_path.rglob("*.npz"))
        assert not list(tmp_path.rglob("checkpoint.pt"))
