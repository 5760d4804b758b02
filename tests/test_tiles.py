"""Predictions that are computed block by block and tile by tile: the same as the whole, within the memory budget, and said in the record."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.segmenters.tiny import ALL
from wsss import memory
from wsss.cli import main
from wsss.data.files import read_mask
from wsss.data.predictions import read_probabilities
from wsss.networks.deeplab import create_deeplab
from wsss.networks.deeplab_v1 import DeepLabV1
from wsss.networks.emanet import EMANet
from wsss.networks.pspnet import PSPNet
from wsss.networks.receptive import reach
from wsss.ops.enlarging import Step, enlarge
from wsss.run import read_record
from wsss.stages import predict as predict_module
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.weights import WEIGHTS, write_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")
CLASSES, SIZE = ["red", "blue"], (130, 170)
NETWORKS = {"deeplab": create_deeplab, "deeplab_v1": DeepLabV1, "emanet": EMANet, "pspnet": PSPNet}


@pytest.fixture(autouse=True)
def default_budget():
    yield
    memory.choose(None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Segmenters of all kinds with random weights, by their names."""
    folder = tmp_path_factory.mktemp("segmenters")
    for name, settings in ALL.items():
        torch.manual_seed(0)
        metadata = {"kind": name, "network": dataclasses.asdict(settings.network), "classes": CLASSES}
        if name == "deeplab":
            metadata["colours"] = "imagenet"
        elif name == "pspnet":
            metadata |= {"fit": [64, 32], "window": 32}
        network = NETWORKS[name](3, settings.network)
        write_weights(folder / name / WEIGHTS, network.state_dict(), metadata)
    return folder


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(7, 30), slice(39, 41)])
@pytest.mark.parametrize(
    "steps",
    [
        [Step((41, 50))],
        [Step((41, 50), align_corners=True)],
        [Step((23, 31), align_corners=True, kept=(20, 25)), Step((41, 50))],
        [Step((1, 1)), Step((41, 50), align_corners=True)],
        [Step((97, 60), align_corners=True), Step((41, 50), align_corners=True)],
    ],
)
def test_some_rows_are_those_of_the_whole(steps, rows):
    coarse = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(enlarge(coarse, steps, rows), enlarge(coarse, steps)[:, :, rows], rtol=0, atol=2e-6)


def test_branches_of_the_same_input_count_once():
    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = (torch.nn.Conv2d(3, 2, 3, padding=at, dilation=at) for at in (4, 9))

        def forward(self, x):
            return self.one(x) + self.other(x)

    network = Branches()
    assert reach(network, network)[:2] == (1, 10)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("settings", [PredictSettings(), PredictSettings(scales=(0.5, 1.5), flip=True)])
def test_blocks_are_the_whole(name, settings, weights, image, monkeypatch):
    segmenter = Segmenter(weights / name, settings)
    whole = segmenter.probabilities(segmenter.prepare(image), np.array([True, False]))
    monkeypatch.setattr(predict_module, "_BLOCK", 4 * 3 * SIZE[1] * 11)
    blocks = list(segmenter.blocks(segmenter.prepare(image), np.array([True, False])))
    assert [rows.stop - rows.start for rows, _ in blocks] == [11] * 11 + [9]
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks], 1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["deeplab", "deeplab_v1"])
@pytest.mark.parametrize("settings", [PredictSettings(scales=(1.0,), flip=False), PredictSettings(scales=(1.5,))])
def test_tiles_are_the_whole(name, settings, weights, image, monkeypatch):
    segmenter = Segmenter(weights / name, settings)
    whole = segmenter.probabilities(segmenter.prepare(image))
    tiled_small(monkeypatch)
    memory.choose("2MB")
    assert segmenter.in_tiles(SIZE)
    assert not segmenter.in_tiles((20, 20))
    prepared = segmenter.prepare(image)
    assert prepared.views == []
    found = segmenter.probabilities(prepared)
    assert (found.argmax(0) != whole.argmax(0)).mean() < 1e-3
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)


def tiled_small(monkeypatch):
    """Tiles smaller than what follows from the budget, so that there are several."""
    monkeypatch.setattr("wsss.networks.receptive._SMALLEST_TILE", 64)
    monkeypatch.setattr("wsss.networks.receptive._LARGEST_TILE", 64)
    monkeypatch.setattr("wsss.networks.receptive.ROUGH", 10**4)
    # a tile and its overlap are as large as these pictures
    monkeypatch.setattr("wsss.networks.receptive.Tiles.of_tile", lambda self, core: 0)


def test_networks_that_see_the_whole_picture_are_not_divided(weights, image):
    memory.choose("5MB")
    for name in ("emanet", "pspnet"):
        assert not Segmenter(weights / name, PredictSettings()).in_tiles(SIZE)


@pytest.fixture
def pictures(tmp_path, image):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(image).save(tmp_path / "pictures" / "large.png")
    Image.fromarray(image[:32, :40]).save(tmp_path / "pictures" / "small.png")
    return tmp_path / "pictures"


def predicted(weights, pictures, out, *arguments):
    command = ["predict", "--weights", str(weights), "--pictures", str(pictures), "--out", str(out), *arguments]
    return main(command)


def test_the_command_says_what_it_did_in_tiles(weights, pictures, tmp_path, monkeypatch, caplog):
    outputs = ("--json", "--probabilities")
    assert not predicted(weights / "deeplab", pictures, tmp_path / "whole", *outputs)
    tiled_small(monkeypatch)
    assert not predicted(weights / "deeplab", pictures, tmp_path / "tiles", *outputs, "--memory", "2MB")
    assert "1 of 2 pictures are computed in tiles" in caplog.text
    assert read_record(tmp_path / "tiles")["result"]["in tiles"] == 1
    assert "in tiles" not in read_record(tmp_path / "whole")["result"]
    for name, size_hw in (("large", SIZE), ("small", (32, 40))):
        whole, tiles = (tmp_path / folder for folder in ("whole", "tiles"))
        assert (read_mask(whole / f"{name}.png") != read_mask(tiles / f"{name}.png")).mean() < 1e-3
        one, other = (
            read_probabilities(folder / "probabilities" / f"{name}.npz", 3, size_hw) for folder in (whole, tiles)
        )
        np.testing.assert_allclose(one.astype(np.float32), other, rtol=0, atol=1e-3)
        one, other = (json.loads((folder / "json" / f"{name}.json").read_text()) for folder in (whole, tiles))
        assert one["background"]["confidence"] == pytest.approx(other["background"]["confidence"], abs=1e-3)


def test_what_does_not_fit_is_an_error_that_names_the_need(weights, pictures, tmp_path, capsys):
    assert predicted(weights / "emanet", pictures, tmp_path / "out", "--memory", "5MB") == 2
    message = capsys.readouterr().err
    assert "large.png: found a picture of 170x130 pixels, which takes about" in message
    assert "give a smaller --size" in message
    assert not (tmp_path / "out" / "large.png").exists()


def test_needs_grow_with_what_is_asked_for(weights):
    memory.choose("2GB")
    large = (4000, 6000)
    plain, crf = (Segmenter(weights / "deeplab", PredictSettings(crf=crf)) for crf in (None, "deeplab"))
    masks = plain.bytes_for(large)
    assert plain.in_tiles(large)
    assert masks < 2**31
    assert plain.bytes_for(large, ("masks", "probabilities")) >= masks
    assert crf.bytes_for(large) > masks
    # a network that cannot be divided
    assert Segmenter(weights / "emanet", PredictSettings()).bytes_for(large) > 4 * 2**30
