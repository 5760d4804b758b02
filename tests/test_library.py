"""The library: what `import wsss` costs, that it computes what the stages compute, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import wsss
from tests.conftest import write_squares
from tests.methods.test_cam import SMALL
from tests.parity.tiny_clip import tiny_clip
from wsss.classifier import CAMNetwork
from wsss.data.files import read_cams
from wsss.errors import BadInput
from wsss.methods import cam, clip_es
from wsss.ops.affinity import directions
from wsss.ops.crf import PRESETS, unary_from_labels, unary_from_scores
from wsss.ops.crf import dense_crf as mean_field
from wsss.refiners.crf import MaskSettings
from wsss.refiners.crf import pseudo_mask as stage_mask
from wsss.refiners.irnet import IRNetWalk, walked
from wsss.stages.localize import localize
from wsss.stages.train import train

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (48, 60, 3), np.uint8)


def test_import_is_lazy_and_complete():
    code = (
        "import sys, wsss; heavy = {'torch', 'numpy', 'PIL', 'timm'} & set(sys.modules); assert not heavy, heavy;"
        "assert set(wsss.__all__) <= set(dir(wsss)); import wsss.errors; assert wsss.BadInput is wsss.errors.BadInput;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in wsss.__all__:
        assert getattr(wsss, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'cam'"):
        wsss.cam  # noqa: B018


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Pictures, a classifier that was trained on them for a moment, and its maps."""
    folder = tmp_path_factory.mktemp("classifier")
    images = write_squares(folder / "squares", 4)
    trained = train(SMALL, images, out=folder / "classifier")
    return images, trained, localize(cam.CAMInference(), images, weights=trained, out=folder / "cams")


def test_maps_are_those_of_the_stage(classifier):
    images, trained, made = classifier
    network = cam.load(trained, images)[0].train()
    for index in range(2):
        names = [images.class_names[c] for c in images.classes(index)]
        classes, maps = read_cams(made / f"{images.names[index]}.npz")
        for found in (
            wsss.cams(network, images.read(index), images.classes(index)),
            wsss.cams(network, images.paths[index], images.classes(index)),
            wsss.load(trained).cams(Image.open(images.paths[index]), names),
        ):
            assert found.shape == (len(classes), *images.size_hw(index))
            np.testing.assert_allclose(found, maps, atol=1e-3)
    assert network.training


def test_maps_come_in_the_order_that_is_asked_for():
    torch.manual_seed(0)
    network = CAMNetwork("test_resnet", 4)
    one, other = (wsss.cams(network, PICTURE, classes, scales=(1.0,)) for classes in ([3, 0], [0, 3]))
    np.testing.assert_array_equal(one, other[::-1])
    assert wsss.cams(network, PICTURE, []).shape == (0, 48, 60)


def test_colours_are_those_of_the_network():
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3)

    class Brighter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, image):
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            values = image * std[:, None, None] + mean[:, None, None]
            return self.network((values - 0.5) / 0.25)

    expected = wsss.cams(Brighter(), PICTURE, [1], scales=(1.0,))
    given = wsss.cams(network, PICTURE, [1], scales=(1.0,), mean=(0.5,) * 3, std=(0.25,) * 3)
    np.testing.assert_allclose(given, expected, atol=1e-4)
    network.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    np.testing.assert_array_equal(wsss.cams(network, PICTURE, [1], scales=(1.0,)), given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [4]}, r"classes: found \[4\]; expected distinct whole numbers in 0..3"),
        ({"classes": [1, 1]}, "distinct whole numbers"),
        ({"classes": [-1]}, "distinct whole numbers"),
        ({"classes": ["cat"]}, "distinct whole numbers"),
        ({"image": PICTURE / 255}, "float64 of shape"),
        ({"image": "no such file.png"}, "no such file"),
        ({"network": "resnet18"}, "network: found str"),
        ({"scales": ()}, "scales"),
        ({"std": (0.1, 0.1)}, "three numbers"),
        ({"std": (0.1, 0.0, 0.1)}, "std"),
    ],
)
def test_other_inputs_of_cams_are_refused(changes, message):
    given = {"network": CAMNetwork("test_resnet", 4), "image": PICTURE, "classes": [0], "scales": (1.0,), **changes}
    with pytest.raises(BadInput, match=message):
        wsss.cams(**given)


def test_clip_es_is_that_of_the_stage(tmp_path):
    images = write_squares(tmp_path / "squares", 2, size=64)
    tiny_clip().model.save_pretrained(tmp_path / "clip")
    settings = clip_es.CLIPESInference(clip=str(tmp_path / "clip"), cache=False)
    made = localize(settings, images, out=tmp_path / "cams")
    maps = read_cams(made / f"{images.names[1]}.npz")[1]
    names = [images.class_names[c] for c in images.classes(1)]
    behind = clip_es.read_words("auto", images.class_names).background
    for clip in (tmp_path / "clip", tiny_clip()):
        found = wsss.clip_es(images.read(1), names, clip=clip, backgrounds=behind)
        np.testing.assert_allclose(found, maps, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": []}, "at least one class name"),
        ({"classes": ["star", "star"]}, "twice"),
        ({"classes": ["star", "Star"]}, "twice"),
        ({"backgrounds": ["star"]}, "backgrounds: found star twice"),
        ({"backgrounds": ["sea", "sea"]}, "backgrounds: found sea twice"),
        ({"templates": ["a photo"]}, "templates"),
        ({"box_threshold": 2.0}, "box_threshold"),
        ({"attention_blocks": 0}, "attention_blocks"),
        ({"image": PICTURE[:3]}, "at least one patch"),
    ],
)
def test_other_inputs_of_clip_es_are_refused(changes, message):
    given = {"image": PICTURE, "classes": ["star"], "clip": tiny_clip(), **changes}
    with pytest.raises(BadInput, match=message):
        wsss.clip_es(**given)


def test_the_crf_is_that_of_the_stages():
    probabilities = RNG.dirichlet((1, 1, 1), (48, 60)).transpose(2, 0, 1).astype(np.float32)
    expected = mean_field(PICTURE, unary_from_scores(probabilities), PRESETS["psa"])
    np.testing.assert_array_equal(wsss.dense_crf(PICTURE, probabilities, preset="psa"), expected)
    tensor = wsss.dense_crf(Image.fromarray(PICTURE), torch.from_numpy(probabilities), preset=PRESETS["psa"])
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-3)
    labels = probabilities.argmax(0)
    expected = mean_field(PICTURE, unary_from_labels(labels, 3, 0.7), PRESETS["irn"])
    for one in (labels, labels.astype(np.uint8), torch.from_numpy(labels)):
        np.testing.assert_allclose(wsss.dense_crf(PICTURE, one), expected, atol=1e-6)


def test_unknown_pixels_get_the_label_around_them():
    labels = np.ones((20, 20), np.uint8)
    labels[5:15, 5:15] = 255
    after = wsss.dense_crf(np.zeros((20, 20, 3), np.uint8), labels)
    assert after.shape == (2, 20, 20)
    assert (after.argmax(0) == 1).all()
    assert len(wsss.dense_crf(np.zeros((20, 20, 3), np.uint8), labels, n_labels=4)) == 4


@pytest.mark.parametrize(
    ("scores", "changes", "message"),
    [
        (np.zeros((2, 48, 59), np.float32), {}, r"probabilities \(labels, 48, 60\)"),
        (np.full((2, 48, 60), 3.0), {}, "values from 3 to 3; expected values in"),
        (np.full((2, 48, 60), np.nan), {}, "values from nan"),
        (np.zeros((1, 48, 60)), {}, "k at least 2"),
        (np.zeros((48, 60)), {}, r"float64 of shape \(48, 60\)"),
        (np.zeros((48, 60), np.uint8), {}, "found 1; expected 2 or more"),
        (np.full((48, 60), -1), {}, "from 0 on"),
        (np.ones((48, 60), np.uint8), {"certainty": 1.0}, "certainty"),
        (np.full((48, 60), 5), {"n_labels": 3}, "unary labels"),
        (np.zeros((2, 48, 60)), {"n_labels": 3}, "n_labels"),
        (np.zeros((2, 48, 60)), {"preset": "irnn"}, "preset: found 'irnn'"),
        ([[0, 1]], {}, "scores: found list"),
    ],
)
def test_other_inputs_of_the_crf_are_refused(scores, changes, message):
    with pytest.raises(BadInput, match=message):
        wsss.dense_crf(PICTURE, scores, **changes)


def test_pseudo_masks_are_those_of_the_stage():
    maps = RNG.random((2, 48, 60)).astype(np.float32)
    classes = np.array([4, 9], np.int16)
    expected = stage_mask(PICTURE, classes, maps, MaskSettings(by="crf", threshold=0.6, lower=0.3))
    for one in (maps, torch.from_numpy(maps)):
        found = wsss.pseudo_mask(one, [4, 9], threshold=0.6, lower=0.3, picture=PICTURE)
        np.testing.assert_array_equal(found, expected)
    swapped = wsss.pseudo_mask(maps[::-1], [9, 4], threshold=0.6)
    np.testing.assert_array_equal(swapped, wsss.pseudo_mask(maps, [4, 9], threshold=0.6))
    assert not wsss.pseudo_mask(np.zeros((0, 4, 5), np.float32), []).any()


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_pixel_has_the_class_of_its_highest_map_or_is_background(seed, threshold):
    maps = np.random.default_rng(seed).random((3, 4, 5))
    mask = wsss.pseudo_mask(maps, [7, 0, 2], threshold=threshold)
    labels = np.array([8, 1, 3])[maps.argmax(0)]
    np.testing.assert_array_equal(mask, np.where(maps.max(0) > threshold, labels, 0))


@pytest.mark.parametrize(
    ("maps", "classes", "changes", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), [0, 1], {}, "maps: found uint8"),
        (np.zeros((4, 4)), [0], {}, r"shape \(4, 4\)"),
        (np.full((1, 4, 4), 1.5), [0], {}, "values from 1.5"),
        (np.zeros((2, 4, 4)), [0], {}, "1 for 2 maps"),
        (np.zeros((2, 4, 4)), [0, 0], {}, "distinct whole numbers in 0..253"),
        (np.zeros((1, 4, 4)), [254], {}, "distinct whole numbers in 0..253"),
        (np.zeros((1, 4, 4)), [0], {"picture": PICTURE}, "a picture of 48x60; expected one of 4x4"),
        (np.zeros((1, 4, 4)), [0], {"threshold": 1.2}, "threshold"),
        (np.zeros((1, 4, 4)), [0], {"threshold": 0.2, "lower": 0.3}, "lower"),
    ],
)
def test_other_inputs_of_pseudo_masks_are_refused(maps, classes, changes, message):
    with pytest.raises(BadInput, match=message):
        wsss.pseudo_mask(maps, classes, **changes)


def test_random_walks_are_those_of_the_stages():
    maps, edges = RNG.random((2, 9, 11)).astype(np.float32), RNG.random((9, 11)).astype(np.float32)
    expected = walked(torch.from_numpy(maps), torch.from_numpy(edges), IRNetWalk(radius=4, beta=7.0, doublings=3))
    found = wsss.random_walk(maps, edges, radius=4, beta=7.0, doublings=3)
    np.testing.assert_array_equal(found, expected.numpy())
    torch.testing.assert_close(
        wsss.random_walk(torch.from_numpy(maps), edges, radius=4, beta=7.0, doublings=3), expected
    )
    # all cells linked alike: a long walk gives the mean
    planes = np.ones((len(directions(3)), 9, 11), np.float32)
    even = wsss.random_walk(np.ones_like(maps), affinities=planes, radius=3)
    np.testing.assert_allclose(even, 1, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "neither edges nor affinities"),
        ({"edges": np.zeros((4, 5)), "affinities": np.zeros((2, 4, 5))}, "both edges and affinities"),
        ({"edges": np.zeros((4, 4))}, r"shape \(4, 4\)"),
        ({"edges": np.full((4, 5), 2.0)}, "values from 2 to 2"),
        ({"edges": np.full((4, 5), np.nan)}, "values from nan"),
        ({"edges": np.zeros((4, 5), int)}, "edges: found int64"),
        ({"affinities": np.zeros((2, 4, 5))}, "random walk directions"),
        ({"maps": np.zeros((4, 5)), "edges": np.zeros((4, 5))}, "floats with 3 axes"),
        ({"maps": [[0.5]], "edges": np.zeros((4, 5))}, "maps: found list"),
        ({"edges": np.zeros((4, 5)), "radius": 1}, "radius"),
        ({"edges": np.zeros((4, 5)), "doublings": -1}, "doublings"),
    ],
)
def test_other_inputs_of_walks_are_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        wsss.random_walk(**{"maps": np.zeros((1, 4, 5)), **changes})


def test_scores_are_those_of_all_pictures_together():
    truths = [RNG.integers(0, 3, (20, 20), np.uint8) for _ in range(3)]
    truths[0][:5] = 255
    predictions = [RNG.integers(0, 3, (20, 20), np.uint8) for _ in range(3)]
    found = wsss.score((p for p in predictions), truths, 2)
    truth, prediction = np.concatenate(truths).ravel(), np.concatenate(predictions).ravel()
    counted = truth != 255
    for label in range(3):
        mine, theirs = prediction[counted] == label, truth[counted] == label
        assert found.iou[label] == pytest.approx((mine & theirs).sum() / (mine | theirs).sum())
    assert found.miou == pytest.approx(np.mean(found.iou))
    assert 0 < found.contour_f < 1
    assert found.confusion.sum() == counted.sum()
    assert wsss.score(predictions, truths, 2, contour=False).contour_f is None
    perfect = wsss.score(predictions, predictions, 2)
    assert perfect.miou == perfect.contour_f == 1


@pytest.mark.parametrize(
    ("predictions", "truths", "message"),
    [
        ([], [], "predictions: found none"),
        ([np.zeros((2, 2), np.uint8)], [], "truths: found 0; expected as many"),
        ([], [np.zeros((2, 2), np.uint8)], "predictions: found 0"),
        ([np.zeros((2, 2))], [np.zeros((2, 2), np.uint8)], "picture 0: found a prediction of type float64"),
        ([np.full((2, 2), 255, np.uint8)], [np.zeros((2, 2), np.uint8)], "unknown_as"),
        ([[[0]]], [np.zeros((2, 2), np.uint8)], "prediction 0: found list"),
        ([np.zeros((2, 2), np.uint8)], [np.full((2, 2), 9, np.uint8)], r"true labels \[9\]"),
    ],
)
def test_other_inputs_of_scores_are_refused(predictions, truths, message):
    with pytest.raises(BadInput, match=message):
        wsss.score(predictions, truths, 2)


def test_paths_may_be_texts_or_paths(classifier):
    _, trained, _ = classifier
    for path in (str(trained), Path(trained), trained / "weights.safetensors"):
        assert wsss.load(path).classes == ("red", "blue")


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("voc_server", {}, "Did you mean 'voc-server'"),
        ("voc-server", {}, "no data"),
        ("voc-server", {"dta": "x"}, "Did you mean 'data'"),
        ("voc-server", {"data": "nowhere"}, "nowhere: found no folder JPEGImages"),
    ],
)
def test_other_inputs_of_exports_are_refused(tmp_path, format, options, message):
    with pytest.raises(BadInput, match=message):
        wsss.export(format, tmp_path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
