"""Ordered, concurrent processing in threads. No torch here, so that the command line starts quickly."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]


def in_threads(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    total: int = 0,
    progress: Progress | None = None,
    threads: int | None = None,
    batch: int = 1,
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item, in order; the first error ends it and cancels calls that have not started.

    At most two results (or batches) per thread wait to be consumed, so memory stays bounded.

    Args:
        function: threads help only if it releases the interpreter lock, as decoding, NumPy and numba do.
        items: the inputs.
        total: number of items, for `progress`.
        progress: called with the number of items done and `total`.
        threads: number of threads; None for one per core.
        batch: how many items a thread takes at once: many for calls that are quicker than handing them over (about 50 microseconds).
    """
    threads = threads or os.cpu_count() or 1
    source = iter(items)
    if batch > 1:
        parts = iter(lambda: list(itertools.islice(source, batch)), [])
        done_parts = in_threads(lambda part: [function(item) for item in part], parts, threads=threads)
        for done, result in enumerate(itertools.chain.from_iterable(done_parts), 1):
            yield result
            if progress:
                progress(done, total)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            waiting.extend(pool.submit(function, item) for item in itertools.islice(source, 2 * threads))
            for done in itertools.count(1):
                if not waiting:
                    break
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(source, 1))
                if progress:
                    progress(done, total)
        finally:
            for future in waiting:
                future.cancel()
