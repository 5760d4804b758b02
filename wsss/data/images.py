"""The types of all data sets: named pictures with image-level labels and optional true masks."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from wsss.arrays import Bool, Shaped, UInt8
from wsss.data.files import read_labels, read_mask
from wsss.data.labels import IGNORE, LabelSource, MaskTable, decode_labels, parse_mask_values
from wsss.data.names import check_names
from wsss.data.pictures import PictureArray, as_rgb, channels_last, picture_size_hw, read_header, read_picture
from wsss.data.samples import DEFAULT_READING, PictureReading
from wsss.digests import content_digest
from wsss.errors import BadInput, suggestion
from wsss.storage import digest
from wsss.stream import in_threads

# Masks are 8-bit; 0 is background and 255 ignored
MOST_CLASSES = 254


@runtime_checkable
class TrueMask(Protocol):
    """The source of one picture's true mask."""

    @property
    def where(self) -> str:
        """The place that an error names."""

    def read(self) -> UInt8[np.ndarray, "h w"]:
        """The mask: 0 background, 1..C classes, 255 ignored."""

    def stamp(self) -> str:
        """A text that changes when the mask does."""


@dataclasses.dataclass(frozen=True)
class MaskFile:
    """A true mask in a picture file.

    Attributes:
        path: the file.
        table: what its values or colours mean if they are not the labels.
    """

    path: Path
    table: MaskTable | None = None

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self) -> UInt8[np.ndarray, "h w"]:
        return read_mask(self.path, self.table)

    def stamp(self) -> str:
        return _file_stamp(self.path) + (f":{self.table.stamp()}" if self.table else "")


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayMask:
    """A true mask in memory.

    Attributes:
        where: the place that an error names.
        labels: 0 background, 1..C classes, 255 ignored.
    """

    where: str
    labels: UInt8[np.ndarray, "h w"]

    def read(self) -> UInt8[np.ndarray, "h w"]:
        return self.labels

    def stamp(self) -> str:
        return _array_stamp(self.labels)


@dataclasses.dataclass(frozen=True)
class MaskSummary:
    """The content of one true mask.

    Attributes:
        values: the values that occur, ascending, including those that are no labels.
        ignored: the share of pixels that are 255.
        reading: how the labels of a mask file were found, None for masks that are drawn.
        message: what is wrong with its size or its labels, None if they are correct.
    """

    values: tuple[int, ...]
    ignored: float
    reading: LabelSource | None
    message: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Pictures of one split.

    Attributes:
        title: the name of the split in messages, `voc/train_aug` for example.
        names: one per picture, unique (see `check_names`); may contain sub-folders and blanks. Outputs are named after them.
        paths: the picture files; empty if the pictures are in memory.
        class_names: the C foreground classes in the order of their indices; label `i + 1` in a mask is class `i`.
        labels: image-level labels, without background.
        masks: the true mask of each picture, None if there is none.
        upright: whether pictures are rotated by their EXIF orientation. The published loaders of VOC and COCO ignore it.
        reading: which values become black and white, and which bands and page are used; see `wsss.data.value_range`.
        arrays: the pictures if they are in memory; see `from_arrays`.
    """

    title: str
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    class_names: tuple[str, ...]
    labels: Bool[np.ndarray, "n c"]
    masks: tuple[TrueMask | None, ...]
    upright: bool = True
    reading: PictureReading = DEFAULT_READING
    arrays: tuple[UInt8[np.ndarray, "_ _ 3"], ...] = ()

    def __post_init__(self) -> None:
        n, c, pictures = len(self.names), len(self.class_names), len(self.paths) + len(self.arrays)
        if self.paths and self.arrays:
            raise ValueError(f"{self.title}: pictures in files and in memory")
        if not (pictures == len(self.masks) == n and self.labels.shape == (n, c) and self.labels.dtype == bool):
            raise ValueError(
                f"{self.title}: {n} names, {pictures} pictures, {len(self.masks)} masks and labels of {self.labels.dtype} "
                f"{self.labels.shape} do not fit together with {c} classes"
            )
        check_names(self.names, self.paths or [array_title(self.title, name) for name in self.names])

    @staticmethod
    def from_arrays(
        pictures: Sequence[PictureArray],
        labels: Shaped[np.ndarray, "..."] | Sequence[Collection[str]],
        class_names: Sequence[str],
        masks: Sequence[PictureArray | None] | None = None,
        *,
        names: Sequence[str] | None = None,
        title: str = "memory",
    ) -> "Images":
        """Pictures in memory, for everything that uses pictures of a data set: training, maps, masks, scores.

        The arrays are copied. Records of stages identify the pictures by their content, as they identify files.

        Args:
            pictures: uint8 arrays (h, w, 3) RGB, (h, w, 4) RGBA or (h, w) grey, 0 to 255; pictures of Pillow; or uint8
                tensors (3, h, w). Sizes may differ. Grey and transparent pictures become RGB like those in files.
            labels: the tags of each picture: bool (n, c), or for each picture the names of its classes.
            class_names: the C foreground classes, without background; label `i + 1` in a mask is class `i`.
            masks: the true mask of each picture, or None for a picture without: uint8 (h, w), 0 background, 1..C, 255 ignored.
            names: one for each picture, after which outputs are named; by default `000000`, `000001` and so on.
            title: the name of these pictures in messages.

        Raises:
            BadInput: there are no pictures; a picture, mask or label has another type, shape or range; the numbers of pictures, labels,
                masks and names differ; or a class name or the name of a picture occurs twice.

        Example:
            >>> import numpy as np
            >>> import wsss
            >>> pictures = [np.zeros((32, 48, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8)]
            >>> images = wsss.Images.from_arrays(pictures, [["cat"], ["cat", "dog"]], ["cat", "dog"])
            >>> images.read(1).shape, images.classes(1), images.names
            ((20, 20, 3), [0, 1], ('000000', '000001'))
        """
        n, classes = len(pictures), tuple(class_names)
        if n == 0:
            raise BadInput(title, "no pictures", "at least one", "Give some pictures.")
        if not classes or len(set(classes)) < len(classes) or not all(isinstance(c, str) and c for c in classes):
            raise BadInput(f"{title}: class_names", f"{list(classes)}", "different names", "Name each class once.")
        given = tuple(f"{index:06d}" for index in range(n)) if names is None else tuple(names)
        each: list[PictureArray | None] = [None] * n if masks is None else list(masks)
        for what, count in (("names", len(given)), ("masks", len(each)), ("labels", len(labels))):
            if count != n:
                raise BadInput(f"{title}: {what}", f"{count} for {n} pictures", f"{n}", "Give one for each picture.")
        held = tuple(as_rgb(picture, array_title(title, name)) for picture, name in zip(pictures, given, strict=True))
        sources = tuple(
            None
            if mask is None
            else _held_mask(mask, f"mask of {array_title(title, name)}", picture.shape[:2], classes)
            for mask, picture, name in zip(each, held, given, strict=True)
        )
        return Images(title, given, (), classes, _tags(labels, classes, title), sources, arrays=held)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def n_labels(self) -> int:
        """The number of labels in a mask: the classes and the background."""
        return len(self.class_names) + 1

    @property
    def has_masks(self) -> bool:
        """Whether every picture has a true mask."""
        return len(self) > 0 and all(mask is not None for mask in self.masks)

    def check_maskable(self) -> None:
        """Raise BadInput if there are more classes than an 8-bit mask can represent."""
        if len(self.class_names) > MOST_CLASSES:
            raise BadInput(
                self.title,
                f"{len(self.class_names)} classes",
                f"at most {MOST_CLASSES} for masks, which are 8-bit with 255 for ignored pixels",
                "Merge some classes, or stop at the activation maps (wsss localize).",
            )

    def where(self, index: int) -> str:
        """A picture's file, or the name of a picture in memory in messages; unique within a data set."""
        return str(self.paths[index]) if self.paths else array_title(self.title, self.names[index])

    def classes(self, index: int) -> list[int]:
        """The 0-based classes of a picture, ascending."""
        return np.flatnonzero(self.labels[index]).tolist()

    def read(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The picture as RGB."""
        if self.arrays:
            return self.arrays[index]
        return read_picture(self.paths[index], upright=self.upright, how=self.reading)

    def size_hw(self, index: int) -> tuple[int, int]:
        """Height and width of a picture; for files, read from the header."""
        if self.arrays:
            height, width, _ = self.arrays[index].shape
            return height, width
        return picture_size_hw(self.paths[index], upright=self.upright, how=self.reading)

    def read_mask(self, index: int, size_hw: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
        """The true mask, with its labels checked, and also its size if `size_hw` is given.

        Raises:
            BadInput: there is no mask, its size is not `size_hw`, or it contains a label that is no class.
        """
        source = self.masks[index]
        if source is None:
            raise BadInput(
                self.where(index),
                "no true mask for this picture",
                "one",
                "Add the mask, or evaluate a split that has masks.",
            )
        mask = source.read()
        self._check_mask(index, source, mask, size_hw)
        return mask

    def summarize_mask(self, index: int, size_hw: tuple[int, int]) -> "MaskSummary | None":
        """The content of a picture's true mask, including values that are no labels; None if there is no mask.

        Raises:
            BadInput: the mask cannot be read.
        """
        source = self.masks[index]
        if source is None:
            return None
        mask, how = read_labels(source.path, source.table) if isinstance(source, MaskFile) else (source.read(), None)
        counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)
        try:
            self._check_mask(index, source, mask, size_hw)
            wrong = None
        except BadInput as error:
            wrong = str(error)
        values = tuple(np.flatnonzero(counts).tolist())
        return MaskSummary(values, float(counts[IGNORE] / max(mask.size, 1)), how, wrong)

    def _check_mask(
        self, index: int, source: TrueMask, mask: UInt8[np.ndarray, "h w"], size_hw: tuple[int, int] | None
    ) -> None:
        if size_hw is not None and mask.shape != size_hw:
            raise BadInput(
                source.where,
                f"a mask of {mask.shape[0]}x{mask.shape[1]} (height x width)",
                f"{size_hw[0]}x{size_hw[1]} like its picture {self.where(index)}",
                f"The picture has an EXIF orientation: set --upright {str(not self.upright).lower()}, or rotate the mask."
                if self.paths
                and mask.shape == size_hw[::-1] != size_hw
                and read_header(self.paths[index]).orientation > 4
                else "Write the mask at the size of the picture, without resizing.",
            )
        check_labels(mask, self.n_labels, source.where, self.class_names)

    def read_with(self, masks: Path, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """A picture (RGB), and its pseudo mask or label map `NAME.png` in the folder `masks`.

        Raises:
            BadInput: either cannot be read, their sizes differ, or the mask contains a label that is no class.
        """
        image = self.read(index)
        return image, self.read_pseudo_mask(masks, index, (image.shape[0], image.shape[1]))

    def read_pseudo_mask(self, masks: Path, index: int, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        """The pseudo mask or label map `NAME.png` of a picture in the folder `masks`; errors as in `read_with`.

        Args:
            masks: the folder.
            index: of the picture.
            size_hw: height and width of the picture.
        """
        path = masks / f"{self.names[index]}.png"
        mask = read_mask(path)
        if mask.shape != size_hw:
            raise BadInput(
                path,
                f"a mask of {mask.shape[0]}x{mask.shape[1]} (height x width)",
                f"{size_hw[0]}x{size_hw[1]} like its picture {self.where(index)}",
                "Make the pseudo masks again for these pictures.",
            )
        check_labels(mask, self.n_labels, str(path), self.class_names)
        return mask

    def fingerprint(self) -> str:
        """Changes when names, labels, classes, or the content of a picture or a mask change."""
        return table_fingerprint(self.table())

    def table(self) -> dict[str, Any]:
        """A JSON value that identifies the pictures: `class_names`, `options` by name (which change how pictures are read), and
        `pictures`, with name, digest of the content, 0-based classes, stamp of the mask (None without one)
        and suffix of the file (not part of the identity) of each."""

        def row(i: int) -> list[object]:
            return [
                self.names[i],
                _file_stamp(self.paths[i]) if self.paths else _array_stamp(self.arrays[i]),
                self.classes(i),
                mask.stamp() if (mask := self.masks[i]) else None,
                self.paths[i].suffix if self.paths else "",
            ]

        # most digests are known
        pictures = list(in_threads(row, range(len(self)), batch=64))
        options = {"upright": self.upright, **({} if self.reading == DEFAULT_READING else self.reading.plain())}
        return {"class_names": list(self.class_names), "options": options, "pictures": pictures}

    def subset(self, indices: Iterable[int], title: str | None = None) -> "Images":
        """The pictures at these positions, in this order."""
        keep = list(indices)
        return dataclasses.replace(
            self,
            title=title or self.title,
            names=tuple(self.names[i] for i in keep),
            paths=tuple(self.paths[i] for i in keep) if self.paths else (),
            arrays=tuple(self.arrays[i] for i in keep) if self.arrays else (),
            labels=self.labels[keep].reshape(len(keep), len(self.class_names)),
            masks=tuple(self.masks[i] for i in keep),
        )

    def without(self, names: Iterable[str]) -> "Images":
        """All pictures but these."""
        drop = set(names)
        return self.subset(i for i, name in enumerate(self.names) if name not in drop)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: its splits by name, and how a recipe uses them.

    Attributes:
        kind: the recognised layout: `voc`, `coco`, `folders`, `tags`, or `pictures` without tags, and others; `memory` for arrays.
        root: its folder.
        splits: all splits found.
        train: name of the split that models are trained on.
        scored_split: name of the split that maps and pseudo masks are scored on (its pictures are in `train`), None without masks.
        val: name of the split that segmenters are scored on, None if there is none.
        notes: what the user should know about how the data set was read.
    """

    kind: str
    root: Path
    splits: Mapping[str, Images]
    train: str
    scored_split: str | None = None
    val: str | None = None
    notes: Sequence[str] = ()

    @staticmethod
    def of(train: Images, val: Images | None = None) -> "Dataset":
        """A data set for a recipe from pictures in a program, for example in memory.

        Args:
            train: the pictures to train on; maps and pseudo masks are scored on them if all have true masks.
            val: the pictures to test segmenters on.

        Raises:
            BadInput: the two have different classes.
        """
        if val is not None and val.class_names != train.class_names:
            found = f"the classes {', '.join(val.class_names[:8])}"
            expected = f"those of {train.title}: {', '.join(train.class_names[:8])}"
            raise BadInput(val.title, found, expected, "Give both the same classes in the same order.")
        splits = {"train": train} if val is None else {"train": train, "val": val}
        scored = "train" if train.has_masks else None
        return Dataset("memory", Path(train.title), splits, "train", scored, None if val is None else "val")

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.splits[self.train].class_names

    def with_mask_values(self, text: str | None) -> "Dataset":
        """The same pictures, with mask files read as `--mask-values` says; see `wsss.data.labels.GRAMMAR`.

        Raises:
            BadInput: the text does not follow the grammar, or there is no mask file to which it could apply.
        """
        if text is None:
            return self
        table = parse_mask_values(text, self.class_names)
        if not any(isinstance(mask, MaskFile) for images in self.splits.values() for mask in images.masks):
            raise BadInput(
                "--mask-values", f"no mask files in {self.root}", "mask files to apply it to", "Leave it out."
            )
        splits = {
            name: dataclasses.replace(
                images,
                masks=tuple(
                    dataclasses.replace(mask, table=table) if isinstance(mask, MaskFile) else mask
                    for mask in images.masks
                ),
            )
            for name, images in self.splits.items()
        }
        return dataclasses.replace(self, splits=splits, notes=(*self.notes, f"mask values are read as {text}"))

    def with_reading(self, reading: PictureReading, notes: Iterable[str]) -> "Dataset":
        """The same pictures, read in this way; the notes explain why."""
        splits = {name: dataclasses.replace(images, reading=reading) for name, images in self.splits.items()}
        return dataclasses.replace(self, splits=splits, notes=(*self.notes, *notes))

    def split(self, name: str) -> Images:
        """The split called `name`.

        Raises:
            BadInput: there is no such split.
        """
        if name not in self.splits:
            raise BadInput(self.root, f"no split {name!r}", f"one of {', '.join(self.splits)}", "Choose another split.")
        return self.splits[name]


def table_fingerprint(table: Mapping[str, Any]) -> str:
    """The fingerprint of the pictures with this table; see `Images`."""
    return digest([table["class_names"], table["options"], [row[:4] for row in table["pictures"]]])


def check_labels(mask: UInt8[np.ndarray, "h w"], n_labels: int, where: str, class_names: Sequence[str]) -> None:
    """Raise BadInput if a mask contains a value that is neither a label below `n_labels` nor 255."""
    counts = np.bincount(mask.ravel(), minlength=256)
    unknown = np.flatnonzero(counts[n_labels:IGNORE]) + n_labels
    if unknown.size:
        raise BadInput(
            where,
            f"label {', '.join(map(str, unknown[:5]))} ({int(counts[unknown].sum())} pixels)",
            f"0 (background), 1..{n_labels - 1} ({', '.join(class_names[:5])}{', ...' if len(class_names) > 5 else ''}) or 255 (ignored)",
            "Use the list of classes that the masks were made with, or write the masks again.",
        )


def _file_stamp(path: Path) -> str:
    try:
        return content_digest(path)
    except OSError:
        return "missing"


def _array_stamp(values: UInt8[np.ndarray, "..."]) -> str:
    sha = hashlib.sha256(str(values.shape).encode())
    sha.update(np.ascontiguousarray(values).data)
    return sha.hexdigest()[:16]


def array_title(title: str, name: str) -> str:
    """The name of a picture in memory in messages."""
    return f"{title}: picture {name}"


def _held_mask(mask: PictureArray, where: str, size_hw: tuple[int, int], classes: Sequence[str]) -> ArrayMask:
    if isinstance(mask, Image.Image):
        labels, _ = decode_labels(mask, where, None)
    else:
        labels = channels_last(mask, where)
    if labels.dtype != np.uint8 or labels.shape != size_hw:
        raise BadInput(
            where,
            f"{labels.dtype} of shape {labels.shape}",
            f"uint8 labels of shape {size_hw}, the size of the picture",
            "Give one label for each pixel.",
        )
    check_labels(labels, len(classes) + 1, where, classes)
    return ArrayMask(where, labels.copy())


def _tags(
    labels: Shaped[np.ndarray, "..."] | Sequence[Collection[str]], classes: Sequence[str], title: str
) -> Bool[np.ndarray, "n c"]:
    where = f"{title}: labels"
    if isinstance(labels, np.ndarray):
        if labels.shape[1:] != (len(classes),) or labels.dtype.kind not in "bui" or not np.isin(labels, (0, 1)).all():
            found, expected = f"{labels.dtype} of shape {labels.shape}", f"bool (pictures, {len(classes)})"
            raise BadInput(where, found, expected, "Mark the classes of each picture with 1 or True.")
        return labels.astype(bool)
    tags = np.zeros((len(labels), len(classes)), bool)
    for row, of_picture in zip(tags, labels, strict=True):
        if isinstance(of_picture, str):
            do = "Put the names into a list."
            raise BadInput(where, f"the text {of_picture!r}", "the names of a picture's classes", do)
        for name in of_picture:
            if name not in classes:
                do = suggestion(str(name), classes) + "Correct it, or add the class."
                raise BadInput(where, f"{name!r}", f"some of {', '.join(classes[:8])}", do)
            row[classes.index(name)] = True
    return tags
