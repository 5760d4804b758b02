"""One thing after another with reading, computing and writing side by side, in threads; without torch, so that it starts at once."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
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
) -> Iterator[Result]:
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


class Writer:
    """Writes in the background; `with` waits for all of it and raises what went wrong."""

    def __init__(self, threads: int = 2) -> None:
        self._pool, self._room = ThreadPoolExecutor(threads), 4 * threads
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> "Writer":
        return self

    def __call__(self, write: Callable[..., None], *args: object) -> None:
        """Call `write(*args)` soon; waits while too much is under way."""
        self._pending.append(self._pool.submit(write, *args))
        while len(self._pending) > self._room:
            self._pending.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for future in self._pending:
                future.result()
