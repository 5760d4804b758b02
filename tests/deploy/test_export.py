"""Exported segmenters: what runs elsewhere computes what torch computes, at any size; what the folder says; what is refused."""

import dataclasses
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx as onnx_file
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn

import wsss
from tests.segmenters.tiny import ALL, DEEPLAB, lengthened
from wsss.data.labels import voc_palette
from wsss.deploy import card, export, onnx, torchscript
from wsss.deploy.export import ModelExport, export_model
from wsss.deploy.network import DeployedSegmenter, ExportablePool, Views
from wsss.errors import BadInput
from wsss.networks.deeplab import DeepLabLayers
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.stages.supervised import WORDS_ALONE
from wsss.stages.train import train
from wsss.weights import WEIGHTS

pytestmark = pytest.mark.usefixtures("one_torch_thread", "sizes_may_be_symbols")
# a picture has to have a pixel at the smallest of the scales 0.5 and 0.5 x 0.5
SIZES_HW = ((5, 4), (33, 61), (64, 64), (50, 27))
# without a pyramid of scales, whose export takes longer
SINGLE = dataclasses.replace(DEEPLAB, network=DeepLabLayers("test_resnet", 8, (1, 2), (), batch_norm="live"))


@pytest.fixture(scope="module")
def trained(masked_squares, tmp_path_factory):
    """Gives the folder of a short training of a segmenter, in which the classes are told apart."""
    folder, (images, masks) = tmp_path_factory.mktemp("trained"), masked_squares
    return lambda kind, settings: train(lengthened(settings, steps=10), images, masks=masks, out=folder / kind)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The folder of an ONNX export, and the segmenter."""
    out = tmp_path_factory.mktemp("onnx")
    where = trained("single", SINGLE)
    assert export_model(where, out, "onnx", ModelExport(licence="mit")) == out / "model.onnx"
    return out, where


def random_pictures(*sizes_hw, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size_hw, 3), np.uint8) for size_hw in sizes_hw]


def test_onnx_is_one_file_that_takes_any_size_and_number(exported):
    import onnxruntime

    out, where = exported
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "infer.py", "model.onnx"]
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    segmenter = wsss.load(where, device="cpu")
    for size_hw in ((36, 27), (29, 33), (44, 45)):  # sizes near those of the training, which are not resized
        batch = np.stack(random_pictures(size_hw, size_hw, size_hw))
        labels, confidence, probabilities = session.run(None, {"picture": batch})
        assert (labels.dtype, confidence.dtype) == (np.uint8, np.float32)
        np.testing.assert_allclose(probabilities.max(1), confidence)
        for picture, label, probability in zip(batch, labels, probabilities, strict=True):
            expected = segmenter.predict(picture)
            np.testing.assert_allclose(probability, expected.probabilities, atol=1e-4)
            assert (label == expected.labels).mean() >= 0.9999


def test_the_program_beside_it_needs_no_torch_and_writes_our_masks(exported, tmp_path):
    out, where = exported
    (picture,) = random_pictures((40, 42))
    Image.fromarray(picture).save(tmp_path / "one.png")
    # importing any of these would stop the program
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules.update(dict.fromkeys(('torch', 'wsss', 'cv2', 'scipy', 'onnx')))\n"
    )
    done = subprocess.run(
        [sys.executable, out / "infer.py", tmp_path / "one.png", "--out", tmp_path / "masks"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        check=True,
    )
    with Image.open(tmp_path / "masks/one.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:9] == voc_palette()[:3].ravel().tolist()
        expected = wsss.load(where, device="cpu").predict(picture)
        assert (np.array(mask) == expected.labels).mean() >= 0.999
    assert "mean confidence" in done.stdout
    largest = max(expected.areas(), key=expected.areas().get)
    assert f"{largest} {expected.areas()[largest]:.1%}" in done.stdout


def test_convolutions_in_8_bit_integers(exported, tmp_path):
    file, small = exported[0] / "model.onnx", tmp_path / "small.onnx"
    domains = [opset.domain for opset in onnx_file.load(file).opset_import]
    assert len(set(domains)) == len(domains)
    pictures = random_pictures((40, 42), (33, 60))
    onnx.quantise(file, small, pictures)
    labels, probabilities = onnx.Runtime(small)(pictures[1])
    assert labels.shape == (33, 60)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert "QuantizeLinear" in {node.op_type for node in onnx_file.load(small).graph.node}


def test_the_program_is_short():
    assert len(Path(export.__file__).with_name("infer.py").read_text().splitlines()) < 40


def test_the_program_refuses_pictures_of_more_bits(exported, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    done = subprocess.run(
        [sys.executable, exported[0] / "infer.py", tmp_path / "deep.png", "--out", tmp_path / "masks"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "more than 8 bits" in done.stderr
    assert list((tmp_path / "masks").iterdir()) == []


def test_configuration_and_card(exported):
    out, _ = exported
    config = json.loads((out / "config.json").read_text())
    assert config["classes"] == ["red", "blue"]
    assert config["labels"] == {"0": "background", "1": "red", "2": "blue"}
    model_card = ModelCard.load(out / "README.md")
    assert model_card.data.license == "mit"
    assert model_card.data.library_name == "wsss"
    assert "red, blue" in model_card.text
    assert "100.0000% of the labels are those of torch" in model_card.text
    assert "no predictions of this run were compared" in model_card.text


def test_the_card_of_a_run_without_tags_speaks_of_none(exported):
    config = json.loads((exported[0] / "config.json").read_text())
    text = card.card(config, card.Origin("mine", WORDS_ALONE, True, "CorrCLIP", ()), "mit", [], [])
    assert "from the names of the classes, without tags of pictures and without masks drawn by people" in text
    assert "| tags | none, words only |" in text
    assert "image-level tags" not in text


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("views", [Views(), Views((0.5, 1.25), True)], ids=["one view", "four views"])
def test_torchscript_of_every_segmenter_equals_the_network_at_any_size(trained, tmp_path, kind, views):
    segmenter = Segmenter(trained(kind, ALL[kind]), PredictSettings(), torch.device("cpu"))
    network = DeployedSegmenter(segmenter.trained, views)
    torchscript.write_torchscript(network, tmp_path / "model.pt", {"classes": ["red", "blue"]})
    found = torchscript.agreement(network, tmp_path / "model.pt", random_pictures(*SIZES_HW))
    assert found.labels == 1
    assert found.probabilities < 1e-5
    extra = {"wsss": ""}
    torch.jit.load(tmp_path / "model.pt", _extra_files=extra)
    assert json.loads(extra["wsss"]) == {"classes": ["red", "blue"]}


@pytest.mark.parametrize("kind", ["deeplab", "emanet", "deeplab_v1"])
def test_the_graph_predicts_what_the_library_predicts(trained, kind):
    where = trained(kind, ALL[kind])
    segmenter = Segmenter(where, PredictSettings(), torch.device("cpu"))
    network = DeployedSegmenter(segmenter.trained)
    library = wsss.load(where, device="cpu", scales=(1.0,), flip=False, size="full")
    for picture in random_pictures(*SIZES_HW):
        with torch.inference_mode():
            found = network(torch.from_numpy(picture)[None])
        expected = library.predict(picture)
        np.testing.assert_allclose(found.probabilities[0].numpy(), expected.probabilities, atol=2e-5)


@pytest.mark.parametrize("size_hw", [(1, 1), (5, 20), (28, 29), (32, 36), (45, 40), (46, 40), (300, 7), (400, 640)])
def test_the_graph_resizes_pictures_as_predict_does(trained, size_hw):
    segmenter = Segmenter(trained("deeplab", ALL["deeplab"]), PredictSettings(), torch.device("cpu"))
    assert segmenter.long_sides == (36, 36)
    network = DeployedSegmenter(segmenter.trained, long_sides=segmenter.long_sides)
    height, width = network._size(size_hw, Fraction(1))
    assert (height, width) == pytest.approx(segmenter.working_size(size_hw), abs=1)  # halves are rounded up here


def test_the_graph_of_a_pspnet_predicts_what_the_library_predicts_in_one_window(trained):
    where = trained("pspnet", ALL["pspnet"])
    network = DeployedSegmenter(Segmenter(where, PredictSettings(), torch.device("cpu")).trained)
    library = wsss.load(where, device="cpu", scales=(1.0,), flip=False)
    (picture,) = random_pictures((32, 32))
    with torch.inference_mode():
        found = network(torch.from_numpy(picture)[None])
    np.testing.assert_allclose(found.probabilities[0].numpy(), library.predict(picture).probabilities, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("views", [Views(), Views((0.5, 1.25), True)], ids=["one view", "four views"])
def test_onnx_of_every_segmenter_equals_the_network_at_any_size(trained, tmp_path, kind, views):
    segmenter = Segmenter(trained(kind, ALL[kind]), PredictSettings(), torch.device("cpu"))
    network = DeployedSegmenter(segmenter.trained, views)
    onnx.write_onnx(network, tmp_path / "model.onnx", {})
    found = onnx.agreement(network, tmp_path / "model.onnx", random_pictures(*SIZES_HW))
    # rounding: against float64, float32 is off by up to 7.4e-6 in torch and 1.2e-5 in onnxruntime (DeepLab v1, four views, whose least
    # probability is 1e-12), and the two differ by 1.6e-5
    assert found.probabilities < 3e-5


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "resnet50", "deeplab-resnet101", "resnet38"])
def test_onnx_of_every_kind_of_backbone(masked_squares, tmp_path, backbone):
    layers = DeepLabLayers(backbone, 16 if backbone == "test_vit" else 8, (1, 2), (), batch_norm="live")
    settings = lengthened(dataclasses.replace(SINGLE, network=layers), steps=1)
    images, masks = masked_squares
    where = train(settings, images, masks=masks, out=tmp_path / "trained")
    export_model(where, tmp_path / "out", "onnx")


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
@pytest.mark.parametrize("size_hw", [(1, 1), (6, 12), (7, 5), (20, 33)])
def test_pools_that_can_be_exported(cells, size_hw):
    feature = torch.randn(2, 3, *size_hw, dtype=torch.float64)
    torch.testing.assert_close(ExportablePool(cells)(feature), nn.AdaptiveAvgPool2d(cells)(feature))


def test_the_hub_folder_is_read_by_the_library(trained, tmp_path):
    where = trained("single", SINGLE)
    assert export_model(where, tmp_path / "hub", "hub") == tmp_path / "hub" / WEIGHTS
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == ["README.md", "config.json", WEIGHTS]
    (picture,) = random_pictures((30, 40))
    np.testing.assert_array_equal(
        wsss.load(tmp_path / "hub", device="cpu").predict(picture).labels,
        wsss.load(where, device="cpu").predict(picture).labels,
    )


def test_another_format_replaces_the_first(trained, tmp_path):
    where = trained("single", SINGLE)
    export_model(where, tmp_path, "hub")
    export_model(where, tmp_path, "torchscript")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.pt"]


def test_what_differs_from_torch_is_refused(exported, tmp_path, trained):
    out, _ = exported
    other = DeployedSegmenter(
        Segmenter(trained("deeplab", ALL["deeplab"]), PredictSettings(), torch.device("cpu")).trained
    )
    with pytest.raises(BadInput, match="differs from torch"):
        onnx.agreement(other, out / "model.onnx", random_pictures((40, 40)))


def test_other_files_are_kept(trained, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match=r"other files \(thesis.txt\)"):
        export_model(trained("single", SINGLE), tmp_path, "hub")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_cannot_be_exported(trained, tmp_path):
    where = trained("single", SINGLE)
    with pytest.raises(BadInput, match="Only ONNX models"):
        export_model(where, tmp_path, "hub", ModelExport(int8=True))
    with pytest.raises(BadInput, match="no dataset"):
        export_model(where, tmp_path, "onnx", ModelExport(int8=True))
    with pytest.raises(BadInput, match="no such file or folder"):
        export_model(tmp_path / "nothing", tmp_path / "out", "hub")
    assert list(tmp_path.iterdir()) == []


def test_a_name_on_the_hub_that_is_not_there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="no such model in the cache or on the hub"):
        wsss.load("nobody-here/no-model")
    with pytest.raises(BadInput, match="no such file or folder; expected a run folder"):
        wsss.load("tests/no-model")
