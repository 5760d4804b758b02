"""`wsss run cam --segmenter retrieval`: the bank, predictions, the report that explains them; and banks that grow by commands."""

import json

import numpy as np
import pytest

from tests.end_to_end.conftest import TINY, ok, wsss
from wsss.data.files import read_mask
from wsss.segmenters.retrieval import opened_bank

SMALL = ("--erosion_share", 0.1, "--fewest_pixels", 20, "--lowest_score", 0.0, "--voting", "by-class")


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes, finished):
    """A run that looks regions up."""
    import yaml

    config = tmp_path_factory.mktemp("config") / "retrieval.yaml"
    settings = {name: TINY[name] for name in ("inference",)}
    lookup = {"kind": "retrieval", "erosion_share": 0.1, "fewest_pixels": 20, "lowest_score": 0.0, "voting": "by-class"}
    config.write_text(yaml.safe_dump({**settings, "weights": str(finished / "classifier"), "segmenter": lookup}))
    out = tmp_path_factory.mktemp("runs") / "retrieval"
    ok("run", "cam", "--data", shapes, "--config", config, "--out", out)
    return out


def test_a_run_ends_with_a_report_that_shows_the_nearest_training_regions(run, shapes):
    nearest = json.loads((run / "predictions-nearest" / "nearest.json").read_text())
    train = set((shapes / "ImageSets" / "Segmentation" / "train.txt").read_text().split())
    val = set((shapes / "ImageSets" / "Segmentation" / "val.txt").read_text().split())
    assert nearest["regions"]
    for region in nearest["regions"]:
        assert region["image"] in val
        assert 1 <= region["label"] <= len(nearest["classes"])
        assert 1 <= len(region["nearest"]) <= 5
        assert {one["image"] for one in region["nearest"]} <= train
        similarities = [one["similarity"] for one in region["nearest"]]
        assert similarities == sorted(similarities, reverse=True)
    page = (run / "report.html").read_text()
    assert "Nearest training regions" in page
    assert nearest["regions"][0]["nearest"][0]["image"] in page
    scores = json.loads((run / "predictions-scores" / "scores.json").read_text())
    assert scores["scores"]["miou"] > 0
    health = json.loads((run / "segmenter-health" / "health.json").read_text())
    assert "recognised by other pictures" in health["measured"]
    assert (run / "segmenter-health" / "suspects.json").exists()


def test_the_comparison_names_the_size_of_the_bank(run, finished, tmp_path):
    ok("compare", run, finished, "--out", tmp_path / "comparison")
    regions = len(opened_bank(run / "segmenter")[0])
    assert f"ModuSeg, {regions} regions" in (tmp_path / "comparison" / "compare.html").read_text()


def test_every_output_of_predict(run, shapes, tmp_path):
    words = ("predict", "--pictures", shapes / "JPEGImages", "--weights", run, "--out", tmp_path / "out")
    ok(*words, "--probabilities", "--json", "--overlay", "--crf", "deeplab")
    masks = sorted((tmp_path / "out").glob("*.png"))
    assert len(masks) == 32
    with np.load(tmp_path / "out" / "probabilities" / f"{masks[0].stem}.npz") as stored:
        assert {array.shape[-2:] for array in stored.values() if array.ndim == 3} == {read_mask(masks[0]).shape}
    ok("export", "masks", run / "predictions", "--format", "coco", "--out", tmp_path / "coco")


def test_pictures_are_added_by_a_command(run, shapes, finished, tmp_path):
    data = ("--data", shapes, "--masks", shapes / "SegmentationClass")
    words = ("segment", *data, "--split", "val", "--segmenter", "retrieval", *SMALL)
    ok(*words, "--init", run / "segmenter", "--out", tmp_path / "more")
    before, after = (opened_bank(folder)[0] for folder in (run / "segmenter", tmp_path / "more"))
    assert len(after.names) == len(before.names) + 8
    np.testing.assert_array_equal(after.vectors[: len(before)], before.vectors)
    # the same command again does nothing, and another kind of segmenter is refused
    ok(*words, "--init", run / "segmenter", "--out", tmp_path / "more")
    refused = wsss(*words, "--init", finished / "segmenter", "--out", tmp_path / "other")
    assert refused.returncode == 2
    assert "a segmenter of kind `retrieval`" in refused.stderr


def test_a_bank_is_not_exported_as_a_network(run, tmp_path):
    refused = wsss("export", "model", run, "--format", "torchscript", "--out", tmp_path / "model")
    assert refused.returncode == 2
    assert "a bank of regions" in refused.stderr
    ok("export", "model", run, "--format", "hub", "--out", tmp_path / "hub")
    assert (tmp_path / "hub" / "weights.safetensors").exists()
