"""Time of operations on regions of a picture of 500x375: overlaps, SEPL, SAMS, averages over levels, proposals, files.

OMP_NUM_THREADS=1 python benchmarks/regions.py [--regions 300] [--classes 20] [--repeats 5]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from wsss.ops.region_labels import level_means, most_frequent, sams, sepl
from wsss.ops.regions import Regions
from wsss.regions.files import read_regions, write_regions
from wsss.regions.tree import TreeSettings

HEIGHT, WIDTH = 375, 500


def smooth_picture(rng: np.random.Generator) -> np.ndarray:
    """A picture with soft and sharp edges, and a little noise."""
    coarse = ndimage.zoom(rng.uniform(0, 255, (9, 12, 3)), (HEIGHT / 9, WIDTH / 12, 1), order=1)
    sharp = ndimage.zoom(rng.uniform(-60, 60, (15, 20, 3)), (HEIGHT / 15, WIDTH / 20, 1), order=0)
    return (coarse + sharp + rng.normal(0, 3, coarse.shape)).clip(0, 255).astype(np.uint8)


def overlapping_masks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Ellipses of all sizes, as a proposer of objects gives them."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    masks = np.empty((count, HEIGHT, WIDTH), bool)
    for mask in masks:
        y, x = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
        down, across = rng.uniform(5, 120, 2)
        mask[:] = ((rows - y) / down) ** 2 + ((columns - x) / across) ** 2 < 1
    return masks


def best_time(work: Callable[[], object], repeats: int) -> float:
    """CPU milliseconds of the fastest of several times, after a first one."""
    work()
    seconds = []
    for _ in range(repeats):
        before = time.process_time()
        work()
        seconds.append(time.process_time() - before)
    return 1000 * min(seconds)


def loop_over_pairs(masks: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The overlaps of all regions and labels, a pair at a time."""
    return np.array([[np.count_nonzero(mask & (labels == label)) for label in range(count)] for mask in masks])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=300)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    masks, labels_in_all = overlapping_masks(rng, chosen.regions), chosen.classes + 1
    labels = rng.integers(0, labels_in_all, (12, 16)).astype(np.uint8)
    labels = ndimage.zoom(labels, (HEIGHT / 12, WIDTH / 16), order=0)
    maps = rng.random((chosen.classes, HEIGHT, WIDTH), np.float32)
    classes = np.arange(chosen.classes)
    regions = Regions.of_masks(masks, levels=rng.integers(0, 3, len(masks)))
    picture, tree = smooth_picture(rng), TreeSettings().proposer()
    np.testing.assert_array_equal(
        regions.overlaps(labels, labels_in_all)[:5], loop_over_pairs(masks[:5], labels, labels_in_all)
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.npz"
        write_regions(file, regions)
        measured = {
            "overlaps of all regions and classes": lambda: regions.overlaps(labels, labels_in_all),
            "SEPL": lambda: sepl(regions, labels),
            "SAMS": lambda: sams(regions, classes, maps),
            "averages of maps over 3 levels": lambda: level_means(regions, maps),
            "most frequent labels": lambda: most_frequent(labels, regions.painted()),
            "all intersections of regions": regions.intersections,
            "regions of masks": lambda: Regions.of_masks(masks),
            "reading a file": lambda: read_regions(file, (HEIGHT, WIDTH)),
            "proposals of tree": lambda: tree.regions(tree.prepare(picture)),
        }
        print(
            f"{len(regions)} regions of {len(regions.atom_areas)} atoms, {chosen.classes} classes, {HEIGHT}x{WIDTH} pixels"
        )
        for name, work in measured.items():
            print(f"{name:<38} {best_time(work, chosen.repeats):8.1f} ms")
    once = best_time(lambda: loop_over_pairs(masks[:30], labels, labels_in_all), 1) * len(masks) / 30
    print(f"{'overlaps, a pair of masks at a time':<38} {once:8.1f} ms")


if __name__ == "__main__":
    main()
