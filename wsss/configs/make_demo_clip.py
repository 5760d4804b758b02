"""Make the demo's CLIP again: draw captioned pictures, train on them. `OUT/clip` is then what lies in `demo_clip`.

    python -m wsss.configs.make_demo_clip OUT

It knows the five shapes from other pictures than the demo's, as a downloaded CLIP would: squares of 72 pixels with up to two
objects of all sizes, often cut off, on any ground, and captions that may name the ground. No mask is drawn.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.cli import main
from wsss.data.shapes import RADII, SHAPES, ground, place, put, water
from wsss.storage import whole_file
from wsss.stream import in_threads

PICTURES, SIDE, SEED = 8000, 72, 99
HERE = Path(__file__).parent


def draw(index: int) -> tuple[np.ndarray, list[str]]:
    """A picture (RGB), and what it shows."""
    chance = np.random.default_rng([SEED, index])
    if chance.random() < 0.25:
        image, behind = water(SIDE, SIDE, chance), "water"
    else:
        image, behind = ground(SIDE, SIDE, chance)
    count = int(chance.choice(3, p=(0.15, 0.5, 0.35)))
    places: list[tuple[float, float, float]] = []
    if count == 1:
        radius = SIDE * chance.uniform(0.2, 0.7)
        row, column = chance.uniform(0.2 * SIDE, 0.8 * SIDE, 2)
        places = [(row, column, radius)]
    else:
        for _ in range(count):
            if free := place(SIDE, SIDE, places, RADII, chance):
                places.append(free)
    shown = []
    for where in places:
        shown.append(SHAPES[chance.integers(len(SHAPES))])
        _, image = put(image, shown[-1], where, chance)
    image = image + chance.normal(0, 0.012, image.shape)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8), list(dict.fromkeys([*shown, behind]))


def make(out: Path) -> int:
    """Draw into `out/pictures`, train into `out/clip`; gives the exit status."""
    pictures = out / "pictures"

    def write(index: int) -> str:
        image, shown = draw(index)
        name = f"images/{index:05d}.jpg"
        with whole_file(pictures / name) as temporary:
            Image.fromarray(image).save(temporary, format="JPEG", quality=92)
        return f"{name},{';'.join(shown)},train\n"

    if not (pictures / "tags.csv").exists():
        rows = list(in_threads(write, range(PICTURES)))
        with whole_file(pictures / "tags.csv") as temporary:
            temporary.write_text("image,tags,split\n" + "".join(rows))
    settings = [
        "--data",
        str(pictures),
        "--config",
        str(HERE / "demo_clip" / "training.yaml"),
        "--out",
        str(out / "clip"),
    ]
    return main(["train", "clip", *settings])


if __name__ == "__main__":
    sys.exit(make(Path(sys.argv[1])))
