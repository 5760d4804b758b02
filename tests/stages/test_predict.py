"""Segmenters: learn masks, run on any picture, know their classes; published checkpoints; what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import finished, write_squares
from wsss.data.augment import SegmenterAugment
from wsss.data.files import read_mask, write_mask
from wsss.errors import BadInput
from wsss.networks.deeplab import DeepLabLayers, create_deeplab
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.stages.predict import PredictSettings, Segmenter, predict
from wsss.stages.train import Training, train

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
        SMALL, augment=augment, training=dataclasses.replace(SMALL.training, batch=8, steps=100, lr=3e-3)
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


def test_the_published_body_wants_a_file(tmp_path, squares):
    with pytest.raises(BadInput, match=r"deeplabv1_resnet101-coco\.pth"):
        DeepLabSettings().trainable(squares, tmp_path)


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
