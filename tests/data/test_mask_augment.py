"""Views of pictures with masks: both move together, nothing is invented, draws stay in their ranges."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.data import mask_augment
from wsss.data.augment import View, denormalise, truncated_size
from wsss.data.mask_augment import DeepLabV1Augment, EMANetAugment, PSPNetAugment
from wsss.errors import BadInput

AUGMENTS = {
    "emanet": EMANetAugment(crop=33),
    "deeplab_v1": DeepLabV1Augment(crop=33, hsv=0),
    "pspnet": PSPNetAugment(fit=(64, 48), crop=33, distort=False),
}


def halves(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture, dark at the left of the middle and bright at the right, and its labels 1 and 2."""
    label = np.where(np.arange(width) < width // 2, 1, 2).astype(np.uint8)[None].repeat(height, 0)
    return np.stack([label * 100] * 3, -1), label


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(AUGMENTS)), st.integers(1, 70), st.integers(2, 70), st.integers(0, 10**6))
def test_picture_and_labels_move_together(kind, height, width, seed):
    image, label = halves(height, width)
    view, seen = AUGMENTS[kind](image, label, np.random.default_rng(seed))
    assert view.shape == (3, 33, 33)
    assert view.dtype == np.float32
    assert seen.shape == (33, 33)
    assert set(np.unique(seen)) <= {1, 2, 255}
    # sizes of picture and labels are the same, so that nothing but the mean colour lies beside the labels
    assert not view[:, seen == 255].any()
    dark, bright = view[0][seen == 1], view[0][seen == 2]
    if len(dark) and len(bright):
        assert dark.mean() < bright.mean()


@pytest.mark.parametrize("kind", AUGMENTS)
def test_the_same_chance_gives_the_same_view(kind):
    image, label = halves(40, 50)
    image = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    views = [AUGMENTS[kind](image, label, np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(views[0], views[1])
    assert not np.array_equal(views[0], views[2])


def view_of(size_hw: tuple[int, int], scale: float, flip: bool, crop: int) -> View:
    return View.flipped_last(truncated_size(size_hw, scale), flip, 0, 0, crop)


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.75, 1.1, 1.25, 1.5, 1.75, 2.0, 2.1])
@pytest.mark.parametrize("size_hw", [(7, 41), (4, 66), (60, 5), (33, 64), (9, 4)])
def test_labels_are_scaled_as_by_torch(scale, size_hw):
    label = np.random.default_rng(0).integers(0, 21, size_hw).astype(np.uint8)
    image = np.zeros((*size_hw, 3), np.uint8)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(label)[None, None].float(), scale_factor=scale)[0, 0]
    _, seen = EMANetAugment.apply(view_of(size_hw, scale, False, 140), scale, image, label)
    height, width = wanted.shape
    np.testing.assert_array_equal(seen[:height, :width], wanted.numpy())
    assert (seen[height:] == 255).all()
    assert (seen[:, width:] == 255).all()


def test_labels_of_a_pixel_stay():
    view = view_of((1, 9), 0.5, False, 9)
    _, seen = EMANetAugment.apply(view, 0.5, np.zeros((1, 9, 3), np.uint8), np.full((1, 9), 7, np.uint8))
    assert (seen[0, :4] == 7).all()
    assert (seen == 7).sum() == 4


def test_hue_goes_round_and_values_stop():
    red = np.array([[[250, 10, 10]]], np.uint8)
    there = mask_augment.shift_hsv(red, 170, 0, 0)
    np.testing.assert_allclose(mask_augment.shift_hsv(there, 10, 0, 0), red, atol=3)
    assert mask_augment.shift_hsv(red, 0, 0, 10).max() == 255


def test_distortion_by_hand():
    image = np.array([[[100, 150, 50], [255, 0, 3]]], np.uint8)
    np.testing.assert_array_equal(mask_augment.distort(image), image)
    np.testing.assert_array_equal(mask_augment.distort(image, brightness=10.6)[0, 0], [110, 160, 60])
    np.testing.assert_array_equal(mask_augment.distort(image, contrast=1.5)[0], [[150, 225, 75], [255, 0, 4]])
    np.testing.assert_array_equal(
        mask_augment.distort(image, contrast=0.5, contrast_first=False), mask_augment.distort(image, contrast=0.5)
    )
    grey = mask_augment.distort(image, saturation=0.0)[0]
    assert (np.ptp(grey, axis=-1) == 0).all()
    # a third of the way round, red becomes green
    np.testing.assert_array_equal(mask_augment.distort(np.array([[[200, 0, 0]]], np.uint8), hue=60)[0, 0], [0, 200, 0])


def test_distortions_follow_each_other_in_8_bits():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    steps = {"brightness": -20.0, "contrast": 1.3, "saturation": 0.7, "hue": 7}
    together, one_by_one = mask_augment.distort(image, **steps), image
    for name, value in steps.items():
        one_by_one = mask_augment.distort(one_by_one, **{name: value})
    np.testing.assert_array_equal(together, one_by_one)


def test_sizes_that_fit():
    assert mask_augment.size_within((375, 500), 2048, 512) == (512, 683)
    assert mask_augment.size_within((100, 2000), 1024, 256) == (51, 1024)
    assert mask_augment.size_within((3, 2000), 20, 5) == (1, 20)


def test_full_crops_are_drawn_anew():
    image, label = np.zeros((16, 64, 3), np.uint8), np.zeros((16, 64), np.uint8)
    label[:, 48:] = 1
    augment = PSPNetAugment(fit=(64, 16), scale=(1.0, 1.0), crop=16)
    shares = [(augment(image, label, np.random.default_rng(seed))[1] == 1).mean() for seed in range(60)]
    # one draw in seven shows enough of both labels, and eleven draws hardly ever none
    assert sum(0.25 < share < 0.75 for share in shares) > 40
    assert set(np.unique(augment(image, 0 * label, np.random.default_rng(0))[1])) == {0}


def test_without_changes_the_picture_is_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (20, 33, 3)).astype(np.uint8)
    label = np.arange(660).reshape(20, 33).astype(np.uint8)
    view, seen = EMANetAugment.apply(view_of((20, 33), 1.0, False, 33), 1.0, image, label)
    np.testing.assert_allclose(denormalise(view)[:20].astype(int), image, atol=1)
    np.testing.assert_array_equal(seen[:20], label)
    assert (seen[20:] == 255).all()
    mirrored, turned = EMANetAugment.apply(view_of((20, 33), 1.0, True, 33), 1.0, image, label)
    np.testing.assert_array_equal(mirrored[:, :, ::-1], view)
    np.testing.assert_array_equal(turned[:, ::-1], seen)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (EMANetAugment, {"scales": ()}),
        (EMANetAugment, {"crop": 0}),
        (DeepLabV1Augment, {"scale": (1.5, 0.5)}),
        (DeepLabV1Augment, {"hsv": 91}),
        (PSPNetAugment, {"fit": (0, 512)}),
        (PSPNetAugment, {"flip": 2.0}),
    ],
)
def test_settings_that_make_no_sense(kind, setting):
    with pytest.raises(BadInput, match=r"augment\."):
        kind(**setting)
