"""Pairs of neighbouring cells: their affinities and whether their labels agree (PSA, Ahn and Kwak, CVPR 2018; IRNet,
Ahn et al., CVPR 2019).

A direction (dy, dx) pairs every source cell (y, x) with (y + dy, x + dx). Two sets of sources are used:

- training uses the sources whose partners in all directions lie on the map. With f = radius - 1 these are rows below h - f, columns
  from f to below w - f. Arrays are (b, d, s), with s = (h - f) (w - 2 f) sources in row-major order;
- random walks use planes (d, h, w): planes[k, y, x] is the affinity of (y, x) and its partner in direction k, and 0
  if there is none.

All computations use shifted slices: there are no index arrays, and no array of all cells of all paths.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsss.arrays import Bool, Float, Integer, Shaped
from wsss.errors import BadInput, check_range

Cell = tuple[int, int]
Cells = tuple[Cell, ...]

# paths are cut into pieces of four cells, since paths with similar slopes share the same pieces: the 2134 cells of
# radius 10 are 572 pieces with 33 shapes
_PIECE = 4


class PairLabels(NamedTuple):
    """The kind of each pair: both background, same class, or different labels; pairs with an invalid label are in none of the three."""

    bg_pos: Bool[Tensor, "b d s"]
    fg_pos: Bool[Tensor, "b d s"]
    neg: Bool[Tensor, "b d s"]


@cache
def directions(radius: int) -> Cells:
    """The (dy, dx) shorter than `radius` that cover each pair once: to the right, then row by row below.

    Raises:
        BadInput: `radius` is below 2.
    """
    check_range("radius of the pairs", radius, 2)
    below = ((dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dy**2 + dx**2 < radius**2)
    return (*((0, dx) for dx in range(1, radius)), *below)


def paths(radius: int) -> tuple[Cells, ...]:
    """The cells (y, x) on the path of each direction, relative to the source: the destination first, the source last.

    These are the cells between both ends whose centres are less than one cell away from the line.
    """
    return tuple(_path(direction) for direction in directions(radius))


@cache
def _path(direction: Cell) -> Cells:
    dy, dx = direction
    box = ((y, x) for y in range(dy + 1) for x in range(min(0, dx), max(0, dx) + 1))
    near = (cell for cell in box if (dy * cell[1] - dx * cell[0]) ** 2 < dy**2 + dx**2)
    return tuple(sorted(near, key=lambda cell: -cell[0] - abs(cell[1])))


def at_sources(maps: Shaped[Tensor, "*c h w"], radius: int) -> Shaped[Tensor, "*c s"]:
    """The values of maps at the sources used in training.

    Raises:
        BadInput: the map is too small to have any sources.
    """
    return maps[..., *_sources(maps, radius)].flatten(-2)


def at_destinations(
    maps: Shaped[Tensor, "*c h w"], radius: int, directions: Sequence[Cell]
) -> Shaped[Tensor, "*c d s"]:
    """The values of maps at the partners of these sources, for each direction.

    Raises:
        BadInput: the map is too small to have any sources.
    """
    corner, size = (0, radius - 1), _source_size(maps, radius)
    return torch.stack([_window(maps, _plus(corner, step), size).flatten(-2) for step in directions], -2)


def pair_labels(labels: Integer[Tensor, "b h w"], radius: int, directions: Sequence[Cell], n_labels: int) -> PairLabels:
    """Which pairs have equal and which have different labels, for the sources used in training.

    Args:
        labels: 0 background, 255 unknown.
        radius: of the pairs.
        directions: from the sources to their partners.
        n_labels: this label and those above are invalid: the number of classes and background in IRNet, 255 in PSA.

    Raises:
        BadInput: the map is too small for the radius.
    """
    source = at_sources(labels, radius)[..., None, :]
    destination = at_destinations(labels, radius, directions)
    valid = (source < n_labels) & (destination < n_labels)
    same = (source == destination) & valid
    return PairLabels(same & (source == 0), same & (source > 0), valid & ~same)


def path_affinity(edge: Float[Tensor, "b h w"], radius: int, directions: Sequence[Cell]) -> Float[Tensor, "b d s"]:
    """IRNet's affinity of pairs, a = 1 - max of the edge map over the path, for the sources used in training.

    As published, the gradient of a goes to the first maximum on the path.

    Args:
        edge: in [0, 1].
        radius: of the pairs.
        directions: some or all of those of `radius`, in any order.

    Raises:
        BadInput: the map is too small for the radius.
    """
    _source_size(edge, radius)
    return 1 - _PathMaximum.apply(edge, radius, tuple(directions))


def path_affinity_planes(edge: Float[Tensor, "h w"], radius: int) -> Float[Tensor, "d h w"]:
    """IRNet's affinity of all pairs of a map, in the order of `directions`.

    Args:
        edge: in [0, 1].
    """
    # edges of 1 around the map: paths that leave it have affinity 0, and all other paths stay inside
    padded = F.pad(edge, _surround(radius), value=1.0)
    return path_affinity(padded[None], radius, directions(radius))[0].unflatten(-1, edge.shape)


def feature_affinity(features: Float[Tensor, "b c h w"], radius: int) -> Float[Tensor, "b d s"]:
    """PSA's affinity of pairs, a_ij = exp(-mean over channels of |x_i - x_j|), for the sources used in training.

    In the order of `directions`. Needs one additional array of the size of the features, also for the gradient.

    Raises:
        BadInput: the map is too small for the radius.
    """
    _source_size(features, radius)
    return _FeatureAffinity.apply(features, radius)


def feature_affinity_planes(
    features: Float[Tensor, "c h w"], radius: int, *, pad_border: bool = False
) -> Float[Tensor, "d h w"]:
    """PSA's affinity of the pairs of a map, in the order of `directions`.

    Args:
        features: of the cells.
        radius: of the pairs.
        pad_border: include all pairs of the map. Off, as published: only those of the sources used in training, so cells at the
            border have few links, and some in the corners none.

    Raises:
        BadInput: the map is too small for the radius, and the border is not padded.
    """
    if pad_border:
        # infinite distance to every cell: affinity 0
        padded = F.pad(features, _surround(radius), value=torch.inf)
        return feature_affinity(padded[None], radius)[0].unflatten(-1, features.shape[-2:])
    planes = features.new_zeros(len(directions(radius)), *features.shape[-2:])
    sources = planes[:, *_sources(features, radius)]
    sources.copy_(feature_affinity(features[None], radius)[0].view_as(sources))
    return planes


def _surround(radius: int) -> tuple[int, int, int, int]:
    """Padding after which the sources used in training cover the original map."""
    return radius - 1, radius - 1, 0, radius - 1


def _source_size(maps: Tensor, radius: int) -> Cell:
    height, width = maps.shape[-2:]
    size = height - radius + 1, width - 2 * (radius - 1)
    if min(size) < 1:
        raise BadInput(
            "map of pairs",
            f"{height} x {width} cells",
            f"at least {radius} x {2 * radius - 1} for radius {radius}",
            "Use larger pictures or crops, or a smaller radius.",
        )
    return size


def _sources(maps: Tensor, radius: int) -> tuple[slice, slice]:
    rows, columns = _source_size(maps, radius)
    return slice(rows), slice(radius - 1, radius - 1 + columns)


def _window(maps: Tensor, corner: Cell, size: Cell | torch.Size) -> Tensor:
    return maps[..., corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]


def _plus(a: Cell, b: Cell) -> Cell:
    return a[0] + b[0], a[1] + b[1]


def _boxed(cells: Cells) -> tuple[Cell, Cells]:
    """The upper left corner of the cells' bounding box, and the cells relative to it."""
    top, left = min(y for y, _ in cells), min(x for _, x in cells)
    return (top, left), tuple((y - top, x - left) for y, x in cells)


@cache
def _pieces(direction: Cell) -> tuple[tuple[Cell, Cells], ...]:
    """The corner and the shape of each piece of a path, in order."""
    path = _path(direction)
    return tuple(_boxed(path[start : start + _PIECE]) for start in range(0, len(path), _PIECE))


@cache
def _halves(shape: Cells) -> tuple[tuple[Cell, Cells], tuple[Cell, Cells]]:
    middle = (len(shape) + 1) // 2
    return _boxed(shape[:middle]), _boxed(shape[middle:])


@cache
def _shapes(directions: Cells) -> tuple[Cells, ...]:
    """All shapes of the pieces and of their halves, each after its own halves."""
    found: set[Cells] = set()
    waiting = [shape for direction in directions for _, shape in _pieces(direction)]
    while waiting:
        shape = waiting.pop()
        if shape not in found:
            found.add(shape)
            waiting += [half for _, half in _halves(shape)] if len(shape) > 1 else []
    return tuple(sorted(found, key=lambda shape: (len(shape), shape)))


def _maxima(edge: Tensor, directions: Cells) -> dict[Cells, Tensor]:
    """For each shape, the maximum over its cells, (b, rows, columns), at all positions where it fits into the map."""
    height, width = edge.shape[-2:]
    maxima: dict[Cells, Tensor] = {}
    for shape in _shapes(directions):
        size = height - max(y for y, _ in shape), width - max(x for _, x in shape)
        if len(shape) == 1:
            maxima[shape] = edge
            continue
        parts = [_window(maxima[half], corner, size) for corner, half in _halves(shape)]
        maxima[shape] = torch.maximum(*parts)
    return maxima


class _PathMaximum(torch.autograd.Function):
    """The maximum over the path of each pair, (b, d, s); its gradient goes to the first maximum."""

    @staticmethod
    def forward(context: Any, edge: Tensor, radius: int, directions: Cells) -> Tensor:
        corner, size = (0, radius - 1), _source_size(edge, radius)
        maxima = _maxima(edge, directions)
        out = edge.new_empty(len(edge), len(directions), *size)
        for position, direction in enumerate(directions):
            best = out[:, position]
            first, *others = (_window(maxima[shape], _plus(corner, at), size) for at, shape in _pieces(direction))
            best.copy_(first)
            for piece in others:
                torch.maximum(best, piece, out=best)
        context.save_for_backward(edge, out)
        context.radius, context.directions = radius, directions
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        edge, maximum = context.saved_tensors
        corner, size = (0, context.radius - 1), maximum.shape[-2:]
        maxima = _maxima(edge, context.directions)
        into = {shape: torch.zeros_like(value) for shape, value in maxima.items()}
        share = torch.empty_like(maximum[:, 0])
        for position, direction in enumerate(context.directions):
            rest = gradients[0][:, position].unflatten(-1, size).clone()
            *others, (at, shape) = _pieces(direction)
            for other, its_shape in others:
                # in floating point, since converting booleans is slow on CPUs
                piece = _window(maxima[its_shape], _plus(corner, other), size)
                torch.eq(piece, maximum[:, position], out=share).mul_(rest)
                _window(into[its_shape], _plus(corner, other), size).add_(share)
                rest.sub_(share)
            _window(into[shape], _plus(corner, at), size).add_(rest)
        for shape in reversed(maxima):
            if len(shape) > 1:
                (one, first), (two, second) = _halves(shape)
                size = maxima[shape].shape[-2:]
                share = torch.empty_like(maxima[shape])
                torch.eq(_window(maxima[first], one, size), maxima[shape], out=share).mul_(into[shape])
                _window(into[first], one, size).add_(share)
                _window(into[second], two, size).add_(into[shape].sub_(share))
        return into[((0, 0),)], None, None


class _FeatureAffinity(torch.autograd.Function):
    """exp(-mean |x_i - x_j|), (b, d, s), one direction at a time, forward and backward."""

    @staticmethod
    def forward(context: Any, features: Tensor, radius: int) -> Tensor:
        corner, size = (0, radius - 1), _source_size(features, radius)
        source = _window(features, corner, size)
        out = features.new_empty(len(features), len(directions(radius)), *size)
        difference = torch.empty_like(source, memory_format=torch.contiguous_format)
        for position, direction in enumerate(directions(radius)):
            torch.sub(source, _window(features, _plus(corner, direction), size), out=difference)
            torch.mean(difference.abs_(), 1, out=out[:, position])
        out.neg_().exp_()
        context.save_for_backward(features, out)
        context.radius = radius
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        features, affinity = context.saved_tensors
        corner, size = (0, context.radius - 1), affinity.shape[-2:]
        source = _window(features, corner, size)
        into = torch.zeros_like(features)
        into_source = _window(into, corner, size)
        scale = gradients[0].unflatten(-1, size) * affinity / -features.shape[1]
        difference = torch.empty_like(source, memory_format=torch.contiguous_format)
        for position, direction in enumerate(directions(context.radius)):
            torch.sub(source, _window(features, _plus(corner, direction), size), out=difference)
            difference.sign_().mul_(scale[:, position, None])
            into_source += difference
            _window(into, _plus(corner, direction), size).sub_(difference)
        return into, None
