"""Pixel-adaptive refinement against a loop over pixels, in both precisions, and what holds for all pictures."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.errors import BadInput
from wsss.ops.pixel_refine import PixelRefinement, pixel_refine


def by_pixels(image: np.ndarray, maps: np.ndarray, dilations: tuple[int, ...], iterations: int) -> np.ndarray:
    """The formulas in the module's docstring, pixel by pixel."""
    height, width = maps.shape[1:]
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    places = [(d * dy, d * dx) for d in dilations for dy, dx in steps]

    def softmax(values: np.ndarray) -> np.ndarray:
        shifted = np.exp(values - values.max())
        return shifted / shifted.sum()

    distance = np.array([math.dist((0, 0), place) for place in places])
    positions = 0.01 * softmax(-((distance / (distance.std(ddof=1) + 1e-8) / 0.3) ** 2))
    beside, weights = {}, {}
    for y, x in np.ndindex(height, width):
        near = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in places]
        colours = np.array([image[:, i, j] for i, j in near])
        apart = np.abs(colours - image[:, y, x]) / (colours.std(0, ddof=1) + 1e-8) / 0.3
        beside[y, x], weights[y, x] = near, softmax(-(apart**2).mean(1)) + positions
    for _ in range(iterations):
        before, maps = maps, np.empty_like(maps)
        for place in np.ndindex(height, width):
            maps[:, *place] = sum(w * before[:, i, j] for w, (i, j) in zip(weights[place], beside[place], strict=True))
    return maps


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    st.integers(0, 3),
)
@settings(max_examples=20)
def test_against_a_loop_over_pixels(seed, size, dilations, iterations):
    rng = np.random.default_rng(seed)
    image, maps = rng.uniform(-2, 2, (3, *size)), rng.uniform(0, 1, (2, *size))
    refinement = PixelRefinement(dilations, iterations)
    wanted = by_pixels(image, maps, dilations, iterations)
    both = torch.from_numpy(image), torch.from_numpy(maps)
    np.testing.assert_allclose(pixel_refine(*both, refinement), wanted, atol=1e-12)
    compiled = pixel_refine(both[0].float(), both[1].float(), refinement)
    assert compiled.dtype == torch.float32
    np.testing.assert_allclose(compiled, wanted, atol=2e-5)


def test_maps_do_not_cross_an_edge():
    image = torch.zeros(3, 24, 30)
    image[:, :, 13:] = 2.0
    maps = torch.zeros(1, 24, 30)
    maps[:, :, :4] = 1.0
    refined = pixel_refine(image, maps, PixelRefinement((1, 2, 4), 100))[0] / 1.01**100
    assert refined[:, :12].min() > 0.2
    assert refined[:, 14:].max() < 0.05


def test_equal_maps_only_grow():
    image = torch.from_numpy(np.random.default_rng(0).uniform(0, 1, (3, 9, 11)).astype(np.float32))
    refined = pixel_refine(image, torch.full((2, 9, 11), 0.5))
    np.testing.assert_allclose(refined, 0.5 * 1.01**20, rtol=1e-5)


def test_maps_that_need_a_gradient_get_none():
    maps = torch.rand(2, 5, 6, requires_grad=True)
    assert not pixel_refine(torch.rand(3, 5, 6), maps).requires_grad


@pytest.mark.parametrize("broken", [{"dilations": ()}, {"dilations": (0,)}, {"iterations": -1}])
def test_settings_that_cannot_work(broken):
    with pytest.raises(BadInput):
        PixelRefinement(**broken)
