"""Doubts about activation maps, from a sample of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsss.arrays import Float, Int
from wsss.data.images import Images
from wsss.data.maps import read_matching_cams
from wsss.health.note import Health, Note, listed
from wsss.health.sample import collected, same, sampled
from wsss.ops.thresholds import BINS, Counts, highest_values, humps

# A map is flat if the standard deviation of its values, which are in [0, 1], is below this; docs/health.md has the measured values
FLAT_DEVIATION = 0.08
# Notes appear from this share of the maps on, and for a class from this share of its maps on
NOTABLE, NOTABLE_IN_CLASS = 0.2, 0.5
# A rule about a class needs at least this many maps
FEWEST = 5


class MapStatistics(NamedTuple):
    """One map of a picture.

    Attributes:
        label: 0-based class.
        mean, deviation: mean and standard deviation of its values.
    """

    label: int
    mean: float
    deviation: float


def map_statistics(classes: Int[np.ndarray, " k"], maps: Float[np.ndarray, "k h w"]) -> list[MapStatistics]:
    """The statistics of each map of a picture."""
    return [
        MapStatistics(int(label), float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)))
        for label, values in zip(classes, maps, strict=True)
    ]


def map_health(images: Images, cams: Path) -> Health:
    """Find flat maps. All processes must call this, and get the same.

    Args:
        images: the pictures and their tags.
        cams: folder of their maps.

    Raises:
        BadInput: the maps do not match the pictures.
    """

    def measure(index: int) -> tuple[list[MapStatistics], Counts]:
        classes, maps = read_matching_cams(images, cams, index, images.size_hw(index))
        return map_statistics(classes, maps), highest_values(maps)

    by_picture = collected(images, sampled(images), measure, same, f"health {cams.name}")
    histogram = sum((counts for _, counts in by_picture), np.zeros(BINS, np.int64))
    return judged_maps([one for maps, _ in by_picture for one in maps], histogram, images.class_names)


def judged_maps(maps: Sequence[MapStatistics], histogram: Counts, class_names: Sequence[str]) -> Health:
    """The health of maps.

    Args:
        maps: their statistics.
        histogram: of the highest map of each pixel; see `wsss.ops.thresholds.highest_values`.
        class_names: names of the classes.
    """
    shape = humps(histogram) if histogram.any() else None
    deviations = np.array([one.deviation for one in maps])
    flat = deviations < FLAT_DEVIATION
    labels = np.array([one.label for one in maps], int)
    of_class = {
        class_names[label]: (int((flat & (labels == label)).sum()), int((labels == label).sum()))
        for label in sorted(set(labels.tolist()))
    }
    measured = {
        "maps": len(maps),
        "flat maps": int(flat.sum()),
        "median deviation": round(float(np.median(deviations)), 4) if len(maps) else None,
        "median mean": round(float(np.median([one.mean for one in maps])), 4) if len(maps) else None,
        "flat maps of each class": {name: count for name, (count, _) in of_class.items()},
        "valley": None if shape is None else round(shape.valley, 4),
    }
    some = [name for name, (count, every) in of_class.items() if every >= FEWEST and count >= NOTABLE_IN_CLASS * every]
    notes = []
    if len(maps) and (flat.mean() >= NOTABLE or some):
        where = "" if len(some) in (0, len(of_class)) else f" (mainly of {listed(f'`{name}`' for name in some)})"
        notes.append(_flat(int(flat.sum()), len(maps), where))
    if len(maps) >= FEWEST and shape is not None and shape.one_hump:
        notes.append(_one_hump(shape.valley))
    return Health(measured, notes)


def _flat(count: int, every: int, where: str) -> Note:
    return Note(
        "flat-maps",
        f"{count} of {every} sampled maps are flat{where}: their values hardly differ (standard deviation below {FLAT_DEVIATION}).",
        "A flat map says nothing about where the object is; a threshold makes it all foreground or all background.",
        "Look at the loss curve in the report: if it does not fall, lower --classifier.training.lr (a tenth) or raise "
        "--classifier.training.epochs; if it does, check the tags of these classes.",
    )


def _one_hump(valley: float) -> Note:
    return Note(
        "one-hump",
        "The values of the maps form one group: their histogram has no valley between low and high values "
        f"(depth {valley:.2f}).",
        "Nothing in the maps separates objects from background, so any threshold is a guess.",
        "Look at the maps in the report. If they show the objects, try other values of --refiner.threshold and compare the masks; if they do not, "
        "the classifier or its tags are the problem (see the other notes).",
    )
