"""Small pictures for the scripts of this folder: noise with a square of one colour."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)


def folder(tool: str, version: str) -> Path:
    """An empty folder for what a tool writes."""
    root = Path(__file__).parents[1] / "data" / "peers" / f"{tool}-{version}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    return root


def pixels(seed: int) -> np.ndarray:
    """A picture (24, 32, 3), uint8."""
    picture = np.full((*SIZE, 3), 110 + seed, np.uint8)
    picture[inside(seed)] = (200, 40 * seed, 40)
    return picture


def inside(seed: int) -> np.ndarray:
    """Where its square is: 8 rows of 10 pixels."""
    square = np.zeros(SIZE, bool)
    square[4:12, 5 + seed : 15 + seed] = True
    return square


def save(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)
    return path
