"""labelme: every kind of shape, flags, `__ignore__`, and the label images that labelme itself draws."""

import base64
import io

import labelme
import numpy as np
from labelme import _label_file, utils
from pictures import SIZE, folder, save
from PIL import Image

SHAPES = {
    "kinds": [
        ("cat", "polygon", [[2.2, 2.7], [12.9, 3.1], [10.4, 11.6]]),
        ("dog", "rectangle", [[20.6, 12.2], [14.1, 5.3]]),
        ("cat", "circle", [[24, 8], [27.3, 9.1]]),
        ("dog", "line", [[2, 20], [14.5, 16.2]]),
        ("bird", "linestrip", [[20, 22], [24, 15], [30, 21]]),
        ("cat", "point", [[16.4, 18.8]]),
        ("dog", "oriented_rectangle", [[25, 1], [30, 4], [29, 7], [23, 3]]),
    ],
    "over": [
        ("cat", "rectangle", [[1, 1], [20, 20]]),
        ("_background_", "rectangle", [[4, 4], [9, 9]]),
        ("__ignore__", "polygon", [[10, 10], [15, 10], [15, 15], [10, 15]]),
        ("dog", "mask", [[12, 2], [17, 6]]),
    ],
    "none": [],
}
VALUES = {"_background_": 0, "bird": 1, "cat": 2, "dog": 3, "__ignore__": 255}

root = folder("labelme", labelme.__version__)
patch = np.zeros((5, 6), bool)
patch[1:4, 2:5] = True
stream = io.BytesIO()
Image.fromarray(patch.astype(np.uint8) * 255).save(stream, "PNG")
for seed, (name, shapes) in enumerate(SHAPES.items()):
    save(root / "drawn" / f"{name}.png", seed)
    entries = [
        {
            "label": label,
            "points": points,
            "group_id": None,
            "description": "",
            "shape_type": kind,
            "flags": {"truncated": True},
            "mask": base64.b64encode(stream.getvalue()).decode() if kind == "mask" else None,
        }
        for label, kind, points in shapes
    ]
    json_file = root / "drawn" / f"{name}.json"
    _label_file.write_label_file(
        str(json_file), shapes=entries, image_path=f"{name}.png", image_height=SIZE[0], image_width=SIZE[1]
    )
    read = _label_file.read_label_file(str(json_file))
    label, _ = utils.shapes_to_label(SIZE, read.shapes, VALUES)
    np.save(root / f"{name}.npy", label.astype(np.uint8))
for seed, (name, flags) in enumerate(
    {"a": {"cat": True, "dog": False}, "b": {"cat": True, "dog": True}, "c": {"cat": False, "dog": False}}.items()
):
    save(root / "flags" / f"{name}.jpg", seed)
    _label_file.write_label_file(
        str(root / "flags" / f"{name}.json"),
        shapes=[],
        image_path=f"{name}.jpg",
        image_height=SIZE[0],
        image_width=SIZE[1],
        flags=flags,
    )
