"""The loop over pictures: loading, computing and writing run concurrently, and the processes share the pictures."""

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
    is_done: Callable[[int], bool] | None = None,
) -> None:
    """Write a file for each picture; existing files are skipped, so a killed stage continues where it stopped.

    `load` and `write` run in worker threads, `compute` in the calling thread. At most four pictures per thread are in
    flight, so memory stays bounded. Computed results are written before the loop ends, also after a signal or an error.

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

    Raises:
        Stopped: a signal has arrived.
    """
    share = launch.share(range(len(images)) if chosen is None else chosen)
    paths = {index: out / f"{images.names[index]}{suffix}" for index in share}
    todo = [index for index in share if not (is_done(index) if is_done else paths[index].exists())]
    threads = launch.threads()

    ended: list[BaseException] = []

    def computed(loaded: Iterator[Loaded]) -> Iterator[tuple[Path, Made]]:
        ahead = zip(todo, loaded, strict=True)
        while stopping.requested_signal() is None:
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
        Progress(title, len(share), done=len(share) - len(todo)) as progress,
        closing(in_threads(load, todo, threads=threads)) as loaded,
        closing(in_threads(lambda made: write(*made), computed(loaded), threads=threads)) as written,
    ):
        for _ in written:
            progress.advance(stop=False)
    if ended:
        raise ended[0]


def as_loaded(_: int, loaded: Loaded) -> Loaded:
    """The `compute` function of a stage that runs no network: the loading threads do all the work."""
    return loaded


def sum_over_pictures(
    images: Images, load: Callable[[int], Loaded], add: Callable[[int, Loaded], None], *, title: str
) -> None:
    """Load this process's share of the pictures in threads, and add each to a sum in the calling thread; a killed sum starts over.

    Args:
        images: the pictures.
        load: reads the picture with this index.
        add: called with the index and the loaded picture.
        title: title of the progress bar.

    Raises:
        Stopped: a signal has arrived.
    """
    share = launch.share(range(len(images)))
    with (
        Progress(title, len(share), resumable=False) as progress,
        closing(in_threads(load, share, threads=launch.threads())) as loaded,
    ):
        for index, item in zip(share, loaded, strict=True):
            add(index, item)
            progress.advance()


def read_prepared(prepare: Callable[[Any], Loaded], images: Images, index: int) -> tuple[Loaded, tuple[int, int]]:
    """The result of `prepare` for a picture, and the picture's height and width; errors of `prepare` name the file."""
    image = images.read(index)
    try:
        return prepare(image), image.shape[:2]
    except BadInput as error:
        raise BadInput(images.where(index), error.found, error.expected, error.do) from error
