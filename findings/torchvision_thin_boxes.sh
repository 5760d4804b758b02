#!/usr/bin/env bash
# Expected: boxes of masks_to_boxes fit box_area and box_iou of the same library. Seen: the boxes end at the last pixel of a mask, the areas are counted as if they ended behind it, so that each box is one pixel too narrow and too low.
# For a user: an object one pixel wide has an area of 0, and its IoU with itself is not a number; small objects have too low IoUs with boxes of COCO's convention (3 x 3 pixels: 0.44). Add 1 to the last two numbers of each box.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'torch==2.15.0' 'torchvision==0.29.2' 'numpy==2.4.6' 'pycocotools==2.0.11'
cd "$venv"
"$venv/bin/python" -W ignore - <<'PY'
import numpy as np
import torch
import torchvision
from pycocotools import mask as coco
from torchvision.ops import box_area, box_convert, box_iou, masks_to_boxes

print("torchvision", torchvision.__version__)
for height, width in ((3, 1), (3, 3), (20, 20)):
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, 4 : 4 + height, 6 : 6 + width] = True
    boxes = masks_to_boxes(mask)
    x, y, w, h = coco.toBbox(coco.encode(np.asfortranarray(mask[0].numpy().astype(np.uint8))))
    theirs = box_convert(torch.tensor([[x, y, w, h]], dtype=torch.float32), "xywh", "xyxy")
    with_itself, with_coco = float(box_iou(boxes, boxes)), float(box_iou(boxes, theirs))
    print(f"{width} x {height} pixels: area {float(box_area(boxes)):g}, IoU with itself {with_itself:.2f}, with pycocotools' box {with_coco:.2f}")
    assert float(box_area(boxes)) == (height - 1) * (width - 1)
    assert np.isclose(with_coco, (height - 1) * (width - 1) / (height * width))
    assert np.isnan(with_itself) == (width == 1)
    assert float(box_iou(boxes + torch.tensor([0, 0, 1, 1]), theirs)) == 1
print("as described")
PY
