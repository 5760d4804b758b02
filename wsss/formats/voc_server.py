"""Archives for the PASCAL VOC evaluation server, which scores the test split of VOC 2012."""

import dataclasses
import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from wsss.arguments import required
from wsss.data.images import Images
from wsss.data.lists import pictures_below, read_names
from wsss.data.voc import SEGMENTATION_LISTS, VOC_CLASSES, find_voc
from wsss.errors import BadInput, reading
from wsss.formats.format import Export, Format, Item, Part, Task
from wsss.formats.options import ExportOptions
from wsss.storage import whole_file

if TYPE_CHECKING:
    from wsss.formats.source import Source

# the server's rules give both names
ARCHIVE = "results.tar.gz"
Competition = Literal["comp6", "comp5"]

N_LABELS = 21


@dataclasses.dataclass(frozen=True)
class VOCServerOptions(ExportOptions):
    """Options of the VOC server export."""

    data: Path | None = required()
    """VOC 2012 folder with the pictures of the test split; tags are not needed"""
    split: str | None = "test"
    """list of pictures in ImageSets/Segmentation"""
    competition: Competition = "comp6"
    """comp5: trained only on VOC's pictures; comp6: trained on other data too, such as ImageNet"""


def write(task: Task[VOCServerOptions], item: Item) -> None:
    """Check a mask; its file is packed later, byte for byte."""
    with reading(item.mask, "a mask", missing="Predict this picture, or check the path."):
        _check_mask(item.mask, item.mask.read_bytes())


def finish(task: Task[VOCServerOptions], parts: Iterable[Part]) -> Path:
    """Pack the masks; the same masks give the same bytes."""
    out, masks = task.out / ARCHIVE, task.options.masks
    with (
        whole_file(out) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for part in sorted(parts, key=lambda part: part.name):
            path = masks / f"{part.name}.png"
            with reading(path, "a mask", missing="Predict this picture, or check the path."):
                content = path.read_bytes()
            member = tarfile.TarInfo(
                f"results/VOC2012/Segmentation/{task.options.competition}_test_cls/{part.name}.png"
            )
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out


def source(options: VOCServerOptions) -> "Source":
    """The pictures of the split. The folder of masks has to contain `NAME.png` for each of them, and no other PNG file.

    Raises:
        BadInput: there is no such split, a mask is missing, or one belongs to no picture.
    """
    from wsss.formats.source import Source

    if options.unsure not in (None, "ignore"):
        do = "Leave it out, and predict a class or background everywhere."
        raise BadInput("--unsure", options.unsure, "nothing: masks are packed as they are", do)
    pictures = dict(sorted(_pictures(options).items()))
    _check_names(options.masks, set(pictures))
    labels = np.zeros((len(pictures), len(VOC_CLASSES)), bool)
    none = (None,) * len(pictures)
    images = Images("test", tuple(pictures), tuple(pictures.values()), VOC_CLASSES, labels, none, upright=False)
    return Source(options.masks, images, tagged=False)


def _pictures(options: VOCServerOptions) -> dict[str, Path]:
    """The picture files of the split, by name."""
    assert options.data is not None  # required
    root = find_voc(options.data)
    if root is None:
        do = "Give the folder that holds JPEGImages and ImageSets, or VOCdevkit."
        raise BadInput(options.data, "no folder JPEGImages", "VOC 2012's test data", do)
    there = pictures_below(root / "JPEGImages")
    listed = root / SEGMENTATION_LISTS / f"{options.split}.txt"
    names = read_names(listed, there)
    for name in names:
        if name not in there:
            do = "Download VOC's test data, or choose another split."
            raise BadInput(listed, f"{name}, which is not in JPEGImages", "a picture for each name", do)
    return {name: there[name] for name in names}


def _check_names(masks: Path, expected: set[str]) -> None:
    if not masks.is_dir():
        raise BadInput(masks, "no such folder", "a folder of masks", "Check the path, or predict the pictures first.")
    found = {path.relative_to(masks).with_suffix("").as_posix() for path in masks.rglob("*.png")}
    for what, odd in (("no mask of", expected - found), ("masks that the split does not have:", found - expected)):
        if odd:
            shown = ", ".join(sorted(odd)[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
            wanted = f"a mask of each of the split's {len(expected)} pictures, and no other"
            raise BadInput(masks, f"{what} {shown}", wanted, "Check that the masks are predictions of this split.")


def _check_mask(where: Path, content: bytes) -> None:
    is_png = content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 25
    # Bytes 24 and 25 are bit depth and colour type: 0 is grey, 3 a palette. Decoders hide a bit depth below 8.
    if not is_png or content[24] != 8 or content[25] not in (0, 3):
        raise BadInput(
            where,
            f"a PNG of {content[24]} bits and colour type {content[25]}" if is_png else "no PNG",
            "a PNG with one 8-bit channel, grey (colour type 0) or with a palette (3)",
            "Write the labels themselves, not their colours.",
        )
    with (
        reading(where, "a whole PNG", "Predict this picture again."),
        Image.open(io.BytesIO(content), formats=["PNG"]) as image,
    ):
        labels = np.asarray(image)
    if labels.max() >= N_LABELS:
        raise BadInput(
            where,
            f"labels {np.unique(labels[labels >= N_LABELS]).tolist()}",
            f"labels 0..{N_LABELS - 1}",
            "The server does not support ignored pixels: predict a class or background everywhere.",
        )


FORMAT = Format(
    "voc-server",
    "predictions as an archive for the PASCAL VOC server",
    Export(VOCServerOptions, write, finish, pictures=None, ignores=True, source=source),
)
