"""label-studio-sdk decodes what we export for Label Studio, and the tasks come back as submitted annotations in both JSON exports.

python trip_label_studio_sdk.py EXPORT MASKS OUT
"""

import json
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
from label_studio_sdk.converter import Converter, brush
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

export, masks, out = map(Path, sys.argv[1:])
config = (export / "config.xml").read_text(encoding="utf-8")
interface = LabelInterface(config)
names = ["background", *interface.get_control("label").labels]
tasks = json.loads((export / "tasks.json").read_text(encoding="utf-8"))
for number, task in enumerate(tasks, 1):
    # validate_task fails on any task with predictions: it calls this without its argument
    assert not interface.validate_prediction(task["predictions"][0], return_errors=True)
    name = parse_qs(urlsplit(task["data"]["image"]).query)["d"][0].split("/images/", 1)[1].removesuffix(".png")
    truth = np.asarray(Image.open(masks / f"{name}.png"))
    drawn = np.zeros_like(truth)
    (prediction,) = task["predictions"]
    for region in prediction["result"]:
        values = brush.decode_rle(region["value"]["rle"])
        assert set(np.unique(values).tolist()) <= {0, 255}
        channels = values.reshape(region["original_height"], region["original_width"], 4)
        (label,) = region["value"]["brushlabels"]
        assert (channels == channels[..., :1]).all()
        drawn[channels[..., 3] == 255] = names.index(label)
        # as the tool itself packs the same stroke
        region["value"]["rle"] = brush.mask2rle(channels[..., 0])
    np.testing.assert_array_equal(drawn, truth, err_msg=name)
    task["id"] = number
    task["annotations"] = [
        {
            "id": number,
            "completed_by": 1,
            "was_cancelled": False,
            "result": prediction["result"],
            "lead_time": 1.0,
            "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z",
        }
    ]
out.mkdir(parents=True)
(out / "tasks.json").write_text(json.dumps(tasks))
Converter(config, str(out), download_resources=False).convert_to_json_min(
    str(out / "tasks.json"), str(out / "min"), is_dir=False
)
print(f"label-studio-sdk decodes {len(tasks)} masks as they are")
