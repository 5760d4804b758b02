"""Records of stages: skipped when done, continued when half done, refused when made from something else."""

import dataclasses
import errno
import json
import os
import re
import time
from pathlib import Path
from typing import ClassVar

import pytest

from wsss import lock, run
from wsss.errors import BadInput
from wsss.outputs import FILES, INPUTS, LOCK
from wsss.storage import whole_file, write_json


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int = 2
    inner: Inner = Inner()
    workers: int = run.unrecorded(1)
    init: str = run.maybe_file("none")


calls: list[str] = []


@run.stage(kind="first", makes="labels", title="first")
def first(settings, *, out):
    calls.append("first")
    (out / "made.txt").write_text(str(settings.count))
    return {"count": settings.count}


@run.stage(kind="second", makes="labels", title="second")
def second(settings, before, *, out):
    calls.append("second")
    (out / "made.txt").write_text((before / "made.txt").read_text() + "!")
    return {}


@run.stage(kind="broken", makes="labels", title="broken")
def broken(settings, *, out):
    (out / "half.txt").write_text("half")
    raise RuntimeError("stopped")


@pytest.fixture(autouse=True)
def _no_calls():
    calls.clear()


def test_a_done_stage_is_skipped(tmp_path):
    first(Settings(), out=tmp_path / "a")
    assert first(Settings(), out=tmp_path / "a") == tmp_path / "a"
    assert calls == ["first"]
    record = run.read_record(tmp_path / "a")
    assert (record["kind"], record["makes"], record["title"]) == ("first", "labels", "first")
    assert record["result"] == {"count": 2}
    assert record["inputs"]["settings"] == {"count": 2, "inner": {"rate": 0.5}, "init": "none"}
    assert not (tmp_path / "a" / run.STARTED).exists()
    assert run.read_seconds(tmp_path / "a") >= 0


def test_unrecorded_settings_do_not_matter(tmp_path):
    first(Settings(workers=1), out=tmp_path / "a")
    first(Settings(workers=8), out=tmp_path / "a")
    assert calls == ["first"]


def test_a_stage_is_known_by_what_it_says_of_itself(tmp_path):
    first(Settings(), out=tmp_path / "a")

    @run.stage(kind="first", makes="labels", title="First, better named")
    def renamed(settings, *, out):
        raise AssertionError("it is done already")

    renamed(Settings(), out=tmp_path / "a")

    @run.stage(kind="first", makes="masks", title="first")
    def other(settings, *, out):
        raise AssertionError("it is another stage")

    with pytest.raises(BadInput, match=r"something else: it is not a `first` stage that makes masks"):
        other(Settings(), out=tmp_path / "a")


def test_methods_with_equal_settings_are_told_apart(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class One:
        title: ClassVar[str] = "CAM"

        count: int = 2

    @dataclasses.dataclass(frozen=True)
    class Other(One):
        title: ClassVar[str] = "ReCAM"

    @run.stage(kind="train", makes="weights", title=None)
    def learned(settings, *, out):
        (out / "made.txt").write_text(settings.title)
        return {}

    learned(One(), out=tmp_path / "runs" / "one" / "a")
    assert run.read_record(tmp_path / "runs" / "one" / "a")["title"] == "CAM"
    with pytest.raises(BadInput, match="something else: it was CAM and is now ReCAM"):
        learned(Other(), out=tmp_path / "runs" / "one" / "a")
    with run.sharing_stages(tmp_path / "runs"):
        made = learned(Other(), out=tmp_path / "runs" / "other" / "a")
    assert (made / "made.txt").read_text() == "ReCAM"


@pytest.mark.parametrize("title", ["", None, 3])
def test_settings_without_a_name_are_refused(tmp_path, title):
    nameless = dataclasses.make_dataclass("Nameless", [], namespace={"title": title}, frozen=True)

    @run.stage(kind="train", makes="weights", title=None)
    def learned(settings, *, out):
        return {}

    with pytest.raises(TypeError, match="`title` of Nameless"):
        learned(nameless(), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_other_settings_are_refused_by_name(tmp_path):
    first(Settings(), out=tmp_path / "a")
    with pytest.raises(BadInput, match=r"settings\.inner\.rate was 0\.5 and is now 0\.7") as error:
        first(Settings(inner=Inner(0.7)), out=tmp_path / "a")
    assert str(tmp_path / "a") in str(error.value)
    assert calls == ["first"]


@pytest.mark.parametrize("value", [None, {}, False], ids=str)
def test_a_setting_that_a_record_lacks_is_named(tmp_path, value):
    first(Settings(), out=tmp_path / "a")
    limit = ("limit", object, dataclasses.field(default_factory=lambda: value))
    added = dataclasses.make_dataclass("Added", [limit], bases=(Settings,), frozen=True)
    with pytest.raises(BadInput, match=rf"something else: settings\.limit was absent and is now {value}"):
        first(added(), out=tmp_path / "a")
    first(added(), out=tmp_path / "b")
    with pytest.raises(BadInput, match=rf"something else: settings\.limit was {value} and is now absent"):
        first(Settings(), out=tmp_path / "b")


def test_an_integer_is_told_from_a_float(tmp_path):
    first(Settings(inner=Inner(1)), out=tmp_path / "a")
    with pytest.raises(BadInput, match=r"something else: settings\.inner\.rate was 1 and is now 1\.0"):
        first(Settings(inner=Inner(1.0)), out=tmp_path / "a")


def test_half_done_goes_on_only_with_the_same_settings(tmp_path):
    with pytest.raises(RuntimeError):
        broken(Settings(), out=tmp_path / "a")
    with pytest.raises(BadInput, match=r"settings\.count was 2 and is now 3"):
        broken(Settings(count=3), out=tmp_path / "a")
    with pytest.raises(RuntimeError):
        broken(Settings(), out=tmp_path / "a")


def test_a_stage_that_made_nothing_leaves_nothing(tmp_path):
    @run.stage(kind="refuses", makes="labels", title="refuses")
    def refuses(settings, *, out):
        raise BadInput("batch", "8", "4", "Mend it.")

    for count in (1, 2):
        with pytest.raises(BadInput, match="Mend it"):
            refuses(Settings(count=count), out=tmp_path / "a")
    first(Settings(), out=tmp_path / "a")


def test_an_unfinished_input_is_refused(tmp_path):
    with pytest.raises(RuntimeError):
        broken(Settings(), out=tmp_path / "a")
    with pytest.raises(BadInput, match="an unfinished stage"):
        second(Settings(), tmp_path / "a", out=tmp_path / "b")
    with pytest.raises(BadInput, match="no such folder"):
        second(Settings(), tmp_path / "missing", out=tmp_path / "b")


def test_a_stale_input_is_refused_by_name(tmp_path):
    second(Settings(), first(Settings(), out=tmp_path / "a"), out=tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    first(Settings(count=5), out=tmp_path / "a")
    with pytest.raises(BadInput, match=r"a was made again with other settings or inputs"):
        second(Settings(), tmp_path / "a", out=tmp_path / "b")


def test_files_are_known_by_their_content(tmp_path):
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"one")
    first(Settings(init=str(weights)), out=tmp_path / "a")
    moved = weights.rename(tmp_path / "elsewhere.pth")
    moved.rename(tmp_path / "w.pth")
    first(Settings(init=str(weights)), out=tmp_path / "a")
    weights.write_bytes(b"two")
    with pytest.raises(BadInput, match=r"settings\.init was w\.pth \(\w{16}\) and is now w\.pth \(\w{16}\)"):
        first(Settings(init=str(weights)), out=tmp_path / "a")


def test_folders_of_other_programs_are_known_by_their_files(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "made.txt").write_text("12")
    second(Settings(), tmp_path / "theirs", out=tmp_path / "b")
    (tmp_path / "theirs" / "more.txt").write_text("3")
    with pytest.raises(BadInput, match=r"in theirs, 1 file \(more\.txt\) was added"):
        second(Settings(), tmp_path / "theirs", out=tmp_path / "b")
    (tmp_path / "theirs" / "more.txt").unlink()
    (tmp_path / "theirs" / "made.txt").write_text("21")  # as long as before
    with pytest.raises(BadInput, match=r"in theirs, 1 file \(made\.txt\) was changed"):
        second(Settings(), tmp_path / "theirs", out=tmp_path / "b")


@pytest.mark.parametrize("leftovers", [[".abc.part"], ["seconds.json"], ["started.json", ".abc.part"]])
def test_kills_between_two_writes(tmp_path, leftovers):
    first(Settings(), out=tmp_path / "whole")
    record = (tmp_path / "whole" / run.DONE).read_text()
    (tmp_path / "a").mkdir()
    for name in leftovers:
        (tmp_path / "a" / name).write_text('{"seconds": 1}' if name == run.SECONDS else record)
    first(Settings(), out=tmp_path / "a")
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert left == {"made.txt", run.DONE, run.SECONDS, FILES, INPUTS}
    (tmp_path / "a" / run.STARTED).write_text(record)  # killed after done.json
    first(Settings(), out=tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == left


def test_remade_weights_are_seen_downstream(tmp_path):
    @run.stage(kind="weighs", makes="labels", title="weighs")
    def weighs(settings, *, out):
        (out / "weights.safetensors").write_bytes(str(settings.workers).encode())
        (out / "made.txt").write_text("x")
        return {}

    second(Settings(), weighs(Settings(workers=1), out=tmp_path / "a"), out=tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    weighs(Settings(workers=2), out=tmp_path / "a")
    with pytest.raises(BadInput, match=r"in a, 1 file \(weights\.safetensors\) was changed"):
        second(Settings(), tmp_path / "a", out=tmp_path / "b")


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(BadInput, match="files that were not made by a stage"):
        first(Settings(), out=tmp_path)
    assert calls == []


def test_a_broken_record_says_so(tmp_path):
    first(Settings(), out=tmp_path / "a")
    (tmp_path / "a" / run.DONE).write_text('{"stage": "fir')
    with pytest.raises(BadInput, match="broken JSON at line 1"):
        first(Settings(), out=tmp_path / "a")


def test_pictures_are_known_by_names_tags_and_sizes(tmp_path, squares):
    second_look = dataclasses.replace(squares, title="another title")
    assert second_look.fingerprint() == squares.fingerprint()
    assert squares.without([squares.names[0]]).fingerprint() != squares.fingerprint()
    before = squares.fingerprint()
    squares.paths[0].write_bytes(squares.paths[0].read_bytes() + b"x")
    assert squares.fingerprint() != before


@run.stage(kind="propose", makes="regions", title="regions")
def regions(images, *, out):
    for name in images.names:
        write_json(out / f"{name}.npz", name)
    return {}


@run.stage(kind="refine", makes="masks", title="masks")
def masked(images, regions, *, out):
    (out / "made.txt").write_text("")
    return {}


def test_inputs_of_other_pictures_and_of_too_few(tmp_path, squares, caplog):
    made = regions(squares, out=tmp_path / "regions")
    # of more pictures, and with other tags
    half = squares.subset(range(6))
    masked(dataclasses.replace(half, labels=~half.labels), made, out=tmp_path / "a")
    fewer = regions(half, out=tmp_path / "fewer")
    lacking = re.escape(", ".join(squares.names[6:9]))
    with pytest.raises(
        BadInput, match=f"fewer: found regions of only 6 of 12 pictures; {lacking} and 3 more have none"
    ):
        masked(squares, fewer, out=tmp_path / "b")
    for name in squares.names[6:]:  # by another program
        write_json(fewer / f"{name}.npz", name)
    masks = masked(squares, fewer, out=tmp_path / "b")
    squares.paths[0].write_bytes(squares.paths[1].read_bytes())
    with pytest.raises(
        BadInput, match=f"regions of other pictures of the same names: {squares.names[0]}.png had another"
    ):
        masked(squares, made, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    masked(squares, masks, out=tmp_path / "d")
    assert "b: masks of other pictures of the same names" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG])
def test_what_keeps_a_file_from_being_written(tmp_path, number):
    message = r"x\.json: found .*; expected room and permission to write this file\. To continue: "
    with pytest.raises(BadInput, match=message), whole_file(tmp_path / "x.json"):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_writers_are_swept(tmp_path):
    @run.stage(kind="leaves", makes="labels", title="leaves")
    def leaves(settings, *, out):
        (out / "sub").mkdir()
        (out / "sub" / ".abc.part").write_text("half")
        return {}

    leaves(Settings(), out=tmp_path / "a")
    assert not list((tmp_path / "a").rglob("*.part"))


def test_json_writer_leaves_nothing_behind_when_it_fails(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_stage_of_another_run_is_taken_while_runs_share(tmp_path):
    runs = tmp_path / "runs"
    second(Settings(), first(Settings(), out=runs / "one" / "a"), out=runs / "one" / "b")
    (runs / "two" / ".killed.part").mkdir(parents=True)
    with run.sharing_stages(runs):
        second(Settings(), first(Settings(), out=runs / "two" / "a"), out=runs / "two" / "b")
        first(Settings(count=3), out=runs / "three" / "a")
        with pytest.raises(RuntimeError):
            broken(Settings(), out=runs / "one" / "c")
        with pytest.raises(RuntimeError):
            broken(Settings(), out=runs / "two" / "c")
    assert calls == ["first", "second", "first"]
    for name in ("a", "b"):
        for file in ("made.txt", run.DONE):
            assert (runs / "one" / name / file).read_bytes() == (runs / "two" / name / file).read_bytes()
    assert (runs / "one" / "a" / "made.txt").stat().st_ino == (runs / "two" / "a" / "made.txt").stat().st_ino
    assert sorted(path.name for path in (runs / "two").iterdir()) == ["a", "b", "c"]
    first(Settings(), out=runs / "four" / "a")
    assert calls == ["first", "second", "first", "first"], "it ends with the block"


def test_a_shared_stage_is_copied_where_there_are_no_links(tmp_path, monkeypatch):
    first(Settings(), out=tmp_path / "one" / "a")
    monkeypatch.setattr(run.os, "link", lambda *paths: (_ for _ in ()).throw(OSError("no links")))
    with run.sharing_stages(tmp_path):
        first(Settings(), out=tmp_path / "two" / "a")
    assert calls == ["first"]
    assert (tmp_path / "two" / "a" / "made.txt").read_text() == "2"
    assert run.read_seconds(tmp_path / "two" / "a") == run.read_seconds(tmp_path / "one" / "a")


def test_a_taken_stage_names_the_stages_it_was_made_from_where_they_lie(tmp_path):
    second(Settings(), first(Settings(), out=tmp_path / "one" / "a"), out=tmp_path / "one" / "b")
    with run.sharing_stages(tmp_path):
        second(Settings(), tmp_path / "one" / "a", out=tmp_path / "two" / "b")
    assert calls == ["first", "second"]
    assert run.read_record(tmp_path / "two" / "b")["inputs"]["before"]["folder"] == "../../one/a"


def test_tries_that_were_killed_count(tmp_path, monkeypatch):
    """`seconds.json` grows while a stage works, and the next try goes on from there."""
    seen = []

    @run.stage(kind="slow", makes="labels", title="slow")
    def slow(settings, *, out):
        until = time.monotonic() + 20
        while not (out / run.SECONDS).exists() or run.read_seconds(out) < 0.2:
            assert time.monotonic() < until
            time.sleep(0.01)
        seen.append(run.read_seconds(out))
        (out / "made.txt").write_text("half")
        if len(seen) == 1:
            write_json(out / run.SECONDS, {"seconds": 1000.0})  # as if it had gone on for long before the kill
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(run, "CLOCK_EVERY", 0.05)
    with pytest.raises(KeyboardInterrupt):
        slow(Settings(), out=tmp_path / "a")
    assert seen[0] >= 0.2
    spent = run.read_seconds(tmp_path / "a")
    slow(Settings(), out=tmp_path / "a")
    assert seen[1] >= spent
    assert run.read_seconds(tmp_path / "a") >= spent


def test_a_record_reaches_the_disk_after_what_it_is_about(tmp_path, monkeypatch):
    """Each file before it gets its name, the names before the record; the record's own name last."""
    synced, fsync = [], os.fsync

    def noted(handle):
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr("wsss.storage.os.fsync", noted)
    replaced, replace = [], os.replace

    def renamed(source, target):
        clock = Path(target).name == run.SECONDS
        assert clock or synced[-1] == Path(source), "a file gets its name when it is on the disk"
        replaced.append((len(synced), Path(target).name))
        replace(source, target)

    monkeypatch.setattr("wsss.storage.os.replace", renamed)

    @run.stage(kind="writes", makes="labels", title="writes")
    def writes(settings, *, out):
        for name in ("a", "b", "c/d"):
            with whole_file(out / f"{name}.bin", sync="file") as temporary:
                temporary.write_bytes(b"content")
        synced.clear()
        return {}

    out = writes(Settings(), out=tmp_path / "out")
    order = {name: at for at, name in replaced}
    before_record = synced[: order[run.DONE]]
    assert {out, out / "c"} <= set(before_record)
    assert order["files.json.gz"] < order[run.DONE]
    assert synced[-1] == out


def test_a_lock_lost_while_it_worked_keeps_a_stage_from_its_record(tmp_path):
    @run.stage(kind="sleeps", makes="labels", title="sleeps")
    def sleeps(settings, *, out):
        (out / "made.txt").write_text("made")
        content = json.loads((out / LOCK).read_text())
        (out / LOCK).write_text(json.dumps(content | {"token": "other", "command": "wsss of another"}))
        return {}

    with pytest.raises(BadInput, match=r"`wsss of another` .* took it over"):
        sleeps(Settings(), out=tmp_path / "a")
    assert not (tmp_path / "a" / run.DONE).exists()
    assert (tmp_path / "a" / LOCK).exists()


def test_a_lock_outlives_a_stage_that_is_taken(tmp_path):
    first(Settings(), out=tmp_path / "one" / "a")
    with run.sharing_stages(tmp_path), lock.locked(tmp_path / "two" / "a"):
        mine = (tmp_path / "two" / "a" / LOCK).read_bytes()
        first(Settings(), out=tmp_path / "two" / "a")
        assert (tmp_path / "two" / "a" / LOCK).read_bytes() == mine
    assert calls == ["first"]
    assert {path.name for path in (tmp_path / "two" / "a").iterdir()} == {
        path.name for path in (tmp_path / "one" / "a").iterdir()
    }
