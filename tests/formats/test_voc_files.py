"""VOC's layout: what the files hold, and that it is read as a data set."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from wsss.data.files import read_mask
from wsss.data.open import open_dataset
from wsss.errors import BadInput


def objects(path):
    return [
        (
            entry.findtext("name"),
            entry.findtext("difficult"),
            *(int(entry.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")),
        )
        for entry in ElementTree.parse(path).getroot().iterfind("object")
    ]


def test_it_is_read_as_a_data_set(two, tmp_path):
    out = two.export("voc", tmp_path / "out")
    data = open_dataset(out)
    images = data.split("train")
    assert images.class_names == ("cat", "dog")
    assert images.names == ("a", "in/b")
    np.testing.assert_array_equal(images.labels, [[True, True], [True, False]])
    for at, name in enumerate(images.names):
        np.testing.assert_array_equal(images.read_mask(at, (4, 6)), read_mask(two.root / f"masks/{name}.png"))
    with Image.open(out / "SegmentationClass/a.png") as picture:
        assert (picture.mode, picture.size) == ("P", (6, 4))


def test_boxes_count_from_one_and_contain_their_last_pixels(two, tmp_path):
    out = two.export("voc", tmp_path / "out")
    assert objects(out / "Annotations/a.xml") == [
        ("cat", "0", 1, 1, 2, 1),
        ("cat", "0", 6, 4, 6, 4),
        ("dog", "0", 3, 2, 4, 3),
    ]
    out = two.export("voc", tmp_path / "by class", per="class")
    assert objects(out / "Annotations/in/b.xml") == [("cat", "0", 1, 1, 6, 4)]


def test_a_tag_without_pixels_is_a_difficult_object(two, tmp_path):
    """The tags of a data set stay, so that training on the export starts from the same tags."""
    source = two.export("voc", tmp_path / "source")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(two.root / "masks/in/b.png")
    two.given = {"data": source}
    out = two.export("voc", tmp_path / "out", per="class")
    assert objects(out / "Annotations/in/b.xml") == [("cat", "1", 1, 1, 6, 4)]
    np.testing.assert_array_equal(open_dataset(out).split("train").labels, [[True, True], [True, False]])


def test_masks_of_other_classes_and_unpacked_badly(two, tmp_path):
    out = two.export("voc", tmp_path / "out")
    labelmap = out / "labelmap.txt"
    labelmap.write_text(labelmap.read_text().replace("dog", "wolf"))
    with pytest.raises(BadInput, match=r"SegmentationClass/a\.png: found the class 'wolf'"):
        two.imported("voc", out)
    labelmap.unlink()
    with pytest.raises(BadInput, match=r"labelmap\.txt: found no such file"):
        two.imported("voc", out)
    with pytest.raises(BadInput, match="no folder SegmentationClass"):
        two.imported("voc", out / "JPEGImages")


def test_names_keep_their_markup(two, tmp_path):
    out = two.export("voc", tmp_path / "out", classes="<cat>, dog & co")
    assert {name for name, *_ in objects(out / "Annotations/a.xml")} == {"<cat>", "dog & co"}
