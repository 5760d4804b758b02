"""Run one compiled kernel in several threads.

The work of a kernel is divided into phases, and a phase into chunks. Each chunk of a phase writes to separate memory in a fixed order, so
results do not depend on the number of threads.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.core.base import BaseContext
from numba.core.types import Array, Type
from numba.core.typing import Context, Signature

from wsss.ops.crf.compiling import Intrinsic, Source, Values, inner, returns

# numbers of phases: of Python's integers, each constant is a type of its own, for which callees are compiled once more
P0, P1, P2 = np.int64(0), np.int64(1), np.int64(2)
APART = 16  # distance between counters in int64, so that no two share a cache line


class Team(NamedTuple):
    """The state that the threads share, and the number of this thread."""

    counters: np.ndarray
    """int64; for each phase, the number of chunks drawn from each thread's share, then the number of finished chunks"""
    threads: int
    me: int
    """number of this thread"""
    source: Source


def _counter(
    context: BaseContext, builder: ir.IRBuilder, array_type: Array, array: ir.Value, index: ir.Value
) -> ir.Value:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@returns(int)
def fetch_add(typing_context: Context, array: Array, index: Type, amount: Type) -> Intrinsic:
    """Add to `array[index]` atomically and return the previous value."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        place = _counter(context, builder, array, *arguments[:2])
        return builder.atomic_rmw("add", place, arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@returns(int)
def read(typing_context: Context, array: Array, index: Type) -> Intrinsic:
    """`array[index]`, read atomically: writes of other threads before they added to it are visible after this."""

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Values) -> ir.Value:
        place = _counter(context, builder, array, *arguments[:2])
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(array, types.intp), generate


_give_way = types.ExternalFunction("SwitchToThread" if os.name == "nt" else "sched_yield", types.int32())


@inner
def draw(team: Team, phase: int | np.int64, chunks: int) -> int:
    """The next chunk of a phase for this thread, first from its own share, then from those of the others; -1 if none is left.

    In every phase a thread has about the same part of the picture and of the vertices, which stay in its cache.
    """
    threads = team.threads
    for i in range(threads):
        owner = (team.me + i) % threads
        start, stop = owner * chunks // threads, (owner + 1) * chunks // threads
        chunk = start + fetch_add(team.counters, APART * (phase * (threads + 1) + owner), 1)
        if chunk < stop:
            return chunk
    return -1


@inner
def finish(team: Team, phase: int | np.int64) -> None:
    """Mark a chunk drawn from the phase as finished."""
    fetch_add(team.counters, APART * (phase * (team.threads + 1) + team.threads), 1)


@inner
def wait(team: Team, phase: int | np.int64, chunks: int) -> None:
    """Wait until `chunks` chunks of the phase are finished. Only running threads draw chunks, so this terminates."""
    tries = 0
    while read(team.counters, APART * (phase * (team.threads + 1) + team.threads)) < chunks:
        tries += 1
        if tries > 1000:
            _give_way()


@functools.cache
def _helpers(process: int) -> ThreadPoolExecutor:
    """Idle threads; they do not survive in a forked process, which therefore gets its own."""
    return ThreadPoolExecutor(os.cpu_count(), "permutohedral")


def run_together(kernel: Callable[..., None], phases: int, threads: int, *arguments: object) -> None:
    """Run `kernel(team, *arguments)`, an `entry`, in `threads` threads, this one included.

    A thread that is late finds nothing left to do; one that has not begun when all is done is called off.
    """
    counters, source = np.zeros(APART * phases * (threads + 1), np.int64), Source()
    submit = _helpers(os.getpid()).submit
    runs = [submit(kernel, Team(counters, threads, me, source), *arguments) for me in range(1, threads)]
    kernel(Team(counters, threads, 0, source), *arguments)
    for run in runs:
        if not run.cancel():
            run.result()


def compile_entry(kernel: Any, *arguments: object) -> None:
    """Compile an `entry` for arguments of these types, and keep the code, without running it."""
    team = Team(np.zeros(0, np.int64), 1, 0, Source())
    kernel.compile(tuple(typeof(argument) for argument in (team, *arguments)))
