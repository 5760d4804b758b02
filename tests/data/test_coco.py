"""COCO in the layouts of the methods that use it; masks and tags against the COCO API and by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_api
from pycocotools.coco import COCO

from tests.data.conftest import (
    COCO_OBJECTS,
    SIZE,
    box,
    write_coco,
    write_instances,
    write_labels,
    write_picture,
    write_text,
)
from wsss.data.coco import COCO_CATEGORIES, InstanceMask, draw_mask, find_coco, open_coco, read_instances
from wsss.data.entries import LayoutOptions
from wsss.errors import BadInput


def tags(images):
    return {name: [images.class_names[c] for c in images.classes(i)] for i, name in enumerate(images.names)}


def jpeg(split, image):
    return f"COCO_{split}2014_{image:012d}"


@pytest.mark.parametrize("pictures", ["{split}{year}", "images/{split}{year}", "JPEGImages/{split}{year}"])
def test_2014(tmp_path, pictures):
    data = open_coco(write_coco(tmp_path, pictures=pictures))
    assert (data.kind, data.train, data.scored_split, data.val) == ("coco", "train2014", "train2014", "val2014")
    assert data.class_names == tuple(COCO_CATEGORIES.values())
    images = data.split("train2014")
    assert tags(images) == {
        jpeg("train", 9): ["toothbrush"],
        jpeg("train", 25): ["person", "bus", "dog"],
        jpeg("train", 30): [],
        jpeg("train", 391895): ["person", "bicycle"],
    }
    assert not images.upright
    assert images.read(3).shape == (*SIZE, 3)
    mask = images.read_mask(3, SIZE)
    assert (mask[6, 6], mask[12, 12], mask[0, 0]) == (2, 1, 0)
    assert tags(data.split("val2014")) == {jpeg("val", 42): ["dog"]}


def test_pictures_of_2017(tmp_path):
    data = open_coco(write_coco(tmp_path, 2017, twelve=True))
    assert (data.train, data.val) == ("train2017", "val2017")
    assert data.split("train2017").names == tuple(f"{image:012d}" for image in sorted(COCO_OBJECTS["train"]))


@pytest.mark.parametrize("pictures", ["Images", "train2017"])
def test_one_folder_of_pictures_with_twelve_digits(tmp_path, pictures):
    data = open_coco(write_coco(tmp_path, pictures=pictures, twelve=True), LayoutOptions(tag_rule="icam"))
    images = data.split("train2014")
    assert images.names == tuple(f"{image:012d}" for image in COCO_OBJECTS["train"])  # in the order of the file
    assert all(path.parent.name == pictures for path in images.paths)


def test_tags_by_rule(coco):
    crowd = jpeg("train", 25)
    assert tags(open_coco(coco, LayoutOptions(tag_rule="clims")).split("train2014"))[crowd] == ["person", "bus", "dog"]
    # the bus hides the person; the crowd of dogs is drawn
    visible = open_coco(coco, LayoutOptions(tag_rule="icam"))
    assert tags(visible.split("train2014"))[crowd] == ["bus", "dog"]
    assert visible.split("train2014").masks[0].rule == "icam"
    assert (
        open_coco(coco, LayoutOptions(tag_rule="icam", mask_rule="clims")).split("train2014").masks[0].rule == "clims"
    )
    listed = open_coco(coco, LayoutOptions(tag_rule="clip-es"))
    assert list(tags(listed.split("train2014"))) == [jpeg("train", image) for image in (9, 25, 391895)]
    assert "train2014: 1 pictures without a tag left out" in listed.notes


def test_icam_draws_2014_from_2017(tmp_path):
    root = write_coco(tmp_path)
    assert any(
        "ICAM took those of 2017, which do not exist here" in note
        for note in open_coco(root, LayoutOptions(tag_rule="icam")).notes
    )
    everything = COCO_OBJECTS["train"] | COCO_OBJECTS["val"] | {9: [(3, box(2, 2, 9, 9), 0)]}
    write_instances(root / "annotations/instances_train2017.json", everything, "{:012d}.jpg")
    write_instances(root / "annotations/instances_val2017.json", {1: []}, "{:012d}.jpg")
    data = open_coco(root, LayoutOptions(tag_rule="icam"))
    assert data.train == "train2014"
    assert tags(data.split("train2014"))[jpeg("train", 9)] == ["car"]
    assert any("from the annotations of 2017" in note for note in data.notes)
    assert tags(open_coco(root).split("train2014"))[jpeg("train", 9)] == ["toothbrush"]
    write_instances(root / "annotations/instances_train2017.json", {2: []}, "{:012d}.jpg")
    with pytest.raises(BadInput, match="4 images of 2014 without an entry in 2017"):
        open_coco(root, LayoutOptions(tag_rule="icam"))


def test_more_splits_can_be_chosen(tmp_path):
    root = write_coco(write_coco(tmp_path), 2017)
    data = open_coco(root)
    assert sorted(data.splits) == ["train2014", "val2014"]
    assert any(note.endswith("train2017, val2017") for note in data.notes)
    other = open_coco(root, LayoutOptions(train="train2017"))
    assert (other.train, other.val) == ("train2017", "val2017")
    assert other.split("train2017").names[0] == "000000000009"
    with pytest.raises(BadInput, match="no split or list file 'test2014'"):
        open_coco(root, LayoutOptions(val="test2014"))


@pytest.mark.parametrize(
    "lines", ["{jpeg} 3 5\n", "/Images/{id:012d}.jpg /SegmentationClass/{id:012d}.png\n", "{id:012d}\n"]
)
def test_list_files(coco, tmp_path, lines):
    ids = {25: "train", 42: "val", 9: "train"}
    text = "".join(lines.format(id=image, jpeg=jpeg(split, image)) for image, split in ids.items())
    listed = str(write_text(tmp_path / "lists" / "train2014.txt", text))
    data = open_coco(coco, LayoutOptions(train=listed))
    assert data.train == data.scored_split == listed
    assert data.split(listed).names == tuple(jpeg(split, image) for image, split in ids.items())
    assert data.split(listed).read_mask(1, SIZE)[5, 5] == 17
    write_text(tmp_path / "lists" / "train2014.txt", text + "7\n")
    with pytest.raises(BadInput, match=r"train2014\.txt: found 1 of 4 names that are in no annotation file .'7' first"):
        open_coco(coco, LayoutOptions(train=listed))


def test_the_layout_of_clip_es(tmp_path):
    for image, split in ((9, "train"), (25, "train"), (30, "train"), (42, "val")):
        write_picture(tmp_path / f"JPEGImages/{split}2014/{jpeg(split, image)}.jpg", seed=image)
        write_labels(tmp_path / f"SegmentationClass/{split}2014/{jpeg(split, image)}.png", [0, 80])
    listed = write_text(tmp_path / "coco14/train.txt", f"{jpeg('train', 25)} 79 0\n{jpeg('train', 9)} 79\n")
    assert find_coco(tmp_path) == tmp_path
    data = open_coco(tmp_path, LayoutOptions(tags=listed))
    assert tags(data.split("train2014")) == {
        jpeg("train", 9): ["toothbrush"],
        jpeg("train", 25): ["person", "toothbrush"],
    }
    assert np.unique(data.split("train2014").read_mask(0)).tolist() == [0, 80]
    assert (data.scored_split, data.val) == ("train2014", "val2014")
    assert data.split("val2014").has_masks
    assert "train2014: 1 pictures without a tag left out" in data.notes
    with pytest.raises(BadInput, match="no tags for train2014; expected tags of its pictures"):
        open_coco(tmp_path)


def test_masks_with_plain_numbers(tmp_path):
    write_picture(tmp_path / f"train2014/{jpeg('train', 9)}.jpg")
    write_labels(tmp_path / "mask/train2014/9.png", [80])
    images = open_coco(tmp_path, LayoutOptions(tags=write_text(tmp_path / "t.txt", f"{jpeg('train', 9)} 79\n"))).split(
        "train2014"
    )
    assert np.unique(images.read_mask(0)).tolist() == [0, 80]


def test_tags_of_clims_in_a_matrix(coco, tmp_path):
    matrix = np.zeros((4, 80))
    matrix[[0, 1, 2, 3], [5, 6, 7, 8]] = 1
    np.save(tmp_path / "train_labels.npy", matrix)
    images = open_coco(coco, LayoutOptions(tags=tmp_path / "train_labels.npy")).split("train2014")
    assert images.labels.tolist() == (matrix > 0).tolist()
    np.save(tmp_path / "train_labels.npy", matrix[:, :79])
    with pytest.raises(BadInput, match="rows of 79 labels; expected 80"):
        open_coco(coco, LayoutOptions(tags=tmp_path / "train_labels.npy"))
    np.save(tmp_path / "train_labels.npy", matrix[:3])
    with pytest.raises(BadInput, match="no tags for train2014"):
        open_coco(coco, LayoutOptions(tags=tmp_path / "train_labels.npy"))


def test_other_class_names(coco):
    names = ["motorbike" if name == "motorcycle" else name for name in COCO_CATEGORIES.values()]
    assert open_coco(coco, LayoutOptions(classes=tuple(names))).class_names[3] == "motorbike"
    with pytest.raises(BadInput, match="80 categories; expected 2, one for each class given"):
        open_coco(coco, LayoutOptions(classes=("cat", "dog")))


def test_own_data_in_the_format(tmp_path):
    content = {
        "categories": [{"id": 7, "name": "küche"}, {"id": 3, "name": "tür"}],
        "annotations": [{"id": 1, "image_id": "no", "category_id": 7, "segmentation": box(1, 1, 5, 5)}],
        "images": [{"id": 5, "file_name": "sub/ä b.png", "height": 30, "width": 40, "extra": {"deep": [1]}}],
    }
    content["annotations"][0]["image_id"] = 5
    for ascii_only in (True, False):
        write_text(
            tmp_path / "annotations/instances_train.json", json.dumps(content, indent=1, ensure_ascii=ascii_only)
        )
        write_picture(tmp_path / "images/sub/ä b.png")
        data = open_coco(tmp_path)
        assert (data.train, data.val, data.class_names) == ("train", None, ("tür", "küche"))
        assert tags(data.split("train")) == {"sub/ä b": ["küche"]}
        assert data.split("train").read_mask(0, (30, 40))[3, 3] == 2


def test_missing_pictures(coco):
    next(iter((coco / "train2014").glob("*0025.jpg"))).unlink()
    with pytest.raises(BadInput, match=r"instances_train2014\.json: found 1 of 4 names without a picture"):
        open_coco(coco)
    assert len(open_coco(coco, LayoutOptions(skip_missing=True)).split("train2014")) == 3


def test_every_cut_is_noticed(tmp_path):
    whole = (write_coco(tmp_path) / "annotations/instances_train2014.json").read_bytes()
    path = tmp_path / "cut.json"
    for length in [*range(0, len(whole) - 1, 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=r"cut\.json: found (broken JSON|an empty file).*cut off"):
            read_instances(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "broken JSON at line 1, column 1"),
        ("{}", "no images"),
        ('{"images": []}', "no images"),
        ('{"images": [{"id": 1}]}', "nothing as `file_name` of image 1"),
        ('{"images": [3]}', "3 among `images`"),
        ('{"images": [{"id": 1, "file_name": "a", "height": 3, "width": 3}]}', "no categories"),
        ('{"images": 3}', "broken JSON"),
        ('{"images": [] "annotations": []}', "broken JSON"),
        ("\ufffe", "broken JSON"),
    ],
)
def test_other_json(tmp_path, content, message):
    with pytest.raises(BadInput, match=rf"a\.json: found {message}"):
        read_instances(write_text(tmp_path / "a.json", content))


def test_unknown_ids(tmp_path):
    path = write_instances(tmp_path / "a.json", {1: [(12, box(1, 1, 3, 3), 0)]}, "{}.jpg")
    with pytest.raises(BadInput, match="an annotation of category 12, which is not listed"):
        read_instances(path)
    path.write_text(
        path.read_text().replace('"image_id": 1', '"image_id": 2').replace('"category_id": 12', '"category_id": 1')
    )
    with pytest.raises(BadInput, match="an annotation of image 2, which is not listed"):
        read_instances(path)
    with pytest.raises(BadInput, match="no such file"):
        read_instances(tmp_path / "none.json")


def test_a_file_that_changes(tmp_path):
    path = write_instances(tmp_path / "a.json", COCO_OBJECTS["train"], "{}.jpg")
    instances = read_instances(path)
    assert len(instances.objects(0)) == 2
    path.write_text("x" * path.stat().st_size)
    with pytest.raises(BadInput, match="If it changed while it was used, start again"):
        instances.objects(0)


def test_splits_with_other_categories(coco):
    path = coco / "annotations/instances_val2014.json"
    path.write_text(path.read_text().replace('"toothbrush"', '"brush"'))
    with pytest.raises(
        BadInput, match=r"instances_val2014\.json: found 80 other categories; expected those of .*train2014"
    ):
        open_coco(coco)


@pytest.mark.parametrize("rule", ["clims", "icam"])
@pytest.mark.parametrize(
    "shape",
    [
        [[1, 2, 3]],
        [["a", 1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, 1e9]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[]],
        {"counts": [1, 2], "size": [*SIZE]},
        {"counts": [-5, 1205], "size": [*SIZE]},
        {"counts": [1200], "size": [40, 30]},
        {"counts": "???", "size": [*SIZE]},
        {"counts": "", "size": [*SIZE]},
        {},
        3,
        None,
    ],
)
def test_broken_shapes(rule, shape):
    with pytest.raises(BadInput, match=r"a.json, annotation 5: found .*30x40 pixels"):
        draw_mask([(0, {"id": 5, "iscrowd": 0, "segmentation": shape})], SIZE, rule, "a.json")


def test_shapes_without_an_inside():
    two_corners = [[1, 2, 9, 2]]
    assert draw_mask([(0, {"segmentation": two_corners})], SIZE, "icam", "a").sum() == 9
    with pytest.raises(BadInput, match="less than three corners"):
        draw_mask([(0, {"segmentation": two_corners})], SIZE, "clims", "a")
    for rule in ("clims", "icam"):
        assert not draw_mask([(0, {"segmentation": []})], SIZE, rule, "a").any()


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, SIZE) | st.just(np.ones(SIZE, bool)) | st.just(np.zeros(SIZE, bool)))
def test_run_length_codes_equal_those_of_the_coco_api(inside):
    code = coco_api.encode(np.asfortranarray(inside.astype(np.uint8)))
    objects = [(6, {"id": 1, "iscrowd": 1, "segmentation": {"counts": code["counts"].decode(), "size": code["size"]}})]
    np.testing.assert_array_equal(draw_mask(objects, SIZE, "icam", "a"), inside * 7)
    assert not draw_mask(objects, SIZE, "clims", "a").any()  # it leaves crowds out


coordinate = st.floats(-3, 45).map(lambda value: round(value, 2))
polygon = st.integers(3, 7).flatmap(lambda n: st.lists(coordinate, min_size=2 * n, max_size=2 * n))
entry = st.tuples(
    st.sampled_from(sorted(COCO_CATEGORIES)), st.lists(polygon, min_size=1, max_size=2), st.sampled_from([0, 0, 1])
)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(1, 9), st.lists(entry, max_size=4), min_size=1, max_size=3))
def test_masks_and_tags_equal_those_of_the_coco_api(tmp_path_factory, images):
    path = write_instances(tmp_path_factory.getbasetemp() / "random.json", images, "{}.jpg")
    instances, api = read_instances(path), COCO(path)
    for position, image in enumerate(images):
        expected, labels = np.zeros(SIZE, np.uint8), set()
        for annotation in api.imgToAnns[image]:
            class_ = sorted(COCO_CATEGORIES).index(annotation["category_id"])
            labels.add(class_)
            if not annotation["iscrowd"]:
                expected[api.annToMask(annotation) == 1] = class_ + 1
        np.testing.assert_array_equal(InstanceMask(instances, position, "clims").read(), expected)
        assert set(np.flatnonzero(instances.labels(position))) == labels


def test_stamps_follow_the_annotations(tmp_path):
    instances = read_instances(write_instances(tmp_path / "a.json", COCO_OBJECTS["train"], "{}.jpg"))
    more = {image: [*found, (1, box(3, 3, 3, 3), 0)] for image, found in COCO_OBJECTS["train"].items()}
    changed = read_instances(write_instances(tmp_path / "b.json", more, "{}.jpg"))
    stamps = {InstanceMask(source, 0, rule).stamp() for source in (instances, changed) for rule in ("clims", "icam")}
    assert len(stamps) == 4


IMAGE = {"id": 1, "file_name": "0.png", "height": SIZE[0], "width": SIZE[1]}
TWO = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def own(root, objects, images=(IMAGE,), categories=TWO, **picture):
    """Data that is not COCO's own: objects as (category, segmentation, iscrowd), one picture each."""
    content = {
        "images": [{**IMAGE, "id": n + 1, "file_name": f"{n}.png"} for n in range(len(objects))],
        "categories": categories,
        "annotations": [
            {"id": n, "image_id": n + 1, "category_id": category, "segmentation": shape, "iscrowd": crowd}
            for n, (category, shape, crowd) in enumerate(objects)
        ],
    }
    for number in range(len(objects)):
        write_picture(root / f"images/{number}.png", seed=number)
    write_text(root / "annotations/instances_train.json", json.dumps(content))
    return root


def with_changes(tmp_path, *changes):
    content = {
        "images": [dict(IMAGE), {**IMAGE, "id": 2, "file_name": "1.png"}],
        "categories": [dict(category) for category in TWO],
        "annotations": [{"id": n, "image_id": n, "category_id": n, "segmentation": box(1, 1, 5, 5)} for n in (1, 2)],
    }
    for key, position, name, value in changes:
        content[key][position][name] = value
    return write_text(tmp_path / "a.json", json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("images", 1, "id", 1), "the id 1 twice among images .'0.png' and '1.png'."),
        (("annotations", 1, "id", 1), "the id 1 twice among annotations .'of 0.png' and 'of 1.png'."),
        (("categories", 1, "id", 1), "the id 1 twice among categories .'cat' and 'dog'."),
        (("categories", 1, "name", "cat"), "the categories 1 and 2, both named 'cat'"),
        (("images", 0, "id", "a-b"), "'a-b' as `id` of an image; expected a whole number"),
        (("images", 0, "id", True), "True as `id` of an image"),
        (("annotations", 0, "image_id", None), "None as `image_id` of an annotation"),
        (("annotations", 0, "image_id", 1.5), "1.5 as `image_id`"),
        (("categories", 0, "id", [1]), ". as `id` of a category"),
        (("images", 0, "height", -5), "-5 as `height` of image 1"),
        (("images", 0, "width", "40"), "'40' as `width` of image 1"),
        (("images", 0, "width", 2**70), "as `width` of image 1"),
        (("images", 0, "file_name", 3), "3 as `file_name` of image 1"),
        (("images", 0, "file_name", "\ud800"), "as `file_name` of image 1"),
        (("categories", 0, "name", ""), "'' as `name` of category 1"),
    ],
)
def test_ids_names_and_sizes_that_make_no_sense(tmp_path, change, message):
    with pytest.raises(BadInput, match=rf"a\.json: found .*{message}"):
        read_instances(with_changes(tmp_path, change))


def test_ids_written_as_texts(tmp_path):
    plain = read_instances(with_changes(tmp_path))
    texts = [("images", n, "id", str(n + 1)) for n in range(2)] + [
        ("annotations", 0, "image_id", "1"),
        ("categories", 1, "id", "2"),
    ]
    read = read_instances(with_changes(tmp_path, *texts))
    assert (read.ids.tolist(), read.categories) == (plain.ids.tolist(), plain.categories)
    assert read.classes.tolist() == plain.classes.tolist()
    with pytest.raises(BadInput, match="the id 1 twice among images"):
        read_instances(with_changes(tmp_path, ("images", 1, "id", "1")))


def test_boxes_alone_are_tags_but_no_truth(tmp_path):
    data = open_coco(own(tmp_path, [(1, box(1, 1, 5, 5), 0), (2, [], 0), (1, None, 0), (2, [[1, 1, 9, 9]], 0)]))
    images = data.split("train")
    assert tags(images) == {"0": ["cat"], "1": ["dog"], "2": ["cat"], "3": ["dog"]}
    assert [mask is not None for mask in images.masks] == [True, False, False, False]
    assert data.scored_split is None
    assert any(
        "3 objects have no outline (only boxes); for this reason, 3 of 4 pictures" in note for note in data.notes
    )
    with pytest.raises(BadInput, match="3 pictures of train whose objects have no outlines"):
        open_coco(tmp_path, LayoutOptions(tag_rule="icam"))


def test_where_all_are_boxes_no_picture_has_a_truth(tmp_path):
    root = own(tmp_path, [(1, [], 0), (2, [], 0)])
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"].pop()
    path.write_text(json.dumps(content))
    assert open_coco(root).split("train").masks == (None, None)


def test_short_polygons_beside_good_ones_are_left_out(tmp_path):
    data = open_coco(own(tmp_path, [(1, [*box(1, 1, 5, 5), [20, 20, 30, 20]], 0)]))
    mask = data.split("train").read_mask(0)
    np.testing.assert_array_equal(mask, draw_mask([(0, {"segmentation": box(1, 1, 5, 5)})], SIZE, "clims", "a"))
    assert "train: polygons with fewer than three corners are left out of 1 objects" in data.notes


def run_lengths(inside):
    code = coco_api.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"counts": code["counts"].decode(), "size": code["size"]}


def test_crowds_are_objects_in_data_that_is_not_cocos_own(tmp_path):
    inside = np.zeros(SIZE, bool)
    inside[3:20, 5:30] = True
    inside[8:12, 9:15] = False  # a hole, so that tools mark it as a crowd
    root = own(tmp_path, [(2, run_lengths(inside), 1), (1, box(1, 1, 5, 5), 0)])
    data = open_coco(root)
    np.testing.assert_array_equal(data.split("train").read_mask(0), 2 * inside)
    assert any("1 objects are marked as crowds" in note for note in data.notes)
    assert not open_coco(root, LayoutOptions(mask_rule="clims")).split("train").read_mask(0).any()


def test_crowds_of_coco_stay_out(coco):
    data = open_coco(coco)
    assert not any("crowds" in note for note in data.notes)
    assert not any(mask.crowds for mask in data.split("train2014").masks)


ORIENTED = {"exif": b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00%c\x00\x00\x00\x00\x00\x00"}


def oriented(root, orientation, size_hw, stated_hw):
    exif = b"Exif\x00\x00" + ORIENTED["exif"] % orientation
    write_picture(root / "images/0.jpg", size_hw, exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "0.jpg", "height": stated_hw[0], "width": stated_hw[1]}],
        "categories": TWO,
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": box(1, 1, 5, 5)}],
    }
    write_text(root / "annotations/instances_train.json", json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("orientation", "size_hw", "stated_hw", "upright", "note"),
    [
        (6, (30, 40), (40, 30), True, "are turned by it"),
        (6, (30, 40), (30, 40), False, "are not turned by it"),
        (3, (30, 40), (30, 40), True, "sizes cannot tell"),
        (8, (30, 30), (30, 30), True, "sizes cannot tell"),
        (1, (30, 40), (30, 40), True, None),
    ],
)
def test_orientation_of_own_pictures(tmp_path, orientation, size_hw, stated_hw, upright, note):
    data = open_coco(oriented(tmp_path, orientation, size_hw, stated_hw))
    images = data.split("train")
    assert images.upright == upright
    assert images.read_mask(0, images.size_hw(0)).shape == stated_hw
    assert [told for told in data.notes if "EXIF" in told] == [told for told in data.notes if note and note in told]


def test_an_orientation_asked_for_against_the_sizes(tmp_path):
    root = oriented(tmp_path, 6, (30, 40), (40, 30))
    assert open_coco(root, LayoutOptions(upright=True)).split("train").upright
    with pytest.raises(BadInput, match=r"0\.jpg: found a mask of the picture's size after .*Set --upright true"):
        open_coco(root, LayoutOptions(upright=False))


def test_a_size_that_the_picture_does_not_have(tmp_path):
    """A crafted size must not be believed: the memory for it would end the process."""
    root = oriented(tmp_path, 1, (30, 40), (2**31 - 1, 2**31 - 1))
    images = open_coco(root).split("train")
    with pytest.raises(BadInput, match=r"a size of 2147483647x2147483647 .*expected 30x40 like its picture .*0\.jpg"):
        images.read_mask(0)


@pytest.mark.parametrize("size_hw", [(-5, 5), (0, 5), (2**40, 2**40), (10**6, 10**6)])
def test_sizes_of_no_picture(size_hw):
    with pytest.raises(BadInput, match=r"a mask of .* pixels"):
        draw_mask([], size_hw, "clims", "x")


@pytest.mark.parametrize(
    "shape",
    [
        {"counts": [2**63, -(2**63) + 1200], "size": [*SIZE]},
        {"counts": [2**64, 1200], "size": [*SIZE]},
        {"counts": [0.5, 1199.5], "size": [*SIZE]},
        {"counts": [True, 1199], "size": [*SIZE]},
        {"counts": [1200], "size": [30.0, 40]},
        {"counts": "o" * 100, "size": [*SIZE]},
        [[0, 0, 99999, 0] * 5000],
        [1, 2, 3, 4, 5, 6],
        [[10**400, 1, 2, 3, 4, 5]],
    ],
)
@pytest.mark.parametrize("rule", ["clims", "icam"])
def test_run_lengths_and_outlines_beyond_all_bounds(shape, rule):
    with pytest.raises(BadInput, match=r"x, annotation 5: found"):
        draw_mask([(0, {"id": 5, "segmentation": shape})], SIZE, rule, "x")


def test_more_classes_than_a_mask_can_hold(tmp_path):
    many = [{"id": n, "name": f"class {n}"} for n in range(300)]
    data = open_coco(own(tmp_path, [(280, box(1, 1, 5, 5), 0), (3, box(1, 1, 5, 5), 0)], categories=many))
    images = data.split("train")
    assert tags(images) == {"0": ["class 280"], "1": ["class 3"]}
    assert images.masks == (None, None)
    assert any("300 classes are too many" in note for note in data.notes)
    with pytest.raises(BadInput, match="300 classes; expected at most 254 for masks"):
        images.check_maskable()
