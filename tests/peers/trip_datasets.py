"""datasets loads what we export as an imagefolder and as a saved Dataset; the masks that it gives are written into another imagefolder.

python trip_datasets.py EXPORT MASKS OUT
"""

import csv
import os
import sys
import tempfile
from pathlib import Path

scratch = tempfile.TemporaryDirectory()
os.environ |= {"HF_HOME": scratch.name, "HF_DATASETS_OFFLINE": "1"}

import datasets  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

export, masks, out = map(Path, sys.argv[1:])
splits = datasets.load_dataset(str(export))
assert list(splits) == ["train"], splits
loaded = splits["train"]
assert {"image", "mask", "tags"} == set(loaded.column_names), loaded.column_names
with (export / "train/metadata.csv").open(encoding="utf-8", newline="") as stream:
    rows = list(csv.DictReader(stream))
assert len(loaded) == len(rows) == len(list(masks.rglob("*.png")))
(out / "train").mkdir(parents=True)
for row, each in zip(rows, loaded, strict=True):
    name = row["mask_file_name"].removeprefix("masks/")
    mask, truth = np.asarray(each["mask"]), np.asarray(Image.open(masks / name))
    np.testing.assert_array_equal(mask, truth, err_msg=name)
    assert each["image"].size == each["mask"].size
    assert (each["tags"] or "") == row["tags"]
    again = out / "train/masks" / name
    again.parent.mkdir(parents=True, exist_ok=True)
    each["mask"].save(again)
(out / "train/metadata.csv").write_text((export / "train/metadata.csv").read_text(encoding="utf-8"), encoding="utf-8")
scratch.cleanup()
print(f"datasets loads {len(rows)} masks as they are")
