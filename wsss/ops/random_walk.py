"""Random walk of score maps over pairwise affinities (Ahn and Kwak, CVPR 2018; IRNet: Ahn, Cho and Kwak, CVPR 2019).

The published codes square the dense matrix T of all cells t times. T has few entries beside zeros and only x T^N is
wanted, so here the matrix meets the maps alone, N = 2^t times or fewer: T = A S^-1, with A symmetric and S its column
sums on a diagonal, is similar to S^-1/2 A S^-1/2, whose eigenvalues lie in [-1, 1], and there lambda^N is the sum of
c_j T_j(lambda) over j <= N, where T_j is Chebyshev's polynomial and c_j the chance that N tosses of a coin differ by
j, next to nothing beyond a few sqrt(N). What is cut off is bounded, so the result is that of the dense matrix.

A is never formed either: the plane of each direction is shifted and multiplied, once for each end of its pairs. CPUs do
so in compiled code, in the caller's thread and without the interpreter's lock, other devices in torch.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor
from torch.nn.functional import pad

from wsss.errors import BadInput, check_range

CUT = {torch.float32: 1e-6, torch.float64: 1e-9}  # what the cut of the series may change, as a share of the top score
CHUNK = 1024  # cells whose sums wait in the cache while the planes pass by


@torch.no_grad()
def random_walk(
    scores: Float[Tensor, "k h w"],
    planes: Float[Tensor, "d h w"],
    directions: Sequence[tuple[int, int]],
    *,
    beta: float = 10.0,
    steps: int = 256,
) -> Float[Tensor, "k h w"]:
    """x T^steps with T_ij = A_ij / sum_i A_ij; A holds the affinities to the power of beta, and 1 on its diagonal.

    A step replaces each score by the mean over the cell itself and all cells linked with it, weighted by A. The tests
    hold 256 steps to the dense matrix in float64: 1e-9 of the largest score in float64, 1e-4 in float32. No gradients.

    Args:
        scores: x, a row vector over the cells for each map; float32 or float64.
        planes: affinities in [0, 1] of the cells (y, x) and (y + dy, x + dx), for each (dy, dx) of `directions`; dtype
            and device as `scores`. 0 is no link; what stands where a pair leaves the map does not count.
        directions: (dy, dx), one of the two that each pair of cells has: dy > 0, or dy = 0 and dx > 0.
        beta: 0 or more; 0 ** beta is 0 throughout. The default is IRNet's, AffinityNet has 8.
        steps: 0 or more, in the papers 2^t: IRNet and AffinityNet have 2^8, SEAM and ICAM 2^6.

    Raises:
        BadInput: shapes, dtypes or devices that do not fit, directions that are none of those above or given twice,
            affinities outside [0, 1], scores that are not finite, a negative or broken `beta` or `steps`.
    """
    _check(scores, planes, directions, beta, steps)
    k, h, w = scores.shape
    n = h * w
    if k * n == 0:
        return scores.clone()
    inside = [(plane, dy, dx) for plane, (dy, dx) in zip(planes, directions, strict=True) if dy < h and abs(dx) < w]
    offsets = np.array([dy * w + dx for _, dy, dx in inside], np.int64)
    margin = int(offsets.max(initial=0))
    padded = scores.new_zeros(margin + len(inside) * n)
    for link, (plane, dy, dx) in zip(padded[margin:].view(-1, h, w), inside, strict=True):
        source = slice(0, h - dy), slice(max(-dx, 0), w - max(dx, 0))
        power = plane[source].pow(beta)
        link[source] = power.masked_fill_((plane[source] == 0) | (power < _least(scores.dtype)), 0)

    # Maps are rows of cells between margins of zeros, which the shifted products may touch
    advance = _advance_on_cpu if scores.is_cpu else _advance_in_torch
    cells = slice(margin, margin + n)
    ones = pad(scores.new_ones(1, n), (margin, margin))
    sums = torch.zeros_like(ones)
    advance(padded, offsets, ones[0, cells], ones, sums, 1)
    share = sums[0, cells].reciprocal()  # rounded as the products are: equal scores stay equal

    unit = 2.0 ** (math.frexp(scores.abs().amax().item())[1] - 1)  # brings the largest score into [1, 2)
    current = pad(scores.flatten(1) / unit, (margin, margin))  # T_j of the maps
    previous = torch.zeros_like(current)  # T_(j-1)
    coefficients = _chebyshev(steps, CUT[scores.dtype] / math.sqrt((1 + 2 * len(inside)) * n))
    result = current * coefficients[0]
    for j, coefficient in enumerate(coefficients[1:]):
        advance(padded, offsets, share, current, previous, 2 if j else 1)
        current, previous = previous, current
        if coefficient:
            result.add_(current, alpha=coefficient)
    return result[:, cells].mul(unit).view(k, h, w)


def _check(scores: Tensor, planes: Tensor, directions: Sequence[tuple[int, int]], beta: float, steps: int) -> None:
    for name, maps in (("scores", scores), ("affinities", planes)):
        if maps.ndim != 3 or maps.dtype not in CUT:
            found = f"{maps.dtype} {tuple(maps.shape)}"
            raise BadInput(f"random walk {name}", found, "float32 or float64 (maps, rows, columns)", "Convert them.")
    ours, theirs = ((maps.dtype, maps.device, *maps.shape[1:]) for maps in (planes, scores))
    if ours != theirs:
        raise BadInput("random walk affinities", f"{ours}", f"{theirs} as the scores", "Convert or resize one of them.")
    once = len(set(directions)) == len(directions) == len(planes)
    if not once or not all(direction > (0, 0) for direction in directions):
        raise BadInput(
            "random walk directions",
            f"{list(directions)} for {len(planes)} planes",
            "one (dy, dx) for each plane, no two alike, with dy > 0, or dy = 0 and dx > 0",
            "Give each pair of cells once.",
        )
    check_range("random walk beta", beta, 0)
    if not isinstance(steps, int) or steps < 0:
        raise BadInput("random walk steps", f"{steps}", "a whole number of 0 or more", "The published value is 256.")
    for name, maps, low, high in (("scores", scores, -math.inf, math.inf), ("affinities", planes, 0, 1)):
        if not (maps.isfinite() & (maps >= low) & (maps <= high)).all():
            found = f"NaN, or values outside [{low}, {high}]"
            raise BadInput(f"random walk {name}", found, "finite values in that range", "Look at what made them.")


def _chebyshev(steps: int, error: float) -> list[float]:
    """c_0, c_1, .. with |lambda^steps - sum_j c_j T_j(lambda)| <= error for all lambda in [-1, 1], and sum 1.

    The column sums of A lie in [1, 1 + 2 d], so that the same polynomial of T is off by sqrt((1 + 2 d) n) times as
    much at most, as a share of the largest score.
    """
    # c_j = 2 C(N, (N - j) / 2) / 2^N, half of it for j = 0, and 0 for every other j: one follows from the one before
    j = np.arange(steps % 2, steps + 1, 2)
    chances = np.cumprod(np.append(1.0, (steps - j[:-1]) / (steps + j[:-1] + 2)))
    chances[j == 0] /= 2
    chances /= chances.sum()
    # Since |T_j| <= 1, cutting the rest off costs its sum, and making the others up to 1 again the same once more
    kept = np.count_nonzero(2 * np.cumsum(chances[::-1])[::-1] > error)
    coefficients = np.zeros(j[kept - 1] + 1)
    coefficients[j[:kept]] = chances[:kept] / chances[:kept].sum()
    return coefficients.tolist()


def _least(dtype: torch.dtype) -> float:
    """Links and scores below it count as 0: other two have no denormal product, and CPUs are slow at denormals.

    What it leaves out is far below the rounding of the largest score.
    """
    return math.sqrt(torch.finfo(dtype).tiny)


def _advance_in_torch(
    padded: Tensor, offsets: np.ndarray, share: Tensor, current: Tensor, previous: Tensor, factor: int
) -> None:
    """Put the next T_j in the place of the previous one: factor x T - previous, x the current one."""
    n, margin = len(share), (current.shape[1] - len(share)) // 2
    sums = torch.zeros_like(current[:, :n])
    for plane, offset in zip(padded[margin:].view(-1, n), offsets.tolist(), strict=True):
        sums.addcmul_(plane, current[:, margin + offset : margin + offset + n])
        sums[:, offset:].addcmul_(plane[: n - offset], current[:, margin : margin + n - offset])
    sums += current[:, margin : margin + n]  # last: weak links, one by one, would be lost beside it
    previous[:, margin : margin + n].neg_().addcmul_(sums, share, value=factor)


def _advance_on_cpu(
    padded: Tensor, offsets: np.ndarray, share: Tensor, current: Tensor, previous: Tensor, factor: int
) -> None:
    number = share.numpy().dtype.type
    arrays = padded.numpy(), share.numpy(), current.numpy(), previous.numpy()
    _advance(*arrays, offsets, number(factor), number(_least(share.dtype)))


@njit(nogil=True, cache=True, fastmath={"contract"})
def _advance(
    padded: Any, share: Any, current: Any, previous: Any, offsets: np.ndarray, factor: np.floating, least: np.floating
) -> None:
    # Indices are unsigned: of others numba would ask whether they are negative, and no loop would become vectors
    n = len(share)
    margin = (current.shape[1] - n) // 2
    sums = np.empty(CHUNK, share.dtype)
    for first in range(0, n, CHUNK):
        cells = np.uintp(min(CHUNK, n - first))
        start, here = np.uintp(first), np.uintp(margin + first)
        for k in range(len(current)):
            sums[:] = 0
            for d in range(len(offsets)):
                offset, plane = np.uintp(offsets[d]), np.uintp(margin + d * n + first)
                for i in range(cells):
                    ahead = padded[plane + i] * current[k, here + offset + i]
                    behind = padded[plane - offset + i] * current[k, here - offset + i]
                    sums[i] += ahead + behind
            for i in range(cells):
                value = factor * (share[start + i] * (current[k, here + i] + sums[i])) - previous[k, here + i]
                previous[k, here + i] = value * (abs(value) >= least)
