"""Files read side by side in threads, without torch, so that a look at a data set starts at once."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], total: int = 0, progress: Progress | None = None
) -> Iterator[Result]:
    """`function` of each item, in order; the first error ends it and drops what has not begun.

    Args:
        function: must let go of the interpreter lock for threads to help, as decoding and reading do.
        items: what to work on.
        total: how many there are.
        progress: called with the number of items done and `total`.
    """
    threads = os.cpu_count() or 1
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque(
            pool.submit(function, item) for item in itertools.islice(source, 4 * threads)
        )
        try:
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
