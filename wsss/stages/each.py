"""The loop over pictures: loading, computing and writing run concurrently, and the processes share the pictures."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Generic, TypeVar

from wsss import launch, memory, stopping
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.progress import Progress
from wsss.stream import in_threads

Loaded = TypeVar("Loaded")
Made = TypeVar("Made")


def for_each_picture(
    images: Images,
    out: Path,
    suffix: str,
    load: Callable[[int], Loaded],
    compute: Callable[[int, Loaded], Made],
    write: Callable[[Path, Made], None],
    *,
    title: str,
    chosen: Sequence[int] | None = None,
    is_done: Callable[[int], bool] | None = None,
    needs: Callable[[int], int] | None = None,
) -> None:
    """Write a file for each picture; existing files are skipped, so a killed stage continues where it stopped.

    `load` and `write` run in worker threads, `compute` in the calling thread. At most four pictures per thread are in
    flight, and with `needs` no more than fit into the memory budget (`wsss.memory`). Computed results are written before the
    loop ends, also after a signal or an error.

    Args:
        images: the pictures.
        out: output folder.
        suffix: suffix of the files, which are called `NAME` + suffix.
        load: reads and prepares the picture with this index.
        compute: makes the content of the file from the index and the loaded picture; `as_loaded` if `load` does all the work.
        write: writes the content to a path, completely or not at all.
        title: title of the progress bar.
        chosen: indices of the pictures to process; None for all.
        is_done: whether the picture with this index can be skipped; None skips pictures whose file exists.
        needs: the bytes that the picture with this index takes from when it is read until its file is written.

    Raises:
        Stopped: a signal has arrived.
    """

    def compute_one(batch: Sequence[int], loaded: Sequence[Loaded]) -> list[Made]:
        return [compute(batch[0], loaded[0])]

    batches = [(index,) for index in (range(len(images)) if chosen is None else chosen)]
    for_each_batch(
        images, out, suffix, load, compute_one, write, batches=batches, title=title, is_done=is_done, needs=needs
    )


def for_each_batch(
    images: Images,
    out: Path,
    suffix: str,
    load: Callable[[int], Loaded],
    compute: Callable[[Sequence[int], Sequence[Loaded]], Sequence[Made]],
    write: Callable[[Path, Made], None],
    *,
    batches: Sequence[Sequence[int]],
    title: str,
    is_done: Callable[[int], bool] | None = None,
    needs: Callable[[int], int] | None = None,
) -> None:
    """As `for_each_picture`, with pictures that are computed together.

    The processes share the batches. A batch of which a file is missing is computed as a whole, since results of other batches may be rounded
    in another way. Only if its pictures do not fit into the memory budget together, they are computed one by one.

    Args:
        images, out, suffix, load, write, title, is_done, needs: as for `for_each_picture`.
        compute: makes the contents of the files from the indices and the loaded pictures of a batch.
        batches: the indices of the pictures.

    Raises:
        Stopped: a signal has arrived.
    """
    share = launch.share(batches)
    names = {index: f"{images.names[index]}{suffix}" for batch in share for index in batch}
    is_done = is_done or _existing(out, names)
    left = [batch for batch in share if not all(map(is_done, batch))]
    todo = [index for batch in left for index in batch]
    threads = launch.threads()

    ended: list[BaseException] = []
    room = _Room(todo, load, needs)

    def write_one(made: tuple[int, Made]) -> None:
        index, content = made
        try:
            write(out / names[index], content)
        except BaseException:
            room.admission.close()
            raise
        room.leave(index)

    def computed(loaded: Iterator[Loaded]) -> Iterator[tuple[int, Made]]:
        for part in (part for batch in left for part in _fitting(batch, needs)):
            if stopping.requested_signal() is not None:
                return
            try:
                made = compute(part, [next(loaded) for _ in part])
            except BaseException as error:
                ended.append(error)
                return
            yield from zip(part, made, strict=True)

    with (
        Progress(title, len(names), done=len(names) - len(todo)) as progress,
        closing(in_threads(room.load, todo, threads=threads)) as loaded,
        closing(room.admission),
        closing(in_threads(write_one, computed(loaded), threads=threads)) as written,
    ):
        for _ in written:
            progress.advance(stop=False)
    if ended:
        raise ended[0]


def _fitting(batch: Sequence[int], needs: Callable[[int], int] | None) -> list[Sequence[int]]:
    """The batch, or its pictures one by one if they do not fit into the memory budget together."""
    if needs is None or len(batch) == 1:
        return [batch]
    try:
        if sum(map(needs, batch)) <= memory.budget():
            return [batch]
    except BadInput:  # a picture that does not even fit alone, which is said when it is its turn
        pass
    return [(index,) for index in batch]


def within_budget(
    images: Images,
    bytes_for: Callable[[int, tuple[int, int]], float],
    do: str,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> Callable[[int], int]:
    """The `needs` of `for_each_picture`, which stops with one error at a picture that does not fit into the memory budget.

    Args:
        images: the pictures.
        bytes_for: bytes of the picture with this index, and height and width.
        do: what to do about a picture that is too large, besides giving more memory; begins with a comma.
        sizes: heights and widths of the pictures, if they are known; otherwise they are read when they are needed.
    """

    def needs(index: int) -> int:
        size_hw = images.size_hw(index) if sizes is None else sizes[index]
        needed = bytes_for(index, size_hw)
        if needed > memory.budget():
            raise memory.too_large(images.where(index), size_hw, needed, do)
        return int(needed)

    return needs


def by_pixels(images: Images, each: float, of_class: float = 0) -> Callable[[int], int]:
    """The `needs` of a stage that runs no network.

    Args:
        images: the pictures.
        each: bytes for each pixel.
        of_class: more of them, for each class that the picture is tagged with.
    """

    def bytes_for(index: int, size_hw: tuple[int, int]) -> float:
        return math.prod(size_hw) * (each + of_class * len(images.classes(index)))

    return within_budget(images, bytes_for, ", or shrink the picture")


def _existing(out: Path, names: Mapping[int, str]) -> Callable[[int], bool]:
    """Tells whether the file of an index exists; each folder is listed once, which is faster than a look at every file."""
    folders: dict[str, frozenset[str]] = {}

    def is_there(index: int) -> bool:
        folder, _, name = names[index].rpartition("/")
        if folder not in folders:
            folders[folder] = _files_in(out / folder)
        return name in folders[folder]

    return is_there


def _files_in(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry))
    except FileNotFoundError:
        return frozenset()


def as_loaded(_: int, loaded: Loaded) -> Loaded:
    """The `compute` function of a stage that runs no network: the loading threads do all the work."""
    return loaded


def sum_over_pictures(
    images: Images,
    load: Callable[[int], Loaded],
    add: Callable[[int, Loaded], None],
    *,
    title: str,
    needs: Callable[[int], int] | None = None,
) -> None:
    """Load this process's share of the pictures in threads, and add each to a sum in the calling thread; a killed sum starts over.

    Args:
        images: the pictures.
        load: reads the picture with this index.
        add: called with the index and the loaded picture.
        title: title of the progress bar.
        needs: the bytes that the picture with this index takes from when it is read until it is added.

    Raises:
        Stopped: a signal has arrived.
    """
    share = launch.share(range(len(images)))
    room = _Room(share, load, needs)
    with (
        Progress(title, len(share), resumable=False) as progress,
        closing(in_threads(room.load, share, threads=launch.threads())) as loaded,
        closing(room.admission),
    ):
        for index, item in zip(share, loaded, strict=True):
            add(index, item)
            room.leave(index)
            progress.advance()


class _Room(Generic[Loaded]):
    """Pictures that are loaded once they fit into the memory budget, in their order.

    Args:
        todo: the indices of the pictures.
        load: reads one.
        needs: the bytes that it takes; None: it is loaded at once.
    """

    def __init__(self, todo: Sequence[int], load: Callable[[int], Loaded], needs: Callable[[int], int] | None) -> None:
        self.admission, self._read, self._needs = memory.Admission(), load, needs
        self._numbers = {index: number for number, index in enumerate(todo)}
        self._taken: dict[int, int] = {}

    def load(self, index: int) -> Loaded:
        """The loaded picture, once there is room for it."""
        needs = self._needs
        try:
            if needs is not None:
                self._taken[index] = self.admission.begin(self._numbers[index], lambda: needs(index))
            return self._read(index)
        except BaseException:
            # pictures that wait for the memory of this one would wait forever
            self.admission.close()
            raise

    def leave(self, index: int) -> None:
        """A picture gives its memory back."""
        if index in self._taken:
            self.admission.end(self._taken.pop(index))


def read_prepared(prepare: Callable[[Any], Loaded], images: Images, index: int) -> tuple[Loaded, tuple[int, int]]:
    """The result of `prepare` for a picture, and the picture's height and width; errors of `prepare` name the file."""
    image = images.read(index)
    try:
        return prepare(image), image.shape[:2]
    except BadInput as error:
        raise BadInput(images.where(index), error.found, error.expected, error.do) from error
