"""SEPL and SAMS against FMA-WSSS and SAM_WSSS, and the most frequent labels of regions against CorrCLIP."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity import fixtures, inputs
from wsss.ops.region_labels import most_frequent, sams, sepl
from wsss.ops.regions import Regions

SEPL, SAMS, MODE = (fixtures.arrays(f"regions/{name}") for name in ("sepl", "sams", "mode"))
# as the README of the fixtures states
SCORES, ALMOST_SURE, NEARLY_TIED = 3e-6, 1e-3, 1e-6
# seeds and powers
CASES = {
    "two classes": (100, ("0.3", "0.6", "1")),
    "one class": (101, ("0.6",)),
    "one region": (102, ("0.6",)),
    "flat levels": (103, ("0.5",)),
}


def cases(stored) -> list[str]:
    return sorted({key.split("/")[0] for key in stored if "/" in key})


def unpacked(masks: np.ndarray, width: int) -> np.ndarray:
    return np.unpackbits(masks, axis=-1)[..., :width].astype(bool)


@pytest.mark.parametrize("case", cases(SEPL))
def test_sepl(case):
    mask, count = SEPL[f"{case}/mask"], int(SEPL[f"{case}/classes"])
    assert mask[mask < 255].max(initial=0) < count
    regions = Regions.of_masks(unpacked(SEPL[f"{case}/regions"], mask.shape[1]))
    np.testing.assert_array_equal(sepl(regions, mask), SEPL[f"{case}/sepl"])
    backwards = regions.chosen(np.arange(len(regions))[::-1])
    np.testing.assert_array_equal(sepl(backwards, mask), SEPL[f"{case}/sepl"])
    if f"{case}/at_least_half" in SEPL:
        np.testing.assert_array_equal(sepl(regions, mask, at_least_half=True), SEPL[f"{case}/at_least_half"])


@pytest.mark.parametrize(("case", "power"), [(case, power) for case, (_, powers) in CASES.items() for power in powers])
def test_sams(case, power):
    height, width = SAMS["size"].tolist()
    keys, level = SAMS[f"{case}/keys"], SAMS[f"{case}/level"]
    small = inputs.array(f"sams/{case}", (len(keys), 7, 9), CASES[case][0], -0.4, 1)
    maps = F.interpolate(torch.from_numpy(small)[None], (height, width), mode="bilinear", align_corners=False)[
        0
    ].numpy()
    np.testing.assert_allclose(maps.sum(axis=(1, 2), dtype=np.float64), SAMS[f"{case}/maps_sum"], rtol=1e-5)
    found = sams(Regions.of_masks(unpacked(SAMS[f"{case}/regions"], width), levels=level), keys, maps, float(power))
    expected = SAMS[f"{case}/{power}/score"]
    np.testing.assert_allclose(found.scores[1:], expected[1:], rtol=0, atol=SCORES)
    sure = expected[1:].max(axis=0) > 0.999
    np.testing.assert_allclose(found.scores[0, ~sure], expected[0, ~sure], rtol=0, atol=SCORES)
    np.testing.assert_allclose(found.scores[0, sure], expected[0, sure], rtol=0, atol=ALMOST_SURE)
    order, published, confidence = found.order, SAMS[f"{case}/{power}/order"], expected.max(axis=0)
    swapped = order != published
    np.testing.assert_allclose(confidence[order[swapped]], confidence[published[swapped]], rtol=0, atol=NEARLY_TIED)
    np.testing.assert_array_equal(level[order], level[published])
    np.testing.assert_array_equal(found.mask, SAMS[f"{case}/{power}/label"])


@pytest.mark.parametrize("case", cases(MODE))
def test_most_frequent(case):
    corrected = most_frequent(MODE[f"{case}/label"], MODE[f"{case}/regions"])
    np.testing.assert_array_equal(corrected, MODE[f"{case}/corrected"])
