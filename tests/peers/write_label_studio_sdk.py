"""label-studio-sdk: choices as JSON-MIN and CSV, brush and polygons as COCO, by the converter that Label Studio exports with."""

import json
from importlib.metadata import version

from label_studio_sdk.converter import Converter
from pictures import SIZE, folder, save

root = folder("label_studio_sdk", version("label-studio-sdk"))
CHOICES = """<View><Image name="image" value="$image"/><Choices name="choice" toName="image" choice="multiple">
<Choice value="cat"/><Choice value="dog"/></Choices></View>"""
POLYGONS = """<View><Image name="image" value="$image"/><PolygonLabels name="label" toName="image">
<Label value="cat"/><Label value="dog"/></PolygonLabels></View>"""


def task(number: int, result: dict) -> dict:
    return {
        "id": number,
        "data": {"image": f"/data/upload/1/0000000{number}-{number}.png"},
        "annotations": [
            {
                "id": 10 + number,
                "completed_by": 1,
                "result": [{"id": "r", "from_name": "choice", "to_name": "image", **result}],
                "was_cancelled": False,
                "lead_time": 1.5,
                "created_at": "2026-01-01T00:00:00Z",
                "updated_at": "2026-01-01T00:00:00Z",
            }
        ],
    }


chosen = [["cat"], ["cat", "dog"], ["dog"]]
tasks = [task(number, {"type": "choices", "value": {"choices": names}}) for number, names in enumerate(chosen)]
source = root / "tasks.json"
source.write_text(json.dumps(tasks))
for form, method in (("json_min", "convert_to_json_min"), ("csv", "convert_to_csv")):
    converter = Converter(config=CHOICES, project_dir=str(root))
    out = root / form
    options = {"sep": ",", "header": True} if form == "csv" else {}
    getattr(converter, method)(str(source), str(out), is_dir=False, **options)
    for number in range(3):
        save(out / f"{number}.png", number)
square = [[5, 4], [15, 4], [15, 12], [5, 12]]
points = [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in square]
drawn = [
    task(
        number,
        {
            "from_name": "label",
            "type": "polygonlabels",
            "original_width": SIZE[1],
            "original_height": SIZE[0],
            "value": {"points": points, "polygonlabels": [name], "closed": True},
        },
    )
    for number, name in enumerate(("dog", "cat", "dog"))
]
for number, one in enumerate(drawn):
    # what the export with pictures has, which needs a server to fetch them from
    one["data"]["image"] = f"images/0000000{number}-{number}.png"
source.write_text(json.dumps(drawn))
for number in range(3):
    save(root / "coco" / "images" / f"0000000{number}-{number}.png", number)
Converter(config=POLYGONS, project_dir=str(root)).convert_to_coco(str(source), str(root / "coco"), is_dir=False)
source.unlink()
