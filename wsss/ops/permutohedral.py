"""Gaussian filtering on the permutohedral lattice (Adams, Baek and Davis, Eurographics 2010).

A point with d features lies in a simplex of d + 1 lattice vertices. A filter spreads the points' values over the
vertices ("splat"), blurs them along the d + 1 lattice axes and reads the points' values back ("slice"), which comes
near sum_q exp(-|f_p - f_q|^2 / 2) x_q. Rounding, ties and the order of the axes are those of the code published with
Krähenbühl and Koltun, NeurIPS 2011: they decide which vertices exist, and so the result.

`PermutohedralFilter` and `potts_mean_field` are compiled for CPUs; `TorchPermutohedralFilter` runs on any device of
torch. All that is compiled stands in this file, since numba's cache of compiled code does not see changes elsewhere.

From top to bottom: vectors of float32 lanes for compiled kernels; threads that share a kernel's work; building a
lattice; filtering; the mean field; the same filter in torch. The kernels keep a row of channels for each point and each
vertex. Their work is cut into chunks that write places of their own, each in an order of its own, so no result depends
on the number of threads.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from llvmlite import ir
from numba import njit, types
from numba.core.types import Type
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox
from numba.extending import intrinsic as numba_intrinsic

from wsss.errors import BadInput

intrinsic: Any = numba_intrinsic  # a function that it decorates is called without its first argument

Normalization = Literal["symmetric", "before", "after", "none"]

F0, F1, HALF = np.float32(0), np.float32(1), np.float32(0.5)
ROUND = np.float32(1.5 * 2**23)  # adding and subtracting it rounds |x| < 2^22, half to even
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, for multiplicative hashing
LAST = np.uint32(1 << 31)  # marks the last vertex of a chain
AHEAD = 8  # vertices of a chain that are asked for before they are needed
LANES, VERTICES = 128, 2048  # points whose simplices are found at once, vertices in a chunk
STRIP, STRIPS = 4096, 8  # a picture is cut into strips of so many pixels or more, and into so many or fewer
PACKED = 256  # pixels that are transposed at once: their rows fit the first-level cache
BLOCK = 64  # pixels whose logits, softmax and splat follow each other in the first-level cache
WEIGHTED = np.dtype([("index", np.uint32), ("weight", np.float32)])
# exp(x) = 2^n exp(r), |r| <= ln(2) / 2: a polynomial through the Chebyshev nodes, relative error below 1e-7
_EXP = (
    np.polynomial.Chebyshev.interpolate(np.exp, 5, [-np.log(2) / 2, np.log(2) / 2])
    .convert(kind=np.polynomial.Polynomial)
    .coef
)


class Lanes(Type):
    """Numba type of `n` float32 lanes, held in vectors of 8 lanes or fewer; `n` above 8 is a multiple of 8.

    Kernels take a `zero` of this type and are compiled for its width.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        super().__init__(name=f"Lanes({n})")

    @property
    def vector(self) -> ir.VectorType:
        return ir.VectorType(ir.FloatType(), min(self.n, 8))

    @property
    def parts(self) -> int:
        return max(self.n // 8, 1)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, ir.ArrayType(lanes.vector, lanes.parts))


def _split(builder: Any, lanes: Lanes, value: Any) -> list[Any]:
    return [builder.extract_value(value, part) for part in range(lanes.parts)]


def _join(builder: Any, lanes: Lanes, vectors: list[Any]) -> Any:
    value = ir.Constant(ir.ArrayType(lanes.vector, lanes.parts), ir.Undefined)
    for part, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, part)
    return value


def _constant(vector_type: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector_type, [value] * vector_type.count)


def _shuffled(builder: Any, vector: Any, order: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _spread(builder: Any, vector_type: ir.VectorType, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, ir.IntType(32)(0))
    return _shuffled(builder, one, [0] * vector_type.count)


def _scaled_sum(builder: Any, a: Any, x: Any, b: Any) -> Any:
    return builder.fadd(a, builder.fmul(x, b, flags=("contract",)), flags=("contract",))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _places(context: Any, builder: Any, lanes: Lanes, array_type: Any, array: Any, index: Any) -> list[Any]:
    data = context.make_array(array_type)(context, builder, array).data
    parts = [builder.gep(data, [builder.add(index, index.type(8 * part))]) for part in range(lanes.parts)]
    return [builder.bitcast(place, lanes.vector.as_pointer()) for place in parts]


class Width:
    """Of how many lanes a compiled kernel makes its vectors: passed to it, it becomes a zero of `Lanes(n)`."""

    def __init__(self, n: int) -> None:
        self.lanes = Lanes(n)


@typeof_impl.register(Width)
def _typeof_width(value: Width, context: Any) -> Lanes:
    return value.lanes


@unbox(Lanes)
def _unbox_width(lanes: Lanes, value: Any, context: Any) -> NativeValue:
    return NativeValue(_join(context.builder, lanes, [_constant(lanes.vector, 0.0)] * lanes.parts))


W1, W4, W8, W24 = Width(1), Width(4), Width(8), Width(24)


@intrinsic
def width(typing_context: Any, zero: Any) -> Any:
    """The number of lanes, a constant to the compiler."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.intp, zero.n)

    return types.intp(zero), generate


@intrinsic
def load(typing_context: Any, zero: Any, array: Any, index: Any) -> Any:
    """The lanes that start at `array[index]`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = []
        for place in _places(context, builder, zero, array, *arguments[1:]):
            vectors.append(builder.load(place))
            vectors[-1].align = 4
        return _join(builder, zero, vectors)

    return zero(zero, array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Write the lanes to `array[index:]`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = _places(context, builder, lanes, array, *arguments[:2])
        for place, vector in zip(places, _split(builder, lanes, arguments[2]), strict=True):
            builder.store(vector, place).align = 4
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), generate


@intrinsic
def prefetch(typing_context: Any, zero: Any, array: Any, index: Any) -> Any:
    """Ask for the cache lines of the lanes that start at `array[index]`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bytes_at, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [bytes_at, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [bytes_at], function_type)
        for place in _places(context, builder, zero, array, *arguments[1:])[::2]:
            builder.call(function, [builder.bitcast(place, bytes_at), i32(1), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.none(zero, array, types.intp), generate


@intrinsic
def plus(typing_context: Any, a: Any, b: Any) -> Any:
    """a + b."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pairs = zip(_split(builder, a, arguments[0]), _split(builder, a, arguments[1]), strict=True)
        return _join(builder, a, [builder.fadd(*pair) for pair in pairs])

    return a(a, b), generate


@intrinsic
def plus_scaled(typing_context: Any, a: Any, scalar: Any, b: Any) -> Any:
    """a + scalar * b, in one rounding where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        factor = _spread(builder, a.vector, arguments[1])
        pairs = zip(_split(builder, a, arguments[0]), _split(builder, a, arguments[2]), strict=True)
        return _join(builder, a, [_scaled_sum(builder, x, factor, y) for x, y in pairs])

    return a(a, types.float32, b), generate


@intrinsic
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """The larger of a and b, lane by lane; at most 8 lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _join(builder, a, [_larger(builder, *(_split(builder, a, x)[0] for x in arguments))])

    return a(a, b), generate


def _across(combine: Callable[[Any, Any, Any], Any]) -> Any:
    @intrinsic
    def across(typing_context: Any, a: Any, group: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (vector,) = _split(builder, a, arguments[0])
            distance = 1
            while distance < group.n:
                vector = combine(builder, vector, _shuffled(builder, vector, [i ^ distance for i in range(a.n)]))
                distance *= 2
            return _join(builder, a, [vector])

        return a(a, group), generate

    return across


#: `largest(a, group)`: in each lane of the 8 the largest, or the sum, of its group of 4 or 8 lanes
largest, total = _across(_larger), _across(lambda builder, a, b: builder.fadd(a, b))


@intrinsic
def quotient(typing_context: Any, a: Any, b: Any) -> Any:
    """a / b, lane by lane; at most 8 lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _join(builder, a, [builder.fdiv(*(_split(builder, a, x)[0] for x in arguments))])

    return a(a, b), generate


@intrinsic
def exp_under(typing_context: Any, a: Any, top: Any) -> Any:
    """exp(a - top) for a <= top, and exp(-64) below it, which keeps slow denormal numbers away; at most 8 lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def constant(value: Any) -> ir.Constant:
            return _constant(a.vector, float(np.float32(value)))

        integers = ir.VectorType(ir.IntType(32), a.n)
        x = builder.fsub(*(_split(builder, a, argument)[0] for argument in arguments))
        x = _larger(builder, x, constant(-64))
        n = builder.fmul(x, constant(1 / np.log(2)))
        n = builder.fsub(builder.fadd(n, constant(ROUND)), constant(ROUND))
        # ln 2 = 0.693359375 - 0.00021219..: the first has so few bits that n times it is exact
        r = _scaled_sum(builder, x, n, constant(-0.693359375))
        r = _scaled_sum(builder, r, n, constant(0.693359375 - np.log(2)))
        value = constant(_EXP[-1])
        for coefficient in _EXP[-2::-1]:
            value = _scaled_sum(builder, constant(coefficient), value, r)
        exponent = builder.add(builder.fptosi(n, integers), _constant(integers, 127))
        power = builder.bitcast(builder.shl(exponent, _constant(integers, 23)), a.vector)
        return _join(builder, a, [builder.fmul(value, power)])

    return a(a, top), generate


def _counter(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def fetch_add(typing_context: Any, array: Any, index: Any, amount: Any) -> Any:
    """Add to `array[index]` atomically and return what stood there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _counter(context, builder, array, *arguments[:2])
        return builder.atomic_rmw("add", place, arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def read(typing_context: Any, array: Any, index: Any) -> Any:
    """`array[index]`, read atomically: what other threads wrote before they added to it is seen from here on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _counter(context, builder, array, *arguments[:2])
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(array, types.intp), generate


_give_way = types.ExternalFunction("SwitchToThread" if os.name == "nt" else "sched_yield", types.int32())


@njit(nogil=True, cache=True)
def draw(team: Any, phase: int, chunks: int) -> int:
    """The next chunk of a phase for this thread, of its own share first, then of the others'; -1 if none is left.

    In every phase a thread has about the same part of the picture and of the vertices, which stay in its cache.
    """
    state, threads, me = team
    for i in range(threads):
        owner = (me + i) % threads
        start, stop = owner * chunks // threads, (owner + 1) * chunks // threads
        chunk = start + fetch_add(state, 16 * (phase * (threads + 1) + owner), 1)
        if chunk < stop:
            return chunk
    return -1


@njit(nogil=True, cache=True)
def finish(team: Any, phase: int) -> None:
    """Tell that a chunk drawn from the phase is done."""
    state, threads, _ = team
    fetch_add(state, 16 * (phase * (threads + 1) + threads), 1)


@njit(nogil=True, cache=True)
def wait(team: Any, phase: int, chunks: int) -> None:
    """Return once `chunks` chunks of the phase are done. A chunk is drawn by a running thread only, so this ends."""
    state, threads, _ = team
    tries = 0
    while read(state, 16 * (phase * (threads + 1) + threads)) < chunks:
        tries += 1
        if tries > 1000:
            _give_way()


@functools.cache
def _helpers(process: int) -> ThreadPoolExecutor:
    """Threads that wait for work; they do not live on in a forked process, which so gets its own."""
    return ThreadPoolExecutor(os.cpu_count(), "permutohedral")


def run_together(kernel: Callable[..., None], phases: int, threads: int, *arguments: Any) -> None:
    """Run `kernel(team, *arguments)` in `threads` threads, this one included.

    A `team` is (counters of the chunks of each of the `phases`, threads, number of this thread). A thread that is late
    finds nothing left to do; one that has not begun when all is done is called off.
    """
    state = np.zeros(16 * phases * (threads + 1), np.int64)
    submit = _helpers(os.getpid()).submit
    runs = [submit(kernel, (state, threads, me), *arguments) for me in range(1, threads)]
    kernel((state, threads, 0), *arguments)
    for run in runs:
        if not run.cancel():
            run.result()


class Lattice(NamedTuple):
    """What the compiled kernels know of a lattice.

    Points come in strips. A strip adds its points' values to rows that are its own: the rows of the vertices that it
    is the first to touch, and `ghost` rows for the others, which are added to those vertices' rows afterwards.
    """

    corners: np.ndarray
    """(index, weight) [n, d + 1]; rows of each point's vertices and the weights to splat and slice with."""
    points: np.ndarray
    """int64 [strips + 1]; where each strip of points begins."""
    rows: np.ndarray
    """int64 [strips + 1]; where the vertices begin that each strip is the first to touch. The last is their number."""
    ghost_rows: np.ndarray
    """int64 [strips + 1]; where each strip's ghosts begin. The last is a row of zeros, for neighbours that are not there."""
    ghosts: np.ndarray
    """uint32 [ghosts, 2]; (row of the vertex, row of its ghost), ascending."""
    chain: np.ndarray
    """uint32 [d + 1, vertices + 1]; along each axis all runs of two or more neighbouring vertices, `LAST` at each end."""
    chained: np.ndarray
    """int64 [d + 1]; the length of each row of `chain`."""


def strips_of(n: int) -> int:
    """How many strips n points are cut into; more threads than that find little to do."""
    return min(STRIPS, -(-n // STRIP))


def _scales(d: int) -> Float[np.ndarray, "d"]:
    sigma = np.float32(np.sqrt(2 / 3) * (d + 1))
    return np.array([float(sigma) / np.sqrt((i + 1) * (i + 2)) for i in range(d)], np.float32)


def _key_steps(low: Float[np.ndarray, "d"], high: Float[np.ndarray, "d"]) -> Int64[np.ndarray, "d+1"]:
    """What one step along each lattice axis adds to the key, the one number that stands for a vertex.

    With a_i = steps taken along axis i, the differences a_{i-1} - a_i (i = 1..d) name a vertex, since one step along
    every axis leads back to it. The key writes them as the digits of one number; `low` and `high`, the ranges of the
    features, say how large each digit can get, so that no two vertices in reach share a key.
    """
    d = len(low)
    c_low, c_high = low.astype(np.float64) * _scales(d), high.astype(np.float64) * _scales(d)
    # the lattice coordinates that are stored: E_j = c_j + .. + c_{d-1} - j c_{j-1} for j < d
    own = np.arange(d)
    lows = np.cumsum(c_low[::-1])[::-1] - own * np.roll(c_high, 1)
    highs = np.cumsum(c_high[::-1])[::-1] - own * np.roll(c_low, 1)
    reach = np.abs([lows, highs]).max()
    if not reach + 2 * (d + 1) < 2**15:
        raise BadInput(
            "dense CRF kernel",
            f"features that reach {reach:.0f} in lattice coordinates",
            "less than 32768, the range of the lattice's 16-bit coordinates",
            "Use larger standard deviations: sxy counts pixels, srgb grey levels of 0..255.",
        )
    spread = c_high - c_low
    steps, stride = [0] * (d + 1), 1
    for i in range(1, d + 1):
        steps[i - 1] += stride
        steps[i] -= stride
        digits = (i + 1) * spread[i - 1] + (i - 1) * spread[i - 2]
        # 16: rounding and ranks move a digit by 3, the corners of a simplex by 1 and a blur by 1, to either side
        stride *= int(digits / (d + 1)) + 16
    if stride >= 2**63:
        raise BadInput(
            "dense CRF kernel",
            f"room for {stride:.1e} lattice points",
            "less than 2^63, so that a 64-bit number can stand for each",
            "Use a larger sxy or srgb.",
        )
    return np.array(steps, np.int64)


def _reach(features: Float[np.ndarray, "d n"], phantom: bool) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    low, high = features.min(1), features.max(1)
    return (np.minimum(low, 0), np.maximum(high, 0)) if phantom else (low, high)


@njit(nogil=True, cache=True, error_model="numpy")
def _simplices(features: Any, scale: Any, step: Any, start: int, n: int, room: Any, key: Any, corners: Any) -> None:
    """Keys and barycentric weights of the d + 1 vertices around each of the points start..start + n, n <= LANES.

    All in float32 and in the published order of operations: which vertices exist hangs on the last bit.
    """
    d = features.shape[0]
    elevated, nearest, offset, total_v, rank = room  # nearest: a lattice point of colour 0, in units of d + 1
    size, inverse = np.float32(d + 1), F1 / np.float32(d + 1)
    above = elevated[0]
    for k in range(n):
        above[k] = F0
        total_v[k] = F0
    for j in range(d, 0, -1):
        here, column, scale_j, factor = elevated[j], features[j - 1, start:], scale[j - 1], np.float32(j)
        for k in range(n):
            c = column[k] * scale_j
            here[k] = above[k] - factor * c
            above[k] += c
    for j in range(d + 1):
        here, nearest_j, offset_j = elevated[j], nearest[j], offset[j]
        for k in range(n):
            v = (here[k] * inverse + ROUND) - ROUND
            nearest_j[k] = v
            offset_j[k] = here[k] - v * size
            total_v[k] += v
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
            r = rank_j[k] + np.int32(total_v[k])
            wrap = np.int32(r < 0) - np.int32(r > d)
            v = nearest_j[k] + np.float32(wrap)
            rank_j[k] = r + wrap * np.int32(d + 1)
            nearest_j[k] = v
            offset_j[k] = (here[k] - v * size) * inverse
    by_rank, step_by_rank = np.empty(d + 1, np.float32), np.empty(d + 1, np.int64)
    for k in range(n):
        vertex = np.int64(0)
        for j in range(d + 1):
            r = np.uint32(rank[j, k])
            by_rank[r] = offset[j, k]
            step_by_rank[r] = step[j]
            vertex += np.int64(nearest[j, k]) * step[j]
        key[k * (d + 1)] = vertex
        corners[k, 0].weight = by_rank[d] + (F1 - by_rank[0])
        for r in range(1, d + 1):
            vertex -= step_by_rank[d + 1 - r]
            key[k * (d + 1) + r] = vertex
            corners[k, r].weight = by_rank[d - r] - by_rank[d + 1 - r]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _slot(key: Any, bits: Any) -> Any:
    return (np.uint64(key) * GOLDEN) >> np.uint64(64 - bits)  # unsigned: numba tests other indices for the sign


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _slot_after(slot: Any, bits: Any) -> Any:
    return (slot + np.uint64(1)) & np.uint64((1 << bits) - 1)


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _find(key: Any, table: Any, bits: Any, known: Any) -> Any:
    """(slot, number) of a key in the hash table of numbers counted from 1; number 0 if `known` lacks it."""
    slot = _slot(key, bits)
    number = table[slot]
    while number != 0 and known[number - np.uint64(1)] != key:
        slot = _slot_after(slot, bits)
        number = table[slot]
    return slot, number


@njit(nogil=True, cache=True, error_model="numpy")
def _number(key: Any, corners: Any, table: Any, bits: Any, known: Any, count: Any) -> Any:
    """Number each new key and write every key's number to its corner; returns new `bits` and `count`."""
    axes = corners.shape[1]
    for k in range(corners.shape[0]):
        for r in range(axes):
            slot, number = _find(key[k * axes + r], table, bits, known)
            if number == 0:
                known[count] = key[k * axes + r]
                count += 1
                number = np.uint32(count)
                table[slot] = number
                if 3 * count > 1 << bits:
                    bits += 1
                    table[: 1 << bits] = 0
                    for v in range(count):
                        slot, _ = _find(known[v], table, bits, known)
                        table[slot] = v + 1
            corners[k, r].index = number - np.uint32(1)
    return bits, count


@njit(nogil=True, cache=True, error_model="numpy")
def _find_vertices(
    team: Any, features: Any, scale: Any, step: Any, points: Any, corners: Any, known: Any, counts: Any
) -> None:
    """Number each strip's vertices on their own, in the order in which its points touch them."""
    axes = len(step)
    strips = len(counts)
    room = (
        np.empty((axes, LANES), np.float32),
        np.empty((axes, LANES), np.float32),
        np.empty((axes, LANES), np.float32),
        np.empty(LANES, np.float32),
        np.empty((axes, LANES), np.int32),
    )
    key = np.empty(LANES * axes, np.int64)
    bits: Any = np.int64(14)
    while 1 << bits < 6 * (points[1] - points[0] + 1) * axes:
        bits += 1
    table = np.empty(1 << bits, np.uint32)
    while True:
        strip = draw(team, 0, strips)
        if strip < 0:
            break
        bits, count = np.int64(14), np.int64(0)
        table[: 1 << bits] = 0
        strip_known = known[points[strip] * axes : points[strip + 1] * axes]
        for start in range(points[strip], points[strip + 1], LANES):
            stop = min(start + LANES, points[strip + 1])
            _simplices(features, scale, step, start, stop - start, room, key, corners[start:stop])
            bits, count = _number(key, corners[start:stop], table, bits, strip_known, count)
        counts[strip] = count
        finish(team, 0)
    wait(team, 0, strips)


@njit(nogil=True, cache=True, error_model="numpy")
def _unite(
    points: Any, known: Any, counts: Any, phantoms: Any, table: Any, vertex_key: Any, row: Any, rows: Any,
    ghost_rows: Any, ghost_of: Any,
) -> None:  # fmt: skip
    """Number the vertices of all strips: in `row` a strip's own vertices, or LAST | number of the strip's ghost."""
    bits = 0
    while 1 << bits < len(table):
        bits += 1
    axes = len(phantoms)
    size, ghosts = 0, 0
    for strip in range(len(counts)):
        rows[strip], ghost_rows[strip] = size, ghosts
        begin = points[strip] * axes
        for i in range(begin, begin + counts[strip]):
            slot, number = _find(known[i], table, bits, vertex_key)
            if number == 0:
                vertex_key[size] = known[i]
                row[i] = size
                size += 1
                table[slot] = size
            else:
                ghost_of[ghosts] = number - np.uint32(1)
                row[i] = LAST | np.uint32(ghosts)
                ghosts += 1
    for key in phantoms:
        slot, number = _find(key, table, bits, vertex_key)
        if number == 0:
            vertex_key[size] = key
            size += 1
            table[slot] = size
    rows[-1], ghost_rows[-1] = size, ghosts


@njit(nogil=True, cache=True, error_model="numpy")
def _connect(
    team: Any, step: Any, table: Any, vertex_key: Any, row: Any, ghost_of: Any, next_one: Any, has_previous: Any,
    lattice: Any,
) -> None:  # fmt: skip
    """Turn the corners' numbers into rows, sort the ghosts, and chain up neighbouring vertices along each axis."""
    points, size, axes = lattice.points, lattice.rows[-1], len(step)
    strips = len(points) - 1
    bits = 0
    while 1 << bits < len(table):
        bits += 1
    while True:
        chunk = draw(team, 0, strips + axes + 1)
        if chunk < 0:
            break
        if chunk < strips:
            for p in range(points[chunk], points[chunk + 1]):
                for r in range(axes):
                    place = row[points[chunk] * axes + np.intp(lattice.corners[p, r].index)]
                    lattice.corners[p, r].index = np.uint32(size) + (place & ~LAST) if place & LAST else place
        elif chunk < strips + axes:
            has_previous[chunk - strips] = 0
        else:
            begin = np.zeros(size + 1, np.uint32)
            for v in ghost_of:
                begin[v + np.uint64(1)] += np.uint32(1)
            for v in range(size):
                begin[v + 1] += begin[v]
            for ghost, v in enumerate(ghost_of):
                lattice.ghosts[begin[v], 0] = v
                lattice.ghosts[begin[v], 1] = size + ghost
                begin[v] += np.uint32(1)
        finish(team, 0)
    wait(team, 0, strips + axes + 1)
    chunks = (size + VERTICES - 1) // VERTICES
    candidate, candidate_key = np.empty(VERTICES, np.uint32), np.empty(VERTICES, np.int64)
    while True:
        chunk = draw(team, 1, chunks)
        if chunk < 0:
            break
        start, stop = chunk * VERTICES, min((chunk + 1) * VERTICES, size)
        for j in range(axes):
            # memory answers these loads side by side, as no branch hangs on them
            for v in range(start, stop):
                candidate[v - start] = table[_slot(vertex_key[v] + step[j], bits)]
            for v in range(start, stop):
                candidate_key[v - start] = vertex_key[max(candidate[v - start], np.uint32(1)) - np.uint64(1)]
            for v in range(start, stop):
                key = vertex_key[v] + step[j]
                number = candidate[v - start]
                equal = np.uint32(candidate_key[v - start] == key)
                if number != 0 and equal == 0:
                    _, number = _find(key, table, bits, vertex_key)
                    equal = np.uint32(1)
                number *= equal
                next_one[j, v] = number
                has_previous[j, number] = 1
        finish(team, 1)
    wait(team, 1, chunks)
    while True:
        j = draw(team, 2, axes)
        if j < 0:
            break
        e = 0
        for v in range(size):
            number = next_one[j, v]
            if number != 0 and has_previous[j, v + 1] == 0:
                lattice.chain[j, e] = v
                e += 1
                while number != 0:
                    lattice.chain[j, e] = number - np.uint32(1)
                    e += 1
                    number = next_one[j, number - np.uint64(1)]
                lattice.chain[j, e - 1] |= LAST
        lattice.chained[j] = e
        finish(team, 2)
    wait(team, 2, axes)


@njit(nogil=True, cache=True, error_model="numpy")
def clear_strip(lattice: Any, channels: int, value: Any, strip: int) -> None:
    """Set the rows to 0 that the strip adds to."""
    size, ghosts = lattice.rows[-1], lattice.ghost_rows
    for at in range(lattice.rows[strip] * channels, lattice.rows[strip + 1] * channels):
        value[at] = F0
    for at in range((size + ghosts[strip]) * channels, (size + ghosts[strip + 1]) * channels):
        value[at] = F0


@njit(nogil=True, cache=True, error_model="numpy")
def splat(zero: Any, lattice: Any, x: Any, channels: int, value: Any, begin: int, end: int) -> None:
    """Add weight * x to the rows of each point's vertices, for the points begin..end; x holds their rows alone."""
    corners = lattice.corners
    for p in range(begin, end):
        for c in range(0, channels, width(zero)):
            lanes = load(zero, x, (p - begin) * channels + c)
            for r in range(corners.shape[1]):
                at = np.intp(corners[p, r].index) * channels + c
                store(value, at, plus_scaled(load(zero, value, at), corners[p, r].weight, lanes))


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def slice_lanes(zero: Any, lattice: Any, value: Any, channels: int, p: int, c: int) -> Any:
    """Sum of weight * value over the vertices of point p, for the lanes from channel c on."""
    corners = lattice.corners
    lanes = zero
    for r in range(corners.shape[1]):
        at = np.intp(corners[p, r].index) * channels + c
        lanes = plus_scaled(lanes, corners[p, r].weight, load(zero, value, at))
    return lanes


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _chunks(n: int) -> int:
    return (n + VERTICES - 1) // VERTICES


@njit(nogil=True, cache=True, error_model="numpy")
def _gather_ghosts(zero: Any, lattice: Any, channels: int, value: Any, chunk: int) -> None:
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


@njit(nogil=True, cache=True, error_model="numpy")
def _scatter_ghosts(zero: Any, lattice: Any, channels: int, value: Any, chunk: int) -> None:
    """Set the ghosts of the chunk to their vertices' values."""
    ghosts = lattice.ghosts
    for g in range(chunk * VERTICES, min((chunk + 1) * VERTICES, len(ghosts))):
        vertex, ghost = np.intp(ghosts[g, 0]) * channels, np.intp(ghosts[g, 1]) * channels
        for c in range(0, channels, width(zero)):
            store(value, ghost + c, load(zero, value, vertex + c))


@njit(nogil=True, cache=True, error_model="numpy")
def _blur(zero: Any, lattice: Any, axis: int, channels: int, value: Any, chunk: int) -> None:
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


@njit(nogil=True, cache=True, error_model="numpy")
def mix_chunks(lattice: Any, stage: int) -> int:
    """How many chunks a stage of `mix` has; 0 if the lattice has no such stage."""
    axes = len(lattice.chained)
    if stage == 0 or stage == axes + 1:
        return _chunks(len(lattice.ghosts))
    return _chunks(lattice.chained[stage - 1]) if stage <= axes else 0


@njit(nogil=True, cache=True, error_model="numpy")
def mix(zero: Any, lattice: Any, stage: int, channels: int, value: Any, chunk: int) -> None:
    """What lies between splat and slice: collect the ghosts, blur along each of the d + 1 axes, set the ghosts."""
    if stage == 0:
        _gather_ghosts(zero, lattice, channels, value, chunk)
    elif stage <= len(lattice.chained):
        _blur(zero, lattice, stage - 1, channels, value, chunk)
    else:
        _scatter_ghosts(zero, lattice, channels, value, chunk)


@njit(nogil=True, cache=True, error_model="numpy")
def _mix_all(team: Any, zero: Any, lattice: Any, channels: int, value: Any) -> None:
    """All stages of `mix`, as the phases 1.. ."""
    for stage in range(len(lattice.chained) + 2):
        chunks = mix_chunks(lattice, stage)
        while True:
            chunk = draw(team, 1 + stage, chunks)
            if chunk < 0:
                break
            mix(zero, lattice, stage, channels, value, chunk)
            finish(team, 1 + stage)
        wait(team, 1 + stage, chunks)


@njit(nogil=True, cache=True, error_model="numpy")
def _filter(team: Any, zero: Any, lattice: Any, x: Any, channels: int, value: Any) -> None:
    """Filter the rows x in place."""
    strips = len(lattice.points) - 1
    while True:
        strip = draw(team, 0, strips)
        if strip < 0:
            break
        begin, end = lattice.points[strip], lattice.points[strip + 1]
        clear_strip(lattice, channels, value, strip)
        splat(zero, lattice, x[begin * channels :], channels, value, begin, end)
        finish(team, 0)
    wait(team, 0, strips)
    _mix_all(team, zero, lattice, channels, value)
    phase = 3 + len(lattice.chained)
    while True:
        strip = draw(team, phase, strips)
        if strip < 0:
            break
        for p in range(lattice.points[strip], lattice.points[strip + 1]):
            for c in range(0, channels, width(zero)):
                store(x, p * channels + c, slice_lanes(zero, lattice, value, channels, p, c))
        finish(team, phase)
    wait(team, phase, strips)


@njit(nogil=True, cache=True, error_model="numpy")
def _fold_norm(team: Any, zero: Any, lattice: Any, alpha: float, value: Any) -> None:
    """Divide the weights of each point by sqrt(n), n = alpha * filter(1): splat and slice then normalise symmetrically."""
    corners = lattice.corners
    axes = corners.shape[1]
    strips = len(lattice.points) - 1
    while True:
        strip = draw(team, 0, strips)
        if strip < 0:
            break
        clear_strip(lattice, 1, value, strip)
        for p in range(lattice.points[strip], lattice.points[strip + 1]):
            for r in range(axes):
                value[corners[p, r].index] += corners[p, r].weight
        finish(team, 0)
    wait(team, 0, strips)
    _mix_all(team, zero, lattice, 1, value)
    phase = 3 + len(lattice.chained)
    while True:
        strip = draw(team, phase, strips)
        if strip < 0:
            break
        for p in range(lattice.points[strip], lattice.points[strip + 1]):
            norm = F0
            for r in range(axes):
                norm += corners[p, r].weight * value[corners[p, r].index]
            scale = F1 / np.sqrt(alpha * norm + np.float32(1e-20))
            for r in range(axes):
                corners[p, r].weight *= scale
        finish(team, phase)
    wait(team, phase, strips)


class PermutohedralFilter:
    """K x for a Gaussian kernel K over `n` points with `d` features (Adams, Baek and Davis, Eurographics 2010).

    Args:
        features: float32; the kernel is exp(-|f_p - f_q|^2 / 2).
        normalization: with n = filter(1), "symmetric" gives filter(x / sqrt(n)) / sqrt(n) (Krähenbühl and Koltun,
            ICML 2013), "before" filter(x / n), "after" filter(x) / n, and "none" filter(x).
        phantom: where n is no multiple of 4, add the vertices of the feature vector 0, which hold no value but join
            their neighbours, as the published SSE code does.
        threads: as many share the work.

    Raises:
        BadInput: the features reach beyond the lattice's 16-bit coordinates.
    """

    size: int
    """Vertices of the lattice."""
    alpha: np.float32
    """What a slice is multiplied by, 1 / (1 + 2^-d)."""
    lattice: Lattice

    def __init__(
        self,
        features: Float[np.ndarray, "d n"],
        normalization: Normalization = "symmetric",
        *,
        phantom: bool = True,
        threads: int = 1,
    ) -> None:
        features = np.ascontiguousarray(features, np.float32)
        d, n = features.shape
        axes = d + 1
        step = _key_steps(*_reach(features, phantom))
        strips = strips_of(n)
        points = np.arange(strips + 1) * n // strips
        corners = np.empty((n, axes), WEIGHTED)
        known, counts = np.empty(n * axes, np.int64), np.empty(strips, np.int64)
        run_together(_find_vertices, 1, threads, features, _scales(d), step, points, corners, known, counts)

        phantoms = np.zeros(axes, np.int64)
        if phantom and n % 4:
            zeros = (np.zeros((d, 1), np.float32), _scales(d), step, np.array([0, 1]), np.empty((1, axes), WEIGHTED))
            run_together(_find_vertices, 1, 1, *zeros, phantoms, np.empty(1, np.int64))
        else:
            phantoms[:] = known[0]  # a vertex that is there already
        most = int(counts.sum()) + axes
        table, vertex_key = np.zeros(1 << (3 * most - 1).bit_length(), np.uint32), np.empty(most, np.int64)
        row, ghost_of = np.empty(n * axes, np.uint32), np.empty(most, np.uint32)
        rows, ghost_rows = np.empty(strips + 1, np.int64), np.empty(strips + 1, np.int64)
        _unite(points, known, counts, phantoms, table, vertex_key, row, rows, ghost_rows, ghost_of)

        self.size, ghosts = int(rows[-1]), int(ghost_rows[-1])
        chain = np.zeros((axes, self.size + AHEAD), np.uint32)
        places = (points, rows, ghost_rows, np.empty((ghosts, 2), np.uint32))
        self.lattice = Lattice(corners, *places, chain, np.empty(axes, np.int64))
        next_one, has_previous = np.empty((axes, self.size), np.uint32), np.empty((axes, self.size + 1), np.uint8)
        found = (step, table, vertex_key, row, ghost_of[:ghosts], next_one, has_previous)
        run_together(_connect, 3, threads, *found, self.lattice)

        self.alpha = np.float32(1 / (1 + 2.0**-d))
        self._before: Any = F1
        self._after: Any = F1
        if normalization == "symmetric":
            run_together(_fold_norm, axes + 4, threads, W1, self.lattice, self.alpha, self.values(1))
        elif normalization != "none":
            norm = self(np.ones((1, n), np.float32), threads=threads) + np.float32(1e-20)
            if normalization == "before":
                self._before = 1 / norm
            else:
                self._after = 1 / norm

    def __call__(self, x: Float[np.ndarray, "c n"], *, threads: int = 1) -> Float[np.ndarray, "c n"]:
        """Filter each of `c` channels."""
        channels = -(-len(x) // 8) * 8
        rows = np.zeros((x.shape[1], channels), np.float32)
        rows[:, : len(x)] = (x * self._before).T
        phases = len(self.lattice.chained) + 4
        run_together(_filter, phases, threads, W8, self.lattice, rows.reshape(-1), channels, self.values(channels))
        return np.ascontiguousarray(rows[:, : len(x)].T) * (self.alpha * self._after)

    def values(self, channels: int, times: int = 1) -> Float[np.ndarray, "..."]:
        """Room for the rows of vertices and ghosts and a last row of zeros, so many `times`."""
        last = self.size + len(self.lattice.ghosts)
        value = np.empty((times, last + 1, channels), np.float32)
        value[:, last] = 0
        return value.reshape(-1)


def potts_mean_field(
    unaries: Sequence[Float32[np.ndarray, "_ n"]],
    potentials: tuple[tuple[PermutohedralFilter, float], tuple[PermutohedralFilter, float]],
    iterations: int,
    *,
    threads: int = 1,
) -> list[Float32[np.ndarray, "_ n"]]:
    """Q <- softmax(-U + w_1 K_1 Q + w_2 K_2 Q), iterated from softmax(-U), for unaries that share filters but no labels.

    Args:
        unaries: energies U, one row a label.
        potentials: two (K, w), K normalised symmetrically.
        iterations: how often the softmax is taken again.
        threads: as many share the work.

    Raises:
        BadInput: a point with NaN, -inf or no finite energy.
    """
    n = unaries[0].shape[1]
    narrow = all(len(unary) <= 4 for unary in unaries)
    group = 4 if narrow else 8  # the labels of a unary are padded to a multiple of it
    starts = np.cumsum([0, *(-(-len(unary) // group) * group for unary in unaries)])
    used = int(starts[-1])
    lanes = 4 if used == 4 else 24 if -(-used // 24) * 24 * 3 <= used * 4 else 8  # 24, if a quarter at most is padding
    channels = -(-used // lanes) * lanes
    logits, rows = np.empty(n * channels, np.float32), np.empty(n * channels, np.float32)
    logits.reshape(n, channels)[:, used:] = 0
    for unary, start, stop in zip(unaries, starts[:-1], starts[1:], strict=True):
        faults = np.zeros(-(-n // PACKED), np.uint8)
        run_together(_pack, 1, threads, np.ascontiguousarray(unary), logits, channels, start, stop, faults)
        if faults.any():
            raise bad_energy()

    widths = ({4: W4, 8: W8, 24: W24}[lanes], W4, W8)
    kernels: list[Any] = []
    for kernel, weight in potentials:
        kernels += [kernel.lattice, kernel.values(channels, 2), np.float32(weight) * kernel.alpha]
    phases = 1 + iterations * (3 + max(len(kernel.lattice.chained) for kernel, _ in potentials))
    run_together(_mean_field, phases, threads, widths, starts, narrow, logits, channels, iterations, *kernels, rows)

    qs = [np.empty(unary.shape, np.float32) for unary in unaries]
    for q, start in zip(qs, starts[:-1], strict=True):
        run_together(_unpack, 1, threads, rows, channels, start, q)
    return qs


def bad_energy() -> BadInput:
    """The error of a unary that no mean field can start from."""
    return BadInput(
        "dense CRF unary",
        "a pixel with NaN, -inf or no finite energy",
        "energies -ln P with at least one finite label a pixel",
        "Look for NaN in the scores, and clip probabilities before the logarithm.",
    )


@njit(nogil=True, cache=True, error_model="numpy")
def _pack(team: Any, unary: Any, logits: Any, channels: int, start: int, stop: int, faults: Any) -> None:
    """Write -U of each pixel to the lanes start.. of its row, and -inf to the lanes up to `stop`."""
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


@njit(nogil=True, cache=True, error_model="numpy")
def _unpack(team: Any, rows: Any, channels: int, start: int, q: Any) -> None:
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


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _softmax_lanes(eight: Any, group: Any, rows: Any, start: int, stop: int) -> None:
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


@njit(nogil=True, cache=True, error_model="numpy")
def _normalise(four: Any, eight: Any, starts: Any, narrow: bool, rows: Any, channels: int, n: int) -> None:
    """Softmax of each unary's lanes, for n pixels."""
    if narrow:
        for at in range(0, n * channels, 8):
            _softmax_lanes(eight, four, rows, at, at + 8)
    else:
        for p in range(n):
            for i in range(len(starts) - 1):
                _softmax_lanes(eight, eight, rows, p * channels + starts[i], p * channels + starts[i + 1])


@njit(nogil=True, cache=True, error_model="numpy")
def _logits(
    zero: Any, unary: Any, channels: int, a: Any, a_value: Any, a_weight: float, b: Any, b_value: Any, b_weight: float,
    begin: int, end: int, rows: Any,
) -> None:  # fmt: skip
    """-U + both kernels' messages, for the pixels begin..end."""
    for p in range(begin, end):
        for c in range(0, channels, width(zero)):
            lanes = load(zero, unary, p * channels + c)
            lanes = plus_scaled(lanes, a_weight, slice_lanes(zero, a, a_value, channels, p, c))
            lanes = plus_scaled(lanes, b_weight, slice_lanes(zero, b, b_value, channels, p, c))
            store(rows, (p - begin) * channels + c, lanes)


@njit(nogil=True, cache=True, error_model="numpy")
def _advance(
    widths: Any, starts: Any, narrow: bool, unary: Any, channels: int, a: Any, a_last: Any, a_now: Any, a_weight: float,
    b: Any, b_last: Any, b_now: Any, b_weight: float, strip: int, is_first: bool, is_last: bool, rows: Any, q: Any,
) -> None:  # fmt: skip
    """Slice the last step's values, take the softmax, and splat it for this step or keep it as q, for one strip."""
    zero, four, eight = widths
    if not is_last:
        clear_strip(a, channels, a_now, strip)
        clear_strip(b, channels, b_now, strip)
    for begin in range(a.points[strip], a.points[strip + 1], BLOCK):
        end = min(begin + BLOCK, a.points[strip + 1])
        if is_first:
            for i in range((end - begin) * channels):
                rows[i] = unary[begin * channels + i]
        else:
            _logits(zero, unary, channels, a, a_last, a_weight, b, b_last, b_weight, begin, end, rows)
        _normalise(four, eight, starts, narrow, rows, channels, end - begin)
        if is_last:
            for i in range((end - begin) * channels):
                q[begin * channels + i] = rows[i]
        else:
            splat(zero, a, rows, channels, a_now, begin, end)
            splat(zero, b, rows, channels, b_now, begin, end)


@njit(nogil=True, cache=True, error_model="numpy")
def _mean_field(
    team: Any, widths: Any, starts: Any, narrow: bool, unary: Any, channels: int, iterations: int, a: Any,
    a_values: Any, a_weight: float, b: Any, b_values: Any, b_weight: float, q: Any,
) -> None:  # fmt: skip
    """q = Q after `iterations` steps, with two lattices a and b; their values have room for two steps."""
    zero, _, _ = widths
    strips = len(a.points) - 1
    rows = np.zeros(BLOCK * channels + 8, np.float32)  # the softmax takes 8 lanes at a time
    stages = max(len(a.chained), len(b.chained)) + 2
    a_room, b_room = len(a_values) // 2, len(b_values) // 2
    phase = 0
    for iteration in range(iterations + 1):
        now, last = iteration % 2, 1 - iteration % 2
        a_now, a_last = a_values[now * a_room : (now + 1) * a_room], a_values[last * a_room : (last + 1) * a_room]
        b_now, b_last = b_values[now * b_room : (now + 1) * b_room], b_values[last * b_room : (last + 1) * b_room]
        while True:
            strip = draw(team, phase, strips)
            if strip < 0:
                break
            _advance(
                widths, starts, narrow, unary, channels, a, a_last, a_now, a_weight, b, b_last, b_now, b_weight, strip,
                iteration == 0, iteration == iterations, rows, q,
            )  # fmt: skip
            finish(team, phase)
        wait(team, phase, strips)
        phase += 1
        if iteration < iterations:
            for stage in range(stages):
                of_a = mix_chunks(a, stage)
                chunks = of_a + mix_chunks(b, stage)
                while True:
                    chunk = draw(team, phase, chunks)
                    if chunk < 0:
                        break
                    if chunk < of_a:
                        mix(zero, a, stage, channels, a_now, chunk)
                    else:
                        mix(zero, b, stage, channels, b_now, chunk - of_a)
                    finish(team, phase)
                wait(team, phase, chunks)
                phase += 1


class TorchPermutohedralFilter:
    """`PermutohedralFilter` in torch, on the device of `features`: a scatter-add splat, gathers for blur and slice.

    On CUDA the order of a scatter-add's sums varies, and with it the last bits, unless
    `torch.use_deterministic_algorithms(True)` is set.
    """

    size: int
    """Vertices of the lattice."""

    def __init__(
        self, features: Float[torch.Tensor, "d n"], normalization: Normalization = "symmetric", *, phantom: bool = True
    ) -> None:
        d, n = features.shape
        host = torch.stack([features.amin(1), features.amax(1)]).cpu().numpy()
        step = torch.from_numpy(_key_steps(*_reach(host.T, phantom))).to(features.device)
        scale = torch.from_numpy(_scales(d)).to(features.device)
        key, self._weight = _torch_simplices(features, scale, step)
        every = key.reshape(-1)
        if phantom and n % 4:
            every = torch.cat([every, _torch_simplices(features.new_zeros(d, 1), scale, step)[0].reshape(-1)])
        known, number = torch.unique(every, return_inverse=True)
        self._vertex = number[: key.numel()].reshape(key.shape)
        self.size = len(known)
        last = torch.tensor([self.size], device=features.device)
        self._neighbours = []
        for j in range(d + 1):
            pair = []
            for wanted in (known + step[j], known - step[j]):
                at = torch.searchsorted(known, wanted).clamp_(max=self.size - 1)
                pair.append(torch.cat([torch.where(known[at] == wanted, at, last), last]))
            self._neighbours.append(pair)
        self._splat_scale = self._slice_scale = features.new_ones(n)
        self._alpha = 1 / (1 + 2.0**-d)
        if normalization != "none":
            norm = self(features.new_ones(1, n))[0] + 1e-20
            if normalization == "symmetric":
                self._splat_scale = self._slice_scale = norm.rsqrt()
            elif normalization == "before":
                self._splat_scale = 1 / norm
            else:
                self._slice_scale = 1 / norm

    def __call__(self, x: Float[torch.Tensor, "c n"]) -> Float[torch.Tensor, "c n"]:
        """Filter each of `c` channels."""
        rows = (x * self._splat_scale).T
        value = x.new_zeros(self.size + 1, len(x))
        for vertex, weight in zip(self._vertex, self._weight, strict=True):
            value.index_add_(0, vertex, weight[:, None] * rows)
        for n1, n2 in self._neighbours:
            value = value + 0.5 * (value[n1] + value[n2])
        rows = torch.zeros_like(rows)
        for vertex, weight in zip(self._vertex, self._weight, strict=True):
            rows = rows + weight[:, None] * value[vertex]
        return rows.T * (self._alpha * self._slice_scale)


def _torch_simplices(
    features: Float[torch.Tensor, "d n"], scale: Float[torch.Tensor, "d"], step: Int64[torch.Tensor, "d+1"]
) -> tuple[Int64[torch.Tensor, "d+1 n"], Float[torch.Tensor, "d+1 n"]]:
    """Keys and barycentric weights of each point's d + 1 vertices, in the order of operations of `_simplices`."""
    d, n = features.shape
    c = features * scale[:, None]
    total, coordinates = features.new_zeros(n), []
    for j in range(d, 0, -1):
        coordinates.append(total - j * c[j - 1])
        total = total + c[j - 1]
    elevated = torch.stack([total, *reversed(coordinates)])
    inverse = float(F1 / np.float32(d + 1))
    nearest = torch.round(elevated * inverse)
    offset = elevated - nearest * (d + 1)
    rank = nearest.sum(0).to(torch.int64).repeat(d + 1, 1)
    for i in range(d):
        for j in range(i + 1, d + 1):
            behind = offset[i] < offset[j]
            rank[i] += behind
            rank[j] += ~behind
    wrap = (rank < 0).to(torch.int64) - (rank > d).to(torch.int64)
    rank += wrap * (d + 1)
    nearest += wrap
    offset = (elevated - nearest * (d + 1)) * inverse
    by_rank = torch.empty_like(offset).scatter_(0, rank, offset)
    step_by_rank = torch.empty_like(rank).scatter_(0, rank, step[:, None].expand(-1, n).contiguous())
    nearest_key = (nearest.to(torch.int64) * step[:, None]).sum(0, keepdim=True)
    key = torch.cat([nearest_key, nearest_key - step_by_rank[1:].flip(0).cumsum(0)])
    falling = by_rank.flip(0)
    weight = torch.cat([falling[:1] + (1 - by_rank[:1]), falling[1:] - falling[:-1]])
    return key, weight
