"""Votes of regions: shares against a loop, how they change maps, and squares whose maps are wrong."""

import dataclasses
import json

import numpy as np
import pytest

from tests.conftest import finished, tree
from tests.segmenters.tiny import write_classifier
from wsss.data.files import read_cams, read_mask, write_cams
from wsss.errors import BadInput
from wsss.foundations import FeatureSettings
from wsss.ops.regions import Regions
from wsss.refiners.crf import MaskSettings
from wsss.refiners.region_votes import (
    LevelSettings,
    VoteSettings,
    agreement,
    areas,
    at_cuts,
    balanced,
    moments,
    of_classes,
    probabilities,
    votes,
    weights_of,
    with_votes,
)
from wsss.refiners.regions import RegionsSettings
from wsss.refiners.task import RefinementTask
from wsss.regions.files import write_regions

pytestmark = pytest.mark.usefixtures("one_torch_thread")
HALF = MaskSettings(by="threshold", threshold=0.5)


def test_shares_of_the_votes():
    rng = np.random.default_rng(0)
    bank, queries = (rng.standard_normal((n, 5)) for n in (40, 3))
    bank, queries = ((one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in (bank, queries))
    of, allowed, labels = rng.integers(0, 5, 40), rng.random(40) < 0.8, np.array([0, 2, 3])
    found = votes(bank, of, queries, labels, allowed)
    assert found is not None
    for query, row in zip(queries, found, strict=True):
        means = [np.sort((bank @ query)[allowed & (of == label)])[-8:].mean() for label in labels]
        exponents = np.exp(25 * np.array(means))
        np.testing.assert_allclose(row, exponents / exponents.sum(), rtol=1e-3, atol=1e-5)
    assert votes(bank, of, queries, np.array([0, 2, 9]), allowed) is None
    assert votes(bank, of, queries, labels, allowed & (of != 3)) is None


def test_half_is_where_class_and_background_are_equally_probable():
    base = np.array([[[0.5]], [[0.3]], [[0.2]]])
    given = np.array([[[0.0]], [[0.2]], [[0.8]]])
    np.testing.assert_allclose(with_votes(base, given, np.zeros(2))[:, 0, 0], [0.3 / 0.8, 0.2 / 0.7])
    # without a background, votes are certain
    np.testing.assert_allclose(with_votes(base, given, np.array([0.0, 0.5]))[:, 0, 0], [0.3 / 0.8, (0.2 / 0.7 + 1) / 2])
    np.testing.assert_array_equal(with_votes(base * 0, given * 0, np.full(2, 0.5)), 0)


def test_agreement_is_a_correlation_over_the_pixels_of_all_pictures():
    rng = np.random.default_rng(0)
    parts = [(rng.random((n, 2)), rng.random((n, 2)), rng.integers(1, 9, n)) for n in (5, 7)]
    found = agreement(sum(moments(*part) for part in parts))
    x, y = (np.concatenate([np.repeat(part[which], part[2], axis=0) for part in parts]) for which in (0, 1))
    np.testing.assert_allclose(found, [np.corrcoef(x[:, k], y[:, k])[0, 1] for k in range(2)], rtol=1e-9)
    assert agreement(moments(np.ones((3, 1)), rng.random((3, 1)), np.ones(3, int))).tolist() == [0]
    assert agreement(np.zeros((1, 6))).tolist() == [0]


def test_balanced_votes_give_a_class_as_much_area_as_the_maps():
    rng = np.random.default_rng(0)
    parts = [(rng.random((3, n)), rng.random((3, n)) ** [[1], [2], [3]], rng.integers(1, 9, n)) for n in (400, 700)]
    found = balanced(sum(areas(*part) for part in parts))
    assert found[0] > found[1] > found[2]
    for k, half in enumerate(found):
        of_maps, of_votes = (
            sum(part[2][part[which][k] > limit].sum() for part in parts) for which, limit in ((0, 0.5), (1, half))
        )
        assert abs(of_maps - of_votes) < 0.02 * sum(part[2].sum() for part in parts)
    # no area in the maps; votes that are always sure; votes that never are
    sizes = np.full(5, 10)
    assert balanced(areas(np.zeros((1, 5)), rng.random((1, 5)), sizes)).tolist() == [0.5]
    assert balanced(areas(np.ones((1, 5)), np.zeros((1, 5)), sizes)).tolist() == pytest.approx([0.05])
    assert balanced(areas(np.ones((1, 5)), np.ones((1, 5)), sizes)).tolist() == pytest.approx([0.95])


def test_balance_becomes_a_half():
    given = np.array([[[0.7, 0.9]], [[0.3, 0.1]]])
    found = with_votes(given[::-1], given, np.ones(1), np.array([0.3]))[0, 0]
    assert found[0] == pytest.approx(0.5)
    # odds of 1 to 9, divided by 3 to 7
    assert found[1] == pytest.approx((1 / 9 * 7 / 3) / (1 + 1 / 9 * 7 / 3))


def test_votes_against_other_tags_leave_them_their_pixels():
    given = np.array([0.1, 0.3, 0.6])
    np.testing.assert_allclose(of_classes(given, "background"), [0.75, 6 / 7])
    np.testing.assert_allclose(of_classes(given, "others"), [0.3, 0.6])
    base, given = np.full((3, 1, 1), 1 / 3), given[:, None, None]
    found = with_votes(base, given, np.array([1.0, 0.0]), against="others")
    np.testing.assert_allclose(found[:, 0, 0], [0.3, 0.5])


def test_votes_that_agree_with_maps_have_more_weight():
    np.testing.assert_allclose(weights_of(np.array([-1, 0, 0.6, 0.65, 0.7, 1])), [0, 0, 0, 0.15, 0.3, 0.3], atol=1e-12)


def test_probabilities_follow_the_masks():
    maps = np.random.default_rng(0).random((2, 3, 4), np.float32)
    found = probabilities(maps, MaskSettings("threshold", 0.4))
    np.testing.assert_allclose(found, np.stack([np.full((3, 4), 0.4), *maps]) / (0.4 + maps.sum(axis=0)), rtol=1e-6)
    found = probabilities(maps, MaskSettings("scores", exponent=2.0))
    background = (1 - maps.max(axis=0)) ** 2
    np.testing.assert_allclose(found, np.stack([background, *maps]) / (background + maps.sum(axis=0)), rtol=1e-6)
    assert probabilities(maps[:0], MaskSettings("threshold", 0.4)).shape == (1, 3, 4)


def test_averages_at_cuts_are_as_high_on_the_same_pixels():
    averages = np.array([[[0.1, 0.2, 0.2, 0.4]], [[0.3, 0.3, 0.3, 0.3]]], np.float32)
    kept = np.array([[[0.0, 0.55, 0.55, 0.9]], [[0.6, 0.6, 0.6, 0.6]]], np.float32)
    for masks in (MaskSettings(threshold=0.5), MaskSettings(by="scores", exponent=1.0)):
        found = at_cuts(averages, kept, masks)
        np.testing.assert_allclose(found.sum(axis=0), 1, rtol=1e-6)
        # the cut of the first class is 0.15, that of the second, which has no pixel outside, half its lowest average
        np.testing.assert_allclose(found[1] / found[0], averages[0] / 0.15, rtol=1e-5)
        np.testing.assert_allclose(found[2] / found[0], averages[1] / 0.15, rtol=1e-5)
    nothing = at_cuts(np.zeros((1, 1, 2), np.float32), np.zeros((1, 1, 2), np.float32), HALF)
    np.testing.assert_array_equal(nothing, [[[1, 1]], [[0, 0]]])


def wrong_picture(squares) -> int:
    return next(index for index in range(len(squares)) if squares.labels[index].all())


@pytest.fixture
def made(tmp_path, squares):
    """Maps of true squares, which are wrong in one picture with both classes; regions are the squares and the rest."""
    wrong = wrong_picture(squares)
    for index, name in enumerate(squares.names):
        truth, classes = squares.read_mask(index), squares.classes(index)
        maps = np.stack([np.where(truth == label + 1, 0.9, 0.1) for label in classes])
        if index == wrong:
            maps = 0.5 + 0.05 * (0.5 - maps)
        write_cams(tmp_path / "cams" / f"{name}.npz", np.array(classes), maps)
        masks = np.stack([truth == label for label in np.unique(truth)])
        write_regions(tmp_path / "regions" / f"{name}.npz", Regions.of_masks(masks))
    classifier = write_classifier(tmp_path / "classifier")
    settings = RegionsSettings(
        by="votes",
        regions=finished(tmp_path / "regions"),
        masks=MaskSettings(by="threshold", threshold=0.45),
        votes=VoteSettings(weight=0.3, features=FeatureSettings(source=str(classifier)), erosion=1, fewest_pixels=9),
    )
    settings.check(None)
    return settings, RefinementTask(squares, finished(tmp_path / "cams"), tmp_path / "out")


def share_right(folder, squares, index):
    return (read_mask(folder / f"{squares.names[index]}.png") == squares.read_mask(index)).mean()


def test_other_pictures_outvote_wrong_maps(tmp_path, squares, made):
    settings, task = made
    before = RegionsSettings(by="levels", regions=settings.regions, masks=settings.masks)
    levels = before.refined(dataclasses.replace(task, out=tmp_path / "levels"))
    heavy = dataclasses.replace(settings, votes=dataclasses.replace(settings.votes, weight=0.9))
    masks = heavy.refined(task)
    wrong = wrong_picture(squares)
    assert share_right(levels, squares, wrong) < 0.5
    assert share_right(masks, squares, wrong) > share_right(levels, squares, wrong) + 0.2
    names = {"cams-levels", "cams-votes", "masks", "masks-uncorrected", "votes", "votes-bank"}
    assert {path.name for path in task.out.iterdir()} == names


def test_without_weight_the_masks_are_those_of_levels(tmp_path, squares, made):
    settings, task = made
    without = dataclasses.replace(settings, votes=dataclasses.replace(settings.votes, weight=0.0))
    masks = without.refined(task)
    levels = dataclasses.replace(settings, by="levels").refined(dataclasses.replace(task, out=tmp_path / "levels"))
    for name in squares.names:
        np.testing.assert_array_equal(read_mask(masks / f"{name}.png"), read_mask(levels / f"{name}.png"))


def test_the_bank_is_made_from_averages_or_maps(squares, made, tmp_path):
    settings, task = made
    found = {}
    for made_from in ("averages", "maps"):
        votes_settings = dataclasses.replace(settings.votes, made_from=made_from)
        out = tmp_path / made_from
        dataclasses.replace(settings, votes=votes_settings).refined(dataclasses.replace(task, out=out))
        record = json.loads((out / "masks-uncorrected/done.json").read_text())
        found[made_from] = record["inputs"]["cams"]["folder"]
    assert found["averages"].endswith("cams-levels")
    assert found["maps"].endswith("cams")


def test_the_weight_follows_the_agreement_and_is_recorded(squares, made):
    settings, task = made
    chosen = dataclasses.replace(settings, votes=dataclasses.replace(settings.votes, weight="agreement"))
    chosen.refined(task)
    agreements = json.loads((task.out / "votes/agreement.json").read_text())
    result = json.loads((task.out / "cams-votes/done.json").read_text())["result"]
    assert result["chosen by"] == "agreement"
    expected = weights_of(np.array([agreements[name] for name in squares.class_names]))
    assert list(result["weights of the votes"].values()) == pytest.approx(expected.tolist(), abs=1e-4)
    # maps and regions are those of true squares in all pictures but one
    assert min(agreements.values()) > 0.5


def test_a_stopped_stage_continues(squares, made):
    settings, task = made
    settings.refined(task)
    before = tree(task.out)
    voted = task.out / "cams-votes"
    (voted / "done.json").rename(voted / "started.json")
    (voted / f"{squares.names[3]}.npz").unlink()
    settings.refined(task)
    assert tree(task.out) == before
    assert read_cams(voted / f"{squares.names[3]}.npz")[1].max() <= 1


def test_settings_that_cannot_work():
    for settings, said in (
        (VoteSettings, {"weight": 1.5}),
        (VoteSettings, {"erosion": -1}),
        (LevelSettings, {"count": 0}),
    ):
        with pytest.raises(BadInput, match=next(iter(said))):
            settings(**said)
    with pytest.raises(BadInput, match=r"features\.source"):
        RegionsSettings(by="votes").check(None)
    lower = MaskSettings(threshold=0.5, lower=0.3)
    with pytest.raises(BadInput, match=r"refiner\.masks\.lower: found 0\.3 with votes"):
        RegionsSettings(by="votes", masks=lower, votes=VoteSettings(features=FeatureSettings("resnet10t"))).check(None)
