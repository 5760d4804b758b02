"""The pictures of a report: tagged pictures with their true masks and what each stage made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from wsss.data.files import read_mask
from wsss.data.images import Images
from wsss.data.maps import read_matching_cams
from wsss.health.suspects import Suspect, read_suspects
from wsss.stages.pages import (
    PICTURE_BYTES,
    PICTURES_BYTES,
    SIDE,
    coloured_mask,
    contour_uri,
    contours,
    data_uri,
    heatmap,
    overlaid,
    random_names,
    shrunk,
)
from wsss.stages.records import Score, Stage, result_kind

# Pictures of each group, and maps shown for a picture
WORST, BEST, RANDOM, MAPS = 6, 6, 4, 3
# Pictures of each split while a run is not finished
GROWING = 4
# Suspicious tags that are shown with their pictures
SUSPECTS = 24
# Suffixes of the results that are shown
_SUFFIXES = {"maps": ".npz", "masks": ".png", "predictions": ".png", "instances": ".png"}


class _Output(NamedTuple):
    """A stage that made a file for each picture of a split."""

    title: str
    stage: Stage
    images: Images
    positions: Mapping[str, int]

    @property
    def holds_maps(self) -> bool:
        return self.stage.makes == "maps"

    def file(self, name: str) -> Path:
        return self.stage.folder / f"{name}{_SUFFIXES[self.stage.makes]}"

    def has(self, name: str, picture: str) -> bool:
        """Whether it was made from this picture file: another split may have a picture of the same name."""
        return name in self.positions and self.images.where(self.positions[name]) == picture and self.exists(name)

    def exists(self, name: str) -> bool:
        """Whether the picture's file is written; a finished stage has all."""
        return self.stage.finished or self.file(name).exists()


class _Selection(NamedTuple):
    """Pictures of a split to show, in titled groups."""

    images: Images
    ranked_by: Score | None
    groups: Sequence[tuple[str, Sequence[str]]]


def galleries(
    stages: Sequence[Stage], scored: Sequence[Score], splits: Mapping[str, Images]
) -> list[dict[str, object]]:
    """The best, the worst and random pictures of each split, or random ones of a split without scores.

    Args:
        stages: the finished stages.
        scored: their scores.
        splits: the splits that they were made from, by fingerprint.
    """
    made = _outputs(stages, splits)
    chosen = []
    for fingerprint, images in splits.items():
        judges = [score for score in scored if score.stage.fingerprint == fingerprint]
        if judges:
            chosen.append(_select_ranked(images, judges, made))
    for one in made:
        shown = {(name, images.where(i)) for images, *_ in chosen for i, name in enumerate(images.names)}
        if shown.isdisjoint((name, one.images.where(i)) for i, name in enumerate(one.images.names)):
            names = random_names(one.images.names, WORST + BEST)
            chosen.append(_Selection(one.images, None, [("Random", names)]))
    return _drawn(chosen, made, scored, with_contours=True)


def growing_galleries(
    stages: Sequence[Stage], scored: Sequence[Score], splits: Mapping[str, Images]
) -> list[dict[str, object]]:
    """A few pictures of each split, with what exists of them by now; they change only while a stage has not reached them yet.

    Args:
        stages: the finished stages, and the one that is running.
        scored: scores so far.
        splits: as for `galleries`.
    """
    made = _outputs(stages, splits)
    chosen = []
    for fingerprint, images in splits.items():
        of_split = [one for one in made if one.stage.fingerprint == fingerprint]
        names = random_names(images.names, len(images.names), in_order=False) if of_split else []
        names = [name for name in names if all(one.exists(name) for one in of_split[-1:])]
        if not names and len(of_split) > 1:  # the running stage has not written anything yet
            names = random_names(images.names, GROWING, in_order=False)
        if names:
            chosen.append(_Selection(images, None, [("", names[:GROWING])]))
    return _drawn(chosen, made, scored, with_contours=False)


def _drawn(
    chosen: Sequence[_Selection], made: Sequence[_Output], scored: Sequence[Score], *, with_contours: bool
) -> list[dict[str, object]]:
    pictures = sum(
        len(names) * (2 + sum(MAPS if one.holds_maps else 2 for one in made))
        for part in chosen
        for _, names in part.groups
    )
    limit = min(PICTURE_BYTES, PICTURES_BYTES // max(pictures, 1))
    return [_gallery(part, made, scored, limit, with_contours) for part in chosen]


def _outputs(stages: Sequence[Stage], splits: Mapping[str, Images]) -> list[_Output]:
    made = []
    for stage in stages:
        images = splits.get(stage.fingerprint or "")
        if images and stage.makes in _SUFFIXES:
            positions = {name: position for position, name in enumerate(images.names)}
            made.append(_Output(result_kind(stage, stages), stage, images, positions))
    titles = [one.title for one in made]
    return [
        one._replace(title=f"{one.title} ({one.stage.name})") if titles.count(one.title) > 1 else one for one in made
    ]


def _select_ranked(images: Images, judges: Sequence[Score], made: Sequence[_Output]) -> _Selection:
    """Worst, best and random pictures by the last score on a split."""
    judge = judges[-1]
    known = {name: iou for name, iou in judge.per_image.items() if iou is not None}
    ranking = sorted(known, key=lambda name: (known[name], name))
    tails = min(WORST, BEST, len(ranking) // 2)
    worst, best = ranking[:tails], ranking[len(ranking) - tails :][::-1]
    groups = [("Worst", worst), ("Best", best), ("Random", random_names(ranking[tails : len(ranking) - tails], RANDOM))]
    return _Selection(images, judge, [(title, names) for title, names in groups if names])


def _gallery(
    chosen: _Selection, made: Sequence[_Output], scored: Sequence[Score], limit: int, with_contours: bool
) -> dict[str, object]:
    index = {name: position for position, name in enumerate(chosen.images.names)}
    groups: list[dict[str, Any]] = []
    for title, names in chosen.groups:
        rows = [_row(chosen.images, index[name], made, scored, limit, with_contours) for name in names]
        groups.append({"title": title, "rows": rows})
    return {
        "split": chosen.images.title,
        "ranked_by": chosen.ranked_by,
        "groups": groups,
        "columns": max((len(row["figures"]) for group in groups for row in group["rows"]), default=1),
    }


def _row(
    images: Images,
    position: int,
    made: Sequence[_Output],
    scored: Sequence[Score],
    limit: int,
    with_contours: bool,
) -> dict[str, Any]:
    """One picture with its true mask and the results of all stages."""
    name, picture_of = images.names[position], images.where(position)
    full = Image.fromarray(images.read(position))
    picture = shrunk(full, SIDE)
    figures = [{"caption": "picture", "kind": "picture", "uri": data_uri(picture, limit)}]
    truth = images.read_mask(position) if images.masks[position] is not None else None
    if truth is not None:
        figures.append({"caption": "true mask", "kind": "mask", "uri": data_uri(coloured_mask(truth), limit)})
    reached = []
    for one in made:
        if not one.has(name, picture_of):
            continue
        judges = [score for score in scored if score.source and score.source.folder == one.stage.folder]
        if one.holds_maps:
            classes, maps = read_matching_cams(images, one.stage.folder, position, full.size[::-1])
            for k in np.argsort(-maps.mean((1, 2)), kind="stable")[:MAPS]:
                caption = f"{one.title}: {images.class_names[classes[k]]}"
                figures.append({"caption": caption, "kind": "map", "uri": data_uri(heatmap(picture, maps[k]), limit)})
        else:
            mask = read_mask(one.file(name))
            figures.append({"caption": one.title, "kind": "mask", "uri": data_uri(coloured_mask(mask), limit)})
            if truth is None:
                over = data_uri(overlaid(picture, mask), limit)
                figures.append({"caption": f"{one.title} over the picture", "kind": "picture", "uri": over})
            tolerance = next((score.protocol["contour tolerance"] for score in judges if score.contour), None)
            if with_contours and truth is not None and tolerance is not None:
                outlines = contour_uri(full, contours(truth, mask, tolerance), limit)
                figures.append({"caption": f"contours of {one.title}", "kind": "contours", "uri": outlines})
        reached += [
            (score.short, score.per_image[name], score.per_image_contour.get(name))
            for score in judges
            if name in score.per_image
        ]
    tags = [(label + 1, images.class_names[label]) for label in images.classes(position)]
    return {"name": name, "tags": tags, "scores": reached, "figures": figures}


def suspicious_tags(stages: Sequence[Stage], splits: Mapping[str, Images]) -> dict[str, object] | None:
    """The most suspicious tags that any stage found, with their pictures; None if there are none."""
    worst: dict[tuple[str, str], tuple[Suspect, Images]] = {}
    for stage in stages:
        images = splits.get(stage.fingerprint or "")
        for suspect in read_suspects(stage.folder) if images is not None else ():
            key = suspect.image, suspect.tag
            if images is not None and (key not in worst or suspect.score > worst[key][0].score):
                worst[key] = suspect, images
    if not worst:
        return None
    rows: list[dict[str, object]] = []
    for suspect, images in sorted(worst.values(), key=lambda one: -one[0].score):
        if len(rows) < SUSPECTS and suspect.image in images.names:
            position = images.names.index(suspect.image)
            picture = shrunk(Image.fromarray(images.read(position)), SIDE // 2)
            tags = [images.class_names[label] for label in images.classes(position)]
            rows.append({"suspect": suspect, "tags": tags, "uri": data_uri(picture, PICTURE_BYTES // 6)})
    return {"count": len(worst), "rows": rows}
