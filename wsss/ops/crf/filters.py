"""One kernel of the dense CRF, compiled for CPUs; `plain.LatticeFilter` is the same in torch."""

import numpy as np

from wsss.arrays import Float, Float32
from wsss.ops.crf.blur import clear_strip, mix, mix_chunks, slice_lanes, splat
from wsss.ops.crf.compiling import entry, inner
from wsss.ops.crf.features import Features, given_features
from wsss.ops.crf.lanes import V1, V8, Vector, store, width
from wsss.ops.crf.lattice import Lattice, Weights, lattice_of, weights_of
from wsss.ops.crf.simplices import POINTS, Room, room_for, room_of
from wsss.ops.crf.threads import P0, Team, draw, finish, run_together, wait

F0, F1 = np.float32(0), np.float32(1)


class PermutohedralFilter:
    """K x for a Gaussian kernel K over `n` points with `d` features (Adams, Baek and Davis, Eurographics 2010).

    Args:
        features: float32, or what they are computed from; the kernel is exp(-|f_p - f_q|^2 / 2).
        symmetric: with n = filter(1), compute filter(x / sqrt(n)) / sqrt(n) (Krähenbühl and Koltun, ICML 2013) instead of filter(x).
        threads: number of threads.

    Raises:
        BadInput: the features exceed the lattice's 16-bit coordinates.
    """

    size: int
    """Number of vertices of the lattice."""
    alpha: np.float32
    """Factor of a slice, 1 / (1 + 2^-d)."""
    lattice: Lattice
    weights: Weights

    def __init__(
        self, features: Float[np.ndarray, "d n"] | Features, symmetric: bool = True, *, threads: int = 1
    ) -> None:
        if isinstance(features, np.ndarray):
            features = given_features(np.ascontiguousarray(features, np.float32))
        self.lattice, self.weights = lattice_of(features, threads)
        self.size, d = int(self.lattice.rows[-1]), self.lattice.vertex.shape[1] - 1
        self.alpha = np.float32(1 / (1 + 2.0**-d))
        if symmetric:
            work = self.weights, room_for(d + 1, threads), self.alpha, self.values(1)
            run_together(fold_norm, d + 5, threads, V1, self.lattice, *work)

    def __call__(self, x: Float[np.ndarray, "c n"], *, threads: int = 1) -> Float[np.ndarray, "c n"]:
        """Filter each of `c` channels."""
        channels = -(-len(x) // 8) * 8
        rows = np.zeros((x.shape[1], channels), np.float32)
        rows[:, : len(x)] = x.T
        phases = len(self.lattice.chained) + 4
        room = room_for(len(self.lattice.chained), threads)
        work = self.weights, room, rows.reshape(-1), channels, self.values(channels)
        run_together(_filter, phases, threads, V8, self.lattice, *work)
        return np.ascontiguousarray(rows[:, : len(x)].T) * self.alpha

    def values(self, channels: int, steps: int = 1) -> Float32[np.ndarray, "_"]:
        """An array for the rows of vertices and ghosts and a last row of zeros, for each of `steps`."""
        last = self.size + len(self.lattice.ghosts)
        value = np.empty((steps, last + 1, channels), np.float32)
        value[:, last] = 0
        return value.reshape(-1)


@inner
def _mix_all(team: Team, zero: Vector, lattice: Lattice, channels: int, value: np.ndarray) -> None:
    """All stages of `mix`, as the phases from 1 on."""
    for stage in range(len(lattice.chained) + 2):
        chunks = mix_chunks(lattice, stage)
        while True:
            chunk = draw(team, 1 + stage, chunks)
            if chunk < 0:
                break
            mix(zero, lattice, stage, channels, value, chunk)
            finish(team, 1 + stage)
        wait(team, 1 + stage, chunks)


@entry
def _filter(
    team: Team,
    zero: Vector,
    lattice: Lattice,
    weights: Weights,
    rooms: Room,
    x: np.ndarray,
    channels: int,
    value: np.ndarray,
) -> None:
    """Filter the rows x in place."""
    strips, index, room = len(lattice.points) - 1, lattice.vertex, room_of(rooms, team.me)
    while True:
        strip = draw(team, P0, strips)
        if strip < 0:
            break
        clear_strip(lattice, channels, value, strip)
        for begin in range(lattice.points[strip], lattice.points[strip + 1], POINTS):
            end = min(begin + POINTS, lattice.points[strip + 1])
            weight, first = weights_of(begin, end, weights, room)
            splat(zero, index, weight, first, x[begin * channels :], channels, value, begin, end)
        finish(team, P0)
    wait(team, P0, strips)
    _mix_all(team, zero, lattice, channels, value)
    phase = 3 + len(lattice.chained)
    while True:
        strip = draw(team, phase, strips)
        if strip < 0:
            break
        for begin in range(lattice.points[strip], lattice.points[strip + 1], POINTS):
            end = min(begin + POINTS, lattice.points[strip + 1])
            weight, first = weights_of(begin, end, weights, room)
            for p in range(begin, end):
                for c in range(0, channels, width(zero)):
                    store(x, p * channels + c, slice_lanes(zero, index, weight, first, value, channels, p, c))
        finish(team, phase)
    wait(team, phase, strips)


@entry
def fold_norm(
    team: Team, zero: Vector, lattice: Lattice, weights: Weights, rooms: Room, alpha: np.float32, value: np.ndarray
) -> None:
    """Divide the weights of each point by sqrt(n), n = alpha * filter(1): splat and slice then normalise symmetrically."""
    index, room = lattice.vertex, room_of(rooms, team.me)
    axes = index.shape[1]
    strips = len(lattice.points) - 1
    while True:
        strip = draw(team, P0, strips)
        if strip < 0:
            break
        clear_strip(lattice, np.int64(1), value, strip)
        for begin in range(lattice.points[strip], lattice.points[strip + 1], POINTS):
            end = min(begin + POINTS, lattice.points[strip + 1])
            weight, first = weights_of(begin, end, weights, room)
            for p in range(begin, end):
                for r in range(axes):
                    value[index[p, r]] += weight[p - first, r]
        finish(team, P0)
    wait(team, P0, strips)
    _mix_all(team, zero, lattice, 1, value)
    phase = 3 + len(lattice.chained)
    while True:
        strip = draw(team, phase, strips)
        if strip < 0:
            break
        for begin in range(lattice.points[strip], lattice.points[strip + 1], POINTS):
            end = min(begin + POINTS, lattice.points[strip + 1])
            weight, first = weights_of(begin, end, weights, room)
            for p in range(begin, end):
                norm = F0
                for r in range(axes):
                    norm += weight[p - first, r] * value[index[p, r]]
                scale = F1 / np.sqrt(alpha * norm + np.float32(1e-20))
                if len(weights.scale) > 0:
                    weights.scale[p] = scale
                else:
                    for r in range(axes):
                        weights.weight[p, r] *= scale
        finish(team, phase)
    wait(team, phase, strips)
