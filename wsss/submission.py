"""Archives for the PASCAL VOC evaluation server, which scores the test split of VOC 2012."""

import gzip
import io
import tarfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from wsss.data.pictures import picture_size_hw
from wsss.errors import BadInput, reading
from wsss.storage import whole_file

# comp5: trained on VOC's own pictures alone; comp6: on anything, ImageNet included.
Competition = Literal["comp5", "comp6"]

N_LABELS = 21
# far more than a mask of the largest picture has
_MOST_BYTES = 64 << 20


def write_voc_submission(
    out: Path,
    masks: Iterable[tuple[str, Path]],
    names: Collection[str],
    competition: Competition = "comp6",
    pictures: Mapping[str, Path] | None = None,
) -> None:
    """Pack predicted masks as the server wants them; the same masks give the same bytes.

    Args:
        out: the archive; the server's rules name it `results.tar.gz`.
        masks: name of the picture and PNG of labels 0..20, in any order. The PNGs are packed as they are.
        names: the split's names; the archive has to hold a mask of each and no other.
        competition: under which the result is entered.
        pictures: the file of each name's picture, whose size the mask must have; without it no size is checked.

    Raises:
        BadInput: a mask is missing, unknown, given twice, no 8-bit PNG of labels 0..20, or not of its picture's size. No
            archive is left then.
    """
    folder = _folder(competition)
    paths: dict[str, Path] = {}
    for name, path in masks:
        if name in paths:
            raise BadInput(path, f"a second mask of {name}", f"only {paths[name]}", "Give one mask of each picture.")
        paths[name] = path
    _check_names(str(out), set(paths), set(names))
    with (
        whole_file(out) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, path in sorted(paths.items()):
            with reading(path, "a mask", missing="Predict this picture, or check the path."):
                content = path.read_bytes()
            _check_mask(str(path), content, name, pictures)
            member = tarfile.TarInfo(f"{folder}/{name}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def check_voc_submission(
    archive: Path,
    names: Collection[str],
    competition: Competition = "comp6",
    pictures: Mapping[str, Path] | None = None,
) -> None:
    """Make sure that the server can take an archive, whoever wrote it; arguments as in `write_voc_submission`.

    Raises:
        BadInput: it is no whole tar.gz, holds anything but one mask of each name, or a mask is wrong (see there).
    """
    folder = _folder(competition)
    found: set[str] = set()
    with reading(archive, "an archive of masks", "Write it again."), tarfile.open(archive, "r:gz") as members:
        for member in members:
            if member.isdir():
                continue
            where, path = f"{archive}: {member.name}", member.name.removeprefix("./")
            name = path.removeprefix(f"{folder}/").removesuffix(".png")
            if member.size > _MOST_BYTES:
                raise BadInput(
                    where, f"{member.size} bytes", f"a mask of at most {_MOST_BYTES}", "Write the archive again."
                )
            content = members.extractfile(member) if member.isfile() else None
            if content is None or name in found or path != f"{folder}/{name}.png":
                wanted = f"one file for each mask, {folder}/NAME.png"
                raise BadInput(where, "another or a second one", wanted, "Write the archive again.")
            _check_mask(where, content.read(), name, pictures if name in names else None)
            found.add(name)
    _check_names(str(archive), found, set(names))


def _folder(competition: Competition) -> str:
    if competition not in get_args(Competition):
        raise BadInput("competition of a submission", repr(competition), "comp5 or comp6", "Choose one of these.")
    return f"results/VOC2012/Segmentation/{competition}_test_cls"


def _check_names(where: str, found: set[str], expected: set[str]) -> None:
    for what, odd in (("no mask of", expected - found), ("masks that the split does not have:", found - expected)):
        if odd:
            shown = ", ".join(sorted(odd)[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
            wanted = f"a mask of each of the split's {len(expected)} pictures, and no other"
            raise BadInput(where, f"{what} {shown}", wanted, "Check that the masks are predictions of this split.")


def _check_mask(where: str, content: bytes, name: str, pictures: Mapping[str, Path] | None) -> None:
    is_png = content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 25
    # Bytes 24 and 25 are depth and kind of the channels: 0 is grey, 3 a palette. Decoders hide a depth below 8.
    if not is_png or content[24] != 8 or content[25] not in (0, 3):
        raise BadInput(
            where,
            f"a PNG of {content[24]} bits and colour type {content[25]}" if is_png else "no PNG",
            "a PNG with one channel of 8 bits, grey (colour type 0) or with a palette (3)",
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
            "The server knows no ignored pixels: predict a class or background everywhere.",
        )
    if pictures is None:
        return
    if name not in pictures:
        raise BadInput(where, f"no picture of {name}", "one", "Check the list of pictures.")
    height, width = picture_size_hw(pictures[name], upright=False)
    if labels.shape != (height, width):
        raise BadInput(
            where,
            f"a mask of {labels.shape[0]} x {labels.shape[1]} pixels (height x width)",
            f"{height} x {width} as {pictures[name]}",
            "Predict at the size of the picture.",
        )
