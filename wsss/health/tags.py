"""Tags that the pictures themselves contradict: each tag is predicted by a linear model that was fitted to all other pictures.

The pictures are described by the deepest features of the classifier that a method trained, or by CLIP. The classifier was trained on the tags that
are checked here, and its own loss on them is therefore a worse measure; docs/health.md compares both.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsss.arrays import Bool, Float, UInt8
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.health.note import Health, Note, listed
from wsss.health.sample import collected, sampled
from wsss.health.suspects import Suspect
from wsss.ops.leave_one_out import leave_one_out
from wsss.stages.localize import Describer

# Most pictures whose tags are checked
MOST_CHECKED = 10_000
# A tag is suspicious if its prediction is further away than this: 1 is the opposite of the tag, 0 agrees with it
SUSPICIOUS = 0.5
# Fewest pictures for a check, and fewest with a class (and without it) for a check of this class
FEWEST, FEWEST_OF_CLASS = 20, 3
# A classifier explains this share of the variance of tags, on average and for each class, or is no better than their frequencies
NO_BETTER = 0.1
# Rules about a class need at least this many pictures with it
FEWEST_TO_JUDGE = 5


def described(localizer: Describer, images: Images, title: str) -> tuple[list[int], Float[np.ndarray, "n d"]]:
    """The pictures that are checked, and their descriptions. All processes must call this, and get the same."""
    chosen = sampled(images, MOST_CHECKED)

    def describe(loaded: tuple[int, UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, " d"]:
        index, image = loaded
        try:
            return localizer.describe(image)
        except BadInput as error:
            raise BadInput(images.where(index), error.found, error.expected, error.do) from error

    found = collected(images, chosen, lambda index: (index, images.read(index)), describe, title)
    return chosen, np.array(found, np.float32).reshape(len(chosen), -1)


def skill(labels: Bool[np.ndarray, "n c"], predicted: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " c"]:
    """The share of each tag's variance that its predictions explain: 1 - sum (y - z)^2 / sum (y - m)^2.

    m is the frequency of the tag in all other pictures. At most 1; 0 is no better than the frequency; NaN for a tag that all or no pictures have.
    """
    y = labels.astype(np.float64)
    n = len(y)
    without = (y.sum(0) - y) / max(n - 1, 1)
    by_frequency = ((y - without) ** 2).sum(0)
    varies = labels.any(0) & ~labels.all(0)
    return np.where(varies, 1 - ((y - predicted) ** 2).sum(0) / np.where(varies, by_frequency, 1), np.nan)


def suspects(
    names: Sequence[str],
    class_names: Sequence[str],
    labels: Bool[np.ndarray, "n c"],
    predicted: Float[np.ndarray, "n c"],
) -> list[Suspect]:
    """The tags that their predictions contradict, worst first."""
    counts = labels.sum(0)
    checked = (counts >= FEWEST_OF_CLASS) & (len(labels) - counts >= FEWEST_OF_CLASS)
    distance = np.where(checked, np.abs(labels - predicted), 0)
    order = np.argsort(-distance, axis=None, kind="stable")
    found = []
    for row, column in zip(*np.unravel_index(order, distance.shape), strict=True):
        if distance[row, column] <= SUSPICIOUS:
            break
        score = round(min(float(distance[row, column]), 1.0), 4)
        found.append(Suspect(names[row], class_names[column], bool(labels[row, column]), score))
    return found


def judged_tags(
    names: Sequence[str],
    class_names: Sequence[str],
    labels: Bool[np.ndarray, "n c"],
    descriptions: Float[np.ndarray, "n d"],
) -> tuple[Health, list[Suspect]]:
    """The health of a classifier on its tags, and the suspicious tags.

    Args:
        names: of the pictures.
        class_names: names of the classes.
        labels: the tags.
        descriptions: of the pictures; see `wsss.stages.localize.Describer`.
    """
    n, counts = len(labels), labels.sum(0)
    if n < FEWEST:
        return Health({"pictures": n, "checked": f"no: fewer than {FEWEST} pictures"}, []), []
    if not np.isfinite(descriptions).all():
        return Health({"pictures": n, "checked": "no: the network gives values that are not finite"}, []), []
    predicted = leave_one_out(descriptions, labels)
    explained = skill(labels, predicted)
    found = suspects(names, class_names, labels, predicted)
    known = np.isfinite(explained)
    mean = float(explained[known].mean()) if known.any() else None
    frequent = known & (counts >= FEWEST_TO_JUDGE)
    unbelieved = [int(c) for c in np.flatnonzero(frequent & (np.nan_to_num(explained) < NO_BETTER))]
    tagged = np.array(
        [np.abs(1 - predicted[labels[:, c], c]).mean() if counts[c] else np.nan for c in range(len(counts))]
    )
    measured: dict[str, Any] = {
        "pictures": n,
        "checked": "yes",
        "explained": None if mean is None else round(mean, 4),
        "explained of each class": _by_class(class_names, explained),
        "mean distance of the tags of each class": _by_class(class_names, tagged),
        "suspicious tags": len(found),
        "tags": int(counts.sum()),
    }
    notes: list[Note] = []
    if mean is not None and mean < NO_BETTER:
        notes.append(_no_better(mean))
    elif unbelieved:
        notes.append(_never_believed(unbelieved, class_names, counts, explained))
    return Health(measured, notes), found


def _by_class(class_names: Sequence[str], values: Float[np.ndarray, " c"]) -> dict[str, float | None]:
    return {
        name: round(float(value), 4) if np.isfinite(value) else None
        for name, value in zip(class_names, values, strict=True)
    }


def _no_better(explained: float) -> Note:
    return Note(
        "no-better-than-frequencies",
        f"The features of the classifier explain {100 * max(explained, 0):.0f} % of the tags: no better than how frequent each tag is.",
        "Maps of such a classifier show anything but the classes.",
        "Check with `wsss data info` that the tags belong to these pictures. If they do, look at the loss curve: lower --classifier.training.lr (a "
        "tenth), raise --classifier.training.epochs, or start from trained weights (--classifier.init).",
    )


def _never_believed(
    classes: Sequence[int], class_names: Sequence[str], counts: np.ndarray, explained: Float[np.ndarray, " c"]
) -> Note:
    shown = listed(
        f"`{class_names[c]}` ({counts[c]} pictures, {100 * max(explained[c], 0):.0f} % explained)" for c in classes
    )
    return Note(
        "tags-never-believed",
        f"Tags that the classifier never believes: {shown}.",
        "It finds nothing that the pictures with such a tag have in common, so the maps of these classes are arbitrary.",
        "Look at the pictures with these tags: correct wrong ones in tags-review.csv, add pictures of rare classes, and use larger pictures "
        "(--classifier.augment.crop) if the objects are small.",
    )
