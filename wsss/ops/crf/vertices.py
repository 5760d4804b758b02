"""The vertices that points touch: hash tables of keys, and the vertices of each strip of a picture."""

from typing import NamedTuple

import numpy as np

from wsss.ops.crf.compiling import entry, inlined
from wsss.ops.crf.features import Features
from wsss.ops.crf.keys import Basis
from wsss.ops.crf.simplices import POINTS, Room, find_keys, find_weights, place, room_of
from wsss.ops.crf.threads import P0, Team, draw, finish, wait

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, for multiplicative hashing


class Found(NamedTuple):
    """The vertices of each strip, in the order in which its points touch them."""

    known: np.ndarray
    """int64 [points * (d + 1)]; their keys, starting at the position of the strip's first point"""
    counts: np.ndarray
    """int64 [strips]; number of vertices of each strip"""


@inlined
def slot_of(key: int, bits: int | np.int64) -> np.uint64:
    """The first slot of a key in a hash table of 2^bits slots."""
    return (np.uint64(key) * GOLDEN) >> np.uint64(64 - bits)  # unsigned: numba tests other indices for the sign


@inlined
def _slot_after(slot: np.uint64, bits: int | np.int64) -> np.uint64:
    return (slot + np.uint64(1)) & np.uint64((1 << bits) - 1)


@inlined
def find(key: int, table: np.ndarray, bits: int | np.int64, known: np.ndarray) -> tuple[np.uint64, np.uint32]:
    """(slot, number) of a key in the hash table of numbers counted from 1; number 0 if `known` lacks it."""
    slot = slot_of(key, bits)
    number = table[slot]
    while number != 0 and known[number - np.uint64(1)] != key:
        slot = _slot_after(slot, bits)
        number = table[slot]
    return slot, number


@inlined
def _number(
    key: np.ndarray, index: np.ndarray, table: np.ndarray, bits: np.int64, known: np.ndarray, count: np.int64
) -> tuple[np.int64, np.int64]:
    """Number each new key and write every key's number to `index`; returns new `bits` and `count`."""
    axes = index.shape[1]
    for k in range(index.shape[0]):
        for r in range(axes):
            slot, number = find(key[k * axes + r], table, bits, known)
            if number == 0:
                known[count] = key[k * axes + r]
                count += 1
                number = np.uint32(count)
                table[slot] = number
                if 3 * count > 1 << bits:
                    bits += 1
                    table[: 1 << bits] = 0
                    for v in range(count):
                        slot, _ = find(known[v], table, bits, known)
                        table[slot] = v + 1
            index[k, r] = number - np.uint32(1)
    return bits, count


def slots_for(n: int, axes: int) -> int:
    """The slots of a hash table that is large enough for the vertices of n points."""
    return 1 << max(14, (6 * (n + 1) * axes - 1).bit_length())


@entry
def find_vertices(
    team: Team,
    features: Features,
    basis: Basis,
    points: np.ndarray,
    rooms: Room,
    tables: np.ndarray,
    index: np.ndarray,
    weight: np.ndarray,
    found: Found,
) -> None:
    """Fill `index`, `weight` and `found`; vertices are numbered separately in each strip.

    Args:
        points: int64 [strips + 1]; where each strip begins.
        rooms: for each thread.
        tables: uint32 [threads, slots]; a hash table for each thread, with `slots_for` the points of a strip.
        index: uint32 [points, d + 1]; number of each vertex around a point.
        weight: float32 [points, d + 1]; their barycentric weights. Empty if they are not kept.
    """
    axes, strips = len(basis.step), len(found.counts)
    room, table = room_of(rooms, team.me), tables[team.me]
    while True:
        strip = draw(team, P0, strips)
        if strip < 0:
            break
        bits, count = np.int64(14), np.int64(0)
        table[: 1 << bits] = 0
        known = found.known[points[strip] * axes : points[strip + 1] * axes]
        for start in range(points[strip], points[strip + 1], POINTS):
            stop = min(start + POINTS, points[strip + 1])
            place(features, basis, start, stop - start, room)
            find_keys(basis, stop - start, room)
            if len(weight) > 0:
                find_weights(stop - start, room, weight[start:stop])
            bits, count = _number(room.key, index[start:stop], table, bits, known, count)
        found.counts[strip] = count
        finish(team, P0)
    wait(team, P0, strips)
