"""A look inside VWE and VWL: a picture of what the visual words fire on, for people."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

# of the figure, in pixels
WIDTH, NAMES, PATCH, EXAMPLE, GAP, LINE = 960, 290, 84, 309, 8, 26
# A patch shows so many cells around the one in its middle
PATCH_CELLS = 5
# Cells of shown words are so strongly tinted, and all others so dark
TINT, DARK = 0.55, 0.35


class Fired(NamedTuple):
    """Which visual word each cell of a picture goes to.

    Attributes:
        image: RGB.
        label: the classes that the picture has.
        words: a.
        similarity: of the cell's feature and that word.
    """

    image: UInt8[np.ndarray, "h w 3"]
    label: Bool[np.ndarray, " c"]
    words: Int[np.ndarray, "hs ws"]
    similarity: Float[np.ndarray, "hs ws"]


class Word(NamedTuple):
    """A visual word, and the class that it goes with.

    Attributes:
        number: 0 .. K - 1.
        label: 0-based class.
        share: of its cells, those in pictures of the class.
        chance: of all cells, likewise.
    """

    number: int
    label: int
    share: float
    chance: float


def telling_words(fired: Sequence[Fired], count: int) -> list[Word]:
    """The words that go best with a class, at most `count`: first the best one of each class, then the second ones.

    A word goes with the class in whose pictures it has most cells more than chance would give it; the better, the more.
    """
    n_words = 1 + max(int(one.words.max()) for one in fired)
    cells = np.zeros((len(fired[0].label), n_words))
    total = np.zeros(n_words)
    for one in fired:
        counts = np.bincount(one.words.ravel(), minlength=n_words)
        cells += np.outer(one.label, counts)
        total += counts
    chance = cells.sum(1) / total.sum()
    more = cells - chance[:, None] * total
    labels = more.argmax(0)
    order = sorted(np.flatnonzero(total).tolist(), key=lambda word: (-more[labels[word], word], word))
    rank = {word: [other for other in order if labels[other] == labels[word]].index(word) for word in order}
    chosen = sorted(order, key=lambda word: rank[word])[:count]
    return [
        Word(word, int(labels[word]), cells[labels[word], word] / total[word], float(chance[labels[word]]))
        for word in chosen
    ]


def draw_words(
    fired: Sequence[Fired], words: Sequence[Word], class_names: Sequence[str], patches: int, examples: int
) -> UInt8[np.ndarray, "hf wf 3"]:
    """The figure (RGB): pictures whose cells are tinted by word, and for each word the places where it fires most surely.

    Args:
        fired: of some pictures.
        words: those to show.
        class_names: of all classes.
        patches: a word, each from another picture.
        examples: whole pictures, those in which most of the words fire.
    """
    parts = [
        _row([_text("Cells that go to one of the words below, in its colour; its number where it fires most surely")])
    ]
    colours = {word.number: _colour(position) for position, word in enumerate(words)}
    wide = [_example(fired[index], colours) for index in _examples(fired, colours, examples)]
    parts += [_row(wide[start : start + 3]) for start in range(0, len(wide), 3)]
    parts.append(
        _row([_text("Words, each with its class, its cells in pictures of that class, and where it fires most surely")])
    )
    for word in words:
        named = _name(word, class_names[word.label], colours[word.number])
        parts.append(_row([named, *_patches(fired, word.number, colours[word.number], patches)]))
    width = max(WIDTH, *(part.width for part in parts))
    figure = Image.new("RGB", (width, GAP + sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        figure.paste(part, (0, top))
        top += part.height
    return np.asarray(figure)


def _examples(fired: Sequence[Fired], colours: dict[int, tuple[int, int, int]], count: int) -> list[int]:
    """Pictures with most shown words, then with most of their cells."""
    shown = [one.words[np.isin(one.words, list(colours))] for one in fired]
    return sorted(range(len(fired)), key=lambda i: (-len(np.unique(shown[i])), -len(shown[i]), i))[:count]


def _example(one: Fired, colours: dict[int, tuple[int, int, int]]) -> Image.Image:
    picture = Image.fromarray(one.image)
    size = (EXAMPLE, max(1, round(EXAMPLE * picture.height / picture.width)))
    grey = np.asarray(picture.convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
    cells = np.asarray(Image.fromarray(one.words.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    drawn = DARK * grey
    for number, colour in colours.items():
        inside = cells == number
        drawn[inside] = (1 - TINT) * grey[inside] + TINT * np.array(colour, np.float32)
    canvas = Image.fromarray(drawn.astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for number in colours:
        if (one.words == number).any():
            x, y = _centre(one, number, size)
            draw.text((x, y), str(number), "white", _font(14), anchor="mm", stroke_width=2, stroke_fill="black")
    return canvas


def _surest(one: Fired, number: int) -> tuple[int, int]:
    """Row and column of the cell where a word fires most surely."""
    similarity = np.where(one.words == number, one.similarity, -np.inf)
    row, column = np.unravel_index(similarity.argmax(), similarity.shape)
    return int(row), int(column)


def _centre(one: Fired, number: int, size: tuple[int, int]) -> tuple[float, float]:
    """x and y of that cell's middle in a picture of this width and height."""
    row, column = _surest(one, number)
    return (column + 0.5) * size[0] / one.words.shape[1], (row + 0.5) * size[1] / one.words.shape[0]


def _patches(fired: Sequence[Fired], number: int, colour: tuple[int, int, int], count: int) -> list[Image.Image]:
    there = [one for one in fired if (one.words == number).any()]
    there.sort(key=lambda one: -one.similarity[_surest(one, number)])
    return [_patch(one, number, colour) for one in there[:count]]


def _patch(one: Fired, number: int, colour: tuple[int, int, int]) -> Image.Image:
    """The surroundings of the cell where a word fires most surely, with a frame around the cell."""
    height, width = one.image.shape[:2]
    cell = np.array([width / one.words.shape[1], height / one.words.shape[0]])
    middle = np.array(_centre(one, number, (width, height)))
    side = min(PATCH_CELLS * float(cell.max()), height, width)
    corner = np.clip(middle - side / 2, 0, np.array([width, height]) - side)
    box = (*corner.tolist(), *(corner + side).tolist())
    patch = Image.fromarray(one.image).resize((PATCH, PATCH), Image.Resampling.BICUBIC, box=box)
    left, top = (middle - cell / 2 - corner) * PATCH / side
    right, bottom = (middle + cell / 2 - corner) * PATCH / side
    ImageDraw.Draw(patch).rectangle((left, top, right, bottom), outline=colour, width=2)
    return patch


def _name(word: Word, class_name: str, colour: tuple[int, int, int]) -> Image.Image:
    label = Image.new("RGB", (NAMES, PATCH), "white")
    draw = ImageDraw.Draw(label)
    draw.rectangle((0, 0, 22, PATCH), fill=colour)
    draw.text((32, PATCH / 2 - 12), f"{word.number}  {class_name}", "black", _font(18), anchor="lm")
    share = f"{word.share:.0%} of its cells, {word.chance:.0%} by chance"
    draw.text((32, PATCH / 2 + 14), share, (90, 90, 90), _font(13), anchor="lm")
    return label


def _text(line: str) -> Image.Image:
    label = Image.new("RGB", (WIDTH - 2 * GAP, LINE), "white")
    ImageDraw.Draw(label).text((0, LINE / 2), line, "black", _font(15), anchor="lm")
    return label


def _row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, with room around them."""
    width = GAP + sum(picture.width + GAP for picture in pictures)
    row = Image.new("RGB", (width, GAP + max(picture.height for picture in pictures)), "white")
    left = GAP
    for picture in pictures:
        row.paste(picture, (left, GAP))
        left += picture.width + GAP
    return row


def _colour(position: int) -> tuple[int, int, int]:
    # the strong colours of the map come first
    red, green, blue, _ = matplotlib.colormaps["tab20"]((2 * position) % 20 + position // 10 % 2, bytes=True)
    return int(red), int(green), int(blue)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size)
