"""A run's data set: looked through once, and held against what the run was made from."""

import json
import os
import shutil

import pytest
from PIL import Image

from wsss import digests, run
from wsss.errors import BadInput
from wsss.stages import check
from wsss.stages.check import CONTENTS, DATA, open_checked, reopen


@run.stage(kind="look", makes="labels", title="look")
def look(images, *, out):
    (out / "made.txt").write_text("made")
    return {}


@pytest.fixture
def data(tmp_path):
    """Two pictures a class to train on, one to score on."""
    for number, name in enumerate(
        ("train/cat/1", "train/cat/2", "train/dog/3", "train/dog/4", "val/cat/5", "val/dog/6")
    ):
        path = tmp_path / "data" / f"{name}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 100, 100)).save(path)
    return tmp_path / "data"


@pytest.fixture
def made(data, tmp_path):
    """A run with a stage of the training pictures, what was made from it, and one of the others."""
    opened = open_checked(data, skip_bad=False, remember=tmp_path / "run")
    first = look(opened.split("train"), out=tmp_path / "run" / "classifier")
    follow(first, out=tmp_path / "run" / "cams")
    look(opened.split("val"), out=tmp_path / "run" / "predictions")
    return tmp_path / "run"


@run.stage(kind="follow", makes="labels", title="follow")
def follow(before, *, out):
    (out / "made.txt").write_text("made")
    return {}


def opened(data, made):
    return open_checked(data, skip_bad=False, remember=made)


def test_a_picture_replaced_by_another_of_the_same_length(data, made):
    before = (made / DATA).read_bytes()
    shutil.copy(data / "train/dog/4.bmp", data / "train/dog/3.bmp")
    with pytest.raises(BadInput, match=r"train: the content of 1 picture changed: train/dog/3\.bmp") as error:
        opened(data, made)
    assert f"remove {made}/classifier, {made}/cams and run the same command again" in error.value.do
    assert (made / DATA).read_bytes() == before, "notes on what the run was made from"
    for stage in ("classifier", "cams"):
        shutil.rmtree(made / stage)
    assert opened(data, made).split("val")
    assert (made / DATA).read_bytes() != before


def test_new_pictures_concern_their_split_alone(data, made):
    for number in (7, 8, 9):
        Image.new("RGB", (8, 8)).save(data / f"val/cat/{number}.bmp")
    with pytest.raises(
        BadInput, match=r"val: 3 pictures are new: val/cat/7\.bmp, val/cat/8\.bmp, val/cat/9\.bmp"
    ) as error:
        opened(data, made)
    assert f"remove {made}/predictions and run" in error.value.do


def test_another_data_set_leaves_the_notes_alone(data, made, tmp_path):
    before = (made / DATA).read_bytes()
    for path in data.rglob("*.bmp"):
        other = tmp_path / "other" / path.relative_to(data)
        other.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), "red").save(other)
    with pytest.raises(BadInput, match="a run made from an earlier content of the dataset"):
        opened(tmp_path / "other", made)
    assert (made / DATA).read_bytes() == before
    assert reopen(made).root == data.resolve()


def test_the_same_data_set_elsewhere(data, made, tmp_path):
    data.rename(tmp_path / "moved")
    opened(tmp_path / "moved", made)
    assert json.loads((made / DATA).read_text())["opened"]["path"] == str(tmp_path / "moved")
    assert reopen(made).root == tmp_path / "moved"


def test_nothing_is_looked_at_twice(data, later, made, monkeypatch):
    monkeypatch.setattr(check, "check_pictures", None)
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    opened(data, made)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_files_are_not_read_again(data, made, monkeypatch):
    clock = digests.time.time_ns
    monkeypatch.setattr(digests.time, "time_ns", lambda: clock() + 10**10)
    monkeypatch.setattr(digests, "_known", {})
    opened(data, made)
    assert (made / CONTENTS).exists()
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests.hashlib, "file_digest", None)
    opened(data, made)


@pytest.fixture
def later(monkeypatch, tmp_path):
    """A cache folder of its own, and a clock that is ahead, so that new files count as old."""
    clock = digests.time.time_ns
    monkeypatch.setattr(digests.time, "time_ns", lambda: clock() + 10**10)
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))


def test_a_command_without_a_run_looks_at_nothing_twice(data, later, monkeypatch):
    open_checked(data, skip_bad=False)
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests.hashlib, "file_digest", None)
    monkeypatch.setattr(check, "check_pictures", None)
    assert len(open_checked(data, skip_bad=False).split("train")) == 4
    with pytest.raises(TypeError):  # in another way, whose results may differ
        open_checked(data, skip_bad=False, split="val")


def test_a_picture_that_was_damaged_since_the_last_command(data, later):
    open_checked(data, skip_bad=False)
    picture = data / "train/dog/3.bmp"
    before = picture.stat()
    picture.write_bytes(b"x" * before.st_size)
    for _ in range(2):
        with pytest.raises(BadInput, match="1 bad files"):
            open_checked(data, skip_bad=False)
    assert len(open_checked(data, skip_bad=True).split("train")) == 3


def test_a_cache_that_cannot_be_written_only_costs_time(data, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "file"))
    assert len(open_checked(data, skip_bad=False).split("val")) == 2


def test_a_full_disk_only_costs_time(data, later, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    for _ in range(2):
        assert len(open_checked(data, skip_bad=False).split("val")) == 2


def test_a_damaged_cache_is_made_again(data, later, tmp_path, monkeypatch):
    open_checked(data, skip_bad=False)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {CONTENTS, check.FOUND}
    for path in files:
        path.write_bytes(path.read_bytes()[:-9])
    monkeypatch.setattr(digests, "_known", {})
    open_checked(data, skip_bad=False)
    monkeypatch.setattr(check, "check_pictures", None)
    open_checked(data, skip_bad=False)


def test_another_data_set_in_the_place_of_a_known_one(data, later, tmp_path):
    open_checked(data, skip_bad=False)
    shutil.copytree(data, tmp_path / "other", copy_function=shutil.copy2)
    (tmp_path / "other/train/cat/2.bmp").write_bytes(b"x" * 9)
    data.rename(tmp_path / "moved")
    (tmp_path / "other").rename(data)
    with pytest.raises(BadInput, match=r"1 bad files(.|\n)*2\.bmp"):
        open_checked(data, skip_bad=False)
    assert len(open_checked(tmp_path / "moved", skip_bad=False).split("train")) == 4


def test_a_bad_picture_that_can_be_read_after_all(data, later, monkeypatch):
    read = check.check_picture
    with monkeypatch.context() as patch:
        for module in ("data.info", "stages.check"):
            patch.setattr(
                f"wsss.{module}.check_picture", lambda images, index: read(images, index)._replace(message="no reader")
            )
        for _ in range(2):
            with pytest.raises(BadInput, match="no reader"):
                open_checked(data, skip_bad=False)
    assert len(open_checked(data, skip_bad=False).split("train")) == 4


def test_a_finished_run_on_a_read_only_disk(data, made, monkeypatch, tmp_path):
    data.rename(tmp_path / "moved")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    for name in ("open", "mkdir", "unlink", "rename", "replace", "utime", "link"):
        function = getattr(os, name)

        def refuses(*arguments, function=function, name=name, **named):
            if name == "open" and not arguments[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                return function(*arguments, **named)
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(os, name, refuses)
    again = opened(tmp_path / "moved", made)
    look(again.split("train"), out=made / "classifier")
    follow(made / "classifier", out=made / "cams")
    with pytest.raises(BadInput, match="a read-only file system"):
        look(again.split("train"), out=made / "other")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"bad": 3}', "[" * 100_000])
def test_broken_notes_are_named(data, made, content):
    (made / DATA).write_text(content)
    with pytest.raises(BadInput) as error:
        opened(data, made)
    assert error.value.where == str(made / DATA)
