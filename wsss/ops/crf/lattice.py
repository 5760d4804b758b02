"""The lattice of a picture: its vertices, numbered, and their neighbours along each axis."""

from typing import NamedTuple

import numpy as np

from wsss.ops.crf.compiling import entry, inlined, inner
from wsss.ops.crf.features import Features, given_features
from wsss.ops.crf.keys import Basis, basis_of
from wsss.ops.crf.simplices import Room, find_weights, place, room_for
from wsss.ops.crf.threads import P0, P1, P2, Team, draw, finish, run_together, wait
from wsss.ops.crf.vertices import Found, find, find_vertices, slot_of, slots_for

LAST = np.uint32(1 << 31)  # marks the last vertex of a chain
AHEAD = 8  # vertices of a chain that are prefetched
VERTICES = 2048  # vertices in a chunk
STRIP, STRIPS = 4096, 8  # minimum pixels of a strip, and maximum strips of a picture
KEPT = (
    1 << 22
)  # weights of larger pictures are computed in every iteration, which takes 20 bytes a pixel less, and longer


class Lattice(NamedTuple):
    """A lattice, as used by the compiled kernels.

    Points are divided into strips. Each strip adds the values of its points only to its own rows: the rows of the vertices that it
    is the first to touch, and `ghost` rows for the others, which are added to the rows of these vertices afterwards.
    """

    vertex: np.ndarray
    """uint32 [n, d + 1]; rows of each point's vertices"""
    points: np.ndarray
    """int64 [strips + 1]; first point of each strip"""
    rows: np.ndarray
    """int64 [strips + 1]; first of the vertices that each strip is the first to touch. The last is the number of vertices"""
    ghost_rows: np.ndarray
    """int64 [strips + 1]; first ghost of each strip. The last is a row of zeros, for missing neighbours"""
    ghosts: np.ndarray
    """uint32 [ghosts, 2]; (row of the vertex, row of its ghost), ascending"""
    chain: np.ndarray
    """uint32 [d + 1, vertices + 1]; along each axis all runs of two or more neighbouring vertices, `LAST` at each end"""
    chained: np.ndarray
    """int64 [d + 1]; the length of each row of `chain`"""


class Weights(NamedTuple):
    """The weights of a lattice's points, or what they are computed from."""

    features: Features
    basis: Basis
    weight: np.ndarray
    """float32 [n, d + 1]; the weights to splat and slice with. Empty if they are computed from the features"""
    scale: np.ndarray
    """float32 [n]; factor of computed weights. Empty if weights are kept"""


class _Vertices(NamedTuple):
    """The vertices while they are numbered and linked."""

    table: np.ndarray
    """uint32 [a power of 2]; hash table of numbers, counted from 1"""
    key: np.ndarray
    """int64 [vertices]"""
    row: np.ndarray
    """uint32 [points * (d + 1)]; for each strip's own number of a vertex its row, or LAST | number of the strip's ghost"""
    ghost_of: np.ndarray
    """uint32 [ghosts]; the vertex that each is a ghost of"""
    next_one: np.ndarray
    """uint32 [d + 1, vertices]; number of the next vertex along each axis, counted from 1; 0 for none"""
    has_previous: np.ndarray
    """uint8 [d + 1, vertices + 1]; by number, counted from 1"""


class _Scratch(NamedTuple):
    """Arrays for what `_connect` computes on the way."""

    candidate: np.ndarray
    """uint32 [threads, VERTICES]"""
    candidate_key: np.ndarray
    """int64 [threads, VERTICES]"""
    begin: np.ndarray
    """uint32 [vertices + 1]; zeros"""


def strips_of(n: int) -> int:
    """The number of strips of n points; more threads than that have little to do."""
    return min(STRIPS, -(-n // STRIP))


def no_lattice(features: Features) -> tuple[Lattice, Weights]:
    """A lattice and weights of the types that `lattice_of` gives, without any points."""
    index, places = np.empty((0, 1), np.uint32), np.empty(0, np.int64)
    lattice = Lattice(index, places, places, places, index, index, places)
    none = np.empty((0, 1), np.float32)
    return lattice, Weights(features, basis_of(*features.limits()), none, none[:, 0].copy())


def lattice_of(features: Features, threads: int) -> tuple[Lattice, Weights]:
    """The lattice of n points with d features.

    Raises:
        BadInput: see `keys.basis_of`.
    """
    n, basis = features.size, basis_of(*features.limits())
    axes, strips = len(basis.step), strips_of(n)
    kept = n if n <= KEPT or axes <= 3 or len(features.given) else 0  # three weights are soon read
    points = np.arange(strips + 1) * n // strips
    index, weight = np.empty((n, axes), np.uint32), np.empty((kept, axes), np.float32)
    found = Found(np.empty(n * axes, np.int64), np.empty(strips, np.int64))
    space = room_for(axes, threads), np.empty((threads, slots_for(int(points[1]), axes)), np.uint32)
    run_together(find_vertices, 1, threads, features, basis, points, *space, index, weight, found)

    more = np.full(axes, found.known[0])  # an existing vertex
    if n % 4:
        # the published code processes four points at a time and pads with the feature vector 0, whose vertices have
        # no value of their own, but pass on those of their neighbours
        zero = given_features(np.zeros((axes - 1, 1), np.float32))
        of_zero = np.empty((1, axes), np.uint32), np.empty((0, axes), np.float32)
        last = Found(more, np.empty(1, np.int64))
        run_together(find_vertices, 1, 1, zero, basis, np.array([0, 1]), *space, *of_zero, last)
    del space
    most = int(found.counts.sum()) + axes
    nothing = np.empty((axes, 0), np.uint32), np.empty((axes, 0), np.uint8)
    vertices = _Vertices(
        np.zeros(1 << (3 * most - 1).bit_length(), np.uint32),
        np.empty(most, np.int64),
        np.empty(n * axes, np.uint32),
        np.empty(most, np.uint32),
        *nothing,
    )
    rows, ghost_rows = np.empty(strips + 1, np.int64), np.empty(strips + 1, np.int64)
    run_together(_unite, 0, 1, points, found, more, vertices, rows, ghost_rows)

    size, ghosts = int(rows[-1]), int(ghost_rows[-1])
    chain = np.zeros((axes, size + AHEAD), np.uint32)
    places = (points, rows, ghost_rows, np.empty((ghosts, 2), np.uint32))
    lattice = Lattice(index, *places, chain, np.empty(axes, np.int64))
    vertices = vertices._replace(
        ghost_of=vertices.ghost_of[:ghosts],
        next_one=np.empty((axes, size), np.uint32),
        has_previous=np.empty((axes, size + 1), np.uint8),
    )
    candidates = np.empty((threads, VERTICES), np.uint32), np.empty((threads, VERTICES), np.int64)
    scratch = _Scratch(*candidates, np.zeros(size + 1, np.uint32))
    run_together(_connect, 3, threads, basis.step, vertices, lattice, scratch)
    return lattice, Weights(features, basis, weight, np.ones(n - kept, np.float32))


Block = tuple[np.ndarray, np.int64]
"""an array with the weights of a block of points, float32 [_, d + 1], and the point of its first row"""


@inner
def weights_of(begin: int, end: int, weights: Weights, room: Room) -> Block:
    """The weights of the points begin..end."""
    if len(weights.weight) > 0:
        return weights.weight, np.int64(0)
    place(weights.features, weights.basis, begin, end - begin, room)
    for p in range(begin, end):
        room.factor[p - begin] = weights.scale[p]
    find_weights(end - begin, room, room.weight)
    return room.weight, np.int64(begin)


@entry
def _unite(
    team: Team, points: np.ndarray, found: Found, more: np.ndarray, vertices: _Vertices, rows: np.ndarray,
    ghost_rows: np.ndarray,
) -> None:  # fmt: skip
    """Number the vertices of all strips, and `more`; fill all of `vertices` but the neighbours, `rows` and `ghost_rows`."""
    table, vertex_key = vertices.table, vertices.key
    bits = _bits(table)
    axes = len(more)
    size, ghosts = 0, 0
    for strip in range(len(found.counts)):
        rows[strip], ghost_rows[strip] = size, ghosts
        begin = points[strip] * axes
        for i in range(begin, begin + found.counts[strip]):
            slot, number = find(found.known[i], table, bits, vertex_key)
            if number == 0:
                vertex_key[size] = found.known[i]
                vertices.row[i] = size
                size += 1
                table[slot] = size
            else:
                vertices.ghost_of[ghosts] = number - np.uint32(1)
                vertices.row[i] = LAST | np.uint32(ghosts)
                ghosts += 1
    for key in more:
        slot, number = find(key, table, bits, vertex_key)
        if number == 0:
            vertex_key[size] = key
            size += 1
            table[slot] = size
    rows[-1], ghost_rows[-1] = size, ghosts


@inner
def _bits(table: np.ndarray) -> int:
    bits = 0
    while 1 << bits < len(table):
        bits += 1
    return bits


@entry
def _connect(team: Team, step: np.ndarray, vertices: _Vertices, lattice: Lattice, scratch: _Scratch) -> None:
    """Turn the corners' numbers into rows, sort the ghosts, and chain up neighbouring vertices along each axis."""
    size, axes, strips = lattice.rows[-1], len(step), len(lattice.points) - 1
    while True:
        chunk = draw(team, P0, strips + axes + 1)
        if chunk < 0:
            break
        if chunk < strips:
            _number_corners(vertices, lattice, chunk)
        elif chunk < strips + axes:
            vertices.has_previous[chunk - strips] = 0
        else:
            _sort_ghosts(vertices.ghost_of, lattice, scratch.begin)
        finish(team, P0)
    wait(team, P0, strips + axes + 1)
    chunks = (size + VERTICES - 1) // VERTICES
    candidate, candidate_key = scratch.candidate[team.me], scratch.candidate_key[team.me]
    while True:
        chunk = draw(team, P1, chunks)
        if chunk < 0:
            break
        _find_next(step, vertices, chunk * VERTICES, min((chunk + 1) * VERTICES, size), candidate, candidate_key)
        finish(team, P1)
    wait(team, P1, chunks)
    while True:
        axis = draw(team, P2, axes)
        if axis < 0:
            break
        lattice.chained[axis] = _chain(vertices, lattice, axis)
        finish(team, P2)
    wait(team, P2, axes)


@inlined
def _number_corners(vertices: _Vertices, lattice: Lattice, strip: int) -> None:
    """Turn the numbers of the strip's corners, which are its own, into rows."""
    index, points, size = lattice.vertex, lattice.points, lattice.rows[-1]
    axes = index.shape[1]
    for p in range(points[strip], points[strip + 1]):
        for r in range(axes):
            place = vertices.row[points[strip] * axes + np.intp(index[p, r])]
            index[p, r] = np.uint32(size) + (place & ~LAST) if place & LAST else place


@inlined
def _sort_ghosts(ghost_of: np.ndarray, lattice: Lattice, begin: np.ndarray) -> None:
    size = lattice.rows[-1]
    for v in ghost_of:
        begin[v + np.uint64(1)] += np.uint32(1)
    for v in range(size):
        begin[v + 1] += begin[v]
    for ghost, v in enumerate(ghost_of):
        lattice.ghosts[begin[v], 0] = v
        lattice.ghosts[begin[v], 1] = size + ghost
        begin[v] += np.uint32(1)


@inlined
def _find_next(
    step: np.ndarray, vertices: _Vertices, start: int, stop: int, candidate: np.ndarray, candidate_key: np.ndarray
) -> None:
    """Look up the next vertex along each axis for the vertices start..stop; the last two are room for VERTICES numbers each."""
    table, vertex_key = vertices.table, vertices.key
    bits = _bits(table)
    for j in range(len(step)):
        # these loads run in parallel, since no branch depends on them
        for v in range(start, stop):
            candidate[v - start] = table[slot_of(vertex_key[v] + step[j], bits)]
        for v in range(start, stop):
            candidate_key[v - start] = vertex_key[max(candidate[v - start], np.uint32(1)) - np.uint64(1)]
        for v in range(start, stop):
            key = vertex_key[v] + step[j]
            number = candidate[v - start]
            equal = np.uint32(candidate_key[v - start] == key)
            if number != 0 and equal == 0:
                _, number = find(key, table, bits, vertex_key)
                equal = np.uint32(1)
            number *= equal
            vertices.next_one[j, v] = number
            vertices.has_previous[j, number] = 1


@inlined
def _chain(vertices: _Vertices, lattice: Lattice, axis: int) -> int:
    """Write the chains along an axis; returns how many vertices they have together."""
    chain, next_one, has_previous = lattice.chain[axis], vertices.next_one[axis], vertices.has_previous[axis]
    e = 0
    for v in range(lattice.rows[-1]):
        number = next_one[v]
        if number != 0 and has_previous[v + 1] == 0:
            chain[e] = v
            e += 1
            while number != 0:
                chain[e] = number - np.uint32(1)
                e += 1
                number = next_one[number - np.uint64(1)]
            chain[e - 1] |= LAST
    return e
