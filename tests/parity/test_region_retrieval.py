"""Erosion, pooling, filter and prediction of regions against ModuSeg's published functions."""

import numpy as np
import pytest

from tests.parity import fixtures, inputs
from wsss.ops import region_shapes, retrieval
from wsss.ops.regions import Regions

ERODE, POOL = fixtures.arrays("regions/erode"), fixtures.arrays("regions/pool")
FILTER, PREDICT = fixtures.arrays("regions/filter"), fixtures.arrays("regions/predict")


def cases(arrays) -> list[str]:
    return sorted({name.split("/")[0] for name in arrays if "/" in name})


def unpacked(packed: np.ndarray, width: int) -> np.ndarray:
    return np.unpackbits(packed, axis=-1)[..., :width].astype(bool)


@pytest.mark.parametrize("case", cases(ERODE))
def test_erosion(case):
    found = region_shapes.eroded_regions(ERODE[f"{case}/seeds"], erosion=int(ERODE[f"{case}/iterations"]))
    np.testing.assert_array_equal(found.labels, ERODE[f"{case}/classes"])
    np.testing.assert_array_equal(found.masks, ERODE[f"{case}/masks"].astype(bool))


@pytest.mark.parametrize(("case", "cell", "channels", "seed"), [("p16", 16, 12, 75), ("p14", 14, 7, 76)])
def test_pooling(case, cell, channels, seed):
    height, width = POOL[f"{case}/size"]
    rows, columns = POOL[f"{case}/padded"] // cell
    assert (rows, columns) == (-(-height // cell), -(-width // cell))
    tokens = inputs.array(f"pool/{case}", (rows * columns, channels), seed, -1, 1)
    regions = Regions.of_masks(unpacked(POOL[f"{case}/masks"], width))
    shares = retrieval.shares_inside(regions, cell, (rows, columns))
    weights = POOL[f"{case}/weights"]
    np.testing.assert_allclose(shares, weights.reshape(len(weights), -1), rtol=0, atol=3e-7)
    features = retrieval.pool(tokens, shares)
    np.testing.assert_allclose(features, POOL[f"{case}/features"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "n", "d", "share"),
    [
        ("nine", 9, 5, 0.25),
        ("three", 3, 4, 0.25),
        ("four", 4, 4, 0.25),
        ("one", 1, 6, 0.25),
        ("none dropped", 7, 4, 0),
        ("forty", 41, 12, 0.25),
    ],
)
def test_filter(case, n, d, share):
    vectors = inputs.array(f"filter/{case}", (n, d), 79, -1, 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_array_equal(retrieval.nearest_to_mean(vectors, share), FILTER[f"{case}/kept"])
    distances = retrieval.distances_from_mean(vectors)
    np.testing.assert_allclose(distances, FILTER[f"{case}/distances"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", cases(PREDICT))
def test_prediction(case):
    of = {name: PREDICT[f"{case}/{name}"] for name in ("proposals", "proposal_scores", "queries", "bank", "k")}
    size, labels = PREDICT["size"], PREDICT[f"{case}/bank_labels"].astype(np.int64)
    proposals = unpacked(of["proposals"], int(size[1]))
    used = np.flatnonzero((of["proposal_scores"] >= 0.6) & (proposals.sum((1, 2)) >= 300))
    np.testing.assert_array_equal(used, PREDICT[f"{case}/used"])
    regions, n_labels = Regions.of_masks(proposals[used]), int(labels.max(initial=0)) + 1
    queries, bank = retrieval.unit_rows(of["queries"][used]), retrieval.unit_rows(of["bank"])
    votes = retrieval.vote(queries, bank, labels, n_labels, k=int(of["k"]))
    np.testing.assert_array_equal(votes.labels, PREDICT[f"{case}/labels"])
    np.testing.assert_allclose(votes.scores, PREDICT[f"{case}/scores"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(votes.shares.argmax(1), votes.labels)
    kept = region_shapes.distinct(regions.intersections(), votes.labels, votes.scores)
    np.testing.assert_array_equal(used[kept], PREDICT[f"{case}/kept"])
    painted = regions.painted(kept[votes.labels[kept] > 0][::-1])
    prediction = np.array([*votes.labels, 0], np.uint8)[painted]
    np.testing.assert_array_equal(prediction, PREDICT[f"{case}/prediction"])
