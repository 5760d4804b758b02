"""The mean field with two Potts kernels, compiled for CPUs; `plain.mean_field` is the same in torch.

A row contains the labels of a pixel; the labels of each unary are padded to 2, 4 or a multiple of 8 lanes. Slice, softmax and splat process a
strip of the picture in blocks of pixels, so that these rows stay in the first-level cache. Rows of the whole picture are never stored.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss.arrays import Float32
from wsss.ops.crf.blur import clear_strip, mix, mix_chunks, slice_lanes, splat
from wsss.ops.crf.compiling import entry, inlined, inner
from wsss.ops.crf.features import Features
from wsss.ops.crf.filters import PermutohedralFilter, fold_norm
from wsss.ops.crf.lanes import (
    V2,
    V4,
    V8,
    V24,
    Vector,
    exp_under,
    larger,
    largest,
    load,
    plus,
    plus_scaled,
    quotient,
    store,
    total,
    width,
)
from wsss.ops.crf.lattice import Block, Lattice, Weights, no_lattice, weights_of
from wsss.ops.crf.planes import addresses, read_plane, write_plane
from wsss.ops.crf.simplices import POINTS, Room, room_for, room_of
from wsss.ops.crf.threads import P0, Team, compile_entry, draw, finish, run_together, wait
from wsss.ops.crf.unary import bad_energy

F0 = np.float32(0)
CHECKED = 1 << 14  # pixels whose energies are checked together


class Kernel(NamedTuple):
    """One kernel of the field."""

    lattice: Lattice
    weights: Weights
    values: np.ndarray
    """float32; rows of vertices and ghosts, for an iteration and the previous one"""
    weight: np.float32
    """weight of its messages"""


class Layout(NamedTuple):
    """How the labels of all unaries are arranged in a row."""

    zero: Vector
    """vector of the width in which rows are filtered"""
    channels: int
    """number of lanes of a row"""
    starts: np.ndarray
    """int64 [unaries + 1]; first lane of each unary. The last is the first lane of the row's padding"""
    lanes: np.ndarray
    """int64 [labels]; the lane of each label of all unaries"""
    group: int
    """lanes of every unary, 2 or 4; or 8 if they are multiples of 8"""


class Field(NamedTuple):
    """The data that is constant during the iterations."""

    layout: Layout
    energies: np.ndarray
    """int64 [labels]; address of the energies of each label of all unaries"""
    qs: np.ndarray
    """int64 [labels]; where Q of each label is written. It may be where its energies are"""
    first: Kernel
    second: Kernel


class Space(NamedTuple):
    """Where each thread processes a block of pixels."""

    first: Room
    second: Room
    rows: np.ndarray
    """float32 [threads, POINTS * channels + 8]; the softmax processes 8 lanes at a time"""


def potts_mean_field(
    unaries: Sequence[Float32[np.ndarray, "_ n"]],
    kernels: tuple[tuple[PermutohedralFilter, float], tuple[PermutohedralFilter, float]],
    iterations: int,
    *,
    threads: int = 1,
    overwrite: bool = False,
) -> list[Float32[np.ndarray, "_ n"]]:
    """Q <- softmax(-U + w_1 K_1 Q + w_2 K_2 Q), iterated from softmax(-U), for unaries that share kernels but no labels.

    Args:
        unaries: energies U, one row per label.
        kernels: two (K, w), with K normalised symmetrically.
        iterations: number of updates.
        threads: number of threads.
        overwrite: write Q to the memory of the unaries.

    Raises:
        BadInput: a point has NaN, -inf or no finite energy.
    """
    layout, n = _layout([len(unary) for unary in unaries]), unaries[0].shape[1]
    unaries = [np.ascontiguousarray(unary) for unary in unaries]
    for unary in unaries:
        faults = np.zeros(-(-n // CHECKED), np.uint8)
        run_together(_find_faults, 1, threads, unary, faults)
        if faults.any():
            raise bad_energy()

    first, second = (
        Kernel(kernel.lattice, kernel.weights, kernel.values(layout.channels, 2), np.float32(weight) * kernel.alpha)
        for kernel, weight in kernels
    )
    qs = unaries if overwrite else [np.empty(unary.shape, np.float32) for unary in unaries]
    energies, results = (np.concatenate([addresses(array) for array in arrays]) for arrays in (unaries, qs))
    phases = 1 + iterations * (3 + max(len(first.lattice.chained), len(second.lattice.chained)))
    space = Space(
        room_for(len(first.lattice.chained), threads),
        room_for(len(second.lattice.chained), threads),
        np.zeros((threads, POINTS * layout.channels + 8), np.float32),
    )
    field = Field(layout, energies, results, first, second)
    run_together(_mean_field, phases, threads, (V2, V4, V8), field, space, iterations)
    return qs


def compile_for(labels: Sequence[int], features: Features) -> int:
    """Compile the mean field for unaries with these numbers of labels, without running it.

    Args:
        labels: number of labels of each unary.
        features: of any picture.

    Returns:
        The width of the vectors in which rows are filtered.
    """
    layout, (lattice, weights) = _layout(labels), no_lattice(features)
    kernel = Kernel(lattice, weights, np.empty(0, np.float32), F0)
    some = np.empty(0, np.int64)
    room = room_for(1, 1)
    space = Space(room, room, np.empty((1, 0), np.float32))
    compile_entry(_find_faults, np.empty((0, 0), np.float32), np.empty(0, np.uint8))
    compile_entry(_mean_field, (V2, V4, V8), Field(layout, some, some, kernel, kernel), space, 1)
    return row_width(labels)


def row_width(labels: Sequence[int]) -> int:
    """The width of the vectors in which rows are filtered, for unaries with these numbers of labels."""
    return _layout(labels).zero.lanes.n


def row_lanes(labels: Sequence[int]) -> int:
    """The number of lanes of a row, for unaries with these numbers of labels."""
    return _layout(labels).channels


def _layout(labels: Sequence[int]) -> Layout:
    group = 2 if max(labels) == 2 else 4 if max(labels) <= 4 else 8
    starts = np.cumsum([0, *(-(-count // group) * group for count in labels)])
    of_labels = np.concatenate([start + np.arange(count) for start, count in zip(starts[:-1], labels, strict=True)])
    used = int(starts[-1])
    lanes = 4 if used <= 4 else 24 if -(-used // 24) * 24 * 3 <= used * 4 else 8  # 24, if a quarter at most is padding
    channels = -(-used // lanes) * lanes
    return Layout({4: V4, 8: V8, 24: V24}[lanes], channels, starts, of_labels, group)


@entry
def _find_faults(team: Team, unary: np.ndarray, faults: np.ndarray) -> None:
    """Mark the parts of the picture with an energy that is NaN or -inf, or a pixel without a finite one."""
    labels, n = unary.shape
    while True:
        chunk = draw(team, P0, len(faults))
        if chunk < 0:
            break
        for p in range(chunk * CHECKED, min((chunk + 1) * CHECKED, n)):
            lowest = np.float32(np.inf)
            for label in range(labels):
                energy = unary[label, p]
                if not energy > -np.inf:
                    faults[chunk] = 1
                lowest = min(lowest, energy)
            if lowest == np.inf:
                faults[chunk] = 1
        finish(team, P0)
    wait(team, P0, len(faults))


@inner
def _read_block(layout: Layout, energies: np.ndarray, begin: int, end: int, rows: np.ndarray) -> None:
    """Write -U of the pixels begin..end to their rows: -inf in padding lanes of a unary, and 0 in those of the row."""
    channels, used = layout.channels, layout.starts[-1]
    if len(energies) < channels:
        for p in range(end - begin):
            for c in range(channels):
                rows[p * channels + c] = -np.inf if c < used else F0
    for label in range(len(energies)):
        address, lane = energies[label], layout.lanes[label]
        for p in range(begin, end):
            rows[(p - begin) * channels + lane] = -read_plane(address, p)


@inner
def _write_block(layout: Layout, qs: np.ndarray, begin: int, end: int, rows: np.ndarray) -> None:
    """Write the rows of the pixels begin..end as their Q."""
    channels = layout.channels
    for label in range(len(qs)):
        address, lane = qs[label], layout.lanes[label]
        for p in range(begin, end):
            write_plane(address, p, rows[(p - begin) * channels + lane])


@inlined
def _softmax_lanes(eight: Vector, group: Vector, rows: np.ndarray, start: int, stop: int) -> None:
    """Softmax in place over rows[start:stop], or over each group of 2 or 4 lanes in 8."""
    top = load(eight, rows, start)
    for c in range(start + 8, stop, 8):
        top = larger(top, load(eight, rows, c))
    top = largest(top, group)
    sums = eight
    for c in range(start, stop, 8):
        power = exp_under(load(eight, rows, c), top)
        sums = plus(sums, power)
        store(rows, c, power)
    sums = total(sums, group)
    for c in range(start, stop, 8):
        store(rows, c, quotient(load(eight, rows, c), sums))


@inner
def _normalise(groups: tuple[Vector, Vector, Vector], layout: Layout, rows: np.ndarray, n: int) -> None:
    """Softmax of each unary's lanes, for n pixels."""
    channels, starts = layout.channels, layout.starts
    two, four, eight = groups
    if layout.group == 2:
        for at in range(0, n * channels, 8):
            _softmax_lanes(eight, two, rows, at, at + 8)
    elif layout.group == 4:
        for at in range(0, n * channels, 8):
            _softmax_lanes(eight, four, rows, at, at + 8)
    else:
        for p in range(n):
            for i in range(len(starts) - 1):
                _softmax_lanes(eight, eight, rows, p * channels + starts[i], p * channels + starts[i + 1])


@inlined
def _half(values: np.ndarray, iteration: int) -> np.ndarray:
    """The rows of an iteration; they are overwritten by the iteration after the next."""
    half = len(values) // 2
    return values[(iteration % 2) * half : (iteration % 2 + 1) * half]


@inner
def _add_messages(
    layout: Layout, weights: tuple[np.float32, np.float32], begin: int, end: int, index: tuple[np.ndarray, np.ndarray],
    of: tuple[Block, Block], values: tuple[np.ndarray, np.ndarray], rows: np.ndarray,
) -> None:  # fmt: skip
    """Add the messages of both kernels, from the values of the previous iteration, to the rows of the pixels begin..end."""
    zero, channels = layout.zero, layout.channels
    (a, b), (a_weight, b_weight), (a_value, b_value) = index, weights, values
    (of_a, a_start), (of_b, b_start) = of
    for p in range(begin, end):
        for c in range(0, channels, width(zero)):
            lanes = load(zero, rows, (p - begin) * channels + c)
            lanes = plus_scaled(lanes, a_weight, slice_lanes(zero, a, of_a, a_start, a_value, channels, p, c))
            lanes = plus_scaled(lanes, b_weight, slice_lanes(zero, b, of_b, b_start, b_value, channels, p, c))
            store(rows, (p - begin) * channels + c, lanes)


@entry
def _mean_field(team: Team, groups: tuple[Vector, Vector, Vector], field: Field, space: Space, iterations: int) -> None:
    """Write Q after `iterations` updates: in each, softmax and splat strip by strip, then the stages between splat and slice."""
    layout, first, second = field.layout, field.first, field.second
    zero, channels, a, b = layout.zero, layout.channels, first.lattice, second.lattice
    index, weights = (a.vertex, b.vertex), (first.weight, second.weight)
    points, strips = a.points, len(a.points) - 1
    a_room, b_room, rows = room_of(space.first, team.me), room_of(space.second, team.me), space.rows[team.me]
    stages = max(len(a.chained), len(b.chained)) + 2
    phase = 0
    for iteration in range(iterations + 1):
        a_value, b_value = _half(first.values, iteration), _half(second.values, iteration)
        before = (_half(first.values, iteration + 1), _half(second.values, iteration + 1))
        while True:
            strip = draw(team, phase, strips)
            if strip < 0:
                break
            if iteration < iterations:
                clear_strip(a, channels, a_value, strip)
                clear_strip(b, channels, b_value, strip)
            for begin in range(points[strip], points[strip + 1], POINTS):
                end = min(begin + POINTS, points[strip + 1])
                _read_block(layout, field.energies, begin, end, rows)
                of_a = weights_of(begin, end, first.weights, a_room)
                of_b = weights_of(begin, end, second.weights, b_room)
                if iteration > 0:
                    _add_messages(layout, weights, begin, end, index, (of_a, of_b), before, rows)
                _normalise(groups, layout, rows, end - begin)
                if iteration < iterations:
                    splat(zero, index[0], of_a[0], of_a[1], rows, channels, a_value, begin, end)
                    splat(zero, index[1], of_b[0], of_b[1], rows, channels, b_value, begin, end)
                else:
                    _write_block(layout, field.qs, begin, end, rows)
            finish(team, phase)
        wait(team, phase, strips)
        phase += 1
        if iteration < iterations:
            for stage in range(stages):
                of_first = mix_chunks(a, stage)
                chunks = of_first + mix_chunks(b, stage)
                while True:
                    chunk = draw(team, phase, chunks)
                    if chunk < 0:
                        break
                    if chunk < of_first:
                        mix(zero, a, stage, channels, a_value, chunk)
                    else:
                        mix(zero, b, stage, channels, b_value, chunk - of_first)
                    finish(team, phase)
                wait(team, phase, chunks)
                phase += 1


def is_compiled() -> bool:
    """Whether an earlier process has compiled the present source, and numba has kept the result."""
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    return all(_is_kept(kernel, newest) for kernel in (fold_norm, _mean_field))


def _is_kept(kernel: Any, newest: float) -> bool:
    function = kernel.py_func
    kept = Path(str(kernel.stats.cache_path)).glob(f"{Path(inspect.getfile(function)).stem}.{function.__name__}-*.nbi")
    return any(path.stat().st_mtime >= newest for path in kept)
