"""Hugging Face's imagefolder, as `datasets` (5.2.0) loads it: pictures and masks with `metadata.csv`.

    README.md                    the dataset card: its header assigns all files to the split `train`, whatever pictures are called
    id2label.json                {"0": "background", "1": "cat", "2": "dog"}, as in models for semantic segmentation
    train/metadata.csv           file_name,mask_file_name,tags: images/NAME.jpg,masks/NAME.png,cat|dog
    train/images/NAME.jpg        train/masks/NAME.png: grey, the values are our labels, 255 is ignored

`datasets.load_dataset(FOLDER)` gives the columns `image`, `mask` and `tags`. Every picture is listed: `datasets` drops others without a word.
With `dataset`, a `datasets.Dataset` is saved too.
"""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsss.arguments import switch
from wsss.arrays import UInt8
from wsss.data.entries import LayoutOptions
from wsss.data.files import write_values
from wsss.data.imagefolder import find_imagefolder, read_imagefolder
from wsss.data.images import IGNORE, MaskFile
from wsss.data.labels import MaskTable
from wsss.errors import BadInput
from wsss.formats.format import Corrected, Export, Format, Import, Item, Ours, Part, Task
from wsss.formats.options import ExportOptions, ImportOptions
from wsss.storage import read_json, whole_file, write_json, write_text

SPLIT, CARD, LABELS = "train", "README.md", "id2label.json"
PICTURES, MASKS = "images", "masks"
DATASET = "dataset"
# between the tags of a picture
_BETWEEN = "|"
_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: {split}
    path: {split}/**
task_categories:
- image-segmentation
---
{count} pictures with masks. The values of the masks:

{labels}
"""


@dataclasses.dataclass(frozen=True)
class HFOptions(ExportOptions):
    """Options of the imagefolder export."""

    dataset: bool = switch()
    """also save a `datasets.Dataset` in OUT/dataset, with pictures and masks inside; needs the package `datasets`"""


def write(task: Task[HFOptions], item: Item) -> None:
    """Write the mask of a picture."""
    if strange := [name for name in task.class_names if _BETWEEN in name]:
        do = "Rename the class: it separates tags in metadata.csv."
        raise BadInput("classes", repr(strange[0]), f"no {_BETWEEN} in a name", do)
    if task.options.dataset:
        _datasets()
        if task.options.copy_pictures == "none":
            raise BadInput("--dataset", "--copy_pictures none", "pictures to put into it", "Leave one of them out.")
    write_values(task.out / SPLIT / MASKS / f"{item.name}.png", item.labels)


def finish(task: Task[HFOptions], parts: Iterable[Part]) -> Path:
    """Write the table, the names of the classes, and the card."""
    names = ("background", *task.class_names)
    with (
        whole_file(task.out / SPLIT / "metadata.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="", errors="surrogatepass") as stream,
    ):
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(("file_name", "mask_file_name", "tags"))
        for part in parts:
            tags = _BETWEEN.join(task.class_names[tag - 1] for tag in part.tags)
            rows.writerow((f"{PICTURES}/{part.file}", f"{MASKS}/{part.name}.png", tags))
    write_json(task.out / LABELS, {str(label): name for label, name in enumerate(names)})
    meanings = [f"- {label}: {json.dumps(name, ensure_ascii=False)}" for label, name in enumerate(names)]
    if task.unsure == "ignore":
        meanings.append(f"- {IGNORE}: ignored")
    write_text(task.out / CARD, _CARD.format(split=SPLIT, count=task.count, labels="\n".join(meanings)))
    if task.options.dataset:
        _save_dataset(task, parts)
    return task.out


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise BadInput("--dataset", "no package `datasets`", "it", "Install it: pip install datasets") from error
    return datasets


def _save_dataset(task: Task[HFOptions], parts: Iterable[Part]) -> None:
    """Save a `Dataset` with the columns image, mask and tags, picture by picture."""
    datasets = _datasets()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "mask": datasets.Image(),
            "tags": datasets.Sequence(datasets.ClassLabel(names=list(task.class_names))),
        }
    )

    def rows() -> Iterator[dict[str, Any]]:
        folder = task.out / SPLIT
        for part in parts:
            files = (folder / PICTURES / part.file, folder / MASKS / f"{part.name}.png")
            image, mask = ({"bytes": file.read_bytes(), "path": file.name} for file in files)
            yield {"image": image, "mask": mask, "tags": [tag - 1 for tag in part.tags]}

    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix=".", suffix=".part", dir=task.out) as cache:
        made = datasets.Dataset.from_generator(rows, features=features, cache_dir=cache)
        made.save_to_disk(str(task.out / DATASET))


def read(ours: Ours, options: ImportOptions) -> Iterator[Corrected]:
    """The masks that the metadata names; `id2label.json` names their values, which otherwise are our labels."""
    root = options.file if options.file.is_dir() else options.file.parent
    tables = find_imagefolder(root)
    if not tables:
        raise BadInput(root, "no metadata.csv or metadata.jsonl", "an imagefolder of Hugging Face", "Give its folder.")
    table = _values(ours, root / LABELS)
    for entry in read_imagefolder(root, tables, LayoutOptions()).entries:
        if not isinstance(entry.mask, MaskFile):
            raise BadInput(entry.where, "no mask", "a column mask_file_name", "Name the masks in the metadata.")
        yield Corrected(entry.name, entry.where, _reading(MaskFile(entry.mask.path, table)))


def _values(ours: Ours, names: Path) -> MaskTable | None:
    if not names.exists():
        return None
    content = read_json(names, "the names of the labels by number")
    if not isinstance(content, dict) or not all(key.isdecimal() and isinstance(content[key], str) for key in content):
        raise BadInput(names, "other content", '{"0": "background", "1": "cat"}', "Correct it, or remove it.")
    labels = {int(key): ours.label(name, str(names)) for key, name in content.items()}
    return MaskTable.of({IGNORE: IGNORE} | labels, names.name)


def _reading(mask: MaskFile) -> Callable[[tuple[int, int]], UInt8[np.ndarray, "h w"]]:
    return lambda _: mask.read()


FORMAT = Format(
    "hf",
    "an imagefolder of Hugging Face: metadata.csv, pictures and grey masks",
    Export(HFOptions, write, finish, pictures=f"{SPLIT}/{PICTURES}", ignores=True),
    Import(ImportOptions, read),
)
