"""Refinement with regions: every way from maps or masks to pseudo masks, through the stages and the command."""

import dataclasses

import numpy as np
import pytest

from tests.conftest import finished, tree
from wsss.cli import main
from wsss.data.files import read_cams, read_mask, write_cams, write_mask
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput
from wsss.ops.region_labels import level_means, sams, sepl, with_values_of
from wsss.ops.regions import Regions
from wsss.refiners.crf import CRFSettings, MaskSettings
from wsss.refiners.regions import LevelSettings, ModeSettings, RegionsSettings, SAMSSettings, SEPLSettings
from wsss.refiners.task import RefinementTask
from wsss.regions.files import read_regions_of, write_regions
from wsss.run import read_record
from wsss.stages.thresholds import choose_thresholds, found_thresholds

HALF = MaskSettings(by="threshold", threshold=0.5)


def objects(images, index):
    """The true objects of a picture, and its four quarters."""
    truth = images.read_mask(index)
    rows, columns = np.indices(truth.shape)
    top, left = rows < truth.shape[0] // 2, columns < truth.shape[1] // 2
    quarters = [top & left, top & ~left, ~top & left, ~top & ~left]
    return np.stack([*quarters, *(truth == label for label in np.unique(truth) if label)])


@pytest.fixture
def made(tmp_path, squares):
    """Blurred maps of the true objects, masks of these with ignored and wrong pixels, and regions among which the objects are."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(squares.names):
        truth, classes = squares.read_mask(index), squares.classes(index)
        maps = np.stack([np.where(truth == label + 1, 0.9, 0.1) for label in classes])
        noisy = (maps + rng.uniform(-0.1, 0.1, maps.shape)).clip(0, 1)
        noisy[:, rng.random(truth.shape) < 0.2] = 0.5
        write_cams(tmp_path / "cams" / f"{name}.npz", np.array(classes), noisy)
        wrong = np.where(rng.random(truth.shape) < 0.2, 255, truth).astype(np.uint8)
        write_mask(tmp_path / "given" / f"{name}.png", wrong)
        masks = objects(squares, index)
        levels = np.where(np.arange(len(masks)) < 4, 0, 1)
        write_regions(tmp_path / "regions" / f"{name}.npz", Regions.of_masks(masks, levels=levels))
    return {name: finished(tmp_path / name) for name in ("cams", "given", "regions")}


def refined(settings, squares, made, out):
    settings = dataclasses.replace(settings, regions=made["regions"])
    settings.check(None)
    return settings.refined(RefinementTask(squares, made["cams"], out))


def check_against(folder, squares, expected):
    for index, name in enumerate(squares.names):
        np.testing.assert_array_equal(read_mask(folder / f"{name}.png"), expected(index), err_msg=name)


def test_levels_and_their_threshold(tmp_path, squares, made):
    averaged = LevelSettings(None, "averaged")
    masks = refined(RegionsSettings(levels=averaged, masks=HALF), squares, made, tmp_path / "out")

    def expected(index):
        classes, maps = read_matching_cams(squares, made["cams"], index, (32, 36))
        after = level_means(
            Regions.of_masks(objects(squares, index), levels=np.repeat([0, 1], [4, len(classes)])), maps
        )
        stored_classes, stored = read_cams(tmp_path / "out/cams-levels" / f"{squares.names[index]}.npz")
        np.testing.assert_array_equal(stored_classes, classes)
        np.testing.assert_allclose(stored, after, atol=1e-3)
        best = np.concatenate([np.full((1, 32, 36), 0.5), stored]).argmax(axis=0)
        return np.array([0, *(classes + 1)])[best]

    check_against(masks, squares, expected)


def test_levels_keep_the_values_of_the_maps(tmp_path, squares, made):
    masks = refined(RegionsSettings(masks=HALF), squares, made, tmp_path / "out")
    for index, name in enumerate(squares.names):
        _, maps = read_matching_cams(squares, made["cams"], index, (32, 36))
        found = read_regions_of(squares, made["regions"], index, (32, 36))
        _, stored = read_cams(tmp_path / "out/cams-levels" / f"{name}.npz")
        np.testing.assert_array_equal(stored, with_values_of(level_means(found, maps), maps).astype(np.float16))
        assert set(stored.ravel().tolist()) <= set(maps.ravel().tolist())
        assert (read_mask(masks / f"{name}.png") == squares.read_mask(index)).mean() > 0.9


def test_levels_have_the_threshold_of_the_crf(tmp_path, squares, made):
    plain = MaskSettings(by="threshold")
    averaged = LevelSettings(values="averaged")
    refined(RegionsSettings(levels=averaged, masks=plain), squares, made, tmp_path / "levels")
    CRFSettings(by="threshold").refined(RefinementTask(squares, made["cams"], tmp_path / "crf"))
    levels, crf = (tmp_path / name / "masks" for name in ("levels", "crf"))
    record = read_record(levels)
    assert record["result"]["threshold"] == read_record(crf)["result"]["threshold"]
    assert record["inputs"]["cams"]["folder"].endswith("cams-levels")
    assert record["inputs"]["thresholds"]["folder"].endswith("cams-threshold")
    # that of the averages is another
    found = choose_thresholds(squares, cams=tmp_path / "levels/cams-levels", out=tmp_path / "of-averages")
    assert abs(found_thresholds(found).otsu - record["result"]["threshold"]) > 0.01


def test_sams(tmp_path, squares, made):
    masks = refined(RegionsSettings(by="sams", sams=SAMSSettings(0.3)), squares, made, tmp_path / "out")

    def expected(index):
        regions = read_regions_of(squares, made["regions"], index, (32, 36))
        return sams(regions, *read_matching_cams(squares, made["cams"], index, (32, 36)), 0.3).mask

    check_against(masks, squares, expected)
    # whole objects lie over the quarters
    found = read_mask(masks / f"{squares.names[1]}.png")
    assert found.any()
    assert (found == squares.read_mask(1)).mean() > 0.9


def test_masks_are_made_from_maps_and_corrected(tmp_path, squares, made):
    masks = refined(RegionsSettings(by="sepl", masks=HALF), squares, made, tmp_path / "out")

    def expected(index):
        before = read_mask(tmp_path / "out/masks-uncorrected" / f"{squares.names[index]}.png")
        assert (before != squares.read_mask(index)).any()
        return sepl(read_regions_of(squares, made["regions"], index, (32, 36)), before)

    check_against(masks, squares, expected)


def test_given_masks_are_corrected_by_the_command(tmp_path, squares, made, monkeypatch):
    settings = RegionsSettings(by="sepl", regions=made["regions"], sepl=SEPLSettings(keep_ignored=True))
    masks = settings.corrected(squares, made["given"], tmp_path / "out")

    def expected(index):
        regions = read_regions_of(squares, made["regions"], index, (32, 36))
        return sepl(regions, read_mask(made["given"] / f"{squares.names[index]}.png"), keep_ignored=True)

    check_against(masks, squares, expected)
    before = tree(tmp_path / "out")
    settings.corrected(squares, made["given"], tmp_path / "out")
    assert tree(tmp_path / "out") == before
    with pytest.raises(BadInput, match="--masks: found it with --by levels"):
        RegionsSettings().corrected(squares, made["given"], tmp_path / "other")


def mode_case(score, area):
    """Two regions that overlap, one sure and one large, in a picture of two labels."""
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :, :3], masks[1, :, 2:] = True, True
    regions = Regions.of_masks(masks, np.array(score), np.array([0, 1]))
    label = np.zeros((4, 6), np.uint8)
    label[:, 2:], label[0] = 2, 255
    label[1, 0] = 2
    return regions, label


@pytest.mark.parametrize(
    ("settings", "score", "expected"),
    [
        # one of two regions that fill the picture is not corrected, as published
        (ModeSettings(), (0.9, 0.6), [[255] * 3 + [2] * 3, [2, 0, 2, 2, 2, 2], [0, 0, 2, 2, 2, 2]]),
        (ModeSettings(all_regions=True), (0.9, 0.6), [[0, 0, 0, 2, 2, 2], [0, 0, 0, 2, 2, 2], [0, 0, 0, 2, 2, 2]]),
        (ModeSettings(paint="area"), (0.9, 0.6), [[255, 255, 2, 2, 2, 2], [2, 0, 2, 2, 2, 2], [0, 0, 2, 2, 2, 2]]),
        (ModeSettings(), (0.9, 0.4), [[0, 0, 0, 255, 255, 255], [0, 0, 0, 2, 2, 2], [0, 0, 0, 2, 2, 2]]),
        (ModeSettings(level=1, score=0), (0.9, 0.4), [[255, 255, 2, 2, 2, 2], [2, 0, 2, 2, 2, 2], [0, 0, 2, 2, 2, 2]]),
        (ModeSettings(score=1), (0.9, 0.4), [[255] * 6, [2, 0, 2, 2, 2, 2], [0, 0, 2, 2, 2, 2]]),
    ],
)
def test_which_regions_take_their_most_frequent_label(settings, score, expected):
    regions, label = mode_case(score, None)
    np.testing.assert_array_equal(settings.corrected(regions, label)[:3], expected)


def test_regions_are_proposed_where_none_are_given(tmp_path, squares, made):
    settings = RegionsSettings(masks=HALF)
    settings.check(None)
    settings.refined(RefinementTask(squares, made["cams"], tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"regions", "cams-levels", "masks"}


def test_what_does_not_fit_is_named(tmp_path, squares, made):
    with pytest.raises(BadInput, match="nowhere: found no such folder"):
        RegionsSettings(regions=tmp_path / "nowhere").check(None)
    name = squares.names[2]
    write_regions(made["regions"] / f"{name}.npz", Regions.of_masks(np.ones((1, 5, 6), bool)))
    with pytest.raises(BadInput, match=r"bild_2ß\.npz: found regions of a picture of 5x6 .*expected 32x36"):
        refined(RegionsSettings(by="sams"), squares, made, tmp_path / "out")
    (made["regions"] / f"{name}.npz").unlink()
    with pytest.raises(BadInput, match=r"bild_2ß\.npz"):
        refined(RegionsSettings(by="sams"), squares, made, tmp_path / "other")


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    (tmp_path / "data/cat").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(
        tmp_path / "data/cat/a.png"
    )
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--cams and --masks: found neither"),
        (["--cams", "x", "--masks", "y"], "--cams and --masks: found both"),
        (["--masks", "y"], "--masks: found --refiner crf"),
        (["--masks", "y", "--refiner", "regions"], "--masks: found it with --by levels"),
        (
            ["--masks", "y", "--refiner", "regions", "--by", "sepl", "--corrected", "z"],
            "--corrected: found it together",
        ),
        (["--cams", "x", "--refiner", "regions", "--by", "votess"], "--by: found 'votess'"),
        (["--cams", "x", "--refiner", "regions", "--sepl.share", "2"], "--sepl.share: found 2"),
    ],
)
def test_flags_that_contradict_one_another(tmp_path, pictures, capsys, flags, said):
    assert main(["refine", "--data", str(pictures), "--out", str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out/masks").exists()
