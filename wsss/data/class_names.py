"""Doubts about class names: slips of the pen that became classes, and classes that a split lacks."""

import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from wsss.data.coco import COCO_CATEGORIES
from wsss.data.folder import CLASSES
from wsss.data.images import Dataset
from wsss.data.voc import VOC_CLASSES
from wsss.errors import BadInput, is_regular

# A slip is rarer than the right word by so much
TIMES_RARER = 10
# Among shorter names, one letter makes another word: cat, car, cow
SHORTEST = 4
SHOWN = 5


def likely_typos(data: Dataset, classes: object = None) -> BadInput | None:
    """A question about tags that may be slips of other tags: they differ in case or separators alone, or in one letter.

    Names with one letter more, less or changed, or two neighbours exchanged, are asked about where one is ten times as
    frequent. A number that differs is no slip (`grade 1`, `grade 2`), nor is a class of VOC or COCO.

    Args:
        data: the data set.
        classes: the class list that the user gave, if any; it or a file `classes.txt` answers the question.
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
            and _one_slip(one.lower(), other.lower())
        ):
            pairs.append(f"{rare!r} ({_pictures(of[rare])}) beside {common!r} ({_pictures(of[common])})")
    if not pairs:
        return None
    shown = "; ".join(pairs[:SHOWN]) + (f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else "")
    return BadInput(
        data.root,
        f"the tags {shown}",
        "tags that are no slips of each other",
        "Correct them. If all are meant, say so by naming the classes: --classes 'NAME, NAME, ...', or a file classes.txt.",
    )


def notes_on_missing_classes(data: Dataset) -> list[str]:
    """Notes on classes that the split trained on, or the one that segmenters are scored on, has no picture of."""
    notes = []
    for name, consequence in ((data.train, "nothing is learned of it"), (data.val, "not scored")):
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
    """Pairs of names that are alike once a letter is left out of each, among them all that one slip tells apart."""
    alike: dict[str, dict[str, None]] = defaultdict(dict)
    for name in names:
        folded = _folded(name)
        for form in (folded, *(folded[:at] + folded[at + 1 :] for at in range(len(folded)))):
            alike[form][name] = None
    return list(dict.fromkeys(pair for group in alike.values() for pair in itertools.combinations(group, 2)))


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"


def _folded(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split())


def _one_slip(one: str, other: str) -> bool:
    """Whether one letter more, less or changed, or two neighbours exchanged, tell two words apart."""
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
