"""Why a retrieval segmenter labelled regions as it did: the training regions that are most similar to them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss import launch
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.health.sample import collected, sampled
from wsss.run import stage
from wsss.segmenters.retrieval import SHOWN, Decided, TrainedRetrieval
from wsss.stages.pages import PICTURE_BYTES, SIDE, data_uri, shrunk
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.stages.records import Stage
from wsss.storage import read_json, write_json

NEAREST = "nearest.json"
# pictures that are looked at, and regions of each that are shown
PICTURES, REGIONS = 12, 3
# a region is shown with this share of its box on each side
_MARGIN = 0.15


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


@stage(kind="nearest", makes="notes", title="nearest training regions")
def explain(images: Images, *, weights: Path, out: Path) -> dict[str, Any]:
    """Write `nearest.json`: for a few pictures, the training regions that decided on their largest regions with a class.

    Args:
        images: pictures that are not in the bank.
        weights: folder of the segmenter.
        out: the stage's folder.
    """
    trained = Segmenter(weights, PredictSettings()).trained
    assert isinstance(trained, TrainedRetrieval)
    chosen = sampled(images, PICTURES)

    def look(loaded: tuple[int, np.ndarray]) -> list[dict[str, Any]]:
        index, image = loaded
        found = explained(trained, images.names[index], trained.decide(image))
        return [dataclasses.asdict(one) for one in found]

    found = collected(images, chosen, lambda index: (index, images.read(index)), look, f"nearest regions {out.name}")
    regions = [one for of_picture in found for one in of_picture]
    if launch.is_first():
        write_json(out / NEAREST, {"classes": list(trained.classes), "regions": regions})
    return {"pictures": len(chosen), "regions": len(regions)}


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


def read_nearest(folder: Path) -> tuple[list[str], list[Explained]] | None:
    """The class names and the regions that `explain` wrote; None if there is no such file.

    Raises:
        BadInput: the file is damaged.
    """
    path = folder / NEAREST
    if not path.exists():
        return None
    expected = "the nearest training regions of a run"
    content = read_json(path, expected)
    try:
        regions = [
            Explained(**{**one, "nearest": tuple(Nearest(**near) for near in one["nearest"])})
            for one in content["regions"]
        ]
        classes = [str(name) for name in content["classes"]]
        places = [(region.label, region.box) for region in regions]
        places += [(near.label, near.box) for region in regions for near in region.nearest]
        for label, box in places:
            if not 0 <= label <= len(classes) or [type(side) for side in box] != [int] * 4:
                raise KeyError(label)
        return classes, regions
    except (TypeError, KeyError) as error:
        do = f"It was changed after it was written: remove {folder}, and run the same command again."
        raise BadInput(path, f"{content!s:.50}", expected, do) from error


def nearest_regions(stages: Sequence[Stage], splits: Mapping[str, Images]) -> list[dict[str, object]]:
    """The explained regions with their pictures, for the report; empty if there are none.

    Args:
        stages: the finished stages.
        splits: the splits that they were made from, by fingerprint.
    """
    rows: list[dict[str, object]] = []
    for stage_ in stages:
        found, images = read_nearest(stage_.folder), splits.get(stage_.fingerprint or "")
        if found is None or images is None:
            continue
        labels = ["background", *found[0]]
        # the pictures of the bank are those of another split; a bank that was added to has pictures that are in none
        others = [one for one in splits.values() if one is not images]
        for region in found[1]:
            figures = [_cut(others, near.image, near.box) for near in region.nearest]
            rows.append(
                {
                    "image": region.image,
                    "label": labels[region.label],
                    "share": region.share,
                    "uri": _cut([images], region.image, region.box)["uri"],
                    "nearest": [
                        {**figure, "image": near.image, "label": labels[near.label], "similarity": near.similarity}
                        for figure, near in zip(figures, region.nearest, strict=True)
                    ],
                }
            )
    return rows


def _cut(splits: Sequence[Images], name: str, box: tuple[int, int, int, int]) -> dict[str, object]:
    """A region cut from its picture, as a data URI, and the tags of the picture; neither if it is in none of the splits."""
    for images in splits:
        if name in images.names:
            index = images.names.index(name)
            tags = [images.class_names[label] for label in images.classes(index)]
            return {"uri": _uri(images.read(index), box), "tags": tags}
    return {"uri": None, "tags": []}


def _uri(image: np.ndarray, box: tuple[int, int, int, int]) -> str | None:
    """None if the picture has become smaller than the box."""
    top, left, bottom, right = box
    down, across = round(_MARGIN * (bottom - top)), round(_MARGIN * (right - left))
    part = image[max(0, top - down) : bottom + down, max(0, left - across) : right + across]
    if not part.size:
        return None
    return data_uri(shrunk(Image.fromarray(part), SIDE // 2), PICTURE_BYTES // 8)
