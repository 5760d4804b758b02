"""The index of COCO annotations: read piece by piece, and remembered for large files until they change."""

import json
import os
import time

import numpy as np
import pytest

from tests.data.conftest import write_coco, write_text
from wsss import digests
from wsss.data import coco_index
from wsss.data.coco_index import Instances, read_instances
from wsss.errors import BadInput

ARRAYS = ("ids", "sizes_hw", "first", "starts", "lengths", "classes", "outlined", "crowds")


@pytest.fixture
def annotations(tmp_path):
    """A file of annotations."""
    return write_coco(tmp_path / "coco") / "annotations/instances_train2014.json"


@pytest.fixture
def remembered(annotations, tmp_path, monkeypatch):
    """The folder of a cache of its own; the annotations count as large, and as old."""
    monkeypatch.setattr(coco_index, "_LARGE", 0)
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    clock = digests.time.time_ns
    monkeypatch.setattr(digests.time, "time_ns", lambda: clock() + 10**10)
    return tmp_path / "cache" / "datasets"


def check_same(one, other):
    for name in ("file_names", "categories", "supercategories", "digests"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ARRAYS:
        assert getattr(one, name).dtype == getattr(other, name).dtype
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_files_are_read_piece_by_piece(annotations, monkeypatch, piece):
    content = json.loads(annotations.read_text())
    content["images"][0]["file_name"] = "dé.jpg"
    odd = {"info": {"ü\u2028": [-12.5e3, '\\ " ]}', None, True]}, "n": 1234567890.25, "m": [], "l": float("inf")}
    text = json.dumps({**odd, **content, "last": -1.5e-7}, ensure_ascii=False)
    for form in (text, text.replace("{", "{ \n\t").replace(",", " ,\r\n"), "\ufeff" + text):
        annotations.write_text(form, newline="")
        whole = read_instances(annotations)
        with monkeypatch.context() as patch:
            patch.setattr(coco_index, "_PIECE", piece)
            check_same(read_instances(annotations), whole)
        assert whole.file_names[0] == "dé.jpg"
        assert [entry for position in range(4) for _, entry in whole.objects(position)] == sorted(
            content["annotations"], key=lambda entry: [one["id"] for one in content["images"]].index(entry["image_id"])
        )


@pytest.mark.parametrize("piece", [1, 5, 1 << 22])
@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"info": 12345 6}', "line 1, column 16"),
        ('{\n"images": [{"id": 1,\n  "file_name": nul}]}', "line 3, column 16"),
        ('{"a": 1,\n\n "images": [{}\n   {}]}', "line 4, column 4"),
        ('{"a": 1,\n "b": "\n', "line 2, column 8"),
        ('{"n": 1.x}', "line 1, column 8"),
    ],
)
def test_the_place_of_broken_json_is_named(tmp_path, monkeypatch, piece, content, place):
    monkeypatch.setattr(coco_index, "_PIECE", piece)
    monkeypatch.setattr(coco_index._Index, "add", lambda *arguments: None)
    with pytest.raises(BadInput, match=f"broken JSON at {place}"):
        read_instances(write_text(tmp_path / "a.json", content))


def test_the_index_of_a_large_file_is_remembered(annotations, remembered, monkeypatch):
    first = read_instances(annotations)
    assert first.digests
    monkeypatch.setattr(coco_index, "_indexed", None)
    monkeypatch.setattr(Instances, "_digests", None)
    again = read_instances(annotations)
    check_same(again, first)
    with pytest.raises(TypeError):  # without a class, the masks are others
        assert again.without(next(iter(again.categories)), 0).digests


def test_a_changed_file_is_indexed_again(annotations, remembered):
    first, before = read_instances(annotations), annotations.stat()
    assert first.digests
    time.sleep(0.02)  # more than a step of the file system's clock
    annotations.write_text(
        annotations.read_text().replace('"COCO_train2014', '"XOXO_train2014').replace('"area": 4', '"area": 5')
    )
    os.utime(annotations, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert annotations.stat().st_size == before.st_size
    again = read_instances(annotations)
    assert {name[:4] for name in again.file_names} == {"XOXO"}
    assert again.digests == first.digests


def test_a_young_file_is_not_remembered(annotations, remembered, monkeypatch):
    monkeypatch.setattr(digests.time, "time_ns", lambda: annotations.stat().st_mtime_ns + 10**9)
    assert read_instances(annotations).stamp is None
    assert not list(remembered.rglob("*.npz"))


def test_a_damaged_index_is_made_again(annotations, remembered):
    first = read_instances(annotations)
    assert first.digests
    for name in ("index.npz", "digests.json.gz"):
        (path,) = remembered.rglob(name)
        whole = path.read_bytes()
        for damaged in (whole[:-30], whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :], b""):
            path.write_bytes(damaged)
            check_same(read_instances(annotations), first)
            assert path.read_bytes() != damaged
