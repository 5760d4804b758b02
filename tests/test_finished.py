"""Commands that are finished: known as such without running them, until anything that they read or made changes."""

import dataclasses
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wsss import digests, finished
from wsss.data.files import write_cams
from wsss.data.open import open_dataset
from wsss.data.shapes import make_shapes
from wsss.declared import Mirror
from wsss.run import stage
from wsss.terminal import show


@dataclasses.dataclass(frozen=True)
class Options:
    data: Path
    out: Path
    weights: Path
    skip_bad: bool = False


@dataclasses.dataclass(eq=False, repr=False)
class Settings(Mirror):
    init: str = "none"
    steps: int = 1


@stage(kind="copy", makes="masks", title="copy")
def copy(*, data: Path, out: Path):
    for path in data.rglob("*.png"):
        (out / path.name).write_bytes(path.read_bytes())
    return {}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def options(tmp_path):
    """A command's options, which name files that were written a while ago."""
    for name in ("data/a/1.png", "data/a/2.png", "elsewhere/3.png", "weights/w"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    return Options(tmp_path / "data", tmp_path / "out", tmp_path / "weights" / "w")


@pytest.fixture
def settled(monkeypatch):
    """Files are never younger than two seconds."""
    monkeypatch.setattr(digests, "_TIME_STEP_NS", -(10**12))


def runs(options, settings=None, name="copy"):
    """Whether the command runs, and does not only look at what is remembered."""
    ran = []

    def run():
        ran.append(True)
        show(copy(data=options.data, out=options.out / "masks"))
        logging.getLogger("wsss").warning("a doubt")

    finished.run_unless_finished(name, options, {"": settings or Settings()}, run)
    return bool(ran)


def test_a_finished_command_does_not_run_again_but_says_the_same(options, settled, capsys, caplog):
    caplog.set_level(logging.INFO, "wsss")
    assert runs(options)
    printed = capsys.readouterr().out
    caplog.clear()
    assert not runs(options)
    assert capsys.readouterr().out == printed == f"{options.out / 'masks'}\n"
    assert caplog.messages == [f"{options.out / 'masks'}: finished already", "a doubt"]


def rewrite(path):
    """Another content of the same length, under the same modification time."""
    status = path.stat()
    path.write_text(path.read_text().swapcase())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "content": lambda at: rewrite(at / "data/a/1.png"),
    "a file behind a link": lambda at: rewrite(at / "elsewhere/3.png"),
    "added": lambda at: (at / "data/a/4.png").write_text("4"),
    "removed": lambda at: (at / "data/a/2.png").unlink(),
    "renamed": lambda at: (at / "data/a/2.png").rename(at / "data/a/0.png"),
    "weights": lambda at: rewrite(at / "weights/w"),
    "a record beside the weights": lambda at: (at / "weights/done.json").write_text("{}"),
    "an output": lambda at: (at / "out/masks/1.png").write_text("changed"),
    "an output removed": lambda at: (at / "out/masks/1.png").unlink(),
    "the record": lambda at: (at / "out/masks/done.json").write_text("{}"),
    "the stage begun again": lambda at: (at / "out/masks/started.json").write_text("{}"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_is_seen(options, settled, tmp_path, change):
    assert runs(options)
    assert not runs(options)
    time.sleep(0.02)  # times of files have a resolution
    change(tmp_path)
    copied = []
    finished.run_unless_finished("copy", options, {"": Settings()}, lambda: copied.append(True))
    assert copied


def test_other_options_and_settings_are_other_commands(options, settled, tmp_path, monkeypatch):
    assert runs(options)
    for other in (Settings(steps=2), Settings(init="weights/w")):
        assert runs(options, other)
    assert runs(options, name="other")
    assert runs(dataclasses.replace(options, skip_bad=True))
    assert runs(dataclasses.replace(options, skip_bad=True))
    assert not runs(options)
    monkeypatch.chdir(tmp_path)
    assert runs(options)


def test_a_word_of_the_settings_that_becomes_a_file_is_seen(options, settled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs(options, Settings(init="resnet"))
    assert not runs(options, Settings(init="resnet"))
    (tmp_path / "resnet").write_text("weights")
    assert runs(options, Settings(init="resnet"))


def test_a_file_younger_than_two_seconds_is_not_trusted(options, monkeypatch):
    assert runs(options)
    assert runs(options)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3 * 10**9)
    assert runs(options)
    assert not runs(options)


def test_a_change_while_the_command_runs_is_seen(options, settled):
    def run():
        copy(data=options.data, out=options.out / "masks")
        (options.data / "a" / "5.png").write_text("5")

    finished.run_unless_finished("copy", options, {"": Settings()}, run)
    ran = []
    finished.run_unless_finished("copy", options, {"": Settings()}, lambda: ran.append(True))
    assert ran


def test_a_command_that_fails_is_not_remembered(options, settled):
    def run():
        copy(data=options.data, out=options.out / "masks")
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            finished.run_unless_finished("copy", options, {"": Settings()}, run)


TWICE = """
import sys
from wsss import cli, digests
digests._TIME_STEP_NS = -(10**12)
status = cli.main(sys.argv[1:])
print(status, "torch" in sys.modules)
"""


@pytest.mark.whole
def test_a_finished_command_imports_no_torch_until_a_tag_changes(tmp_path):
    data, out = make_shapes(tmp_path / "data", train=4, val=2, size=48), tmp_path / "out"
    images = open_dataset(data).split("train")
    for index, name in enumerate(images.names):
        classes = np.array(images.classes(index))
        maps = np.ones((len(classes), *images.size_hw(index)), np.float32)
        write_cams(tmp_path / "cams" / f"{name}.npz", classes, maps, maps[:, ::4, ::4])
    words = ["refine", "--data", data, "--cams", tmp_path / "cams", "--out", out]
    words += ["--refiner.by", "threshold", "--refiner.threshold", "0.3"]

    def printed():
        command = [sys.executable, "-c", TWICE, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split(), done.stderr

    first, _ = printed()
    assert first == [str(out / "masks"), "0", "True"]
    again, said = printed()
    assert again == [str(out / "masks"), "0", "False"]
    assert f"{out / 'masks'}: finished already" in said
    annotation = data / "Annotations" / f"{images.names[0]}.xml"
    named = "".join(f"<object><name>{name}</name></object>" for name in images.class_names)
    annotation.write_text(f"<annotation>{named}</annotation>")
    changed = subprocess.run([sys.executable, "-c", TWICE, *map(str, words)], capture_output=True, text=True)
    assert changed.stdout.split() == ["2", "True"]
    assert "made from something else" in changed.stderr
