"""The random walk against IRNet's and AffinityNet's repositories, whose dense matrices were squared in float32."""

from functools import cache

import numpy as np
import pytest
import torch

from tests.parity import fixtures, inputs
from wsss.ops.random_walk import random_walk

RADIUS = 5
REACH = range(1 - RADIUS, RADIUS)
DIRECTIONS = [(dy, dx) for dy in REACH for dx in REACH if (dy, dx) > (0, 0) and dy**2 + dx**2 < RADIUS**2]
DTYPES = (np.float32, np.float64)
# measured: IRNet 2.7e-5 in float32 and 2.4e-5 in float64, AffinityNet 3.1e-5 and 2.3e-5, mostly of the fixtures' own
TOLERANCE = 5e-5

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@cache
def irnet_edge_and_planes(dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """An edge map, and 1 - its largest value on the path of each pair, cell by cell."""
    height, width = 30, 40
    edge = inputs.array("irn/rw_edge", (height, width), 0).astype(dtype) ** 2
    planes = np.zeros((len(DIRECTIONS), height, width), edge.dtype)
    for plane, (dy, dx) in zip(planes, DIRECTIONS, strict=True):
        box = [(y, x) for y in range(dy + 1) for x in range(min(0, dx), max(0, dx) + 1)]
        path = [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy**2 + dx**2]
        for y in range(height - dy):
            for x in range(max(-dx, 0), width - max(dx, 0)):
                plane[y, x] = 1 - max(edge[y + down, x + right] for down, right in path)
    return edge, planes


def feature_planes(features: np.ndarray) -> np.ndarray:
    """exp(-mean |x_i - x_j|), for the pairs whose source is away from the border: the published code has these only."""
    _, height, width = features.shape
    planes = np.zeros((len(DIRECTIONS), height, width), features.dtype)
    for plane, (dy, dx) in zip(planes, DIRECTIONS, strict=True):
        for y in range(height - RADIUS + 1):
            for x in range(RADIUS - 1, width - RADIUS + 1):
                plane[y, x] = np.exp(-np.abs(features[:, y, x] - features[:, y + dy, x + dx]).mean())
    return planes


def walk(scores: np.ndarray, planes: np.ndarray, beta: float, steps: int) -> np.ndarray:
    return random_walk(torch.from_numpy(scores), torch.from_numpy(planes), DIRECTIONS, beta=beta, steps=steps).numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("beta", "t"), [(10, 0), (10, 3), (10, 8), (8, 6)])
def test_irnet(dtype, beta, t):
    expected = fixtures.arrays("irnet/random-walk")[f"rw_beta{beta}_exp{t}"]
    edge, planes = irnet_edge_and_planes(dtype)
    scores = inputs.array("irn/rw_cam", (2, 30, 40), 0).astype(dtype) * (1 - edge)
    walked = walk(scores, planes, beta, 2**t)
    np.testing.assert_allclose(walked, expected[:, 0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "size_hw"), [("a", (15, 20)), ("b", (9, 31))])
def test_affinitynet(dtype, name, size_hw):
    fixture = fixtures.arrays("affinitynet/random-walk")
    features = 6 * inputs.blocky("psa/feat_blocks", 448, *size_hw, 0, 5)
    features += 0.3 * inputs.array("psa/feat", (448, *size_hw), 0)
    scores = inputs.blocky("psa/walk_cam", 3, *size_hw, 0, 4).astype(dtype)
    walked = walk(scores, feature_planes(features.astype(dtype)), 8, 256)
    np.testing.assert_allclose(walked, fixture[f"features_{name}_rw"], rtol=0, atol=TOLERANCE)
    best, second = np.sort(walked, 0)[:-3:-1]
    clear = best - second > 1e-4
    np.testing.assert_array_equal(walked.argmax(0)[clear], fixture[f"features_{name}_label"][clear])
