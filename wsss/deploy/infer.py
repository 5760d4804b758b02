"""Masks from pictures with model.onnx: python infer.py PICTURE ... (needs only numpy, onnxruntime and pillow)."""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("pictures", nargs="+", type=Path)
arguments.add_argument("--out", type=Path, default=Path("masks"), help="folder for the masks, PNG files with a palette")
arguments.add_argument("--model", type=Path, default=Path(__file__).with_name("model.onnx"))
options = arguments.parse_args()

session = onnxruntime.InferenceSession(str(options.model), providers=["CPUExecutionProvider"])
config = json.loads(session.get_modelmeta().custom_metadata_map["wsss"])
names, palette = ["background", *config["classes"]], np.array(config["palette"], np.uint8)
options.out.mkdir(parents=True, exist_ok=True)
for path in options.pictures:
    with Image.open(path) as opened:
        if opened.mode.startswith(("I", "F")):
            raise SystemExit(f"{path}: a picture with more than 8 bits; this program reads 8-bit pictures")
        picture = np.array(opened.convert("RGB"))  # rows x columns x RGB, 0 to 255
    labels, confidence = session.run(["labels", "confidence"], {"picture": picture[None]})
    mask = Image.fromarray(labels[0])
    mask.putpalette(palette.tobytes())
    mask.save(options.out / f"{path.stem}.png")
    shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    found = ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares) if share)
    print(f"{path}: {found}; mean confidence {confidence.mean():.2f}")
