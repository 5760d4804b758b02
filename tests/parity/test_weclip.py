"""WeCLIP and WeCLIP+ against their repository."""

import functools

import numpy as np
import pytest
import torch

from tests.parity import fixtures, inputs
from wsss.ops.pixel_refine import PixelRefinement, pixel_refine

SEED = 110


def fixture(name: str) -> fixtures.Arrays:
    return fixtures.arrays(f"weclip/{name}")


array = functools.partial(inputs.array, seed=SEED)


def picture(height: int, width: int, seed: int = SEED) -> torch.Tensor:
    return torch.from_numpy(inputs.normalised(inputs.image(height, width, seed)))


# sizes of the picture and of the maps, number of maps
PAR = {
    "usual": ((40, 52), (40, 52), 3),
    "picture larger": ((67, 90), (31, 44), 2),
    "smaller than a dilation": ((20, 17), (20, 17), 2),
    "flat picture": ((24, 30), (24, 30), 2),
    "3 iterations": ((33, 47), (33, 47), 4),
}


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", PAR)
def test_pixel_refinement(case, precision):
    size, map_size, n = PAR[case]
    image = picture(*size)
    if case == "flat picture":
        image = torch.from_numpy(inputs.normalised(np.full((*size, 3), 90, np.uint8)))
    maps, reference = torch.from_numpy(array(f"par/{case}", (n, *map_size))), fixture("par")
    settings = PixelRefinement(iterations=3 if case == "3 iterations" else 20)
    refined = pixel_refine(image.to(precision), maps.to(precision), settings)
    step = int(reference[f"{case}/step"])
    np.testing.assert_allclose(refined[:, ::step, ::step], reference[f"{case}/refined"], atol=2e-5)
