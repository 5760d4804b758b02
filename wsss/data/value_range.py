"""Chooses which values in the pictures of a data set become black and white: once, from headers and a sample of the values."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from wsss.data.pictures import count_frames, read_header, read_samples
from wsss.data.samples import DEFAULT_READING, Header, Kind, PictureReading, check_readable, valid_mask
from wsss.errors import BadInput
from wsss.stream import in_threads

_HEADERS, _DECODED, _VALUES = 256, 32, 1 << 15
_BITS = (8, 10, 12, 14, 16)
# values that fill less of a standard range than this would share few of the 256 levels
_FILLED = 1 / 8
_PERCENTILES = (0.5, 99.5)
_OVERSHOOT = 0.1
T = TypeVar("T")
_ANIMATED = (".gif", ".webp", ".png", ".apng", ".avif")


@dataclasses.dataclass(frozen=True)
class ReadingRequest:
    """How the user wants pictures to be read; None and empty tuples stand for no wish.

    Attributes:
        value_range: the values that become black and white.
        bands: numbers (from 1) of the bands used as grey, as red, green and blue, or as these and alpha.
        page: number (from 1) of the page, frame or slice.
    """

    value_range: tuple[float, float] | None = None
    bands: tuple[int, ...] = ()
    page: int | None = None

    @classmethod
    def of(
        cls, value_range: str | Sequence[float] | None, bands: str | Sequence[int] | None, page: int | None
    ) -> "ReadingRequest":
        """From settings as texts, such as `0,4095` and `4,3,2`, or as numbers.

        Raises:
            BadInput: a setting has another form.
        """
        low_high = _numbers("--value-range", value_range, "LOW,HIGH, as 0,4095", (2,))
        if low_high and not (np.isfinite(low_high).all() and low_high[0] < low_high[1]):
            found = f"{low_high[0]:g} to {low_high[1]:g}"
            raise BadInput("--value-range", found, "a smaller and a larger number", "Change it.")
        expected = "numbers of bands from 1, as 4,3,2 or 1"
        chosen = _numbers("--bands", bands, expected, (1, 3, 4))
        if any(number % 1 for number in chosen):
            raise BadInput("--bands", str(bands), expected, "Change it.")
        for setting, numbers in (("--bands", chosen), ("--page", [] if page is None else [page])):
            if numbers and min(numbers) < 1:
                raise BadInput(setting, f"{min(numbers):g}", "numbers from 1", "The first one has the number 1.")
        return cls((low_high[0], low_high[1]) if low_high else None, tuple(int(band) for band in chosen), page)


DEFAULT_REQUEST = ReadingRequest()


def _numbers(setting: str, given: str | Sequence[float] | None, expected: str, lengths: Sequence[int]) -> list[float]:
    if given is None:
        return []
    try:
        numbers = [float(part) for part in (given.split(",") if isinstance(given, str) else given)]
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(setting, repr(given), expected, "Change it.") from error
    if len(numbers) not in lengths:
        raise BadInput(setting, f"{len(numbers)} numbers", expected, "Change it.")
    return numbers


def choose_reading(
    paths: Sequence[Path], where: Path, asked: ReadingRequest = DEFAULT_REQUEST, trained: PictureReading | None = None
) -> tuple[PictureReading, list[str]]:
    """The way in which all these pictures are read, and notes about it for the user.

    8-bit pictures stay as they are. For others the range is the first of these that applies: the one in `asked`; [0, 1] or [-1, 1] if
    all floats are in it; the smallest of 8, 10, 12, 14 and 16 bits that holds all integers; percentiles 0.5 and 99.5, if the
    ranges before would leave most levels unused. Pictures that cannot be opened are skipped.

    Args:
        paths: the pictures; if there are many, evenly spaced ones are examined.
        where: the data set, which an error names.
        asked: the choice of the user.
        trained: how the pictures were read that a network was trained on; used if `asked` has no range.

    Raises:
        BadInput: most pictures have several pages, or bands of unknown meaning, or some have 8 bits and others more, and
            `asked` does not resolve it.
    """
    examined = _evenly_spaced(paths, _HEADERS)
    found = in_threads(lambda path: _or_none(lambda: read_header(path, asked.page)), examined)
    headers = {path: header for path, header in zip(examined, found, strict=True) if header is not None}
    if trained is not None and asked.value_range is None:
        reading = dataclasses.replace(trained, bands=asked.bands or trained.bands, page=asked.page or trained.page)
    else:
        reading = PictureReading(asked.value_range, _kinds(headers, where, asked), bands=asked.bands, page=asked.page)
    _check_most(headers, where, reading)
    notes = [*_notes_on_bands(headers, reading), *_notes_on_frames(examined, reading)]
    if trained is not None and asked.value_range is None:
        return reading, notes
    if asked.value_range is None and all(header.kind == "8-bit" for header in headers.values()):
        _check_alpha(headers, where, reading)
        return reading, notes
    what = ", ".join(f"{text}" for text in dict.fromkeys(str(header) for header in headers.values()))
    if asked.value_range is not None:
        low, high = asked.value_range
        return reading, [f"{what}: values {low:g} to {high:g} become black to white (--value-range)", *notes]
    _check_alpha(headers, where, reading)
    return _with_sampled_range(headers, reading, what, notes)


def _with_sampled_range(
    headers: dict[Path, Header], reading: PictureReading, what: str, notes: list[str]
) -> tuple[PictureReading, list[str]]:
    """The reading with a range from a sample of the values, and the notes with those about it."""
    deep = [path for path, header in headers.items() if header.kind != "8-bit"]
    sample = _Sample()
    for values in in_threads(
        lambda path: _or_none(lambda: _values(path, headers[path], reading)), _evenly_spaced(deep, _DECODED)
    ):
        if values is not None:
            sample.add(values)
    if not sample.pictures:
        return dataclasses.replace(reading, value_range=(0.0, 1.0)), notes
    value_range, strict, why = sample.range(reading.kinds)
    low, high = value_range
    choice = f"{what}: values {low:g} to {high:g} become black to white ({why}, from {sample.pictures} pictures)"
    windows = Counter(header.window for header in headers.values() if header.window)
    for (dark, bright), count in windows.most_common(1):
        notes.append(
            f"{count} pictures propose the display window {dark:g} to {bright:g}, which is not used; --value-range={dark:g},{bright:g} uses it"
        )
    if sample.missing:
        notes.append(f"{sample.missing} of {sample.pictures} pictures have pixels without a value, which become black")
    return dataclasses.replace(reading, value_range=value_range, strict=strict), [
        f"{choice}; --value-range LOW,HIGH sets other values",
        *notes,
    ]


def _evenly_spaced(paths: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of the paths, evenly spaced."""
    if len(paths) <= most:
        return list(paths)
    return [paths[index] for index in np.linspace(0, len(paths) - 1, most).round().astype(int)]


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except BadInput:
        return None  # reported when all pictures are read


def _kinds(headers: dict[Path, Header], where: Path, asked: ReadingRequest) -> tuple[Kind, ...]:
    first: dict[Kind, Path] = {}
    counts: Counter[Kind] = Counter()
    for path, header in headers.items():
        first.setdefault(header.kind, path)
        counts[header.kind] += 1
    kinds = tuple(sorted(counts))
    if not kinds:
        return DEFAULT_READING.kinds
    beyond = asked.value_range is not None and not (asked.value_range[0] >= 0 and asked.value_range[1] <= 255)
    if "8-bit" in kinds and beyond and asked.value_range:
        low, high = asked.value_range
        raise BadInput(
            first["8-bit"],
            f"an 8-bit picture (one of {counts['8-bit']} of {len(headers)} examined), whose values end at 255",
            f"values {low:g} to {high:g} (--value-range)",
            "Convert all pictures to one kind, or change --value-range.",
        )
    if len(kinds) > 1 and asked.value_range is None:
        found = "; ".join(
            f"{counts[kind]} of {kind} samples ({first[kind]} first: {headers[first[kind]]})" for kind in kinds
        )
        raise BadInput(
            where,
            f"pictures of different kinds: {found}",
            "pictures of one kind, since equal values must mean the same to a network",
            "Convert them to one kind, or set the values that are black and white in all of them with --value-range LOW,HIGH.",
        )
    return kinds


def _check_most(headers: dict[Path, Header], where: Path, reading: PictureReading) -> None:
    """Raise the error of the first picture that cannot be read in this way if most cannot; a few may just be bad files."""
    wrong = []
    for path, header in headers.items():
        try:
            check_readable(header, reading, path)
        except BadInput as error:
            wrong.append(error)
    if 2 * len(wrong) > len(headers):
        first = wrong[0]
        found = f"{first.found} in {first.where}, one of {len(wrong)} such pictures of {len(headers)} examined"
        raise BadInput(where, found, first.expected, first.do)


def _check_alpha(headers: dict[Path, Header], where: Path, reading: PictureReading) -> None:
    """Raise BadInput if the alpha band of TIFFs looks like an ordinary band: GDAL marks any fourth band as alpha."""
    four = [path for path, header in headers.items() if header.what == "TIFF" and header.alpha == 3]
    if reading.bands or not four:
        return
    between = [
        float(((alpha > 0) & (alpha < full)).mean())
        for alpha, full in in_threads(lambda path: _alpha(path, reading), _evenly_spaced(four, _DECODED))
    ]
    if between and np.median(between) > 0.5:
        raise BadInput(
            where,
            f"a fourth band that the files call alpha although it looks like an ordinary band ({four[0]} first; "
            f"{100 * np.median(between):.0f}% of its values are neither transparent nor opaque)",
            "an alpha band, or a choice of bands if it is another one, such as near infrared",
            "Use `--bands 1,2,3` to leave it out, `--bands 4,3,2` or the like to use it, or `--bands 1,2,3,4` if it is alpha.",
        )


def _alpha(path: Path, reading: PictureReading) -> tuple[np.ndarray, float]:
    found = _or_none(lambda: read_samples(path, reading))
    if found is None or found.header.alpha is None:
        return np.zeros(1), 1.0
    values = found.values[..., found.header.alpha]
    return values, 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)


def _notes_on_bands(headers: dict[Path, Header], reading: PictureReading) -> list[str]:
    if reading.bands:
        named = ("grey",) if len(reading.bands) == 1 else ("red", "green", "blue", "alpha")
        return [
            "bands: " + ", ".join(f"{name} is band {band}" for name, band in zip(named, reading.bands, strict=False))
        ]
    notes = []
    guessed = [header for header in headers.values() if header.colours and not header.declared]
    if guessed:
        notes.append(
            f"{len(guessed)} of {len(headers)} pictures do not say what their {guessed[0].bands} bands are; they are used as red, green, "
            "blue; --bands chooses others"
        )
    unused = [header for header in headers.values() if header.colours and _unused(header) > 0]
    if unused:
        notes.append(
            f"{len(unused)} of {len(headers)} pictures have {unused[0].bands} bands; the colours are the first {len(unused[0].colours or ())}, "
            f"and the other {_unused(unused[0])} are not used; --bands chooses others"
        )
    inverted = sum(header.inverted for header in headers.values())
    if inverted:
        notes.append(f"{inverted} of {len(headers)} pictures say that small values are white; they are inverted")
    return notes


def _unused(header: Header) -> int:
    return header.bands - len(header.colours or ()) - (header.alpha is not None)


def _notes_on_frames(paths: Sequence[Path], reading: PictureReading) -> list[str]:
    candidates = [path for path in paths if path.suffix.lower() in _ANIMATED]
    moving = [path for path in candidates if (_or_none(lambda path=path: count_frames(path)) or 1) > 1]  # type: ignore[misc]
    if not moving or reading.page is not None:
        return []
    return [
        f"{len(moving)} of {len(paths)} pictures examined are animated ({moving[0].name} first): their first frame is read; --page chooses another"
    ]


@dataclasses.dataclass
class _Values:
    """Values of one picture: the smallest, the largest, a sample, whether all are integers, and whether no pixel lacks a value."""

    least: float
    most: float
    sample: np.ndarray
    integers: bool
    complete: bool


def _values(path: Path, header: Header, reading: PictureReading) -> _Values | None:
    check_readable(header, reading, path)
    samples = read_samples(path, reading)
    chosen = [band - 1 for band in reading.bands[:3]] or list(samples.header.colours or (0,))
    values = samples.values[..., chosen]
    valid = valid_mask(values, samples.header.nodata) & np.isfinite(values)
    found = values[valid].astype(np.float64)
    if not found.size:
        return None
    sample = found[:: max(1, found.size // _VALUES)]
    integers = bool((sample == np.rint(sample)).all())
    return _Values(float(found.min()), float(found.max()), sample, integers, bool(valid.all()))


class _Sample:
    """The values in a sample of the pictures."""

    def __init__(self) -> None:
        self.pictures = self.missing = 0
        self.least, self.most, self.integers = np.inf, -np.inf, True
        self.values: list[np.ndarray] = []

    def add(self, values: _Values) -> None:
        """Add a picture."""
        self.pictures += 1
        self.missing += not values.complete
        self.least, self.most = min(self.least, values.least), max(self.most, values.most)
        self.integers &= values.integers
        self.values.append(values.sample)

    def range(self, kinds: Sequence[Kind]) -> tuple[tuple[float, float], bool, str]:
        """The values that become black and white, whether values beyond them are errors, and the reason."""
        low, high = (float(value) for value in np.percentile(np.concatenate(self.values), _PERCENTILES))
        for (bottom, top), why in self._standards(kinds):
            if high - low >= _FILLED * (top - bottom):
                return (bottom, top), True, why
        why = "their percentiles 0.5 and 99.5"
        if low == high:
            low, high, why = self.least, self.most, "their smallest and largest"
        if low == high:
            return (low, low + 1), False, "all are equal"
        if self.integers:
            return (np.floor(low), np.ceil(high)), False, why
        step = 10.0 ** np.floor(np.log10(high - low) - 2)
        return (float(np.floor(low / step) * step), float(np.ceil(high / step) * step)), False, why

    def _standards(self, kinds: Sequence[Kind]) -> list[tuple[tuple[float, float], str]]:
        """The first standard range of floats and the first one of integers that hold all values."""
        found: list[tuple[tuple[float, float], str]] = []
        if "float" in kinds:
            for bottom, top in ((0.0, 1.0), (-1.0, 1.0)):
                if bottom - _OVERSHOOT <= self.least and self.most <= top + _OVERSHOOT:
                    found.append(((bottom, top), f"floats in [{bottom:g}, {top:g}]"))
                    break
        if self.integers and self.least >= 0:
            bits = next((bits for bits in _BITS if self.most < 2**bits), None)
            found += [((0.0, 2.0**bits - 1), f"{bits} bits")] if bits else []
        elif self.integers and self.least >= -128 and self.most <= 127:
            found.append(((-128.0, 127.0), "signed 8 bits"))
        return found
