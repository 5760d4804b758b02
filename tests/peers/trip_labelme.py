"""labelme opens what we export, draws it, and saves it again, without a person.

python trip_labelme.py EXPORT MASKS OUT
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

os.environ["QT_QPA_PLATFORM"] = "offscreen"
from labelme import _label_file, utils

export, masks, out = map(Path, sys.argv[1:])
names = (export / "labels.txt").read_text(encoding="utf-8").splitlines()
assert names[:2] == ["__ignore__", "_background_"]
values = {name: at - 1 for at, name in enumerate(names)} | {"__ignore__": 255}
count = 0
for path in sorted(export.rglob("*.json")):
    if path.name == "wsss-export.json":
        continue
    name = path.relative_to(export).with_suffix("")
    read = _label_file.read_label_file(str(path))
    truth = np.asarray(Image.open(masks / f"{name}.png"))
    drawn, _ = utils.shapes_to_label(truth.shape, read.shapes, values)
    np.testing.assert_array_equal(drawn, truth, err_msg=str(name))
    again = out / f"{name}.json"
    again.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path.with_suffix(".png"), again.with_suffix(".png"))
    shapes = [
        {**shape, "mask": None if shape["mask"] is None else utils.img_arr_to_b64(shape["mask"])}
        for shape in read.shapes
    ]
    for shape in shapes:
        shape.pop("other_data")
    _label_file.write_label_file(
        str(again), shapes=shapes, image_path=read.image_path, image_height=truth.shape[0], image_width=truth.shape[1]
    )
    count += 1
print(f"labelme draws {count} masks as they are")
