"""LightlyTrain reads what we export for it, as its data set class for semantic segmentation does, without resizing or augmentation.

python trip_lightly_train.py EXPORT MASKS
"""

import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from lightly_train import __version__
from lightly_train._data.file_helpers import ImageMode
from lightly_train._data.mask_semantic_segmentation_dataset import (
    MaskSemanticSegmentationDataArgs,
    MaskSemanticSegmentationDataset,
)
from PIL import Image

export, masks = map(Path, sys.argv[1:])
names = yaml.safe_load((export / "data.yaml").read_text())["names"]
split = {"images": export / "images/train", "masks": export / "masks/train"}
# as in `lightly_train.train_semantic_segmentation(data=...)`
data = MaskSemanticSegmentationDataArgs(train=split, val=split, classes=names)
args = data.get_train_args()
images = MaskSemanticSegmentationDataset(args, list(args.list_image_info()))
images.image_mode = ImageMode.RGB
images._transform = lambda item: {name: torch.from_numpy(np.array(array)) for name, array in item.items()}
for index, row in enumerate(images.image_info):
    item = images[index]
    name = Path(row["mask_filepaths"]).relative_to(split["masks"])
    truth = np.asarray(Image.open(masks / name)).astype(np.int64)
    seen = item["mask"].numpy()
    np.testing.assert_array_equal(np.where(seen == data.ignore_index, 255, seen), truth, err_msg=str(name))
    assert item["image"].shape[:2] == truth.shape
count = len(list(masks.rglob("*.png")))
assert len(images) == count
print(f"LightlyTrain {__version__} reads {count} masks as they are")
