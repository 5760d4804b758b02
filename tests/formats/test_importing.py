"""What all imports share: which picture is meant, classes, sizes, renaming, interrupted imports, other inputs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsss
from tests.formats.test_exporting import files
from wsss.cli import main
from wsss.data.files import read_mask
from wsss.data.lists import IMPORT_RECORD
from wsss.errors import BadInput
from wsss.formats import format_named
from wsss.formats.importing import import_masks
from wsss.formats.options import ImportOptions


def edited(path: Path, edit) -> Path:
    """The COCO file with an edit, as another file."""
    content: dict[str, Any] = json.loads(path.read_text())
    edit(content)
    made = path.with_name(f"edited {len(list(path.parent.iterdir()))}.json")
    made.write_text(json.dumps(content))
    return made


def renamed_to(name):
    return lambda content: content["categories"][0].update(name=name)


def named(*names):
    def edit(content):
        for image, name in zip(content["images"], names, strict=True):
            image["file_name"] = name

    return edit


def only_first(content):
    del content["images"][1:]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] == 1]


def test_a_part_of_the_pictures_may_come_back(two, tmp_path, capsys):
    path = edited(two.export("coco", tmp_path / "out"), only_first)
    given = ["--pictures", two.root / "pictures", "--classes", "cat, dog", "--out", tmp_path / "back"]
    assert main(["import", "masks", str(path), "--format", "coco", *map(str, given)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "back")
    assert "1 of 2 pictures have a corrected mask" in said.err
    assert [path.name for path in (tmp_path / "back").rglob("*.png")] == ["a.png"]


def test_changes_against_the_masks_before_are_counted(two, tmp_path):
    path = edited(two.export("coco", tmp_path / "out"), lambda content: content["annotations"].pop())
    options = ImportOptions(file=path, out=tmp_path / "back", format="coco", masks=two.root / "masks", **two.given)
    assert "1 of them differ from the masks before, in 1 pixels" in import_masks(format_named("coco"), options).summary
    empty = dataclasses.replace(options, file=edited(path, lambda content: content["annotations"].clear()))
    with pytest.raises(BadInput, match="made with other file"):
        import_masks(format_named("coco"), empty)
    summary = import_masks(format_named("coco"), dataclasses.replace(empty, out=tmp_path / "other")).summary
    assert "2 of them have no object in the file: their masks are background only" in summary
    assert not read_mask(tmp_path / "other/a.png").any()


def test_classes_are_matched_by_name_and_may_be_renamed(two, tmp_path):
    path = two.export("coco", tmp_path / "out")
    before = two.imported("coco", path)
    other = edited(path, renamed_to("kitty"))
    with pytest.raises(BadInput, match=r"found the class 'kitty'; expected one of our 2 classes \(cat, dog\)"):
        two.imported("coco", other)
    assert not (path.parent / f"{other.name} imported/a.png").exists()
    for rename, label in (
        ("kitty=cat", 1),
        ("kitty=dog", 2),
        ("kitty=", 0),
        ("kitty=unsure", 255),
        ("kitty = cat ", 1),
    ):
        again = edited(path, renamed_to("kitty"))
        found = two.imported("coco", again, rename=rename)["a"]
        np.testing.assert_array_equal(found, np.where(before["a"] == 1, label, before["a"]))
    swapped = edited(
        path,
        lambda content: [
            each.update(name=name) for each, name in zip(content["categories"], ("dog", "cat"), strict=True)
        ],
    )
    assert (two.imported("coco", swapped)["in/b"] == 2 * (before["in/b"] == 1)).all()
    for rename in ("kitty", "kitty=lion", "=cat", "a=cat, a=dog"):
        with pytest.raises(BadInput, match="--rename"):
            two.imported("coco", path, rename=rename)


def test_pictures_are_found_by_the_end_of_their_path(two, tmp_path):
    path = two.export("coco", tmp_path / "out")
    before = two.imported("coco", path)
    for names in (("/data/x/a.png", "b.jpg"), ("a", "C:\\x\\in\\b.tif"), ("./a.jpg", "upload/in/b.jpg")):
        found = two.imported("coco", edited(path, named(*names)))
        assert all((found[name] == before[name]).all() for name in before)
    for names, message in (
        (("a.jpg", "c.jpg"), "the picture 'c.jpg'; expected one of our 2 pictures"),
        (("a.jpg", "other/a.jpg"), "'other/a.jpg', which is our picture 'a', as 'a.jpg'"),
    ):
        with pytest.raises(BadInput, match=message):
            two.imported("coco", edited(path, named(*names)))
    (two.root / "pictures/of").mkdir()
    (two.root / "pictures/of/b.jpg").write_bytes((two.root / "pictures/in/b.jpg").read_bytes())
    with pytest.raises(BadInput, match=r"'b.jpg', which may be in/b or of/b"):
        two.imported("coco", edited(path, named("a.jpg", "b.jpg")))


def test_sizes_have_to_be_ours(two, tmp_path):
    path = two.export("coco", tmp_path / "out")
    turned = edited(path, lambda content: content["images"][0].update(height=6, width=4))
    with pytest.raises(BadInput, match=r"'a.jpg' of 6x4 \(height x width\); expected 4x6 like our picture"):
        two.imported("coco", turned)


def test_a_stopped_import_continues(two, tmp_path):
    path = two.export("coco", tmp_path / "out")
    two.imported("coco", path)
    whole = path.parent / f"{path.name} imported"
    known = format_named("coco")
    assert known.imports is not None

    def dying(ours, options):
        for at, one in enumerate(known.imports.read(ours, options)):
            yield one if at == 0 else dataclasses.replace(one, draw=stop)

    def stop(size_hw):
        raise MemoryError

    options = ImportOptions(file=path, out=tmp_path / "stopped", format="coco", **two.given)
    with pytest.raises(MemoryError):
        import_masks(dataclasses.replace(known, imports=dataclasses.replace(known.imports, read=dying)), options)
    assert (tmp_path / "stopped/a.png").exists()
    assert not (tmp_path / "stopped" / IMPORT_RECORD).exists()
    import_masks(known, options)
    assert files(tmp_path / "stopped") == files(whole)


def test_other_inputs_are_refused(two, tmp_path):
    path = two.export("coco", tmp_path / "out")
    with pytest.raises(BadInput, match="Give --masks RUN/masks, or --pictures FOLDER and --classes"):
        wsss.import_masks("coco", path, tmp_path / "back")
    with pytest.raises(BadInput, match="no such file or folder"):
        two.imported("coco", tmp_path / "nowhere")
    with pytest.raises(BadInput, match="voc-server is only written"):
        two.imported("voc-server", path)
    for out in (tmp_path / "out", tmp_path):
        with pytest.raises(BadInput, match="--out"):
            wsss.import_masks("coco", tmp_path / "out", out, **two.given)
    for content in (b"", b"{", b"[]", b'{"images": [], "annotations": [], "categories": []}'):
        path.write_bytes(content)
        with pytest.raises(BadInput):
            two.imported("coco", path)
        assert list(path.parent.glob("* imported/*.png")) == []


def test_segments_that_the_file_does_not_list_are_refused(two, tmp_path):
    out = tmp_path / "out"
    path = two.export("coco-panoptic", out)
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"a.png: found the segment id \d"):
        two.imported("coco-panoptic", out)


def test_boxes_and_unknown_numbers_of_yolo_are_refused(two, tmp_path):
    out = tmp_path / "out"
    two.export("yolo-seg", out)
    text = out / "labels/train/a.txt"
    for line, message in (
        ("0 0.5 0.5 0.2 0.2\n", "a box in place of a polygon"),
        ("9 0 0 1 0 1 1\n", "class number 9"),
    ):
        text.write_text(line)
        with pytest.raises(BadInput, match=message):
            two.imported("yolo-seg", out)


def test_ids_of_imagefolder_are_matched_by_name(two, tmp_path):
    out = tmp_path / "out"
    two.export("hf", out)
    before = two.imported("hf", out)
    labels = out / "id2label.json"
    labels.write_text(json.dumps({"0": "background", "1": "dog", "2": "cat"}))
    swapped = tmp_path / "swapped"
    wsss.import_masks("hf", out, swapped, **two.given)
    for name, mask in before.items():
        np.testing.assert_array_equal(read_mask(swapped / f"{name}.png"), np.array([0, 2, 1], np.uint8)[mask])


def test_yolo_semantic_without_a_background(two, tmp_path):
    out = tmp_path / "out"
    two.export("yolo-semantic", out, background="ignore")
    known = {name: read_mask(two.root / "masks" / f"{name}.png") for name in ("a", "in/b")}
    for name, mask in known.items():
        np.testing.assert_array_equal(read_mask(out / "masks/train" / f"{name}.png"), np.where(mask, mask - 1, 255))
    for name, mask in two.imported("yolo-semantic", out, ignored="background").items():
        np.testing.assert_array_equal(mask, known[name])
