"""The loop over pictures: load ahead, compute, write, each side by side with the others; shared out over the processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from wsss import launch, stopping
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
) -> None:
    """Make a file of each picture; files that are there are left alone, so a killed stage goes on.

    `load` and `write` run in threads, `compute` in this one. At most four pictures a thread are under way, so memory stays
    bounded. Whatever ends the loop, what was computed is written first.

    Args:
        images: the pictures.
        out: folder of the files.
        suffix: of the files, `NAME` + suffix.
        load: reads and prepares the picture of an index.
        compute: makes the content of the file from the index and what was loaded; `as_loaded` where `load` does all of it.
        write: writes the content to a path, whole or not at all.
        title: what is going on, for the progress bar.
        chosen: indices of the pictures that get a file; None for all.

    Raises:
        Stopped: a signal has asked for it.
    """
    mine = launch.share(range(len(images)) if chosen is None else chosen)
    paths = {index: out / f"{images.names[index]}{suffix}" for index in mine}
    todo = [index for index in mine if not paths[index].exists()]
    threads = launch.threads()

    ended: list[BaseException] = []

    def computed(loaded: Iterator[Loaded]) -> Iterator[tuple[Path, Made]]:
        ahead = zip(todo, loaded, strict=True)
        while stopping.asked() is None:
            try:
                index, item = next(ahead)
                made = compute(index, item)
            except StopIteration:
                return
            except BaseException as error:
                ended.append(error)
                return
            yield paths[index], made

    with (
        Progress(title, len(mine), done=len(mine) - len(todo)) as progress,
        closing(in_threads(load, todo, threads=threads)) as loaded,
        closing(in_threads(lambda made: write(*made), computed(loaded), threads=threads)) as written,
    ):
        for _ in written:
            progress.advance(stop=False)
    if ended:
        raise ended[0]


def as_loaded(_: int, loaded: Loaded) -> Loaded:
    """The `compute` of a stage that runs no network: all its work is done by the threads that load."""
    return loaded


def sum_over_pictures(
    images: Images, load: Callable[[int], Loaded], add: Callable[[int, Loaded], None], *, title: str
) -> None:
    """Load this process's share of the pictures in threads, and add each to a sum in this one; nothing is kept of it after a kill.

    Args:
        images: the pictures.
        load: reads the picture of an index.
        add: takes the index and what was loaded.
        title: what is going on, for the progress bar.

    Raises:
        Stopped: a signal has asked for it.
    """
    mine = launch.share(range(len(images)))
    with (
        Progress(title, len(mine), kept=False) as progress,
        closing(in_threads(load, mine, threads=launch.threads())) as loaded,
    ):
        for index, item in zip(mine, loaded, strict=True):
            add(index, item)
            progress.advance()


def read_prepared(prepare: Callable[[Any], Loaded], images: Images, index: int) -> tuple[Loaded, tuple[int, int]]:
    """What `prepare` makes of a picture, and the picture's height and width; its errors name the picture's file."""
    image = images.read(index)
    try:
        return prepare(image), image.shape[:2]
    except BadInput as error:
        raise BadInput(images.where(index), error.found, error.expected, error.do) from error
