#!/usr/bin/env bash
# Expected: a stand-in for pycocotools stops like it on an annotation without 'area', or measures the mask. Seen: faster-coco-eval takes the area for 0 and scores every such object as small.
# For a user: AP stays right, but AP small of a file by a tool that writes no areas holds all objects, AP medium and large are -1; the same file stops pycocotools with a KeyError.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'faster-coco-eval==1.8.0' 'pycocotools==2.0.11' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
import contextlib
import copy
import io
from importlib.metadata import version

import numpy as np
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

print(*(f"{name} {version(name)}" for name in ("faster-coco-eval", "pycocotools", "numpy")))
square = [[5, 5, 105, 5, 105, 105, 5, 105]]  # 100 x 100 pixels: large
truth = {
    "info": {},
    "images": [{"id": 1, "file_name": "a.jpg", "width": 120, "height": 120}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [5, 5, 100, 100], "segmentation": square}],
}
found = [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [5, 5, 100, 100]}]


def scores(dataset, evaluator, data):
    with contextlib.redirect_stdout(io.StringIO()):
        true = dataset()
        true.dataset = copy.deepcopy(data)
        true.createIndex()
        evaluation = evaluator(true, true.loadRes(copy.deepcopy(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("all", "small", "medium", "large"), np.round(evaluation.stats[[0, 3, 4, 5]], 3).tolist(), strict=True))


without = scores(FasterCOCO, COCOeval_faster, truth)
try:
    pycocotools = scores(COCO, COCOeval, truth)
except KeyError as error:
    pycocotools = f"KeyError {error}"
truth["annotations"][0]["area"] = 10000
with_area = scores(FasterCOCO, COCOeval_faster, truth)
print("no area: faster-coco-eval", without, " pycocotools", pycocotools)
print("area 10000: faster-coco-eval", with_area)
assert without == {"all": 1, "small": 1, "medium": -1, "large": -1} and pycocotools == "KeyError 'area'"
assert with_area == {"all": 1, "small": -1, "medium": -1, "large": 1}
print("as described")
PY
