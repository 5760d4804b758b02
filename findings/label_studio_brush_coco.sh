#!/usr/bin/env bash
# Expected: one labelling set-up gives one numbering of classes. Seen: Label Studio's BRUSH_TO_COCO numbers classes by their first appearance in the file, its YOLO and COCO exports alphabetically from 0.
# For a user: train and val exported apart give dog and cat each other's number, so a perfect model scores 0 and merged files mix the two; match classes by name, never by id.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'label-studio-sdk==2.1.2' 'opencv-python-headless==4.12.0.88' 'pillow==13.0.0' 'numpy==2.2.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from label_studio_sdk.converter import Converter, brush
from PIL import Image

print("label-studio-sdk", version("label-studio-sdk"))
labels = "".join(f'<Label value="{name}"/>' for name in ("cat", "dog", "bird"))
interface = f'<View><Image name="i" value="$image"/><BrushLabels name="t" toName="i">{labels}</BrushLabels></View>'
Image.new("RGB", (16, 16)).save("a.png")
drawing = np.zeros((16, 16), np.uint8)
drawing[4:12, 4:12] = 255


def task(number, name):
    value = {"format": "rle", "rle": brush.mask2rle(drawing), "brushlabels": [name]}
    size = {"original_width": 16, "original_height": 16, "image_rotation": 0}
    region = {"id": name, "type": "brushlabels", "from_name": "t", "to_name": "i", "value": value} | size
    return {"id": number, "data": {"image": "a.png"}, "annotations": [{"id": number, "completed_by": 1, "result": [region]}]}


ids = {}
for split, names in (("train", ["dog", "cat"]), ("val", ["cat", "dog"])):
    Path(f"{split}.json").write_text(json.dumps([task(k, name) for k, name in enumerate(names, 1)]))
    for kind, file in (("BRUSH_TO_COCO", "result_coco.json"), ("COCO", "result.json"), ("YOLO", "notes.json")):
        folder = f"{split}_{kind}"
        Converter(interface, ".", download_resources=False).convert(f"{split}.json", folder, kind, is_dir=False)
        found = json.loads(Path(folder, file).read_text())["categories"]
        ids[split, kind] = {entry["name"]: entry["id"] for entry in found}
        print(split, kind, ids[split, kind])
assert ids["train", "BRUSH_TO_COCO"] == {"dog": 1, "cat": 2}
assert ids["val", "BRUSH_TO_COCO"] == {"cat": 1, "dog": 2}
for split in ("train", "val"):
    assert ids[split, "COCO"] == ids[split, "YOLO"] == {"bird": 0, "cat": 1, "dog": 2}
print("as described")
PY
