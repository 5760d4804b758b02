import dataclasses

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import ColorJitter

from wsss.data import augment
from wsss.data.augment import View
from wsss.errors import BadInput

SIDE = st.integers(1, 60)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def label_map(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + 1).integers(0, 21, (height, width), np.uint8)


@given(SIDE, SIDE, st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_crop_against_padding_on_all_sides(height, width, crop, data):
    top = data.draw(st.integers(0, abs(height - crop)))
    left = data.draw(st.integers(0, abs(width - crop)))
    label = label_map(height, width)
    padded = np.pad(label, 40, constant_values=255)
    first_row = 40 + (top if height > crop else -top)
    first_column = 40 + (left if width > crop else -left)
    expected = padded[first_row : first_row + crop, first_column : first_column + crop]
    view = View((height, width), False, top, left, crop)
    np.testing.assert_array_equal(augment.crop_labels(view, label), expected)


@given(SIDE, SIDE, st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_a_crop_is_mirrored_with_what_lies_outside(height, width, crop, data):
    top = data.draw(st.integers(0, abs(height - crop)))
    left = data.draw(st.integers(0, abs(width - crop)))
    label = label_map(height, width)
    plain, mirrored = (View.flipped_last((height, width), flip, top, left, crop) for flip in (False, True))
    np.testing.assert_array_equal(augment.crop_labels(mirrored, label)[:, ::-1], augment.crop_labels(plain, label))


@given(SIDE, SIDE, st.integers(1, 40), st.booleans(), st.sampled_from(["imagenet", "caffe"]), st.data())
@settings(max_examples=60, deadline=None)
def test_a_normalised_view_is_normalise_then_mirror_then_crop(height, width, crop, flip, colours, data):
    top = data.draw(st.integers(0, abs(height - crop)))
    left = data.draw(st.integers(0, abs(width - crop)))
    image = picture(height, width)
    planes = augment.normalise(image, colours)
    rows = planes[..., ::-1] if flip else planes
    unturned = View((height, width), False, top, left, crop)
    expected = augment.crop_array(unturned, rows.transpose(1, 2, 0), 0).transpose(2, 0, 1)
    view = View((height, width), flip, top, left, crop)
    np.testing.assert_array_equal(augment.crop_picture(view, image, colours), expected)


def test_normalise():
    image = picture(5, 7)
    imagenet = (image / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_array_equal(augment.normalise(image), imagenet.astype(np.float32).transpose(2, 0, 1))
    caffe = image[..., ::-1].astype(np.float64) - [104.008, 116.669, 122.675]
    for pixels in (image, image.astype(np.float32)):
        np.testing.assert_array_equal(augment.normalise(pixels, "caffe"), caffe.astype(np.float32).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("size", "scale", "rounded", "truncated"),
    [((75, 113), 0.5, (38, 56), (37, 56)), ((5, 7), 0.5, (2, 4), (2, 3)), ((1, 3), 0.1, (1, 1), (1, 1))],
)
def test_sizes(size, scale, rounded, truncated):
    assert augment.scaled_size(size, scale) == rounded
    assert augment.truncated_size(size, scale) == truncated


def test_reduced_label_takes_the_middle_of_each_cell():
    label = label_map(512, 512)
    np.testing.assert_array_equal(augment.reduce_label(label, 4), label[2::4, 2::4])


def by_hand(image: np.ndarray, label: np.ndarray, size_hw, flip: bool, left: int, top: int, crop: int):
    """Resize, normalise, mirror, crop: one after the other on whole images."""
    resized = np.asarray(Image.fromarray(image).resize(size_hw[::-1], Image.Resampling.BICUBIC))
    label = np.asarray(Image.fromarray(label).resize(size_hw[::-1], Image.Resampling.NEAREST))
    rows = augment.normalise(resized).transpose(1, 2, 0)
    if flip:
        rows, label = rows[:, ::-1], label[:, ::-1]
    view = View(size_hw, False, top, left, crop)
    return augment.crop_array(view, rows, 0).transpose(2, 0, 1), augment.crop_array(view, label, 255)


@pytest.mark.parametrize("seed", range(8))
def test_classifier_draws_in_the_published_order(seed):
    image, label = picture(50, 70), label_map(50, 70)
    rng = np.random.default_rng(seed)
    long_side, flip = int(rng.integers(40, 91)), rng.random() < 0.5
    size = (round(50 * (long_side / 70)), round(70 * (long_side / 70)))
    left = int(rng.integers(abs(size[1] - 64) + 1))
    top = int(rng.integers(abs(size[0] - 64) + 1))
    expected, _ = by_hand(image, label, size, flip, left, top, 64)
    view = augment.ClassifierAugment(long_side=(40, 90), crop=64)(image, np.random.default_rng(seed))
    np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize("seed", range(8))
def test_jittered_draws_in_the_published_order(seed):
    image, label = picture(50, 70), label_map(50, 70)
    rng = np.random.default_rng(seed)
    long_side, flip = int(rng.integers(40, 91)), rng.random() < 0.5
    size = (round(50 * long_side / 70), long_side)
    jittered = augment.colour_jitter(augment.resize_bicubic(image, size), 0.3, 0.3, 0.3, 0.1, rng)
    left = int(rng.integers(abs(size[1] - 64) + 1))
    top = int(rng.integers(abs(size[0] - 64) + 1))
    expected, _ = by_hand(jittered, label, size, flip, left, top, 64)
    view = augment.JitteredAugment(long_side=(40, 90), crop=64)(image, np.random.default_rng(seed))
    np.testing.assert_array_equal(view, expected)


def test_the_size_of_a_long_side_is_rounded_once():
    # 126.5 pixels, whose even neighbour is 126; 115 times 1.1, as rounded, is a little more
    assert augment.long_side_size((115, 500), 550) == (126, 550)
    assert augment.scaled_size((115, 500), augment.long_side_scale((115, 500), 550)) == (127, 550)
    assert augment.long_side_size((500, 500), 448) == (448, 448)
    assert augment.long_side_size((1, 900), 448) == (1, 448)


@pytest.mark.parametrize("seed", range(8))
def test_affinity_draws_in_the_published_order(seed):
    image, label = picture(50, 70), label_map(50, 70)
    rng = np.random.default_rng(seed)
    scale, flip = 0.5 + rng.random() * 1.0, rng.random() < 0.5
    size = (round(50 * scale), round(70 * scale))
    left = int(rng.integers(abs(size[1] - 64) + 1))
    top = int(rng.integers(abs(size[0] - 64) + 1))
    expected, expected_label = by_hand(image, label, size, flip, left, top, 64)
    view, reduced = augment.AffinityAugment(crop=64)(image, label, np.random.default_rng(seed))
    np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(reduced, expected_label[2::4, 2::4])


@pytest.mark.parametrize("colours", ["caffe", "imagenet"])
@pytest.mark.parametrize("seed", range(8))
def test_segmenter_draws_in_the_published_order(seed, colours):
    image, label = picture(50, 70), label_map(50, 70)
    scales = (0.5, 0.75, 1.0, 1.25, 1.5)
    rng = np.random.default_rng(seed)
    scale = scales[rng.integers(5)]
    height, width = int(50 * scale), int(70 * scale)
    top = rng.integers(max(height - 64, 0) + 1)
    left = rng.integers(max(width - 64, 0) + 1)
    flip = rng.random() < 0.5
    pixels = image.astype(np.float32) if colours == "caffe" else image
    planes = augment.normalise(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR), colours)
    below, beside = max(64 - height, 0), max(64 - width, 0)
    planes = np.pad(planes, ((0, 0), (0, below), (0, beside)))[:, top : top + 64, left : left + 64]
    resized = np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
    resized = np.pad(resized, ((0, below), (0, beside)), constant_values=255)[top : top + 64, left : left + 64]
    view, view_label = augment.SegmenterAugment(scales, 64)(image, label, np.random.default_rng(seed), colours)
    np.testing.assert_array_equal(view, planes[..., ::-1] if flip else planes)
    np.testing.assert_array_equal(view_label, resized[:, ::-1] if flip else resized)


@pytest.mark.parametrize("colours", ["caffe", "imagenet"])
@pytest.mark.parametrize("seed", range(6))
def test_posteriors_are_drawn_in_the_published_order(seed, colours):
    image, maps = picture(50, 70), np.random.default_rng(9).random((5, 50, 70), np.float32)
    rng = np.random.default_rng(seed)
    jittered = augment.colour_jitter(image, 0.3, 0.3, 0.3, 0.1, rng)
    left, top = int(rng.integers(abs(70 - 56) + 1)), int(rng.integers(abs(50 - 56) + 1))
    flip = rng.random() < 0.5
    # beside the picture it is black, and no class is there
    padded = np.pad(jittered, ((top, 6 - top), (0, 0), (0, 0)))[:, left : left + 56]
    scores = np.pad(maps, ((0, 0), (top, 6 - top), (0, 0)))[:, :, left : left + 56]
    if flip:
        padded, scores = padded[:, ::-1], scores[..., ::-1]
    cells = [[part.mean((1, 2)) for part in np.split(row, 7, 2)] for row in np.split(scores, 7, 1)]
    view, found = augment.PosteriorAugment(crop=56)(image, maps, np.random.default_rng(seed), colours)
    np.testing.assert_array_equal(view, augment.normalise(padded, colours))
    np.testing.assert_allclose(found, np.array(cells).transpose(2, 0, 1), rtol=1e-5)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("strength", [(0.3, 0.3, 0.3, 0.1), (0.0, 1.0, 0.4, 0.5), (0.0, 0.0, 0.0, 0.0)])
def test_colour_jitter_is_torchvisions(monkeypatch, seed, strength):
    rng, image = np.random.default_rng(seed), picture(9, 13, seed)
    factors = [rng.uniform(1 - value, 1 + value) for value in strength[:3]] + [rng.uniform(-strength[3], strength[3])]
    order = torch.from_numpy(rng.permutation(4))
    drawn = [factor if value > 0 else None for factor, value in zip(factors, strength, strict=True)]
    monkeypatch.setattr(ColorJitter, "get_params", staticmethod(lambda *_: (order, *drawn)))
    expected = np.asarray(ColorJitter(*strength)(Image.fromarray(image)))
    np.testing.assert_array_equal(augment.colour_jitter(image, *strength, np.random.default_rng(seed)), expected)
    assert (expected != image).any() == any(strength)


def test_colours_are_jittered_within_their_ranges():
    grey, bright = np.full((1, 1, 3), 100, np.uint8), []
    for seed in range(300):
        # a grey pixel has no contrast, saturation or hue to change
        bright.append(int(augment.colour_jitter(grey, 0.3, 0.3, 0.3, 0.1, np.random.default_rng(seed))[0, 0, 0]))
    assert 70 <= min(bright) < 73
    assert 127 < max(bright) <= 130


@pytest.mark.parametrize("colours", ["imagenet", "clip", "caffe"])
def test_pictures_taken_back_are_at_most_one_lower(colours):
    image = picture(30, 40)
    taken_back = augment.denormalise(augment.normalise(image, colours), colours)
    assert taken_back.dtype == np.uint8
    lower = image.astype(int) - taken_back
    assert set(np.unique(lower)) <= {0, 1}
    beside = augment.denormalise(np.zeros((3, 1, 1), np.float32), colours)[0, 0]
    mean = {"imagenet": augment.IMAGENET_MEAN, "clip": augment.CLIP_MEAN}.get(colours)
    expected = np.array(augment.CAFFE_MEAN_BGR[::-1]) if mean is None else 255 * np.array(mean)
    np.testing.assert_array_equal(beside, np.floor(expected))


def test_draws_cover_their_whole_ranges():
    # one lit pixel in a mean-coloured image tells the offset and the flip
    image = np.zeros((1, 1, 3), np.uint8)
    draw = augment.ClassifierAugment(long_side=(1, 1), crop=3)
    places = {tuple(np.argwhere(draw(image, np.random.default_rng(seed))[0])[0]) for seed in range(200)}
    assert places == {(row, column) for row in range(3) for column in range(3)}
    sizes = {
        int(
            (
                augment.ClassifierAugment(long_side=(4, 7), crop=9, flip=0.0)(image, np.random.default_rng(s))[0] != 0
            ).sum()
        )
        for s in range(100)
    }
    assert sizes == {16, 25, 36, 49}


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 2), (33, 33)])
def test_images_of_any_shape_give_whole_views(size):
    image, label = picture(*size), label_map(*size)
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert augment.ClassifierAugment(crop=40)(image, rng).shape == (3, 40, 40)
        assert augment.JitteredAugment(crop=40)(image, rng).shape == (3, 40, 40)
        view, reduced = augment.AffinityAugment(crop=40)(image, label, rng)
        assert (view.shape, reduced.shape) == ((3, 40, 40), (10, 10))
        view, cells = augment.PosteriorAugment(crop=40)(image, label[None].astype(np.float32), rng)
        assert (view.shape, cells.shape) == ((3, 40, 40), (1, 5, 5))
        assert view.flags.c_contiguous
        view, cropped = augment.SegmenterAugment(crop=40)(image, label, rng)
        assert (view.shape, cropped.shape) == ((3, 40, 40), (40, 40))
        assert (view.dtype, cropped.dtype) == (np.float32, np.uint8)
        assert view.flags.c_contiguous
        assert cropped.flags.c_contiguous
        assert reduced.flags.writeable


def test_views_leave_their_input_alone():
    image, label = picture(50, 70), label_map(50, 70)
    maps = label[None].astype(np.float32)
    image.flags.writeable = label.flags.writeable = maps.flags.writeable = False
    rng = np.random.default_rng(0)
    for _ in range(4):
        augment.ClassifierAugment(crop=64)(image, rng)
        augment.JitteredAugment(crop=64)(image, rng)
        augment.AffinityAugment(crop=64)(image, label, rng)
        augment.PosteriorAugment(crop=64)(image, maps, rng)
        augment.SegmenterAugment(crop=64)(image, label, rng)


def test_defaults_are_the_published_ones():
    assert dataclasses.asdict(augment.ClassifierAugment()) == {"long_side": (320, 640), "crop": 512, "flip": 0.5}
    assert dataclasses.astuple(augment.JitteredAugment()) == ((448, 768), 448, 0.5, 0.3, 0.1)
    assert dataclasses.astuple(augment.AffinityAugment()) == ((0.5, 1.5), 512, 0.5, 4)
    assert dataclasses.astuple(augment.PosteriorAugment()) == (448, 0.5, 0.3, 0.1, 8)
    assert dataclasses.astuple(augment.SegmenterAugment()) == ((0.5, 0.75, 1.0, 1.25, 1.5), 321, 0.5)


@pytest.mark.parametrize(
    ("setting", "value"), [("crop", 0), ("crop", 50), ("flip", 1.5), ("jitter", -0.1), ("hue", 0.6), ("stride", 0)]
)
def test_settings_that_make_no_sense(setting, value):
    if setting != "stride" and value != 50:
        with pytest.raises(BadInput, match=rf"augment\.{setting}"):
            augment.JitteredAugment(**{setting: value})
    with pytest.raises(BadInput, match=rf"augment\.{setting}"):
        augment.PosteriorAugment(**{setting: value})
