"""Archives for the PASCAL VOC evaluation server, which scores the test split of VOC 2012."""

import dataclasses
import gzip
import io
import tarfile
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from wsss.arguments import required
from wsss.data.lists import pictures_below, read_names
from wsss.data.pictures import picture_size_hw
from wsss.data.voc import SEGMENTATION_LISTS, find_voc
from wsss.errors import BadInput, reading
from wsss.exports.export import Export, ExportOptions
from wsss.storage import whole_file

# the server's rules give both names
ARCHIVE = "results.tar.gz"
Competition = Literal["comp6", "comp5"]

N_LABELS = 21


@dataclasses.dataclass(frozen=True)
class VOCServerOptions(ExportOptions):
    """Options of the VOC server export."""

    data: Path = required()
    """VOC 2012 folder with the pictures of the test split; tags are not needed"""
    split: str = "test"
    """list of pictures in ImageSets/Segmentation"""
    competition: Competition = "comp6"
    """comp5: trained only on VOC's pictures; comp6: trained on other data too, such as ImageNet"""


def write(options: VOCServerOptions) -> Path:
    """Pack predicted masks, unchanged, into the archive that the server expects; the same masks give the same bytes.

    The folder of masks has to contain `NAME.png`, with labels 0..20, for each picture of the split, and no other PNG file.

    Returns:
        The archive.

    Raises:
        BadInput: there is no such split; a mask is missing, belongs to no picture, is not an 8-bit PNG with labels 0..20, or
            differs in size from its picture. Then no archive is written.
    """
    pictures = _pictures(options)
    _check_names(options.masks, set(pictures))
    out = options.out / ARCHIVE
    with (
        whole_file(out) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, picture in sorted(pictures.items()):
            path = options.masks / f"{name}.png"
            with reading(path, "a mask", missing="Predict this picture, or check the path."):
                content = path.read_bytes()
            _check_mask(path, content, picture)
            member = tarfile.TarInfo(f"results/VOC2012/Segmentation/{options.competition}_test_cls/{name}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out


VOC_SERVER = Export("voc-server", "predictions as an archive for the PASCAL VOC server", VOCServerOptions, write)


def _pictures(options: VOCServerOptions) -> dict[str, Path]:
    """The picture files of the split, by name."""
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


def _check_mask(where: Path, content: bytes, picture: Path) -> None:
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
    height, width = picture_size_hw(picture, upright=False)
    if labels.shape != (height, width):
        raise BadInput(
            where,
            f"a mask of {labels.shape[0]} x {labels.shape[1]} pixels (height x width)",
            f"{height} x {width} as {picture}",
            "Predict at the size of the picture.",
        )
