"""The pictures of docs/choosing.md: what too little, enough and too much of a setting does.

    python benchmarks/settings_pictures.py WORK docs/pictures

Generates pictures in WORK, trains small classifiers on their tags, and writes one WebP file per setting.
A few minutes on two cores; trainings that are there already are used again.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import wsss
from wsss.cli import main
from wsss.configs import CONFIGS
from wsss.data.images import Images
from wsss.ops.crf import PRESETS, DenseCRF
from wsss.stages.pages import heatmap

# Classes of the two pictures shown
SHOWN = ("star", "ball")
SIDE = 168
SIZE = ("--augment.long_side", "[60,80]", "--augment.crop", "68")
LENGTH = ("--training.epochs", "12")
# name of a training, and its flags
TRAININGS = {
    "enough": (*SIZE, *LENGTH),
    "short": (*SIZE, "--training.epochs", "3"),
    "long": (*SIZE, "--training.epochs", "40"),
    "coarse": (*SIZE, *LENGTH, "--output_stride", "32"),
    "large": ("--augment.long_side", "[200,260]", "--augment.crop", "68", *LENGTH),
    "small": ("--augment.long_side", "[20,26]", "--augment.crop", "20", *LENGTH),
}


def train(work: Path) -> Images:
    """Make the data set and the classifiers; returns the training pictures."""
    data = work / "data"
    run(["data", "shapes", str(data), "--train", "160", "--val", "8", "--size", "76"])
    for name, flags in TRAININGS.items():
        config = str(CONFIGS / "demo_cam.yaml")
        run(["train", "cam", "--data", str(data), "--config", config, "--out", str(work / name), *flags])
    return wsss.open_dataset(data).split("train")


def run(words: list[str]) -> None:
    if status := main(words):
        sys.exit(status)


class Maps:
    """The maps of a training for one picture.

    Args:
        work: folder of the trainings.
        images: the pictures.
    """

    def __init__(self, work: Path, images: Images) -> None:
        self.work, self.images = work, images
        wanted = [(images.class_names.index(name),) for name in SHOWN]
        alone = [tuple(images.classes(index)) for index in range(len(images))]
        self.shown = [alone.index(classes) for classes in wanted]

    def of(self, training: str, index: int, scales: tuple[float, ...] = (1.0, 0.75, 1.5)) -> np.ndarray:
        names = [self.images.class_names[label] for label in self.images.classes(index)]
        return wsss.load(self.work / training, scales=scales).cams(self.images.read(index), names)

    def drawn(self, training: str, index: int, scales: tuple[float, ...] = (1.0, 0.75, 1.5)) -> Image.Image:
        maps = self.of(training, index, scales)
        return heatmap(Image.fromarray(self.images.read(index)), maps.max(0))

    def masked(self, index: int, threshold: float, preset: DenseCRF | None = None) -> Image.Image:
        """The picture with the mask of a threshold, and of a dense CRF if there is one."""
        picture = self.images.read(index)
        maps, classes = self.of("long", index), self.images.classes(index)
        if preset is None:
            mask = wsss.pseudo_mask(maps, classes, threshold=threshold)
        else:
            mask = wsss.pseudo_mask(maps, classes, threshold=threshold, picture=picture, preset=preset)
        return painted(picture, mask)


def painted(picture: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Foreground unchanged, background grey and darker."""
    grey = (0.25 * picture.mean(2, keepdims=True) + 20).repeat(3, 2)
    return Image.fromarray(np.where((mask > 0)[..., None], picture, grey).astype(np.uint8))


def strip(columns: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Columns of pictures with their captions above."""
    font = ImageFont.load_default(15)
    gap, head, rows = 8, 24, len(columns[0][1])
    canvas = Image.new("RGB", (len(columns) * (SIDE + gap) - gap, head + rows * (SIDE + gap) - gap), "white")
    for column, (caption, pictures) in enumerate(columns):
        left = column * (SIDE + gap)
        ImageDraw.Draw(canvas).text((left + SIDE // 2, 2), caption, "black", font, "ma")
        for row, picture in enumerate(pictures):
            resized = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            canvas.paste(resized, (left, head + row * (SIDE + gap)))
    return canvas


def strips(maps: Maps) -> dict[str, Image.Image]:
    """A strip for each setting."""
    tolerant = dataclasses.replace(PRESETS["irn"], bilateral_srgb=60.0, bilateral_weight=40.0)

    def column(caption: str, draw: Callable[[int], Image.Image]) -> tuple[str, list[Image.Image]]:
        return caption, [draw(index) for index in maps.shown]

    plain = column("picture", lambda index: Image.fromarray(maps.images.read(index)))
    return {
        "threshold": strip([plain, *(column(f"{t:g}", partial(maps.masked, threshold=t)) for t in (0.1, 0.4, 0.8))]),
        "epochs": strip([
            plain,
            column("3 epochs", lambda index: maps.drawn("short", index)),
            column("12 epochs", lambda index: maps.drawn("enough", index)),
            column("40 epochs", lambda index: maps.drawn("long", index)),
        ]),
        "size": strip([
            plain,
            column("at 20 px", lambda index: maps.drawn("small", index, (0.3,))),
            column("at 68 px", lambda index: maps.drawn("enough", index)),
            column("at 230 px", lambda index: maps.drawn("large", index, (3.0,))),
        ]),
        "output-stride": strip([
            plain,
            column("stride 32", lambda index: maps.drawn("coarse", index)),
            column("stride 8", lambda index: maps.drawn("enough", index)),
        ]),
        "crf": strip([
            plain,
            column("no CRF", lambda index: maps.masked(index, 0.4)),
            column("irn", lambda index: maps.masked(index, 0.4, PRESETS["irn"])),
            column("srgb 60", lambda index: maps.masked(index, 0.4, tolerant)),
        ]),
    }  # fmt: skip


if __name__ == "__main__":
    work, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in strips(Maps(work, train(work))).items():
        path = out / f"setting-{name}.webp"
        picture.save(path, quality=78, method=6)
        print(path, path.stat().st_size)
