#!/usr/bin/env bash
# Expected: the mask generation of transformers asks SAM 2 about points all over a picture, as it does with SAM. Seen: its grid of points is scaled with the picture's aspect ratio, which is SAM's resizing; SAM 2's processor stretches the picture to a square.
# For a user: pipeline("mask-generation") with SAM 2 puts no point on the lower part of a wide picture (the lower 30 % at 70 x 50 pixels) or on the right part of a tall one, and finds no small objects there; crop pictures to squares, or make the points yourself.
set -euo pipefail
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"${PYTHON:-python3.11}" -m venv "$venv"
"$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check 'transformers==5.23.0' 'torch==2.15.0' 'torchvision==0.29.2' 'numpy==2.4.6' 'pillow==13.0.0'
cd "$venv"
"$venv/bin/python" -W ignore - <<'PY'
import inspect

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import Sam2ImageProcessor, SamImageProcessor
from transformers.pipelines.mask_generation import MaskGenerationPipeline

print("transformers", transformers.__version__, "torch", torch.__version__)
# the pipeline takes its points from this method of the processor
assert "generate_crop_boxes" in inspect.getsource(MaskGenerationPipeline.preprocess)
for width, height in ((70, 70), (70, 50), (50, 70)):
    picture = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    for processor in (SamImageProcessor(), Sam2ImageProcessor()):
        side = processor.size["longest_edge"] or processor.size["height"]
        points = processor.generate_crop_boxes(picture, side)[1].reshape(-1, 2)
        # the part of the network's input that the picture fills, as shares of width and height
        if isinstance(processor, SamImageProcessor):
            fills = np.array([width, height]) / max(width, height)
        else:
            fills = np.ones(2)
            assert processor(picture, return_tensors="pt")["pixel_values"].shape[2:] == (side, side)
        farthest = points.max(0).values.numpy() / side / fills
        print(f"{type(processor).__name__}, {width} x {height}: points reach {farthest[0]:.0%} of the width, {farthest[1]:.0%} of the height")
        expected = np.ones(2) if isinstance(processor, SamImageProcessor) else np.array([width, height]) / max(width, height)
        assert np.abs(farthest - expected).max() < 0.02
print("as described")
PY
