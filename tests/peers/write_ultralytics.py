"""Ultralytics: COCO polygons and index masks turned into YOLO texts by its converters, and its semantic layout as its own data set class reads it."""

import json
import os
import tempfile
from pathlib import Path

# before the import, which reads them: nothing is fetched, and no settings are left behind
scratch = tempfile.TemporaryDirectory()
os.environ |= {"YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": scratch.name}

import numpy as np  # noqa: E402
import ultralytics  # noqa: E402
from pictures import SIZE, folder, save  # noqa: E402
from PIL import Image  # noqa: E402
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.data.build import build_yolo_dataset  # noqa: E402
from ultralytics.data.converter import convert_coco, convert_segment_masks_to_yolo_seg  # noqa: E402
from ultralytics.data.utils import check_det_dataset  # noqa: E402

root = folder("ultralytics", ultralytics.__version__)
CAT, DOG = 1, 2
SPLITS = {"train": (0, 1), "val": (2, 3)}


def write_yaml(path: Path, names: list[str], more: str = "") -> None:
    listed = "".join(f"  {number}: {name}\n" for number, name in enumerate(names))
    path.write_text(f"path: {path.parent.name}\ntrain: images/train\nval: images/val\n{more}\nnames:\n{listed}")


def write_seen(place: Path) -> None:
    """The masks that Ultralytics' own data set class gives, by picture."""
    os.chdir(root)  # `path` is looked for in the working folder
    data = check_det_dataset(str(place / "data.yaml"), autodownload=False)
    seen = {}
    for split in SPLITS:
        images = build_yolo_dataset(get_cfg(overrides={"task": "semantic"}), data[split], 1, data, mode="val")
        for index, label in enumerate(images.labels):
            seen[Path(label["im_file"]).stem] = images.load_mask(index, SIZE)
    np.savez_compressed(root / f"{place.name}.npz", **seen)
    for cache in place.rglob("*.cache"):
        cache.unlink()


def save_pictures(place: Path) -> None:
    for split, numbers in SPLITS.items():
        for number in numbers:
            save(place / "images" / split / f"{number}.png", number)


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: lengths of runs by columns, the first of zeros."""
    flat = np.concatenate(([False], mask.flatten(order="F")))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate(([0], edges, [mask.size]))).tolist()


# a cat and a dog; a dog of two parts; a cat around a hole; a dog around a hole beside pixels to be ignored
index_masks = {number: np.zeros(SIZE, np.uint8) for number in range(4)}
index_masks[0][3:12, 5:15] = CAT
index_masks[0][15:21, 20:31] = DOG
index_masks[1][3:9, 2:10] = DOG
index_masks[1][15:21, 18:29] = DOG
index_masks[2][3:16, 3:23] = CAT
index_masks[2][6:12, 8:18] = 0
index_masks[3][3:18, 3:23] = DOG
index_masks[3][6:12, 8:18] = 0
index_masks[3][20:23, 25:31] = 255
np.savez_compressed(root / "drawn.npz", **{f"{number}": mask for number, mask in index_masks.items()})

# the same as COCO's objects: a class, a box and an outline; one hole is RLE, into the other one the outline leads
objects = {
    0: [
        (CAT, [5, 3, 10, 9], [[5, 3, 15, 3, 15, 12, 5, 12]]),
        (DOG, [20, 15, 11, 6], [[20, 15, 31, 15, 31, 21, 20, 21]]),
    ],
    1: [(DOG, [2, 3, 27, 18], [[2, 3, 10, 3, 10, 9, 2, 9], [18, 15, 29, 15, 29, 21, 18, 21]])],
    2: [(CAT, [3, 3, 20, 13], {"size": list(SIZE), "counts": run_lengths(index_masks[2] == CAT)})],
    3: [(DOG, [3, 3, 20, 15], [[3, 3, 23, 3, 23, 18, 3, 18, 3, 3, 8, 6, 8, 12, 18, 12, 18, 6, 8, 6]])],
}
coco = Path(scratch.name) / "coco"
coco.mkdir()
for split, numbers in SPLITS.items():
    content = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]} for number in numbers
        ],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": [
            {
                "id": 10 * number + place,
                "image_id": number,
                "category_id": class_,
                "bbox": box,
                "iscrowd": 0,
                "segmentation": outline,
            }
            for number in numbers
            for place, (class_, box, outline) in enumerate(objects[number], 1)
        ],
    }
    (coco / f"instances_{split}.json").write_text(json.dumps(content))
place = root / "from_coco"
convert_coco(str(coco), str(place), use_segments=True, cls91to80=False)
save_pictures(place)
write_yaml(place / "data.yaml", ["cat", "dog"])
write_seen(place)

place = root / "from_masks"
for split, numbers in SPLITS.items():
    source = Path(scratch.name) / "masks" / split
    source.mkdir(parents=True)
    for number in numbers:
        Image.fromarray(index_masks[number]).save(source / f"{number}.png")
    convert_segment_masks_to_yolo_seg(str(source), str(place / "labels" / split), classes=2)
save_pictures(place)
write_yaml(place / "data.yaml", ["cat", "dog"])

# the semantic layout: with the background as a class, with values that a mapping turns into classes, with a single class
values = np.arange(256, dtype=np.uint8)
mapped = values.copy()
mapped[[0, CAT, DOG]] = (3, 7, 11)
single = values.copy()
single[DOG] = 0
MAPPING = "masks_dir: annotated\nlabel_mapping:\n  -1: ignore_label\n  3: 0\n  7: 1\n  11: 2\n"
for name, names, table, masks, more in (
    ("semantic", ["background", "cat", "dog"], values, "masks", "masks_dir: masks\n"),
    ("semantic_mapped", ["background", "cat", "dog"], mapped, "annotated", MAPPING),
    ("semantic_single", ["cat"], single, "masks", ""),
):
    place = root / name
    for split, numbers in SPLITS.items():
        (place / masks / split).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(table[index_masks[number]]).save(place / masks / split / f"{number}.png")
    save_pictures(place)
    write_yaml(place / "data.yaml", names, more)
    write_seen(place)
scratch.cleanup()
