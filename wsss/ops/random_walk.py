"""Random walk of score maps over pairwise affinities (Ahn and Kwak, CVPR 2018; IRNet: Ahn, Cho and Kwak, CVPR 2019).

The published codes square the dense matrix T of all cells t times. T is sparse and only x T^N is needed, so here T is only
multiplied with the maps, at most N = 2^t times. T = A S^-1, with A symmetric and S the diagonal matrix of its column
sums, is similar to S^-1/2 A S^-1/2, whose eigenvalues lie in [-1, 1]. On this interval, lambda^N is the sum of
c_j T_j(lambda) over j <= N, where T_j is the Chebyshev polynomial and c_j the probability that the numbers of heads and tails in N
coin tosses differ by j, which is negligible beyond a few sqrt(N). The truncation error is bounded, so the result is that of the dense matrix.

A is not formed either: the plane of each direction is shifted and multiplied, once for each end of its pairs. On CPUs this is
compiled code in the caller's thread, without the global interpreter lock; on other devices it is torch.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn.functional import pad

from wsss.arrays import Float
from wsss.errors import BadInput, check_range

CUT = {torch.float32: 1e-6, torch.float64: 1e-9}  # maximum error of the truncated series, relative to the largest score
CHUNK = 1024  # cells whose sums stay in the cache while the planes are read


@torch.no_grad()
def random_walk(
    scores: Float[Tensor, "k h w"],
    planes: Float[Tensor, "d h w"],
    directions: Sequence[tuple[int, int]],
    *,
    beta: float = 10.0,
    steps: int = 256,
) -> Float[Tensor, "k h w"]:
    """x T^steps with T_ij = A_ij / sum_i A_ij; A contains the affinities to the power of beta, and 1 on its diagonal.

    A step replaces each score by the mean over the cell itself and all cells linked to it, weighted by A. The tests compare
    256 steps with the dense matrix in float64: the error is at most 1e-9 of the largest score in float64, 1e-4 in float32. No gradients.

    Args:
        scores: x, a row vector over the cells for each map; float32 or float64.
        planes: affinities in [0, 1] of the cells (y, x) and (y + dy, x + dx), for each (dy, dx) of `directions`; dtype
            and device as `scores`. 0 is no link; values whose pair leaves the map are ignored.
        directions: (dy, dx), one of the two directions of each pair of cells: dy > 0, or dy = 0 and dx > 0.
        beta: 0 or more; 0 ** beta is always 0. The default is that of IRNet; AffinityNet has 8.
        steps: 0 or more, 2^t in the papers: IRNet and AffinityNet have 2^8, SEAM and ICAM 2^6.

    Raises:
        BadInput: shapes, dtypes or devices do not match, a direction is not one of the above or occurs twice,
            affinities are outside [0, 1], scores are not finite, or `beta` or `steps` is negative or `steps` fractional.
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

    # maps are rows of cells between margins of zeros, which the shifted products may reach
    advance = _advance_on_cpu if scores.is_cpu else _advance_in_torch
    cells = slice(margin, margin + n)
    ones = pad(scores.new_ones(1, n), (margin, margin))
    sums = torch.zeros_like(ones)
    advance(padded, offsets, ones[0, cells], ones, sums, 1)
    share = sums[0, cells].reciprocal()  # rounded like the products, so that equal scores stay equal

    unit = 2.0 ** (math.frexp(scores.abs().amax().item())[1] - 1)  # scales the largest score into [1, 2)
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
            "one (dy, dx) for each plane, all different, with dy > 0, or dy = 0 and dx > 0",
            "Give each pair of cells once.",
        )
    check_range("random walk beta", beta, 0)
    if not isinstance(steps, int) or steps < 0:
        raise BadInput("random walk steps", f"{steps}", "a whole number of 0 or more", "The published value is 256.")
    for name, maps, low, high in (("scores", scores, -math.inf, math.inf), ("affinities", planes, 0, 1)):
        if not (maps.isfinite() & (maps >= low) & (maps <= high)).all():
            found = f"NaN, or values outside [{low}, {high}]"
            raise BadInput(f"random walk {name}", found, "finite values in that range", "Check how they were computed.")


def _chebyshev(steps: int, error: float) -> list[float]:
    """c_0, c_1, .. with |lambda^steps - sum_j c_j T_j(lambda)| <= error for all lambda in [-1, 1], and sum 1.

    The column sums of A lie in [1, 1 + 2 d], so the error of the same polynomial of T is at most sqrt((1 + 2 d) n) times as
    large, relative to the largest score.
    """
    # c_j = 2 C(N, (N - j) / 2) / 2^N, half of this for j = 0, and 0 for odd N - j; each is computed from the previous one
    j = np.arange(steps % 2, steps + 1, 2)
    chances = np.cumprod(np.append(1.0, (steps - j[:-1]) / (steps + j[:-1] + 2)))
    chances[j == 0] /= 2
    chances /= chances.sum()
    # since |T_j| <= 1, dropping the rest costs at most its sum, and rescaling the others to sum 1 costs the same again
    terms = np.count_nonzero(2 * np.cumsum(chances[::-1])[::-1] > error)
    coefficients = np.zeros(j[terms - 1] + 1)
    coefficients[j[:terms]] = chances[:terms] / chances[:terms].sum()
    return coefficients.tolist()


def _least(dtype: torch.dtype) -> float:
    """Links and scores below this value count as 0, so that no product is denormal, which is slow on CPUs.

    This is far below the rounding error of the largest score.
    """
    return math.sqrt(torch.finfo(dtype).tiny)


def _advance_in_torch(
    padded: Tensor, offsets: np.ndarray, share: Tensor, current: Tensor, previous: Tensor, factor: int
) -> None:
    """Overwrite the previous T_j with the next: factor x T - previous, where x is the current one."""
    n, margin = len(share), (current.shape[1] - len(share)) // 2
    sums = torch.zeros_like(current[:, :n])
    for plane, offset in zip(padded[margin:].view(-1, n), offsets.tolist(), strict=True):
        sums.addcmul_(plane, current[:, margin + offset : margin + offset + n])
        sums[:, offset:].addcmul_(plane[: n - offset], current[:, margin : margin + n - offset])
    sums += current[:, margin : margin + n]  # added last, since single weak links would be rounded away
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
    # with signed indices, numba checks for negative ones, which prevents vectorised loops
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
