"""The feature similarity loss of ICAM (Jonnarth and Felsberg, Importance sampling CAMs for weakly-supervised segmentation, ICASSP 2022).

Cells with similar colours should have similar predictions, and cells with different colours different predictions. With x_i the colours
and P_i the predictions of the N cells of a map, and d_p the distance of two cells, in cells:

    d_x = |x_i - x_j|_1 / 3,  g = tanh(mu + ln((d_x + eps) / (1 - d_x + eps))),  w = exp(-(d_p / sigma)^2 / 2) / (2 pi sigma^2)
    L_FS = -1 / N  sum_ij w g |P_i - P_j|^2 = sum_i P_i · D_i / 2,   D_i = dL_FS / dP_i = -4 / N  sum_j w g (P_i - P_j)

so one pass over the pairs yields the value and the gradient. Pairs are processed in blocks, each once, and not stored.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsss.arrays import Bool, Float
from wsss.errors import BadInput

_EPSILON = 1e-5
# |ln(a / b)| of the gate is below 12, so a larger mu changes nothing in double precision, and e^(2 mu) fits into single precision
_STEEPEST = 40.0
# pairs per block: on a CPU the arrays fit into the cache; on a GPU blocks are as large as possible
_PAIRS = {"cpu": 1 << 17}
_PAIRS_ELSEWHERE = 1 << 24


def feature_similarity_loss(
    maps: Float[Tensor, "n c h w"],
    colours: Float[Tensor, "n 3 h w"],
    mu: float = 2.5,
    sigma: float | None = 5.0,
    *,
    max_distance: float | None = None,
    colour_norm: Literal[1, 2] = 1,
    inside: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, ""]:
    """L_FS, the mean over the pictures; usually negative. Only the maps get a gradient.

    Args:
        maps: predictions P, including the background.
        colours: x, in [0, 1].
        mu: the gate g is 0 at d_x = 1 / (1 + e^mu).
        sigma: width of the neighbourhood in cells; None: all pairs have the same weight, w = 1 / N.
        max_distance: exclude pairs of cells with a larger distance, as ICAM's unused option `fast` does.
        colour_norm: p of d_x = |x_i - x_j|_p / 3^(1/p), a setting of the binomial follow-up.
        inside: the cells whose pairs are included; the sum is divided by their number; by default all.

    Raises:
        BadInput: maps and colours differ in number or size, or `sigma` is not above 0.
    """
    if maps.shape[0] != colours.shape[0] or maps.shape[2:] != colours.shape[2:]:
        raise BadInput(
            "colours of the feature similarity loss",
            f"{len(colours)} of {colours.shape[2]}x{colours.shape[3]} cells",
            f"{len(maps)} of {maps.shape[2]}x{maps.shape[3]}, like the maps",
            "Resize them.",
        )
    check_sigma("sigma of the feature similarity loss", sigma)
    return _FeatureSimilarity.apply(maps, colours.detach(), mu, sigma, max_distance, colour_norm, inside)


def cell_colours(
    image: Float[Tensor, "n 3 h w"], size_hw: tuple[int, int] | torch.Size, mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "n 3 hs ws"]:
    """Colours of the cells of pictures, in [0, 1]: resized (bilinear, aligned corners), with the normalisation by `mean` and `std` undone."""
    cells = F.interpolate(image, tuple(size_hw), mode="bilinear", align_corners=True)
    shift, scale = (cells.new_tensor(values)[:, None, None] for values in (mean, std))
    return (cells * scale + shift).clamp(0, 1)


def cells_inside(image: Float[Tensor, "n 3 h w"], size_hw: tuple[int, int] | torch.Size) -> Bool[Tensor, "n hs ws"]:
    """Which cells belong to the picture in a normalised crop, not to its padding: padding is 0, and no normalised 8-bit colour is."""
    inside = (image != 0).any(1, keepdim=True).to(image.dtype)
    return F.interpolate(inside, tuple(size_hw), mode="bilinear", align_corners=True)[:, 0] >= 0.5


def check_sigma(where: str, sigma: float | None) -> None:
    """Raise BadInput for a width of the neighbourhood that is not above 0; None is valid."""
    if sigma is not None and sigma <= 0:
        raise BadInput(where, str(sigma), "a number above 0, or null", "Change it.")


class _FeatureSimilarity(torch.autograd.Function):
    """The loss; its gradient is computed in the forward pass."""

    @staticmethod
    def forward(
        context: Any,
        maps: Tensor,
        colours: Tensor,
        mu: float,
        sigma: float | None,
        max_distance: float | None,
        colour_norm: int,
        inside: Tensor | None,
    ) -> Tensor:
        kind = torch.promote_types(maps.dtype, torch.float32)
        height, width = maps.shape[2:]
        # only differences matter, and they are more exact for small numbers
        centred = maps.to(kind) - maps.to(kind).mean((2, 3), keepdim=True)
        spread = _Spread(height, width, sigma, max_distance, kind, maps.device)
        gradient = torch.empty_like(centred)
        steepness = math.exp(2 * max(-_STEEPEST, min(mu, _STEEPEST)))
        counted = torch.ones_like(centred[:, :1]) if inside is None else inside[:, None].to(kind)
        # sums over all cells cancel, so half precision is not accurate enough
        with torch.autocast(maps.device.type, enabled=False):
            for plane, colour, cells, into in zip(centred, colours.to(kind), counted, gradient, strict=True):
                into.copy_(_differences(plane, cells, colour, steepness, spread, colour_norm))
        gradient *= -4 / (len(maps) * counted.sum((2, 3), keepdim=True).clamp_min(1))
        context.save_for_backward(gradient.to(maps.dtype))
        return ((centred * gradient).sum() / 2).to(maps.dtype)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        return context.saved_tensors[0] * gradients[0], None, None, None, None, None, None


class _Spread:
    """The weights w of the pairs of cells in two blocks of rows."""

    def __init__(
        self,
        height: int,
        width: int,
        sigma: float | None,
        max_distance: float | None,
        kind: torch.dtype,
        device: torch.device,
    ) -> None:
        self.height, self.width, self.max_distance = height, width, max_distance
        pairs = _PAIRS.get(device.type, _PAIRS_ELSEWHERE)
        self.block = max(1, min(height, math.isqrt(pairs) // width))
        rows, columns = (torch.arange(n, dtype=kind, device=device) for n in (height, width))
        self.down, self.across = ((axis[:, None] - axis).square() for axis in (rows, columns))
        self.reach = float(height) if max_distance is None else max_distance
        scale = 1 / (height * width)
        if sigma is not None:
            scale = 1 / (2 * math.pi * sigma**2)
            # weights beyond this distance are below the rounding error of the next cell's weight
            self.reach = min(self.reach, math.sqrt(1 - 2 * sigma**2 * math.log(torch.finfo(kind).eps)))
        self.factors = [
            scale**0.5 * (torch.ones_like(d) if sigma is None else torch.exp(d / (-2 * sigma**2)))
            for d in (self.down, self.across)
        ]

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Blocks of rows and blocks of their partners' rows, each pair of rows once."""
        starts = range(0, self.height, self.block)
        for first, second in itertools.combinations_with_replacement(starts, 2):
            if second - (first + self.block - 1) <= self.reach:
                yield slice(first, first + self.block), slice(second, second + self.block)

    def weights(self, rows: slice, others: slice) -> Float[Tensor, "r w o w2"]:
        """w, zero for pairs beyond the maximum distance."""
        down, across = self.factors
        weights = down[rows, others][:, None, :, None] * across[None, :, None, :]
        if self.max_distance is not None:
            squared = self.down[rows, others][:, None, :, None] + self.across[None, :, None, :]
            weights *= squared <= self.max_distance**2
        return weights


def _differences(
    plane: Tensor, counted: Tensor, colour: Tensor, steepness: float, spread: _Spread, norm: int
) -> Tensor:
    """sum_j w g (P_i - P_j) of one picture over the included cells, (c, h, w)."""
    # an additional row of ones sums the weights
    values = torch.cat([plane * counted, counted])
    sums = torch.zeros_like(values)
    for rows, others in spread.blocks():
        gates = _gates(colour[:, rows].flatten(1), colour[:, others].flatten(1), steepness, norm)
        weights = gates.mul_(spread.weights(rows, others).view_as(gates))
        if rows == others:
            # the difference of a cell to itself is 0, and with a narrow neighbourhood its large weight would round the others away
            weights.fill_diagonal_(0)
        shape = sums[:, rows].shape
        sums[:, rows] += (values[:, others].flatten(1) @ weights.mT).view(shape)
        if rows != others:
            sums[:, others] += (values[:, rows].flatten(1) @ weights).view(sums[:, others].shape)
    return (sums[-1] * plane - sums[:-1]) * counted


def _gates(one: Tensor, other: Tensor, steepness: float, norm: int) -> Float[Tensor, "i j"]:
    """g of all pairs of two lists of colours, (3, i) and (3, j).

    tanh(mu + ln(a / b)) = 2 k / (k + (b / a)^2) - 1 with k = e^(2 mu), `steepness`.
    """
    distance = torch.zeros(one.shape[1], other.shape[1], dtype=one.dtype, device=one.device)
    difference = torch.empty_like(distance)
    for first, second in zip(one, other, strict=True):
        torch.sub(first[:, None], second, out=difference)
        if norm == 1:
            distance += difference.abs_()
        else:
            distance.addcmul_(difference, difference)
    if norm == 2:
        distance.sqrt_()
    a = distance.mul_(3 ** (-1 / norm)).clamp_(max=1).add_(_EPSILON)
    torch.sub(1 + 2 * _EPSILON, a, out=difference)
    return difference.div_(a).square_().add_(steepness).reciprocal_().mul_(2 * steepness).sub_(1)
