#!/usr/bin/env bash
# Expected: asking for pictures of a misspelt class gives none, of two classes those with either. Seen: getCatIds gives [] for it, getImgIds(catIds=[]) every picture; for two classes only pictures with both.
# For a user: one wrong letter tags the whole data set with a class; and a single text instead of a list is searched for each class name within it, so 'carrot' finds car as well.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'pycocotools==2.0.11' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
from importlib.metadata import version

from pycocotools.coco import COCO

print("pycocotools", version("pycocotools"))
present = {1: ["car"], 2: ["carrot"], 3: ["car", "carrot"], 4: []}
ids = {"car": 1, "carrot": 2}
coco = COCO()
objects = [(picture, ids[name]) for picture, names in present.items() for name in names]
coco.dataset = {
    "images": [{"id": picture, "file_name": f"{picture}.jpg", "width": 9, "height": 9} for picture in present],
    "categories": [{"id": number, "name": name, "supercategory": "thing"} for name, number in ids.items()],
    "annotations": [
        {"id": k, "image_id": picture, "category_id": number, "bbox": [0, 0, 3, 3], "area": 9, "iscrowd": 0}
        for k, (picture, number) in enumerate(objects, 1)
    ],
}
coco.createIndex()


def pictures(names):
    return sorted(coco.getImgIds(catIds=coco.getCatIds(catNms=names)))


for names in (["car"], ["carot"], ["car", "carrot"], "carrot", "car"):
    print(f"{names!r}: classes {coco.getCatIds(catNms=names)}, pictures {pictures(names)}")
assert pictures(["car"]) == [1, 3]
assert pictures(["carot"]) == [1, 2, 3, 4], "a misspelt class"
assert pictures(["car", "carrot"]) == [3], "either class"
assert coco.getCatIds(catNms="carrot") == [1, 2] and pictures("carrot") == [3], "a text"
assert coco.getAnnIds(imgIds=[]) == [1, 2, 3, 4], "annotations of no picture"
print("as described")
PY
