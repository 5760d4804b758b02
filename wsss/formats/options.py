"""The options that the formats share. The command line imports them, and so no arrays are needed here."""

import dataclasses
from pathlib import Path
from typing import Literal

from wsss.arguments import required
from wsss.options import OutOptions, ReadingOptions

# What happens to pixels that are 255 in our masks
Unsure = Literal["exclude", "ignore", "class"]
# The class of the pixels that are 255, if they have one
UNSURE = "unsure"


@dataclasses.dataclass(frozen=True)
class SourceOptions(ReadingOptions):
    """Where the pictures and the classes of masks are found. A stage of a run knows them."""

    data: Path | None = None
    """dataset of the masks, if it was moved or the masks are not those of a run"""
    split: str | None = None
    """its split; by default the one with a picture for every mask"""
    pictures: Path | None = None
    """folder of the pictures, in place of a dataset"""


@dataclasses.dataclass(frozen=True)
class ExportOptions(OutOptions, SourceOptions):
    """Options that all exports share."""

    masks: Path = required(positional=True)
    """folder of masks: a stage of a run, such as RUN/masks, or any folder with NAME.png"""
    format: str = required()
    """format of the files"""
    unsure: Unsure | None = None
    """pixels that are 255: exclude (like background), ignore (keep as 255), or class (a class `unsure`); by default ignore, or exclude in
    formats that cannot ignore pixels"""
    copy_pictures: Literal["copy", "link", "none"] = "copy"
    """copy the pictures next to the masks, link to them, or do neither"""


@dataclasses.dataclass(frozen=True)
class ObjectOptions(ExportOptions):
    """Options of formats that list objects."""

    per: Literal["component", "class"] = "component"
    """what an object is: each connected component of a class, or all pixels of a class in a picture"""


@dataclasses.dataclass(frozen=True)
class ImportOptions(OutOptions, SourceOptions):
    """Options that all imports share."""

    file: Path = required(positional=True)
    """file or folder that another program wrote"""
    format: str = required()
    """format of the file"""
    out: Path = required()
    """output folder for the corrected masks, NAME.png"""
    masks: Path | None = None
    """the masks that were corrected, such as RUN/masks: they name the classes and pictures, and changes are counted"""
    rename: str | None = None
    """classes with another name in the file: 'kitty=cat, hound=dog'; none for background: 'wall='"""
