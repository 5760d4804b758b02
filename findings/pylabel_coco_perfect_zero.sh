#!/usr/bin/env bash
# Expected: a COCO file that pylabel reads and writes scores as before. Seen: it numbers the objects anew from 0, and pycocotools takes a match with the id 0 for none, so a perfect detection of that object counts as a miss.
# For a user: after a trip through pylabel the first object of a data set can never be found, whatever the model; in small validation sets scores drop by whole points. Add 1 to every annotation id.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'pylabel==0.1.55' 'pycocotools==2.0.11' 'pandas==3.1.1' 'opencv-python==4.14.0.94' 'scikit-learn==1.9.1' 'pillow==13.0.0' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
import contextlib
import io
import json
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pylabel import importer

print("pylabel", version("pylabel"), "pycocotools", version("pycocotools"))
boxes = {1: [5, 5, 40, 40], 2: [10, 10, 50, 50]}
for number in boxes:
    Image.new("RGB", (100, 100)).save(f"{number}.png")
data = {
    "images": [{"id": k, "file_name": f"{k}.png", "width": 100, "height": 100} for k in boxes],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": k, "image_id": k, "category_id": 1, "iscrowd": 0, "area": box[2] * box[3], "bbox": box, "segmentation": []}
        for k, box in boxes.items()
    ],
}
Path("before.json").write_text(json.dumps(data))
importer.ImportCoco("before.json", path_to_images=".", name="cats").export.ExportToCoco(output_path="after.json")
found = [{"image_id": k, "category_id": 1, "score": 0.9, "bbox": box} for k, box in boxes.items()]
recall = {}
for name in ("before", "after"):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(f"{name}.json")
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    recall[name] = float(evaluation.stats[8])
    same = [truth.anns[k]["bbox"] for k in truth.getAnnIds()] == list(boxes.values())
    print(f"{name}: ids {truth.getAnnIds()}, boxes as before {same}, AR of perfect boxes {recall[name]:.2f}, AP {evaluation.stats[0]:.2f}")
    assert same
assert recall == {"before": 1.0, "after": 0.5}, recall
print("as described")
PY
