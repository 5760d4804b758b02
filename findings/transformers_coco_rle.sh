#!/usr/bin/env bash
# Expected: Mask2Former's instances with return_coco_annotation are COCO run lengths, one for each entry of segments_info. Seen: they are pairs of start and length row by row, and the first of them is the area without any instance.
# For a user: segmentation[0] does not belong to segments_info[0], and pycocotools refuses the lists or would read another mask; ask for return_binary_maps and encode the maps with pycocotools.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'transformers==5.23.0' 'torch==2.15.0' 'torchvision==0.29.2' 'numpy==2.4.6' 'pillow==13.0.0' 'pycocotools==2.0.11'
cd "$venv"
"$venv/bin/python" -W ignore - <<'PY'
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from pycocotools import mask as coco
from transformers import Mask2FormerImageProcessor

print("transformers", transformers.__version__)
# what a network would give for one instance of class 1: a rectangle
queries = torch.tensor([[[-10.0, 10.0, -10.0]]])
masks = torch.full((1, 1, 96, 96), -10.0)
masks[0, 0, 16:48, 32:80] = 10
outputs = SimpleNamespace(class_queries_logits=queries, masks_queries_logits=masks)
processor = Mask2FormerImageProcessor()
size = (96, 96)
annotated = processor.post_process_instance_segmentation(outputs, target_sizes=[size], return_coco_annotation=True)[0]
maps = processor.post_process_instance_segmentation(outputs, target_sizes=[size], return_binary_maps=True)[0]
truth = maps["segmentation"][0].numpy() > 0
runs = annotated["segmentation"]
print(len(annotated["segments_info"]), "instance,", len(runs), "run-length lists")
assert len(annotated["segments_info"]) == 1 and len(runs) == 2


def painted(pairs):
    flat = np.zeros(truth.size, bool)
    for start, length in zip(pairs[::2], pairs[1::2]):
        flat[start - 1 : start - 1 + length] = True
    return flat.reshape(truth.shape)


first, second = painted(runs[0]), painted(runs[1])
print("the first list, as pairs of start and length by rows, covers", int(first.sum()), "pixels, the second", int(second.sum()), "; the instance has", int(truth.sum()))
assert (first == ~truth).all() and (second == truth).all()
try:
    read = coco.decode(coco.frPyObjects({"counts": runs[1], "size": list(size)}, *size)) > 0
    print("pycocotools reads a mask of", int(read.sum()), "pixels")
    assert not (read == truth).all()
except ValueError as error:
    print("pycocotools:", error)
right = coco.decode(coco.encode(np.asfortranarray(truth.astype(np.uint8)))) > 0
assert (right == truth).all()
print("as described")
PY
