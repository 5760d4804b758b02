"""The hierarchy of colours: levels, scores, sizes, and the command that writes it."""

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tree
from wsss import memory
from wsss.cli import main
from wsss.data.open import open_pictures
from wsss.errors import BadInput
from wsss.ops.region_tree import cuts
from wsss.regions.files import read_regions, read_regions_of
from wsss.regions.tree import TreeSettings
from wsss.stages.propose import propose


@pytest.fixture
def flag():
    """Three stripes, the middle one with a square."""
    picture = np.zeros((60, 90, 3), np.uint8)
    picture[:, :30], picture[:, 30:60], picture[:, 60:] = (200, 30, 30), (240, 240, 240), (20, 20, 160)
    picture[25:35, 40:50] = (30, 140, 30)
    return picture


def proposed(settings, picture):
    made = settings.proposer()
    return made.regions(made.prepare(picture))


def test_objects_are_regions(flag):
    masks = proposed(TreeSettings(), flag).masks()
    square = np.zeros(flag.shape[:2], bool)
    square[25:35, 40:50] = True
    for expected in (square, np.indices(square.shape)[1] < 30):
        overlap = (masks & expected).sum(axis=(1, 2)) / (masks | expected).sum(axis=(1, 2))
        assert overlap.max() > 0.95


def test_each_level_divides_the_picture_and_each_region_is_there_once():
    picture = np.random.default_rng(0).integers(0, 256, (60, 70, 3)).astype(np.uint8)
    regions = proposed(TreeSettings(coarseness=(5.0,), ratio=1.5), picture)
    levels = [regions.masks()[regions.levels == level] for level in range(regions.levels.max() + 1)]
    assert len(levels) > 3
    np.testing.assert_array_equal(levels[0].sum(axis=0), 1)
    below = levels[0]
    for level in levels[1:]:
        # a region is the union of regions below it, or is already there
        assert (level.sum(axis=0) <= 1).all()
        below = np.concatenate([[one for one in below if not (one & level.any(axis=0)).any()], level])
        np.testing.assert_array_equal(below.sum(axis=0), 1)
    assert len({mask.tobytes() for mask in regions.masks()}) == len(regions)


def test_the_lowest_levels_are_those_of_the_scales():
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    with_scales, without = (proposed(TreeSettings(coarseness=scales), picture) for scales in ((30.0, 300.0), (30.0,)))
    sets = [{mask.tobytes(): score for mask, score in zip(one.masks(), one.scores)} for one in (with_scales, without)]
    # the merged regions and their scores are the same, and others are not ranked
    assert sets[1].items() <= sets[0].items()
    assert {score for mask, score in sets[0].items() if mask not in sets[1]} == {0}
    assert len(sets[0]) > len(sets[1])


def test_a_picture_of_one_colour_is_one_region():
    regions = proposed(TreeSettings(), np.full((20, 30, 3), 90, np.uint8))
    assert regions.areas.tolist() == [600]
    assert regions.scores.tolist() == [0]


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1)])
def test_tiny_pictures(size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    assert proposed(TreeSettings(), picture).masks().any(axis=0).all()


def test_large_pictures_are_shrunk(flag):
    large = proposed(TreeSettings(longest=90), flag.repeat(3, axis=0).repeat(3, axis=1))
    np.testing.assert_array_equal(large.masks(), proposed(TreeSettings(), flag).masks().repeat(3, 1).repeat(3, 2))


def test_what_stands_out_has_the_highest_score(flag):
    picture = flag + np.random.default_rng(0).integers(0, 9, flag.shape).astype(np.uint8)
    regions = proposed(TreeSettings(), picture)
    best = regions.masks()[np.argsort(-regions.scores)[:4]]
    square = np.zeros(flag.shape[:2], bool)
    square[25:35, 40:50] = True
    columns = np.indices(square.shape)[1]
    for expected in (square, columns < 30, columns >= 60):
        overlaps = (best & expected).sum(axis=(1, 2)) / (best | expected).sum(axis=(1, 2))
        assert overlaps.max() > 0.9


@pytest.mark.parametrize(
    "wrong",
    [
        {"ratio": 1.0},
        {"coarseness": (-1.0,)},
        {"coarseness": ()},
        {"coarseness": (3.0, 2.0)},
        {"smallest": 0},
        {"longest": 3},
    ],
)
def test_settings_that_cannot_work(wrong):
    with pytest.raises(BadInput, match=f"proposer.{next(iter(wrong))}"):
        TreeSettings(**wrong)


def test_the_stage_continues_and_is_recorded(tmp_path, squares):
    whole = propose(TreeSettings(), squares, out=tmp_path / "whole")
    for index in range(len(squares)):
        assert len(read_regions_of(squares, whole, index, (32, 36)))
    part = tmp_path / "part"
    propose(TreeSettings(), squares, out=part)
    (part / "done.json").rename(part / "started.json")
    (part / "teil 1/bild_3ß.npz").unlink()
    propose(TreeSettings(), squares, out=part)
    assert tree(part) == tree(whole)
    with pytest.raises(BadInput, match="ratio"):
        propose(TreeSettings(ratio=4), squares, out=part)


def test_the_command(tmp_path, flag, capsys):
    (tmp_path / "data/flag").mkdir(parents=True)
    Image.fromarray(flag).save(tmp_path / "data/flag/a.png")
    command = ["regions", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--proposer", "tree"]
    assert main([*command, "--coarseness", "[50, 90]"]) == 0
    assert len(read_regions(tmp_path / "out/flag/a.npz", (60, 90)))
    assert main([*command, "--coarseness", "[60]"]) == 2
    assert "made from something else" in capsys.readouterr().err


def test_cuts_do_not_depend_on_how_many_there_are():
    merges = [(0, 1), (2, 3), (4, 5)]
    for number in (3, 2, 1):
        np.testing.assert_array_equal(cuts(4, merges, [number])[0], cuts(4, merges, [4, 3, 2, 1])[4 - number])


def test_a_picture_that_does_not_fit_before_others_that_do(tmp_path):
    """The others wait for their turn, and must not wait forever."""
    (tmp_path / "pictures").mkdir()
    for number, size in enumerate((200, *range(20, 40))):
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(tmp_path / "pictures" / f"{number:02d}.png")
    memory.choose("0.001GB")
    try:
        with pytest.raises(BadInput, match=r"00\.png: found a picture of 200x200 pixels, which takes about"):
            propose(TreeSettings(), open_pictures(tmp_path / "pictures"), out=tmp_path / "regions")
    finally:
        memory.choose(None)
