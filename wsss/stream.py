"""Work on one picture after another with decoding, computing and writing side by side, in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from wsss import launch

Item = TypeVar("Item")
Result = TypeVar("Result")


def stream(
    items: Iterable[Item], function: Callable[[Item], Result], threads: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Each item with `function(item)`, in order, computed ahead in threads.

    At most two results a thread wait to be taken, so memory stays bounded. The first error ends it.

    Args:
        items: what to work on.
        function: must let go of the interpreter lock for threads to help: decoding, NumPy, numba and torch do.
        threads: None takes what this process may use.
    """
    n = threads or launch.threads()
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(n) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > 2 * n:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for future in self._pending:
                future.result()


def missing(names: Iterable[str], folder: Path, suffix: str) -> list[int]:
    """This process's share of the positions whose file `folder/NAME+suffix` is not there yet."""
    positions = launch.share(list(enumerate(names)))
    return [position for position, name in positions if not os.path.exists(folder / f"{name}{suffix}")]
