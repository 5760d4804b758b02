"""What the bank of a retrieval segmenter says about itself: each region is labelled by those of the other pictures."""

from collections.abc import Sequence

import numpy as np

from wsss.arrays import Bool, Float, Int
from wsss.health.note import Health, Note, listed
from wsss.health.suspects import Suspect
from wsss.health.tags import FEWEST_OF_CLASS, SUSPICIOUS
from wsss.ops.retrieval import Voting
from wsss.segmenters.retrieval import TrainedRetrieval

# a class whose regions are recognised less often is doubtful
SELDOM = 0.5


def bank_health(trained: TrainedRetrieval) -> tuple[Health, list[Suspect]]:
    """How often the regions of each label are recognised by those of other pictures, and the tags that this contradicts, worst first."""
    settings, bank, n_labels = trained.settings, trained.bank, len(trained.classes) + 1
    rows, found = bank.left_out(n_labels, settings.neighbours, settings.voting)
    labels = bank.labels[rows].astype(np.int64)
    names = ("background", *trained.classes)
    right = [found.labels[labels == label] == label for label in range(n_labels)]
    shares = {name: round(float(one.mean()), 4) if len(one) else None for name, one in zip(names, right, strict=True)}
    pictures = [len(np.unique(bank.pictures[bank.labels == label])) for label in range(n_labels)]
    seldom = [
        label
        for label in range(1, n_labels)
        if pictures[label] >= FEWEST_OF_CLASS and len(right[label]) and right[label].mean() < SELDOM
    ]
    doubted = contradicted(labels, bank.pictures[rows], found.own, np.array(pictures) >= FEWEST_OF_CLASS)
    suspects = [
        Suspect(bank.names[picture], trained.classes[label - 1], True, round(score, 4))
        for picture, label, score in doubted
    ]
    measured = {
        "regions": len(bank),
        "regions left out": len(rows),
        "recognised by other pictures": shares,
        "suspicious tags": len(suspects),
    }
    return Health(measured, [_seldom(seldom, trained.classes, shares, settings.voting)] if seldom else []), suspects


def contradicted(
    labels: Int[np.ndarray, " q"],
    pictures: Int[np.ndarray, " q"],
    own: Float[np.ndarray, " q"],
    judged: Bool[np.ndarray, " l"],
) -> list[tuple[int, int, float]]:
    """Pictures and classes none of whose regions get half of the votes of other pictures, worst first.

    Args:
        labels, pictures: the label and the picture of each region.
        own: the share of the votes for its own label.
        judged: which labels have enough pictures.

    Returns:
        Number of the picture, label, and 1 - the highest share.
    """
    best: dict[tuple[int, int], float] = {}
    for label, picture, share in zip(labels.tolist(), pictures.tolist(), own.tolist(), strict=True):
        if label > 0 and judged[label]:
            best[picture, label] = max(share, best.get((picture, label), 0.0))
    found = [(picture, label, 1 - share) for (picture, label), share in best.items() if 1 - share > SUSPICIOUS]
    return sorted(found, key=lambda one: (-one[2], one[0], one[1]))


def _seldom(classes: Sequence[int], names: Sequence[str], shares: dict[str, float | None], voting: Voting) -> Note:
    by_class = "" if voting == "by-class" else " count votes by class (--segmenter.voting by-class),"
    shown = listed(f"`{names[label - 1]}` ({100 * (shares[names[label - 1]] or 0):.0f} %)" for label in classes)
    return Note(
        "regions-not-recognised",
        f"Classes whose regions are seldom recognised by those of other pictures: {shown}.",
        "Their regions in new pictures will be labelled as something else.",
        "Look at the pseudo masks of these classes: they may cover the background. Add pictures,"
        f"{by_class} or use features of a foundation network (--segmenter.features.source).",
    )
