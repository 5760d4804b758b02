#!/usr/bin/env bash
# Expected: a grey PNG or TIFF of 2 or 4 bits holds the label numbers that GDAL wrote. Seen: GDAL gives 0 1 2 3 back; Pillow, and OpenCV for PNG, stretch them over 0..255, so 1 is 85 and 3 is 255.
# For a user: land-cover masks written with NBITS=2 become classes 85 and 170, and the last class becomes void, 255; no reader says so. Write them with 8 bits.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'rasterio==1.4.4' 'pillow==13.0.0' 'opencv-python-headless==5.0.0.93' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
import cv2
import numpy as np
import PIL
import rasterio
from PIL import Image

print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__, "Pillow", PIL.__version__, "OpenCV", cv2.__version__)
for bits, stretched in ((2, [0, 85, 170, 255]), (4, [0, 17, 34, 51])):
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
    for driver in ("PNG", "GTiff"):
        name = f"labels.{driver.lower()}"
        with rasterio.open(name, "w", driver=driver, width=8, height=8, count=1, dtype="uint8", nbits=bits) as file:
            file.write(labels, 1)
        with rasterio.open(name) as file:
            back = np.unique(file.read(1)).tolist()
        with Image.open(name) as file:
            pillow = np.unique(np.array(file)).tolist()
        print(f"{bits} bits, {driver}: GDAL {back}, Pillow {pillow}")
        assert back == [0, 1, 2, 3] and pillow == stretched
    opencv = np.unique(cv2.imread("labels.png", cv2.IMREAD_UNCHANGED)).tolist()
    print(f"{bits} bits, PNG: OpenCV {opencv}")
    assert opencv == stretched
print("as described")
PY
