"""VOC 2012, data in its layout, and the masks of SBD."""

import dataclasses
import hashlib
import shutil

import numpy as np
import pytest
from scipy.io import savemat

from tests.data.conftest import VOC_OBJECTS, annotation, write_labels, write_picture, write_text, write_voc
from wsss.data import voc as voc_module
from wsss.data.entries import LayoutOptions
from wsss.data.files import read_mask
from wsss.data.voc import VOC_CLASSES, find_voc, make_segmentation_class_aug, open_voc, read_annotation, read_sbd_mask
from wsss.errors import BadInput


def tags(images):
    return {name: [images.class_names[c] for c in images.classes(i)] for i, name in enumerate(images.names)}


def test_splits_tags_and_masks(voc):
    data = open_voc(voc)
    assert (data.kind, data.train, data.scored_split, data.val) == ("voc", "train", "train", "val")
    assert data.class_names == VOC_CLASSES
    train, val = data.split("train"), data.split("val")
    assert tags(train) == {"2007_000032": ["aeroplane", "person"], "2007_000039": ["tvmonitor"]}
    assert tags(val) == {"2007_000033": ["aeroplane"]}
    assert not train.upright
    assert np.unique(train.read_mask(0, (30, 40))).tolist() == [0, 1, 15, 255]
    assert train.has_masks
    assert train.read(1).shape == (30, 40, 3)


def test_where_the_root_is_looked_for(voc):
    assert find_voc(voc) == find_voc(voc.parent) == find_voc(voc.parent.parent) == voc
    assert find_voc(voc / "JPEGImages") is None


AUG = "2008_000008\n2007_000032\n2007_000039\n"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("ImageSets/Segmentation/train_aug.txt", AUG),
        ("ImageSets/Segmentation/trainaug.txt", AUG.replace("_", "")),
        (
            "ImageSets/SegmentationAug/train_aug.txt",
            "".join(f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in AUG.split()),
        ),
    ],
)
def test_train_aug_from_a_list(voc, file, text):
    write_labels(voc / "SegmentationClassAug/2008_000008.png", [0, 13])
    write_labels(voc / "SegmentationClassAug/2007_000032.png", [20])
    write_text(voc / file, text)
    data = open_voc(voc)
    assert (data.train, data.scored_split) == ("train_aug", "train")
    images = data.split("train_aug")
    assert images.names == tuple(AUG.split())
    assert tags(images)["2008_000008"] == ["horse", "person"]
    assert images.has_masks
    assert np.unique(images.read_mask(0)).tolist() == [0, 13]
    # VOC's own mask goes before the one of SBD
    assert np.unique(images.read_mask(1)).tolist() == [0, 1, 15, 255]


def test_train_aug_from_the_folder_of_masks(voc):
    for name in VOC_OBJECTS:
        write_labels(voc / f"SegmentationClassAug/{name}.png", [0])
    data = open_voc(voc)
    assert data.split(data.train).names == ("2007_000032", "2007_000039", "2008_000008")
    assert any("train_aug: the 3 pictures" in note for note in data.notes)


def test_choosing_splits_and_lists(voc, tmp_path):
    listed = str(write_text(tmp_path / "mine.txt", "2008_000008\n2007_000033.jpg\n"))
    data = open_voc(voc, LayoutOptions(train=listed, val="train"))
    assert (data.train, data.val, data.scored_split) == (listed, "train", None)
    assert data.split(listed).names == ("2008_000008", "2007_000033")
    assert data.split(listed).title == "voc/mine"
    with pytest.raises(BadInput, match=r"no split or list file 'tarin'; expected one of its splits .train, val."):
        open_voc(voc, LayoutOptions(train="tarin"))


def test_rules_for_tags(tmp_path):
    box = "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
    objects = [("cat", (3, 9)), ("dog", (5.2, 5.9)), ("cow", (41, 60)), ("bus", (-3, 0.5)), ("sofa", (-5, 4))]
    body = "".join(
        f"<object><name>{name}</name><difficult>1</difficult>{box.format(*at)}</object>" for name, at in objects
    )
    part = (
        "<object><name>person</name>"
        + box.format(1, 5)
        + "<part><name>bird</name></part><part><name>head</name></part></object>"
    )
    path = write_text(
        tmp_path / "a.xml", f"<annotation><size><width>40</width><height>30</height></size>{body}{part}</annotation>"
    )

    def found(rule):
        return {VOC_CLASSES[c] for c in np.flatnonzero(read_annotation(path, VOC_CLASSES, rule))}

    assert found("clip-es") == {"cat", "dog", "cow", "bus", "sofa", "person"}
    assert found("irn") == found("clip-es") | {"bird"}
    assert found("clims-camera-ready") == {"cat", "sofa", "person"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", r"broken XML"),
        (annotation("a", ["aeroplan"]), r"an object 'aeroplan', which is no class; .*Did you mean 'aeroplane'\?"),
        ("<annotation><object></object></annotation>", "an object ''"),
    ],
)
def test_bad_annotations(tmp_path, text, message):
    with pytest.raises(BadInput, match=rf"a\.xml: found {message}"):
        read_annotation(write_text(tmp_path / "a.xml", text))


def test_annotation_without_boxes(tmp_path):
    path = write_text(tmp_path / "a.xml", "<annotation><object><name>cat</name></object></annotation>")
    assert read_annotation(path, VOC_CLASSES, "clip-es").sum() == 1
    with pytest.raises(BadInput, match="expected numbers in bndbox and size"):
        read_annotation(path, VOC_CLASSES, "clims-camera-ready")
    with pytest.raises(BadInput, match="no such file"):
        read_annotation(tmp_path / "b.xml")


def test_own_classes(tmp_path):
    root = write_voc(tmp_path, {"a b": ["kite"], "deep/ü": [], "v": ["drone", "kite"]})
    write_text(root / "classes.txt", "background\nkite\ndrone\n")
    write_text(root / "ImageSets/Segmentation/train.txt", "a b\ndeep/ü\n")
    write_text(root / "ImageSets/Segmentation/val.txt", "v\n")
    data = open_voc(root)
    assert data.class_names == ("kite", "drone")
    assert tags(data.split("train")) == {"a b": ["kite"], "deep/ü": []}
    assert tags(data.split("val")) == {"v": ["kite", "drone"]}
    assert open_voc(root, LayoutOptions(classes=("drone", "kite"))).class_names == ("drone", "kite")
    with pytest.raises(BadInput, match=r"a b\.xml: found an object 'kite', .*--classes"):
        open_voc(root, LayoutOptions(classes=("drone", "plane")))


def test_tags_from_a_pickled_file(voc):
    labels = {int(name.replace("_", "")): np.eye(20, dtype=np.float32)[i] for i, name in enumerate(VOC_OBJECTS)}
    np.save(voc / "cls_labels.npy", labels)
    expected = {"2007_000032": ["aeroplane"], "2007_000039": ["bicycle"]}
    assert tags(open_voc(voc, LayoutOptions(tags=voc / "cls_labels.npy")).split("train")) == expected
    assert tags(open_voc(voc).split("train")) != expected
    shutil.rmtree(voc / "Annotations")
    data = open_voc(voc)
    assert tags(data.split("train")) == expected
    assert "tags come from cls_labels.npy" in data.notes


def test_tags_from_a_table(voc):
    table = write_text(
        voc.parent / "t.csv", "image,tags\n2007_000032.jpg,cat\n2007_000039.jpg,dog\n2007_000033.jpg,dog;cat\n"
    )
    assert tags(open_voc(voc, LayoutOptions(tags=table)).split("val")) == {"2007_000033": ["cat", "dog"]}
    write_text(table, "image,tags\n2007_000032.jpg,cat\n")
    with pytest.raises(BadInput, match=r"t\.csv: found no tags for 1 of the 2 pictures of train .'2007_000039' first"):
        open_voc(voc, LayoutOptions(tags=table))


def test_tags_from_the_masks(voc):
    shutil.rmtree(voc / "Annotations")
    data = open_voc(voc)
    assert tags(data.split("train")) == {"2007_000032": ["aeroplane", "person"], "2007_000039": ["tvmonitor"]}
    assert any("tags are the classes of the true masks" in note for note in data.notes)


def test_a_missing_annotation(voc):
    (voc / "Annotations/2007_000039.xml").unlink()
    with pytest.raises(
        BadInput, match=r"Annotations: found no tags for 1 of the 2 pictures of train .'2007_000039' first"
    ):
        open_voc(voc)


def test_the_test_split_may_lack_tags_or_pictures(voc):
    write_picture(voc / "JPEGImages/2008_000001.jpg")
    write_text(voc / "ImageSets/Segmentation/test.txt", "2008_000001\n")
    data = open_voc(voc)
    assert not data.split("test").labels.any()
    assert not data.split("test").has_masks
    assert "test: 1 of 1 pictures have no tags" in data.notes
    (voc / "JPEGImages/2008_000001.jpg").unlink()
    data = open_voc(voc)
    assert "test" not in data.splits
    assert any(note.startswith("test: 1 of 1 names left out") for note in data.notes)


def test_missing_pictures(voc):
    (voc / "JPEGImages/2007_000039.jpg").unlink()
    with pytest.raises(
        BadInput, match=r"train\.txt: found 1 of 2 names without a picture .'2007_000039' first.*--skip-bad"
    ):
        open_voc(voc)
    data = open_voc(voc, LayoutOptions(skip_missing=True))
    assert data.split("train").names == ("2007_000032",)
    assert any(note.startswith("train: 1 of 2 names left out") for note in data.notes)


def test_a_missing_split_file(voc):
    (voc / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(BadInput, match=r"ImageSets/Segmentation/train\.txt: found no such file .lists found: val."):
        open_voc(voc)


def test_train_without_masks_is_not_scored(voc):
    (voc / "SegmentationClass/2007_000039.png").unlink()
    data = open_voc(voc)
    assert data.scored_split is None
    assert [mask is None for mask in data.split("train").masks] == [False, True]


def test_tags_are_compared_with_the_published_ones(voc, monkeypatch):
    names = [f"2007_{index:06d}" for index in range(1464)]
    labels = np.zeros((1464, 20), bool)
    for column, count in enumerate(voc_module._IMAGES_PER_CLASS["train"]):
        labels[:count, column] = True
    train = open_voc(voc).split("train")
    whole = dataclasses.replace(
        train, names=tuple(names), paths=train.paths[:1] * 1464, labels=labels, masks=train.masks[:1] * 1464
    )
    assert voc_module._compare_with_published({"train": whole}) == [
        "train: tags per class agree with the published ones"
    ]
    labels[0, 7] = False
    assert voc_module._compare_with_published({"train": whole}) == ["train: tags differ from the published ones in cat"]
    assert voc_module._compare_with_published({"train": train}) == []
    text = "".join(f"{name}\n" for name in names)
    monkeypatch.setattr(voc_module, "_TRAIN_AUG_SHA1", hashlib.sha1(text.encode()).hexdigest())
    monkeypatch.setattr(voc_module, "_IMAGES", {"train_aug": 1464})
    assert voc_module._compare_with_published({"train_aug": whole})[1] == "train_aug: the published list"


def write_sbd(root, names):
    for seed, name in enumerate(names):
        mask = np.zeros((30, 40), np.uint8)
        mask[:, :5] = seed + 1
        path = root / f"dataset/cls/{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"GTcls": {"Segmentation": mask, "Boundaries": np.zeros(3), "CategoriesPresent": [[seed + 1]]}})
    return root


def test_masks_and_list_of_sbd(voc, tmp_path):
    # SBD overlaps with VOC's train and its val
    sbd = write_sbd(tmp_path / "sbd", ["2008_000008", "2007_000039", "2007_000033"])
    calls = []
    listed = make_segmentation_class_aug(sbd, voc, progress=lambda done, total: calls.append((done, total)))
    assert listed.read_text() == "2007_000032\n2007_000039\n2008_000008\n"
    assert calls[-1] == (4, 4)
    made = {path.stem: read_mask(path) for path in (voc / "SegmentationClassAug").iterdir()}
    assert sorted(made) == ["2007_000032", "2007_000033", "2007_000039", "2008_000008"]
    for name in ("2007_000032", "2007_000033", "2007_000039"):
        np.testing.assert_array_equal(made[name], read_mask(voc / f"SegmentationClass/{name}.png"))
    assert np.unique(made["2008_000008"]).tolist() == [0, 1]
    data = open_voc(voc)
    assert (data.train, data.scored_split, len(data.split("train_aug"))) == ("train_aug", "train", 3)


def test_sbd_goes_on_after_an_interruption(voc, tmp_path):
    sbd = write_sbd(tmp_path, ["2008_000008"])
    target = voc / "SegmentationClassAug/2008_000008.png"

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_segmentation_class_aug(sbd / "dataset", voc, progress=interrupt)
    assert not (voc / "ImageSets/Segmentation/train_aug.txt").exists()
    write_labels(target, [7])
    make_segmentation_class_aug(sbd / "dataset", voc)
    assert 7 in read_mask(target)
    assert not list(voc.rglob("*.part"))


def test_bad_sbd(voc, tmp_path):
    with pytest.raises(BadInput, match=r"no cls/\*\.mat; expected SBD's folder"):
        make_segmentation_class_aug(tmp_path, voc)
    sbd = write_sbd(tmp_path / "sbd", ["2008_000008", "2009_000001"])
    with pytest.raises(BadInput, match=r"JPEGImages: found no picture for 1 of 4 names .2009_000001 first"):
        make_segmentation_class_aug(sbd, voc)
    path = tmp_path / "a.mat"
    whole = (sbd / "dataset/cls/2008_000008.mat").read_bytes()
    for content in (b"", b"text", whole[:150], whole[:-40], b"\0" * 200):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"a\.mat: found .*Unpack SBD again"):
            read_sbd_mask(path)
    savemat(path, {"other": np.zeros(3)})
    with pytest.raises(BadInput, match="no variable `GTcls`"):
        read_sbd_mask(path)
    savemat(path, {"GTcls": {"Segmentation": np.full((4, 4), 21, np.uint8)}})
    with pytest.raises(BadInput, match=r"an array of uint8 \(4, 4\)"):
        read_sbd_mask(path)
