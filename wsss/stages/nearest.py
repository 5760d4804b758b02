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
from wsss.segmenters.explained import Explained, Nearest, explained
from wsss.segmenters.retrieval import TrainedRetrieval
from wsss.stages.pages import PICTURE_BYTES, SIDE, data_uri, shrunk
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.stages.records import Stage
from wsss.storage import read_json, write_json

NEAREST = "nearest.json"
# pictures that are looked at
PICTURES = 12
# a region is shown with this share of its box on each side
_MARGIN = 0.15


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
