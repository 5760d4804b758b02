"""Reads and writes what `wsss predict` can write besides masks: class probabilities, and descriptions of the masks in JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wsss.arrays import Float, Float16, UInt8
from wsss.data.files import read_arrays
from wsss.data.labels import IGNORE
from wsss.errors import BadInput
from wsss.storage import whole_file, write_text


def write_probabilities(path: Path, probabilities: Float16[np.ndarray, "l h w"], classes: Sequence[str]) -> None:
    """Write the class probabilities of one picture as a compressed `.npz` that holds no pickles.

    Args:
        path: the file.
        probabilities: of background and classes, at the picture's size.
        classes: the class names; stored as `labels`, with `background` first.
    """
    labels = np.array(["background", *classes])
    with whole_file(path, sync="file") as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, probabilities=probabilities, labels=labels)


def read_probabilities(path: Path, n_labels: int, size_hw: tuple[int, int]) -> Float16[np.ndarray, "l h w"]:
    """Read the probabilities in a file of `write_probabilities`.

    Raises:
        BadInput: the file is missing or damaged, or its probabilities do not have this shape or are outside [0, 1].
    """
    shape = (n_labels, *size_hw)
    expected = f"an .npz file with `probabilities` (float16, {shape}) in [0, 1]"
    do = "Remove its folder, and run the same command again."
    (found,) = read_arrays(path, ("probabilities",), expected, do)
    if found.dtype != np.float16 or found.shape != shape:
        raise BadInput(path, f"`probabilities` of {found.dtype} and shape {found.shape}", expected, do)
    if not all(((one >= 0) & (one <= 1)).all() for one in found):  # NaN fails the comparisons
        raise BadInput(path, f"`probabilities` from {found.min()} to {found.max()}", expected, do)
    return found


def write_description(
    path: Path,
    name: str,
    labels: UInt8[np.ndarray, "h w"],
    confidences: Float16[np.ndarray, "h w"],
    classes: Sequence[str],
) -> None:
    """Write the description of a mask as one line of JSON; see `describe`."""
    text = json.dumps({"picture": name, **describe(labels, confidences, classes)}, ensure_ascii=False)
    write_text(path, f"{text}\n", sync="file")


def confidences_of(
    labels: UInt8[np.ndarray, "h w"], probabilities: Float[np.ndarray, "l h w"]
) -> Float[np.ndarray, "h w"]:
    """The probability of each pixel's label; of ignored pixels, any of them."""
    return np.take_along_axis(probabilities, np.minimum(labels, len(probabilities) - 1)[None], 0)[0]


def describe(
    labels: UInt8[np.ndarray, "h w"], confidences: Float[np.ndarray, "h w"], classes: Sequence[str]
) -> dict[str, Any]:
    """The classes in a mask, with areas, confidences and boxes, as a JSON value (docs/predict.md).

    Args:
        labels: 0 background, class + 1, 255 ignored.
        confidences: the probability of each pixel's label.
        classes: the class names.
    """
    height, width = labels.shape
    present = [label for label in np.unique(labels).tolist() if label not in (0, IGNORE)]
    found = [
        {"class": classes[label - 1], "label": label, **_area(labels, confidences, label), "components": _components(labels == label)}
        for label in present
    ]  # fmt: skip
    return {
        "width": width,
        "height": height,
        "background": _area(labels, confidences, 0),
        "classes": sorted(found, key=lambda one: -one["pixels"]),
    }


def _area(labels: np.ndarray, confidences: np.ndarray, label: int) -> dict[str, Any]:
    inside = labels == label
    pixels = int(inside.sum())
    confidence = round(float(confidences[inside].mean(dtype=np.float64)), 4) if pixels else None
    return {"pixels": pixels, "share": round(pixels / labels.size, 6), "confidence": confidence}


def _components(inside: np.ndarray) -> list[dict[str, Any]]:
    """The 8-connected components of a mask, largest first, each with its box [left, top, width, height]."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    found = [{"box": [int(value) for value in row[:4]], "pixels": int(row[cv2.CC_STAT_AREA])} for row in stats[1:]]
    return sorted(found, key=lambda one: (-one["pixels"], one["box"]))
