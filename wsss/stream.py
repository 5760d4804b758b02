"""One thing after another with reading, computing and writing side by side, in threads; without torch, so that it starts at once."""

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
) -> Generator[Result, None, None]:
    """`function` of each item, in order; the first error ends it and drops what has not begun.

    At most two results a thread wait to be taken, so memory stays bounded.

    Args:
        function: must let go of the interpreter lock for threads to help, as decoding, NumPy and numba do.
        items: what to work on.
        total: how many there are.
        progress: called with the number of items done and `total`.
        threads: None takes the machine's cores.
    """
    threads = threads or os.cpu_count() or 1
    source = iter(items)
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
