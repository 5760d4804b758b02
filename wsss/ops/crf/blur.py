"""Splat, blur and slice, compiled: for rows of channels, one for each point and one for each vertex or ghost."""

import numpy as np

from wsss.ops.crf.compiling import inlined, inner
from wsss.ops.crf.lanes import Vector, load, plus, plus_scaled, prefetch, store, width
from wsss.ops.crf.lattice import AHEAD, LAST, VERTICES, Lattice

F0, HALF = np.float32(0), np.float32(0.5)


@inner
def clear_strip(lattice: Lattice, channels: int | np.int64, value: np.ndarray, strip: int) -> None:
    """Set the rows of the strip to 0."""
    size, ghosts = lattice.rows[-1], lattice.ghost_rows
    for at in range(lattice.rows[strip] * channels, lattice.rows[strip + 1] * channels):
        value[at] = F0
    for at in range((size + ghosts[strip]) * channels, (size + ghosts[strip + 1]) * channels):
        value[at] = F0


@inner
def splat(
    zero: Vector, index: np.ndarray, weight: np.ndarray, first: np.int64, x: np.ndarray, channels: int, value: np.ndarray,
    begin: int, end: int,
) -> None:  # fmt: skip
    """Add weight * x to the rows `index` of each point's vertices, for the points begin..end; x only contains the rows of these points.

    Rows of `weight` begin with that of the point `first`.
    """
    for p in range(begin, end):
        for c in range(0, channels, width(zero)):
            lanes = load(zero, x, (p - begin) * channels + c)
            for r in range(index.shape[1]):
                at = np.intp(index[p, r]) * channels + c
                store(value, at, plus_scaled(load(zero, value, at), weight[p - first, r], lanes))


@inlined
def slice_lanes(
    zero: Vector,
    index: np.ndarray,
    weight: np.ndarray,
    first: np.int64,
    value: np.ndarray,
    channels: int,
    p: int,
    c: int,
) -> Vector:
    """Sum of weight * value over the rows `index` of the vertices of point p, for the lanes that begin at channel c; `first` as for `splat`."""
    lanes = zero
    for r in range(index.shape[1]):
        at = np.intp(index[p, r]) * channels + c
        lanes = plus_scaled(lanes, weight[p - first, r], load(zero, value, at))
    return lanes


@inlined
def _chunks(n: int) -> int:
    return (n + VERTICES - 1) // VERTICES


@inlined
def _gather_ghosts(zero: Vector, lattice: Lattice, channels: int, value: np.ndarray, chunk: int) -> None:
    """Add the ghosts of the chunk to their vertices, in the order of the strips."""
    ghosts = lattice.ghosts
    start, stop = chunk * VERTICES, min((chunk + 1) * VERTICES, len(ghosts))
    while 0 < start < len(ghosts) and ghosts[start, 0] == ghosts[start - 1, 0]:
        start += 1
    while stop < len(ghosts) and ghosts[stop, 0] == ghosts[stop - 1, 0]:
        stop += 1
    for g in range(start, stop):
        vertex, ghost = np.intp(ghosts[g, 0]) * channels, np.intp(ghosts[g, 1]) * channels
        for c in range(0, channels, width(zero)):
            store(value, vertex + c, plus(load(zero, value, vertex + c), load(zero, value, ghost + c)))


@inlined
def _scatter_ghosts(zero: Vector, lattice: Lattice, channels: int, value: np.ndarray, chunk: int) -> None:
    """Set the ghosts of the chunk to their vertices' values."""
    ghosts = lattice.ghosts
    for g in range(chunk * VERTICES, min((chunk + 1) * VERTICES, len(ghosts))):
        vertex, ghost = np.intp(ghosts[g, 0]) * channels, np.intp(ghosts[g, 1]) * channels
        for c in range(0, channels, width(zero)):
            store(value, ghost + c, load(zero, value, vertex + c))


@inner
def _blur(zero: Vector, lattice: Lattice, axis: int, channels: int, value: np.ndarray, chunk: int) -> None:
    """value[v] += (value[n1] + value[n2]) / 2, from the old values, for the chains that begin in the chunk."""
    chain, chained = lattice.chain[axis], lattice.chained[axis]
    start, stop = chunk * VERTICES, min((chunk + 1) * VERTICES, chained)
    while 0 < start < chained and chain[start - 1] & LAST == 0:
        start += 1
    while stop < chained and chain[stop - 1] & LAST == 0:
        stop += 1
    nowhere = (lattice.rows[-1] + lattice.ghost_rows[-1]) * channels
    for c in range(0, channels, width(zero)):
        before, half_before = zero, F0
        at = np.intp(chain[start] & ~LAST) * channels
        for e in range(start, stop):
            if width(zero) > 8:  # narrower rows mostly are in the cache
                prefetch(zero, value, np.intp(chain[e + AHEAD] & ~LAST) * channels + c)
            last = chain[e] & LAST
            following = np.intp(chain[e + 1] & ~LAST) * channels
            here = load(zero, value, at + c)
            blurred = plus_scaled(here, half_before, before)
            store(value, at + c, plus_scaled(blurred, HALF, load(zero, value, (nowhere if last else following) + c)))
            before, half_before, at = here, F0 if last else HALF, following


@inlined
def mix_chunks(lattice: Lattice, stage: int) -> int:
    """The number of chunks of a stage of `mix`; 0 if the lattice has no such stage."""
    axes = len(lattice.chained)
    if stage == 0 or stage == axes + 1:
        return _chunks(len(lattice.ghosts))
    return _chunks(lattice.chained[stage - 1]) if stage <= axes else 0


@inner
def mix(zero: Vector, lattice: Lattice, stage: int, channels: int, value: np.ndarray, chunk: int) -> None:
    """The stages between splat and slice: collect the ghosts, blur along each of the d + 1 axes, set the ghosts."""
    if stage == 0:
        _gather_ghosts(zero, lattice, channels, value, chunk)
    elif stage <= len(lattice.chained):
        _blur(zero, lattice, stage - 1, channels, value, chunk)
    else:
        _scatter_ghosts(zero, lattice, channels, value, chunk)
