"""Score class-agnostic regions against true masks: how well the best of a number of regions fits each object."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from wsss import launch
from wsss.arrays import Float, Int, UInt8
from wsss.data.images import IGNORE, Images
from wsss.errors import BadInput
from wsss.ops.regions import Regions
from wsss.regions.files import read_regions_of
from wsss.run import stage
from wsss.stages.each import by_pixels, sum_over_pictures
from wsss.stages.evaluate import check_masks
from wsss.stages.pages import aligned
from wsss.storage import read_json, write_json

RECALL = "recall.json"
# numbers of regions, the surest ones of each picture
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
THRESHOLDS = (0.5, 0.75)
# smaller objects are slips of the pen
SMALLEST = 32
_EIGHT = np.ones((3, 3), bool)


def objects(truth: UInt8[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], Int[np.ndarray, " m"]]:
    """The objects of a true mask: the 8-connected components of its classes that have at least 32 pixels.

    Returns:
        The object of each pixel from 1, 0 elsewhere; and the label of each object.
    """
    numbers, labels = np.zeros(truth.shape, np.int64), []
    for label in np.unique(truth[(truth > 0) & (truth < IGNORE)]):
        parts, _ = ndimage.label(truth == label, _EIGHT)
        areas = np.bincount(parts.ravel())
        for part in np.flatnonzero(areas[1:] >= SMALLEST) + 1:
            labels.append(int(label))
            numbers[parts == part] = len(labels)
    return numbers, np.array(labels, np.int64)


def best_overlaps(
    regions: Regions, truth: UInt8[np.ndarray, "h w"], counts: tuple[int, ...] = COUNTS
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, "m c"]]:
    """The labels of the objects of a picture, and the best IoU of each with the regions of highest score.

    Args:
        regions: of equal scores, earlier ones count first.
        truth: true mask; pixels of 255 count neither for objects nor for regions.
        counts: numbers of regions, in ascending order.
    """
    numbers, labels = objects(truth)
    best = np.zeros((len(labels), len(counts)))
    if not len(labels) or not len(regions):
        return labels, best
    ignored = len(labels) + 1
    shared = regions.overlaps(np.where(truth == IGNORE, ignored, numbers), ignored)
    areas = np.bincount(numbers[truth != IGNORE], minlength=ignored)[1:]
    unions = shared.sum(axis=1)[:, None] + areas - shared[:, 1:]
    overlaps = (shared[:, 1:] / np.maximum(unions, 1))[np.argsort(-regions.scores, kind="stable")]
    cumulated = np.maximum.accumulate(overlaps, axis=0)
    return labels, cumulated[[min(count, len(regions)) - 1 for count in counts]].T


@stage(kind="recall", makes="figures", title="recall of regions")
def evaluate_regions(images: Images, *, regions: Path, out: Path) -> dict[str, Any]:
    """Score regions, and write `recall.json`: the mean of the best IoU of all objects, and the shares of objects with a higher one than 0.5 and 0.75.

    Args:
        images: pictures with true masks.
        regions: folder of their regions.
        out: the stage's folder.

    Raises:
        BadInput: a picture has no true mask or no regions, or no object is large enough.
    """
    check_masks(images)
    found: list[tuple[str, list[int], list[list[float]], int, int]] = []

    def load(index: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        truth = images.read_mask(index)
        one = read_regions_of(images, regions, index, (truth.shape[0], truth.shape[1]))
        size = (regions / f"{images.names[index]}.npz").stat().st_size
        return *best_overlaps(one, truth), len(one), size

    def add(index: int, loaded: tuple[np.ndarray, np.ndarray, int, int]) -> None:
        labels, best, number, size = loaded
        found.append((images.names[index], labels.tolist(), best.tolist(), number, size))

    # the true mask, and the numbers of the regions
    sum_over_pictures(images, load, add, title=f"recall {out.name}", needs=by_pixels(images, 40))
    every = sorted(launch.gathered(found))
    labels = np.array([label for _, several, *_ in every for label in several], np.int64)
    if not len(labels):
        do = "Choose a split with true masks of objects."
        raise BadInput(images.title, f"no object of {SMALLEST} or more pixels", "objects to compare regions with", do)
    best = np.array([row for _, _, rows, *_ in every for row in rows])
    means = {
        "regions per picture": float(np.mean([number for *_, number, _ in every])),
        "bytes per picture": float(np.mean([size for *_, size in every])),
    }
    if launch.is_first():
        classes = {name: _curves(best[labels == label + 1]) for label, name in enumerate(images.class_names)}
        content = {
            "protocol": {
                "split": images.title,
                "images": len(images),
                "objects": f"8-connected components of true masks with at least {SMALLEST} pixels",
                "regions": "those of highest score in each picture",
                "truth 255": "counts neither for objects nor for regions",
            },
            **means,
            "counts": list(COUNTS),
            "all": _curves(best),
            "classes": {name: curve for name, curve in classes.items() if curve["objects"]},
        }
        write_json(out / RECALL, content)
    return {"images": len(images), "objects": len(labels), "best IoU": float(best[:, -1].mean()), **means}


def _curves(best: Float[np.ndarray, "m c"]) -> dict[str, Any]:
    if not len(best):
        return {"objects": 0}
    recalls = {f"recall at {threshold}": (best >= threshold).mean(axis=0).tolist() for threshold in THRESHOLDS}
    return {"objects": len(best), "mean best IoU": best.mean(axis=0).tolist(), **recalls}


def recall_table(scored: Path) -> str:
    """The curves of `evaluate_regions` as aligned text."""
    content = read_json(scored / RECALL, "recall of regions")
    header = ("regions", "mean best IoU", *(f"recall at {threshold}" for threshold in THRESHOLDS))
    rows = [
        (str(count), *(f"{100 * content['all'][name][place]:.1f}" for name in header[1:]))
        for place, count in enumerate(content["counts"])
    ]
    about = f"{content['all']['objects']} objects in {content['protocol']['images']} pictures; {content['regions per picture']:.0f} regions and "
    return f"{aligned((header, *rows), texts=0)}\n{about}{content['bytes per picture']:.0f} bytes a picture"
