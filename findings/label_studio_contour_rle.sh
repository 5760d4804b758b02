#!/usr/bin/env bash
# Expected: a contour packed with the picture's width and height is a brush stroke on that contour. Seen: label-studio-sdk's contour2rle draws on a canvas of width rows and height columns, so on pictures that are not square the stroke is torn into pieces elsewhere.
# For a user: pre-annotations made from contours miss the objects, are cut off at the picture's height, and have an opacity of 100 of 255; draw the mask and use mask2rle with 0 and 255.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'label-studio-sdk==2.1.2' 'opencv-python-headless==4.12.0.88' 'pillow==13.0.0' 'numpy==2.2.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
from importlib.metadata import version

import cv2
import numpy as np
from label_studio_sdk.converter import brush

print("label-studio-sdk", version("label-studio-sdk"))


def overlap(height, width):
    """Pixels of an object, of its stroke, and of both, as the SDK itself decodes strokes."""
    mask = np.zeros((height, width), np.uint8)
    mask[5:15, 8:18] = 255
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    stroke = {"type": "brushlabels", "brushlabels": ["cat"], "original_width": width, "original_height": height}
    stroke["rle"] = brush.contour2rle(contours, 0, width, height)
    (alpha,) = brush.decode_from_annotation("label", [stroke]).values()
    assert alpha.shape == (height, width)
    return int((mask > 0).sum()), int((alpha > 0).sum()), int(((mask > 0) & (alpha > 0)).sum()), int(alpha.max())


for size in ((20, 20), (20, 40), (40, 20)):
    print(f"{size[0]} x {size[1]} (height x width): object, stroke, both, opacity: {overlap(*size)}")
assert overlap(20, 20) == (100, 100, 100, 100)
assert overlap(20, 40)[2] < 50
assert overlap(40, 20)[2] < 50
print("as described")
PY
