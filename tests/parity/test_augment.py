"""Augmentations against IRNet, CLIMS and deeplab-pytorch with given draws: uint8 and labels exact, floats 1e-6."""

import numpy as np
import pytest

from tests.parity import fixtures, inputs
from wsss.data import augment
from wsss.data.augment import View

IRNET = fixtures.arrays("irnet/augment")
CLIMS = fixtures.arrays("clims/augment")
DEEPLAB = fixtures.arrays("deeplab/augment")


@pytest.fixture(scope="module")
def picture():
    return inputs.image(75, 112, 6)


@pytest.fixture(scope="module")
def labels():
    return inputs.mask(75, 112, 21, 6)


def rows(planes: np.ndarray) -> np.ndarray:
    return planes.transpose(1, 2, 0)


def test_resize_to_a_long_side(picture):
    size = augment.scaled_size(picture.shape[:2], augment.long_side_scale(picture.shape[:2], 90))
    resized = augment.resize_bicubic(picture, size)
    assert resized.shape == tuple(IRNET["resize_long_90_shape"])
    np.testing.assert_array_equal(resized[::6, ::6], IRNET["resize_long_90"])


def test_scale_of_image_and_label(picture, labels):
    size = augment.scaled_size(picture.shape[:2], 0.5 + 0.3 * (1.5 - 0.5))
    resized = augment.resize_bicubic(picture, size)
    assert resized.shape == tuple(IRNET["scale_08_shape"])
    np.testing.assert_array_equal(resized[::6, ::6], IRNET["scale_08_img"])
    np.testing.assert_array_equal(augment.resize_nearest(labels, size), IRNET["scale_08_label"])


@pytest.mark.parametrize(("crop", "left", "top", "step"), [(64, 7, 5, 6), (100, 3, 20, 9)])
def test_random_crop(picture, labels, crop, left, top, step):
    reference = IRNET[f"crop{crop}_img"]
    # the reference crops whatever the image holds at that point: raw pixel values here
    view = View(picture.shape[:2], False, top, left, crop)
    cropped = augment.crop_array(view, picture.astype(np.float32), 0)
    np.testing.assert_allclose(cropped[::step, ::step], reference, atol=1e-6)
    np.testing.assert_array_equal(augment.crop_labels(view, labels), IRNET[f"crop{crop}_label"])


def test_top_left_and_centre_crop(labels):
    np.testing.assert_array_equal(
        augment.crop_labels(augment.top_left(labels.shape, 90), labels), IRNET["topleft90_label"]
    )
    top, left = (round(abs(side - 90) / 2) for side in labels.shape)
    np.testing.assert_array_equal(
        augment.crop_labels(View(labels.shape, False, top, left, 90), labels), IRNET["center90_label"]
    )


def test_mirror_and_normalisation(picture, labels):
    mirrored = augment.crop_labels(View(labels.shape, True, 0, 0, 112), labels)
    np.testing.assert_array_equal(mirrored[10], IRNET["flip_label_row"])
    np.testing.assert_allclose(rows(augment.normalise(picture))[::15, ::15], IRNET["normalised_sample"], atol=1e-6)


@pytest.mark.parametrize("case", range(4))
def test_whole_classifier_view(case):
    shape = [(75, 100), (100, 75), (90, 90), (80, 110)][case]
    long_side, flip, crop, across_range, left, down_range, top = CLIMS[f"{case}/params"].tolist()
    image = inputs.image(*shape, 61 + case)
    height, width = augment.scaled_size(shape, augment.long_side_scale(shape, long_side))
    assert (abs(width - crop) + 1, abs(height - crop) + 1) == (across_range, down_range)
    view = augment.crop_picture(View((height, width), bool(flip), top, left, crop), image)
    assert (view.dtype == np.float32) == CLIMS[f"{case}/dtype_is_float32"]
    np.testing.assert_allclose(view[:, ::7, ::7], CLIMS[f"{case}/image_strided"], atol=1e-6)
    exact = view.astype(np.float64)
    stats = [exact.mean(), exact.std(), exact.sum(), np.abs(exact).max()]
    np.testing.assert_allclose(stats, CLIMS[f"{case}/stats"], rtol=1e-6)


@pytest.mark.parametrize("case", "abc")
def test_whole_segmenter_view(case):
    scale, top, left, flip, crop = DEEPLAB[f"{case}_draw"]
    image, label = inputs.image(75, 113, 3), inputs.mask(75, 113, 21, 3)
    size_hw = augment.truncated_size(label.shape, float(scale))
    drawn = View.flipped_last(size_hw, bool(flip), int(top), int(left), int(crop))
    view, label = augment.SegmenterAugment.apply(drawn, image, label, "caffe")
    assert view.dtype == np.float32
    # 3e-6 measured on values up to 150: the mean is exactly 0 beside the image here
    np.testing.assert_allclose(view[:, ::11, ::11], DEEPLAB[f"{case}_image_sample"], atol=1e-5)
    np.testing.assert_array_equal(label, DEEPLAB[f"{case}_label"])
