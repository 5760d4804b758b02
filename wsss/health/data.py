"""Doubts about the tags of a training split, before anything is trained."""

import itertools

import numpy as np

from wsss.arrays import Bool
from wsss.data.images import Images
from wsss.health.note import Health, Note, listed, percentage

# A class in more pictures than this is in nearly all of them
NEARLY_ALL = 0.95
# Two classes are taken for inseparable if their pictures agree by more than this (intersection over union)
INSEPARABLE = 0.95
# Rules about classes and pairs need at least this many pictures
FEWEST = 5


def tag_health(images: Images) -> Health:
    """Find classes that are in nearly all pictures, and pairs of classes that occur together nearly always."""
    labels = images.labels
    n, counts = len(labels), labels.sum(0)
    everywhere = [c for c in np.flatnonzero(counts).tolist() if n >= FEWEST and counts[c] > NEARLY_ALL * n]
    pairs = inseparable_pairs(labels, [c for c in np.flatnonzero(counts >= FEWEST).tolist() if c not in everywhere])
    names = images.class_names
    measured = {
        "pictures": n,
        "pictures with the class": {names[c]: int(counts[c]) for c in range(len(names))},
        "in nearly all pictures": [names[c] for c in everywhere],
        "always together": [[names[a], names[b], round(share, 4)] for a, b, share in pairs],
    }
    return Health(measured, [*_everywhere(images, everywhere), *_together(images, pairs)])


def inseparable_pairs(labels: Bool[np.ndarray, "n c"], classes: list[int]) -> list[tuple[int, int, float]]:
    """Pairs of these classes whose pictures are nearly the same, and the intersection over union of their pictures."""
    found = []
    for a, b in itertools.combinations(classes, 2):
        together = float((labels[:, a] & labels[:, b]).sum() / (labels[:, a] | labels[:, b]).sum())
        if together > INSEPARABLE:
            found.append((a, b, together))
    return found


def _everywhere(images: Images, everywhere: list[int]) -> list[Note]:
    if not everywhere:
        return []
    n, counts = len(images), images.labels.sum(0)
    shown = listed(f"`{images.class_names[c]}` is in {counts[c]} of {n} pictures" for c in everywhere)
    alone = "the only class, " if np.count_nonzero(counts) == 1 else ""
    return [
        Note(
            "class-everywhere",
            f"{shown[0].upper()}{shown[1:]}{f' ({alone}and nothing to compare it with)' if alone else ''}.",
            "A classifier can only find what distinguishes pictures with a class from pictures without it: the maps will cover the picture.",
            "Add pictures without it: in a folder named `background`, with an empty cell in the column `tags`, or under another name with "
            "--negative NAME.",
        )
    ]


def _together(images: Images, pairs: list[tuple[int, int, float]]) -> list[Note]:
    if not pairs:
        return []
    names = images.class_names
    shown = listed(f"`{names[a]}` and `{names[b]}` ({percentage(share)} of their pictures)" for a, b, share in pairs)
    return [
        Note(
            "always-together",
            f"Classes that always occur together: {shown}.",
            "Nothing in the tags tells them apart, so their maps will lie on the same pixels.",
            "Add pictures that show only one of the two, or merge them into one class in the tags.",
        )
    ]
