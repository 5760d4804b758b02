"""A small data set of synthetic pictures with true masks, for a first run and for the tests; it needs no download.

Each class has a characteristic outline, and a pattern on one part of the object; the rest of the object has a random colour. A class
activation map therefore finds the pattern first and covers less than the object. A `boat` floats on rippled blue water, which only
pictures with a boat show, so its map leaks into the water. Objects contrast with the background around them, which a dense CRF can use.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from wsss.arrays import Float, UInt8
from wsss.data.files import write_mask
from wsss.data.lists import listing
from wsss.errors import BadInput
from wsss.storage import read_json, whole_file, write_json
from wsss.stream import Progress, in_threads

SHAPES = ("ball", "boat", "cross", "ring", "star")
GROUNDS = ("clouds", "shade", "stripes")
RECORD = "shapes.json"
# Must change whenever the same settings give other pictures
_VERSION = 1
# Radii of the objects, as shares of the shorter side of the picture
RADII = (0.2, 0.38)

Plane = Float[np.ndarray, "h w"]
Colours = Float[np.ndarray, "h w 3"]


def make_shapes(
    out: Path,
    *,
    train: int = 400,
    val: int = 100,
    size: int = 128,
    classes: Sequence[str] = SHAPES,
    radii: tuple[float, float] = RADII,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write the data set in VOC's layout; the same call again writes only missing files.

    Args:
        out: the folder, new or written with the same settings.
        train: number of pictures to train on.
        val: number of pictures to score on.
        size: longest side in pixels, at least 48.
        classes: some of `SHAPES`.
        radii: smallest and largest radius of the objects, as shares of the shorter side of the picture, in [0.05, 0.48].
        seed: the random seed; a picture depends only on the seed, its split and its number.
        progress: called with the number of pictures done and of all pictures.

    Returns:
        `out`.

    Raises:
        BadInput: the folder has other content, or a setting is out of range.
    """
    names = tuple(dict.fromkeys(classes))
    unknown = [name for name in names if name not in SHAPES]
    if unknown or not names:
        raise BadInput("classes", ", ".join(unknown) or "none", f"some of {', '.join(SHAPES)}", "Choose other classes.")
    if min(train, val) < 1 or size < 48 or seed < 0:
        found = f"train {train}, val {val}, size {size}, seed {seed}"
        raise BadInput("shapes", found, "at least 1, 1, 48 and 0", "Choose larger numbers.")
    if not 0.05 <= radii[0] <= radii[1] <= 0.48:
        found = f"radii from {radii[0]:g} to {radii[1]:g} of the shorter side"
        raise BadInput("shapes", found, "two ascending numbers in [0.05, 0.48]", "Choose other radii.")
    settings = {
        "version": _VERSION,
        "train": train,
        "val": val,
        "size": size,
        "classes": list(names),
        "radii": list(radii),
        "seed": seed,
    }
    _claim(out, settings)
    pictures = [(split, index) for split, count in (("train", train), ("val", val)) for index in range(count)]

    def make(picture: tuple[str, int]) -> None:
        split, index = picture
        name = f"{split}_{index:05d}"
        annotation = out / "Annotations" / f"{name}.xml"
        if not annotation.is_file():
            image, mask, boxes = draw(split, index, size=size, classes=names, radii=radii, seed=seed)
            with whole_file(out / "JPEGImages" / f"{name}.jpg") as temporary:
                Image.fromarray(image).save(temporary, format="JPEG", quality=92)
            write_mask(out / "SegmentationClass" / f"{name}.png", mask)
            with whole_file(annotation) as temporary:
                temporary.write_text(_annotation(name, image.shape[:2], boxes), encoding="utf-8")

    for _ in in_threads(make, pictures, len(pictures), progress):
        pass
    _write_lists(out, {"train": train, "val": val}, names)
    return out


def _write_lists(out: Path, counts: Mapping[str, int], class_names: Sequence[str]) -> None:
    """Write the names of the classes, and of the pictures of each split."""
    texts = {"classes.txt": class_names} | {
        f"ImageSets/Segmentation/{split}.txt": [f"{split}_{index:05d}" for index in range(count)]
        for split, count in counts.items()
    }
    for file, lines in texts.items():
        if not (out / file).is_file():
            with whole_file(out / file) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _claim(out: Path, settings: dict[str, object]) -> None:
    record = out / RECORD
    if record.is_file():
        made = read_json(record, "the settings of generated pictures")
        if made != settings:
            others = ", ".join(f"{key} {made.get(key)}" for key, value in settings.items() if made.get(key) != value)
            raise BadInput(
                out, f"pictures made with {others}", "the same settings or a new folder", "Choose another folder."
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise BadInput(out, listing(out), "an empty or new folder", "Choose another folder.")
    write_json(record, settings)


def _annotation(name: str, size_hw: tuple[int, ...], boxes: Sequence[tuple[str, tuple[int, int, int, int]]]) -> str:
    objects = "".join(
        f"<object><name>{escape(tag)}</name><difficult>0</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for tag, box in boxes
    )
    size = f"<size><width>{size_hw[1]}</width><height>{size_hw[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>\n"


def draw(
    split: str, index: int, *, size: int, classes: Sequence[str], radii: tuple[float, float] = RADII, seed: int
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"], list[tuple[str, tuple[int, int, int, int]]]]:
    """One picture (RGB), its mask (255 on the edge pixels that object and background share) and its objects with their boxes.

    A box is left, top, right, bottom, counted from 1 as in VOC.
    """
    chance = np.random.default_rng([seed, {"train": 0, "val": 1}[split], index])
    long, short = size, int(chance.integers(round(0.75 * size), size + 1))
    height, width = (long, short) if chance.random() < 0.5 else (short, long)
    first = classes[index % len(classes)]
    others = [name for name in classes if name != "boat"] or [first]
    tags = [first] + [others[chance.integers(len(others))] for _ in range(chance.choice(3, p=(0.5, 0.35, 0.15)))]
    image = water(height, width, chance) if first == "boat" else ground(height, width, chance)[0]
    mask = np.zeros((height, width), np.uint8)
    boxes: list[tuple[str, tuple[int, int, int, int]]] = []
    taken: list[tuple[float, float, float]] = []
    for tag in tags:
        free = place(height, width, taken, radii, chance)
        if free is None:
            continue
        taken.append(free)
        cover, image = put(image, tag, free, chance)
        solid = cover > 0.5
        mask[solid] = classes.index(tag) + 1
        mask[(cover > 0.15) & (cover < 0.85)] = 255
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        boxes.append((tag, (int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1)))
    image = image + chance.normal(0, 0.012, image.shape)
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8), mask, boxes


def place(
    height: int,
    width: int,
    taken: Sequence[tuple[float, float, float]],
    radii: tuple[float, float],
    chance: np.random.Generator,
) -> tuple[float, float, float] | None:
    """Row, column and radius of a disk that lies in the picture and touches no other, None if none is found."""
    for attempt in range(30):
        radius = min(height, width) * chance.uniform(*radii) * (1 - attempt / 60)
        row, column = chance.uniform(radius, height - radius), chance.uniform(radius, width - radius)
        if all(np.hypot(row - y, column - x) > 0.92 * (radius + r) for y, x, r in taken):
            return row, column, radius
    return None


def put(
    image: Colours, tag: str, where: tuple[float, float, float], chance: np.random.Generator
) -> tuple[Plane, Colours]:
    """Draw an object; returns the share of each pixel that it covers, and the picture with it."""
    row, column, radius = where
    turn = chance.uniform(-0.3, 0.3) if tag == "boat" else chance.uniform(0, 2 * np.pi)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float64)
    y, x = (y - row) / radius, (x - column) / radius
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    cover = np.clip(0.5 - _OUTLINES[tag](u, v) * radius, 0, 1)
    backdrop = image[(cover > 0) | (np.hypot(u, v) < 1.2)].mean(0)
    marks = np.clip(_MARKS[tag] + chance.uniform(-0.1, 0.1, 3), 0, 1)
    body = _far_from([backdrop, marks], chance)
    shade = (
        1
        + chance.uniform(-0.25, 0.25) * u
        + chance.uniform(-0.25, 0.25) * v
        + 0.15 * _noise((u.shape[0], u.shape[1]), 6, chance)
    )
    inside = _PATTERNS[tag](u, v)[..., None]
    colours = np.clip(((1 - inside) * body + inside * marks) * shade[..., None], 0, 1)
    return cover, image + cover[..., None] * (colours - image)


def _far_from(others: Sequence[Float[np.ndarray, " 3"]], chance: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """A random pale colour that contrasts with these."""
    tries = _pale(chance.uniform(0, 1, (16, 3)))
    apart = np.linalg.norm(tries[:, None] - np.array(others), axis=2).min(1)
    return tries[np.argmax(np.minimum(apart, 0.4))]


def _pale(colours: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    grey = colours.mean(-1, keepdims=True)
    return grey + 0.45 * (colours - grey)


def _noise(size_hw: tuple[int, int], cells: int, chance: np.random.Generator) -> Plane:
    """Smooth noise with this number of cells per side, in about [-1, 1]."""
    coarse = Image.fromarray(chance.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize(size_hw[::-1], Image.Resampling.BICUBIC), np.float64)


def _grain(size_hw: tuple[int, int], chance: np.random.Generator) -> Plane:
    """Noise of several scales, in about [-1, 1]."""
    return 0.5 * _noise(size_hw, 4, chance) + 0.3 * _noise(size_hw, 12, chance) + 0.2 * _noise(size_hw, 40, chance)


def ground(height: int, width: int, chance: np.random.Generator) -> tuple[Colours, str]:
    """A background of pale colours other than blue, and the name of its kind in `GROUNDS`."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    red, green = chance.uniform(0.2, 0.85, 2)
    first = _pale(np.array([[red, green, chance.uniform(0.1, 1.0) * min(red, green)]]))[0]
    second = np.clip(first + chance.uniform(-0.3, 0.3) + chance.uniform(-0.05, 0.05, 3), 0.02, 0.98)
    angle, kind = chance.uniform(0, np.pi), chance.integers(3)
    along = np.cos(angle) * x + np.sin(angle) * y
    grain = _grain((height, width), chance)
    if kind == 0:
        mix = 0.5 + 0.7 * grain
    elif kind == 1:
        mix = along - along.min() + 0.25 * grain
    else:
        mix = 0.5 + 0.3 * np.sin(2 * np.pi * chance.uniform(4, 10) * along + 0.8 * grain) + 0.2 * grain
    mix = np.clip(mix, 0, 1)[..., None]
    return first + mix * (second - first), GROUNDS[kind]


def water(height: int, width: int, chance: np.random.Generator) -> Colours:
    """Blue with ripples."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = (
        2
        * np.pi
        * (chance.uniform(9, 13) * y + 0.35 * np.sin(2 * np.pi * (chance.uniform(3, 5) * x + chance.random())))
    )
    crests = np.clip(np.sin(waves + 1.2 * _noise((height, width), 5, chance)), 0, 1) ** 2
    deep = np.array([chance.uniform(0.02, 0.15), chance.uniform(0.25, 0.45), chance.uniform(0.6, 0.85)])
    return (
        deep
        + 0.35 * crests[..., None] * (np.array([0.75, 0.9, 1.0]) - deep)
        + 0.04 * _grain((height, width), chance)[..., None]
    )


def _polygon(*corners: tuple[float, float]) -> Callable[[Plane, Plane], Plane]:
    """The signed distance to a polygon's border, negative inside, in units of the radius."""
    ends = np.array(corners)

    def distance(u: Plane, v: Plane) -> Plane:
        nearest, inside = np.full(u.shape, np.inf), np.zeros(u.shape, bool)
        for (u0, v0), (u1, v1) in zip(ends, np.roll(ends, -1, 0), strict=True):
            du, dv = u1 - u0, v1 - v0
            at = np.clip(((u - u0) * du + (v - v0) * dv) / (du * du + dv * dv), 0, 1)
            nearest = np.minimum(nearest, (u - u0 - at * du) ** 2 + (v - v0 - at * dv) ** 2)
            inside ^= ((v0 > v) != (v1 > v)) & (u < u0 + (v - v0) * du / (dv or 1.0))
        return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)

    return distance


def _box(half_u: float, half_v: float) -> Callable[[Plane, Plane], Plane]:
    return lambda u, v: np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def _any(*shapes: Callable[[Plane, Plane], Plane]) -> Callable[[Plane, Plane], Plane]:
    return lambda u, v: np.minimum.reduce([shape(u, v) for shape in shapes])


_STAR = [(r * np.sin(np.pi * i / 5), -r * np.cos(np.pi * i / 5)) for i in range(10) for r in ((0.98, 0.42)[i % 2],)]
# Signed distance to the outline, negative inside; u to the right, v down, the object within the unit disk
_OUTLINES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "ball": lambda u, v: np.hypot(u, v) - 0.9,
    "boat": _any(
        _polygon((-0.92, 0.25), (0.92, 0.25), (0.6, 0.72), (-0.6, 0.72)),
        _polygon((0.0, -0.92), (0.72, 0.12), (0.0, 0.12)),
        _polygon((-0.1, -0.7), (-0.1, 0.12), (-0.6, 0.12)),
        _polygon((-0.1, -0.92), (0.0, -0.92), (0.0, 0.3), (-0.1, 0.3)),
    ),
    "cross": _any(_box(0.92, 0.28), _box(0.28, 0.92)),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.66) - 0.26,
    "star": _polygon(*_STAR),
}


def _soft(values: Plane) -> Plane:
    return 1 / (1 + np.exp(-np.clip(8 * values, -60, 60)))


# The mean colour of the pattern on each class
_MARKS = {
    "ball": np.array([0.9, 0.12, 0.1]),
    "boat": np.array([0.97, 0.97, 0.97]),
    "cross": np.array([0.05, 0.6, 0.15]),
    "ring": np.array([0.95, 0.85, 0.1]),
    "star": np.array([0.85, 0.1, 0.85]),
}
# The share of that colour at each point: a pattern on a part of the object
_PATTERNS: dict[str, Callable[[Plane, Plane], Plane]] = {
    "ball": lambda u, v: _soft(np.sin(3 * np.arctan2(v, u))) * _soft(0.25 - v),
    "boat": lambda u, v: _soft(np.sin(14 * v)) * _soft(0.0 - v),
    "cross": lambda u, v: _soft(np.sin(20 * u)) * _soft(u - 0.1),
    "ring": lambda u, v: _soft(4 * (np.sin(11 * u) * np.sin(11 * v) - 0.3)) * _soft(0.2 - u),
    "star": lambda u, v: _soft(np.sin(22 * np.hypot(u, v))) * _soft(0.45 - np.hypot(u, v)),
}
