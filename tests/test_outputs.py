"""What becomes of the files of a finished stage: corrected, damaged, lost; and what a later command says of it."""

import dataclasses
import gzip
import json
import os
import shutil

import numpy as np
import pytest

from wsss import digests, run
from wsss.data.files import write_cams, write_mask
from wsss.errors import BadInput
from wsss.outputs import FILES, INPUTS, Changes, changes

NAMES = ("a", "b", "teil 1/c ß")


@run.stage(kind="masks", makes="masks", title="masks")
def masks(seed, *, out):
    for number, name in enumerate(NAMES):
        write_mask(out / f"{name}.png", np.full((5, 6), number + seed, np.uint8))
    return {}


@run.stage(kind="maps", makes="maps", title="maps")
def maps(seed, *, out):
    for number, name in enumerate(NAMES):
        write_cams(out / f"{name}.npz", np.array([number]), np.full((1, 5, 6), 0.5, np.float32))
    return {}


@run.stage(kind="learn", makes="weights", title="learn")
def learn(seed, *, out):
    (out / "weights.safetensors").write_bytes(bytes(100))
    (out / "history.json").write_text("[]")
    return {"seed": seed}


@run.stage(kind="later", makes="labels", title="later")
def later(before, *, out):
    (out / "made.txt").write_text("made")
    return {}


@pytest.fixture
def made(tmp_path):
    return masks(1, out=tmp_path / "run" / "masks")


def found(out):
    return changes(out, run.read_record(out))


def correct(path):
    write_mask(path, np.full((5, 6), 9, np.uint8))


def test_untouched_files_are_not_read_again(made, monkeypatch):
    read = []
    monkeypatch.setattr(digests, "content_digest", lambda path: read.append(path))
    assert not found(made)
    assert read == []
    assert set(found(made).files) == {f"{name}.png" for name in NAMES}


def test_copies_and_links_are_known(made, tmp_path):
    for number, copy in enumerate((shutil.copy, shutil.copy2, os.link)):
        shutil.copytree(made, tmp_path / str(number), copy_function=copy)
        assert found(tmp_path / str(number)) == found(made)


def test_a_corrected_mask_is_taken_and_recorded(made, tmp_path, caplog):
    later(made, out=tmp_path / "run" / "segmenter")
    later(tmp_path / "run" / "segmenter", out=tmp_path / "run" / "predictions")
    later(masks(2, out=tmp_path / "run" / "others"), out=tmp_path / "run" / "of others")
    correct(made / "a.png")
    with pytest.raises(BadInput, match=r"in masks, 1 file \(a\.png\) was edited after `masks` wrote it") as error:
        later(made, out=tmp_path / "run" / "segmenter")
    assert error.value.do.startswith(
        f"To make it from the current inputs, remove {tmp_path}/run/segmenter, {tmp_path}/run/predictions and run"
    )
    assert "masks: 1 file (a.png) was edited after `masks` wrote it. The edited files are used" in caplog.text
    for stage in ("segmenter", "predictions"):
        shutil.rmtree(tmp_path / "run" / stage)
    later(made, out=tmp_path / "run" / "segmenter")
    record = run.read_record(tmp_path / "run" / "segmenter")
    assert record["inputs"]["before"]["edited"] == ["a.png"]
    assert later(made, out=tmp_path / "run" / "segmenter")
    write_mask(made / "a.png", np.full((5, 6), 1, np.uint8))  # as it was
    with pytest.raises(BadInput, match=r"in masks, 1 file \(a\.png\) was changed"):
        later(made, out=tmp_path / "run" / "segmenter")


@pytest.mark.parametrize("when", ["older", "younger"])
def test_a_file_of_the_same_size_is_noticed(tmp_path, when):
    out = masks(1, out=tmp_path / "masks")
    wanted = (out / "a.png").stat()
    correct(out / "a.png")
    assert (out / "a.png").stat().st_size == wanted.st_size
    os.utime(out / "a.png", ns=(0, wanted.st_mtime_ns + (-1 if when == "older" else 1)))
    assert found(out).edited == ("a.png",)


def test_an_added_file_is_named_where_the_stage_writes_such(made, tmp_path):
    (made / "notes.txt").write_text("mine")
    (made / ".hidden.png").write_text("mine")
    later(made, out=tmp_path / "inside" / "b")
    later(made, out=made / "inner")  # another stage's folder
    assert not found(made)
    correct(made / "d.png")
    assert found(made).added == ("d.png",)
    with pytest.raises(BadInput, match=r"in masks, 1 file \(d\.png\) was added"):
        later(made, out=tmp_path / "inside" / "b")


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut, empty, zeros])
@pytest.mark.parametrize("make", [masks, maps], ids=["masks", "maps"])
def test_a_damaged_file_is_no_correction(tmp_path, make, damage):
    out = make(1, out=tmp_path / "made")
    path = next(path for path in sorted(out.iterdir()) if path.suffix in (".png", ".npz") and path.stem == "b")
    damage(path)
    with pytest.raises(
        BadInput, match=r"a readable file, even after it was edited \(`(masks|maps)` wrote it\)"
    ) as error:
        later(out, out=tmp_path / "later")
    assert error.value.where == str(path)
    assert not (tmp_path / "later").exists()
    with pytest.raises(BadInput):
        make(1, out=out)


def test_missing_files_are_named(made, tmp_path):
    (made / "a.png").unlink()
    (made / "b.png").rename(tmp_path / "b.png")
    for use in (lambda: masks(1, out=made), lambda: later(made, out=tmp_path / "later")):
        with pytest.raises(
            BadInput, match=r"a finished `masks` stage, from which 2 files \(a\.png, b\.png\) were removed"
        ):
            use()
    shutil.rmtree(made)
    masks(1, out=made)
    assert later(made, out=tmp_path / "later")


@pytest.mark.parametrize("name", ["weights.safetensors", "history.json"])
def test_nobody_corrects_what_was_learned_or_measured(tmp_path, name):
    out = learn(1, out=tmp_path / "net")
    content = bytearray((out / name).read_bytes())
    content[-1] ^= 1
    times = (out / name).stat()
    (out / name).write_bytes(content)
    if name.endswith("safetensors"):
        os.utime(out / name, ns=(0, times.st_mtime_ns))  # weights are always read
    with pytest.raises(BadInput, match=r"digest \w{16}, changed after `learn` wrote it; expected digest \w{16}"):
        later(out, out=tmp_path / "later")
    with pytest.raises(BadInput, match="changed after `learn` wrote it"):
        later(out / name, out=tmp_path / "later")
    shutil.copy(out / name, tmp_path / name)
    assert later(tmp_path / name, out=tmp_path / "later"), "under its own name elsewhere it is anybody's file"


def test_weights_that_settings_name_are_checked_too(tmp_path):
    out = learn(1, out=tmp_path / "net")
    (out / "weights.safetensors").write_bytes(bytes(99) + b"1")
    init = dataclasses.make_dataclass("Init", [("init", str, run.maybe_file("none"))], frozen=True)
    for path in (out, out / "weights.safetensors"):
        with pytest.raises(BadInput, match="changed after `learn` wrote it"):
            run.plain(init(str(path)))
    assert run.plain(init("x" * 5000)) == {"init": "x" * 5000}


BROKEN = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "list": lambda content: b"[1, 2]",
    "text": lambda content: b'"done"',
    "null": lambda content: b"null",
    "deep": lambda content: b"[" * 100_000,
    "number": lambda content: b'{"identity": ' + b"9" * 5000 + b"}",
    "bytes": lambda content: b"\xff\xfe" + content,
    "types": lambda content: b'{"record": 3, "kind": 1, "makes": [], "identity": {}, "inputs": [], "tables": 3}',
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", [run.DONE, run.STARTED, FILES, run.SECONDS])
def test_broken_records_are_named(tmp_path, made, name, damage):
    if name == run.STARTED:
        (made / run.DONE).rename(made / run.STARTED)
    content = damage((made / name).read_bytes())
    (made / name).write_bytes(gzip.compress(content) if name == FILES else content)
    use = (lambda: run.read_seconds(made)) if name == run.SECONDS else (lambda: masks(1, out=made))
    with pytest.raises(BadInput) as error:
        use()
    assert error.value.where == str(made / name)


def test_a_broken_table_of_inputs_is_named(made, tmp_path):
    later(made, out=tmp_path / "later")
    correct(made / "a.png")
    path = tmp_path / "later" / INPUTS
    path.write_bytes(gzip.compress(json.dumps({"before": {"a.png": "other"}}).encode()))
    with pytest.raises(BadInput, match="as in the record") as error:
        later(made, out=tmp_path / "later")
    assert error.value.where == str(path)
    path.unlink()
    with pytest.raises(BadInput, match=r"before was \.\./run/masks \(\w{16}\) and is now \.\./run/masks \(\w{16}\)"):
        later(made, out=tmp_path / "later")


def test_a_crafted_list_fills_no_memory(made, monkeypatch):
    monkeypatch.setattr("wsss.storage._MAX_UNPACKED", 1000)
    (made / FILES).write_bytes(gzip.compress(b" " * 2000))
    with pytest.raises(BadInput, match="more than 512 MiB"):
        found(made)


def test_records_of_another_kind_are_refused_clearly(made, tmp_path):
    content = json.loads((made / run.DONE).read_text())
    del content["record"], content["files"]
    (made / run.DONE).write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"a record in format unknown; expected format 3"):
        later(made, out=tmp_path / "later")
    with pytest.raises(BadInput, match="a record in format unknown"):
        masks(1, out=made)


def test_a_twin_that_was_edited_is_not_shared(tmp_path):
    made = masks(1, out=tmp_path / "one" / "masks")
    correct(made / "a.png")
    with run.sharing_stages(tmp_path):
        masks(1, out=tmp_path / "two" / "masks")
        third = masks(1, out=tmp_path / "three" / "masks")
    assert not found(tmp_path / "two" / "masks")
    assert (third / "b.png").samefile(tmp_path / "two" / "masks" / "b.png")
    assert found(third) == Changes(found(tmp_path / "two" / "masks").files)
    assert (third / run.DONE).stat().st_mtime_ns == (third / "b.png").stat().st_mtime_ns


def test_equal_stages_have_equal_bytes(tmp_path, made):
    again = masks(1, out=tmp_path / "again")
    for name in (run.DONE, FILES, INPUTS):
        assert (made / name).read_bytes() == (again / name).read_bytes()
