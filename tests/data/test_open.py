"""What a path holds is found out without options, or refused with all layouts named."""

import subprocess
import sys

import pytest

from tests.data.conftest import write_coco, write_picture, write_text, write_voc
from wsss.data.open import open_dataset
from wsss.data.shapes import make_shapes
from wsss.errors import BadInput


def test_each_layout(voc, coco, folders, table, tmp_path):
    roots = {"voc": voc.parent.parent, "coco": coco, "folders": folders, "tags": table}
    assert {kind: open_dataset(root).kind for kind, root in roots.items()} == {kind: kind for kind in roots}
    assert open_dataset(str(voc)).root == voc
    assert open_dataset(table / "tags.csv").kind == "tags"
    shapes = make_shapes(tmp_path / "shapes", train=2, val=1, size=48)
    assert open_dataset(shapes).class_names[0] == "ball"


def test_options_reach_the_layout(voc, coco, folders, tmp_path):
    classes = write_text(tmp_path / "names.txt", "dog\ncat\n")
    assert open_dataset(folders, classes=str(classes)).class_names == ("dog", "cat")
    assert open_dataset(voc, upright=True, tag_rule="clip-es", val="train").split("train").upright
    assert open_dataset(voc, val="train").val == "train"
    assert len(open_dataset(coco, tag_rule="clip-es").split("train2014")) == 3
    assert open_dataset(coco, mask_rule="icam").split("train2014").masks[0].rule == "icam"
    rows = write_text(tmp_path / "own.csv", "image,tags\ndog/1,wolf\n")
    assert open_dataset(folders, tags=str(rows)).class_names == ("wolf",)
    (voc / "JPEGImages/2007_000039.jpg").unlink()
    assert len(open_dataset(voc, skip_missing=True).split("train")) == 1


def test_rules_of_other_layouts(voc, coco, folders):
    for root, options, message in (
        (voc, {"tag_rule": "icam"}, "tag_rule: found 'icam'; expected one of irn, clims-camera-ready, clip-es for"),
        (voc, {"mask_rule": "icam"}, "mask_rule: found 'icam'; expected none for"),
        (coco, {"tag_rule": "irn"}, "tag_rule: found 'irn'; expected one of clims, icam, clip-es"),
        (coco, {"mask_rule": "irn"}, "mask_rule: found 'irn'; expected one of clims, icam"),
        (folders, {"tag_rule": "irn"}, "tag_rule: found 'irn'; expected none"),
    ):
        with pytest.raises(BadInput, match=message):
            open_dataset(root, **options)


ALL = r"one folder per class .*a table tags\.csv.*VOC 2012 .*COCO .*pairs of folders.*labelme.*YOLO.*imagefolder.*Label Studio"


def test_nothing_to_open(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere: found no such file or folder; expected a dataset.*Check the path"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=rf"empty: found an empty folder; expected one of: {ALL}"):
        open_dataset(tmp_path / "empty")
    archive = write_text(tmp_path / "voc.tar", "x")
    with pytest.raises(BadInput, match=rf"voc\.tar: found a file; expected one of: {ALL}.*Unpack it"):
        open_dataset(archive)
    write_text(tmp_path / "texts/a/b.txt", "x")
    with pytest.raises(BadInput, match=rf"texts: found a/; expected one of: {ALL}"):
        open_dataset(tmp_path / "texts")


def test_two_layouts_at_once(tmp_path):
    write_coco(write_voc(tmp_path))
    with pytest.raises(BadInput, match=r"found both VOC's layout and COCO's \(.*JPEGImages/.*\)"):
        open_dataset(tmp_path)


def test_a_data_set_further_down(tmp_path):
    write_voc(tmp_path / "sets" / "VOC2007")
    with pytest.raises(
        BadInput,
        match=r"found a data set further down .*sets/VOC2007/JPEGImages.*Give the folder of the data set itself",
    ):
        open_dataset(tmp_path)
    write_coco(tmp_path / "coco")
    with pytest.raises(BadInput, match="further down"):
        open_dataset(tmp_path)


def test_bad_tag_files(folders, tmp_path):
    with pytest.raises(BadInput, match=r"none\.csv: found no such file; expected a file of tags"):
        open_dataset(folders, tags=tmp_path / "none.csv")
    with pytest.raises(BadInput, match=r"found a file of type '\.xlsx'"):
        open_dataset(folders, tags=write_text(tmp_path / "a.xlsx", ""))


def test_loose_pictures_without_tags(tmp_path):
    write_picture(tmp_path / "a.jpg")
    with pytest.raises(BadInput, match=r"1 pictures outside any class folder .* and no table of tags"):
        open_dataset(tmp_path)


def test_slow_libraries_are_not_needed(voc, coco, folders, table):
    code = (
        "import sys; from wsss.data.open import open_dataset; from wsss.data.info import overview, render; "
        "from wsss.data.shapes import make_shapes\n"
        "for path in sys.argv[1:]: render(overview(open_dataset(path)))\n"
        "print([name for name in ('torch', 'torchvision', 'cv2', 'pycocotools', 'scipy') if name in sys.modules])"
    )
    roots = [str(root) for root in (voc, coco, folders, table)]
    done = subprocess.run([sys.executable, "-c", code, *roots], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("place", ["run", "run/masks", "."])
def test_the_results_of_runs_are_no_data_sets(tmp_path, place):
    for name in ("run/data.json", "run/masks/done.json", "run/cams/started.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    kinds = {"run": "a run folder", "run/masks": "the folder of a stage", ".": "a folder of runs"}
    with pytest.raises(BadInput, match=f"found {kinds[place]}, which `wsss` made; expected a data set"):
        open_dataset(tmp_path / place)


@pytest.mark.parametrize("place", ["masks", "runs"])
@pytest.mark.parametrize("marker", ["done.json", "started.json"])
def test_results_among_the_pictures(folders, place, marker):
    write_text(folders / place / marker, '{\n  "record": 3, "identity": "a", "inputs": {}}')
    with pytest.raises(BadInput, match=rf"{place}: found results that `wsss` made, inside the data set"):
        open_dataset(folders)
    (folders / place).rename(folders / "cat" / "deeper")
    with pytest.raises(BadInput, match=rf"{marker}: found results that `wsss` made, inside the data set"):
        open_dataset(folders)


def test_results_next_to_a_table(table):
    record = '{\n  "record": 3, "identity": "a", "inputs": {}}'
    write_text(table / "runs" / "done.json", record)
    assert len(open_dataset(table).split("train"))
    write_text(table / "masks" / "done.json", record)
    with pytest.raises(BadInput, match=r"masks: found results that `wsss` made, inside the data set"):
        open_dataset(table)
