"""supervision: masks as COCO and as YOLO."""

import numpy as np
import supervision as sv
from pictures import folder, inside, save

root = folder("supervision", sv.__version__)
paths = [str(save(root / "pictures" / f"{number}.png", number)) for number in range(3)]
detections = {
    path: sv.Detections(
        xyxy=np.array([[5 + number, 4, 14 + number, 11]], float),
        mask=inside(number)[None],
        class_id=np.array([number % 2]),
    )
    for number, path in enumerate(paths)
}
data = sv.DetectionDataset(classes=["cat", "dog"], images=paths, annotations=detections)
data.as_coco(str(root / "coco" / "images"), str(root / "coco" / "annotations.json"))
data.as_yolo(str(root / "yolo" / "images"), str(root / "yolo" / "labels"), str(root / "yolo" / "data.yaml"))
for path in (root / "pictures").iterdir():
    path.unlink()
(root / "pictures").rmdir()
