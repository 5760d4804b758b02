"""The meaning of the pixels in a mask file: labels, colours that stand for labels, or values that --mask-values explains."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image

from wsss.arrays import UInt8
from wsss.errors import BadInput, suggestion

IGNORE = 255
EXPECTED = "an 8-bit palette or grey PNG whose pixel values are labels"
# Formats that change values when they compress, or may
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
GRAMMAR = (
    "`index` (palette indices are the labels), or entries such as `255=1`, `127=cat; 255=ignore` or `128,0,0=cat; 0,128,0=dog`: "
    "a value or a colour R,G,B on the left; a class name, its number from 1, `background` or `ignore` on the right"
)

LabelSource = Literal["values", "VOC's colours", "table"]
Colour = tuple[int, int, int]
Key = int | Colour


@cache
def voc_palette() -> UInt8[np.ndarray, "256 3"]:
    """PASCAL VOC's colours (RGB): the bits of a label, distributed over red, green and blue from their highest bits downwards."""
    label = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            colours[:, channel] |= ((label >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    colours.flags.writeable = False
    return colours


def web_colours(count: int) -> list[str]:
    """VOC's colours of the labels 1 to `count` as `#rrggbb`."""
    return [f"#{bytes(colour).hex()}" for colour in voc_palette()[1 : count + 1].tolist()]


@dataclasses.dataclass(frozen=True)
class MaskTable:
    """Labels by pixel value or by colour.

    Attributes:
        labels: pairs of a value 0..255 or a colour (red, green, blue), and its label (0 background, 1..C, 255 ignored); the keys are
            either all values or all colours.
        source: the origin of the table, for errors.
        others: the label of all other values; None if they are errors.
    """

    labels: tuple[tuple[Key, int], ...]
    source: str
    others: int | None = None

    @classmethod
    def of(
        cls, labels: Mapping[int, int] | Mapping[Colour, int], source: str, others: int | None = None
    ) -> "MaskTable":
        return cls(tuple(labels.items()), source, others)

    @property
    def by_colour(self) -> bool:
        """Whether the keys are colours."""
        return any(isinstance(key, tuple) for key, _ in self.labels)

    def labelled(
        self, pixels: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"], where: str
    ) -> UInt8[np.ndarray, "h w"]:
        """The labels of values (h, w), or of colours (h, w, 3).

        Raises:
            BadInput: a value is not in the table.
        """
        codes = _codes(pixels) if self.by_colour else pixels
        values, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
        known = {_code(key): label for key, label in self.labels}
        unknown = [at for at, value in enumerate(values.tolist()) if value not in known]
        if unknown and self.others is None:
            shown = "; ".join(_shown(int(values[at]), self.by_colour) for at in unknown[:5])
            raise BadInput(
                where,
                f"{int(counts[unknown].sum())} pixels of {'colour' if self.by_colour else 'value'} {shown}",
                f"those of {self.source}",
                "Name them too, or write the masks again.",
            )
        table = np.array([known.get(value, self.others or 0) for value in values.tolist()], np.uint8)
        return table[inverse].reshape(codes.shape)

    def stamp(self) -> list[object]:
        """A JSON value that changes when the table gives other labels."""
        return [[list(key) if isinstance(key, tuple) else key, label] for key, label in self.labels] + [self.others]


def parse_mask_values(text: str, class_names: Sequence[str]) -> MaskTable:
    """The meaning of the option `--mask-values`.

    Raises:
        BadInput: it does not follow `GRAMMAR`, names an unknown class, or a value twice.
    """
    source = f"--mask-values {text!r:.60}"
    same: dict[Key, int] = {value: value for value in range(256)}
    if text.strip() == "index":
        return MaskTable(tuple(same.items()), source)
    labels: dict[Key, int] = {}
    for entry in filter(None, (part.strip() for part in re.split(r"[;\n]", text))):
        left, equals, right = (part.strip() for part in entry.partition("="))
        key = _key(left)
        if not equals or key is None:
            raise BadInput("--mask-values", f"{entry!r:.60}", GRAMMAR, "Correct it.")
        if key in labels:
            raise BadInput("--mask-values", f"{left} twice", "one meaning per value", "Remove one of the two.")
        labels[key] = _label(right, class_names)
    if not labels or len({isinstance(key, tuple) for key in labels}) > 1:
        found = "values and colours mixed" if labels else f"{text!r:.60}"
        raise BadInput("--mask-values", found, GRAMMAR, "Correct it.")
    by_colour = any(isinstance(key, tuple) for key in labels)
    others: dict[Key, int] = {(0, 0, 0): 0} if by_colour else same
    return MaskTable(tuple((others | labels).items()), source)


def _key(text: str) -> Key | None:
    numbers = [int(part) for part in re.split(r"\s*,\s*", text) if re.fullmatch(r"\d{1,3}", part)]
    if text.count(",") + 1 != len(numbers) or max(numbers, default=256) > 255 or len(numbers) not in (1, 3):
        return None
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def _label(text: str, class_names: Sequence[str]) -> int:
    """The label of a class name or number, `background` or `ignore`; a number that is a class name is read as the name."""
    if text in class_names:
        return class_names.index(text) + 1
    if text in ("background", "ignore"):
        return {"background": 0, "ignore": IGNORE}[text]
    if re.fullmatch(r"\d{1,3}", text) and (int(text) <= len(class_names) or int(text) == IGNORE):
        return int(text)
    raise BadInput(
        "--mask-values",
        f"{text!r} as a meaning",
        f"a class ({', '.join(class_names[:8])}{', ...' if len(class_names) > 8 else ''}), its number from 1 to "
        f"{len(class_names)}, `background` or `ignore`",
        f"{suggestion(text, class_names)}Correct it.",
    )


def decode_labels(
    picture: Image.Image, where: str, table: MaskTable | None = None
) -> tuple[UInt8[np.ndarray, "h w"], LabelSource]:
    """The labels of an opened mask picture, and how they were found.

    The values of grey pictures are labels, even if the pictures are stored as RGB. So are the indices of palette pictures if the
    colours are VOC's or shades of grey in the order of the labels. Programs that shrink files renumber palettes, so VOC's colours in
    any other order are read by colour.

    Args:
        picture: as opened by Pillow.
        where: the place that an error names.
        table: what values or colours mean; the values of a palette picture are its indices.

    Raises:
        BadInput: the format is lossy, or the picture has colours of unknown meaning.
    """
    if picture.format in LOSSY:
        raise BadInput(
            where,
            f"a mask in the format {picture.format}, which changes values when it compresses",
            EXPECTED,
            "Export the masks again as PNG; the labels cannot be recovered from this file.",
        )
    if table is not None and table.by_colour:
        return table.labelled(np.asarray(picture.convert("RGB")), where), "table"
    if picture.mode == "P":
        pixels = np.asarray(picture)
        if table is None:
            return _by_palette(pixels, picture.getpalette("RGB") or [], where)
    else:
        pixels = _grey(picture, where)
    return (pixels, "values") if table is None else (table.labelled(pixels, where), "table")


def _grey(picture: Image.Image, where: str) -> UInt8[np.ndarray, "h w"]:
    pixels = np.asarray(picture)
    if picture.mode == "L":
        return pixels
    if picture.mode == "1":
        return pixels.astype(np.uint8) * np.uint8(255)
    if picture.mode.startswith("I"):
        if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 255:
            raise BadInput(
                where,
                f"values from {pixels.min()} to {pixels.max()}",
                f"{EXPECTED} from 0 to 255",
                "Write the labels as 8-bit values, with one number per class instead of one per object.",
            )
        return pixels.astype(np.uint8)
    if picture.mode in ("LA", "RGB", "RGBA"):
        opaque = picture.mode == "RGB" or bool((pixels[..., -1] == 255).all())
        colour = pixels if picture.mode == "RGB" else pixels[..., :-1]
        if opaque and (colour == colour[..., :1]).all():
            return np.ascontiguousarray(colour[..., 0])
        if not opaque:
            raise BadInput(
                where, f"a picture of mode {picture.mode} with transparency", EXPECTED, "Write it without transparency."
            )
        raise BadInput(
            where,
            f"a picture of mode {picture.mode} with the colours {_few_colours(colour)}",
            EXPECTED,
            f"Write labels instead of colours, or say what the colours mean: --mask-values '{_example(colour)}'.",
        )
    raise BadInput(where, f"a picture of mode {picture.mode}", EXPECTED, "Write the labels as an 8-bit PNG.")


def _by_palette(
    pixels: UInt8[np.ndarray, "h w"], palette: Sequence[int], where: str
) -> tuple[UInt8[np.ndarray, "h w"], LabelSource]:
    used = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))
    known = np.array(palette, np.uint8).reshape(-1, 3)
    if used.max(initial=0) < len(known):
        colours = known[used]
        ignored = used == IGNORE  # programs differ in its colour
        for standard in (voc_palette(), np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)):
            if ((colours == standard[used]).all(1) | ignored).all():
                return pixels, "values"
        table = np.zeros(256, np.uint8)
        named = [tuple(colour) for colour in colours.tolist()]
        if all(colour in _voc_labels() for colour in named):
            table[used] = [_voc_labels()[colour] for colour in named]
            return table[pixels], "VOC's colours"
        shown = ", ".join(
            f"{index} ({','.join(map(str, colour))})" for index, colour in zip(used[:6], colours.tolist(), strict=False)
        )
    else:
        shown = ", ".join(map(str, used[:6]))
    raise BadInput(
        where,
        f"a palette of colours that are neither VOC's nor shades of grey: {shown}{', ...' if len(used) > 6 else ''}",
        "labels whose meaning is certain, since programs renumber palettes",
        "If the indices are the labels, use --mask-values index; if the colours count, name them: --mask-values 'R,G,B=name; ...'.",
    )


@cache
def _voc_labels() -> Mapping[tuple[int, ...], int]:
    return {tuple(colour): label for label, colour in enumerate(voc_palette().tolist())}


def _codes(rgb: np.ndarray) -> np.ndarray:
    wide = rgb.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _code(key: Key) -> int:
    return key[0] << 16 | key[1] << 8 | key[2] if isinstance(key, tuple) else key


def _shown(code: int, by_colour: bool) -> str:
    return f"{code >> 16},{(code >> 8) & 255},{code & 255}" if by_colour else str(code)


def _frequent(colours: np.ndarray, most: int) -> list[str]:
    codes, counts = np.unique(_codes(colours), return_counts=True)
    return [_shown(int(code), True) for code in codes[np.argsort(-counts, kind="stable")[:most]]]


def _few_colours(colours: np.ndarray) -> str:
    return "; ".join(_frequent(colours, 4))


def _example(colours: np.ndarray) -> str:
    return "; ".join(f"{colour}=NAME" for colour in _frequent(colours, 4) if colour != "0,0,0")
