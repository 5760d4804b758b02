"""TagCLIP: where re-identification goes on, what batches, kills and processes must not change, what readers get back."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.conftest import tree, write_squares
from tests.parity import inputs
from tests.parity.tiny_clip import tiny_clip
from wsss import launch, memory
from wsss.data.tables import labels_by_name, labels_of
from wsss.errors import BadInput
from wsss.methods import tagclip
from wsss.run import read_record
from wsss.tag_metrics import average_precision, precision_recall

FEW = ("a photo of a {}.", "itap of the {}.")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The tiny CLIP of the parity tests, with two templates."""
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip().model.save_pretrained(folder)
    return tagclip.TagCLIPSettings(clip=str(folder), templates=FEW, cache=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six pictures of 64x68, which are 4 by 5 patches."""
    return write_squares(tmp_path_factory.mktemp("pictures"), 6, size=64)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory, settings, pictures):
    return tagclip.tag(settings, pictures, out=tmp_path_factory.mktemp("run") / "tags")


def tagger(n_classes: int = 5, **settings) -> tagclip.Tagger:
    vectors = torch.nn.functional.normalize(torch.from_numpy(inputs.array("t", (n_classes + 2, 32), 0, -1, 1)), dim=1)
    return tagclip.Tagger(tiny_clip(), vectors[:n_classes], vectors[n_classes:], tagclip.TagCLIPSettings(**settings))


def patches(*where: tuple[slice, slice] | None) -> torch.Tensor:
    """Scores of a 4x5 grid: a class each with 1 where it is, and two backgrounds of 0."""
    maps = torch.zeros(len(where) + 2, 4, 5)
    for one, place in zip(maps, where, strict=False):
        if place is not None:
            one[place] = 1
    return maps.flatten(1).T.contiguous()


INSIDE, BELOW, RIGHT = np.s_[1:3, 1:4], np.s_[3:4, 0:3], np.s_[0:2, 4:5]


@pytest.fixture
def view():
    return tagger().prepare(inputs.image(64, 76, seed=3))


@pytest.mark.parametrize("odd", [BELOW, RIGHT])
def test_a_region_in_the_last_row_or_column_alone(view, odd):
    scores = patches(INSIDE, None, odd, INSIDE, INSIDE)
    for early_stop, looked_at in ((True, [0]), (False, [0, 3, 4])):
        ours = tagger(early_stop=early_stop)
        assert [region.cls for region in ours.regions(scores, (4, 5))] == looked_at
        after = ours.reidentified(view, scores)
        assert after[1] == 0
        assert after[2] == 1
        assert [cls for cls in (0, 3, 4) if after[cls] < 1] == looked_at


def test_a_region_ends_before_the_last_row_and_column():
    (region,) = tagger().regions(patches(np.s_[2:4, 3:5], None, None, None, None), (4, 5))
    assert (region.rows, region.columns) == (slice(2, 3), slice(3, 4))
    assert region.mask.tolist() == [[True]]


def test_a_class_that_is_everywhere_has_no_region():
    scores = torch.cat([torch.ones(20, 1), torch.zeros(20, 6)], 1)
    assert tagger().regions(scores, (4, 5)) == []
    assert tagger(early_stop=False).regions(scores, (4, 5)) == []


def test_regions_together_or_one_by_one(view):
    scores = patches(INSIDE, np.s_[0:1, 0:1], np.s_[0:3, 0:2], np.s_[2:4, 1:5], np.s_[0:4, 0:5:2])
    one_by_one = tagger(crop_batch=1).reidentified(view, scores)
    assert (one_by_one < 1).all()
    for batch in (2, 3, 16):
        together = tagger(crop_batch=batch).reidentified(view, scores)
        np.testing.assert_allclose(together, one_by_one, atol=1e-6)


def test_the_class_token_sees_its_patches_alone():
    ours, seen = tagger(), torch.zeros(2, 14, 14, dtype=torch.bool)
    noise = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    blind = ours.class_token_scores(noise, seen)
    np.testing.assert_allclose(blind[0], blind[1], atol=1e-7)
    seen[1, 4:9, 3:11] = True
    looking = ours.class_token_scores(noise, seen)
    np.testing.assert_allclose(looking[0], blind[0], atol=1e-7)
    assert not np.allclose(looking[1], blind[1], atol=1e-4)


def test_attention_that_too_few_blocks_vote_for_is_left_out(view):
    kept = [(tagger(votes=votes).patch_scores(view)[1] > 0).float().mean() for votes in (0, 4, 12)]
    assert kept[0] == 1
    assert kept[0] > kept[1] > kept[2]


def test_refined_scores_stay_in_boxes():
    coarse, grid = torch.full((12, 2), 0.1), (3, 4)
    coarse[5, 0] = 1.0
    refined = tagclip.refined(coarse, torch.eye(12), grid)
    assert refined[:, 0].nonzero()[:, 0].tolist() == [5]
    # a constant column has no region
    assert refined[:, 1].tolist() == [0] * 12


@pytest.mark.parametrize("size_hw", [(16, 80), (80, 16), (7, 7)])
def test_a_picture_of_one_row_of_patches(size_hw):
    with pytest.raises(BadInput, match="longer than a patch"):
        tagger().prepare(np.zeros((*size_hw, 3), np.uint8))


def test_which_classes_are_tags():
    scores = np.array([[0.0, 0.5, 1.0, 0.51], [0.2, 0.2, 0.2, 0.2], [0.3, 0.1, 0.2, 0.1]], np.float32)
    assert [np.flatnonzero(row).tolist() for row in tagclip.select(scores, 0.5)] == [[2, 3], [0], [0]]
    assert [np.flatnonzero(row).tolist() for row in tagclip.select(scores, 0.0)] == [[1, 2, 3], [0], [0, 2]]
    assert [np.flatnonzero(row).tolist() for row in tagclip.select(scores, 1.0)] == [[2], [0], [0]]


def test_tags_are_read_back(tagged, pictures):
    scores = np.load(tagged / "scores.npz")
    assert scores["names"].tolist() == list(pictures.names)
    assert scores["classes"].tolist() == list(pictures.class_names)
    read = labels_by_name(tagged / "tags.csv", pictures.class_names)
    labels, without = labels_of(pictures.names, read, 2)
    assert without == []
    np.testing.assert_array_equal(labels, tagclip.select(scores["scores"], 0.5))
    result = read_record(tagged)["result"]
    assert result["tags"] == labels.sum() > 0
    hits = (labels & pictures.labels).sum()
    assert result["precision"] == pytest.approx(hits / labels.sum())
    assert result["recall"] == pytest.approx(hits / pictures.labels.sum())
    assert result["map"] == pytest.approx(average_precision(pictures.labels, scores["scores"]).mean())


def test_names_with_separators_quotes_and_suffixes(tmp_path, settings, pictures):
    names = ('a, "b"; c', "x.jpg", "sub folder/ü")
    odd = dataclasses.replace(pictures.subset(range(3)), names=names)
    out = tagclip.tag(settings, odd, out=tmp_path / "tags")
    assert set(labels_by_name(out / "tags.csv", odd.class_names)) == set(names)


def test_a_class_name_that_holds_a_separator(tmp_path, settings, pictures):
    odd = dataclasses.replace(pictures, class_names=("red", "blue, green"))
    with pytest.raises(BadInput, match="blue, green"):
        tagclip.tag(settings, odd, out=tmp_path / "tags")


def test_tags_keep_to_the_memory_budget(tmp_path, settings, pictures):
    memory.choose("0.1MB")
    try:
        with pytest.raises(BadInput, match=r"takes about .* or shrink the picture"):
            tagclip.tag(settings, pictures, out=tmp_path)
    finally:
        memory.choose(None)


def test_a_small_picture_is_named(tmp_path, settings):
    small = write_squares(tmp_path / "small", 2, size=12)
    with pytest.raises(BadInput, match="bild_0"):
        tagclip.tag(settings, small, out=tmp_path / "tags")


def test_pictures_without_labels_have_no_quality(tmp_path, settings, pictures):
    nobody = dataclasses.replace(pictures.subset([0]), labels=np.zeros((1, 2), bool))
    assert set(read_record(tagclip.tag(settings, nobody, out=tmp_path / "tags"))["result"]) == {"images", "tags"}


def test_a_killed_stage_goes_on_where_it_stopped(tmp_path, settings, pictures, tagged, monkeypatch):
    seen, own = [], tagclip.Tagger.scores

    def until_the_third(self, view):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(1)
        return own(self, view)

    monkeypatch.setattr(tagclip.Tagger, "scores", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        tagclip.tag(settings, pictures, out=tmp_path / "tags")
    assert len(list((tmp_path / "tags" / "pictures").rglob("*.json"))) == 3
    assert not (tmp_path / "tags" / "tags.csv").exists()
    count = []
    monkeypatch.setattr(tagclip.Tagger, "scores", lambda self, view: count.append(1) or own(self, view))
    tagclip.tag(settings, pictures, out=tmp_path / "tags")
    assert len(count) == 3
    assert tree(tmp_path / "tags") == tree(tagged)


def test_the_order_in_which_pictures_are_done_does_not_matter(tmp_path, settings, pictures, tagged, monkeypatch):
    monkeypatch.setattr(launch, "share", lambda items: [items[i] for i in (5, 3, 1, 4, 2, 0)])
    assert tree(tagclip.tag(settings, pictures, out=tmp_path / "tags")) == tree(tagged)


def test_text_features_are_kept_on_disk(tmp_path, settings, pictures, monkeypatch):
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    keeping = dataclasses.replace(settings, cache=True)
    first = keeping.tagger(pictures).texts
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    torch.testing.assert_close(keeping.tagger(pictures).texts, first, atol=0, rtol=0)
    torch.testing.assert_close(settings.tagger(pictures).texts, first, atol=0, rtol=0)
    assert len(dataclasses.replace(keeping, backgrounds=False).tagger(pictures).texts) == 2 < len(first)


@pytest.mark.parametrize(
    ("field", "value"), [("ratio", 1.5), ("votes", -1), ("crop_batch", 0), ("attention_blocks", 0), ("templates", ())]
)
def test_settings_out_of_range(field, value):
    with pytest.raises(BadInput, match=field):
        tagclip.TagCLIPSettings(**{field: value})


def test_more_votes_than_blocks(settings, pictures):
    with pytest.raises(BadInput, match="at most 12"):
        dataclasses.replace(settings, votes=13).tagger(pictures)


def test_average_precision_of_a_hand_made_ranking():
    truth = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], bool)
    scores = np.array([[0.9, 0], [0.8, 0], [0.7, 0], [0.1, 0]])
    assert average_precision(truth, scores).tolist() == pytest.approx([(1 + 2 / 3) / 2, 0])


def test_precision_and_recall_by_hand():
    truth = np.array([[1, 1, 0], [0, 0, 1]], bool)
    tags = np.array([[1, 0, 1], [1, 0, 1]], bool)
    assert precision_recall(truth, tags, "overall") == pytest.approx((2 * 0.5 * 2 / 3 / (0.5 + 2 / 3), 0.5, 2 / 3))
    assert precision_recall(truth, tags, "category")[1:] == pytest.approx((1 / 3, 2 / 3))
    assert precision_recall(truth, tags, "sample")[1:] == pytest.approx((0.5, 0.75))
    assert np.isnan(precision_recall(truth, ~truth, "overall").f1)


def test_the_record_of_wrong_tags_is_json(tmp_path, settings, pictures, tagged):
    tags = tagclip.select(np.load(tagged / "scores.npz")["scores"], settings.ratio)
    wrong = dataclasses.replace(pictures, labels=~tags)
    result = read_record(tagclip.tag(settings, wrong, out=tmp_path / "tags"))["result"]
    assert (result["precision"], result["recall"], result["f1"]) == (0, 0, None)
    json.dumps(result, allow_nan=False)
