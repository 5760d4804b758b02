"""`wsss run cam --segmenter frozen`: tokens are cached once, a head is trained on them, predicted with, exported and trained on."""

import json

import numpy as np
import pytest
import yaml

from tests.conftest import tree
from tests.end_to_end.conftest import TINY, kill_at, ok, wsss
from tests.end_to_end.test_run_cam import prefixed
from wsss.data.files import read_mask
from wsss.stages.runs import open_runs
from wsss.weights import read_weights

TRAINING = {"batch": 8, "steps": 20, "workers": 0, "lr": 0.003}


@pytest.fixture(scope="module")
def config(tmp_path_factory, finished):
    """Settings of a run whose segmenter is a head on its classifier."""
    config = tmp_path_factory.mktemp("config") / "frozen.yaml"
    head = {"kind": "frozen", "crop": 64, "training": {**TRAINING, "checkpoint_steps": 2}}
    content = {"inference": TINY["inference"], "weights": str(finished / "classifier"), "segmenter": head}
    config.write_text(yaml.safe_dump(content))
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes, config):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "frozen"
    printed = ok("run", "cam", "--data", shapes, "--config", config, "--out", out)
    assert "tokens" in printed.stdout + printed.stderr
    return out


def test_a_run_caches_tokens_and_trains_on_them(run):
    record = json.loads((run / "segmenter" / "done.json").read_text())
    assert record["inputs"]["inputs"]["tokens"]["stage"] == "tokens"
    assert json.loads((run / "tokens" / "done.json").read_text())["result"]["views"] == 2
    assert (run / "segmenter-health" / "health.json").exists()
    scores = json.loads((run / "predictions-scores" / "scores.json").read_text())
    assert scores["scores"]["miou"] > 0
    assert "head on a frozen network" in (run / "report.html").read_text()
    (read,) = open_runs([run])
    assert read.protocol["segmenter"] == "head on a frozen network, test_resnet, 20 updates"


@pytest.mark.slow
def test_the_command_trains_on_and_reads_tokens_of_a_run(run, shapes, tmp_path):
    words = ("segment", "--data", shapes, "--masks", shapes / "SegmentationClass", "--segmenter", "frozen")
    words = (*words, *(word for key, value in TRAINING.items() for word in (f"--segmenter.training.{key}", value)))
    ok(*words, "--init", run / "segmenter", "--out", tmp_path / "own")
    ok(*words, "--init", run / "segmenter", "--segmenter.tokens", run / "tokens", "--out", tmp_path / "given")
    assert not (tmp_path / "given" / "tokens").exists()
    assert (tmp_path / "own" / "tokens" / "done.json").exists()
    (one, known), (other, _) = (read_weights(tmp_path / name / "weights.safetensors") for name in ("own", "given"))
    assert known["kind"] == "frozen"
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
    # the same command again does nothing; tokens of other pictures are refused
    before = tree(tmp_path / "own")
    ok(*words, "--init", run / "segmenter", "--out", tmp_path / "own")
    assert tree(tmp_path / "own") == before
    refused = wsss(*words, "--split", "val", "--segmenter.tokens", run / "tokens", "--out", tmp_path / "val")
    assert refused.returncode == 2
    assert "no tokens of" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["tokens/tokens-0000[2-9].safetensors", "segmenter/checkpoint.pt"])
def test_a_killed_run_ends_in_the_same_bytes(run, config, shapes, tmp_path, moment):
    words = ("run", "cam", "--data", shapes, "--config", config, "--out", tmp_path / "killed")
    kill_at(tmp_path / "killed", moment, *words)
    stage = tmp_path / "killed" / moment.partition("/")[0]
    assert not (stage / "done.json").exists()
    ok(*words)
    for name in ("tokens", "segmenter", "predictions", "predictions-scores"):
        assert prefixed(tmp_path / "killed", name) == prefixed(run, name)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_cache_the_same_tokens(run, shapes, tmp_path, processes):
    words = ("segment", "--data", shapes, "--masks", shapes / "SegmentationClass", "--segmenter", "frozen")
    words = (*words, "--init", run / "segmenter", "--segmenter.training.steps", 1, "--segmenter.training.batch", 4)
    ok(*words, "--out", tmp_path / "out", processes=processes)
    ours, theirs = (
        {name: content for name, content in tree(folder).items() if name.endswith((".safetensors", "tokens.json"))}
        for folder in (run / "tokens", tmp_path / "out" / "tokens")
    )
    assert len(ours) > processes
    assert theirs == ours


def test_probabilities_of_predict(run, shapes, tmp_path):
    words = ("predict", "--pictures", shapes / "JPEGImages", "--weights", run, "--out", tmp_path / "out")
    ok(*words, "--probabilities")
    masks = sorted((tmp_path / "out").glob("*.png"))
    with np.load(tmp_path / "out" / "probabilities" / f"{masks[0].stem}.npz") as stored:
        assert {array.shape[-2:] for array in stored.values() if array.ndim == 3} == {read_mask(masks[0]).shape}


@pytest.mark.slow
@pytest.mark.usefixtures("sizes_may_be_symbols")
def test_export(run, tmp_path):
    ok("export", "model", run, "--format", "onnx", "--out", tmp_path / "model")
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    assert content["normalisation"].startswith("the mean and deviation of its frozen network, part of the model")
    agreed = content["checks"]["torch"]
    assert float(agreed.split("pictures of the training split, ")[1].split("%")[0]) > 99.9
