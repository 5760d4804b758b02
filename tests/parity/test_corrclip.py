"""CorrCLIP as ModuSeg ships it: windows, linking, attention and features, words, labels."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.parity import fixtures, inputs
from tests.parity.test_region_labels import unpacked
from tests.parity.tiny_clip import state_dict
from wsss.data.words import read_list
from wsss.methods.corrclip import CorrCLIPInference, CorrCLIPLocalizer, Prepared, contrasts
from wsss.networks.clip import CLIP, Vocabulary, from_openai
from wsss.networks.corrclip import linked, over_windows, region_features, resized_nearest, scope
from wsss.networks.features import IMAGENET, DenseFeatures, FrozenNetwork, PatchDescriptions
from wsss.ops.region_labels import most_frequent
from wsss.ops.regions import Regions
from wsss.ops.windows import padding, windows
from wsss.pretrained import openai_tokenizer

SEED = 90


def fixture(name: str) -> fixtures.Arrays:
    return fixtures.arrays(f"corrclip/{name}")


def cases(name: str) -> list[str]:
    return sorted({key.split("/")[0] for key in fixture(name) if "/" in key})


@functools.cache
def tiny_clip(layers: int) -> CLIP:
    """The CLIP of the fixtures; blocks after the twelfth have its last block's shapes and values of their own."""
    state = dict(state_dict())
    last = {name: value for name, value in state.items() if name.startswith("visual.transformer.resblocks.11.")}
    for index in range(12, layers):
        for name, value in last.items():
            new = name.replace(".11.", f".{index}.")
            gain = 2.0 if new.endswith("attn.in_proj_weight") else 1.0
            drawn = inputs.tensor(new, tuple(value.shape), 0, gain)
            state[new] = torch.from_numpy(drawn.astype(np.float16).astype(np.float32))
    return CLIP(from_openai(state, "fixture"), Vocabulary(openai_tokenizer(), 77)).requires_grad_(False).eval()


@pytest.mark.parametrize("case", cases("forward"))
def test_forward(case):
    reference = fixture("forward")
    regions, features = reference[f"{case}/regions"], torch.from_numpy(reference[f"{case}/features"])
    height, width = regions.shape
    image = torch.from_numpy(inputs.array(f"corr/{case}/image", (1, 3, height, width), SEED, -2, 2))
    cells = (height // 8, width // 8)
    joined = linked(resized_nearest(regions, cells), features)
    published = reference[f"{case}/linked"]
    for one, other in ((joined, published), (published, joined)):
        # each region of one is a region of the other, and so is what has none
        assert len(np.unique(one)) == len({tuple(pair) for pair in zip(one.ravel(), other.ravel(), strict=True)})
    np.testing.assert_array_equal(joined == 0, published == 0)
    attention = scope(joined, features)
    step = 7 if len(attention) > 100 else 1
    np.testing.assert_allclose(attention[::step], reference[f"{case}/attention"], atol=1e-6)
    clip = tiny_clip(int(reference[f"{case}/layers"]))
    with torch.no_grad():
        found = region_features(clip, image, joined, attention)
    np.testing.assert_allclose(found[:: int(reference[f"{case}/every"])], reference[f"{case}/output"], atol=6e-4)


@pytest.mark.parametrize("case", sorted(fixture("windows")))
def test_windows(case):
    size, _, crop, _, stride = case.split()
    height, width = map(int, size.split("x"))
    rows = [
        [y.start, y.stop, x.start, x.stop, *padding(y.stop - y.start, 56), *padding(x.stop - x.start, 56)]
        for y, x in windows((height, width), int(crop), int(stride))
    ]
    np.testing.assert_array_equal(rows, fixture("windows")[case])


def test_the_average_over_windows():
    reference = fixture("slide")
    h, w, window, stride, words = reference["settings"].tolist()
    mix = torch.from_numpy(inputs.array("corr/slide/mix", (words, 3), SEED, -1, 1))
    image = torch.from_numpy(inputs.array("corr/slide/image", (1, 3, h, w), SEED, -1, 1))
    regions = (inputs.array("corr/slide/regions", (1, 1, h, w), SEED) * 10).astype(np.int32)[0, 0]

    def compute(part: torch.Tensor, inside: np.ndarray) -> torch.Tensor:
        colours = part[0] + part[0].mean((1, 2), keepdim=True)
        return torch.einsum("qc,chw->qhw", mix, colours) + torch.from_numpy((inside > 5).astype(np.float32))

    average = over_windows(compute, image, regions, window, stride)
    size = tuple(reference["size"].tolist())
    average = F.interpolate(average[None], size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(average[:, ::3, ::3], reference["average"], atol=1e-4)


def labels_of(maps: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """The label of each pixel at the threshold 0.5."""
    both = torch.cat([torch.full_like(maps[:1], 0.5), maps])
    return np.concatenate([[0], labels])[both.argmax(0).numpy()].astype(np.uint8)


WORDS = [case for case in fixture("words") if case.endswith("/label")]


@pytest.mark.parametrize("number", range(len(WORDS)), ids=[name.split("/")[0] for name in WORDS])
def test_words(number):
    case, reference = WORDS[number].removesuffix("/label"), fixture("words")
    of, tags, amplitude = (reference[f"{case}/{name}"] for name in ("word_class", "tags", "amplitude"))
    drawn = inputs.array(f"corr/words/{case}", (len(of), 5, 6), SEED + number, -float(amplitude), float(amplitude))
    size = tuple(reference["size"].tolist())
    cosines = F.interpolate(torch.from_numpy(drawn)[None], size, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(cosines.sum((1, 2)), reference[f"{case}/logits_sum"], rtol=1e-4, atol=1e-4)
    allowed = np.isin(of, tags) if tags[0] >= 0 else np.ones(len(of), bool)
    labels = np.setdiff1d(of[allowed], [0])
    maps = contrasts(cosines[np.flatnonzero(allowed)], of[allowed], labels, 40.0, float(reference[f"{case}/threshold"]))
    found = labels_of(maps, labels)
    np.testing.assert_array_equal(found, reference[f"{case}/label"])
    np.testing.assert_array_equal(most_frequent(found, reference[f"{case}/regions"]), reference[f"{case}/corrected"])


def test_list_of_words(tmp_path):
    (tmp_path / "list.txt").write_text("sky; wall; old tree\ncat\nsea horse; dog\nbus\n")
    lines = read_list(tmp_path / "list.txt")
    assert [word for words in lines for word in words] == fixture("words")["list/words"].tolist()
    assert [label for label, words in enumerate(lines) for _ in words] == fixture("words")["list/word_class"].tolist()


@pytest.mark.parametrize("top", ["score", "area"])
def test_painted_regions(top):
    reference = fixture("paint")
    width, scores = int(reference["scores/size"][1]), reference["scores/scores"]
    regions = Regions.of_masks(unpacked(reference["scores/masks"], width), scores)
    published = reference[f"scores/by_{top}"]
    found = regions.flattened(0.5 if top == "score" else 0.0, top)
    # the numbers are the places among those that pass, from 1; by area, those of the order of painting
    passing = np.flatnonzero(scores >= 0.5) if top == "score" else np.argsort(regions.areas, kind="stable")
    np.testing.assert_array_equal(np.concatenate([passing, [-1]])[published - 1], found)


class StandIn(FrozenNetwork):
    """The network of the fixtures in the place of DINO."""

    colours, stride, strides, channels = IMAGENET, 8, (8,), (16,)

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.conv, self.qkv = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48)
        for name, parameter in (
            ("conv.weight", self.conv.weight),
            ("conv.bias", self.conv.bias),
            ("blocks.0.attn.qkv.weight", self.qkv.weight),
            ("blocks.0.attn.qkv.bias", self.qkv.bias),
        ):
            drawn = inputs.tensor(f"stand-in.{name}", tuple(parameter.shape), seed, 2.0)
            parameter.data = torch.from_numpy(drawn)

    def maps(self, pictures: torch.Tensor, layers: int) -> list[torch.Tensor]:
        found = self.conv(pictures)
        self.qkv(found.flatten(2).mT)
        return [found]


@pytest.mark.parametrize(("number", "case"), [(0, "tags"), (1, "small")])
def test_whole(number, case):
    reference = fixture("whole")
    of, tags, regions = (reference[f"{case}/{name}"] for name in ("word_class", "tags", "regions"))
    window, step = reference[f"{case}/crop_stride"].tolist()
    texts = torch.from_numpy(inputs.array(f"corr/whole/{case}/texts", (len(of), 32), SEED, -1, 1))
    dino = PatchDescriptions(DenseFeatures(StandIn(SEED + number)), "stand-in")
    settings = CorrCLIPInference(window=window, step=step)
    localizer = CorrCLIPLocalizer(tiny_clip(12), dino, F.normalize(texts, dim=1), of, settings)
    image = inputs.image(*regions.shape, SEED + number)
    prepared = Prepared(localizer.prepare(image).view, regions)
    with torch.inference_mode():
        cosines = localizer.cosines(prepared, torch.arange(len(of)))
    np.testing.assert_allclose(cosines[:, ::5, ::5], reference[f"{case}/cosines"], atol=2e-5)
    label = np.isin(np.arange(1, of.max() + 1), tags)
    classes, maps, _ = localizer.cams(prepared, regions.shape, label)
    found = labels_of(torch.from_numpy(maps), classes + 1)
    for labels, name in ((found, "label"), (most_frequent(found, regions), "corrected")):
        assert (labels == reference[f"{case}/{name}"]).mean() >= 0.999
