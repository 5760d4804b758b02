"""Small data sets in the layouts of tools, drawn for tests: three pictures, a cat, a dog, and in the one of val a cat."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.conftest import SIZE, annotation, box, write_picture, write_text

TAGS = {"0": "cat", "1": "dog", "2": "cat"}
SPLITS = {"train": ("0", "1"), "val": ("2",)}


def inside(name: str) -> np.ndarray:
    """Where a picture's object is, a rectangle."""
    number = int(name)
    where = np.zeros(SIZE, bool)
    where[2:12, 3 + number : 15 + number] = True
    return where


def labels(name: str, values: tuple[int, int] = (1, 2)) -> np.ndarray:
    return inside(name).astype(np.uint8) * np.uint8(values[TAGS[name] == "dog"])


def write_mask_picture(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def each():
    """Split and name of each picture."""
    return [(split, name) for split, names in SPLITS.items() for name in names]


def coco_content(names, categories=(("cat", 1), ("dog", 2)), file="{}.jpg"):
    ids = dict(categories)
    return {
        "images": [{"id": int(n) + 1, "file_name": file.format(n), "height": SIZE[0], "width": SIZE[1]} for n in names],
        "annotations": [
            {
                "id": int(n) + 1,
                "image_id": int(n) + 1,
                "category_id": ids[TAGS[n]],
                "segmentation": box(3 + int(n), 2, 12, 10),
                "iscrowd": 0,
                "area": 120,
                "bbox": [3 + int(n), 2, 12, 10],
            }
            for n in names
        ],
        "categories": [{"id": number, "name": name} for name, number in categories],
    }


def coco(root: Path) -> Path:
    for split, names in SPLITS.items():
        write_text(root / f"annotations/instances_{split}.json", json.dumps(coco_content(names)))
        for name in names:
            write_picture(root / f"images/{split}/{name}.jpg", seed=int(name))
    return root


def roboflow_coco(root: Path) -> Path:
    for split, names in SPLITS.items():
        folder = root / ("valid" if split == "val" else split)
        content = coco_content(names, (("pets", 0), ("cat", 1), ("dog", 2)))
        for category in content["categories"]:
            category["supercategory"] = "none" if category["id"] == 0 else "pets"
        write_text(folder / "_annotations.coco.json", json.dumps(content))
        for name in names:
            write_picture(folder / f"{name}.jpg", seed=int(name))
    return root


def roboflow_multi_label(root: Path) -> Path:
    for split, names in SPLITS.items():
        folder = root / ("valid" if split == "val" else split)
        rows = [f"{name}.jpg, {int(TAGS[name] == 'cat')}, {int(TAGS[name] == 'dog')}" for name in names]
        write_text(folder / "_classes.csv", "\n".join(["filename, cat, dog", *rows]) + "\n")
        for name in names:
            write_picture(folder / f"{name}.jpg", seed=int(name))
    return root


def roboflow_masks(root: Path) -> Path:
    for split, names in SPLITS.items():
        folder = root / ("valid" if split == "val" else split)
        write_text(folder / "_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n3, dog\n")
        for name in names:
            write_picture(folder / f"{name}.jpg", seed=int(name))
            write_mask_picture(folder / f"{name}_mask.png", labels(name, (1, 3)))
    return root


def imagefolder(root: Path) -> Path:
    for split, names in SPLITS.items():
        folder = root / ("validation" if split == "val" else split)
        rows = [{"file_name": f"{n}.jpg", "tags": [TAGS[n]], "mask_file_name": f"masks/{n}.png"} for n in names]
        write_text(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        for name in names:
            write_picture(folder / f"{name}.jpg", seed=int(name))
            write_mask_picture(folder / f"masks/{name}.png", labels(name))
    return root


def pairs(root: Path, pictures: str = "img_dir/{split}", masks: str = "ann_dir/{split}") -> Path:
    write_text(root / "classes.txt", "cat\ndog\n")
    for split, name in each():
        write_picture(root / pictures.format(split=split) / f"{name}.jpg", seed=int(name))
        write_mask_picture(root / masks.format(split=split) / f"{name}.png", labels(name))
    return root


def voc_of_cvat(root: Path) -> Path:
    write_text(
        root / "labelmap.txt",
        "# label:color_rgb:parts:actions\ncat:48,112,32::\nbackground:0,0,0::\ndog:176,112,32::\n",
    )
    colours = {"cat": (48, 112, 32), "dog": (176, 112, 32)}
    for split, names in SPLITS.items():
        write_text(root / f"ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in names))
        for name in names:
            write_picture(root / f"JPEGImages/{name}.jpg", seed=int(name))
            write_mask_picture(
                root / f"SegmentationClass/{name}.png",
                (inside(name)[..., None] * np.array(colours[TAGS[name]])).astype(np.uint8),
            )
    return root


def voc_main(root: Path) -> Path:
    """Boxes alone, as tools for detection keep them."""
    for split, names in SPLITS.items():
        write_text(root / f"ImageSets/Main/{split}.txt", "".join(f"{name}\n" for name in names))
        for name in names:
            write_picture(root / f"JPEGImages/{name}.jpg", seed=int(name))
            write_text(root / f"Annotations/{name}.xml", annotation(name, [TAGS[name]]).replace("cat", "kitten"))
    return root


def labelme2voc(root: Path) -> Path:
    write_text(root / "class_names.txt", "_background_\ncat\ndog\n")
    for name in TAGS:
        write_picture(root / f"JPEGImages/{name}.jpg", seed=int(name))
        write_mask_picture(root / f"SegmentationClass/{name}.png", labels(name))
        (root / "SegmentationClassNpy").mkdir(exist_ok=True)
        np.save(root / f"SegmentationClassNpy/{name}.npy", labels(name))
    return root


def labelme_content(name: str) -> dict:
    number = int(name)
    return {
        "version": "6.3.1",
        "flags": {},
        "shapes": [
            {
                "label": TAGS[name],
                # labelme's rectangles hold the pixels of both corners
                "points": [[3 + number, 2], [14 + number, 11]],
                "group_id": None,
                "shape_type": "rectangle",
                "flags": {},
            }
        ],
        "imagePath": f"{name}.jpg",
        "imageData": None,
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
    }


def labelme(root: Path) -> Path:
    for split, name in each():
        write_picture(root / split / f"{name}.jpg", seed=int(name))
        write_text(root / split / f"{name}.json", json.dumps(labelme_content(name)))
    return root


def yolo(root: Path) -> Path:
    write_text(root / "data.yaml", "train: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n")
    height, width = SIZE
    for split, name in each():
        left, top, right, bottom = 3 + int(name), 2, 14 + int(name), 11
        corners = ((left, top), (right, top), (right, bottom), ((left + right) / 2, bottom), (left, bottom))
        line = " ".join(f"{x / width:.5f} {y / height:.5f}" for x, y in corners)
        write_picture(root / f"images/{split}/{name}.jpg", seed=int(name))
        write_text(root / f"labels/{split}/{name}.txt", f"{int(TAGS[name] == 'dog')} {line}\n")
    return root


def yolo_masks(root: Path) -> Path:
    write_text(
        root / "data.yaml", "train: images/train\nval: images/val\nmasks_dir: masks\nnames: [background, cat, dog]\n"
    )
    for split, name in each():
        write_picture(root / f"images/{split}/{name}.jpg", seed=int(name))
        write_mask_picture(root / f"masks/{split}/{name}.png", labels(name))
    return root


def label_studio(root: Path) -> Path:
    tasks = [
        {
            "id": int(name),
            "image": f"/data/upload/1/1234abc{name}-{name}.jpg",
            "choice": TAGS[name],
            "annotator": 1,
            "annotation_id": 5,
            "lead_time": 1.0,
        }
        for name in TAGS
    ]
    write_text(root / "project-1.json", json.dumps(tasks))
    for split, name in each():
        write_picture(root / split / f"{name}.jpg", seed=int(name))
    return root


def folders(root: Path) -> Path:
    for split, name in each():
        write_picture(root / split / TAGS[name] / f"{name}.jpg", seed=int(name))
        write_mask_picture(root / "masks" / split / TAGS[name] / f"{name}.png", labels(name))
    return root


def table(root: Path) -> Path:
    rows = [f"deep/{name}.jpg,{TAGS[name]},{split},truth/{name}.png" for split, name in each()]
    write_text(root / "tags.csv", "\n".join(["image,tags,split,mask", *rows]) + "\n")
    for name in TAGS:
        write_picture(root / f"deep/{name}.jpg", seed=int(name))
        write_mask_picture(root / f"truth/{name}.png", labels(name))
    return root


def voc(root: Path) -> Path:
    write_text(root / "classes.txt", "cat\ndog\n")
    for split, names in SPLITS.items():
        write_text(root / f"ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in names))
        for name in names:
            write_picture(root / f"JPEGImages/{name}.jpg", seed=int(name))
            write_text(root / f"Annotations/{name}.xml", annotation(name, [TAGS[name]]))
            write_mask_picture(root / f"SegmentationClass/{name}.png", labels(name))
    return root


# what writes each, whether its pictures have true masks, whether it has a split val
LAYOUTS = {
    "folders": (folders, True, True),
    "table": (table, True, True),
    "voc": (voc, True, True),
    "coco": (coco, True, True),
    "roboflow_coco": (roboflow_coco, True, True),
    "roboflow_multi_label": (roboflow_multi_label, False, True),
    "roboflow_masks": (roboflow_masks, True, True),
    "imagefolder": (imagefolder, True, True),
    "pairs": (pairs, True, True),
    "voc_of_cvat": (voc_of_cvat, True, True),
    "labelme2voc": (labelme2voc, True, False),
    "labelme": (labelme, True, True),
    "yolo": (yolo, True, True),
    "yolo_masks": (yolo_masks, True, True),
    "label_studio": (label_studio, False, True),
}
