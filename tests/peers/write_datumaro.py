"""Datumaro: masks and tags, exported as VOC (all of it, segmentation and classification alone) and as COCO."""

from importlib.metadata import version

import numpy as np
from datumaro.components.annotation import Label, Mask
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image
from pictures import folder, inside, pixels

root = folder("datumaro", version("datumaro"))
items = [
    DatasetItem(
        id=f"{number}",
        subset=subset,
        media=Image.from_numpy(pixels(number)[..., ::-1].astype(np.float32)),
        annotations=[Mask(inside(number), label=number % 2), Label(number % 2)],
    )
    for number, subset in enumerate(("train", "train", "val"))
]
data = Dataset.from_iterable(items, categories=["cat", "dog"])
for form in ("voc", "voc_segmentation", "voc_classification", "coco_instances"):
    data.export(str(root / form), form, save_media=True)
# a background that the user defined, at another place than the first
other = Dataset.from_iterable(
    [
        DatasetItem(
            id="0",
            subset="default",
            media=Image.from_numpy(pixels(0).astype(np.float32)),
            annotations=[Mask(inside(0), label=2)],
        )
    ],
    categories=["cat", "background", "dog"],
)
other.export(str(root / "voc_background"), "voc_segmentation", save_media=True)
