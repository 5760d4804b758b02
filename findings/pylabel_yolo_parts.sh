#!/usr/bin/env bash
# Expected: an object of two polygons becomes two YOLO lines or one joined outline, its class a line of dataset.yaml. Seen: pylabel writes the first polygon alone, and the COCO id 7 where the list has one name, number 0.
# For a user: occluded objects lose all parts but one and are learned as background; the class numbers of any COCO file whose ids are not 0, 1, 2... point past the list of names.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'pylabel==0.1.55' 'pandas==3.1.1' 'opencv-python==4.14.0.94' 'scikit-learn==1.9.1' 'pyyaml==6.0.4' 'pillow==13.0.0' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
import json
from importlib.metadata import version
from pathlib import Path

import yaml
from PIL import Image
from pylabel import importer

print("pylabel", version("pylabel"), "pandas", version("pandas"))
Image.new("RGB", (100, 100)).save("a.png")
parts = [[5, 5, 15, 5, 15, 15, 5, 15], [60, 60, 90, 60, 90, 90, 60, 90]]
row = {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 0, "area": 1000, "bbox": [5, 5, 85, 85], "segmentation": parts}
data = {
    "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": [row],
}
Path("coco.json").write_text(json.dumps(data))
dataset = importer.ImportCoco("coco.json", path_to_images=".", name="two parts")
dataset.export.ExportToYoloV5(output_path="yolo/labels", segmentation=True)
lines = Path("yolo/labels/a.txt").read_text().split("\n")
number, *outline = (float(word) for line in lines for word in line.split())
names = yaml.safe_load(Path("yolo/dataset.yaml").read_text())["names"]
print("a.txt:", [line for line in lines if line], " names:", names)
assert [round(100 * value, 3) for value in outline] == parts[0], outline
assert names == ["dog"] and number == 7
print("as described")
PY
