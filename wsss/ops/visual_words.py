"""A figure of the visual words of VWE and VWL: where in the pictures each word occurs."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from wsss.arrays import Bool, Float, Int, UInt8

# sizes in the figure, in pixels
WIDTH, NAMES, PATCH, EXAMPLE, GAP, LINE = 960, 290, 84, 309, 8, 26
# side of a patch in cells
PATCH_CELLS = 5
# strength of the tint of cells of shown words, and brightness of all others
TINT, DARK = 0.55, 0.35


class WordAssignment(NamedTuple):
    """The visual word of each cell of a picture.

    Attributes:
        image: RGB.
        label: which classes the picture has.
        words: a.
        similarity: of the cell's feature and its word.
    """

    image: UInt8[np.ndarray, "h w 3"]
    label: Bool[np.ndarray, " c"]
    words: Int[np.ndarray, "hs ws"]
    similarity: Float[np.ndarray, "hs ws"]


class Word(NamedTuple):
    """A visual word, and the class that it is characteristic of.

    Attributes:
        number: 0 .. K - 1.
        label: 0-based class.
        share: fraction of its cells that are in pictures of the class.
        chance: fraction of all cells that are in pictures of the class.
    """

    number: int
    label: int
    share: float
    chance: float


def characteristic_words(assignments: Sequence[WordAssignment], count: int) -> list[Word]:
    """The words most characteristic of a class, at most `count`: first the best word of each class, then the second ones.

    A word is assigned to the class in whose pictures it has the largest excess of cells over chance; words are ranked by this excess.
    """
    n_words = 1 + max(int(one.words.max()) for one in assignments)
    cells = np.zeros((len(assignments[0].label), n_words))
    total = np.zeros(n_words)
    for one in assignments:
        counts = np.bincount(one.words.ravel(), minlength=n_words)
        cells += np.outer(one.label, counts)
        total += counts
    chance = cells.sum(1) / total.sum()
    excess = cells - chance[:, None] * total
    labels = excess.argmax(0)
    order = sorted(np.flatnonzero(total).tolist(), key=lambda word: (-excess[labels[word], word], word))
    rank = {word: [other for other in order if labels[other] == labels[word]].index(word) for word in order}
    chosen = sorted(order, key=lambda word: rank[word])[:count]
    return [
        Word(word, int(labels[word]), cells[labels[word], word] / total[word], float(chance[labels[word]]))
        for word in chosen
    ]


def draw_words(
    assignments: Sequence[WordAssignment],
    words: Sequence[Word],
    class_names: Sequence[str],
    patches: int,
    examples: int,
) -> UInt8[np.ndarray, "hf wf 3"]:
    """The figure (RGB): pictures with cells tinted by word, and for each word the patches with the highest similarity.

    Args:
        assignments: of some pictures.
        words: those to show.
        class_names: of all classes.
        patches: number of patches per word, each from a different picture.
        examples: number of complete pictures, those with most of the words.
    """
    parts = [
        _row([_text("Cells of the words below, in the colour of the word; its number marks the highest similarity")])
    ]
    colours = {word.number: _colour(position) for position, word in enumerate(words)}
    wide = [_example(assignments[index], colours) for index in _examples(assignments, colours, examples)]
    parts += [_row(wide[start : start + 3]) for start in range(0, len(wide), 3)]
    parts.append(
        _row(
            [_text("Words with their class, the share of their cells in its pictures, and their most similar patches")]
        )
    )
    for word in words:
        named = _name(word, class_names[word.label], colours[word.number])
        parts.append(_row([named, *_patches(assignments, word.number, colours[word.number], patches)]))
    width = max(WIDTH, *(part.width for part in parts))
    figure = Image.new("RGB", (width, GAP + sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        figure.paste(part, (0, top))
        top += part.height
    return np.asarray(figure)


def _examples(assignments: Sequence[WordAssignment], colours: dict[int, tuple[int, int, int]], count: int) -> list[int]:
    """The pictures with most of the shown words, then with most cells of them."""
    shown = [one.words[np.isin(one.words, list(colours))] for one in assignments]
    return sorted(range(len(assignments)), key=lambda i: (-len(np.unique(shown[i])), -len(shown[i]), i))[:count]


def _example(one: WordAssignment, colours: dict[int, tuple[int, int, int]]) -> Image.Image:
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


def _most_similar(one: WordAssignment, number: int) -> tuple[int, int]:
    """Row and column of the cell that is most similar to a word."""
    similarity = np.where(one.words == number, one.similarity, -np.inf)
    row, column = np.unravel_index(similarity.argmax(), similarity.shape)
    return int(row), int(column)


def _centre(one: WordAssignment, number: int, size: tuple[int, int]) -> tuple[float, float]:
    """x and y of the centre of that cell in a picture with this width and height."""
    row, column = _most_similar(one, number)
    return (column + 0.5) * size[0] / one.words.shape[1], (row + 0.5) * size[1] / one.words.shape[0]


def _patches(
    assignments: Sequence[WordAssignment], number: int, colour: tuple[int, int, int], count: int
) -> list[Image.Image]:
    having = [one for one in assignments if (one.words == number).any()]
    having.sort(key=lambda one: -one.similarity[_most_similar(one, number)])
    return [_patch(one, number, colour) for one in having[:count]]


def _patch(one: WordAssignment, number: int, colour: tuple[int, int, int]) -> Image.Image:
    """The surroundings of the cell that is most similar to a word, with a frame around the cell."""
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
    """Pictures side by side, with gaps between and around them."""
    width = GAP + sum(picture.width + GAP for picture in pictures)
    row = Image.new("RGB", (width, GAP + max(picture.height for picture in pictures)), "white")
    left = GAP
    for picture in pictures:
        row.paste(picture, (left, GAP))
        left += picture.width + GAP
    return row


def _colour(position: int) -> tuple[int, int, int]:
    # the saturated colours of the colour map come first
    red, green, blue, _ = matplotlib.colormaps["tab20"]((2 * position) % 20 + position // 10 % 2, bytes=True)
    return int(red), int(green), int(blue)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size)
