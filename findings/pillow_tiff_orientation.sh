#!/usr/bin/env bash
# Expected: a picture is the same whether Pillow opens its path or its bytes. Seen: an uncompressed grey TIFF with orientation 6 or 8 comes out scrambled and unturned by path, right from bytes or when compressed.
# For a user: scans and microscope pictures with that tag are trained on as noise, of the size that the file states, and no error is raised (square ones are right); open them from bytes, or store them compressed.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'pillow==13.0.0' 'numpy==2.4.6' 'tifffile==2026.3.3'
cd "$venv"
"$venv/bin/python" - <<'PY'
import io
from pathlib import Path

import numpy as np
import PIL
import tifffile
from PIL import Image

print("Pillow", PIL.__version__, "tifffile", tifffile.__version__)
picture = np.arange(24, dtype=np.uint8).reshape(6, 4)
turned = {6: np.rot90(picture, -1), 8: np.rot90(picture)}
for orientation, right in turned.items():
    for compression in (None, "zlib"):
        tag = [(274, "H", 1, orientation, True)]
        tifffile.imwrite("scan.tif", picture, photometric="minisblack", compression=compression, extratags=tag, metadata=None)
        by_path = np.array(Image.open("scan.tif"))
        from_bytes = np.array(Image.open(io.BytesIO(Path("scan.tif").read_bytes())))
        same = [bool(np.array_equal(found, right)) for found in (by_path, from_bytes)]
        print(f"orientation {orientation}, compression {compression}: by path right {same[0]}, from bytes right {same[1]}")
        assert same == [compression is not None, True]
        if compression is None:
            print("by path, first row:", by_path[0], "  right:", right[0])
            assert by_path.shape == picture.shape and not np.array_equal(by_path, picture)
            assert np.array_equal(np.sort(by_path, axis=None), np.sort(picture, axis=None)), "other pixels"
print("as described")
PY
