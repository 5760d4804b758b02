"""The mean field with two Potts kernels, compiled for CPUs; `plain.mean_field` is the same in torch.

A row contains the labels of a pixel; the labels of each unary are padded to a multiple of 4 or 8 lanes. Slice, softmax and splat process a
strip of the picture in blocks of pixels, so that these rows stay in the first-level cache.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from wsss.ops.crf.blur import clear_strip, mix, mix_chunks, slice_lanes, splat
from wsss.ops.crf.compiling import entry, inlined, inner
from wsss.ops.crf.filters import PermutohedralFilter
from wsss.ops.crf.lanes import (
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
from wsss.ops.crf.lattice import Lattice
from wsss.ops.crf.threads import Team, draw, finish, run_together, wait
from wsss.ops.crf.unary import bad_energy

PACKED = 256  # pixels transposed together, so that their rows fit into the first-level cache
BLOCK = 64  # pixels whose logits, softmax and splat are computed together in the first-level cache


class Kernel(NamedTuple):
    """One kernel of the field."""

    lattice: Lattice
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
    narrow: bool
    """whether every unary has 4 lanes and not a multiple of 8"""


class Field(NamedTuple):
    """The data that is constant during the iterations."""

    layout: Layout
    logits: np.ndarray
    """float32 [pixels * channels]; -U, and -inf in padding lanes of a unary"""
    first: Kernel
    second: Kernel


def potts_mean_field(
    unaries: Sequence[Float32[np.ndarray, "_ n"]],
    kernels: tuple[tuple[PermutohedralFilter, float], tuple[PermutohedralFilter, float]],
    iterations: int,
    *,
    threads: int = 1,
) -> list[Float32[np.ndarray, "_ n"]]:
    """Q <- softmax(-U + w_1 K_1 Q + w_2 K_2 Q), iterated from softmax(-U), for unaries that share kernels but no labels.

    Args:
        unaries: energies U, one row per label.
        kernels: two (K, w), with K normalised symmetrically.
        iterations: number of updates.
        threads: number of threads.

    Raises:
        BadInput: a point has NaN, -inf or no finite energy.
    """
    layout, n = _layout([len(unary) for unary in unaries]), unaries[0].shape[1]
    channels, starts = layout.channels, layout.starts
    logits, rows = np.empty(n * channels, np.float32), np.empty(n * channels, np.float32)
    logits.reshape(n, channels)[:, starts[-1] :] = 0
    for unary, start, stop in zip(unaries, starts[:-1], starts[1:], strict=True):
        faults = np.zeros(-(-n // PACKED), np.uint8)
        run_together(_pack, 1, threads, np.ascontiguousarray(unary), logits, channels, start, stop, faults)
        if faults.any():
            raise bad_energy()

    first, second = (
        Kernel(kernel.lattice, kernel.values(channels, 2), np.float32(weight) * kernel.alpha)
        for kernel, weight in kernels
    )
    phases = 1 + iterations * (3 + max(len(first.lattice.chained), len(second.lattice.chained)))
    run_together(_mean_field, phases, threads, V4, V8, Field(layout, logits, first, second), iterations, rows)

    qs = [np.empty(unary.shape, np.float32) for unary in unaries]
    for q, start in zip(qs, starts[:-1], strict=True):
        run_together(_unpack, 1, threads, rows, channels, start, q)
    return qs


def _layout(labels: Sequence[int]) -> Layout:
    narrow = all(count <= 4 for count in labels)
    group = 4 if narrow else 8
    starts = np.cumsum([0, *(-(-count // group) * group for count in labels)])
    used = int(starts[-1])
    lanes = 4 if used == 4 else 24 if -(-used // 24) * 24 * 3 <= used * 4 else 8  # 24, if a quarter at most is padding
    return Layout({4: V4, 8: V8, 24: V24}[lanes], -(-used // lanes) * lanes, starts, narrow)


@entry
def _pack(
    team: Team, unary: np.ndarray, logits: np.ndarray, channels: int, start: int, stop: int, faults: np.ndarray
) -> None:
    """Write -U of each pixel to the lanes of its row that begin at `start`, and -inf to the remaining lanes up to `stop`."""
    labels, n = unary.shape
    chunks = (n + PACKED - 1) // PACKED
    lowest = np.empty(PACKED, np.float32)
    while True:
        chunk = draw(team, 0, chunks)
        if chunk < 0:
            break
        first, last = chunk * PACKED, min((chunk + 1) * PACKED, n)
        lowest[:] = np.inf
        for label in range(labels):
            for p in range(first, last):
                energy = unary[label, p]
                if not energy > -np.inf:
                    faults[chunk] = 1
                lowest[p - first] = min(lowest[p - first], energy)
                logits[p * channels + start + label] = -energy
        for p in range(first, last):
            if lowest[p - first] == np.inf:
                faults[chunk] = 1
            for c in range(start + labels, stop):
                logits[p * channels + c] = -np.inf
        finish(team, 0)
    wait(team, 0, chunks)


@entry
def _unpack(team: Team, rows: np.ndarray, channels: int, start: int, q: np.ndarray) -> None:
    labels, n = q.shape
    chunks = (n + PACKED - 1) // PACKED
    while True:
        chunk = draw(team, 0, chunks)
        if chunk < 0:
            break
        for label in range(labels):
            for p in range(chunk * PACKED, min((chunk + 1) * PACKED, n)):
                q[label, p] = rows[p * channels + start + label]
        finish(team, 0)
    wait(team, 0, chunks)


@inlined
def _softmax_lanes(eight: Vector, group: Vector, rows: np.ndarray, start: int, stop: int) -> None:
    """Softmax in place over rows[start:stop], or over each group of 4 lanes in 8."""
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
def _normalise(four: Vector, eight: Vector, layout: Layout, rows: np.ndarray, n: int) -> None:
    """Softmax of each unary's lanes, for n pixels."""
    channels, starts = layout.channels, layout.starts
    if layout.narrow:
        for at in range(0, n * channels, 8):
            _softmax_lanes(eight, four, rows, at, at + 8)
    else:
        for p in range(n):
            for i in range(len(starts) - 1):
                _softmax_lanes(eight, eight, rows, p * channels + starts[i], p * channels + starts[i + 1])


@inner
def _values(kernel: Kernel, iteration: int) -> np.ndarray:
    """The rows of an iteration; they are overwritten by the iteration after the next."""
    half = len(kernel.values) // 2
    return kernel.values[(iteration % 2) * half : (iteration % 2 + 1) * half]


@inner
def _logits(field: Field, iteration: int, begin: int, end: int, rows: np.ndarray) -> None:
    """-U + the messages of both kernels from the previous iteration, for the pixels begin..end."""
    zero, channels = field.layout.zero, field.layout.channels
    a, a_weight, a_value = field.first.lattice, field.first.weight, _values(field.first, iteration - 1)
    b, b_weight, b_value = field.second.lattice, field.second.weight, _values(field.second, iteration - 1)
    for p in range(begin, end):
        for c in range(0, channels, width(zero)):
            lanes = load(zero, field.logits, p * channels + c)
            lanes = plus_scaled(lanes, a_weight, slice_lanes(zero, a, a_value, channels, p, c))
            lanes = plus_scaled(lanes, b_weight, slice_lanes(zero, b, b_value, channels, p, c))
            store(rows, (p - begin) * channels + c, lanes)


@inner
def _splat_block(field: Field, iteration: int, begin: int, end: int, rows: np.ndarray) -> None:
    zero, channels = field.layout.zero, field.layout.channels
    splat(zero, field.first.lattice, rows, channels, _values(field.first, iteration), begin, end)
    splat(zero, field.second.lattice, rows, channels, _values(field.second, iteration), begin, end)


@inner
def _mix_chunk(field: Field, iteration: int, stage: int, chunk: int) -> None:
    zero, channels, of_first = field.layout.zero, field.layout.channels, mix_chunks(field.first.lattice, stage)
    if chunk < of_first:
        mix(zero, field.first.lattice, stage, channels, _values(field.first, iteration), chunk)
    else:
        mix(zero, field.second.lattice, stage, channels, _values(field.second, iteration), chunk - of_first)


@entry
def _mean_field(team: Team, four: Vector, eight: Vector, field: Field, iterations: int, q: np.ndarray) -> None:
    """q = Q after `iterations` updates: in each, softmax and splat strip by strip, then the stages between splat and slice."""
    a, b, channels = field.first.lattice, field.second.lattice, field.layout.channels
    strips = len(a.points) - 1
    rows = np.zeros(BLOCK * channels + 8, np.float32)  # the softmax processes 8 lanes at a time
    stages = max(len(a.chained), len(b.chained)) + 2
    phase = 0
    for iteration in range(iterations + 1):
        while True:
            strip = draw(team, phase, strips)
            if strip < 0:
                break
            if iteration < iterations:
                clear_strip(a, channels, _values(field.first, iteration), strip)
                clear_strip(b, channels, _values(field.second, iteration), strip)
            for begin in range(a.points[strip], a.points[strip + 1], BLOCK):
                end = min(begin + BLOCK, a.points[strip + 1])
                if iteration == 0:
                    for i in range((end - begin) * channels):
                        rows[i] = field.logits[begin * channels + i]
                else:
                    _logits(field, iteration, begin, end, rows)
                _normalise(four, eight, field.layout, rows, end - begin)
                if iteration < iterations:
                    _splat_block(field, iteration, begin, end, rows)
                else:
                    for i in range((end - begin) * channels):
                        q[begin * channels + i] = rows[i]
            finish(team, phase)
        wait(team, phase, strips)
        phase += 1
        if iteration < iterations:
            for stage in range(stages):
                chunks = mix_chunks(a, stage) + mix_chunks(b, stage)
                while True:
                    chunk = draw(team, phase, chunks)
                    if chunk < 0:
                        break
                    _mix_chunk(field, iteration, stage, chunk)
                    finish(team, phase)
                wait(team, phase, chunks)
                phase += 1


def is_compiled() -> bool:
    """Whether an earlier process has compiled the present source, and numba has kept the result."""
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    kept = Path(str(_mean_field.stats.cache_path)).glob(f"field.{_mean_field.py_func.__name__}-*.nbi")
    return any(path.stat().st_mtime >= newest for path in kept)
