"""The time that a bank of regions takes to answer, next to the features and the regions of a picture.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py --vectors 10000 --width 768 --proposals 25

It prints the milliseconds of one picture: the similarities and the votes of all its regions, their overlaps and the painting; and how long
it takes to leave each picture out of the bank.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from wsss.ops.region_shapes import distinct
from wsss.ops.regions import Regions
from wsss.ops.retrieval import leave_pictures_out, pool, shares_inside, unit_rows, vote


def milliseconds(work: Callable[[], object], repeats: int = 20) -> float:
    """The shortest of some repetitions, since other programs slow them down too."""
    work()
    spent = []
    for _ in range(repeats):
        before = time.process_time()
        work()
        spent.append(time.process_time() - before)
    return 1000 * min(spent)


def drawn_regions(rng: np.random.Generator, count: int, height: int, width: int) -> Regions:
    """Rectangles that overlap."""
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        top, left = rng.integers(0, height - 60), rng.integers(0, width - 60)
        mask[top : top + rng.integers(40, height), left : left + rng.integers(40, width)] = True
    return Regions.of_masks(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("vectors", 10_000), ("width", 768), ("proposals", 25), ("classes", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    bank = np.asfortranarray(unit_rows(rng.normal(size=(given.vectors, given.width)).astype(np.float32)))
    labels = rng.integers(0, given.classes + 1, given.vectors)
    regions = drawn_regions(rng, given.proposals, 375, 500)
    tokens = rng.normal(size=(24 * 32, given.width)).astype(np.float32)
    vectors = pool(tokens, shares_inside(regions, 16, (24, 32)))
    n_labels = given.classes + 1
    votes = vote(vectors, bank, labels, n_labels)
    rows = [
        ("similarities alone", milliseconds(lambda: vectors @ bank.T)),
        ("pooling", milliseconds(lambda: pool(tokens, shares_inside(regions, 16, (24, 32))))),
        *(
            (f"votes, {voting}", milliseconds(partial(vote, vectors, bank, labels, n_labels, voting=voting)))
            for voting in ("plain", "balanced", "by-class")
        ),
        ("repeated regions", milliseconds(lambda: distinct(regions.intersections(), votes.labels, votes.scores))),
        ("painting", milliseconds(lambda: regions.painted(np.arange(len(regions))))),
    ]
    print(f"{given.vectors} vectors of {given.width} numbers, {given.proposals} regions of a picture of 500x375")
    for name, spent in rows:
        print(f"{name:18} {spent:7.2f} ms")
    pictures = np.arange(given.vectors) // 3
    before = time.process_time()
    leave_pictures_out(bank, labels, pictures, n_labels)
    print(f"{'pictures left out':18} {time.process_time() - before:7.2f} s in all")


if __name__ == "__main__":
    main()
