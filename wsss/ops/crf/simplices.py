"""The simplices of many points at once, compiled; `plain.simplices` explains the steps."""

from typing import NamedTuple

import numpy as np

from wsss.ops.crf.compiling import inlined, inner
from wsss.ops.crf.features import Features
from wsss.ops.crf.keys import Basis
from wsss.ops.crf.lanes import ROUND

POINTS = (
    64  # points whose simplices are found at once, also if fewer are needed: loops of a fixed length compile to vectors
)

F0, F1 = np.float32(0), np.float32(1)


class Room(NamedTuple):
    """Arrays for `POINTS` points, coordinate by coordinate; after the last points of a picture, those of a block before or zeros follow.

    In Python, each array has one more dimension, for threads.
    """

    feature: np.ndarray
    """float32 [d, POINTS]"""
    elevated: np.ndarray
    """float32 [d + 1, POINTS]"""
    nearest: np.ndarray
    """float32 [d + 1, POINTS]; a vertex whose coordinates are multiples of d + 1, in units of d + 1"""
    offset: np.ndarray
    """float32 [d + 1, POINTS]"""
    total: np.ndarray
    """float32 [POINTS]; sum of `nearest`"""
    rank: np.ndarray
    """int32 [d + 1, POINTS]"""
    by_rank: np.ndarray
    """float32 [d + 1, POINTS]; the offsets in the order of their ranks"""
    factor: np.ndarray
    """float32 [POINTS]; multiplies the weights of each point; 1 unless set"""
    step_by_rank: np.ndarray
    """int64 [d + 1]; of one point"""
    key: np.ndarray
    """int64 [POINTS * (d + 1)]; of the vertices around each point"""
    weight: np.ndarray
    """float32 [POINTS, d + 1]; where `lattice.weights_of` computes them"""


def room_for(axes: int, threads: int) -> Room:
    """Arrays for points with this number of coordinates, for each of the threads."""
    elevated, nearest, offset, by_rank = np.empty((4, threads, axes, POINTS), np.float32)
    return Room(
        np.zeros((threads, axes - 1, POINTS), np.float32),
        elevated,
        nearest,
        offset,
        np.empty((threads, POINTS), np.float32),
        np.empty((threads, axes, POINTS), np.int32),
        by_rank,
        np.ones((threads, POINTS), np.float32),
        np.empty((threads, axes), np.int64),
        np.empty((threads, POINTS * axes), np.int64),
        np.empty((threads, POINTS, axes), np.float32),
    )


@inlined
def room_of(rooms: Room, thread: int) -> Room:
    """The arrays of a thread."""
    return Room(
        rooms.feature[thread],
        rooms.elevated[thread],
        rooms.nearest[thread],
        rooms.offset[thread],
        rooms.total[thread],
        rooms.rank[thread],
        rooms.by_rank[thread],
        rooms.factor[thread],
        rooms.step_by_rank[thread],
        rooms.key[thread],
        rooms.weight[thread],
    )


@inner
def place(features: Features, basis: Basis, start: int, n: int, room: Room) -> None:
    """Find the simplices around the points start..start + n, n <= POINTS, as `nearest`, `offset` and `rank` of the room.

    All in float32 and in the published order of operations: which vertices exist hangs on the last bit.
    """
    _find_features(features, start, n, room.feature)
    _elevate(basis.scale, room)
    _rank(room)


@inlined
def find_keys(basis: Basis, n: int, room: Room) -> None:
    """Fill the room's `key` for each of the n points that were placed."""
    step, step_by_rank, key = basis.step, room.step_by_rank, room.key
    d = len(step) - 1
    for k in range(n):
        vertex = np.int64(0)
        for j in range(d + 1):
            step_by_rank[np.uint32(room.rank[j, k])] = step[j]
            vertex += np.int64(room.nearest[j, k]) * step[j]
        key[k * (d + 1)] = vertex
        for i in range(1, d + 1):
            vertex -= step_by_rank[d + 1 - i]
            key[k * (d + 1) + i] = vertex


@inner
def find_weights(n: int, room: Room, weight: np.ndarray) -> None:
    """Fill `weight`, float32 [n, d + 1], for each of the n points that were placed: the barycentric weights of its vertices, times `factor`."""
    d = weight.shape[1] - 1
    for k in range(n):
        for j in range(d + 1):
            room.by_rank[np.uint32(room.rank[j, k]), k] = room.offset[j, k]
    last, first, factor, total = room.by_rank[d], room.by_rank[0], room.factor, room.total
    for k in range(POINTS):
        total[k] = (last[k] + (F1 - first[k])) * factor[k]
    for r in range(d, 0, -1):
        here, before = room.by_rank[r], room.by_rank[r - 1]
        for k in range(POINTS):
            here[k] = (before[k] - here[k]) * factor[k]
    for k in range(n):
        weight[k, 0] = total[k]
    for i in range(1, d + 1):
        here = room.by_rank[d + 1 - i]
        for k in range(n):
            weight[k, i] = here[k]


@inlined
def _find_features(features: Features, start: int, n: int, feature: np.ndarray) -> None:
    """Fill `feature`, float32 [d, n], with those of the points start..start + n."""
    row = 0
    if features.width > 0:
        x, y = start % features.width, start // features.width
        for k in range(n):
            feature[0, k] = np.float32(x)
            feature[1, k] = np.float32(y)
            x += 1
            if x == features.width:
                x, y = 0, y + 1
        row = 2
    for c in range(features.colours.shape[1]):
        here = feature[row + c]
        for k in range(n):
            here[k] = np.float32(features.colours[start + k, c])
    for f in range(len(features.deviations)):
        here, deviation = feature[f], features.deviations[f]
        for k in range(POINTS):
            here[k] /= deviation
    row = len(features.deviations)
    for f in range(features.given.shape[0]):
        here, given = feature[row + f], features.given[f, start:]
        for k in range(n):
            here[k] = given[k]


@inlined
def _elevate(scale: np.ndarray, room: Room) -> None:
    """The d + 1 coordinates of each point, which sum to 0."""
    d, elevated = len(scale), room.elevated
    above = elevated[0]
    for k in range(POINTS):
        above[k] = F0
    for j in range(d, 0, -1):
        here, column, scale_j, factor = elevated[j], room.feature[j - 1], scale[j - 1], np.float32(j)
        for k in range(POINTS):
            c = column[k] * scale_j
            here[k] = above[k] - factor * c
            above[k] += c


@inlined
def _rank(room: Room) -> None:
    """The vertex with coordinates that are multiples of d + 1 nearest to each point, the way to it, and the ranks of its coordinates."""
    elevated, nearest, offset, total, rank = room.elevated, room.nearest, room.offset, room.total, room.rank
    d = len(elevated) - 1
    size, inverse = np.float32(d + 1), F1 / np.float32(d + 1)
    for k in range(POINTS):
        total[k] = F0
    for j in range(d + 1):
        here, nearest_j, offset_j = elevated[j], nearest[j], offset[j]
        for k in range(POINTS):
            v = (here[k] * inverse + ROUND) - ROUND
            nearest_j[k] = v
            offset_j[k] = here[k] - v * size
            total[k] += v
    rank[:] = 0
    for i in range(d):
        rank_i, offset_i = rank[i], offset[i]
        for j in range(i + 1, d + 1):
            rank_j, offset_j = rank[j], offset[j]
            for k in range(POINTS):
                behind = np.int32(offset_i[k] < offset_j[k])
                rank_i[k] += behind
                rank_j[k] += np.int32(1) - behind
    for j in range(d + 1):
        here, nearest_j, offset_j, rank_j = elevated[j], nearest[j], offset[j], rank[j]
        for k in range(POINTS):
            r = rank_j[k] + np.int32(total[k])
            wrap = np.int32(r < 0) - np.int32(r > d)
            v = nearest_j[k] + np.float32(wrap)
            rank_j[k] = r + wrap * np.int32(d + 1)
            nearest_j[k] = v
            offset_j[k] = (here[k] - v * size) * inverse
