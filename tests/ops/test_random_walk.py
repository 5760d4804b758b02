"""The random walk against the dense matrix, and what must hold for any affinities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.parity import inputs
from wsss.errors import BadInput
from wsss.ops import random_walk as module
from wsss.ops.random_walk import random_walk

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
DTYPES = tuple(TOLERANCE)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def directions_of(radius: int) -> list[tuple[int, int]]:
    reach = range(1 - radius, radius)
    return [(dy, dx) for dy in reach for dx in reach if (dy, dx) > (0, 0) and dy**2 + dx**2 < radius**2]


def drawn(name: str, *shape: int, dtype: torch.dtype, power: float = 1, low: float = 0) -> Tensor:
    return torch.from_numpy(inputs.array(name, shape, 0, low)).to(dtype) ** power


def dense(planes: Tensor, directions: list[tuple[int, int]], beta: float) -> np.ndarray:
    """A in float64, pair by pair."""
    h, w = planes.shape[1:]
    matrix = np.eye(h * w)
    for plane, (dy, dx) in zip(planes.double().numpy(), directions, strict=True):
        for y in range(h - dy):
            for x in range(max(-dx, 0), w - max(dx, 0)):
                if plane[y, x] > 0:
                    i, j = y * w + x, (y + dy) * w + x + dx
                    matrix[i, j] = matrix[j, i] = plane[y, x] ** beta
    return matrix


def dense_walk(scores: Tensor, matrix: np.ndarray, steps: int) -> Tensor:
    transition, rows = matrix / matrix.sum(0), scores.double().flatten(1).numpy()
    for _ in range(steps):
        rows = rows @ transition
    return torch.from_numpy(rows).view(scores.shape)


def assert_close(ours: Tensor, expected: Tensor, largest: float, tolerance: float | None = None) -> None:
    assert torch.isfinite(ours).all()
    atol = largest * (tolerance or TOLERANCE[ours.dtype])
    torch.testing.assert_close(ours.double(), expected.double(), rtol=0, atol=atol)


@pytest.fixture(params=["compiled", "torch"])
def form(request, monkeypatch):
    """Both ways to multiply, the one of other devices on the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(module, "_advance_on_cpu", module._advance_in_torch)


def test_columns_sum_to_one_and_scores_are_a_row_vector(form):
    planes = torch.tensor([[[0.5, 1.0, 0.9]]])  # the last cell has no neighbour on its right
    walked = random_walk(torch.tensor([[[1.0, 0, 0]]]), planes, [(0, 1)], beta=1, steps=1)
    torch.testing.assert_close(walked, torch.tensor([[[1 / 1.5, 0.5 / 2.5, 0]]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["compiled", "torch"])
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([0, 0.5, 1, 8, 10]),
    st.integers(0, 300),
    st.integers(0, 2**32),
)
def test_equals_the_dense_matrix(kind, dtype, height, width, radius, maps, beta, steps, seed):
    rng = np.random.default_rng(seed)
    directions = directions_of(radius)
    planes = torch.from_numpy(rng.random((len(directions), height, width)) ** rng.uniform(0.1, 3)).to(dtype)
    planes[torch.from_numpy(rng.random(planes.shape) < 0.2)] = 0
    scores = torch.from_numpy(rng.uniform(-1, 1, (maps, height, width))).to(dtype)
    expected = dense_walk(scores, dense(planes, directions, beta), steps)
    with pytest.MonkeyPatch.context() as patch:
        if kind == "torch":
            patch.setattr(module, "_advance_on_cpu", module._advance_in_torch)
        walked = random_walk(scores, planes, directions, beta=beta, steps=steps)
    assert (walked.dtype, walked.shape) == (dtype, scores.shape)
    assert_close(walked, expected, scores.abs().max().item())


@pytest.mark.parametrize("weakness", [0, 0.5, 0.9, 1])
@pytest.mark.parametrize("spike", [False, True])
def test_strong_and_weak_links(weakness, spike, monkeypatch):
    """Edges from 0 to close to 1, more than one chunk of cells, and scores spread out or in a single cell."""
    directions, size_hw = directions_of(5), (29, 37)
    planes = 1 - weakness * drawn("walk/edge", 34, *size_hw, dtype=torch.float32, low=0.999 if weakness > 0.9 else 0)
    scores = drawn("walk/scores", 2, *size_hw, dtype=torch.float32)
    if spike:
        scores = torch.zeros_like(scores)
        scores[:, 20, 20] = 1
    expected = dense_walk(scores, dense(planes, directions, 10), 256)
    for advance in (module._advance_on_cpu, module._advance_in_torch):
        monkeypatch.setattr(module, "_advance_on_cpu", advance)
        for dtype in DTYPES:
            walked = random_walk(scores.to(dtype), planes.to(dtype), directions)
            # pseudo masks come of shares of the maximum: scores that a walk has thinned out have to be exact as well
            assert_close(walked, expected, expected.max().item())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_walk_keeps(form, dtype):
    directions, size_hw = directions_of(4), (23, 17)
    planes = drawn("walk/planes", len(directions), *size_hw, dtype=dtype, power=0.3)
    scores = drawn("walk/maps", 3, *size_hw, dtype=dtype)
    walked = random_walk(scores, planes, directions)
    # T's columns sum to 1, not its rows: not the sum of the scores is kept, but that weighted by the sums of A
    weight = torch.from_numpy(dense(planes, directions, 10).sum(0)).view(size_hw)
    weighted = [(maps.double() * weight).sum((1, 2)) for maps in (walked, scores)]
    torch.testing.assert_close(*weighted, rtol=10 * TOLERANCE[dtype], atol=0)
    assert (walked.sum((1, 2)) - scores.sum((1, 2))).abs().min() > 0.1
    # each step takes means
    margin = TOLERANCE[dtype]
    assert (walked.amax((1, 2)) <= scores.amax((1, 2)) + margin).all()
    assert (walked.amin((1, 2)) >= scores.amin((1, 2)) - margin).all()
    assert_close(random_walk(torch.full_like(scores, 0.7), planes, directions), torch.full_like(scores, 0.7), 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_in_the_scores(form, dtype):
    directions, size_hw = directions_of(3), (14, 19)
    planes = drawn("walk/planes", len(directions), *size_hw, dtype=dtype, power=0.1)
    a, b = drawn("walk/maps", 2, 2, *size_hw, dtype=dtype)
    walk = [random_walk(maps, planes, directions) for maps in (a, b, 3 * a - 2 * b)]
    assert_close(3 * walk[0] - 2 * walk[1], walk[2], 5)
    for scale in (1e-30, 1e30):
        assert_close(random_walk(scale * a, planes, directions) / scale, walk[0], 1)


@pytest.mark.parametrize(("first", "then"), [(0, 5), (1, 2), (64, 192), (37, 100)])
def test_walks_follow_each_other(form, first, then):
    directions, size_hw = directions_of(5), (11, 16)
    planes = drawn("walk/planes", len(directions), *size_hw, dtype=torch.float64, power=0.2)
    scores = drawn("walk/maps", 2, *size_hw, dtype=torch.float64)
    halfway = random_walk(scores, planes, directions, steps=first)
    both = random_walk(halfway, planes, directions, steps=then)
    assert_close(both, random_walk(scores, planes, directions, steps=first + then), 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_to_walk(form, dtype):
    directions = directions_of(5)
    scores = drawn("walk/maps", 2, 6, 7, dtype=dtype)
    planes = drawn("walk/planes", 34, 6, 7, dtype=dtype)
    unlinked = random_walk(scores, torch.zeros_like(planes), directions)
    assert_close(unlinked, scores, 1, 2e-6)
    assert_close(random_walk(scores, planes[:0], []), scores, 1, 2e-6)
    assert torch.equal(random_walk(scores, planes, directions, steps=0), scores)
    assert torch.equal(random_walk(torch.zeros_like(scores), planes, directions), torch.zeros_like(scores))
    assert random_walk(scores[:0], planes, directions).shape == (0, 6, 7)
    assert random_walk(scores[:, :0], planes[:, :0], directions).shape == (2, 0, 7)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (9, 1), (2, 3), (3, 2)])
def test_maps_smaller_than_the_radius(form, size_hw):
    directions = directions_of(5)
    planes = drawn("walk/planes", 34, *size_hw, dtype=torch.float64)
    scores = drawn("walk/maps", 2, *size_hw, dtype=torch.float64)
    expected = dense_walk(scores, dense(planes, directions, 2), 256)
    assert_close(random_walk(scores, planes, directions, beta=2), expected, 1)


def test_links_of_affinity_zero_are_none_whatever_beta_is(form):
    planes = torch.tensor([[[0.0, 0.5, 0.0]]], dtype=torch.float64)
    scores = torch.tensor([[[3.0, 1.0, 0.0]]], dtype=torch.float64)
    walked = random_walk(scores, planes, [(0, 1)], beta=0, steps=1)
    assert_close(walked, torch.tensor([[[3.0, 0.5, 0.5]]]), 3)


def test_any_memory_layout_and_arguments_stay(form):
    directions = directions_of(3)
    planes = drawn("walk/planes", 9, 12, len(directions), dtype=torch.float32).permute(2, 1, 0)
    scores = drawn("walk/maps", 9, 12, 2, dtype=torch.float32).permute(2, 1, 0)
    before = planes.clone(), scores.clone()
    walked = random_walk(scores.requires_grad_(), planes, directions)
    assert not walked.requires_grad
    assert torch.equal(planes, before[0])
    assert torch.equal(scores, before[1])
    assert torch.equal(walked, random_walk(before[1].contiguous(), before[0].contiguous(), directions))


def test_directions_in_any_order(form):
    directions = directions_of(4)
    planes = drawn("walk/planes", len(directions), 10, 13, dtype=torch.float64, power=0.2)
    scores = drawn("walk/maps", 2, 10, 13, dtype=torch.float64)
    order = inputs.stream("walk/order", 0).permutation(len(directions))
    walked = random_walk(scores, planes[torch.from_numpy(order)], [directions[i] for i in order])
    assert_close(walked, random_walk(scores, planes, directions), 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_denormal_numbers(dtype, monkeypatch):
    """From one cell over links so weak that scores fall off below the smallest normal number."""
    tiny = torch.finfo(dtype).tiny
    directions, size_hw = directions_of(5), (20, 30)
    planes = tiny ** (0.3 + 0.15 * drawn("walk/planes", 34, *size_hw, dtype=dtype))
    scores = torch.zeros(1, *size_hw, dtype=dtype)
    scores[0, 10, 10] = 1
    seen = []

    def spy(*arguments):
        compiled(*arguments)
        seen.append(arguments[4].clone())

    compiled = module._advance_on_cpu
    monkeypatch.setattr(module, "_advance_on_cpu", spy)
    random_walk(scores, planes, directions, beta=1)
    maps = torch.cat([one.flatten() for one in seen]).abs()
    assert not ((maps > 0) & (maps < tiny)).any()
    assert ((maps > 0) & (maps < tiny**0.25)).any()


class TestSeries:
    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 63, 64, 256, 257, 4096])
    @pytest.mark.parametrize("error", [1e-3, 1e-9, 1e-13])
    def test_bound(self, steps, error):
        coefficients = module._chebyshev(steps, error)
        eigenvalues = np.cos(np.linspace(0, math.pi, 4001))
        series = np.polynomial.chebyshev.chebval(eigenvalues, coefficients)
        np.testing.assert_allclose(series, eigenvalues**steps, rtol=0, atol=error + 1e-14)
        assert sum(coefficients) == pytest.approx(1, abs=1e-14)
        # 2 exp(-d^2 / 2N) bounds what comes after d, and renormalising doubles it
        assert len(coefficients) <= 2 + min(steps, math.sqrt(2 * steps * math.log(4 / error)))

    def test_few_steps_are_complete(self):
        eigenvalues = np.linspace(-1, 1, 101)
        for steps in range(12):
            series = np.polynomial.chebyshev.chebval(eigenvalues, module._chebyshev(steps, 1e-12))
            np.testing.assert_allclose(series, eigenvalues**steps, rtol=0, atol=2e-15)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"beta": -1}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"steps": -1}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"scores": torch.ones(5, 6)}, "scores"),
        ({"scores": torch.ones(2, 5, 6, dtype=torch.float16)}, "scores"),
        ({"scores": torch.ones(2, 5, 6, dtype=torch.int64)}, "scores"),
        ({"scores": torch.full((2, 5, 6), math.nan)}, "scores"),
        ({"scores": torch.full((2, 5, 6), math.inf)}, "scores"),
        ({"scores": torch.ones(2, 6, 5)}, "affinities"),
        ({"scores": torch.ones(2, 5, 6, dtype=torch.float64)}, "affinities"),
        ({"planes": torch.ones(2, 5, 6, device="meta")}, "affinities"),
        ({"planes": torch.ones(5, 6)}, "affinities"),
        ({"planes": torch.full((2, 5, 6), 1.5)}, "affinities"),
        ({"planes": torch.full((2, 5, 6), -0.1)}, "affinities"),
        ({"planes": torch.full((2, 5, 6), math.nan)}, "affinities"),
        ({"planes": torch.ones(3, 5, 6)}, "directions"),
        ({"directions": [(0, 1), (0, 0)]}, "directions"),
        ({"directions": [(0, 1), (0, -1)]}, "directions"),
        ({"directions": [(0, 1), (-1, 2)]}, "directions"),
        ({"directions": [(0, 1), (0, 1)]}, "directions"),
    ],
)
def test_bad_arguments(change, what):
    arguments = {"scores": torch.ones(2, 5, 6), "planes": torch.ones(2, 5, 6), "directions": [(0, 1), (1, 0)]} | change
    with pytest.raises(BadInput, match=f"^random walk {what}"):
        random_walk(**arguments)
