"""Datumaro reads what we export for CVAT, in VOC's layout or in COCO's formats, and writes it again: as it is, and for CVAT also as polygons.

python trip_datumaro.py EXPORT MASKS OUT cvat|voc_segmentation|coco_instances|coco_panoptic
"""

import sys
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset
from PIL import Image

export, masks, out, form = *map(Path, sys.argv[1:4]), sys.argv[4]
data = Dataset.import_from(str(export), form)
names = [label.name for label in data.categories()[AnnotationType.label]]
labels = [
    255 if name == "ignored" else 0 if name == "background" else at
    for at, name in enumerate(names if names[0] == "background" else ["background", *names])
]
first = 0 if names[0] == "background" else 1


def compiled(item) -> np.ndarray:
    """The labels of a picture's pixels."""
    drawn = np.zeros(item.media.size, np.uint8)
    for one in sorted(item.annotations, key=lambda one: one.z_order):
        if one.type == AnnotationType.mask:
            drawn[np.asarray(one.image) > 0] = labels[one.label + first]
    return drawn


count = 0
for item in data:
    truth = np.asarray(Image.open(masks / f"{item.id}.png"))
    np.testing.assert_array_equal(compiled(item), truth, err_msg=item.id)
    count += 1
assert count == len(list(masks.rglob("*.png")))
data.export(str(out), form, save_media=True)
if form == "coco_instances":  # masks are polygons otherwise
    data.export(str(out / "masks"), form, save_media=True, segmentation_mode="mask")
if form == "cvat":
    data.transform("masks_to_polygons")
    data.export(str(out / "polygons"), form, save_media=True)
    data.transform("polygons_to_masks")
    for item in data:
        place = out / "drawn" / f"{item.id}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(compiled(item)).save(place)
print(f"datumaro reads {count} masks as they are")
