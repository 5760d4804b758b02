"""Fake data sets in the layouts of the real ones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.parity import inputs
from wsss.data.coco import COCO_CATEGORIES
from wsss.data.files import write_mask

SIZE = (30, 40)

# what a picture of an EXIF orientation looks like when it is turned upright
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


def write_picture(path: Path, size_hw: tuple[int, int] = SIZE, seed: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(inputs.image(*size_hw, seed)).save(path, **options)
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_labels(path: Path, labels: Sequence[int], size_hw: tuple[int, int] = SIZE) -> Path:
    """A mask with a column of pixels for each label."""
    mask = np.zeros(size_hw, np.uint8)
    for column, label in enumerate(labels):
        mask[:, column] = label
    write_mask(path, mask)
    return path


def annotation(name: str, objects: Sequence[str], size_hw: tuple[int, int] = SIZE) -> str:
    boxes = "".join(
        f"<object><name>{tag}</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax>"
        "<ymax>9</ymax></bndbox></object>"
        for tag in objects
    )
    size = f"<size><width>{size_hw[1]}</width><height>{size_hw[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size}{boxes}</annotation>"


VOC_OBJECTS = {
    "2007_000032": ["aeroplane", "person"],
    "2007_000039": ["tvmonitor"],
    "2007_000033": ["aeroplane", "aeroplane"],
    "2008_000008": ["horse", "person"],
}


def write_voc(root: Path, objects: Mapping[str, Sequence[str]] = VOC_OBJECTS) -> Path:
    """VOC with two pictures in train, one in val and one that SBD alone has a mask of."""
    labels = {"aeroplane": 1, "horse": 13, "person": 15, "tvmonitor": 20}
    for seed, (name, tags) in enumerate(objects.items()):
        write_picture(root / f"JPEGImages/{name}.jpg", seed=seed)
        write_text(root / f"Annotations/{name}.xml", annotation(name, tags))
        if name != "2008_000008":
            write_labels(root / f"SegmentationClass/{name}.png", [0, *(labels.get(tag, 1) for tag in tags), 255])
    write_text(root / "ImageSets/Segmentation/train.txt", "2007_000032\n2007_000039\n")
    write_text(root / "ImageSets/Segmentation/val.txt", "2007_000033\n")
    return root


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path / "VOCdevkit" / "VOC2012")


def box(left: int, top: int, width: int, height: int) -> list[list[float]]:
    return [[left, top, left + width, top, left + width, top + height, left, top + height]]


# file: image id to (category id, polygon or code, crowd)
COCO_OBJECTS = {
    "train": {
        391895: [(2, box(5, 5, 20, 20), 0), (1, box(10, 10, 6, 6), 0)],
        9: [(90, box(2, 2, 9, 9), 0)],
        # a crowd, and a person that a later bus hides
        25: [
            (1, box(4, 4, 5, 5), 0),
            (6, box(1, 1, 20, 20), 0),
            (18, {"counts": [900, 60, 240], "size": list(SIZE)}, 1),
        ],
        30: [],
    },
    "val": {42: [(18, box(3, 3, 12, 12), 0)]},
}


def write_instances(path: Path, images: Mapping[int, Sequence[tuple]], name: str) -> Path:
    entries = [
        {"id": image, "file_name": name.format(image), "height": SIZE[0], "width": SIZE[1], "license": 1}
        for image in images
    ]
    objects = [(image, *entry) for image, found in images.items() for entry in found]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd, "segmentation": shape, "area": 1.0}
        for number, (image, category, shape, crowd) in enumerate(objects, 100)
    ]
    categories = [{"id": number, "name": title, "supercategory": "thing"} for number, title in COCO_CATEGORIES.items()]
    content = {
        "info": {"year": 2014},
        "images": entries,
        "licenses": [],
        "annotations": annotations,
        "categories": categories,
    }
    return write_text(path, json.dumps(content))


def write_coco(root: Path, year: int = 2014, pictures: str = "{split}{year}", twelve: bool = False) -> Path:
    for split, images in COCO_OBJECTS.items():
        name = "{:012d}.jpg" if year == 2017 else f"COCO_{split}{year}_{{:012d}}.jpg"
        write_instances(root / f"annotations/instances_{split}{year}.json", images, name)
        for image in images:
            folder = root / pictures.format(split=split, year=year)
            write_picture(folder / ("{:012d}.jpg" if twelve else name).format(image), seed=image)
    return root


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / "coco")


@pytest.fixture
def folders(tmp_path):
    """Two cats, one of them in a sub-folder, and a dog."""
    for seed, name in enumerate(("cat/1.jpg", "cat/more/2.PNG", "dog/1.jpeg")):
        write_picture(tmp_path / "pets" / name, seed=seed)
    return tmp_path / "pets"


@pytest.fixture
def table(tmp_path):
    """Pictures with a table: a cat, both, nothing, and a dog to score on."""
    root = tmp_path / "album"
    for seed, name in enumerate(("a.jpg", "b c.jpg", "deep/ü.png", "v.jpg")):
        write_picture(root / name, seed=seed)
    write_text(
        root / "tags.csv", "image,tags,split\na.jpg,cat,train\nb c.jpg,dog; cat,train\ndeep/ü.png,,train\nv,dog,val\n"
    )
    return root
