"""Checks of class names: typos that became classes, and classes without pictures in a split."""

import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from wsss.data.coco import COCO_CATEGORIES
from wsss.data.folder import CLASSES
from wsss.data.images import Dataset
from wsss.data.voc import VOC_CLASSES
from wsss.errors import BadInput, count_of, is_regular

# A typo is rarer than the correct word by this factor
TIMES_RARER = 10
# In shorter names, one letter makes another word: cat, car, cow
SHORTEST = 4
SHOWN = 5


def likely_typos(data: Dataset, classes: object = None) -> BadInput | None:
    """An error about tags that may be typos of other tags: they differ only in case or separators, or in one letter.

    Names that differ by one letter added, removed or changed, or by two neighbours exchanged, count if one is ten times as
    frequent. A different number is no typo (`grade 1`, `grade 2`), nor is a class of VOC or COCO.

    Args:
        data: the data set.
        classes: the class list of the user, if any; with it or a file `classes.txt`, no name is a typo.
    """
    if classes is not None or is_regular(data.root / CLASSES):
        return None
    counts = np.sum([images.labels.sum(0) for images in data.splits.values()], axis=0)
    of = dict(zip(data.class_names, counts.tolist(), strict=True))
    pairs = []
    for one, other in _near(data.class_names):
        rare, common = sorted((one, other), key=lambda name: (of[name], name))
        if _folded(one) == _folded(other) or (
            of[rare] * TIMES_RARER <= of[common]
            and min(len(one), len(other)) >= SHORTEST
            and rare.lower() not in _KNOWN
            and _differ_by_one_typo(one.lower(), other.lower())
        ):
            pairs.append(
                f"{rare!r} ({count_of(of[rare], 'picture')}) next to {common!r} ({count_of(of[common], 'picture')})"
            )
    if not pairs:
        return None
    shown = "; ".join(pairs[:SHOWN]) + (f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else "")
    return BadInput(
        data.root,
        f"the tags {shown}",
        "tags that are no typos of each other",
        "Correct them. If all are classes, list them: --classes 'NAME, NAME, ...', or a file classes.txt.",
    )


def notes_on_missing_classes(data: Dataset) -> list[str]:
    """Notes on classes without a picture in the training split, or in the split that segmenters are scored on."""
    notes = []
    for name, consequence in ((data.train, "it cannot be learned"), (data.val, "not scored")):
        if name is None:
            continue
        images = data.split(name)
        empty = [c for c, count in zip(images.class_names, images.labels.sum(0), strict=True) if not count]
        if empty and images.labels.any():
            more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
            notes.append(f"{images.title} has no picture of {', '.join(empty[:SHOWN])}{more}: {consequence}")
    return notes


_KNOWN = frozenset(VOC_CLASSES) | frozenset(COCO_CATEGORIES.values())


def _near(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that are equal after removing at most one letter from each; they include all that differ by one typo."""
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for name in names:
        folded = _folded(name)
        for form in (folded, *(folded[:at] + folded[at + 1 :] for at in range(len(folded)))):
            groups[form][name] = None
    return list(dict.fromkeys(pair for group in groups.values() for pair in itertools.combinations(group, 2)))


def _folded(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split())


def _differ_by_one_typo(one: str, other: str) -> bool:
    """Whether two words differ by one letter added, removed or changed, or by two neighbours exchanged."""
    short, long = sorted((one, other), key=len)
    start = next((at for at, (a, b) in enumerate(zip(short, long)) if a != b), len(short))
    if len(short) == len(long):
        rest = short[start + 1 :] == long[start + 1 :]
        exchanged = (
            short[start : start + 2] == long[start : start + 2][::-1] and short[start + 2 :] == long[start + 2 :]
        )
        letters: Sequence[str] = (short[start : start + 1], long[start : start + 1])
        return (rest or exchanged) and not any(letter.isdigit() for letter in letters)
    return len(long) == len(short) + 1 and short[start:] == long[start + 1 :] and not long[start].isdigit()
