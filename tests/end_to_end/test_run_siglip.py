"""`wsss localize clip_es`, `wsss run clip_es` and the refusals of other methods, with a SigLIP of random weights."""

import json

import numpy as np
import pytest
import yaml

from tests import image_text
from tests.end_to_end.conftest import ok, wsss
from wsss.data.files import read_cams
from wsss.data.open import open_dataset


def segmenter_only(tiny, path):
    """The settings of a small segmenter."""
    path.write_text(yaml.safe_dump({"segmenter": yaml.safe_load(tiny.read_text())["segmenter"]}))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A SigLIP and a MetaCLIP 2 whose texts are long enough."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in ("siglip", "metaclip_2")}
    for kind, folder in made.items():
        image_text.write(folder, kind, text={"max_position_embeddings": 64})
    return made


def test_maps_of_a_siglip(tmp_path, shapes, folders):
    found = {}
    for kind, options, score in (
        ("siglip", (), "sigmoid"),
        ("siglip", ("--score", "softmax"), "softmax"),
        ("metaclip_2", (), "softmax"),
    ):
        out = tmp_path / f"{kind} {score}"
        ok("localize", "clip_es", "--data", shapes, "--split", "val", "--clip", folders[kind], *options, "--out", out)
        result = json.loads((out / "done.json").read_text())["result"]
        assert (result["image_text"], result["score"]) == ({"siglip": "SigLIP"}.get(kind, "CLIP"), score)
        found[kind, score] = out
    images = open_dataset(shapes).split("val")
    differ = 0
    for index, name in enumerate(images.names):
        classes, maps = read_cams(found["siglip", "sigmoid"] / f"{name}.npz")
        assert classes.tolist() == images.classes(index)
        assert 0 <= maps.min() <= maps.max() <= 1
        differ += np.abs(maps - read_cams(found["siglip", "softmax"] / f"{name}.npz")[1]).max() > 0.01
    assert differ


@pytest.mark.slow
def test_a_run_with_a_siglip(tmp_path, shapes, folders, tiny):
    run = ("run", "clip_es", "--data", shapes, "--config", segmenter_only(tiny, tmp_path / "settings.yaml"))
    ok(*run, "--inference.clip", folders["siglip"], "--out", tmp_path / "run")
    report = (tmp_path / "run" / "report.html").read_text()
    assert "CLIP-ES on" in report
    assert "image-text pairs" in report


def test_methods_that_need_a_class_token(tmp_path, shapes, folders):
    siglip = folders["siglip"]
    for words, lacks in (
        (("tag", "--data", shapes, "--clip", siglip), "no class token to score regions with"),
        (("localize", "corrclip", "--data", shapes, "--clip", siglip, "--regions", shapes), "to copy for each region"),
        (("train", "clip", "--data", shapes, "--init", siglip, "--training.batch", "8"), "another loss"),
    ):
        done = wsss(*words, "--out", tmp_path / "out")
        assert done.returncode == 2, done.stderr
        assert "found a SigLIP, which has" in done.stderr
        assert lacks in done.stderr
        assert "Traceback" not in done.stderr
