"""The interface of a format: how masks are written for another program, and how that program's files are read as masks.

A format is one module with a `FORMAT`. It does the work of one picture and writes the index at the end; everything else is done for all
formats by `wsss.formats.export` and `wsss.formats.importing`: the pictures and their order, sizes, unsure pixels, copies of pictures, progress,
several processes, resuming, records, names.

Export:

1. `write(task, item)` is called once for each picture, in threads and in several processes, in any order. It may write files of this picture
   below `task.out`, through `wsss.storage` or `wsss.data.files`, and returns a JSON value, the part of the picture. The part is stored; once it is
   there, a command that was killed does not make it again.
2. `finish(task, parts)` is called once, in one process, after the last picture. `parts` gives all parts in the order of the pictures, and may be
   iterated several times; it never holds more than one in memory. Numbers that depend on other pictures, such as ids of objects, are given here, so
   that the bytes are the same for any number of processes.

Import: `read(ours, options)` yields a `Corrected` for each picture in the file. Its `draw` is called later, in threads and in several processes.

Rules for all formats:

- Label 0 is the background, and class i has the number i, from 1 to n, in the order of `task.class_names`, in masks as well as in files. A tool that
  demands other numbers gets them, and the documentation of the format says so.
- Classes without pixels stay in the lists.
- Text in files comes from names of files and classes: escape it as the format demands.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from wsss.arrays import UInt8
from wsss.errors import BadInput, suggestion
from wsss.formats.options import UNSURE, ExportOptions, ImportOptions, Unsure

if TYPE_CHECKING:
    from wsss.formats.source import Source


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One picture with its mask.

    Attributes:
        index: its position among the pictures, from 0.
        name: its name, which may contain folders: `cat/1`.
        file: name with the suffix of its picture file: `cat/1.jpg`.
        picture: the picture file.
        mask: the mask file.
        labels: 0 background, 1..n classes, and 255 only if unsure pixels are ignored.
        tags: the classes (1..n) that the dataset gives for it, ascending; those in the mask if it gives none. Never `unsure`.
    """

    index: int
    name: str
    file: str
    picture: Path
    mask: Path
    labels: UInt8[np.ndarray, "h w"]
    tags: tuple[int, ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        height, width = self.labels.shape
        return height, width


@dataclasses.dataclass(frozen=True)
class Part:
    """What `finish` knows of a picture.

    Attributes:
        index, name, file, size_hw, tags: as in `Item`.
        content: what `write` returned.
    """

    index: int
    name: str
    file: str
    size_hw: tuple[int, int]
    tags: tuple[int, ...]
    content: Any


Options = TypeVar("Options", bound=ExportOptions)


@dataclasses.dataclass(frozen=True)
class Task(Generic[Options]):
    """An export.

    Attributes:
        options: the options of the format.
        out: the output folder.
        class_names: class i + 1 is `class_names[i]`; the last one is `unsure` if unsure pixels are a class.
        unsure: what happens to pixels that are 255.
        count: number of pictures.
    """

    options: Options
    out: Path
    class_names: tuple[str, ...]
    unsure: Unsure
    count: int


@dataclasses.dataclass(frozen=True)
class Export(Generic[Options]):
    """How a format is written.

    Attributes:
        options: dataclass of its options.
        write: writes the files of one picture, and returns its part.
        finish: writes the index, and returns the file or folder that a user gives to the other program.
        pictures: folder below the output folder for copies of the pictures, empty for the output folder itself; None if the format has none.
        ignores: whether a mask in this format can contain ignored pixels.
        source: finds pictures and classes; None for the usual way.
        note: what users have to know about every export in this format.
    """

    options: type[Options]
    write: Callable[[Task[Options], Item], Any]
    finish: Callable[[Task[Options], Iterable[Part]], Path]
    pictures: str | None = "images"
    ignores: bool = False
    source: "Callable[[Options], Source] | None" = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Corrected:
    """One picture of an imported file.

    Attributes:
        picture: its file, as the other program names it; folders before the name and the suffix do not matter.
        where: the place that an error names.
        draw: gives the mask: 0 background, 1..n our classes, 255 unsure. Its argument is the height and width of our picture.
        size_hw: height and width of the picture according to the file, None if it gives none.
        objects: number of objects in the picture, None if the format has no objects.
    """

    picture: str
    where: str
    draw: Callable[[tuple[int, int]], UInt8[np.ndarray, "h w"]]
    size_hw: tuple[int, int] | None = None
    objects: int | None = None


@dataclasses.dataclass(frozen=True)
class Ours:
    """What an import is compared with.

    Attributes:
        names: names of our pictures.
        class_names: our classes; class i has the label i + 1.
        renamed: our name by the name in the file, empty for the background.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    renamed: dict[str, str]

    def label(self, name: str, where: str) -> int:
        """The label of a class in a file: its renamed name, `background` (0) or `unsure` (255).

        Raises:
            BadInput: the class is not one of ours.
        """
        ours = self.renamed.get(name, name)
        if ours in self.class_names:
            return self.class_names.index(ours) + 1
        if ours in ("", "background", "__background__", "_background_"):
            return 0
        if ours == UNSURE:
            return 255
        shown = ", ".join(self.class_names[:8]) + (", ..." if len(self.class_names) > 8 else "")
        raise BadInput(
            where,
            f"the class {name!r}",
            f"one of our {len(self.class_names)} classes ({shown}), background or {UNSURE}",
            f"{suggestion(ours, self.class_names)}Say which class it is: --rename {name!r}=CLASS (nothing after = for the background).",
        )


ReadOptions = TypeVar("ReadOptions", bound=ImportOptions)


@dataclasses.dataclass(frozen=True)
class Import(Generic[ReadOptions]):
    """How a format is read.

    Attributes:
        options: dataclass of its options.
        read: finds the pictures in the file or folder `options.file`.
    """

    options: type[ReadOptions]
    read: Callable[[Ours, ReadOptions], Iterable[Corrected]]


@dataclasses.dataclass(frozen=True)
class Format:
    """A format, available as `wsss export masks --format NAME` and `wsss import masks --format NAME`.

    Attributes:
        name: its name.
        about: what it is, as a noun phrase for the help page.
        export: how it is written.
        imports: how it is read; None for a format that is only written.
    """

    name: str
    about: str
    export: Export[Any]
    imports: Import[Any] | None = None
