"""What all exports share: which pictures, unsure pixels, interrupted exports, other inputs."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wsss
from tests.peers.masks import masks
from wsss.cli import main
from wsss.data.files import read_mask, write_mask
from wsss.data.folder import open_pictures
from wsss.data.images import Images
from wsss.data.lists import EXPORT_RECORD
from wsss.errors import BadInput
from wsss.formats import FORMATS, format_named
from wsss.formats.export import export_masks
from wsss.formats.format import Export, Format, Item, Part, Task
from wsss.formats.job import PARTS
from wsss.formats.options import ExportOptions, ImportOptions, ObjectOptions
from wsss.run import stage

WRITTEN_ONLY = ("voc-server",)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def options_of(given, out: Path, format: str = "coco", **more) -> ExportOptions:
    kind = format_named(format).export.options
    return kind(masks=given.root / "masks", out=out, format=format, **{**given.given, **more})


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in WRITTEN_ONLY])
def test_a_stopped_export_continues_to_the_same_bytes(format, hard_masks, tmp_path):
    whole, stopped = tmp_path / "whole/out", tmp_path / "stopped/out"
    hard_masks.export(format, whole)
    known = format_named(format)
    written: list[str] = []

    def write_some(task: Task, item: Item) -> object:
        if len(written) == 5:
            raise MemoryError("as if killed")
        written.append(item.name)
        return known.export.write(task, item)

    dying = dataclasses.replace(known, export=dataclasses.replace(known.export, write=write_some))
    with pytest.raises(MemoryError):
        export_masks(dying, options_of(hard_masks, stopped, format))
    assert not (stopped / EXPORT_RECORD).exists()
    stored = {
        path.relative_to(stopped / PARTS).with_suffix("").as_posix() for path in (stopped / PARTS).rglob("*.json")
    }
    again: list[str] = []

    def write_rest(task: Task, item: Item) -> object:
        again.append(item.name)
        return known.export.write(task, item)

    going_on = dataclasses.replace(known, export=dataclasses.replace(known.export, write=write_rest))
    export_masks(going_on, options_of(hard_masks, stopped, format))
    assert files(stopped) == files(whole)
    assert stored > {"started"}
    assert set(again) == set(masks(unsure=False)) - stored


@pytest.mark.parametrize("dies_in", ["finish", "parts"])
def test_an_export_that_died_at_the_end_is_finished(dies_in, two, tmp_path):
    known, out = format_named("coco"), tmp_path / "out"

    def finish(task: Task, parts: Iterable[Part]) -> Path:
        result = known.export.finish(task, parts if dies_in == "finish" else iter(list(parts)[:1]))
        raise MemoryError(result)

    dying = dataclasses.replace(known, export=dataclasses.replace(known.export, finish=finish))
    with pytest.raises(MemoryError):
        export_masks(dying, options_of(two, out))
    two.export("coco", out)
    two.export("coco", tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


def test_a_finished_export_is_left_alone(two, tmp_path):
    path = two.export("coco", tmp_path / "out")
    path.write_text("edited by a person")
    assert two.export("coco", tmp_path / "out") == path
    assert path.read_text() == "edited by a person"
    with pytest.raises(BadInput, match=r"made with other per.*Remove the folder"):
        two.export("coco", tmp_path / "out", per="class")
    mask = two.root / "masks/a.png"
    write_mask(mask, np.zeros_like(read_mask(mask)))
    with pytest.raises(BadInput, match="made with other masks"):
        two.export("coco", tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(BadInput, match="files that this command did not write"):
        two.export("coco", tmp_path / "other")


@pytest.mark.parametrize("how", ["copy", "link", "none"])
def test_pictures_are_copied_linked_or_left(how, two, tmp_path):
    before = files(two.root)
    index = two.export("coco", tmp_path / "out", copy_pictures=how)
    for name in ("a.jpg", "in/b.jpg"):
        place = tmp_path / "out/images/train" / name
        assert place.exists() == (how != "none")
        assert place.is_symlink() == (how == "link")
        if how != "none":
            assert place.read_bytes() == (two.root / "pictures" / name).read_bytes()
    assert [each["file_name"] for each in json.loads(index.read_text())["images"]] == ["a.jpg", "in/b.jpg"]
    assert files(two.root) == before


def test_unsure_pixels_are_counted_and_what_they_became_is_said(unsure_masks, tmp_path, capsys):
    def run(format: str, *words: str) -> tuple[str, dict]:
        out, root = tmp_path / f"{format} {words}", unsure_masks.root
        given = ["--pictures", root / "pictures", "--classes", root / "classes.txt", "--out", out, "--format", format]
        assert main(["export", "masks", str(root / "masks"), *map(str, given), *words]) == 0
        return capsys.readouterr().err, json.loads((out / EXPORT_RECORD).read_text())

    pixels = sum((read_mask(path) == 255).sum() for path in (unsure_masks.root / "masks").rglob("*.png"))
    said, record = run("coco")
    assert f"{pixels} unsure pixels (255) are excluded: written as background" in said
    assert record["unsure"]["pixels"] == pixels
    assert [each["name"] for each in record["classes"]] == ["cat", "<dog & 'hound'>", "bird", "never seen"]
    assert "classes without pixels: never seen" in said
    said, record = run("hf")
    assert f"{pixels} unsure pixels (255) are ignored" in said
    said, record = run("coco", "--unsure", "class")
    assert record["classes"][-1]["name"] == "unsure"
    assert record["classes"][-1]["pixels"] == pixels
    with pytest.raises(BadInput, match="coco cannot mark pixels as ignored"):
        unsure_masks.export("coco", tmp_path / "out", unsure="ignore")


def test_other_classes_and_sizes_leave_nothing_behind(two, tmp_path):
    (two.root / "classes.txt").write_text("cat\n")
    with pytest.raises(BadInput, match=r"a.png: found label 2 \(4 pixels\)"):
        two.export("coco", tmp_path / "out")
    assert list(tmp_path.glob("out/*")) == []
    (two.root / "classes.txt").write_text("cat\ndog\n")
    Image.new("RGB", (7, 4)).save(two.root / "pictures/in/b.jpg")
    with pytest.raises(
        BadInput, match=r"in/b.png: found a mask of 4x6 \(height x width\); expected 4x7 like its picture"
    ):
        two.export("coco", tmp_path / "out")
    assert list(tmp_path.glob("out/*")) == []
    (two.root / "pictures/in/b.jpg").unlink()
    with pytest.raises(BadInput, match=r"no picture of 1 of 2 masks \(in/b first\)"):
        two.export("coco", tmp_path / "out")


def test_the_output_does_not_lie_among_the_masks(two):
    for place in (two.root / "masks", two.root / "masks/out", two.root):
        with pytest.raises(BadInput, match="with the masks in"):
            two.export("coco", place)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Give --pictures and --classes"),
        ({"pictures": "pictures"}, "Give --classes"),
        ({"pictures": "pictures", "data": "pictures"}, "--data and --pictures: found both"),
    ],
)
def test_pictures_and_classes_have_to_be_known(given, message, two, tmp_path):
    places = {name: two.root / place for name, place in given.items()}
    with pytest.raises(BadInput, match=message):
        wsss.export("coco", two.root / "masks", tmp_path / "out", **places)


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Settings of a stage."""


@stage(kind="refine", makes="masks", title="as given")
def copied(settings: Nothing, images: Images, *, source: Path, out: Path) -> dict[str, int]:
    for name in images.names:
        write_mask(out / f"{name}.png", read_mask(source / f"{name}.png"))
    return {"images": len(images)}


def test_a_stage_knows_its_classes_pictures_and_tags(two, tmp_path):
    paths = (two.root / "pictures/in/b.jpg", two.root / "pictures/a.jpg")
    tags = np.array([[True, False], [False, True]])
    images = Images("x", ("in/b", "a"), paths, ("cat", "dog"), tags, (None, None))
    made = copied(Nothing(), images, source=two.root / "masks", out=tmp_path / "masks")
    with pytest.raises(BadInput, match="does not say where its pictures are"):
        wsss.export("hf", made, tmp_path / "out")
    out = wsss.export("hf", made, tmp_path / "out", pictures=two.root / "pictures")
    table = (out / "train/metadata.csv").read_text().splitlines()
    assert table[1:] == [
        "images/in/b.jpg,masks/in/b.png,cat",
        "images/a.jpg,masks/a.png,dog",
    ]  # the order and tags of the stage
    with pytest.raises(BadInput, match="--classes: found"):
        wsss.export("hf", made, tmp_path / "other", pictures=two.root / "pictures", classes="dog, cat")
    Image.new("RGB", (6, 4), "red").save(paths[1])
    with pytest.raises(BadInput, match=r"a.jpg: found another picture than the masks were made from"):
        wsss.export("hf", made, tmp_path / "other", pictures=two.root / "pictures")
    paths[1].unlink()
    with pytest.raises(BadInput, match="no picture 'a'"):
        wsss.export("hf", made, tmp_path / "other", pictures=two.root / "pictures")


def test_predictions_of_a_plain_folder_have_the_classes_of_their_segmenter(two, tmp_path):
    """Pictures without tags and classes: only the record of the predictions names the classes."""

    @stage(kind="predict", makes="predictions", title="segmenter")
    def predicted(images, *, out):
        for name in images.names:
            write_mask(out / f"{name}.png", read_mask(two.root / "masks" / f"{name}.png"))
        return {"images": len(images), "classes": ["cat", "dog"]}

    made = predicted(open_pictures(two.root / "pictures"), out=tmp_path / "predictions")
    out = wsss.export("coco", made, tmp_path / "out", pictures=two.root / "pictures")
    exported = json.loads(out.read_text())
    assert [each["name"] for each in exported["categories"]] == ["cat", "dog"]
    assert {each["category_id"] for each in exported["annotations"]} == {1, 2}


def test_pictures_without_a_mask_are_left_out_and_counted(two, tmp_path, capsys):
    (two.root / "masks/in/b.png").unlink()
    chosen = format_named("coco")
    exported = export_masks(chosen, options_of(two, tmp_path / "out"))
    assert [each["file_name"] for each in json.loads(exported.path.read_text())["images"]] == ["a.jpg"]
    assert "1 pictures have no mask, and are left out" in exported.summary


def test_every_format_keeps_the_rules():
    for name in FORMATS:
        format = format_named(name)
        assert isinstance(format, Format)
        assert isinstance(format.export, Export)
        assert format.name == name
        assert issubclass(format.export.options, ExportOptions)
        assert (format.imports is None) == (name in WRITTEN_ONLY)
        assert format.imports is None or issubclass(format.imports.options, ImportOptions)
    assert {field.name for field in dataclasses.fields(ObjectOptions)} > {"per", "unsure", "copy_pictures"}
    with pytest.raises(BadInput, match="Did you mean 'coco'"):
        format_named("cocco")


def test_help_names_the_formats_and_their_options(capsys):
    for words, shown in (
        (["export", "masks", "--help"], "coco-panoptic"),
        (["export", "masks", "--format", "coco", "--help-all"], "--polygons"),
        (["import", "masks", "--format=yolo-semantic", "--help-all"], "--ignored"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert shown in capsys.readouterr().out
    assert main(["export", "masks", "M", "--out", "O", "--format", "cvat", "--polygons"]) == 2
    assert main(["import", "masks", "M", "--out", "O", "--format", "voc-server"]) == 2
