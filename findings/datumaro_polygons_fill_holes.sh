#!/usr/bin/env bash
# Expected: masks turned into polygons enclose the same pixels. Seen: Datumaro's masks_to_polygons, and its COCO export with segmentation_mode=polygons, fill every hole and lose the last row and column of each object, without a warning.
# For a user: choosing polygons (since masks become iscrowd=1) makes a ring a disk and a square of 100 pixels one of 81, here and in pycocotools; compare areas after a conversion.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'datumaro==1.13.12'
cd "$venv"
"$venv/bin/python" - <<'PY' 2>&1 | grep -v WARNING
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datumaro.components.annotation import Mask
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image
from pycocotools.coco import COCO

print("datumaro", version("datumaro"))
square, ring = np.zeros((2, 40, 50), bool)
square[5:15, 5:15] = True
ring[5:35, 5:45] = True
ring[12:28, 15:35] = False


def dataset():
    picture = Image.from_numpy(np.zeros((40, 50, 3)))
    items = [DatasetItem(name, media=picture, annotations=[Mask(mask, label=0)]) for name, mask in (("ring", ring), ("square", square))]
    return Dataset.from_iterable(items, categories=["cat"])


print("before:", {"square": int(square.sum()), "ring": int(ring.sum())})
there = dataset()
there.transform("masks_to_polygons")
there.transform("polygons_to_masks")
after = {item.id: sum(int(one.image.sum()) for one in item.annotations) for item in there}
print("masks_to_polygons and polygons_to_masks:", after)
dataset().export("coco", "coco_instances", segmentation_mode="polygons", save_media=True)
(file,) = Path("coco/annotations").glob("*.json")
coco = COCO(str(file))
names = {entry["id"]: Path(entry["file_name"]).stem for entry in coco.dataset["images"]}
drawn = {names[one["image_id"]]: int(coco.annToMask(one).sum()) for one in coco.dataset["annotations"]}
print("COCO, segmentation_mode=polygons, drawn by pycocotools:", drawn)
assert (int(square.sum()), int(ring.sum())) == (100, 880)
assert after == drawn == {"square": 81, "ring": 1131}
print("as described")
PY
