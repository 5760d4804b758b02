"""Every layout is read with the right classes, tags and masks, and a damaged one never as something else without a word."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import SIZE, write_picture, write_text
from tests.data.layouts import (
    LAYOUTS,
    SPLITS,
    TAGS,
    inside,
    labelme_content,
    labels,
    pairs,
    voc_main,
    write_mask_picture,
)
from wsss.data.info import overview
from wsss.data.open import open_dataset
from wsss.errors import BadInput


def tags(images):
    return {Path(name).name: [images.class_names[c] for c in images.classes(i)] for i, name in enumerate(images.names)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout(tmp_path, layout):
    write, has_masks, has_val = LAYOUTS[layout]
    data = open_dataset(write(tmp_path / "set"))
    assert (data.class_names, data.train, data.val) == (("cat", "dog"), "train", "val" if has_val else None)
    for split, names in (SPLITS if has_val else {"train": tuple(TAGS)}).items():
        images = data.split(split)
        assert tags(images) == {name: [TAGS[name]] for name in names}
        assert images.has_masks == has_masks
        for index, name in enumerate(images.names) if has_masks else ():
            np.testing.assert_array_equal(images.read_mask(index, SIZE), labels(Path(name).name))


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [
        ("images/{split}", "masks/{split}"),
        ("images/{split}", "annotations/{split}"),
        ("{split}/images", "{split}/masks"),
        ("{split}/image", "{split}/label"),
        ("image/{split}", "label/{split}"),
        ("images/{split}", "labels/{split}"),
        ("JPEGS/../imgs/{split}", "gt/{split}"),
    ],
)
def test_pairs_of_folders_by_any_name(tmp_path, pictures, masks):
    data = open_dataset(pairs(tmp_path / "set", pictures.replace("JPEGS/../", ""), masks))
    assert (data.kind, data.val) == ("pairs", "val")
    assert {**tags(data.split("train")), **tags(data.split("val"))} == {name: [tag] for name, tag in TAGS.items()}
    assert any(note.startswith("tags are the classes in the masks of") for note in data.notes)


def test_pairs_without_splits_and_with_an_ending(tmp_path):
    for name in TAGS:
        write_picture(tmp_path / f"images/{name}.jpg", seed=int(name))
        write_mask_picture(tmp_path / f"masks/{name}_mask.png", labels(name))
    write_picture(tmp_path / "images/more.jpg", seed=7)
    write_mask_picture(tmp_path / "masks/other_mask.png", labels("0"))
    data = open_dataset(tmp_path, classes="cat, dog")
    assert tags(data.split("train")) == {name: [tag] for name, tag in TAGS.items()}
    assert any("1 pictures left out, since they have no mask (images/more.jpg first)" in note for note in data.notes)
    assert any("1 masks belong to no picture (other_mask first)" in note for note in data.notes)


def test_pairs_without_names_of_classes(tmp_path):
    pairs(tmp_path)
    (tmp_path / "classes.txt").unlink()
    data = open_dataset(tmp_path)
    assert data.class_names == ("class 1", "class 2")
    assert "the 2 classes have no names" in data.notes[0]
    with pytest.raises(BadInput, match=r"found the label 2; expected labels up to 1 \(cat\)"):
        open_dataset(tmp_path, classes="cat")


def test_pairs_of_masks_with_255_alone(tmp_path):
    for name in TAGS:
        write_picture(tmp_path / f"images/{name}.jpg", seed=int(name))
        write_mask_picture(tmp_path / f"masks/{name}.png", inside(name).astype(np.uint8) * np.uint8(255))
    with pytest.raises(BadInput, match=r"masks that contain only 0 and 255; .*--mask-values 255=1"):
        open_dataset(tmp_path, classes="crack")
    data = open_dataset(tmp_path, classes="crack", mask_values="255=1")
    assert data.split("train").labels.all()
    np.testing.assert_array_equal(data.split("train").read_mask(0, SIZE), inside("0"))


def test_masks_of_no_picture(tmp_path):
    write_picture(tmp_path / "images/a.jpg")
    write_mask_picture(tmp_path / "masks/b.png", labels("0"))
    with pytest.raises(BadInput, match="no mask that is named like a picture"):
        open_dataset(tmp_path)


def test_objects_of_vocs_names_and_of_others(tmp_path):
    with pytest.raises(BadInput, match=r"an object 'kitten', which is no class; .*Give the list of classes"):
        open_dataset(voc_main(tmp_path))
    assert tags(open_dataset(tmp_path, classes="kitten, dog").split("train")) == {"0": ["kitten"], "1": ["dog"]}


def test_objects_of_other_names_than_vocs(tmp_path):
    voc_main(tmp_path)
    for path in (tmp_path / "Annotations").iterdir():
        path.write_text(path.read_text().replace(">dog<", ">puppy<"))
    data = open_dataset(tmp_path)
    assert data.class_names == ("kitten", "puppy")
    assert tags(data.split("train")) == {"0": ["kitten"], "1": ["puppy"]}
    assert any("the classes are the 2 names in Annotations, sorted" in note for note in data.notes)


def test_masks_in_vocs_layout_without_names(tmp_path):
    write_picture(tmp_path / "JPEGImages/a.jpg")
    write_mask_picture(tmp_path / "SegmentationClass/a.png", labels("0"))
    write_text(tmp_path / "ImageSets/Segmentation/train.txt", "a\n")
    with pytest.raises(BadInput, match=r"classes\.txt: found no such file.*they are not those of VOC 2012"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, classes="cat, dog").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat:1,2,3::\ncat:1,2,4::\n", "the label 'cat' again"),
        ("cat:1,2,3::\ndog:1,2,3::\n", r"the colour \(1, 2, 3\) for 'dog' and another label"),
        ("cat:1,2,3::\ndog:::\n", "no colour for the label 'dog'"),
        ("cat:1,2::\n", r"line 1: found the colour '1,2'"),
        ("cat:1,2,256::\n", "the colour '1,2,256'"),
        (":1,2,3::\n", "found no label"),
        ("# nothing\n", "found no label"),
    ],
)
def test_label_maps_that_are_broken(tmp_path, text, message):
    root = LAYOUTS["voc_of_cvat"][0](tmp_path)
    write_text(root / "labelmap.txt", text)
    with pytest.raises(BadInput, match=message):
        open_dataset(root)


def test_colours_that_the_label_map_does_not_name(tmp_path):
    root = LAYOUTS["voc_of_cvat"][0](tmp_path)
    write_text(root / "labelmap.txt", "background:0,0,0::\ncat:48,112,32::\n")
    with pytest.raises(BadInput, match=r"120 pixels of colour 176,112,32; expected those of labelmap\.txt"):
        open_dataset(root)


def test_what_is_ignored_in_a_label_map(tmp_path):
    root = LAYOUTS["voc_of_cvat"][0](tmp_path)
    write_text(root / "labelmap.txt", "background:0,0,0::\ncat:48,112,32::\nignored:176,112,32::\n")
    data = open_dataset(root)
    assert data.class_names == ("cat",)
    assert set(np.unique(data.split("train").read_mask(1, SIZE))) == {0, 255}


def test_a_supercategory_of_roboflow_that_has_objects(tmp_path):
    root = LAYOUTS["roboflow_coco"][0](tmp_path)
    path = root / "valid/_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    write_text(path, json.dumps(content))
    data = open_dataset(root)
    assert data.class_names == ("pets", "cat", "dog")
    assert tags(data.split("val")) == {"2": ["pets"]}


def test_categories_that_mean_nothing_or_are_ignored(tmp_path):
    root = LAYOUTS["coco"][0](tmp_path)
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        content["categories"] += [
            {"id": 0, "name": "_background_"},
            {"id": 9, "name": "__ignore__"},
            {"id": 7, "name": "sky"},
        ]
        # an ignored part over the object, and a part of it that is background again
        for number, category in enumerate((9, 0, 7)):
            content["annotations"].append(
                {
                    **content["annotations"][0],
                    "id": 90 + number,
                    "category_id": category,
                    "segmentation": [[5 + number, 3, 7, 3, 7, 5, 5 + number, 5]],
                }
            )
        write_text(path, json.dumps(content))
    data = open_dataset(root, negatives=["sky"])
    assert data.class_names == ("cat", "dog")
    assert tags(data.split("train")) == {"0": ["cat"], "1": ["dog"]}
    assert set(np.unique(data.split("train").read_mask(0, SIZE)).tolist()) == {0, 1, 255}
    assert open_dataset(root).class_names == ("cat", "dog", "sky")


def test_two_layouts_in_one_folder(tmp_path):
    LAYOUTS["yolo"][0](tmp_path)
    LAYOUTS["label_studio"][0](tmp_path)
    with pytest.raises(BadInput, match="found files of YOLO's tools and Label Studio"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "train: ../images/train\nval: ../images/val\nnames: ['cat', 'dog']\n",
        "path: /content/pets\ntrain: /content/pets/images/train\nval: /content/pets/images/val\nnames: [cat, dog]\n",
        "path: .\ntrain: ../set/images/train\nval: images/val\ntest: images/none\nnames: {0: cat, 1: dog}\n",
        "train: train.txt\nval: [images/val]\nnames:\n- cat\n- dog\n",
    ],
)
def test_paths_in_the_yaml_of_yolo(tmp_path, text):
    root = LAYOUTS["yolo"][0](tmp_path / "set")
    write_text(root / "data.yaml", text)
    write_text(root / "train.txt", "./images/train/0.jpg\nimages/train/1.jpg\n")
    data = open_dataset(root)
    assert tags(data.split("train")) == {"0": ["cat"], "1": ["dog"]}
    assert tags(data.split("val")) == {"2": ["cat"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "the class number 2; expected 0 to 1"),
        ("0 12 15 80 90", "with a number beyond 0 to 1"),
        ("0 0.5 0.5 0.1", "found '0 0.5 0.5 0.1'"),
        ("cat 0.5 0.5 0.1 0.1", "found 'cat 0.5"),
        ("0 0.5 nan 0.1 0.1", "found '0 0.5 nan"),
    ],
)
def test_texts_of_yolo_that_are_wrong(tmp_path, line, message):
    root = LAYOUTS["yolo"][0](tmp_path)
    write_text(root / "labels/train/1.txt", f"0 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(BadInput, match=rf"labels/train/1\.txt, line 2: .*{message}"):
        open_dataset(root)


def test_boxes_and_empty_texts_of_yolo(tmp_path):
    root = LAYOUTS["yolo"][0](tmp_path)
    write_text(root / "labels/train/0.txt", "")
    write_text(root / "labels/train/1.txt", "0 0.5 0.5 0.2 0.2\n")
    (root / "labels/val/2.txt").unlink()
    data = open_dataset(root, train="train")
    assert tags(data.split("train")) == {"0": [], "1": ["cat"]}
    assert data.split("train").masks == (None, None)
    assert any("1 pictures have no file in labels" in note for note in data.notes)
    assert any("objects are boxes" in note for note in data.notes)


def test_labels_of_yolo_without_names(tmp_path):
    root = LAYOUTS["yolo"][0](tmp_path)
    (root / "data.yaml").unlink()
    with pytest.raises(BadInput, match=r"data\.yaml: found no such file .*or classes\.txt"):
        open_dataset(root)
    write_text(root / "classes.txt", "cat\ndog\n")
    assert open_dataset(root).class_names == ("cat", "dog")


def test_files_of_labelme_apart_from_the_pictures(tmp_path):
    for name in TAGS:
        write_picture(tmp_path / f"images/{name}.jpg", seed=int(name))
        content = labelme_content(name) | {"imagePath": f"..\\images\\{name}.jpg"}
        write_text(tmp_path / f"json/{name}.json", json.dumps(content))
    assert tags(open_dataset(tmp_path).split("train")) == {name: [tag] for name, tag in TAGS.items()}
    write_text(tmp_path / "json/0.json", json.dumps(labelme_content("0") | {"imagePath": "../../out.jpg"}))
    with pytest.raises(BadInput, match=r"json/0\.json: found the picture '../../out\.jpg', which is outside"):
        open_dataset(tmp_path)


def test_skipped_pictures_of_labelme_on_windows_are_named(tmp_path):
    root = LAYOUTS["labelme"][0](tmp_path)
    (root / "pictures").mkdir()
    shutil.move(root / "train/1.jpg", root / "pictures/1.jpg")
    content = labelme_content("1") | {"imagePath": "..\\pictures\\1.jpg", "flags": {"__ignore__": True}}
    write_text(root / "train/1.json", json.dumps(content))
    notes = open_dataset(root).notes
    assert any("1 pictures with the flag __ignore__ are left out" in note for note in notes)
    assert not any("no file of labelme names them" in note for note in notes)


def test_flags_and_shapes_of_labelme(tmp_path):
    root = LAYOUTS["labelme"][0](tmp_path)
    content = labelme_content("0")
    write_text(root / "train/0.json", json.dumps(content | {"flags": {"bird": True, "fish": False}}))
    content = labelme_content("1")
    write_text(root / "train/1.json", json.dumps(content | {"flags": {"__ignore__": True}}))
    data = open_dataset(root)
    assert data.class_names == ("bird", "cat", "dog")
    assert tags(data.split("train")) == {"0": ["bird", "cat"]}
    # nobody drew the bird: what is not drawn may be one
    assert data.split("train").masks == (None,)
    assert any("1 pictures with the flag __ignore__ are left out" in note for note in data.notes)


def test_choices_that_two_annotators_disagree_about(tmp_path):
    root = LAYOUTS["label_studio"][0](tmp_path)
    tasks = json.loads((root / "project-1.json").read_text())
    write_text(root / "project-1.json", json.dumps([*tasks, tasks[0] | {"choice": {"choices": ["cat", "dog"]}}]))
    with pytest.raises(BadInput, match=r"task 4: found other choices for 0\.jpg \(cat, dog\) than in .*task 1 \(cat\)"):
        open_dataset(root)
    write_text(root / "project-1.json", json.dumps([*tasks, tasks[0]]))
    assert len(open_dataset(root).split("train")) == 2


def test_the_file_that_says_it_all_may_be_given(tmp_path):
    assert open_dataset(LAYOUTS["yolo"][0](tmp_path / "a") / "data.yaml").kind == "yolo"
    assert open_dataset(LAYOUTS["label_studio"][0](tmp_path / "b") / "project-1.json").kind == "label_studio"


def test_a_table_for_pictures_of_any_layout(tmp_path):
    root = LAYOUTS["yolo"][0](tmp_path)
    write_text(
        root / "own.csv", "image,tags\n" + "".join(f"images/{s}/{n}.jpg,bird\n" for s, ns in SPLITS.items() for n in ns)
    )
    assert open_dataset(root, tags=root / "own.csv").class_names == ("bird",)


PICTURES = (".jpg", ".png")


def edit(draw, root: Path) -> Path:
    """Change one file of a data set at random; gives the file."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = draw(st.sampled_from(files))
    how = draw(st.sampled_from(["rename", "delete", "truncate", "duplicate", "swap", "bytes", "words", "move"]))
    blob = path.read_bytes()
    if how == "rename":
        path.rename(path.with_name(draw(st.sampled_from(["x.png", "..jpg", "a b.JPG", "ü.json", "0.txt"]))))
    elif how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(blob[: draw(st.integers(0, len(blob)))])
    elif how == "duplicate":
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    elif how == "swap":
        other = draw(st.sampled_from([file for file in files if file.suffix == path.suffix]))
        path.write_bytes(other.read_bytes())
        other.write_bytes(blob)
    elif how == "bytes" and blob:
        at = draw(st.integers(0, len(blob) - 1))
        path.write_bytes(blob[:at] + draw(st.binary(max_size=3)) + blob[at + 1 :])
    elif how == "words" and path.suffix not in PICTURES:
        words = [b"cat", b"1", b"image", b"jpg", b'"', b",", b"2", b"0.", b"dog", b"true", b"[", b":"]
        new = [
            b"",
            b"../",
            b"null",
            b"[]",
            b"-1",
            b"9" * 30,
            b"\\u0000",
            b"0",
            b"bird",
            b"{}",
            b"1e999",
            b"true",
            b'"x"',
        ]
        path.write_bytes(
            blob.replace(draw(st.sampled_from(words)), draw(st.sampled_from(new)), draw(st.integers(1, 3)))
        )
    elif how == "move":
        folder = draw(st.sampled_from(sorted({file.parent for file in files} | {root})))
        with contextlib.suppress(shutil.SameFileError):
            shutil.copy(path, folder / path.name)
    return path


def by_name(data):
    return {
        name: row
        for images in data.splits.values()
        for name, row in zip(images.names, images.labels.tolist(), strict=True)
    }


def check_an_edit(tmp_path, layout, data):
    """BadInput, or what the files now say: never another error, classes that stand nowhere, other tags of other pictures, or a file elsewhere."""
    root = tmp_path / "set"
    shutil.rmtree(root, ignore_errors=True)
    LAYOUTS[layout][0](root)
    first = open_dataset(root)
    edited = edit(data.draw, root)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    try:
        second = open_dataset(root, skip_missing=data.draw(st.booleans()))
        overview(second, decode=True)
    except BadInput:
        return
    finally:
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for images in second.splits.values():
        assert all(path.resolve().is_relative_to(root.resolve()) for path in images.paths)
    if edited.suffix in PICTURES:
        assert second.class_names == first.class_names or second.notes != first.notes
        if second.class_names == first.class_names and edited.suffix == ".jpg":
            shared = by_name(first).keys() & by_name(second).keys()
            assert {name: by_name(second)[name] for name in shared} == {name: by_name(first)[name] for name in shared}
    elif second.notes == first.notes:
        texts = b" ".join(blob for path, blob in before.items() if path.suffix not in PICTURES)
        for name in second.class_names:
            assert name.startswith("class ") or any(
                form in texts for form in (name.encode(), json.dumps(name).strip('"').encode())
            )


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_edits_are_noticed_or_harmless(tmp_path, layout, data):
    check_an_edit(tmp_path, layout, data)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_random_edits_are_noticed_or_harmless(tmp_path, layout, data):
    check_an_edit(tmp_path, layout, data)
