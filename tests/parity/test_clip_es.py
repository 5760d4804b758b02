"""CLIP-ES against its repository: tokens, texts, positions, blocks, Grad-CAM, affinity, maps, masks, scores."""

import copy
import dataclasses
import functools
import re

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.parity import fixtures, inputs
from tests.parity.tiny_clip import tiny_clip
from wsss.data.coco import COCO_CATEGORIES
from wsss.data.pictures import read_picture
from wsss.data.voc import VOC_CLASSES
from wsss.data.words import read_words
from wsss.methods import clip_es
from wsss.metrics import ConfusionMatrix, ThresholdSweep, scores
from wsss.networks.clip import CLIP, Vocabulary, attend, unit_text_features
from wsss.ops.boxes import box_mask
from wsss.ops.crf import PRESETS, dense_crf, wrapped_bgr
from wsss.pretrained import openai_tokenizer
from wsss.refiners import crf

COCO_CLASSES = tuple(COCO_CATEGORIES.values())
CLASSES = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}
WORDS = {name: read_words("auto", classes) for name, classes in CLASSES.items()}
ODD = (
    "A Photo of  TWO   dogs\n",
    "caf\u00e9 &amp; na\u00efve",
    "it's 2023, isn't it?",
    "\u201cquoted\u201d \U0001f415 dog",
    "",
    "a-b_c/d 3.14",
)
TEMPLATE = "a clean origami {}."
PICTURE = inputs.image(75, 110, seed=12)
# picture and labels of each case, which come in the order of the annotation
CASES = {
    "voc_a": (PICTURE, [0]),
    "voc_b": (inputs.image(120, 160, seed=13), [7, 2]),
    "voc_c": (inputs.image(96, 64, seed=14), [14, 8, 19]),
    "coco_d": (inputs.image(64, 100, seed=15), [0, 31]),
    "coco_e": (inputs.image(81, 90, seed=16), [5, 40, 79]),
}


def fixture(name: str):
    return fixtures.arrays(f"clip-es/{name}")


@functools.cache
def texts(dataset: str) -> tuple[torch.Tensor, torch.Tensor]:
    words = WORDS[dataset]
    both = unit_text_features(tiny_clip(), (*words.prompts, *words.background), (TEMPLATE,))
    return both[: len(words.prompts)], both[len(words.prompts) :]


def localizer(dataset: str, **settings) -> clip_es.CLIPESLocalizer:
    threshold = {"voc": 0.4, "coco": 0.7}[dataset]
    return clip_es.CLIPESLocalizer(tiny_clip(), *texts(dataset), clip_es.CLIPESInference(**settings), threshold)


@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_tokens(dataset):
    vocabulary, words, tokens = Vocabulary(openai_tokenizer(), 77), WORDS[dataset], fixture("tokens")
    assert len(words.background) == {"voc": 25, "coco": 23}[dataset]
    for key, names in (
        (f"{dataset}_fg", words.prompts),
        (f"{dataset}_bg", words.background),
        (f"{dataset}_plain", words.names),
    ):
        np.testing.assert_array_equal(vocabulary([TEMPLATE.replace("{}", name) for name in names]), tokens[key])


def test_odd_tokens():
    vocabulary, tokens = Vocabulary(openai_tokenizer(), 77), fixture("tokens")
    np.testing.assert_array_equal(vocabulary(ODD), tokens["odd"])
    np.testing.assert_array_equal(vocabulary([" ".join(["dog"] * 100)], truncate=True), tokens["long_truncated"])


def test_texts():
    reference = fixture("text")
    for dataset in CLASSES:
        for key, ours in zip(("fg", "bg"), texts(dataset), strict=True):
            np.testing.assert_allclose(ours, reference[f"{dataset}_{key}"], atol=1e-5)
    names, templates = [WORDS["voc"].prompts[i] for i in (2, 14)], (TEMPLATE, "a photo of a {}.", "itap of the {}.")
    tokens = tiny_clip().vocabulary([template.replace("{}", name) for name in names for template in templates])
    np.testing.assert_array_equal(tokens, reference["ensemble_tokens"])
    np.testing.assert_allclose(unit_text_features(tiny_clip(), names, templates), reference["ensemble"], atol=1e-5)
    with torch.no_grad():
        raw = tiny_clip().encode_text(tiny_clip().vocabulary(ODD))
    np.testing.assert_allclose(raw, reference["odd_raw"], atol=5e-5)


@pytest.mark.parametrize("grid", [(3, 5), (5, 7), (14, 14), (20, 13)])
def test_positions(grid):
    reference, key = fixture("posemb"), f"g{grid[0]}x{grid[1]}"
    ours = tiny_clip().positions(grid).numpy().astype(np.float64)
    # one step of float16 where the rounding falls the other way
    np.testing.assert_allclose(ours[:, ::8], reference[key], atol=1.3e-4)
    np.testing.assert_allclose([ours.sum(), np.abs(ours).sum(), (ours**2).sum()], reference[f"{key}_sum"], atol=1e-2)


def test_preprocessing(tmp_path):
    reference = fixture("preprocess")
    for height, width, seed in ((30, 45, 11), (75, 110, 12), (120, 160, 13)):
        ours, key = clip_es.patched(inputs.image(height, width, seed=seed), 16), f"{height}x{width}"
        np.testing.assert_array_equal(ours.shape, reference[f"{key}_shape"])
        stats = [*ours.mean((1, 2), dtype=np.float64), *ours.std((1, 2), dtype=np.float64)]
        np.testing.assert_allclose(stats, reference[f"{key}_stats"], atol=1e-5)
        wanted, part = (reference[key], ours) if key in reference else (reference[f"{key}_sub"], ours[:, ::7, ::5])
        np.testing.assert_allclose(part, wanted, atol=1e-5)
    Image.fromarray(inputs.image(30, 45, seed=11)).convert("L").save(tmp_path / "grey.png")
    grey = clip_es.patched(read_picture(tmp_path / "grey.png", upright=False), 16)
    np.testing.assert_allclose(grey, reference["grey"], atol=1e-5)


def test_blocks():
    reference, clip = fixture("encode"), tiny_clip()
    view = torch.from_numpy(clip_es.patched(PICTURE, 16))[None]
    with torch.no_grad():
        x = clip.embed(view, clip.positions((5, 7)))
        for index in range(12):
            if index == 11:
                np.testing.assert_allclose(x[0], reference["tokens_after_block11"], atol=3e-3)
                fused, _ = clip.block(index, x)
            x, attention = clip.block(index, x, average=True)
            np.testing.assert_allclose(attention[0], reference["attention"][index], atol=1e-4)
    np.testing.assert_allclose(x, fused, atol=1e-4)


def differentiated(clip: CLIP, x: torch.Tensor, chosen: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of the texts, and by automatic differentiation d p_c / d Y of every patch for the first n, (n, patches, width)."""
    layer = clip.last_block()
    y = layer.layer_norm1(x).detach().requires_grad_()
    z = x + attend(layer.self_attn, y)[0]
    z = z + layer.mlp(layer.layer_norm2(z))
    f = F.normalize(clip.project(z)[0, 1:].mean(0), dim=0)
    p = (clip.temperature * (F.normalize(chosen, dim=1) @ f)).softmax(0)
    gradients = [torch.autograd.grad(p[c], y, retain_graph=True)[0][0, 1:] for c in range(n)]
    return p.detach(), torch.stack(gradients)


def grad_cams(activations: torch.Tensor, weights: torch.Tensor) -> np.ndarray:
    maps = (weights @ activations.T).relu().reshape(2, 5, 7).numpy()
    return np.stack([clip_es.normalised(clip_es.normalised(m)) for m in maps])


def test_grad_cam():
    reference, clip = fixture("gradcam"), tiny_clip()
    classes, background = texts("voc")
    view = torch.from_numpy(clip_es.patched(PICTURE, 16))[None]
    with torch.no_grad():
        x, _ = localizer("voc").before_last(view, (5, 7))
    chosen = torch.cat([classes[[0, 14]], background])
    attention, activations, weights = clip_es.last_block(clip, x, chosen, 2)
    np.testing.assert_allclose(attention, fixture("encode")["attention"][11][1:, 1:], atol=1e-4)
    np.testing.assert_allclose(activations.T.reshape(128, 5, 7), reference["activation"], atol=1e-3)
    scale = np.abs(reference["weight"]).max()
    np.testing.assert_allclose(weights, reference["weight"], atol=1e-3 * scale)
    np.testing.assert_allclose(grad_cams(activations, weights), reference["cam"], atol=1e-3)
    p, gradients = differentiated(clip, x, chosen, 2)
    np.testing.assert_allclose(p, reference["prob"], atol=3e-5)
    every_4th = gradients.mT.reshape(2, 128, 5, 7)[:, ::4]
    np.testing.assert_allclose(every_4th, reference["gradient"], atol=1e-3 * np.abs(reference["gradient"]).max())


def test_mean_gradient_equals_automatic_differentiation():
    clip = copy.deepcopy(tiny_clip()).double()
    classes, background = (text.double() for text in texts("voc"))
    chosen = torch.cat([classes[[3, 9, 11]], background])
    x = torch.randn(1, 36, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, _, weights = clip_es.last_block(clip, x, chosen, 3)
    mean = differentiated(clip, x, chosen, 3)[1].mean(1)
    for c in range(3):
        np.testing.assert_allclose(weights[c], mean[c], atol=1e-12 * float(mean[c].abs().max()))


def test_a_saturated_class_has_an_empty_map():
    reference, clip = fixture("gradcam"), copy.deepcopy(tiny_clip())
    clip.model.logit_scale.data = torch.tensor(np.float32(np.float16(4.6052)))
    view = torch.from_numpy(clip_es.patched(PICTURE, 16))[None]
    with torch.no_grad():
        x, _ = localizer("voc").before_last(view, (5, 7))
    chosen = torch.cat([torch.from_numpy(reference["sharp_text"]), texts("voc")[1]])
    _, activations, weights = clip_es.last_block(clip, x, chosen, 2)
    np.testing.assert_allclose(weights, reference["sharp_weight"], atol=1e-6)
    np.testing.assert_allclose(grad_cams(activations, weights), reference["sharp_cam"], atol=1e-6)
    np.testing.assert_allclose(differentiated(clip, x, chosen, 2)[0], reference["sharp_prob"], atol=1e-6)


def test_normalisation():
    reference = fixture("normalise")
    for i, scale in enumerate((3e-3, 1e-6, 1e-7, 1e-8, 0)):
        raw = inputs.array(f"raw{i}", (5, 7), 50) * np.float32(scale)
        once = clip_es.normalised(raw)
        twice = clip_es.normalised(once)
        np.testing.assert_allclose(once, reference[f"once{i}"], atol=1e-6)
        np.testing.assert_allclose(twice, reference[f"twice{i}"], atol=1e-6)
        high = cv2.resize(clip_es.normalised(twice), (50, 37))
        np.testing.assert_allclose(high, reference[f"high{i}"], atol=1e-6)


def test_boxes():
    reference = fixture("boxes")
    names = [key for key in reference if f"{key}_mask_4" in reference]
    assert len(names) > 5
    for name in names:
        for tail, threshold in (("4", 0.4), ("7", 0.7)):
            inside = box_mask(reference[name], threshold)
            np.testing.assert_array_equal(inside, reference[f"{name}_mask_{tail}"] > 0)
            union = np.zeros_like(inside)
            for left, top, right, bottom in reference[f"{name}_boxes_{tail}"]:
                union[top:bottom, left:right] = True
            np.testing.assert_array_equal(inside, union)


def test_affinity():
    reference = fixture("caa")
    for case, n_maps in (("c0", 2), ("c1", 3)):
        attention = torch.from_numpy(reference[f"{case}_attn"])
        affinity = clip_es.affinity(attention)
        np.testing.assert_allclose(clip_es.doubly_stochastic(attention), reference[f"{case}_doubly"], atol=1e-6)
        np.testing.assert_allclose(affinity, reference[f"{case}_sym"], atol=1e-6)
        np.testing.assert_allclose(affinity @ affinity, reference[f"{case}_square"], atol=1e-6)
        width, height = reference[f"{case}_size"].tolist()
        for j in range(n_maps):
            m, threshold = reference[f"{case}_cam{j}"], float(reference[f"{case}_thr{j}"])
            np.testing.assert_array_equal(box_mask(m, threshold), reference[f"{case}_mask{j}"] > 0)
            (refined,) = clip_es.refined_maps(m[None], affinity, threshold)
            np.testing.assert_allclose(
                refined,
                reference[f"{case}_refined{j}"],
                rtol=0,
                atol=2e-6 * np.abs(reference[f"{case}_refined{j}"]).max(),
            )
            high = cv2.resize(clip_es.normalised(refined), (width, height))
            np.testing.assert_allclose(high, reference[f"{case}_high{j}"].astype(np.float32), rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_maps_of_the_driver(case):
    reference, dataset = fixture("perimage"), case.split("_")[0]
    picture, keys = CASES[case]
    np.testing.assert_array_equal(keys, reference[f"{case}_keys"])
    label = np.zeros(len(CLASSES[dataset]), bool)
    label[keys] = True
    order = np.argsort(np.argsort(keys))
    for key, refined in (("attn_highres", True), ("highres", False)):
        method = localizer(dataset, refined=refined)
        cams = method.cams(method.prepare(picture), picture.shape[:2], label)
        np.testing.assert_array_equal(cams.classes, sorted(keys))
        ours = cams.maps[order].astype(np.float16).astype(np.float32)
        np.testing.assert_allclose(ours, reference[f"{case}_{key}"].astype(np.float32), rtol=0, atol=1.5e-3)


def test_half_precision_does_not_underflow():
    picture, keys = CASES["voc_c"]
    label = np.zeros(20, bool)
    label[keys] = True
    for precision, allowed in (("bf16", 0.15), ("fp16", 0.03)):
        full, half = localizer("voc", refined=False), localizer("voc", refined=False, precision=precision)
        a, b = (m.cams(m.prepare(picture), picture.shape[:2], label).maps for m in (full, half))
        np.testing.assert_allclose(a, b, atol=allowed)


def true_mask(case: str, i: int) -> np.ndarray:
    """The true mask of the i-th picture of a data set."""
    picture, keys = CASES[case]
    truth = inputs.mask(*picture.shape[:2], len(keys) + 1, seed=31 + i)
    mapped = np.array([0, *(k + 1 for k in keys)], np.uint8)[np.minimum(truth, len(keys))]
    return np.where(truth == 255, 255, mapped).astype(np.uint8)


@pytest.mark.parametrize("dataset", ["voc", "coco"])
@pytest.mark.parametrize("kind", ["attn_highres", "highres"])
def test_scores(dataset, kind):
    reference, maps = fixture("eval"), fixture("perimage")
    pattern = re.compile(rf"{dataset}_{kind}_([\d.]+)_miou")
    found = [match[1] for key in reference if (match := pattern.fullmatch(key))]
    exponents, constants = ([t for t in found if ("." in t) == constant] for constant in (False, True))
    assert {"1", "2"} <= set(exponents)
    assert constants
    for background, values in (("power", exponents), ("constant", constants)):
        values = sorted(values, key=float)
        sweep = ThresholdSweep([float(t) for t in values], len(CLASSES[dataset]), background)
        for i, case in enumerate(c for c in CASES if c.startswith(dataset)):
            sweep.add(true_mask(case, i), maps[f"{case}_{kind}"], np.array(CASES[case][1]), case)
        for value, matrix in zip(values, sweep.matrices(), strict=True):
            key = f"{dataset}_{kind}_{value}"
            present = reference[f"{key}_hist_classes"]
            np.testing.assert_array_equal(matrix[np.ix_(present, present)], reference[f"{key}_hist"])
            ours = scores(matrix)
            np.testing.assert_allclose(ours.miou, reference[f"{key}_miou"], rtol=0, atol=1e-12)
            overall = [ours.pixel_accuracy, ours.mean_accuracy, ours.frequency_weighted_iou]
            np.testing.assert_allclose(overall, reference[f"{key}_all"], rtol=0, atol=1e-12)
            iou = [ours.iou[label] for label in present]
            np.testing.assert_allclose(iou, reference[f"{key}_iou"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", [0, 1])
def test_dense_crf_on_maps(case):
    reference = fixture("crf")
    picture = inputs.image(*((60, 80), (45, 70))[case], seed=21 + case)
    maps = reference[f"s{case}_cams"]
    step = 1 if case == 0 else 4
    np.testing.assert_array_equal(wrapped_bgr(picture)[::step, ::step], reference[f"s{case}_crf_image"])
    unary = crf.scores_unary(maps)
    np.testing.assert_array_equal(unary.reshape(len(unary), -1)[:, ::7], reference[f"s{case}_unary"])
    q = dense_crf(picture, unary, PRESETS["deeplab"])
    np.testing.assert_allclose(q, reference[f"s{case}_q"].astype(np.float32), atol=5e-3)
    assert (q.argmax(0) == reference[f"s{case}_label"]).mean() > 0.999
    settings = crf.MaskSettings(by="scores", exponent=1.0, crf="deeplab", confidence=0.95)
    mask = crf.pseudo_mask(picture, np.arange(len(maps)), maps.astype(np.float32), settings)
    assert (mask == reference[f"s{case}_mask"]).mean() > 0.998
    plain = dataclasses.replace(PRESETS["deeplab"], picture="rgb")
    of_plain = dense_crf(np.ascontiguousarray(picture[..., ::-1]), unary, plain).argmax(0)
    assert (of_plain == reference[f"s{case}_label_plain_image"]).mean() > 0.999


@pytest.mark.parametrize("case", CASES)
def test_pseudo_masks_of_the_driver(case):
    reference, maps = fixture("crf"), fixture("perimage")
    picture, keys = CASES[case]
    for key, confidence in (("pseudo_mask", 0.95), ("label", 0.0)):
        settings = crf.MaskSettings(by="scores", exponent=1.0, crf="deeplab", confidence=confidence)
        ours = crf.pseudo_mask(picture, np.array(keys), maps[f"{case}_attn_highres"].astype(np.float32), settings)
        assert (ours == reference[f"{case}_{key}"]).mean() > 0.998


@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_score_of_the_pseudo_masks_of_the_driver(dataset):
    reference, matrix = fixture("crf"), ConfusionMatrix(len(CLASSES[dataset]) + 1)
    for i, case in enumerate(c for c in CASES if c.startswith(dataset)):
        matrix.add(true_mask(case, i), reference[f"{case}_label"], case)
    np.testing.assert_allclose(scores(matrix.counts).miou, reference[f"{dataset}_eval_miou"], rtol=0, atol=1e-12)
