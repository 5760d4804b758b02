"""Ultralytics checks and loads what we export for it, draws or reads the masks, and writes them again with its own converter.

python trip_ultralytics.py EXPORT MASKS OUT segment|semantic
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

# before the import, which reads them: nothing is fetched, and no settings are left behind
scratch = tempfile.TemporaryDirectory()
os.environ |= {"YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": scratch.name}

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.data.build import build_yolo_dataset  # noqa: E402
from ultralytics.data.converter import convert_segment_masks_to_yolo_seg  # noqa: E402
from ultralytics.data.utils import check_det_dataset, polygons2masks_overlap  # noqa: E402

export, masks, out = map(Path, sys.argv[1:4])
task = sys.argv[4]
data = check_det_dataset(str(export / "data.yaml"), autodownload=False)
images = build_yolo_dataset(get_cfg(overrides={"task": task}), data["train"], 1, data, mode="val")
count = 0
for index, label in enumerate(images.labels):
    name = Path(label["im_file"]).relative_to(Path(data["train"])).with_suffix("")
    truth = np.asarray(Image.open(masks / f"{name}.png"))
    place = out / "labels/train" / f"{name}.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    if task == "segment":
        drawn = np.zeros_like(truth)
        if label["segments"]:
            height, width = truth.shape
            polygons = [(segment * (width, height)).ravel() for segment in label["segments"]]
            numbers, order = polygons2masks_overlap(truth.shape, polygons)
            classes = np.array([0, *(label["cls"].ravel()[order] + 1)], np.uint8)
            drawn = classes[numbers]
        assert (cv2.imread(label["im_file"]).shape[:2]) == truth.shape
        Image.fromarray(drawn).save(place)  # for the converter
    else:
        drawn = images.load_mask(index, truth.shape)
        again = out / "masks/train" / f"{name}.png"
        again.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.astype(np.uint8)).save(again)
    np.testing.assert_array_equal(drawn, truth, err_msg=str(name))
    count += 1
# Ultralytics leaves out pictures with a side of less than 10 pixels
large = [path for path in masks.rglob("*.png") if min(Image.open(path).size) >= 10]
assert count == len(large)
if task == "segment":
    for folder in {path.parent for path in (out / "labels").rglob("*.png")}:
        convert_segment_masks_to_yolo_seg(str(folder), str(folder), classes=len(data["names"]))
    for path in list((out / "labels").rglob("*.png")):
        path.unlink()
else:
    shutil.rmtree(out / "labels")
shutil.copy(export / "data.yaml", out / "data.yaml")
scratch.cleanup()
print(f"ultralytics reads {count} masks as they are")
