"""Datumaro in place of a person at CVAT: the named pictures get their true masks, the others are left out, and the task is exported again.

python edit_datumaro.py EXPORT TRUTH OUT NAME ...
"""

import sys
from pathlib import Path

import numpy as np
from datumaro.components.annotation import Mask
from datumaro.components.dataset import Dataset
from PIL import Image

export, truth, out = map(Path, sys.argv[1:4])
data = Dataset.import_from(str(export), "cvat")
kept = []
for item in data:
    if item.id in sys.argv[4:]:
        mask = np.asarray(Image.open(truth / f"{item.id}.png"))
        kept.append(item.wrap(annotations=[Mask(mask == at, label=at - 1) for at in np.unique(mask) if 0 < at < 255]))
assert len(kept) == len(sys.argv) - 4
Dataset.from_iterable(kept, categories=data.categories()).export(str(out), "cvat", save_media=True)
