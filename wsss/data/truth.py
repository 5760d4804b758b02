"""Compares true masks with tags, to find masks that make scores meaningless, or that need a closer look."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from wsss.arrays import Bool
from wsss.data.images import IGNORE, Images, MaskFile, MaskSummary
from wsss.errors import BadInput

# Another meaning of the values is proposed if it explains at least the first share of the pictures, the labels as they are explain at most
# the second, and there are at least FEWEST pictures; a value stands for a class if the IoU of their pictures reaches OVERLAP
EXPLAINED, UNEXPLAINED, FEWEST, OVERLAP = 0.75, 0.25, 4, 0.5


@dataclasses.dataclass(frozen=True)
class MaskDoubts:
    """Doubts about the true masks of a split: `stops` make scores meaningless, `notes` are worth a look."""

    stops: tuple[BadInput, ...] = ()
    notes: tuple[str, ...] = ()


def compare_with_tags(images: Images, summaries: Mapping[int, MaskSummary]) -> MaskDoubts:
    """Compare the content of true masks with the tags of their pictures.

    Args:
        images: the split.
        summaries: the content of the readable masks, by the positions of the pictures.
    """
    if not summaries:
        return MaskDoubts()
    stops, notes = [], []
    present = np.zeros((len(summaries), IGNORE + 1), bool)
    for row, one in enumerate(summaries.values()):
        present[row, list(one.values)] = True
    classes, tags = present[:, 1 : images.n_labels], images.labels[list(summaries)]
    without = sum(mask is None for mask in images.masks)
    if without:
        notes.append(
            f"{len(images) - without} of {len(images)} pictures have a true mask: nothing is scored on this split"
        )
    by_colour = sum(one.reading == "VOC's colours" for one in summaries.values())
    if by_colour:
        notes.append(
            f"{by_colour} masks have VOC's colours under other numbers, since some programs renumber palettes: "
            "they are read by colour"
        )
    tagged = tags.any()  # otherwise the pictures will be tagged later
    if stop := _meaningless(images, present, classes, tags, summaries):
        stops.append(stop)
    else:
        if tagged:
            notes += _disagreements(images.class_names, classes, tags)
        ignored = float(np.mean([one.ignored for one in summaries.values()]))
        if ignored > 0.5:
            notes.append(f"{100 * ignored:.0f} % of all mask pixels are 255 and are ignored in the mIoU")
    return MaskDoubts(tuple(stops), tuple(f"{images.title}: {note}" for note in notes))


def _meaningless(
    images: Images,
    present: Bool[np.ndarray, "n 256"],
    classes: Bool[np.ndarray, "n c"],
    tags: Bool[np.ndarray, "n c"],
    summaries: Mapping[int, MaskSummary],
) -> BadInput | None:
    values = np.flatnonzero(present.any(0)).tolist()
    shown = f"the values {', '.join(map(str, values[:12]))}{', ...' if len(values) > 12 else ''}"
    names = ", ".join(images.class_names[:5]) + (", ..." if len(images.class_names) > 5 else "")
    span = "1" if len(images.class_names) == 1 else f"1..{len(images.class_names)}"
    expected = f"{span} ({names}) for the classes, 0 for background, 255 for ignored pixels"
    otherwise = (
        "If the values mean something else, declare it with --mask-values; if these are no true masks, remove them."
    )
    declare = "If that is what they mean, use --mask-values '{}'."
    where = f"true masks of {images.title}"
    if not classes.any():
        meaning = _other_meaning(images, present, tags, summaries) if tags.any() else None
        do = declare.format(meaning) if meaning else otherwise
        return BadInput(where, f"no class in any of {len(present)} masks, but {shown}", expected, do)
    with_tags = tags.any(1)
    if not with_tags.any():
        return None
    agree = (classes == tags).all(1)
    # if all pictures have the same tags, any value that occurs in all masks would explain them
    doubtful = len(tags) >= FEWEST and (tags != tags[0]).any() and agree.mean() <= UNEXPLAINED
    if doubtful and (meaning := _other_meaning(images, present, tags, summaries)):
        found = f"labels that match the tags of {int(agree.sum())} of {len(tags)} pictures ({shown})"
        return BadInput(
            where, found, f"{expected}; another meaning of the values matches most pictures", declare.format(meaning)
        )
    if not (classes & tags).any():
        found = f"not one mask with a class that its picture is tagged with ({shown})"
        return BadInput(where, found, expected, otherwise)
    return None


def _other_meaning(
    images: Images,
    present: Bool[np.ndarray, "n 256"],
    tags: Bool[np.ndarray, "n c"],
    summaries: Mapping[int, MaskSummary],
) -> str | None:
    """A value of `--mask-values` that explains the tags of most pictures; None if there is none."""
    files = [images.masks[index] for index in summaries]
    if not all(isinstance(mask, MaskFile) and mask.table is None for mask in files):
        return None
    values, wanted = np.flatnonzero(present.any(0)), np.flatnonzero(tags.any(0))
    has_value, has_tag = present[:, values].astype(float), tags[:, wanted].astype(float)
    both = has_value.T @ has_tag
    overlap = both / (has_value.sum(0)[:, None] + has_tag.sum(0)[None] - both)
    # among equals, prefer labels to 255, and 255 to 0
    preference = np.where(values == 0, -2e-3, np.where(values == IGNORE, -1e-3, 0.0))
    from scipy.optimize import linear_sum_assignment  # slow to import, and rarely needed

    rows, columns = linear_sum_assignment(overlap + preference[:, None], maximize=True)
    meant = {
        int(values[row]): int(wanted[column])
        for row, column in zip(rows, columns, strict=True)
        if overlap[row, column] >= OVERLAP
    }
    explained = np.zeros_like(tags)
    for value, index in meant.items():
        explained[:, index] = present[:, value]
    if not meant or (explained == tags).all(1).mean() < EXPLAINED:
        return None
    rest = [value for value in values.tolist() if value not in meant]
    background = max(rest, key=lambda value: (present[:, value].sum(), -value), default=None)
    if any(value < images.n_labels for value in rest if value not in (0, background)):
        return None  # some labels would be left without a meaning
    entries = [f"{value}={images.class_names[index]}" for value, index in sorted(meant.items())]
    for value in rest:
        if value == background and value != 0:
            entries.append(f"{value}=background")
        elif value not in (background, IGNORE):
            entries.append(f"{value}=ignore")
    return "; ".join(entries)


def _disagreements(
    class_names: Sequence[str], classes: Bool[np.ndarray, "n c"], tags: Bool[np.ndarray, "n c"]
) -> list[str]:
    notes = []
    for found, what in (
        (tags & ~classes, "have a tag whose class is not in their mask"),
        (classes & ~tags, "have a class in their mask that is not among their tags"),
    ):
        if pictures := int(found.any(1).sum()):
            counts = Counter(dict(zip(class_names, found.sum(0).tolist(), strict=True))).most_common(3)
            named = ", ".join(f"{name} {count}" for name, count in counts if count)
            notes.append(f"{pictures} of {len(tags)} pictures {what} ({named})")
    return notes
