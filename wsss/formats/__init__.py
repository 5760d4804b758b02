"""Formats in which other programs keep masks: one module each, with a `FORMAT` object.

A format is registered by adding its name to `FORMATS`; its module has the same name, with underscores in place of hyphens.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from wsss.errors import NoSuchName, suggestion

if TYPE_CHECKING:
    from wsss.formats.format import Format

FORMATS = (
    "coco",
    "coco-panoptic",
    "yolo-seg",
    "yolo-semantic",
    "hf",
    "cvat",
    "cvat-masks",
    "labelme",
    "labelstudio",
    "voc",
    "voc-server",
)  # fmt: skip


def format_named(name: str, among: Sequence[str] = FORMATS) -> "Format":
    """The format with this name.

    Raises:
        NoSuchName: there is none.
    """
    if name not in among:
        raise NoSuchName(name, "format", f"{suggestion(name, among)}Choose one of {', '.join(among)}.")
    return cast("Format", importlib.import_module(f"wsss.formats.{name.replace('-', '_')}").FORMAT)
