"""Retrieval: a bank of regions that labels those of other pictures, grows without forgetting, and says why."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

import wsss
from tests.conftest import finished, write_squares
from tests.regions.test_networks import sam
from tests.segmenters.tiny import BODY, retrieval, write_classifier
from wsss.data.files import read_mask, write_mask
from wsss.errors import BadInput
from wsss.foundations import FeatureSettings
from wsss.loading import to_be_trained
from wsss.ops.region_shapes import eroded_regions
from wsss.ops.regions import Regions
from wsss.ops.retrieval import vote
from wsss.regions import DEFAULT
from wsss.regions.files import write_regions
from wsss.regions.sam import SAMSettings
from wsss.segmenters.bank import Bank
from wsss.segmenters.retrieval import RetrievalSettings, described, opened_bank
from wsss.stages import bank as stage
from wsss.stages.bank import make_bank
from wsss.stages.predict import PredictSettings, Segmenter, predict
from wsss.stages.propose import propose
from wsss.stages.segment import segment
from wsss.weights import BANK, read_weights, write_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def settings(classifier):
    return retrieval(classifier)


@pytest.fixture(scope="module")
def made(settings, data, tmp_path_factory):
    images, masks = data
    return make_bank(settings, images, masks=masks, out=tmp_path_factory.mktemp("made") / "bank")


def bank_in(folder) -> Bank:
    return opened_bank(folder)[0]


def test_the_bank_has_one_vector_for_each_label_of_each_mask(made, data, settings):
    (images, masks), bank = data, bank_in(made)
    assert bank.names == images.names
    expected = []
    for index, name in enumerate(images.names):
        found = eroded_regions(read_mask(masks / f"{name}.png"), erosion=1, fewest_pixels=9)
        expected += [(index, label, int(mask.sum())) for label, mask in zip(found.labels, found.masks, strict=True)]
    rows = zip(bank.pictures.tolist(), bank.labels.tolist(), bank.areas.tolist(), strict=True)
    assert list(rows) == expected
    np.testing.assert_allclose(np.linalg.norm(bank.vectors.astype(float), axis=1), 1, atol=2e-3)
    # the box of the last region of the first picture, and its vector
    first = eroded_regions(read_mask(masks / f"{images.names[0]}.png"), erosion=1, fewest_pixels=9)
    pixels = np.argwhere(first.masks[0])
    assert bank.boxes[0].tolist() == [*pixels.min(0), *(pixels.max(0) + 1)]
    _, _, features, _ = opened_bank(made)
    vectors = described(features, images.read(0), Regions.of_masks(first.masks))
    np.testing.assert_array_equal(bank.vectors[: len(vectors)], vectors.astype(np.float16))


def test_squares_are_found_in_pictures_that_were_not_in_the_bank(made, tmp_path):
    images = write_squares(tmp_path / "new", 8, seed=5)
    out = predict(PredictSettings(), images, weights=made, out=tmp_path / "predictions", also=["probabilities"])
    right = total = 0
    for index, name in enumerate(images.names):
        truth, mask = images.read_mask(index), read_mask(out / f"{name}.png")
        right += int((mask == truth)[truth > 0].sum())
        total += int((truth > 0).sum())
    assert right > 0.7 * total


@pytest.mark.parametrize("combined", ["painted", "mean"])
def test_any_size_scale_and_mirror_image(made, data, settings, tmp_path, combined):
    images, masks = data
    out = make_bank(dataclasses.replace(settings, combined=combined), images, masks=masks, out=tmp_path / "bank")
    segmenter = Segmenter(out, PredictSettings(scales=(0.5, 1.0), flip=True))
    for size_hw in ((1, 1), (5, 40), (33, 61)):
        image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8)
        found = segmenter.probabilities(segmenter.prepare(image))
        assert found.shape == (3, *size_hw)
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_masks_are_what_votes_and_painting_give(made, data):
    """The prediction against the published rules, written out for one picture."""
    segmenter, image = Segmenter(made, PredictSettings()), data[0].read(3)
    trained = segmenter.trained
    regions = trained.proposer.regions(trained.proposer.prepare(image))
    regions = regions.chosen(np.flatnonzero(regions.areas >= 9))
    bank = bank_in(made)
    voting = bank.chosen(bank.kept(0.25))
    queries = described(trained.features, image, regions)
    votes = vote(queries, voting.unit_vectors(), voting.labels.astype(int), 3, k=3, voting="balanced")
    masks, order = regions.masks(), np.argsort(-votes.scores, kind="stable")
    kept: list[int] = []
    for index in order:
        alike = [other for other in kept if votes.labels[other] == votes.labels[index]]
        if all((masks[index] & masks[o]).sum() / (masks[index] | masks[o]).sum() <= 0.4 for o in alike):
            kept.append(int(index))
    expected, free = np.zeros(image.shape[:2], np.uint8), np.ones(image.shape[:2], bool)
    for index in kept:
        if votes.labels[index]:
            expected[masks[index] & free] = votes.labels[index]
            free &= ~masks[index]
    np.testing.assert_array_equal(segmenter(image), expected)


def test_a_bank_that_grows_is_the_bank_of_all_pictures(made, data, settings, tmp_path):
    images, masks = data
    parts = [images.subset(range(5)), images.subset(range(5, 12))]
    first = make_bank(settings, parts[0], masks=masks, out=tmp_path / "first")
    grown = dataclasses.replace(settings, init=str(first), features=FeatureSettings())
    both = make_bank(grown, parts[1], masks=masks, out=tmp_path / "both")
    (state, ours), (whole, theirs) = (read_weights(folder / BANK) for folder in (both, made))
    assert state.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)
    assert ours["pictures"] == theirs["pictures"]


def test_pictures_of_the_same_name_are_replaced(made, data, settings, tmp_path):
    images, masks = data
    corrected = tmp_path / "corrected"
    for name in images.names[:2]:
        write_mask(corrected / f"{name}.png", np.full_like(read_mask(masks / f"{name}.png"), 2))
    grown = dataclasses.replace(settings, init=str(made), features=FeatureSettings())
    out = make_bank(grown, images.subset(range(2)), masks=finished(corrected), out=tmp_path / "again")
    bank = bank_in(out)
    assert sorted(bank.names) == sorted(images.names)
    of_first = [bank.labels[bank.pictures == bank.names.index(name)].tolist() for name in images.names[:2]]
    assert of_first == [[2], [2]]


def test_a_class_is_added_without_forgetting(made, data, settings, tmp_path):
    images, masks = data
    others = dataclasses.replace(
        images, class_names=("green", "red"), names=tuple(f"new {name}" for name in images.names), labels=images.labels
    )
    folder = tmp_path / "masks"
    for old, new in zip(images.names, others.names, strict=True):
        write_mask(folder / f"{new}.png", read_mask(masks / f"{old}.png"))
    grown = dataclasses.replace(settings, init=str(made), features=FeatureSettings())
    out = make_bank(grown, others, masks=finished(folder), out=tmp_path / "more")
    _, metadata = read_weights(out / BANK)
    assert metadata["classes"] == ["red", "blue", "green"]
    before, after = bank_in(made), bank_in(out)
    np.testing.assert_array_equal(after.vectors[: len(before)], before.vectors)
    # label 1 of the new masks is green, and 2 is red
    new = after.chosen(after.pictures >= len(before.names))
    np.testing.assert_array_equal(new.labels, np.array([0, 3, 1])[before.labels])


def test_a_killed_stage_continues_and_ends_in_the_same_bytes(made, data, settings, tmp_path, monkeypatch):
    images, masks = data
    seen: list[int] = []
    real = stage.described

    def dying(features, image, regions):
        seen.append(1)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return real(features, image, regions)

    monkeypatch.setattr(stage, "described", dying)
    with pytest.raises(KeyboardInterrupt):
        make_bank(settings, images, masks=masks, out=tmp_path / "bank")
    out = make_bank(settings, images, masks=masks, out=tmp_path / "bank")
    assert len(seen) == 7 + 6
    assert (out / BANK).read_bytes() == (made / BANK).read_bytes()
    assert not (out / "vectors").exists()


def test_corrected_masks_are_used_instead(data, settings, tmp_path):
    images, masks = data
    corrected = tmp_path / "corrected"
    write_mask(corrected / f"{images.names[1]}.png", np.full((32, 36), 1, np.uint8))
    out = segment(settings, images, masks=masks, out=tmp_path / "bank", classifier=None, corrected=finished(corrected))
    bank = bank_in(out)
    assert bank.labels[bank.pictures == 1].tolist() == [1]
    assert bank.areas[bank.pictures == 1].tolist() == [32 * 36]


def test_the_classifier_of_a_run_is_copied_into_the_bank(data, settings, classifier, tmp_path):
    images, masks = data
    moved = tmp_path / "classifier"
    shutil.copytree(classifier, moved)
    of_run = dataclasses.replace(settings, features=FeatureSettings(enlarge=4))
    out = segment(of_run, images, masks=masks, out=tmp_path / "bank", classifier=moved)
    shutil.rmtree(moved)
    image = images.read(0)
    assert Segmenter(out, PredictSettings())(image).shape == image.shape[:2]


def test_masks_of_which_nothing_is_left_after_the_erosion(data, settings, tmp_path):
    images, masks = data
    with pytest.raises(BadInput, match="erosion_share"):
        make_bank(dataclasses.replace(settings, erosion=20), images, masks=masks, out=tmp_path / "bank")
    assert not (tmp_path / "bank" / BANK).exists()


def test_another_network_than_that_of_the_bank(made, data, settings, tmp_path):
    images, masks = data
    write_classifier(tmp_path, seed=1)
    changed = dataclasses.replace(settings, init=str(made), features=FeatureSettings(str(tmp_path)))
    with pytest.raises(BadInput, match="another network than that of the bank"):
        make_bank(changed, images, masks=masks, out=tmp_path / "bank")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"erosion": -1}, "erosion"),
        ({"fewest_pixels": 0}, "fewest_pixels"),
        ({"neighbours": 0}, "neighbours"),
        ({"dropped": 1.0}, "dropped"),
        ({"lowest_score": 1.5}, "lowest_score"),
        ({"erosion_share": 0.6}, "erosion_share"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(BadInput, match=message):
        dataclasses.replace(RetrievalSettings(), **change)


@pytest.mark.parametrize("init", ["none", "nowhere"])
def test_checks_before_any_stage_runs(init):
    with pytest.raises(BadInput, match=r"classifier|no such file"):
        RetrievalSettings(init=init).check()


def test_layers_that_the_classifier_of_a_run_will_not_have(classifier):
    later = to_be_trained(BODY, 16)
    RetrievalSettings().check(later)
    for features in (FeatureSettings(layers=9), FeatureSettings(enlarge=3)):
        for trained in (later, classifier):
            with pytest.raises(BadInput, match=r"layers|enlarge"):
                RetrievalSettings(features=features).check(trained)


def test_regions_of_a_network_that_has_changed(data, settings, tmp_path):
    images, masks = data
    for seed in (0, 1):
        torch.manual_seed(seed)
        model, processor = sam()
        for one in (model, processor):
            one.save_pretrained(tmp_path / "sam")
        if seed == 0:
            of_sam = SAMSettings(model=str(tmp_path / "sam"), points=2, iou=0.0, stability=0.0)
            out = make_bank(dataclasses.replace(settings, proposer=of_sam), images, masks=masks, out=tmp_path / "bank")
            assert Segmenter(out, PredictSettings())(images.read(0)).shape == (32, 36)
    with pytest.raises(BadInput, match="regions of another Segment Anything"):
        Segmenter(out, PredictSettings())


def changed_body(metadata, **change):
    features = metadata["features"]
    return {**metadata, "features": {**features, "body": {**features["body"], **change}}}


def damaged(metadata, state):
    rows = len(state["bank.labels"])
    yield "labels", metadata, {**state, "bank.labels": torch.full((rows,), 7, dtype=torch.uint8)}
    yield "pictures", metadata, {**state, "bank.pictures": torch.full((rows,), -1, dtype=torch.int32)}
    yield "areas", metadata, {name: value for name, value in state.items() if name != "bank.areas"}
    yield "vectors", metadata, {**state, "bank.vectors": state["bank.vectors"].float()}
    yield "a bank that belongs", metadata, {**state, "bank.vectors": state["bank.vectors"][:, :5].contiguous()}
    yield "vectors", metadata, {**state, "bank.vectors": state["bank.vectors"].bfloat16()}
    yield "tensors", metadata, {**state, "bank.more": state["bank.labels"].clone()}
    yield "the classes", {**metadata, "classes": []}, state
    yield "without layers", {**metadata, "features": {**metadata["features"], "layers": "2"}}, state
    yield "without body", {**metadata, "features": {**metadata["features"], "body": "resnet50"}}, state
    yield "colours", {**metadata, "features": {**metadata["features"], "body": {}}}, state
    yield "no network with this name", changed_body(metadata, backbone="no_such_network"), state
    yield "another network", changed_body(metadata, backbone="resnet10t"), state
    yield "metadata without threshold", {**metadata, "threshold": None}, state
    yield "a list of names", {**metadata, "pictures": [1, 2]}, state
    yield "each once", {**metadata, "pictures": metadata["pictures"][:1] * len(metadata["pictures"])}, state
    yield "one of them twice", {**metadata, "classes": metadata["classes"][:1] * 2}, state
    yield "`long_sides` \\['a', 1\\]", {**metadata, "long_sides": ["a", 1]}, state
    yield "a threshold of nan", {**metadata, "threshold": float("nan")}, state
    yield "without a region of any class", metadata, {**state, "bank.labels": state["bank.labels"] * 0}
    yield "no pixel", metadata, {**state, "bank.areas": -state["bank.areas"]}
    yield "no pixel", metadata, {**state, "bank.boxes": state["bank.boxes"].flip(1)}
    yield "vectors of lengths from 0 to 0", metadata, {**state, "bank.vectors": state["bank.vectors"] * 0}
    yield "tensors", metadata, {**state, "bank.more": torch.zeros(1)}


def damaged_settings(metadata, state):
    yield "neighbours", {**metadata, "settings": {**metadata["settings"], "neighbours": "many"}}, state
    yield "no settings neighbours", {**metadata, "settings": without(metadata["settings"], "neighbours")}, state
    yield "metadata without `network`", {**metadata, "kind": "deeplab"}, state


def without(known, name):
    return {key: value for key, value in known.items() if key != name}


def test_banks_that_were_changed_do_not_grow(made, data, tmp_path):
    (images, masks), (state, metadata) = data, read_weights(made / BANK)
    for message, known, tensors in damaged(metadata, state):
        write_weights(tmp_path / BANK, tensors, known)
        with pytest.raises(BadInput, match=message):
            make_bank(RetrievalSettings(init=str(tmp_path)), images, masks=masks, out=tmp_path / "larger")
        assert not list((tmp_path / "larger").glob("bank*"))


def test_files_that_were_changed(made, tmp_path):
    state, metadata = read_weights(made / BANK)
    for message, known, tensors in (*damaged(metadata, state), *damaged_settings(metadata, state)):
        write_weights(tmp_path / BANK, tensors, known)
        with pytest.raises(BadInput, match=message):
            Segmenter(tmp_path, PredictSettings())


@pytest.mark.parametrize("voting", ["plain", "by-class"])
def test_tags_at_test_time(data, settings, tmp_path, voting):
    images, masks = data
    out = make_bank(dataclasses.replace(settings, voting=voting), images, masks=masks, out=tmp_path / "bank")
    # every picture is tagged with blue alone
    labels = np.zeros_like(images.labels)
    labels[:, 1] = True
    tagged = dataclasses.replace(images, labels=labels)
    found = predict(PredictSettings(tags=True), tagged, weights=out, out=tmp_path / "masks", also=["probabilities"])
    values = set(np.unique([read_mask(found / f"{name}.png") for name in images.names]).tolist())
    assert values == {0, 2}


def test_pictures_without_tags_or_with_other_classes(made, data, tmp_path):
    images = data[0]
    untagged = dataclasses.replace(images, labels=np.zeros_like(images.labels))
    others = dataclasses.replace(images, class_names=("red", "green"))
    for wrong, message in ((untagged, "without tags"), (others, "`green`")):
        with pytest.raises(BadInput, match=message):
            predict(PredictSettings(tags=True), wrong, weights=made, out=tmp_path / "masks")


def test_programs_load_it_like_any_segmenter(made, data):
    image = data[0].read(1)
    segmenter = wsss.load(made)
    assert (segmenter.kind, segmenter.classes) == ("retrieval", ("red", "blue"))
    found = segmenter.predict(image).labels
    np.testing.assert_array_equal(found, Segmenter(made, PredictSettings())(image))
    for region in segmenter.explain(image):
        top, left, bottom, right = region.box
        assert 0 <= top < bottom <= 32
        assert 0 <= left < right <= 36
        assert {near.image for near in region.nearest} <= set(data[0].names)


def test_only_a_bank_explains(classifier, data):
    with pytest.raises(BadInput, match="a network of kind `cam`"):
        wsss.load(classifier).explain(data[0].read(0))


def test_regions_unlike_all_of_the_bank_are_background(made, data, settings, tmp_path):
    images, masks = data
    strict = dataclasses.replace(settings, background="left-out")
    out = make_bank(strict, images, masks=masks, out=tmp_path / "bank")
    _, metadata = read_weights(out / BANK)
    bank = bank_in(out)
    voting = bank.chosen(bank.kept(0.25))
    assert metadata["threshold"] == voting.threshold(3, 3, "balanced")
    segmenter = Segmenter(out, PredictSettings())
    segmenter.trained.threshold = 1.1
    assert not segmenter(images.read(0)).any()


def test_regions_that_were_made_before(made, data, tmp_path):
    """Predictions with stored regions are those with proposed ones; a few regions alone decide on their pixels."""
    images = data[0].subset(range(3))
    regions = propose(DEFAULT, images, out=tmp_path / "regions")
    proposed = predict(PredictSettings(), images, weights=made, out=tmp_path / "proposed")
    given = predict(PredictSettings(), images, weights=made, out=tmp_path / "given", regions=regions)
    for name in images.names:
        np.testing.assert_array_equal(read_mask(given / f"{name}.png"), read_mask(proposed / f"{name}.png"))
    for index, name in enumerate(images.names):
        corner = np.zeros((1, *images.size_hw(index)), bool)
        corner[0, :8, :8] = True
        write_regions(tmp_path / "corners" / f"{name}.npz", Regions.of_masks(corner, np.ones(1)))
    masks = predict(
        PredictSettings(), images, weights=made, out=tmp_path / "few", regions=finished(tmp_path / "corners")
    )
    for name in images.names:
        assert not read_mask(masks / f"{name}.png")[8:].any()


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (PredictSettings(scales=(1.0, 0.5)), "scales"),
        (PredictSettings(flip=True), "flip"),
        (PredictSettings(size=20), "--size full"),
    ],
)
def test_regions_fit_only_pictures_as_they_are(made, data, tmp_path, test, message):
    regions = propose(DEFAULT, data[0], out=tmp_path / "regions")
    with pytest.raises(BadInput, match=message):
        predict(test, data[0], weights=made, out=tmp_path / "out", regions=regions)
    assert not list((tmp_path / "out").glob("*.png"))


def test_features_in_bfloat16(made, data):
    image = data[0].read(3)
    segmenters = (Segmenter(made, PredictSettings(precision=one)) for one in ("no", "bf16"))
    single, half = (one.probabilities(one.prepare(image)) for one in segmenters)
    assert half.dtype == np.float32
    assert (single.argmax(0) == half.argmax(0)).mean() > 0.98
