"""The simplices of many points at once, compiled; `plain.simplices` explains the steps."""

from typing import NamedTuple

import numpy as np

from wsss.ops.crf.compiling import inner
from wsss.ops.crf.keys import Basis
from wsss.ops.crf.lanes import ROUND

POINTS = 128  # points whose simplices are found at once

F0, F1 = np.float32(0), np.float32(1)


class Room(NamedTuple):
    """Arrays for at most `POINTS` points, coordinate by coordinate."""

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


@inner
def room_for(axes: int) -> Room:
    """Arrays for points with this number of coordinates."""
    return Room(
        np.empty((axes, POINTS), np.float32),
        np.empty((axes, POINTS), np.float32),
        np.empty((axes, POINTS), np.float32),
        np.empty(POINTS, np.float32),
        np.empty((axes, POINTS), np.int32),
    )


@inner
def simplices(
    features: np.ndarray, basis: Basis, start: int, n: int, room: Room, key: np.ndarray, corners: np.ndarray
) -> None:
    """Keys and barycentric weights of the d + 1 vertices around each of the points start..start + n, n <= POINTS.

    All in float32 and in the published order of operations: which vertices exist hangs on the last bit.

    Args:
        features: float32 [d, points].
        room: what is computed on the way.
        key: int64 [n * (d + 1)]; is filled.
        corners: [n, d + 1]; its weights are filled.
    """
    d, step = features.shape[0], basis.step
    _elevate(features, basis.scale, start, n, room)
    _rank(n, room)
    by_rank, step_by_rank = np.empty(d + 1, np.float32), np.empty(d + 1, np.int64)
    for k in range(n):
        vertex = np.int64(0)
        for j in range(d + 1):
            r = np.uint32(room.rank[j, k])
            by_rank[r] = room.offset[j, k]
            step_by_rank[r] = step[j]
            vertex += np.int64(room.nearest[j, k]) * step[j]
        key[k * (d + 1)] = vertex
        corners[k, 0].weight = by_rank[d] + (F1 - by_rank[0])
        for i in range(1, d + 1):
            vertex -= step_by_rank[d + 1 - i]
            key[k * (d + 1) + i] = vertex
            corners[k, i].weight = by_rank[d - i] - by_rank[d + 1 - i]


@inner
def _elevate(features: np.ndarray, scale: np.ndarray, start: int, n: int, room: Room) -> None:
    """The d + 1 coordinates of each point, which sum to 0."""
    d, elevated = features.shape[0], room.elevated
    above = elevated[0]
    for k in range(n):
        above[k] = F0
    for j in range(d, 0, -1):
        here, column, scale_j, factor = elevated[j], features[j - 1, start:], scale[j - 1], np.float32(j)
        for k in range(n):
            c = column[k] * scale_j
            here[k] = above[k] - factor * c
            above[k] += c


@inner
def _rank(n: int, room: Room) -> None:
    """The vertex with coordinates that are multiples of d + 1 nearest to each point, the way to it, and the ranks of its coordinates."""
    elevated, nearest, offset, total, rank = room
    d = len(elevated) - 1
    size, inverse = np.float32(d + 1), F1 / np.float32(d + 1)
    for k in range(n):
        total[k] = F0
    for j in range(d + 1):
        here, nearest_j, offset_j = elevated[j], nearest[j], offset[j]
        for k in range(n):
            v = (here[k] * inverse + ROUND) - ROUND
            nearest_j[k] = v
            offset_j[k] = here[k] - v * size
            total[k] += v
    rank[:] = 0
    for i in range(d):
        rank_i, offset_i = rank[i], offset[i]
        for j in range(i + 1, d + 1):
            rank_j, offset_j = rank[j], offset[j]
            for k in range(n):
                behind = np.int32(offset_i[k] < offset_j[k])
                rank_i[k] += behind
                rank_j[k] += np.int32(1) - behind
    for j in range(d + 1):
        here, nearest_j, offset_j, rank_j = elevated[j], nearest[j], offset[j], rank[j]
        for k in range(n):
            r = rank_j[k] + np.int32(total[k])
            wrap = np.int32(r < 0) - np.int32(r > d)
            v = nearest_j[k] + np.float32(wrap)
            rank_j[k] = r + wrap * np.int32(d + 1)
            nearest_j[k] = v
            offset_j[k] = (here[k] - v * size) * inverse
