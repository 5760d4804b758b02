"""CVAT: what the files hold, and corrections in them."""

import json
import xml.etree.ElementTree as ElementTree
import zipfile

import numpy as np
import pytest
from PIL import Image

from wsss.errors import BadInput

B = """<annotations><meta><task/></meta><image id="7" name="b.jpg" width="6" height="4">{}</image></annotations>"""


def test_the_file_lists_labels_pictures_and_masks(two, tmp_path):
    path = two.export("cvat", tmp_path / "out")
    root = ElementTree.parse(path).getroot()
    assert [label.findtext("name") for label in root.iterfind("meta/task/labels/label")] == ["cat", "dog"]
    pictures = {image.get("name"): image for image in root.iterfind("image")}
    assert list(pictures) == ["a.jpg", "in/b.jpg"]
    assert all((path.parent / "images" / name).is_file() for name in pictures)
    found = [
        (mask.get("label"), mask.get("rle"), *(int(mask.get(side)) for side in ("left", "top", "width", "height")))
        for mask in pictures["a.jpg"]
    ]
    assert found == [("cat", "0, 2", 0, 0, 2, 1), ("cat", "0, 1", 5, 3, 1, 1), ("dog", "0, 4", 2, 1, 2, 2)]
    labels = json.loads((path.parent / "labels.json").read_text())
    assert [(one["name"], one["color"]) for one in labels] == [("cat", "#800000"), ("dog", "#008000")]


def test_corrections_and_renamed_classes(two, tmp_path):
    path = tmp_path / "from cvat.xml"
    shapes = """<mask label="hound" rle="0, 6" left="0" top="0" width="6" height="1" z_order="2"/>
      <polygon label="cat" points="0,0;3,0;3,3;0,3" z_order="0"/>
      <mask label="sky" rle="0, 2" left="0" top="1" width="2" height="1" z_order="1"/>"""
    path.write_text(B.format(shapes))
    with pytest.raises(BadInput, match=r"picture 'b\.jpg': found the class 'hound'; expected one of our 2 classes"):
        two.imported("cvat", path)
    found = two.imported("cvat", path, rename="hound=dog, sky=")
    known = np.zeros((4, 6), np.uint8)
    known[:3, :3] = 1
    known[1, :2] = 0
    known[0] = 2
    assert found.keys() == {"in/b"}
    np.testing.assert_array_equal(found["in/b"], known)


def test_boxes_are_no_masks(two, tmp_path):
    path = tmp_path / "boxes.xml"
    path.write_text(B.format('<box label="cat" xtl="0" ytl="0" xbr="2" ybr="2"/>'))
    with pytest.raises(BadInput, match="a shape <box> with the label 'cat'"):
        two.imported("cvat", path)
    assert not (tmp_path / "boxes.xml imported").exists() or not any((tmp_path / "boxes.xml imported").iterdir())


def test_a_folder_with_one_xml_file(two, tmp_path):
    out = tmp_path / "unpacked"
    out.mkdir()
    with pytest.raises(BadInput, match=r"no \.xml file"):
        two.imported("cvat", out)
    (out / "train.xml").write_text(B.format(""))
    assert not two.imported("cvat", out)["in/b"].any()
    (out / "val.xml").write_text(B.format(""))
    with pytest.raises(BadInput, match=r"the files train\.xml, val\.xml"):
        two.imported("cvat", out)


def test_an_archive_has_to_be_unpacked(two, tmp_path):
    """CVAT exports archives."""
    path = tmp_path / "task.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("annotations.xml", B.format(""))
    with pytest.raises(BadInput, match=r"task\.zip: found a ZIP archive; .* Unpack it"):
        two.imported("cvat", path)


def test_a_name_that_xml_cannot_hold(two, tmp_path):
    with pytest.raises(BadInput, match=r"the character '\\x02' in the name"):
        two.export("cvat", tmp_path / "out", classes="cat, d\x02g")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_colours_and_objects_of_the_mask_format(two, tmp_path):
    out = two.export("cvat-masks", tmp_path / "out")
    assert (out / "labelmap.txt").read_text().splitlines()[1:] == [
        "background:0,0,0::",
        "cat:128,0,0::",
        "dog:0,128,0::",
    ]
    assert (out / "ImageSets/Segmentation/default.txt").read_text() == "a\nin/b\n"
    with Image.open(out / "SegmentationClass/a.png") as picture:
        assert picture.mode == "RGB"
        assert sorted(picture.getcolors()) == [(3, (128, 0, 0)), (4, (0, 128, 0)), (17, (0, 0, 0))]
    with Image.open(out / "SegmentationObject/a.png") as picture:
        assert sorted(picture.getcolors()) == [(1, (0, 128, 0)), (2, (128, 0, 0)), (4, (128, 128, 0)), (17, (0, 0, 0))]


def test_more_components_than_colours(two, tmp_path):
    y, x = np.indices((40, 40))
    many = ((y % 2 + x % 2) == 0).astype(np.uint8) * 2
    for folder, suffix in (("masks", "png"), ("pictures", "jpg")):
        Image.fromarray(many).save(two.root / folder / f"a.{suffix}")
    out = two.export("cvat-masks", tmp_path / "out")
    with (
        Image.open(out / "SegmentationObject/a.png") as objects,
        Image.open(out / "SegmentationClass/a.png") as classes,
    ):
        np.testing.assert_array_equal(np.asarray(objects), np.asarray(classes))
    np.testing.assert_array_equal(two.imported("cvat-masks", out)["a"], many)


def test_other_colours_and_pictures_without_a_mask(two, tmp_path):
    """CVAT's own colours, and a picture in the list from which everything was removed."""
    out = tmp_path / "masks"
    (out / "SegmentationClass").mkdir(parents=True)
    (out / "ImageSets/Segmentation").mkdir(parents=True)
    (out / "labelmap.txt").write_text("background:0,0,0::\nhound:250,50,83::\ncat:52,209,183::\nunused:1,2,3::\n")
    (out / "ImageSets/Segmentation/default.txt").write_text("in/b\na\n")
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[1] = (250, 50, 83)
    colours[2, :2] = (52, 209, 183)
    Image.fromarray(colours).save(out / "SegmentationClass/a.png")
    found = two.imported("cvat-masks", out, rename="hound=dog")
    known = np.zeros((4, 6), np.uint8)
    known[1] = 2
    known[2, :2] = 1
    np.testing.assert_array_equal(found["a"], known)
    assert not found["in/b"].any()


@pytest.mark.parametrize("name", ["a:b", "#cat", "ignored"])
def test_classes_that_a_label_map_cannot_hold(name, two, tmp_path):
    with pytest.raises(BadInput, match=f"the class '{name}'"):
        two.export("cvat-masks", tmp_path / "out", classes=f"{name}, dog")
