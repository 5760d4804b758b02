"""The pictures that health notes are based on: a fixed sample, so that the cost does not grow with the dataset."""

from collections.abc import Callable
from typing import TypeVar

from wsss import launch
from wsss.data.images import Images
from wsss.stages.each import sum_over_pictures
from wsss.storage import digest

# Most pictures that are looked at
SAMPLE = 200

Loaded = TypeVar("Loaded")
Found = TypeVar("Found")


def sampled(images: Images, most: int = SAMPLE) -> list[int]:
    """The indices of at most `most` pictures, chosen by digests of their names: the same in every run and every process."""
    by_digest = sorted(range(len(images)), key=lambda index: digest(images.names[index]))
    return sorted(by_digest[:most])


def collected(
    images: Images, chosen: list[int], load: Callable[[int], Loaded], measure: Callable[[Loaded], Found], title: str
) -> list[Found]:
    """What `measure` finds for each chosen picture, in their order. The processes share the work, and all get the result.

    Args:
        images: the pictures.
        chosen: indices of those to look at.
        load: called with an index of `images`, in threads.
        measure: called with what was loaded, in the calling thread.
        title: of the progress bar.
    """
    found: list[tuple[int, Found]] = []
    sum_over_pictures(
        images.subset(chosen),
        lambda position: load(chosen[position]),
        lambda position, loaded: found.append((position, measure(loaded))),
        title=title,
    )
    return [one for _, one in sorted(launch.gathered(found), key=lambda pair: pair[0])]


def same(loaded: Loaded) -> Loaded:
    """The `measure` function of a check that the loading threads do alone."""
    return loaded
