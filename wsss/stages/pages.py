"""Shared parts of the HTML pages: templates, number formats, and embedded pictures."""

import base64
import functools
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import matplotlib
import numpy as np
from PIL import Image

from wsss import launch
from wsss.arrays import Bool, Float, UInt8
from wsss.data.files import voc_palette
from wsss.errors import printable
from wsss.ops.contour import BoundaryMatches, boundary_matches
from wsss.stages.records import Score
from wsss.storage import Sync, whole_file

# Most bytes of all pictures of a page together, and of one, before base64 adds a third
PICTURES_BYTES = 6_500_000
PICTURE_BYTES = 60_000
# Longest side of pictures, and of pictures with contours
SIDE, CONTOUR_SIDE = 320, 480

# Number of colours for the runs and scores of a chart
SERIES_COLOURS = 10

# Distinguishable with all three kinds of colour blindness, from each other and from the greys below them
CONTOUR_COLOURS = {
    "true contour, found": (30, 120, 255),
    "predicted contour, right": (160, 225, 255),
    "true contour, missed": (255, 225, 0),
    "predicted contour, false": (240, 70, 0),
}
_DARKEST_GREY, _BRIGHTEST_GREY = 25, 90


def write_page(out: Path, template: str, content: Callable[[], Mapping[str, object]]) -> Path:
    """Write a page, on process 0 only; all processes have to call this.

    Args:
        out: the file.
        template: file name, in the folder of this module.
        content: makes the variables of the template.
    """
    launch.decided_by_first(lambda: write_page_here(out, template, content(), "file and name"))
    return out


def write_page_here(out: Path, template: str, content: Mapping[str, object], sync: Sync) -> None:
    """Write a page in this process, whatever the others do."""
    colours = [f"rgb{tuple(colour)}" for colour in voc_palette().tolist()]
    page = _environment().get_template(template).render(colours=colours, series_colours=SERIES_COLOURS, **content)
    with whole_file(out, sync) as temporary:
        temporary.write_text(page, encoding="utf-8")


def with_code(text: str) -> markupsafe.Markup:
    """The text in HTML, with what stands between backticks as code."""
    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(markupsafe.escape(printable(text)))))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wsss", "stages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # names may contain characters that HTML does not allow, or that reverse the text after them
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = with_code
    environment.filters |= {"percent": percent, "duration": duration}
    return environment


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage, without the sign."""
    return "-" if share is None else f"{100 * share:.1f}"


def duration(spent: float) -> str:
    """Seconds as hours, minutes, seconds."""
    minutes, rest = divmod(round(spent), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{spent:.1f} s"


def aligned(rows: Sequence[Sequence[str]], texts: int) -> str:
    """Rows of cells as aligned lines of text; the first `texts` columns are flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def flattened(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (dotted name, text)."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flattened(inner, f"{prefix}{key}.")
    elif isinstance(value, list) and not any(isinstance(item, Mapping | list) for item in value):
        yield prefix.rstrip("."), ", ".join(map(_text, value))
    else:
        yield prefix.rstrip("."), _text(value)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == {}:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def class_bars(named: Sequence[tuple[str, Score]]) -> list[dict[str, object]]:
    """Bar charts of IoU and contour F for each class, from names and scores over the same classes."""
    iou = [(number, name, (score.scores["miou"], *score.scores["iou"])) for number, (name, score) in enumerate(named)]
    contour = [
        (number, name, (score.contour["mean_f"], *score.contour["f"]))
        for number, (name, score) in enumerate(named)
        if score.contour
    ]
    charts: list[dict[str, object]] = []
    for title, note, first, series in (
        ("IoU", "A class that occurs in neither truth nor prediction has no bar.", 0, iou),
        (
            "Contour F",
            "A class without any outline has no bar, or 100 where the mean is over all classes.",
            1,
            contour,
        ),
    ):
        if not series:
            continue
        labels = [(None, "mean"), *list(enumerate(named[0][1].content["labels"]))[first:]]
        rows = [
            {"label": label, "name": name, "shares": [(number, shares[row]) for number, _, shares in series]}
            for row, (label, name) in enumerate(labels)
        ]
        names = [(number, name) for number, name, _ in series]
        charts.append({"title": title, "note": note, "series": names, "rows": rows})
    return charts


def random_names(names: Sequence[str], count: int, *, in_order: bool = True) -> list[str]:
    """At most `count` names, chosen at random with a fixed seed, in their order or in that of the choice."""
    picked = np.random.default_rng(0).permutation(len(names))[:count].tolist()
    return [names[position] for position in (sorted(picked) if in_order else picked)]


def shrunk(picture: Image.Image, side: int) -> Image.Image:
    """The picture at most `side` pixels wide and high; palette images keep their labels (nearest neighbour)."""
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if picture.mode == "P" else Image.Resampling.BOX)


def coloured_mask(mask: UInt8[np.ndarray, "h w"]) -> Image.Image:
    """A mask in VOC's colours."""
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette().ravel().tolist())
    return shrunk(picture, SIDE)


def overlaid(picture: Image.Image, mask: UInt8[np.ndarray, "h w"]) -> Image.Image:
    """A mask in VOC's colours over its picture; background is darkened, and unsure pixels (255) are pale."""
    labels = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))[..., None]
    colours = voc_palette()[labels[..., 0]]
    seen = np.asarray(picture)
    return Image.fromarray(np.where(labels > 0, 0.45 * seen + 0.55 * colours, 0.4 * seen).astype(np.uint8))


def heatmap(picture: Image.Image, heat: Float[np.ndarray, "h w"]) -> Image.Image:
    """A map in [0, 1] as a heat map over its picture."""
    resized = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BILINEAR))
    colours = matplotlib.colormaps["turbo"](resized.clip(0, 1), bytes=True)[:, :, :3]
    weights = 0.25 + 0.45 * resized.clip(0, 1)[:, :, None]
    return Image.fromarray((np.asarray(picture) * (1 - weights) + colours * weights).astype(np.uint8))


def data_uri(picture: Image.Image, limit: int) -> str:
    """A picture as a data URI of at most `limit` bytes before base64, shrunk if necessary: labels as PNG, all else as JPEG."""
    options = {"format": "png"} if picture.mode == "P" else {"format": "jpeg", "quality": 82}
    return _data_uri(partial(shrunk, picture), max(picture.size), limit, **options)


def _data_uri(draw: Callable[[int], Image.Image], side: int, limit: int, **options: Any) -> str:
    while True:
        stream = io.BytesIO()
        draw(side).save(stream, **options)
        if stream.tell() <= limit or side <= 16:
            return f"data:image/{options['format']};base64,{base64.b64encode(stream.getvalue()).decode()}"
        side = int(side * min(0.9, math.sqrt(limit / stream.tell())))


def contours(
    truth: UInt8[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"], tolerance: float
) -> dict[str, Bool[np.ndarray, "h w"]]:
    """Outline pixels of a true mask and of another mask, matched class by class within a tolerance.

    Args:
        truth: labels; 255 (ignored) counts as background.
        mask: labels; 255 (unsure) counts as background.
        tolerance: as in `wsss.ops.contour.tolerance_radius`.

    Returns:
        Pixels by the names of `CONTOUR_COLOURS`, in drawing order: errors are drawn last, on top.
    """
    labels = [label for label in np.union1d(truth, mask).tolist() if label not in (0, 255)]
    nothing = BoundaryMatches(*[np.zeros(truth.shape, bool)] * 4)
    matches = [nothing, *(boundary_matches(truth, mask, label, tolerance) for label in labels)]
    found, missed, right, false = (np.logical_or.reduce(maps) for maps in zip(*matches, strict=True))
    return {
        "predicted contour, right": right,
        "true contour, found": found,
        "predicted contour, false": false,
        "true contour, missed": missed,
    }


def contour_uri(picture: Image.Image, outlines: Mapping[str, Bool[np.ndarray, "h w"]], limit: int) -> str:
    """Outlines on the darkened picture, as a data URI; every outline pixel is drawn, however small the picture becomes."""
    grey = picture.convert("L").point(lambda value: _DARKEST_GREY + value * (_BRIGHTEST_GREY - _DARKEST_GREY) / 255)

    def draw(side: int) -> Image.Image:
        # small pictures are enlarged so that single pixels are visible
        factor = max(1, side // max(grey.size))
        canvas = np.array(shrunk(grey, side).convert("RGB")).repeat(factor, 0).repeat(factor, 1)
        scale = np.array(canvas.shape[:2]) / (grey.height, grey.width)
        dot = max(2, factor)
        for name, pixels in outlines.items():
            for top, left in (np.argwhere(pixels) * scale).astype(int).tolist():
                canvas[top : top + dot, left : left + dot] = CONTOUR_COLOURS[name]
        return Image.fromarray(canvas)

    # chroma subsampling would take the colour from thin lines
    return _data_uri(draw, CONTOUR_SIDE, limit, format="jpeg", quality=82, subsampling=0)
