#!/usr/bin/env bash
# Expected: a label image of mode P keeps its numbers in a PNG. Seen: Pillow sizes the PNG's bits by the palette, so numbers beyond a short palette lose their high bits: void, 255, becomes 3, 15 or 1.
# For a user: a data set of up to 16 classes whose palette has no entry for void turns every void pixel into a class; TIFF and BMP keep it, and so does a palette of 256 colours.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'pillow==13.0.0' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
seen = {}
for classes in (2, 4, 11, 16, 17, 256):
    labels = np.array([[0, 1, classes - 1, 255]], np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette([value for k in range(classes) for value in (k, 255 - k, 90)])
    assert picture.mode == "P" and np.array_equal(np.array(picture), labels), "wrong before it was saved"
    for suffix in ("png", "tif", "bmp"):
        picture.save(f"labels.{suffix}")
        seen[classes, suffix] = int(np.array(Image.open(f"labels.{suffix}"))[0, 3])
    print(f"{classes:3} colours: 255 comes back as", {s: seen[classes, s] for s in ("png", "tif", "bmp")})
assert [seen[n, "png"] for n in (2, 4, 11, 16, 17, 256)] == [1, 3, 15, 15, 255, 255], seen
assert all(value == 255 for (_, suffix), value in seen.items() if suffix != "png"), seen
print("as described")
PY
