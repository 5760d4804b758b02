"""Label Studio: what the tasks hold, and annotations in its exports."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tests.peers.masks import CLASSES, masks
from wsss.data.brush import pack_brush
from wsss.errors import BadInput

SIZE = {"original_width": 6, "original_height": 4, "image_rotation": 0}


def stroke(label, inside, **changes):
    value = {"format": "rle", "rle": pack_brush(inside), "brushlabels": [label]}
    return {
        "id": "r",
        "from_name": "label",
        "to_name": "image",
        "type": "brushlabels",
        **SIZE,
        "value": value,
    } | changes


def polygon(label, points, **changes):
    value = {"points": points, "polygonlabels": [label], "closed": True}
    return {"id": "p", "from_name": "p", "to_name": "image", "type": "polygonlabels", **SIZE, "value": value} | changes


def task(*results, image="/data/upload/1/0f3b9c4d-b.jpg", **changes):
    annotation = {"id": 1, "result": list(results), "was_cancelled": False}
    return {"id": 5, "data": {"image": image}, "annotations": [annotation], "predictions": []} | changes


def saved(tmp_path, *tasks):
    path = tmp_path / "project.json"
    path.write_text(json.dumps(tasks))
    return path


def some(rows):
    inside = np.zeros((4, 6), bool)
    inside[rows] = True
    return inside


def test_tasks_come_back_as_annotations(hard_masks, tmp_path):
    path = hard_masks.export("labelstudio", tmp_path / "out")
    tasks = json.loads(path.read_text(encoding="utf-8"))
    assert not any("annotations" in one for one in tasks)
    with pytest.raises(BadInput, match="21 tasks, none of which has an annotation"):
        hard_masks.imported("labelstudio", path.parent)
    for one in tasks:
        one["annotations"] = one.pop("predictions")
    found = hard_masks.imported("labelstudio", saved(tmp_path, *tasks))
    for name, mask in masks(unsure=False).items():
        np.testing.assert_array_equal(found.pop(name), mask, err_msg=name)
    assert not found


def test_what_a_task_holds(two, tmp_path):
    path = two.export("labelstudio", tmp_path / "a & b")
    first, second = json.loads(path.read_text())
    assert second["data"] == {"image": "/data/local-files/?d=a%20%26%20b/images/in/b.jpg"}
    assert (path.parent / "images/in/b.jpg").is_file()
    (prediction,) = first["predictions"]
    assert [region["value"]["brushlabels"] for region in prediction["result"]] == [["cat"], ["dog"]]
    assert all({key: region[key] for key in SIZE} == SIZE for region in prediction["result"])
    again = two.export("labelstudio", tmp_path / "web", per="component", url="https://pictures.example/x/")
    first, _ = json.loads(again.read_text())
    assert first["data"] == {"image": "https://pictures.example/x/a.jpg"}
    assert len(first["predictions"][0]["result"]) == 3


def test_the_interface_names_the_classes(hard_masks, tmp_path):
    root = ElementTree.parse(hard_masks.export("labelstudio", tmp_path / "out").parent / "config.xml").getroot()
    (control,) = root.iterfind("BrushLabels")
    assert [label.get("value") for label in control] == list(CLASSES)
    assert control.get("toName") == root.find("Image").get("name")


def test_later_regions_lie_over_earlier_ones(two, tmp_path):
    results = [
        stroke("cat", some(slice(0, 3))),
        {"type": "choices", "value": {"choices": ["good"]}, "from_name": "c", "to_name": "image", "id": "c"},
        polygon("hound", [[0, 0], [50, 0], [50, 50], [0, 50]]),
        stroke("cat", some(0), type="labels", value={"format": "rle", "rle": pack_brush(some(0)), "labels": ["cat"]}),
        {"id": "r", "type": "brush", **SIZE, "value": {"format": "rle", "rle": pack_brush(some(3))}},
    ]
    found = two.imported("labelstudio", saved(tmp_path, task(*results)), rename="hound=dog")
    known = np.zeros((4, 6), np.uint8)
    known[:3] = 1
    known[:2, :3] = 2
    known[0] = 1
    assert found.keys() == {"in/b"}
    np.testing.assert_array_equal(found["in/b"], known)


def test_json_min_skipped_tasks_and_names_with_digits(two, tmp_path):
    row = {"image": "/data/local-files/?d=some/in/b.jpg", "id": 1, "annotation_id": 2, "annotator": 1}
    value = stroke("dog", some(2))
    row["label"] = [value["value"] | SIZE]
    unseen = {"image": "x.jpg", "id": 2, "data": {"image": "x.jpg"}, "predictions": [{"result": []}]}
    found = two.imported("labelstudio", saved(tmp_path, row, unseen, task(image="a.jpg", annotations=[])))
    np.testing.assert_array_equal(found.pop("in/b"), some(2) * 2)
    assert not found


REFUSED = {
    "two annotations": (task(annotations=[{"result": []}, {"result": []}]), "2 annotations; expected one"),
    "a box": (
        task(stroke("cat", some(0), value={"x": 1, "y": 1, "width": 5, "height": 5, "rectanglelabels": ["cat"]})),
        "a region with rectanglelabels and the label 'cat'",
    ),
    "a rotated picture": (task(stroke("cat", some(0), image_rotation=90)), "a picture that is rotated by 90 degrees"),
    "two labels": (
        task(stroke("cat", some(0), value={"rle": [], "brushlabels": ["cat", "dog"]})),
        r"the labels \['cat', 'dog'\]",
    ),
    "no label": (task(stroke("cat", some(0), value={"rle": [], "format": "rle"})), "a brush stroke without a label"),
    "another class": (task(stroke("wolf", some(0))), "the class 'wolf'"),
    "a broken stroke": (task(stroke("cat", np.ones((4, 5), bool))), "80 values of 8 bits"),
    "no bytes": (
        task(stroke("cat", some(0), value={"rle": [256], "brushlabels": ["cat"]})),
        "something else than bytes",
    ),
    "another size": (task(stroke("cat", some(0), original_width=7)), "of 4x7"),
    "sizes that differ": (
        task(stroke("cat", some(0)), stroke("cat", some(0), original_width=7)),
        "regions for pictures of several sizes",
    ),
    "no size": (task({"type": "brushlabels", "value": stroke("cat", some(0))["value"]}), "no 'original_height'"),
    "no picture": (task(stroke("cat", some(0)), data={"text": "x"}), "0 pictures; expected one picture per task"),
    "a picture of others": (task(stroke("cat", some(0)), image="other.jpg"), "the picture 'other.jpg'"),
    "other JSON": ({"a": 1}, "other content"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, two, tmp_path):
    content, message = REFUSED[case]
    with pytest.raises(BadInput, match=message):
        two.imported("labelstudio", saved(tmp_path, content))
    out = tmp_path / "project.json imported"
    assert not list(out.rglob("*.png"))
