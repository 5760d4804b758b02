#!/usr/bin/env bash
# Expected: convert_coco numbers the classes of a COCO file from 0 in the order of its categories. Seen: the number is the category's id minus 1, so that an id of 0 becomes class -1 and gaps between ids remain.
# For a user: ids of your own COCO file must be 1, 2, 3, .. without gaps; otherwise pictures with class -1 are left out of the training as damaged, and class numbers do not fit the names.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'ultralytics==8.4.190' 'torch==2.15.0' 'torchvision==0.29.2' 'numpy==2.4.6'
cd "$venv"
export YOLO_CONFIG_DIR="$venv" YOLO_VERBOSE=false
"$venv/bin/python" -W ignore - <<'PY'
import json
from pathlib import Path

import ultralytics
from PIL import Image
from ultralytics.data.converter import convert_coco
from ultralytics.data.utils import verify_image_label

print("ultralytics", ultralytics.__version__)
Path("ann").mkdir()
Image.new("RGB", (100, 100)).save("a.jpg")
square = [10, 10, 30, 10, 30, 30, 10, 30]
objects = [
    {"id": n + 1, "image_id": 1, "category_id": category, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [square]}
    for n, category in enumerate((0, 7))
]
content = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 100, "width": 100}],
    "categories": [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": objects,
}
Path("ann/instances_mine.json").write_text(json.dumps(content))
convert_coco("ann", save_dir="out", use_segments=True, cls91to80=False)
(label,) = Path("out").rglob("a.txt")
numbers = [int(line.split()[0]) for line in label.read_text().splitlines()]
print("categories 0 (cat) and 7 (dog) became classes", numbers)
assert numbers == [-1, 6]
# what the training makes of such a picture
found = verify_image_label(("a.jpg", str(label), "", False, 8, 0, 0, False))
print("found by the training:", found[-1])
assert found[0] is None and found[-2] == 1
print("as described")
PY
