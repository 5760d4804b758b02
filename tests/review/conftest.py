"""A small dataset and run for the pages: hostile class names, a name with blanks, maps, pseudo masks."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import write_cams, write_mask

CLASSES = ("cat", "<img src=x onerror=\"document.title='owned'\">", "=1+1", "dog & 'bird'")
NAMES = ("a/one", "a/two words", "b/drei ß", "b/four.png", "five")
TAGS = ((0,), (0, 1), (1, 3), (2,), ())
SIZE_HW = (40, 52)


class Made(NamedTuple):
    """A dataset folder, and a run folder with masks and maps."""

    data: Path
    run: Path


def make(folder: Path) -> Made:
    rng = np.random.default_rng(0)
    data, run = folder / "data", folder / "run"
    rows = [("image", "tags", "split")]
    for name, tags in zip(NAMES, TAGS, strict=True):
        picture = np.full((*SIZE_HW, 3), 90, np.uint8) + rng.integers(0, 20, (*SIZE_HW, 3)).astype(np.uint8)
        picture[10:30, 12:40] = (210, 60, 40)
        path = data / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        mask, maps = np.zeros(SIZE_HW, np.uint8), np.zeros((len(tags), *SIZE_HW), np.float32)
        if tags:
            mask[8:32, 10:42] = tags[0] + 1
            mask[8:10] = 255
            maps[0, 8:32, 10:42] = 0.75
        write_mask(run / "masks" / f"{name}.png", mask)
        write_cams(run / "cams" / f"{name}.npz", np.array(tags, np.int16), maps)
        rows.append(
            (f"{name}.png", ";".join(f"'{CLASSES[tag]}" if tag == 2 else CLASSES[tag] for tag in tags), "train")
        )
    Image.fromarray(np.zeros((*SIZE_HW, 3), np.uint8)).save(data / "images" / "val.png")
    rows.append(("val.png", CLASSES[0], "val"))
    with (data / "tags.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    (data / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return Made(data, run)


@pytest.fixture
def made(tmp_path):
    return make(tmp_path)
