"""The random walk against IRNet's and AffinityNet's repositories, whose dense matrices were squared in float32."""

import numpy as np
import pytest
import torch

from tests.parity import fixtures, inputs
from wsss.ops import affinity
from wsss.ops.random_walk import random_walk

RADIUS = 5
DIRECTIONS = affinity.directions(RADIUS)
DTYPES = (np.float32, np.float64)
# measured: IRNet 2.7e-5 in float32 and 2.4e-5 in float64, AffinityNet 3.1e-5 and 2.3e-5, mostly of the fixtures' own
TOLERANCE = 5e-5

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def walk(scores: np.ndarray, planes: torch.Tensor, beta: float, steps: int) -> np.ndarray:
    return random_walk(torch.from_numpy(scores), planes, DIRECTIONS, beta=beta, steps=steps).numpy()


def row_sums(planes: torch.Tensor) -> np.ndarray:
    """Of the matrix of all cells' affinities, where each cell has 1 with itself."""
    total = torch.ones(planes.shape[1:], dtype=planes.dtype)
    for plane, (dy, dx) in zip(planes, DIRECTIONS, strict=True):
        # what a plane holds beside the map's border is 0
        total += plane + plane.roll((dy, dx), (0, 1))
    return total.flatten().numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("beta", "t"), [(10, 0), (10, 3), (10, 8), (8, 6)])
def test_irnet(dtype, beta, t):
    expected = fixtures.arrays("irnet/random-walk")[f"rw_beta{beta}_exp{t}"]
    edge = inputs.array("irn/rw_edge", (30, 40), 0).astype(dtype) ** 2
    planes = affinity.path_affinity_planes(torch.from_numpy(edge), RADIUS)
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
    planes = affinity.feature_affinity_planes(torch.from_numpy(features.astype(dtype)), RADIUS)
    np.testing.assert_allclose(row_sums(planes), fixture[f"features_{name}_row_sums"], rtol=1e-5)
    walked = walk(scores, planes, 8, 256)
    np.testing.assert_allclose(walked, fixture[f"features_{name}_rw"], rtol=0, atol=TOLERANCE)
    best, second = np.sort(walked, 0)[:-3:-1]
    clear = best - second > 1e-4
    np.testing.assert_array_equal(walked.argmax(0)[clear], fixture[f"features_{name}_label"][clear])
