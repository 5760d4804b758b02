"""Choose background thresholds from the values of activation maps, without true masks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsss import launch
from wsss.data.images import Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput
from wsss.ops.thresholds import BINS, Thresholds, highest_values, thresholds
from wsss.run import DONE, read_record, stage
from wsss.stages.each import by_pixels, sum_over_pictures
from wsss.storage import read_json, write_json

THRESHOLDS = "thresholds.json"
# The key under which results and protocols say what true masks were used for: a setting, or `none`
PIXEL_LABELS = "pixel labels used"
# What they were used for if a segmenter was trained on masks that a person corrected
CORRECTED = "corrected masks"


@stage(kind="thresholds", makes="thresholds", title="Otsu")
def choose_thresholds(images: Images, *, cams: Path, out: Path) -> dict[str, Any]:
    """Find Otsu's thresholds of the highest map values of all pictures.

    Writes `thresholds.json`: the thresholds, and the histogram they were found from. A killed stage starts over.

    Args:
        images: the pictures.
        cams: folder of their maps, in [0, 1].
        out: the stage's folder.

    Raises:
        BadInput: no picture has a map, or the maps do not match the pictures.
    """
    counts = np.zeros(BINS, np.int64)

    def load(index: int) -> np.ndarray:
        _, maps = read_matching_cams(images, cams, index, images.size_hw(index))
        return highest_values(maps)

    def add(_: int, one: np.ndarray) -> None:
        np.add(counts, one, out=counts)

    # the maps while they are unpacked, their highest values and the bins of these
    needs = by_pixels(images, 18, 10)
    sum_over_pictures(images, load, add, title=f"thresholds {out.name}", needs=needs)
    counts = launch.summed(counts)
    if not counts.any():
        raise BadInput(cams, "no map of any class", "maps of at least one picture with tags", "Check the tags.")
    found = thresholds(counts)
    if launch.is_first():
        write_json(out / THRESHOLDS, {**found._asdict(), "histogram": counts.tolist()})
    return {**found._asdict(), PIXEL_LABELS: "none"}


def given(setting: str, folder: Path | None) -> Path:
    """The folder of the stage that chose the value of a setting.

    Raises:
        BadInput: there is none.
    """
    if folder is None:
        expected = "a number, or the folder of the stage that chooses one"
        raise BadInput(setting, "no number", expected, "Give a number.")
    return folder


def found_thresholds(folder: Path) -> Thresholds:
    """The thresholds that `choose_thresholds` wrote in a stage folder.

    Raises:
        BadInput: the file is missing or damaged.
    """
    content = read_json(folder / THRESHOLDS, "thresholds of activation maps")
    return Thresholds(**{name: content[name] for name in Thresholds._fields})


def pixel_labels(made: Path) -> str:
    """What pixel labels were used for in the making of a stage's files: the name of a setting, `corrected masks`, `none`, or `unknown`.

    It is unknown if the stage, or one that it was made from, has no record, for example that of a published checkpoint. Initial
    weights that settings name are not looked at.

    Args:
        made: folder of a stage, or a file in it.
    """
    folder = made if made.is_dir() else made.parent
    if not (folder / DONE).exists():
        return "unknown"
    record = read_record(folder)
    # a record nests the inputs that are passed by name
    inputs = {**record["inputs"], **record["inputs"].get("inputs", {})}
    own = CORRECTED if "corrected" in inputs else record["result"].get(PIXEL_LABELS, "none")
    if own != "none" or record["kind"] == "score":
        return str(own)
    sources = [
        folder / str(value["folder" if "folder" in value else "file"])
        for value in inputs.values()
        if isinstance(value, Mapping) and ("folder" in value or "file" in value) and "identity" in value
    ]
    words = {pixel_labels(source) for source in sources}
    return next(iter(sorted(words - {"none", "unknown"})), "unknown" if "unknown" in words else "none")
