#!/usr/bin/env bash
# Expected: a decoder of WebDataset for one-channel pictures gives the numbers of a palette label image. Seen: 'pil' gives colours, 'l8' and 'pill' their luminance: in VOC's palette class 1 is 38 and void 220.
# For a user: VOC masks in a shard are uint8, of the right size, with the right number of regions and the wrong classes; decode the bytes yourself, or store the numbers without a palette.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'webdataset==1.0.2' 'pillow==13.0.0' 'numpy==2.4.6'
cd "$venv"
"$venv/bin/python" - <<'PY'
import io
from importlib.metadata import version

import numpy as np
import webdataset
from PIL import Image

print("webdataset", version("webdataset"), "Pillow", version("pillow"), "numpy", np.__version__)
labels = np.array([[0, 1, 15, 20, 255]], np.uint8)


def colour(number):  # VOC's palette: the bits of the number go to red, green and blue in turn, the highest first
    return [sum((number >> (3 * k + band) & 1) << (7 - k) for k in range(8)) for band in range(3)]


encoded = {}
for name in ("palette", "grey"):
    picture = Image.fromarray(labels)
    if name == "palette":
        picture.putpalette([value for number in range(256) for value in colour(number)])
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    assert np.array_equal(np.array(Image.open(io.BytesIO(stream.getvalue()))), labels)
    encoded[name] = stream.getvalue()
with webdataset.TarWriter("shard.tar") as shard:
    for name, data in encoded.items():
        shard.write({"__key__": name, "png": data})
read = {}
for decoder in ("pil", "l8", "pill"):
    for sample in webdataset.WebDataset("shard.tar", shardshuffle=False).decode(decoder):
        read[decoder, sample["__key__"]] = np.asarray(sample["png"])
        print(decoder, sample["__key__"], read[decoder, sample["__key__"]].tolist())
assert read["pil", "palette"].shape == (1, 5, 3)
for decoder in ("l8", "pill"):
    assert np.array_equal(read[decoder, "grey"], labels)
    assert read[decoder, "palette"].tolist() == [[0, 38, 147, 52, 220]]
print("as described")
PY
