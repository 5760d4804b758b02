"""labelme: what the files hold, and corrections in them."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.peers.masks import CLASSES, masks
from wsss.corrections import corrected_pictures
from wsss.data.files import read_mask
from wsss.data.open import open_dataset
from wsss.errors import BadInput


def edited(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes))
    return content


def shape(label, kind, points):
    return {"label": label, "shape_type": kind, "points": points}


def test_files_lie_next_to_the_pictures(two, tmp_path):
    out = two.export("labelme", tmp_path / "out")
    assert (out / "labels.txt").read_text() == "__ignore__\n_background_\ncat\ndog\n"
    content = json.loads((out / "in/b.json").read_text())
    assert (content["imagePath"], content["imageData"]) == ("b.jpg", None)
    assert (content["imageHeight"], content["imageWidth"]) == (4, 6)
    with Image.open(out / "in" / "b.jpg") as picture:
        assert picture.size == (6, 4)
    assert [(one["label"], one["points"]) for one in content["shapes"]] == [
        ("cat", [[0, 0], [1, 0]]),
        ("cat", [[5, 3], [5, 3]]),
    ]


def test_pictures_elsewhere_are_named_by_their_path(two, tmp_path):
    out = two.export("labelme", tmp_path / "out", copy_pictures="none", per="class")
    assert not (out / "a.jpg").exists()
    content = json.loads((out / "in/b.json").read_text())
    assert (out / "in" / content["imagePath"]).resolve() == (two.root / "pictures/in/b.jpg").resolve()
    assert len(content["shapes"]) == 1
    assert two.imported("labelme", out).keys() == {"a", "in/b"}


def test_corrections_and_renamed_classes(two, tmp_path):
    out = two.export("labelme", tmp_path / "out")
    shapes = [
        shape("kitty", "polygon", [[0, 0], [3, 0], [3, 2], [0, 2]]),
        shape("_background_", "polygon", [[1, 1], [2, 1], [2, 1]]),
        shape("__ignore__", "polygon", [[5, 0], [5, 0], [5, 0]]),
    ]
    edited(out / "a.json", shapes=shapes)
    (out / "in/b.json").unlink()
    with pytest.raises(BadInput, match=r"a\.json: found the class 'kitty'"):
        two.imported("labelme", out)
    found = two.imported("labelme", out, rename="kitty=cat")
    known = np.zeros((4, 6), np.uint8)
    known[:3, :4] = 1
    known[1, 1:3] = 0
    known[0, 5] = 255
    assert found.keys() == {"a"}
    np.testing.assert_array_equal(found["a"], known)


@pytest.mark.parametrize("shapes", ["mask", "polygon"])
def test_it_is_read_as_a_data_set(shapes, hard_masks, tmp_path):
    out = hard_masks.export("labelme", tmp_path / "out", shapes=shapes)
    images = open_dataset(out).split("train")
    assert images.class_names == CLASSES
    for at, name in enumerate(images.names):
        np.testing.assert_array_equal(images.read_mask(at, images.size_hw(at)), masks(unsure=False)[name], err_msg=name)
    assert set(images.names) == set(masks(unsure=False))


@pytest.mark.parametrize(
    ("kind", "points"), [("rectangle", [[0, 0], [2, 2]]), ("line", [[0, 0], [2, 2]]), ("point", [[1, 1]])]
)
def test_shapes_that_outline_nothing(kind, points, two, tmp_path):
    out = two.export("labelme", tmp_path / "out")
    edited(out / "a.json", shapes=[shape("cat", kind, points)])
    with pytest.raises(BadInput, match=rf"a\.json: found a {kind} with the label 'cat'; expected polygons, masks"):
        two.imported("labelme", out)


def test_another_size_and_a_file_from_elsewhere(two, tmp_path):
    out = two.export("labelme", tmp_path / "out")
    edited(out / "a.json", imageHeight=5)
    with pytest.raises(BadInput, match=r"of 5x6 \(height x width\); expected 4x6"):
        two.imported("labelme", out)
    (out / "a.json").write_text("{}")
    with pytest.raises(BadInput, match=r"a\.json: found other content"):
        two.imported("labelme", out)


def test_one_file_alone_is_a_folder_of_corrections(two, tmp_path):
    out = two.export("labelme", tmp_path / "out")
    found = two.imported("labelme", out / "in/b.json")
    images = open_dataset(two.export("voc", tmp_path / "voc")).split("train")
    assert corrected_pictures(images, out / "in/b.json imported") == [1]
    assert found.keys() == {"in/b"}
    np.testing.assert_array_equal(found["in/b"], read_mask(two.root / "masks/in/b.png"))


def test_a_picture_called_like_the_record(two, tmp_path):
    for folder, suffix in (("masks", "png"), ("pictures", "jpg")):
        (two.root / folder / f"a.{suffix}").rename(two.root / folder / f"wsss-export.{suffix}")
    with pytest.raises(BadInput, match="wsss-export"):
        two.export("labelme", tmp_path / "out")
