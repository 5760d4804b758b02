"""Folders that look like class folders but are something else: splits, masks, or folders that annotation files describe."""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.data.entries import SPLITS, split_of
from wsss.data.lists import files_below, is_hidden, is_picture
from wsss.data.pairs import MASK_FOLDERS, PICTURE_FOLDERS
from wsss.errors import BadInput

_EXPECTED = "one folder per class (cat/1.jpg), or one of the layouts in docs/data.md"
_IF_CLASSES = "If these are the names of classes, list all of them with --classes or in classes.txt."
# Bytes of a text, a table or a JSON file that are examined
_BEGINNING = 1 << 16
_SAMPLE = 12
# Label images contain few and small values
_MOST_VALUES, _HIGHEST = 40, 60
# ... and this share of neighbours are equal in them, unlike in dark pictures with noise
_FLAT = 0.8
# Names of splits that are no classes; `train` is a class of VOC and COCO
_CERTAIN_SPLITS = frozenset(("valid", "val", "validation", "test", "testing", "training", "dev"))


def check_folders_of_classes(
    base: Path, pictures: Mapping[str, Path], tags: Mapping[str, str], given: Collection[str] | None
) -> None:
    """Raise BadInput if folders look like something else than classes.

    Args:
        base: the parent of the folders.
        pictures: files by name, which is their path below `base`.
        tags: the class folder of each picture.
        given: the class list of the user; its names are classes.

    Raises:
        BadInput: the folders are named like splits or parts of a data set, a folder's pictures are label images, or the classes are one
            level further down.
    """
    names = sorted(set(tags.values()) - set(given or ()))
    _check_splits(base, names, set(tags.values()))
    _check_words(base, [name for name in names if name.lower() not in _CONTAINERS])
    _check_depth(base, pictures, tags, names)
    _check_words(base, names)
    _check_label_images(base, pictures, tags, names)


def check_no_mask_folder(root: Path) -> None:
    """Raise BadInput if a folder of pictures without tags contains a folder of masks, which would be read as pictures."""
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name.lower() in MASK_FOLDERS and any(map(is_picture, files_below(path))):
            raise BadInput(
                path,
                "a folder of masks among the pictures",
                "only pictures",
                "Give the folder of the pictures as --data.",
            )


def _check_splits(base: Path, names: Sequence[str], all_names: Collection[str]) -> None:
    splits = [name for name in names if split_of(name)]
    certain = [name for name in splits if name.lower() in _CERTAIN_SPLITS]
    if certain or (splits and len(splits) == len(all_names)):
        raise BadInput(
            base,
            f"folders of splits ({', '.join(splits)}) with pictures in them, and no folders of classes",
            _EXPECTED,
            f"Put folders of classes into each ({splits[0]}/cat/1.jpg), or write the table tags.csv with the columns image, tags and "
            f"split. {_IF_CLASSES}",
        )


# Folders that hold all pictures
_CONTAINERS = frozenset(("data", "dataset"))
# Folders of files that are derived from pictures
_DERIVED = frozenset((
    "overlay", "overlays", "pred", "preds", "prediction", "predictions", "preview", "previews", "thumb", "thumbnail", "thumbnails", "thumbs",
    "visualisation", "visualisations", "visualization", "visualizations",
))  # fmt: skip
_SPLIT_WORDS = frozenset((*SPLITS, "tr", "ts", "eval", "holdout"))


def _is_part(name: str) -> bool:
    """Whether all words of a name stand for splits, pictures or masks: `train_images`, `imagesTr`, `trainA`, `test2017`."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    parts = [word for word in words if word in PICTURE_FOLDERS | MASK_FOLDERS | _DERIVED]
    splits = [word for word in words if word in _SPLIT_WORDS]
    letters = [word for word in words if len(word) == 1] if splits else []
    known = len(parts) + len(splits) + len(letters)
    return bool(parts or splits) and known == len(words) and (len(words) > 1 or bool(re.search(r"\d", name) and splits))


def _check_words(base: Path, names: Sequence[str]) -> None:
    pictures = [name for name in names if name.lower() in PICTURE_FOLDERS]
    masks = [name for name in names if name.lower() in MASK_FOLDERS]
    others = [name for name in names if name.lower() in _DERIVED | _CONTAINERS or _is_part(name)]
    if pictures or masks or others:
        pair = (
            " A pair of such folders is read if each mask is named like its picture "
            f"({(pictures or ['images'])[0]}/1.jpg, {(masks or ['masks'])[0]}/1.png)."
        )
        raise BadInput(
            base,
            f"folders named like parts of a data set ({', '.join(dict.fromkeys((*pictures, *masks, *others)))}), not like classes",
            _EXPECTED,
            f"Write the table tags.csv with the columns image and tags, or move the pictures into folders of classes.{pair} {_IF_CLASSES}",
        )


def _check_depth(base: Path, pictures: Mapping[str, Path], tags: Mapping[str, str], names: Sequence[str]) -> None:
    ways: dict[str, list[list[str]]] = defaultdict(list)
    for name, tag in tags.items():
        parts = name.split("/")
        ways[tag].append(parts[parts.index(tag) + 1 : -1])
    if not names or not all(way for found in ways.values() for way in found):
        return
    if len(ways) > 1:
        _check_groups(base, ways)
        return
    ((tag, steps),) = ways.items()
    common = [step[0] for step in itertools.takewhile(lambda step: len(set(step)) == 1, zip(*steps, strict=False))]
    if all(way == common for way in steps):
        common = common[:-1]
    splits = sorted({name.partition("/")[0] for name in tags} - {tag})
    inner = sorted({way[len(common)] for way in steps})
    shown = ", ".join(inner[:6])
    top = base / splits[0] / tag if splits else base / tag
    if len(splits) > 1:
        do = f"Move {shown} up into {' and '.join(splits)} if these are the classes."
    else:
        do = f"Give {top.joinpath(*common)} if its folders ({shown}) are classes or splits."
    raise BadInput(
        base,
        f"one folder, {tag}, without pictures, and folders in it ({', '.join(['/'.join(common)] if common else inner[:6])})",
        f"{_EXPECTED}, directly below the folder given",
        f"{do} {_IF_CLASSES}",
    )


def _check_groups(base: Path, ways: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Raise BadInput if each folder holds other folders, since either the outer or the inner ones are the classes."""
    inner = {tag: {way[0] for way in found} for tag, found in ways.items()}
    if all(len(found) > 1 for found in inner.values()) and sum(map(len, inner.values())) == len(
        set().union(*inner.values())
    ):
        tag = min(inner)
        raise BadInput(
            base,
            f"folders that hold only other folders ({tag}/{min(inner[tag])}, {tag}/{max(inner[tag])}, ...)",
            f"{_EXPECTED}, directly below the folder given",
            f"If the classes are the inner folders, move them up. If they are the outer ones, use --classes '{', '.join(sorted(inner))}'.",
        )


def check_other_files(root: Path, pictures: Mapping[str, Path], lists: Collection[str | None] = ()) -> None:
    """Raise BadInput if a file below a folder describes the pictures, and is not read.

    Args:
        root: the folder.
        pictures: files by name.
        lists: paths of lists that are read.

    Raises:
        BadInput: there is such a file; the message names its kind.
    """
    stems = {os.path.basename(name) for name in pictures}
    read = {os.path.realpath(path) for path in lists if path is not None}
    for path in _others(root):
        if os.path.realpath(path) not in read and (kind := _kind(path, stems)):
            raise BadInput(
                path,
                kind,
                f"{_EXPECTED}; a file that may describe the pictures is not ignored",
                "Arrange the data set in one of the layouts of docs/data.md, name the file with --tags, or with --train if it lists pictures, "
                "or move it elsewhere if the names of the folders are the tags.",
            )


def _others(root: Path) -> Iterator[Path]:
    """Files of types that may describe pictures, at most a few per folder."""
    counts: dict[Path, int] = defaultdict(int)
    for path in files_below(root):
        kind = path.suffix.lower()
        if kind in (".json", ".yaml", ".yml", ".csv", ".tsv", ".jsonl", ".txt", ".xml", ".ndjson") and not is_hidden(
            path.name
        ):
            counts[path.parent] += 1
            if counts[path.parent] <= _SAMPLE and path.is_file():
                yield path


def _kind(path: Path, stems: Collection[str]) -> str | None:
    """The kind of annotations in a file, in words; None if none is recognised."""
    with path.open("rb") as stream:
        text = stream.read(_BEGINNING).decode("utf-8", "replace")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _json_kind(text, stems)
    if suffix in (".yaml", ".yml"):
        return "the settings of a YOLO data set" if re.search(r"^(names|nc)\s*:", text, re.MULTILINE) else None
    if suffix == ".xml":
        known = re.search("<(annotations?)[ >]", text[:400])
        kinds = {
            "annotation": "annotations in VOC's format",
            "annotations": "annotations of CVAT: export them as COCO or as masks",
        }
        return kinds[known[1]] if known else None
    if suffix == ".txt" and path.name.lower() in ("classes.txt", "readme.txt", "license.txt"):
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()][:_SAMPLE]
    if (
        suffix == ".txt"
        and path.stem in stems
        and lines
        and all(re.fullmatch(r"\d+( -?[\d.]+(e-?\d+)?){4,}", line) for line in lines)
    ):
        return "objects in YOLO's format"
    words = {word.strip().strip('"') for line in lines for word in re.split(r"[,;\t ]", line)}
    if any(
        os.path.splitext(os.path.basename(word))[0] in stems and (suffix != ".txt" or not word.isdecimal())
        for word in words
        if word
    ):
        return "a list of pictures" if suffix == ".txt" else "a table about the pictures"
    return None


_JSON_KINDS = (
    (("record", "identity", "inputs"), "results that `wsss` made, inside the data set: move them out of it"),
    (("images", "annotations"), "annotations in COCO's format"),
    (("categories", "annotations"), "annotations in COCO's format"),
    (("_via_img_metadata",), "a project of the VGG annotator (VIA): export it as COCO"),
    (("shapes", "imagePath"), "a file of labelme"),
    (("regions", "filename"), "annotations of the VGG annotator (VIA): export them as COCO"),
    (("dm_format_version",), "annotations of Datumaro: export them as COCO or VOC"),
    (("items", "categories"), "annotations of Datumaro: export them as COCO or VOC"),
    (("objects", "classTitle"), "annotations of Supervisely: export them as COCO"),
    (("image", "annotations"), "annotations of CreateML or Label Studio"),
    (("annotations", "data"), "an export of Label Studio"),
    (("image", "choice"), "an export of Label Studio"),
    (("classes", "labels"), "labels of FiftyOne: export them as folders of classes or as COCO"),
    (("samples",), "a data set of FiftyOne: export it as COCO"),
)


def _json_kind(text: str, stems: Collection[str]) -> str | None:
    keys = set(re.findall(r'"([\w-]+)"\s*:', text))
    if kind := next((kind for needed, kind in _JSON_KINDS if keys.issuperset(needed)), None):
        return kind
    words = (os.path.basename(word) for word in re.findall(r'"([^"\\]+)"', text))
    named = any(os.path.splitext(word)[0] in stems and not word.isdecimal() for word in words)
    return "JSON that names the pictures" if named else None


def _check_label_images(
    base: Path, pictures: Mapping[str, Path], tags: Mapping[str, str], names: Sequence[str]
) -> None:
    members: dict[str, list[Path]] = defaultdict(list)
    for name, tag in tags.items():
        members[tag].append(pictures[name])
    for tag in names:
        paths = members[tag]
        if all(is_label_image(path) for path in paths[:: max(1, len(paths) // _SAMPLE)]):
            raise BadInput(
                base / tag,
                f"{len(paths)} label images (few small values each), and no photographs",
                _EXPECTED,
                f"Put masks in a folder `masks`, named like the pictures. {_IF_CLASSES}",
            )


def is_label_image(path: Path) -> bool:
    """Whether a file is a grey or palette picture with few, small values in flat regions; False if it cannot be read."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P", "1", "I", "I;16") or picture.format == "JPEG":
                return False
            pixels = np.asarray(picture)
    except Exception:  # damaged pictures are reported when all pictures are checked
        return False
    values = np.unique(pixels)
    is_flat = pixels.shape[1] < 2 or np.mean(pixels[:, 1:] == pixels[:, :-1]) > _FLAT
    return len(values) <= _MOST_VALUES and bool((values[values != 255] <= _HIGHEST).all()) and bool(is_flat)
