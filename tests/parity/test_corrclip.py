"""CorrCLIP as ModuSeg ships it: windows, linking, attention and features, words, labels."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity import fixtures, inputs
from tests.parity.tiny_clip import state_dict
from wsss.networks.clip import CLIP, Vocabulary, from_openai
from wsss.networks.corrclip import linked, over_windows, region_features, scope
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
    from wsss.networks.corrclip import resized_nearest

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
