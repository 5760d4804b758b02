"""The stages that look at what a run has made so far, and write their notes.

They use pictures, tags and the results of other stages, and never true masks. What they cost is bounded: they look at samples of fixed size, and
the check of the tags computes one forward pass of each picture.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from wsss import launch
from wsss.data.images import Dataset, Images
from wsss.health.bank import bank_health
from wsss.health.data import tag_health
from wsss.health.maps import map_health
from wsss.health.masks import mask_health, segmenter_health
from wsss.health.note import HEALTH, Health
from wsss.health.suspects import SUSPECTS, Suspect, joined, read_suspects, review_table, write_review
from wsss.health.tags import described, judged_tags
from wsss.run import stage
from wsss.segmenters.retrieval import TrainedRetrieval
from wsss.stages.localize import Describer, LocalizerSettings
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.storage import write_json

# In the run folder: the table to correct
REVIEW = "tags-review.csv"

log = logging.getLogger("wsss")


def _written(health: Health, out: Path) -> dict[str, Any]:
    if launch.is_first():
        write_json(out / HEALTH, health.plain())
    announce(health)
    return {"notes": [note.kind for note in health.notes]}


def announce(health: Health) -> None:
    """Log the notes of a stage, once for all processes."""
    for note in health.notes if launch.is_first() else ():
        log.warning("%s", note.rendered())


@stage(kind="check-data", makes="notes", title="tags of the dataset")
def check_data(images: Images, *, out: Path) -> dict[str, Any]:
    """Look for classes in all pictures, and for classes that always occur together.

    Args:
        images: the training pictures.
        out: the stage's folder.
    """
    return _written(tag_health(images), out)


@stage(kind="check-tags", makes="notes", title="tags against the pictures")
def check_tags(settings: LocalizerSettings, images: Images, *, out: Path, **inputs: Path) -> dict[str, Any]:
    """Look for tags that the pictures contradict, and for a classifier that has learned nothing; also writes `suspects.json`.

    Args:
        settings: settings of the method's maps, which know how to load its network.
        images: the training pictures.
        out: the stage's folder.
        inputs: what the method needs, as for `localize`.
    """
    localizer = settings.localizer(images, **inputs) if images.labels.any() else None
    if not isinstance(localizer, Describer):
        why = "there are no tags" if localizer is None else f"{settings.title} does not describe pictures"
        health, found = Health({"pictures": len(images), "checked": f"no: {why}"}, []), list[Suspect]()
    else:
        chosen, descriptions = described(localizer, images, "health of the tags")
        names = [images.names[index] for index in chosen]
        health, found = launch.decided_by_first(
            lambda: judged_tags(names, images.class_names, images.labels[chosen], descriptions)
        )
    if launch.is_first():
        write_json(out / SUSPECTS, [dataclasses.asdict(suspect) for suspect in found])
    return {**_written(health, out), "suspicious tags": len(found), "checked": health.measured["checked"]}


@stage(kind="check-maps", makes="notes", title="activation maps")
def check_maps(images: Images, *, cams: Path, out: Path) -> dict[str, Any]:
    """Look for flat maps.

    Args:
        images: the pictures.
        cams: folder of their maps.
        out: the stage's folder.
    """
    return _written(map_health(images, cams), out)


@stage(kind="check-masks", makes="notes", title="pseudo masks")
def check_masks(images: Images, *, masks: Path, out: Path) -> dict[str, Any]:
    """Look for masks that cover everything or nothing, and for classes that never or always win.

    Args:
        images: the pictures.
        masks: folder of their pseudo masks.
        out: the stage's folder.
    """
    return _written(mask_health(images, masks), out)


@stage(kind="check-segmenter", makes="notes", title="segmenter")
def check_segmenter(images: Images, *, weights: Path, out: Path) -> dict[str, Any]:
    """Look for a segmenter that predicts one label, and for classes that it never predicts.

    A bank of regions is also asked about its own regions, which finds suspicious tags.

    Args:
        images: the training pictures.
        weights: folder of the segmenter.
        out: the stage's folder.
    """
    health, found = trained_health(images, weights)
    if found is None:
        return _written(health, out)
    if launch.is_first():
        write_json(out / SUSPECTS, [dataclasses.asdict(suspect) for suspect in found])
    return {**_written(health, out), "suspicious tags": len(found)}


def trained_health(images: Images, weights: Path) -> tuple[Health, list[Suspect] | None]:
    """The health of a segmenter, and the suspicious tags that its bank finds; None if it has none. All processes must call this."""
    segmenter = Segmenter(weights, PredictSettings(scales=(1.0,), flip=False))
    health, trained = segmenter_health(images, segmenter, weights.name), segmenter.trained
    if not isinstance(trained, TrainedRetrieval):
        return health, None
    of_bank, found = launch.decided_by_first(lambda: bank_health(trained))
    return Health({**health.measured, **of_bank.measured}, health.notes + of_bank.notes), found


# more suspicious tags than this share of all tags say less about the tags than about the classifier
_TOO_MANY = 1 / 3
_MANY = " (that many mean that the classifier has not learned enough to judge tags)"


def offer_review(run: Path, checked: Path, data: Dataset, tagger: Path | None, *, earlier: Path | None = None) -> None:
    """Write `tags-review.csv` of a run, or add to the one of an earlier check; a file that has been corrected is kept.

    Args:
        run: the run folder.
        checked: folder of `check_tags` or of `check_segmenter`.
        data: the dataset of the run.
        tagger: folder of TagCLIP's tags, if it predicted them.
        earlier: folder of a check for which the table has been written already.
    """
    found = read_suspects(checked)
    known = read_suspects(earlier) if earlier is not None else []
    path = run / REVIEW

    def write() -> None:
        if not found:
            return
        images, scored, suspects = data.split(data.train), _scores_of(tagger), joined(known, found)
        if path.exists():
            content = path.read_bytes()
            if content == review_table(data, images, suspects, scored):
                return
            if not known or content != review_table(data, images, known, scored):
                log.info("%s: it was changed, so it is kept; suspicious tags: %s", path, checked / SUSPECTS)
                return
        if write_review(path, data, images, suspects, scored):
            log.info(
                "%s: %d tags that similar pictures contradict, worst first, to correct for --tags%s",
                path,
                len(suspects),
                _MANY if len(suspects) > _TOO_MANY * images.labels.sum() else "",
            )

    launch.decided_by_first(write)


def _scores_of(tagger: Path | None) -> dict[str, dict[str, float]]:
    """TagCLIP's score of each class in each picture."""
    if tagger is None or not (tagger / "scores.npz").exists():
        return {}
    with np.load(tagger / "scores.npz", allow_pickle=False) as stored:
        names, classes, scores = (stored[key] for key in ("names", "classes", "scores"))
    return {
        str(name): dict(zip(map(str, classes), row, strict=True))
        for name, row in zip(names, scores.tolist(), strict=True)
    }
