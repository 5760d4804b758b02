"""label-studio-sdk in place of a person at Label Studio: the named pictures get their true masks as annotations; nobody looks at the others.

python edit_label_studio_sdk.py EXPORT TRUTH OUT NAME ...
"""

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter import brush
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

export, truth, out = map(Path, sys.argv[1:4])
labels = list(LabelInterface((export / "config.xml").read_text(encoding="utf-8")).get_control("label").labels)
tasks = json.loads((export / "tasks.json").read_text(encoding="utf-8"))
for number, task in enumerate(tasks, 1):
    name = task["data"]["image"].split("/images/", 1)[1].rpartition(".")[0]
    task |= {"id": number, "annotations": []}
    if name in sys.argv[4:]:
        mask = np.asarray(Image.open(truth / f"{name}.png"))
        template = {
            "from_name": "label",
            "to_name": "image",
            "type": "brushlabels",
            "original_width": mask.shape[1],
            "original_height": mask.shape[0],
            "image_rotation": 0,
        }
        result = []
        for at in np.unique(mask):
            if 0 < at < 255:
                rle = brush.mask2rle((mask == at).astype(np.uint8) * 255)
                value = {"format": "rle", "rle": rle, "brushlabels": [labels[at - 1]]}
                result.append(template | {"id": f"{number}-{at}", "value": value})
        task["annotations"] = [{"id": number, "completed_by": 1, "was_cancelled": False, "result": result}]
out.mkdir(parents=True)
(out / "project.json").write_text(json.dumps(tasks))
