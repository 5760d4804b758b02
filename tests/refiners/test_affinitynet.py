"""AffinityNet's stages: label sets, training, walk; that they go on after a stop, better masks, errors of the user."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.conftest import finished, tree, write_squares
from tests.refiners.conftest import BACKBONE, discriminative_part, unfinished, write_maps
from wsss.data.augment import PosteriorAugment
from wsss.data.files import read_mask, read_posteriors, write_cams, write_posteriors
from wsss.errors import BadInput
from wsss.methods import cam
from wsss.networks.affinitynet import VGG_BODY, AffinityNet
from wsss.ops.crf import PRESETS, dense_crf, unary_from_scores
from wsss.refiners import affinitynet
from wsss.refiners.affinitynet import (
    AffinityNetLabels,
    AffinityNetSettings,
    AffinityNetTraining,
    AffinityNetWalk,
    confident_labels,
    crf_scores,
    label_sets,
    load,
    walk_to_masks,
    walked,
    walked_scores,
    with_background,
)
from wsss.refiners.task import RefinementTask
from wsss.run import read_record
from wsss.stages.evaluate import ScoreSettings, evaluate_cams, evaluate_masks
from wsss.stages.train import HISTORY, Training, train
from wsss.weights import WEIGHTS, read_weights, write_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NARROW = "resnet38-narrow16"
SMALL = AffinityNetTraining(
    BACKBONE,
    init="none",
    radius=3,
    augment=PosteriorAugment(crop=48),
    training=Training(batch=4, epochs=None, steps=2, lr=0.01, workers=0),
)
WALK = AffinityNetWalk(doublings=3)


def posteriors_of(truth, classes):
    """Label sets that both agree with the true mask."""
    return np.array([truth == label for label in (0, *(c + 1 for c in classes))], np.float32)


@pytest.fixture
def cams(tmp_path, squares):
    return write_maps(squares, tmp_path / "cams")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A narrow ResNet-38's network that saw eight pictures."""
    folder = tmp_path_factory.mktemp("trained")
    images = write_squares(folder / "squares", 12)
    for index, name in enumerate(images.names):
        classes = images.classes(index)
        sure = posteriors_of(images.read_mask(index), classes)
        write_posteriors(folder / "labels" / f"{name}.npz", np.array(classes), sure, sure)
    settings = dataclasses.replace(SMALL, backbone=NARROW)
    return train(settings, images, labels=finished(folder / "labels"), out=folder / "affinitynet")


@given(
    arrays(np.float32, (3, 4, 5), elements=st.sampled_from([0, 1e-6, 0.25, 0.5, 1])),
    arrays(np.float32, (3, 4, 5), elements=st.sampled_from([0, 1e-6, 0.25, 0.5, 1])),
)
def test_confident_labels_against_a_loop(low, high):
    found = confident_labels(low, high)
    assert found.dtype == np.int64
    for y, x in np.ndindex(4, 5):
        # the first of equal scores is the best
        much, little = (list(scores[:, y, x]).index(scores[:, y, x].max()) for scores in (low, high))
        if max(*low[:, y, x], *high[:, y, x]) < 1e-5:
            expected = 255
        elif little == 0:
            expected = 0
        else:
            expected = much if much > 0 else 255
        assert found[y, x] == expected


@given(
    arrays(np.float32, st.tuples(st.integers(0, 3), st.just(4), st.just(5)), elements=st.floats(0, 1, width=32)),
    st.floats(0, 40),
)
def test_background_scores(maps, alpha):
    scores = with_background(maps, alpha)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores[1:], maps)
    for y, x in np.ndindex(4, 5):
        expected = (1 - max(maps[:, y, x], default=0.0)) ** alpha
        np.testing.assert_allclose(scores[0, y, x], expected, rtol=1e-5, atol=1e-30)


def test_label_sets(tmp_path, squares):
    cams = write_maps(squares, tmp_path / "cams", lambda inside: 0.6 * inside)
    write_cams(cams / f"{squares.names[0]}.npz", np.zeros(0, np.int16), np.zeros((0, 32, 36)))
    sets = label_sets(AffinityNetLabels(), squares, cams=cams, out=tmp_path / "labels")
    low, high = read_posteriors(sets / f"{squares.names[0]}.npz")
    assert low.tolist() == high.tolist() == np.ones((1, 32, 36)).tolist()
    for index, name in enumerate(squares.names[1:], start=1):
        low, high = read_posteriors(sets / f"{name}.npz")
        assert low.shape == high.shape == (1 + len(squares.classes(index)), 32, 36)
        for scores in (low, high):
            np.testing.assert_allclose(scores.sum(0), 1, atol=2e-3)  # half floats
        maps = np.float32(0.6) * posteriors_of(squares.read_mask(index), squares.classes(index))[1:]
        for scores, alpha in ((low, 4), (high, 32)):
            first = np.concatenate([(1 - np.float16(maps).astype(np.float32).max(0))[None] ** alpha, np.float16(maps)])
            q = dense_crf(squares.read(index), unary_from_scores(first.astype(np.float32)), PRESETS["psa"])
            np.testing.assert_allclose(scores, q, atol=1e-3)


def test_the_stages_write_what_they_promise(tmp_path, squares, cams):
    out = AffinityNetSettings(network=SMALL, walk=WALK).refined(RefinementTask(squares, cams, tmp_path / "run"))
    run = tmp_path / "run"
    assert out == run / "masks"
    assert sorted(folder.name for folder in run.iterdir()) == ["affinitynet", "affinitynet-labels", "masks"]
    network = load(run / "affinitynet")
    assert not network.training
    for index, name in enumerate(squares.names):
        mask, classes = read_mask(out / f"{name}.png"), squares.classes(index)
        maps = posteriors_of(squares.read_mask(index), classes)[1:]
        scores = walked_scores(network, squares.read(index), maps, WALK)[:, :32, :36]
        np.testing.assert_array_equal(mask, np.array([0, *(label + 1 for label in classes)])[scores.argmax(0)])
    _, metadata = read_weights(run / "affinitynet" / WEIGHTS)
    assert metadata == {"kind": "affinitynet", "backbone": BACKBONE, "classes": ["red", "blue"]}
    losses = {"background_pairs", "foreground_pairs", "different_pairs"}
    assert set(json.loads((run / "affinitynet" / HISTORY).read_text())[0]) == {"step", "lr", *losses}


def test_masks_are_better_than_the_maps(tmp_path):
    images = write_squares(tmp_path / "squares", 12, size=96)
    cams = write_maps(images, tmp_path / "cams", discriminative_part)
    training = Training(batch=4, epochs=None, steps=40, optimizer="adamw", lr=0.003, workers=0)
    settings = dataclasses.replace(SMALL, radius=4, augment=PosteriorAugment(crop=64), training=training)
    spread = AffinityNetWalk(radius=4, alpha=8, doublings=5)
    masks = AffinityNetSettings(network=settings, walk=spread).refined(RefinementTask(images, cams, tmp_path / "run"))
    before = read_record(evaluate_cams(ScoreSettings(), images, cams=cams, out=tmp_path / "before"))["result"]["miou"]

    def scored(masks):
        return read_record(evaluate_masks(ScoreSettings(), images, masks=masks, out=tmp_path / f"of {masks.name}"))[
            "result"
        ]

    after = scored(masks)["miou"]
    inputs = {"cams": cams, "weights": tmp_path / "run" / "affinitynet"}
    torch.manual_seed(0)
    new = tmp_path / "new.safetensors"
    write_weights(new, AffinityNet(BACKBONE).state_dict(), {"kind": "affinitynet", "backbone": BACKBONE})
    chance = scored(walk_to_masks(spread, images, cams=cams, weights=new, out=tmp_path / "chance"))["miou"]
    crf = dataclasses.replace(spread, crf=True)
    with_crf = scored(walk_to_masks(crf, images, **inputs, out=tmp_path / "crf"))["miou"]
    # measured: maps 0.709 at the best of all thresholds, masks 0.757, those of an untrained network 0.269, with CRF 0.897
    assert after > before + 0.02
    assert chance < before
    assert with_crf > after + 0.05


def test_a_walk_that_was_stopped_ends_in_the_same_bytes(tmp_path, squares, cams, trained, monkeypatch):
    whole = walk_to_masks(WALK, squares, cams=cams, weights=trained, out=tmp_path / "whole")
    calls = []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return walked_scores(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(affinitynet, "walked_scores", stopped)
        with pytest.raises(KeyboardInterrupt):
            walk_to_masks(WALK, squares, cams=cams, weights=trained, out=tmp_path / "half")
    there = len(list((tmp_path / "half").rglob("*.png")))
    assert there <= 5
    calls.clear()
    monkeypatch.setattr(affinitynet, "walked_scores", lambda *arguments: calls.append(1) or walked_scores(*arguments))
    walk_to_masks(WALK, squares, cams=cams, weights=trained, out=tmp_path / "half")
    assert len(calls) == 12 - there
    assert tree(tmp_path / "half") == tree(whole)


def test_outputs_that_went_missing_are_made_again(tmp_path, squares, cams, trained):
    sets = label_sets(AffinityNetLabels(), squares, cams=cams, out=tmp_path / "labels")
    masks = walk_to_masks(WALK, squares, cams=cams, weights=trained, out=tmp_path / "masks")
    for out, suffix in ((sets, ".npz"), (masks, ".png")):
        whole = tree(out)
        unfinished(out)
        for name in squares.names[3:7]:
            (out / f"{name}{suffix}").unlink()
        label_sets(AffinityNetLabels(), squares, cams=cams, out=tmp_path / "labels")
        walk_to_masks(WALK, squares, cams=cams, weights=trained, out=tmp_path / "masks")
        assert tree(out) == whole


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("crf", [False, True])
def test_pictures_without_classes_and_maps_without_any_score(tmp_path, squares, trained, crf):
    cams = write_maps(squares, tmp_path / "cams", lambda inside: 0.0 * inside)
    write_cams(cams / f"{squares.names[0]}.npz", np.zeros(0, np.int16), np.zeros((0, 32, 36)))
    walk = dataclasses.replace(WALK, crf=crf)
    masks = AffinityNetSettings(weights=str(trained), walk=walk).refined(
        RefinementTask(squares, cams, tmp_path / "run")
    )
    for name in squares.names:
        mask = read_mask(masks / f"{name}.png")
        assert mask.shape == (32, 36)
        assert not mask.any()
    sets = label_sets(AffinityNetLabels(), squares, cams=cams, out=tmp_path / "labels")
    for name in squares.names:
        assert not confident_labels(*read_posteriors(sets / f"{name}.npz")).any()
    # nothing but background teaches nothing
    with pytest.raises(
        BadInput, match="labels: found 12 label sets without a single pixel confidently labelled as a class"
    ):
        train(SMALL, squares, labels=sets, out=tmp_path / "affinitynet")


@pytest.mark.parametrize(
    ("classes", "shape", "found"),
    [([0], (32, 32), "maps of 32x32"), ([2], (32, 36), r"classes \[2\]")],
)
def test_maps_that_do_not_fit_are_named(tmp_path, squares, cams, trained, classes, shape, found):
    write_cams(cams / f"{squares.names[5]}.npz", np.array(classes), np.zeros((1, *shape)))
    for make, settings, more in ((label_sets, AffinityNetLabels(), {}), (walk_to_masks, WALK, {"weights": trained})):
        with pytest.raises(BadInput, match=rf"bild_5ß\.npz: found .*{found}") as error:
            make(settings, squares, cams=cams, out=tmp_path / make.__name__, **more)
        assert "32x36 and classes below 2" in str(error.value)


def test_label_sets_of_other_pictures_are_named(tmp_path, squares):
    for index, name in enumerate(squares.names):
        size = (9, 9) if index == 3 else (32, 36)
        sure = posteriors_of(squares.read_mask(index)[: size[0], : size[1]], squares.classes(index))
        write_posteriors(tmp_path / "labels" / f"{name}.npz", np.array(squares.classes(index)), sure, sure)
    with pytest.raises(BadInput, match=r"bild_3ß\.npz: found label sets of 9x9 .*expected 32x36"):
        train(SMALL, squares, labels=finished(tmp_path / "labels"), out=tmp_path / "affinitynet")


def test_weights_learned_on_other_classes_walk_too(tmp_path, squares, cams, trained):
    labels = np.pad(squares.labels, ((0, 0), (0, 1)))
    more = dataclasses.replace(squares, class_names=("red", "blue", "green"), labels=labels)
    walk_to_masks(WALK, more, cams=cams, weights=trained, out=tmp_path / "more")
    walk_to_masks(WALK, squares, cams=cams, weights=trained, out=tmp_path / "two")
    for name in squares.names:
        file = f"{name}.png"
        assert (tmp_path / "more" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_foreign_and_corrupt_weights(tmp_path, squares, cams, trained):
    def refused(weights, match):
        with pytest.raises(BadInput, match=match):
            AffinityNetSettings(weights=str(weights)).check(None)
        with pytest.raises(BadInput, match=match):
            walk_to_masks(WALK, squares, cams=cams, weights=weights, out=tmp_path / "masks")

    state, metadata = read_weights(trained / WEIGHTS)
    write_weights(tmp_path / "cam" / WEIGHTS, state, {**metadata, "kind": "cam"})
    refused(finished(tmp_path / "cam"), "weights of a `cam` network; expected those of a `affinitynet` network")
    write_weights(tmp_path / "other.safetensors", state, {**metadata, "backbone": BACKBONE})
    refused(tmp_path / "other.safetensors", "weights of another network")
    (tmp_path / "cut.safetensors").write_bytes((trained / WEIGHTS).read_bytes()[:-100])
    refused(tmp_path / "cut.safetensors", "cut.safetensors: found content that cannot be read")
    (tmp_path / "text.pth").write_text("<html>")
    refused(tmp_path / "text.pth", "a text that begins with '<html>'")


def test_a_file_without_a_record_is_of_resnet38(tmp_path, trained):
    state, _ = read_weights(trained / WEIGHTS)
    torch.save(state, tmp_path / "narrow.pth")
    # sixteen times as narrow as the published network
    with pytest.raises(BadInput, match=r"narrow\.pth: found .* of another shape \(conv1a.weight: \(4, 3, 3, 3\) for"):
        load(tmp_path / "narrow.pth")


def test_a_backbone_that_starts_as_the_classifier(tmp_path, squares, cams):
    training = Training(batch=4, epochs=None, steps=1, lr=0.1, workers=0)
    classifier = train(cam.CAMSettings(BACKBONE, init="none", training=training), squares, out=tmp_path / "classifier")
    # no learning: the network stays as it starts
    still = dataclasses.replace(SMALL, init="classifier", training=dataclasses.replace(training, lr=0.0))
    refinement = AffinityNetSettings(network=still, walk=WALK)
    refinement.check(classifier)
    refinement.refined(RefinementTask(squares, cams, tmp_path / "run", classifier=classifier))
    source, _ = read_weights(classifier / WEIGHTS)
    state, _ = read_weights(tmp_path / "run" / "affinitynet" / WEIGHTS)
    kept = [name for name in state if name.startswith("backbone.")]
    assert kept
    assert all(torch.equal(state[name], source[name]) for name in kept)
    with pytest.raises(
        BadInput, match=r"refiner\.network\.init: found `classifier`, but no classifier that was trained here"
    ):
        refinement.refined(RefinementTask(squares, cams, tmp_path / "other"))


def test_pretrained_layers_stay_fixed(tmp_path, squares, cams, trained):
    start = dataclasses.replace(SMALL, backbone=NARROW, init=str(trained / WEIGHTS))
    refinement = AffinityNetSettings(
        network=dataclasses.replace(start, training=dataclasses.replace(start.training, lr=0.1))
    )
    refinement.check(None)
    refinement.refined(RefinementTask(squares, cams, tmp_path / "run"))
    source, _ = read_weights(trained / WEIGHTS)
    state, _ = read_weights(tmp_path / "run" / "affinitynet" / WEIGHTS)
    changed = {name for name, value in state.items() if not torch.equal(value, source[name])}
    assert {"f9.weight", "f8_3.weight", "b7.conv_branch1.weight"} <= changed
    assert not [
        name for name in changed if name.startswith(("conv1a", "b2.", "b2_")) or ".bn_" in name or "bn7" in name
    ]


def test_settings_that_cannot_work(tmp_path):
    def refused(match, **changes):
        with pytest.raises(BadInput, match=match):
            AffinityNetSettings(network=dataclasses.replace(SMALL, **changes)).check(None)

    refused("radius: found 1", radius=1)
    refused("`imagenet`, which no library offers for resnet38", backbone="resnet38", init="imagenet")
    refused("`imagenet`, which no library offers for psa-vgg16", backbone=VGG_BODY, init="imagenet")
    refused("backbone resnett: found", backbone="resnett")
    refused("a crop of 32 .* expected at least 5 cells of 8 pixels", augment=PosteriorAugment(crop=32))
    refused("labels at stride 4", augment=PosteriorAugment(crop=48, stride=4))
    refused("missing.params: found no such file", init=str(tmp_path / "missing.params"))
    with pytest.raises(BadInput, match=r"augment\.crop: found 50; expected a multiple of 8"):
        PosteriorAugment(crop=50)
    with pytest.raises(BadInput, match=r"labels\.high: found 2.*4 or more"):
        AffinityNetLabels(low=4, high=2)
    for changes in ({"radius": 1}, {"alpha": -1.0}, {"beta": -1.0}, {"doublings": -1}):
        with pytest.raises(BadInput, match=rf"walk\.{next(iter(changes))}"):
            AffinityNetWalk(**changes)


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (5, 8), (9, 4), (6, 13), (11, 12)])
def test_small_maps_walk(size):
    features, scores = torch.rand(7, *size), torch.rand(3, 8 * size[0], 8 * size[1])
    usual = walked(scores, features, AffinityNetWalk(doublings=4))
    if size[0] < 5 or size[1] < 9:
        torch.testing.assert_close(usual, walked(scores, features, AffinityNetWalk(doublings=4, pad_border=True)))
    # a mean over all cells stays within their range, and equal cells stay equal
    assert usual.min() >= scores.min()
    assert usual.max() <= scores.max()
    same = walked(torch.ones(1, 8 * size[0], 8 * size[1]), features, AffinityNetWalk(doublings=4))
    torch.testing.assert_close(same, torch.ones(1, *size))
    shrunk = walked(scores, features, AffinityNetWalk(doublings=4, shrink=True))
    radius = {(6, 13): 2, (9, 4): 2, (11, 12): 5}.get(size)
    if radius:
        torch.testing.assert_close(shrunk, walked(scores, features, AffinityNetWalk(radius=radius, doublings=4)))


def test_absent_classes_in_the_crf():
    rng = np.random.default_rng(0)
    picture, scores = rng.integers(0, 256, (15, 20, 3), np.uint8), rng.random((2, 16, 24), np.float32)
    labels = np.array([0, 3], np.uint8)
    found = crf_scores(picture, labels, scores, 5, "imagenet")
    assert found.shape == (5, 16, 24)
    np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)
    assert found[[1, 2, 4]].max() < found[labels].max(0).min()
