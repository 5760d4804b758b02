"""A trained network on single pictures, wherever it lies and whatever a picture is."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wsss
from tests.conftest import finished, tree, write_squares
from tests.methods.test_cam import SMALL as CLASSIFIER
from wsss.data.augment import SegmenterAugment
from wsss.data.files import read_mask, write_mask
from wsss.data.labels import voc_palette
from wsss.errors import BadInput
from wsss.networks.deeplab import DeepLabLayers
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.stages.predict import PredictSettings, predict
from wsss.stages.train import Training, train
from wsss.weights import WEIGHTS, read_weights, write_weights

SEGMENTER = DeepLabSettings(
    network=DeepLabLayers("test_resnet", 8, (1, 2), (0.5,), batch_norm="live"),
    init="none",
    augment=SegmenterAugment(scales=(1.0,), crop=32),
    training=Training(batch=4, epochs=None, steps=2, optimizer="adamw", lr=1e-3, workers=0),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("pictures"), 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory, images):
    """A run with a classifier and a segmenter."""
    folder = tmp_path_factory.mktemp("run")
    train(CLASSIFIER, images, out=folder / "classifier")
    for index, name in enumerate(images.names):
        write_mask(folder / "masks" / f"{name}.png", images.read_mask(index))
    train(SEGMENTER, images, masks=finished(folder / "masks"), out=folder / "segmenter")
    return folder


@pytest.mark.parametrize("crf", [None, "irn"])
def test_predictions_are_those_of_the_stage(tmp_path, run, images, crf):
    settings = PredictSettings(scales=(0.75, 1.0), flip=True, crf=crf)
    predict(settings, images, weights=run / "segmenter", out=tmp_path / "masks")
    segmenter = wsss.load(run, scales=(0.75, 1.0), flip=True, crf=crf)
    for index, name in enumerate(images.names):
        found = segmenter.predict(images.paths[index])
        np.testing.assert_array_equal(found.labels, read_mask(tmp_path / "masks" / f"{name}.png"))
        np.testing.assert_array_equal(found.labels, found.probabilities.argmax(0))
        assert found.labels.dtype == np.uint8
        assert found.probabilities.dtype == np.float32
        np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)


def test_a_picture_may_have_any_form(run, images):
    segmenter = wsss.load(run)
    values = images.read(0)
    expected = segmenter.predict(values).probabilities
    with Image.open(images.paths[0]) as opened:
        forms = [str(images.paths[0]), opened, torch.from_numpy(values.copy()).permute(2, 0, 1)]
        for form in forms:
            np.testing.assert_array_equal(segmenter.predict(form).probabilities, expected)
    grey = segmenter.predict(values[..., 0])
    np.testing.assert_array_equal(grey.picture, np.repeat(values[..., :1], 3, 2))


def test_the_result_shows_and_measures_itself(run, images):
    found = wsss.load(run).predict(images.read(0))
    areas = found.areas()
    assert list(areas) == ["background", "red", "blue"]
    assert sum(areas.values()) == pytest.approx(1)
    assert areas["red"] == (found.labels == 1).mean()
    overlay = np.asarray(found.overlay(1.0))
    objects = found.labels > 0
    np.testing.assert_array_equal(overlay[~objects], images.read(0)[~objects])
    np.testing.assert_array_equal(overlay[objects], voc_palette()[found.labels[objects]])
    np.testing.assert_array_equal(np.asarray(found.overlay(0.0)), images.read(0))
    with pytest.raises(BadInput, match="opacity"):
        found.overlay(1.5)
    with pytest.raises(AttributeError):
        found.labels = None


def test_where_the_network_may_lie(tmp_path, run):
    for path in (run, str(run), run / "segmenter", run / "segmenter" / WEIGHTS):
        assert wsss.load(path).kind == "deeplab"
    state, _ = read_weights(run / "segmenter" / WEIGHTS)
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(BadInput, match="weights of another network"):  # a published checkpoint has a ResNet-101
        wsss.load(tmp_path / "mine.pth")
    assert wsss.load(run / "classifier").kind == "cam"
    shutil.copytree(run / "classifier", tmp_path / "run" / "classifier")
    assert wsss.load(tmp_path / "run").kind == "cam"
    before = tree(run)
    wsss.load(run, device="cpu").predict(np.zeros((9, 9, 3), np.uint8))
    assert tree(run) == before


def test_the_lines_in_the_readme(tmp_path, run, images, monkeypatch):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = [
        one for one in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if "wsss.load(" in one
    ]
    assert len(block.strip().splitlines()) <= 4  # an import, an empty line, two lines
    shutil.copytree(run, tmp_path / "runs" / "mine")
    Image.fromarray(images.read(0)).save(tmp_path / "new.jpg")
    monkeypatch.chdir(tmp_path)
    known = {}
    exec(compile(block, "README.md", "exec"), known)
    assert known["found"].labels.shape == images.size_hw(0)
    with Image.open(tmp_path / "overlay.png") as drawn:
        assert drawn.size == images.size_hw(0)[::-1]


def test_what_a_network_does_not_do_is_said(run):
    picture = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(BadInput, match="found a segmenter; expected a classifier"):
        wsss.load(run).cams(picture, ["red"])
    classifier = wsss.load(run / "classifier")
    with pytest.raises(BadInput, match="found a classifier; expected a segmenter"):
        classifier.predict(picture)
    assert classifier.cams(picture, ["blue", "red"]).shape == (2, 20, 20)
    np.testing.assert_array_equal(classifier.cams(picture, ["blue", "red"])[1], classifier.cams(picture, ["red"])[0])
    for classes, message in ((["rde"], "Did you mean 'red'"), (["red", "red"], "twice")):
        with pytest.raises(BadInput, match=message):
            classifier.cams(picture, classes)
    with pytest.raises(BadInput, match="none for a classifier"):
        wsss.load(run / "classifier", crf="irn")


def test_what_is_no_network_is_refused(tmp_path, run):
    with pytest.raises(BadInput, match=r"no weights\.safetensors, and none in segmenter or classifier"):
        wsss.load(tmp_path)
    with pytest.raises(BadInput, match="no such file"):
        wsss.load(tmp_path / "run")
    (tmp_path / "a.pth").write_bytes(b"no checkpoint")
    with pytest.raises(BadInput, match=r"a\.pth"):
        wsss.load(tmp_path / "a.pth")
    write_weights(tmp_path / "other.safetensors", {"a": torch.ones(2)}, {"kind": "irnet"})
    with pytest.raises(BadInput, match="weights of a `irnet` network"):
        wsss.load(tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match=r"test\.scales"):
        wsss.load(run, scales=())


def test_pictures_are_of_the_kind_that_the_network_was_trained_on(tmp_path, run):
    state, metadata = read_weights(run / "segmenter" / WEIGHTS)
    reading = {"value_range": [0, 4095], "kinds": ["integer"], "strict": False, "bands": [], "page": None}
    write_weights(tmp_path / WEIGHTS, state, {**metadata, "reading": reading})
    deep = (np.arange(400).reshape(20, 20) * 10).astype(np.uint16)
    found = wsss.load(tmp_path).predict(deep)
    np.testing.assert_array_equal(found.picture[..., 0], np.rint(deep / 4095 * 255))
    with pytest.raises(BadInput, match="uint8 of shape"):
        wsss.load(tmp_path).predict(found.picture)
    with pytest.raises(BadInput, match="uint16 of shape"):
        wsss.load(run).predict(deep)
