"""TagCLIP against its repository: texts, tokens, patch scores, refinement, re-identification, tags, scores of tags."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity import fixtures, inputs
from tests.parity.tiny_clip import state_dict, tiny_clip
from wsss.data.coco import COCO_CATEGORIES
from wsss.data.voc import VOC_CLASSES
from wsss.data.words import read_words
from wsss.methods import tagclip
from wsss.methods.clip_es import patched
from wsss.networks.clip import unit_text_features
from wsss.ops.boxes import box_mask
from wsss.tag_metrics import average_precision, precision_recall

STUFF_CLASSES = tuple(fixtures.table("tagclip/coco_stuff_names.json"))
CLASSES = {"voc": VOC_CLASSES, "coco": tuple(COCO_CATEGORIES.values()), "stuff": STUFF_CLASSES}
SETTINGS = {
    "voc": tagclip.TagCLIPSettings(),
    "coco": tagclip.TagCLIPSettings(),
    "stuff": tagclip.TagCLIPSettings(ratio=0.1, attention_blocks=None, backgrounds=False),
}
PICTURES = {
    "voc": {"a": (75, 110, 12), "b": (120, 160, 13), "c": (96, 64, 14)},
    "coco": {"d": (64, 100, 15), "e": (81, 90, 16)},
    "stuff": {"f": (70, 95, 17)},
}
# the labels of stuff f are 0, 61, 63 and 127 among COCO-Stuff's 182 numbers, of which 11 have no class
TRUTH = {"voc": [[0], [7, 2], [14, 8, 19]], "coco": [[0, 31], [5, 40, 79]], "stuff": [[0, 56, 58, 116]]}
CASES = [(dataset, name) for dataset, pictures in PICTURES.items() for name in pictures]


def fixture(name: str):
    return fixtures.arrays(f"tagclip/{name}")


@functools.cache
def texts(dataset: str) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64."""
    words = read_words("auto", CLASSES[dataset])
    background = words.background if SETTINGS[dataset].backgrounds else ()
    clip = copy.deepcopy(tiny_clip()).double()
    both = unit_text_features(clip, (*words.names, *background), tagclip.TEMPLATES)
    return both[: len(words.names)], both[len(words.names) :]


def tagger(dataset: str) -> tagclip.Tagger:
    return tagclip.Tagger(tiny_clip(), *(part.float() for part in texts(dataset)), SETTINGS[dataset])


def view_of(height: int, width: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(patched(inputs.image(height, width, seed=seed), 16))[None]


def grid_of(view: torch.Tensor) -> tuple[int, int]:
    return view.shape[2] // 16, view.shape[3] // 16


@functools.cache
def all_scores(dataset: str) -> np.ndarray:
    ours = tagger(dataset)
    return np.stack([ours.scores(ours.prepare(inputs.image(h, w, seed=s))) for h, w, s in PICTURES[dataset].values()])


def test_the_network_has_the_tensors_of_the_fixtures():
    shapes = {name: list(value.shape) for name, value in state_dict().items()}
    assert shapes == fixtures.table("tagclip/manifest-tiny-clip.json")


def test_tokens():
    names = [read_words("auto", VOC_CLASSES).names[i] for i in (3, 14)]
    prompts = [template.replace("{}", name) for name in names for template in tagclip.TEMPLATES]
    np.testing.assert_array_equal(tiny_clip().vocabulary(prompts), fixture("text")["tokens_85"])


@pytest.mark.parametrize("dataset", CLASSES)
def test_texts(dataset):
    step = 4 if dataset == "stuff" else 1
    np.testing.assert_allclose(torch.cat(texts(dataset))[::step], fixture("text")[dataset], rtol=0, atol=1e-6)


def test_tokens_of_the_picture():
    reference, clip = fixture("encode"), tiny_clip()
    view = view_of(75, 110, 12)
    with torch.no_grad():
        x = clip.embed(view, clip.positions((5, 7)))
        apart = torch.full((36, 36), -100.0).fill_diagonal_(0)
        for index in range(12):
            x, attention = clip.block(index, x, apart if index == 11 else None, average=True)
            np.testing.assert_allclose(attention[0], reference["attention"][index], atol=3e-5)
        np.testing.assert_allclose(clip.project(x)[0], reference["features"], atol=2e-4)


def test_tokens_of_a_region():
    reference, clip, voc = fixture("encode"), tiny_clip(), tagger("voc")
    own = torch.zeros(14, 14, dtype=torch.bool)
    own[3:9, 2:12] = True
    # the rows and columns of the picture that were cut out, whose mask the fixture chose by itself
    region = tagclip.Region(0, slice(0, 3), slice(0, 4), torch.ones(3, 4, dtype=torch.bool))
    picture, _ = voc.crops(view_of(75, 110, 12), [region])
    bias = torch.zeros(197, 197)
    bias[0, 1:] = torch.where(own.flatten(), 0.0, -1000.0)
    with torch.no_grad():
        x = clip.embed(picture, clip.positions((14, 14), rounded=False))
        for index in range(12):
            x, attention = clip.block(index, x, bias, average=True)
            np.testing.assert_allclose(attention[0, 0], reference["crop_attention_row0"][index], atol=1e-5)
        features = clip.project(x)[0]
        again = voc.class_token_scores(picture, own[None])
    np.testing.assert_allclose(features[0], reference["crop_features_cls"], atol=5e-5)
    np.testing.assert_allclose(features[1::13], reference["crop_features_patch"], atol=5e-5)
    wanted = F.normalize(torch.from_numpy(reference["crop_features_cls"]), dim=0) @ torch.cat(texts("voc")).float().T
    np.testing.assert_allclose(again[0], (wanted * clip.temperature).softmax(0), atol=1e-6)


@pytest.mark.parametrize(("dataset", "name"), CASES)
def test_every_step_of_the_script(dataset, name):
    reference, ours = fixture("perimage"), tagger(dataset)
    view = view_of(*PICTURES[dataset][name])
    wanted = {key: reference[f"{dataset}_{name}_{key}"] for key in ("coarse", "W", "first", "refined", "score")}
    with torch.no_grad():
        coarse, affinity = ours.patch_scores(view)
        refined = tagclip.refined(coarse, affinity, grid_of(view))
        score = ours.reidentified(view, refined)
    np.testing.assert_allclose(affinity, wanted["W"], atol=2e-5)
    for key, value in (("coarse", coarse), ("first", affinity @ coarse)):
        np.testing.assert_allclose(value[:, : wanted[key].shape[1]], wanted[key], atol=3e-5)
    step = 4 if dataset == "stuff" else 1
    np.testing.assert_allclose(refined[:, ::step], wanted["refined"], atol=5e-6)
    extremes = refined.min(), refined.max()
    np.testing.assert_allclose(extremes, reference[f"{dataset}_{name}_refined_minmax"], atol=5e-6)
    before = refined[:, : len(score)].amax(0)
    np.testing.assert_allclose(before, reference[f"{dataset}_{name}_score_before"], atol=5e-6)
    np.testing.assert_allclose(score, wanted["score"], atol=5e-6)


@pytest.mark.parametrize("dataset", CLASSES)
def test_tags_of_the_script(dataset):
    reference, scores = fixture("perimage"), all_scores(dataset)
    np.testing.assert_allclose(scores, reference[f"{dataset}_scores"], atol=5e-6)
    tags = tagclip.select(scores, SETTINGS[dataset].ratio)
    lines = [" ".join([name, *map(str, np.flatnonzero(row))]) for name, row in zip(PICTURES[dataset], tags)]
    assert lines == str(reference[f"{dataset}_lines"]).splitlines()
    truth = np.zeros(scores.shape, bool)
    for row, labels in zip(truth, TRUTH[dataset], strict=True):
        row[labels] = True
    np.testing.assert_allclose(average_precision(truth, scores).mean(), reference[f"{dataset}_map"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        precision_recall(truth, tags, "overall"), reference[f"{dataset}_f1_p_r"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("case", ["stop", "go"])
def test_reidentification(case):
    reference, ours = fixture("reidentify"), tagger("voc")
    scores = torch.from_numpy(reference[f"{case}_scores_map"])
    np.testing.assert_array_equal(scores[:, :20].amax(0), reference[f"{case}_before"])
    with torch.no_grad():
        after = ours.reidentified(view_of(48, 64, 17), scores)
    np.testing.assert_allclose(after, reference[f"{case}_after"], atol=1e-6)


@pytest.mark.parametrize("i", [0, 1])
def test_boxes(i):
    reference = fixture("boxes")
    m = reference[f"map{i}"]
    np.testing.assert_array_equal(box_mask(m, float(m.mean())), reference[f"mask{i}_mean"] > 0)
    np.testing.assert_array_equal(box_mask(m, 0.37), reference[f"mask{i}_fixed"] > 0)


def test_scores_of_tags():
    reference = fixture("metrics")
    scores, truth = inputs.array("pred", (9, 6), 51), inputs.array("lab", (9, 6), 51) > 0.6
    truth[:, 2] = False
    np.testing.assert_allclose(average_precision(truth, scores), reference["ap"], rtol=0, atol=1e-6)
    keys = [key for key in reference if key != "ap"]
    assert len(keys) == 12
    for key in keys:
        mode, number, relative = key.split("_")
        if relative == "1":
            tags = tagclip.select(scores, float(number))
        else:
            # the highest scores of each picture, or those above a threshold
            ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
            tags = ranks < int(number) if float(number) >= 1 else scores > float(number)
        np.testing.assert_allclose(precision_recall(truth, tags, mode), reference[key], rtol=0, atol=1e-6, err_msg=key)
