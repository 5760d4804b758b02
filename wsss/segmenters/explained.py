"""Why a retrieval segmenter labelled a region as it did: the training regions that are most similar to it."""

import dataclasses

import numpy as np

from wsss.segmenters.retrieval import Decided, TrainedRetrieval

# regions of a picture that are explained, and training regions that are named for each
REGIONS, SHOWN = 3, 5


@dataclasses.dataclass(frozen=True)
class Nearest:
    """A region of the bank.

    Attributes:
        image: the training picture.
        label: the label of the region.
        similarity: to the region that it explains, at most 1.
        box: top, left, bottom and right in its picture; bottom and right lie outside.
    """

    image: str
    label: int
    similarity: float
    box: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Explained:
    """A region of a picture.

    Attributes:
        image: the picture.
        label: what was decided.
        share: of the votes for that label.
        box: as for `Nearest`, in the picture.
        nearest: the most similar training regions, the most similar first.
    """

    image: str
    label: int
    share: float
    box: tuple[int, int, int, int]
    nearest: tuple[Nearest, ...]


def explained(trained: TrainedRetrieval, name: str, decided: Decided) -> list[Explained]:
    """The largest regions of a picture that have a class, with their nearest training regions.

    Args:
        trained: the segmenter.
        name: of the picture.
        decided: what it decided.
    """
    regions, votes, kept = decided
    objects = kept[votes.labels[kept] > 0]
    largest = objects[np.argsort(-regions.areas[objects], kind="stable")][:REGIONS]
    bank, found = trained.bank, []
    for index, mask in zip(largest.tolist(), regions.chosen(largest).masks(), strict=True):
        rows = [row for row in votes.neighbours[index, :SHOWN].tolist() if row >= 0]
        nearest = tuple(
            Nearest(
                bank.names[bank.pictures[row]],
                int(bank.labels[row]),
                round(float(similarity), 4),
                _box(bank.boxes[row]),
            )
            for row, similarity in zip(rows, votes.similarities[index], strict=False)
        )
        down, across = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = (int(down[0]), int(across[0]), int(down[-1]) + 1, int(across[-1]) + 1)
        label = int(votes.labels[index])
        found.append(Explained(name, label, round(float(votes.shares[index, label]), 4), box, nearest))
    return found


def _box(values: np.ndarray) -> tuple[int, int, int, int]:
    top, left, bottom, right = values.tolist()
    return top, left, bottom, right
