"""cvat-sdk encodes each class of a mask to the run lengths and the box that stand in our XML of an export with `--per class`, and decodes them.

python trip_cvat_sdk.py EXPORT MASKS
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from cvat_sdk.masks import decode_mask, encode_mask
from PIL import Image

export, masks = map(Path, sys.argv[1:])
root = ElementTree.parse(export / "annotations.xml").getroot()
names = ["background", *(label.findtext("name") for label in root.iter("label"))]
count = 0
for picture in root.iter("image"):
    truth = np.asarray(Image.open(masks / picture.get("name")))
    found = set()
    for mask in picture.iter("mask"):
        label = names.index(mask.get("label"))
        left, top, width, height = (int(mask.get(side)) for side in ("left", "top", "width", "height"))
        points = [*map(int, mask.get("rle").split(",")), left, top, left + width - 1, top + height - 1]
        assert points == encode_mask(truth == label), picture.get("name")
        inside = decode_mask(points, image_width=truth.shape[1], image_height=truth.shape[0])
        np.testing.assert_array_equal(inside, truth == label)
        found.add(label)
        count += 1
    assert found == set(np.unique(truth).tolist()) - {0}
print(f"cvat-sdk encodes {count} masks of classes alike")
