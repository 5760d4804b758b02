"""Segmenters: learn masks, run on any picture, know their classes; published checkpoints; what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import wsss.stages.predict as predict_module
from tests.conftest import finished, tree, write_squares
from wsss.data.augment import SegmenterAugment
from wsss.data.files import read_mask, write_mask
from wsss.data.images import MaskFile
from wsss.errors import BadInput
from wsss.networks.deeplab import DeepLabLayers, create_deeplab
from wsss.run import DONE, INPUTS
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.stages.predict import PredictSettings, Segmenter, predict
from wsss.stages.train import Training, train
from wsss.weights import WEIGHTS, read_weights, write_weights

SMALL = DeepLabSettings(
    network=DeepLabLayers("test_resnet", 8, (1, 2), (0.5,), batch_norm="live"),
    init="none",
    augment=SegmenterAugment(scales=(1.0,), crop=32),
    training=Training(batch=4, epochs=None, steps=2, optimizer="adamw", lr=1e-3, workers=0),
)


def truths(images, folder):
    for index, name in enumerate(images.names):
        write_mask(folder / f"{name}.png", images.read_mask(index))
    return finished(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A segmenter that had a good look at 24 pictures of squares."""
    folder = tmp_path_factory.mktemp("segmenter")
    images = write_squares(folder / "pictures", 24, 64)
    augment = dataclasses.replace(SMALL.augment, crop=64)
    settings = dataclasses.replace(
        SMALL, augment=augment, training=dataclasses.replace(SMALL.training, batch=8, steps=50, lr=3e-3)
    )
    train(settings, images, masks=truths(images, folder / "masks"), out=folder / "weights")
    return folder / "weights"


def test_it_learns_and_predicts_pictures_it_has_not_seen(trained, tmp_path):
    images = write_squares(tmp_path / "new", 6, 64, seed=5)
    predict(PredictSettings(), images, weights=trained, out=tmp_path / "masks")
    right = [
        (read_mask(tmp_path / "masks" / f"{name}.png") == images.read_mask(i)).mean()
        for i, name in enumerate(images.names)
    ]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize(
    "settings", [PredictSettings(), PredictSettings(scales=(0.75, 1.0), flip=True), PredictSettings(crf="irn")]
)
@pytest.mark.parametrize("size_hw", [(1, 1), (5, 40), (33, 61)])
def test_any_size(trained, settings, size_hw):
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8)
    segmenter = Segmenter(trained, settings)
    mask = segmenter(image)
    assert mask.shape == size_hw
    assert mask.dtype == np.uint8
    assert mask.max() <= 2
    assert segmenter.classes == ("red", "blue")
    total = segmenter.probabilities(segmenter.prepare(image)).sum(0)
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_mirrored_views_are_turned_back(trained):
    image = write_and_read()
    segmenter = Segmenter(trained, PredictSettings(flip=True))
    here = segmenter.probabilities(segmenter.prepare(image))
    there = segmenter.probabilities(segmenter.prepare(image[:, ::-1].copy()))
    np.testing.assert_allclose(there[:, :, ::-1], here, atol=1e-5)


def write_and_read():
    return np.random.default_rng(1).integers(0, 256, (24, 40, 3)).astype(np.uint8)


def test_a_published_checkpoint_predicts(tmp_path):
    network = create_deeplab(21, DeepLabLayers())
    torch.save(network.state_dict(), tmp_path / "deeplabv2_resnet101_msc-vocaug-20000.pth")
    segmenter = Segmenter(tmp_path / "deeplabv2_resnet101_msc-vocaug-20000.pth", PredictSettings())
    assert segmenter.classes[14] == "person"
    assert segmenter.trained.colours == "caffe"
    assert segmenter(np.zeros((9, 11, 3), np.uint8)).shape == (9, 11)


def test_another_checkpoint_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=r"other\.pth: found no segmenter"):
        Segmenter(tmp_path / "other.pth", PredictSettings())


def test_weights_whose_metadata_were_changed(trained, tmp_path):
    state, metadata = read_weights(trained / "weights.safetensors")
    for known in (
        {"network": 5},
        {"network": {"no_such_layer": 1}},
        {"classes": "cat"},
        {"classes": ["cat", "cat"]},
        {"long_sides": [9, 1]},
    ):
        write_weights(tmp_path / "weights.safetensors", state, {**metadata, **known})
        with pytest.raises(BadInput, match=r"weights\.safetensors: found .*The file was changed after it was written"):
            Segmenter(tmp_path, PredictSettings())


def test_the_published_body_wants_a_file(tmp_path, squares):
    with pytest.raises(BadInput, match=r"deeplabv1_resnet101-coco\.pth"):
        DeepLabSettings(network=DeepLabLayers()).trainable(squares, tmp_path)


@pytest.mark.parametrize(
    ("mask", "found"),
    [(np.zeros((9, 9), np.uint8), "a mask of 9x9"), (np.full((32, 36), 7, np.uint8), r"label 7 \(1152 pixels\)")],
)
def test_masks_that_do_not_fit_are_named(tmp_path, squares, mask, found):
    masks = truths(squares, tmp_path / "masks")
    write_mask(masks / f"{squares.names[2]}.png", mask)
    with pytest.raises(BadInput, match=rf"bild_2ß\.png: found {found}"):
        train(
            dataclasses.replace(SMALL, training=Training(batch=12, steps=1, workers=0)),
            squares,
            masks=masks,
            out=tmp_path / "out",
        )


def test_a_missing_mask_is_named(tmp_path, squares):
    masks = truths(squares, tmp_path / "masks")
    (masks / f"{squares.names[2]}.png").unlink()
    with pytest.raises(BadInput, match=r"1 file \(teil 0/bild_2ß\.png\) was removed"):
        train(
            dataclasses.replace(SMALL, training=Training(batch=12, steps=1, workers=0)),
            squares,
            masks=masks,
            out=tmp_path / "out",
        )


ALSO = ("overlays", "json", "probabilities")


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """Pictures of squares that the segmenter has not seen."""
    return write_squares(tmp_path_factory.mktemp("new"), 4, 64, seed=5)


@pytest.fixture(scope="module")
def complete(trained, new, tmp_path_factory):
    """Masks and everything else, made at once."""
    return predict(PredictSettings(), new, weights=trained, out=tmp_path_factory.mktemp("all") / "masks", also=ALSO)


def results(folder):
    """All files but records that contain paths."""
    return {name: content for name, content in tree(folder).items() if not name.endswith((DONE, INPUTS))}


def test_further_outputs_describe_the_masks(complete, new):
    for index, name in enumerate(new.names):
        mask = read_mask(complete / f"{name}.png")
        with np.load(complete / "probabilities" / f"{name}.npz") as stored:
            probabilities = stored["probabilities"]
            assert stored["labels"].tolist() == ["background", "red", "blue"]
        assert probabilities.dtype == np.float16
        np.testing.assert_allclose(probabilities.astype(float).sum(0), 1, atol=2e-3)
        assert (probabilities.argmax(0) == mask).mean() > 0.99  # ties in float16
        (line,) = (complete / "json" / f"{name}.json").read_text(encoding="utf-8").splitlines()
        found = json.loads(line)
        assert found["picture"] == name
        assert (found["height"], found["width"]) == mask.shape
        listed = {0: found["background"]} | {one["label"]: one for one in found["classes"]}
        assert set(listed) == {0, *np.unique(mask).tolist()}
        for label, one in listed.items():
            inside = mask == label
            assert one["pixels"] == inside.sum()
            assert one["share"] == pytest.approx(inside.mean(), abs=1e-6)
            assert one["confidence"] == pytest.approx(probabilities[label][inside].mean(dtype=float), abs=1e-4)
        for one in found["classes"]:
            assert one["class"] == ("red", "blue")[one["label"] - 1]
            components, count = ndimage.label(mask == one["label"], np.ones((3, 3)))
            boxes = [
                [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
                for rows, columns in ndimage.find_objects(components)
            ]
            assert sorted(each["box"] for each in one["components"]) == sorted(boxes)
            assert len(one["components"]) == count
            assert sum(each["pixels"] for each in one["components"]) == one["pixels"]
        with Image.open(complete / "overlays" / f"{name}.jpg") as drawn:
            height, width = new.size_hw(index)
            assert drawn.width >= 2 * 360 * width / max(height, width)
            assert drawn.height > 360 * height / max(height, width)


def test_outputs_added_one_by_one_are_the_same_bytes(trained, new, complete, tmp_path, monkeypatch):
    out, calls = tmp_path / "masks", []
    predict(PredictSettings(), new, weights=trained, out=out)
    blocks = Segmenter.blocks
    monkeypatch.setattr(Segmenter, "blocks", lambda *a: (calls.append(1), blocks(*a))[1])
    predict(PredictSettings(), new, weights=trained, out=out, also=["overlays"])
    assert not calls
    predict(PredictSettings(), new, weights=trained, out=out, also=["probabilities"])
    assert len(calls) == len(new)
    predict(PredictSettings(), new, weights=trained, out=out, also=["json"])
    assert len(calls) == len(new)
    predict(PredictSettings(), new, weights=trained, out=out, also=ALSO)
    assert len(calls) == len(new)
    assert results(out) == results(complete)


@pytest.mark.parametrize("writes", [1, 6, 11])
def test_killed_while_writing_the_outputs(trained, new, complete, tmp_path, monkeypatch, writes):
    out, written = tmp_path / "masks", []
    with monkeypatch.context() as patch:
        for name in ("write_mask", "write_description", "write_probabilities", "write_picture"):
            write = getattr(predict_module, name)
            patch.setattr(predict_module, name, lambda *values, _write=write: stopped(_write, written, writes, values))
        with pytest.raises(KeyboardInterrupt):
            predict(PredictSettings(), new, weights=trained, out=out, also=ALSO)
    predict(PredictSettings(), new, weights=trained, out=out, also=ALSO)
    assert results(out) == results(complete)


def stopped(write, written, writes, values):
    written.append(values[0])
    if len(written) == writes:
        raise KeyboardInterrupt
    write(*values)


def test_corrected_masks_are_described_and_old_descriptions_refused(trained, new, tmp_path):
    out = predict(PredictSettings(), new, weights=trained, out=tmp_path / "masks", also=["json"])
    path = out / f"{new.names[0]}.png"
    corrected = np.zeros_like(read_mask(path))
    corrected[:5, :7] = 2
    write_mask(path, corrected)
    with pytest.raises(BadInput, match=r"json: found a stage.*edited"):
        predict(PredictSettings(), new, weights=trained, out=out, also=["json"])
    shutil.rmtree(out / "json")
    predict(PredictSettings(), new, weights=trained, out=out, also=["json"])
    (one,) = json.loads((out / "json" / f"{new.names[0]}.json").read_text(encoding="utf-8"))["classes"]
    assert (one["class"], one["pixels"]) == ("blue", 35)
    assert one["components"] == [{"box": [0, 0, 7, 5], "pixels": 35}]
    np.testing.assert_array_equal(read_mask(path), corrected)


def enlarged(images, folder, factor):
    """The same pictures and masks, several times as large."""
    paths, masks = [], []
    for index, name in enumerate(images.names):
        paths.append(folder / f"{name}.png")
        masks.append(folder / "truth" / f"{name}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.read(index).repeat(factor, 0).repeat(factor, 1)).save(paths[-1])
        write_mask(masks[-1], images.read_mask(index).repeat(factor, 0).repeat(factor, 1))
    return dataclasses.replace(images, paths=tuple(paths), masks=tuple(map(MaskFile, masks)))


def test_pictures_of_another_size_are_predicted_at_that_of_the_training(trained, new, tmp_path):
    large = enlarged(new, tmp_path / "large", 4)
    predict(PredictSettings(), large, weights=trained, out=tmp_path / "masks")
    record = json.loads((tmp_path / "masks" / DONE).read_text())["result"]
    assert (record["trained_long_sides"], record["resized"]) == ([68, 68], len(new))
    segmenter = Segmenter(trained, PredictSettings())
    for index in range(len(new)):
        small, big = segmenter(new.read(index)), read_mask(tmp_path / "masks" / f"{new.names[index]}.png")
        assert (big[1::4, 1::4] == small).mean() > 0.98


@pytest.mark.parametrize(
    ("size", "side", "seen"),
    [
        (None, 68, 68), (None, 80, 80), (None, 86, 68), (None, 60, 60), (None, 50, 68), (None, 640, 68),
        ("full", 640, 640), (100, 640, 100), (100, 20, 100),
    ],
)  # fmt: skip
def test_the_size_in_the_network(trained, size, side, seen):
    segmenter = Segmenter(trained, PredictSettings(size=size))
    assert segmenter.working_size((side // 2, side)) == (round(side // 2 * seen / side), seen)
    assert segmenter.working_size((side, side // 2))[0] == seen


def test_published_and_older_weights_keep_the_size(trained, tmp_path):
    state, metadata = read_weights(trained / WEIGHTS)
    del metadata["long_sides"]
    write_weights(tmp_path / "older.safetensors", state, metadata)
    assert Segmenter(tmp_path / "older.safetensors", PredictSettings()).working_size((640, 480)) == (640, 480)
    write_weights(tmp_path / "odd.safetensors", state, {**metadata, "long_sides": ["a", 2]})
    with pytest.raises(BadInput, match=r"odd.safetensors: found `long_sides` \['a', 2\]"):
        Segmenter(tmp_path / "odd.safetensors", PredictSettings())
    with pytest.raises(BadInput, match=r"test\.size"):
        PredictSettings(size=3)


def test_links_that_lead_out_of_the_folder(trained, new, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(new.paths[0], tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").symlink_to(new.paths[1])
    with pytest.raises(BadInput, match=r"b\.png: found a file outside the data set .*--allow-outside"):
        predict_module.pictures(tmp_path / "in", weights=trained)
    images, _ = predict_module.pictures(tmp_path / "in", weights=trained, allow_outside=True)
    assert images.names == ("a", "b")
    (tmp_path / "in" / "b.png").unlink()
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "in" / "a.png")
    with pytest.raises(BadInput, match="one file for two pictures"):
        predict_module.pictures(tmp_path / "in", weights=trained)
