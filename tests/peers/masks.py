"""Masks that are hard to keep: holes, islands in holes, bridges of one pixel, touching classes, single pixels, noise, nothing at all."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "<dog & 'hound'>", "bird", "never seen")
SIZES = ((16, 21), (29, 11), (1, 7))


def masks(unsure: bool) -> dict[str, np.ndarray]:
    """Labels 0 to 3, and 255 if wanted, by the name of their picture."""
    made = {}
    for at, size in enumerate(SIZES):
        draw = np.random.default_rng(at)
        y, x = np.indices(size)
        rings = ((np.hypot(y - size[0] / 2, x - size[1] / 2) // 3) % 4).astype(np.uint8)
        touching = np.where(x < size[1] // 2, 1, 2).astype(np.uint8) * (y % 11 > 1)
        bridge = np.zeros(size, np.uint8)
        bridge[:, : size[1] // 3] = bridge[:, -(size[1] // 3) :] = 3
        bridge[size[0] // 2] = 3
        checks = ((x + y) % 2).astype(np.uint8)
        noise = draw.integers(0, 4, size, np.uint8)
        kinds = {"rings": rings, "touching": touching, "bridge": bridge, "checks": checks, "noise": noise}
        kinds |= {"nothing": np.zeros(size, np.uint8), "full": np.full(size, 2, np.uint8)}
        for kind, mask in kinds.items():
            folder = ("", "a folder/", "träger/")[at % 3]
            made[f"{folder}{kind} {at}"] = mask.astype(np.uint8)
    if unsure:
        for mask in made.values():
            mask[: mask.shape[0] // 4, : mask.shape[1] // 3] = 255
    return made


def write(root: Path, unsure: bool) -> None:
    """`pictures`, `masks` as grey PNGs, and `classes.txt`."""
    for name, mask in masks(unsure).items():
        for folder, array in (("pictures", np.stack([mask * np.uint8(40)] * 3, -1)), ("masks", mask)):
            path = root / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2] == "unsure")
