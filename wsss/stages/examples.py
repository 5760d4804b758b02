"""What a network makes of a few training pictures while it is trained, for the report of a run with `--plots`."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wsss import classifier, launch
from wsss.arrays import UInt8
from wsss.data.images import Images
from wsss.errors import reading
from wsss.stages.localize import Localizer, LocalizerSettings
from wsss.stages.pages import PICTURE_BYTES, coloured_mask, data_uri, heatmap, random_names, shrunk
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.stages.train import Trainable
from wsss.storage import whole_file

# Folder of the drawings in a run folder: plots/STAGE/UPDATE/INDEX OF THE PICTURE.png
PLOTS = "plots"
# Stages whose networks are drawn; all others train no maps and no masks
DRAWN_STAGES = ("baseline", "classifier", "segmenter")
# Pictures, and their longest side
PICTURES, SIDE = 4, 384
# Drawings of each picture that the page shows
SHOWN = 6

Draw = Callable[[UInt8[np.ndarray, "h w 3"], int], Image.Image]


class Examples:
    """Draws maps or predictions of a few fixed training pictures.

    Args:
        run: run folder.
        images: the training pictures.
        inference: settings of the method's maps; None if it makes none.
    """

    def __init__(self, run: Path, images: Images, inference: LocalizerSettings | None) -> None:
        self.run, self.images, self.inference = run, images, inference
        tagged = [name for name, row in zip(images.names, images.labels, strict=True) if row.any()]
        chosen = set(random_names(tagged, PICTURES))
        self.indices = [index for index, name in enumerate(images.names) if name in chosen]

    def draw_current(self, stage: str, update: int, trainable: Trainable) -> None:
        """Draw what a network makes of the pictures in the middle of its training, which does not notice it."""
        device = launch.device()
        with (
            tempfile.TemporaryDirectory() as folder,
            # a second network draws its initial weights
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            trainable.write(Path(folder))
            self.draw(stage, update, Path(folder))

    def draw(self, stage: str, update: int, weights: Path) -> None:
        """Draw what the network in a folder makes of the pictures, after a number of updates."""
        drawing = self._drawing(stage, weights)
        for index in self.indices:
            picture = np.asarray(shrunk(Image.fromarray(self.images.read(index)), SIDE))
            out = self.run / PLOTS / stage / f"{update:06d}" / f"{index}.png"
            with whole_file(out, "nothing") as temporary:
                drawing(picture, index).save(temporary, "png")

    def _drawing(self, stage: str, weights: Path) -> Draw:
        if stage == "segmenter":
            segmenter = Segmenter(weights, PredictSettings(scales=(1.0,), flip=False))
            return lambda picture, _: coloured_mask(segmenter(picture))
        localizer = self._localizer(stage, weights)

        def draw(picture: UInt8[np.ndarray, "h w 3"], index: int) -> Image.Image:
            only = np.arange(len(self.images.class_names)) == self.images.classes(index)[0]
            maps = localizer.cams(localizer.prepare(picture), picture.shape[:2], only).maps
            return heatmap(Image.fromarray(picture), maps[0])

        return draw

    def _localizer(self, stage: str, weights: Path) -> Localizer:
        if stage == "classifier" and self.inference is not None:
            return self.inference.localizer(self.images, weights=weights)
        network, metadata = classifier.load(weights, self.images)
        views = classifier.MultiScale((1.0,), flip=False)
        return classifier.CAMLocalizer(network.to(launch.device()).eval(), views, metadata["colours"])


def example_rows(run: Path, images: Images) -> list[dict[str, Any]]:
    """The drawings in a run folder, as the report shows them: for each stage a row for each picture, in the order of the updates."""
    found = []
    for stage in DRAWN_STAGES:
        updates = sorted(path for path in (run / PLOTS / stage).glob("*") if path.name.isdigit())
        places = np.linspace(0, len(updates) - 1, min(SHOWN, len(updates))).round().astype(int).tolist()
        rows: dict[int, dict[str, Any]] = {}
        for folder in (updates[place] for place in places):
            for path in sorted(folder.glob("*.png")):
                index = int(path.stem) if path.stem.isdigit() else len(images)
                if index >= len(images) or not images.labels[index].any():
                    continue  # a file of another program, or of other tags
                label = images.classes(index)[0]
                tag = (label + 1, images.class_names[label])
                row = rows.setdefault(index, {"name": images.names[index], "tags": [tag], "figures": []})
                with reading(path, "a drawing that `--plots` made", "Remove it."), Image.open(path) as drawn:
                    uri = data_uri(drawn if drawn.mode == "P" else drawn.convert("RGB"), PICTURE_BYTES)
                kind = "mask" if stage == "segmenter" else "map"
                row["figures"].append({"caption": f"update {int(folder.name)}", "kind": kind, "uri": uri})
        for index, row in rows.items():
            picture = data_uri(shrunk(Image.fromarray(images.read(index)), SIDE), PICTURE_BYTES)
            row["figures"].insert(0, {"caption": "picture", "kind": "picture", "uri": picture})
        if rows:
            columns = max(len(row["figures"]) for row in rows.values())
            found.append({"name": stage, "rows": [rows[index] for index in sorted(rows)], "columns": columns})
    return found
