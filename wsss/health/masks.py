"""Doubts about pseudo masks and about a segmenter, from a sample of training pictures and their tags; no true mask is used."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from wsss.arrays import Bool, Float, UInt8
from wsss.data.files import read_mask
from wsss.data.images import IGNORE, Images
from wsss.health.note import Health, Note, listed, percentage
from wsss.health.sample import collected, same, sampled
from wsss.run import DONE, read_record
from wsss.stages.predict import Segmenter

# A mask is almost all foreground above the first share of its pixels, and almost nothing below the second
ALMOST_ALL, ALMOST_NOTHING = 0.9, 0.01
# A note on such masks appears from this share of the pictures on
NOTABLE = 0.25
# A class that has no pixel in this share of its pictures never wins; one that has this share of the foreground in this share of its
# pictures with other classes always wins
NEARLY_ALWAYS = 0.95
# A rule about a class needs at least this many pictures
FEWEST = 5
# More than this share of the predicted foreground in classes that the training pictures do not have is little better than a guess
OTHER_CLASSES = 0.25
# More than this share of the foreground of pseudo masks in such classes means that they were made for other tags
UNTAGGED = 0.05
# Training pictures on which a segmenter is looked at
PREDICTED = 48
# A label with more than this share of all predicted pixels is nearly the only one
ONLY = 0.99


def label_shares(mask: UInt8[np.ndarray, "h w"], n_labels: int) -> Float[np.ndarray, " l"]:
    """The share of each label in the pixels of a mask that are not ignored; zeros if there is none."""
    counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[:n_labels]
    return counts / max(counts.sum(), 1)


@dataclasses.dataclass(frozen=True)
class Decided:
    """What decided between background and classes when masks were made.

    Attributes:
        setting: `threshold`, of which larger values give more background, or `exponent`, of which smaller values do.
        value: its value; None if it is not known.
        section: of the settings, where it is.
    """

    setting: Literal["threshold", "exponent"] = "threshold"
    value: float | None = None
    section: Literal["refiner", "refiner.masks"] = "refiner"

    def advice(self, more: Literal["background", "foreground"]) -> str:
        """How to change the setting for more background or more foreground."""
        verb = "Raise" if (more == "background") == (self.setting == "threshold") else "Lower"
        return f"{verb} --{self.section}.{self.setting}{'' if self.value is None else f' ({self.value:.3g} was used)'}"


def decided_by(masks: Path) -> Decided:
    """What the masks in a folder were decided by, from its record."""
    record = read_record(masks)
    result, cams = record["result"], record["inputs"].get("cams")
    section: Literal["refiner", "refiner.masks"] = "refiner"
    if isinstance(cams, Mapping) and cams.get("stage") == "regions":
        section = "refiner.masks"
        # after votes, masks are made at 0.5, whatever was chosen
        averages = masks / cams["folder"]
        result |= read_record(averages)["result"] if (averages / DONE).is_file() else {}
    for setting in ("threshold", "exponent"):
        if isinstance(value := result.get(setting), int | float):
            return Decided(setting, float(value), section)
    return Decided(section=section)


def mask_health(images: Images, masks: Path) -> Health:
    """Find masks that cover everything or nothing, and classes that never or always win. All processes must call this, and get the same.

    Args:
        images: the pictures and their tags.
        masks: folder of their pseudo masks, with its record.
    """
    chosen = sampled(images)

    def measure(index: int) -> Float[np.ndarray, " l"]:
        return label_shares(read_mask(masks / f"{images.names[index]}.png"), images.n_labels)

    found = collected(images, chosen, measure, same, f"health {masks.name}")
    shares = np.array(found).reshape(len(chosen), images.n_labels)
    return judged_masks(shares, images.labels[chosen], images.class_names, decided_by(masks))


def judged_masks(
    shares: Float[np.ndarray, "n l"],
    labels: Bool[np.ndarray, "n c"],
    class_names: Sequence[str],
    decided: Decided = Decided(),
) -> Health:
    """The health of pseudo masks.

    Args:
        shares: the share of the background and of each class in each mask.
        labels: the tags of the pictures.
        class_names: names of the classes.
        decided: what decided between background and classes.
    """
    # a picture without tags has none of the classes, unless nobody has tagged any picture
    other = _share_of_others(shares, labels) if labels.any() else 0.0
    tagged = labels.any(1)
    shares, labels = shares[tagged], labels[tagged]
    foreground = shares[:, 1:].sum(1)
    everything, nothing = foreground > ALMOST_ALL, foreground < ALMOST_NOTHING
    never, always = never_win(shares, labels), always_win(shares, labels)
    measured = {
        "masks": len(shares),
        "almost all foreground": int(everything.sum()),
        "almost nothing": int(nothing.sum()),
        "median foreground": round(float(np.median(foreground)), 4) if len(shares) else None,
        "never win": [class_names[c] for c in never],
        "always win": [class_names[c] for c in always],
        "foreground in other classes": round(other, 4),
    }
    notes = []
    if other > UNTAGGED:
        notes.append(
            Note(
                "masks-of-other-classes",
                f"{percentage(other)} of the foreground in the sampled pseudo masks is of classes that their pictures are not tagged with.",
                "Either the maps or masks were made for other tags, or the tags are wrong; the segmenter learns what the masks say.",
                "If the tags are right, make the maps again with them; if the masks are, correct the tags (--tags).",
            )
        )
    if len(shares) and everything.mean() >= NOTABLE:
        notes.append(
            Note(
                "masks-cover-everything",
                f"{int(everything.sum())} of {len(shares)} sampled pseudo masks ({percentage(everything.mean())}) label over "
                f"{percentage(ALMOST_ALL)} of the picture as foreground.",
                "Unless your objects fill the pictures, the segmenter will learn to paint over the background.",
                f"{decided.advice('background')}; if the maps themselves are wide, add pictures without these classes.",
            )
        )
    if len(shares) and nothing.mean() >= NOTABLE:
        notes.append(
            Note(
                "masks-are-empty",
                f"{int(nothing.sum())} of {len(shares)} sampled pseudo masks ({percentage(nothing.mean())}) label under "
                f"{percentage(ALMOST_NOTHING)} of the picture as foreground, though their pictures have tags.",
                "The segmenter will learn that these objects are background.",
                f"{decided.advice('foreground')}; if the objects are tiny, use larger pictures or crops of them.",
            )
        )
    return Health(measured, notes + _winners(never, always, class_names, decided))


def _share_of_others(shares: Float[np.ndarray, "n l"], labels: Bool[np.ndarray, "n c"]) -> float:
    """The share of the foreground in classes that the pictures are not tagged with."""
    foreground = float(shares[:, 1:].sum())
    return float((shares[:, 1:] * ~labels).sum()) / foreground if foreground else 0.0


def never_win(shares: Float[np.ndarray, "n l"], labels: Bool[np.ndarray, "n c"]) -> list[int]:
    """Classes without a pixel in nearly all of their pictures; none if that is so for all classes."""
    counts = labels.sum(0)
    missing = (labels & (shares[:, 1:] == 0)).sum(0)
    possible = np.flatnonzero(counts >= FEWEST)
    found = [int(c) for c in possible if missing[c] >= NEARLY_ALWAYS * counts[c]]
    return found if len(found) < len(possible) else []


def always_win(shares: Float[np.ndarray, "n l"], labels: Bool[np.ndarray, "n c"]) -> list[int]:
    """Classes with nearly all of the foreground in nearly all of their pictures that have other classes too."""
    several = labels.sum(1) > 1
    foreground = shares[:, 1:].sum(1)
    found = []
    for c in range(labels.shape[1]):
        rows = several & labels[:, c] & (foreground > 0)
        if rows.sum() >= FEWEST and np.mean(shares[rows, 1 + c] >= NEARLY_ALWAYS * foreground[rows]) >= NEARLY_ALWAYS:
            found.append(c)
    return found


def _winners(never: Sequence[int], always: Sequence[int], class_names: Sequence[str], decided: Decided) -> list[Note]:
    notes = []
    if never:
        shown = listed(f"`{class_names[c]}`" for c in never)
        notes.append(
            Note(
                "class-never-wins",
                f"Classes with no pixel in the sampled pseudo masks of their pictures: {shown}.",
                "The segmenter cannot learn a class that has no pixels.",
                f"Look at its maps in the report. If they are right but weak: {decided.advice('foreground')}. If not, check its tags, or add "
                "pictures that show it alone.",
            )
        )
    if always:
        shown = listed(f"`{class_names[c]}`" for c in always)
        notes.append(
            Note(
                "class-always-wins",
                f"Classes that take nearly all foreground from the others in their pictures: {shown}.",
                "The classes that occur with it get no pixels there.",
                "Add pictures that show it without the other classes, and the others without it.",
            )
        )
    return notes


def segmenter_health(images: Images, segmenter: Segmenter, name: str) -> Health:
    """Find a segmenter that predicts only one label, and classes that it never predicts, on training pictures at their own size.

    All processes must call this, and get the same.

    Args:
        images: the training pictures and their tags.
        segmenter: the segmenter.
        name: its name in the progress bar.
    """
    chosen = sampled(images, PREDICTED)
    found = collected(
        images,
        chosen,
        images.read,
        lambda image: label_shares(segmenter(image), images.n_labels),
        f"health {name}",
    )
    shares = np.array(found).reshape(len(chosen), images.n_labels)
    return judged_predictions(shares, images.labels[chosen], images.class_names)


def judged_predictions(
    shares: Float[np.ndarray, "n l"], labels: Bool[np.ndarray, "n c"], class_names: Sequence[str]
) -> Health:
    """The health of a segmenter's predictions for training pictures.

    Args:
        shares: the share of the background and of each class in each predicted mask.
        labels: the tags of these pictures.
        class_names: names of the classes.
    """
    names = ["background", *class_names]
    mean = shares.mean(0) if len(shares) else np.zeros(len(names))
    found = (labels & (shares[:, 1:] > 0)).sum(0)
    counts = labels.sum(0)
    missing = [int(c) for c in np.flatnonzero((found == 0) & (counts >= FEWEST))]
    other = _share_of_others(shares, labels)
    measured = {
        "predictions": len(shares),
        "foreground in other classes": round(other, 4),
        "share of pixels": {name: round(float(share), 4) for name, share in zip(names, mean, strict=True)},
        "never predicted": [class_names[c] for c in missing],
    }
    longer = (
        "Train longer (--segmenter.training.epochs or --segmenter.training.steps) or with another --segmenter.training.lr; check the "
        "pseudo masks first, since the segmenter cannot be better than what they teach."
    )
    top = int(mean.argmax())
    if len(shares) and mean[top] > ONLY:
        one = Note(
            "one-label-predicted",
            f"The segmenter predicts `{names[top]}` for {100 * mean[top]:.1f} % of all pixels of {len(shares)} training pictures.",
            "It has not learned to tell the classes apart.",
            longer,
        )
        return Health(measured, [one])
    if other > OTHER_CLASSES and labels.any():
        guessing = Note(
            "other-classes-predicted",
            f"{percentage(other)} of the foreground that the segmenter predicts for {len(shares)} training pictures is of classes that these "
            "pictures are not tagged with.",
            "It has not learned to tell the classes apart.",
            longer,
        )
        return Health(measured, [guessing])
    if not missing:
        return Health(measured, [])
    shown = listed(f"`{class_names[c]}` ({counts[c]} pictures)" for c in missing)
    return Health(
        measured,
        [
            Note(
                "class-never-predicted",
                f"Classes that the segmenter predicts in none of the sampled pictures that have their tag: {shown}.",
                "It has not learned these classes.",
                longer,
            )
        ],
    )
