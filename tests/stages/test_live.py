"""The report while a run lasts: when it is written, what it says at each phase, and that the run does not depend on it."""

import itertools
import os
import re
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from tests.stages.test_report import Method, Page, localize, opened, refine, train
from wsss import watch
from wsss.data.files import write_cams
from wsss.data.images import Dataset, Images
from wsss.errors import BadInput
from wsss.progress import Progress
from wsss.run import StageInfo, stage
from wsss.stages import live
from wsss.stages.each import for_each_picture
from wsss.stages.examples import Examples
from wsss.stages.live import RUN_STATE, LiveReport, is_finished, reporting
from wsss.stages.localize import Cams
from wsss.stages.report import report
from wsss.storage import read_json

PLANNED = {
    "classifier": "trains the classifier",
    "cams": "makes the maps",
    "masks": "turns <them> into masks",
    "segmenter": "trains the segmenter",
}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return opened(tmp_path / "drawn & quartered", with_masks=False)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a page at every chance."""
    monkeypatch.setattr(live, "SHARE", 1e9)
    monkeypatch.setattr(live, "SHORTEST_PAUSE", 0.0)
    monkeypatch.setattr(live, "LONGEST_PAUSE", 0.0)


def text_of(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def refreshes(text: str) -> bool:
    return any(attributes.get("http-equiv") == "refresh" for attributes, _ in Page(text).all("meta"))


def states(text: str) -> dict[str, str]:
    """State of each stage of the plan."""
    rows = re.findall(r'<li><span class="dot (\w+)"></span><code>([^<]*)</code>', text)
    return {name: state for state, name in rows}


def test_a_page_at_each_phase(tmp_path: Path, data: Dataset, often: None) -> None:
    run, images = tmp_path / "run", data.split("train")
    with reporting(run, data, "CAM", PLANNED, estimates={"masks": 150.0}):
        first = text_of(run)
        assert first.count("to come, about") == 1
        assert re.search(r"<code>masks</code>.*to come, about 2 min 30 s", first)
        assert refreshes(first)
        assert set(states(first).values()) == {"later"}
        assert list(states(first)) == list(PLANNED)
        assert "turns <them> into masks" in Page(first).section("plan")
        assert read_json(run / RUN_STATE, "state") == {"method": "CAM", "finished": False}

        classifier = train(Method(steps=30), images, out=run / "classifier")
        second = text_of(run)
        assert states(second) == {"classifier": "done", "cams": "later", "masks": "later", "segmenter": "later"}
        assert "30 updates" in Page(second).section("training")

        cams = localize(Method(), images, weights=classifier, out=run / "cams")
        third = Page(text_of(run))
        assert len(third.all("div", "row")) == 4
        assert sum(caption.startswith("maps: ") for _, caption in third.all("figcaption")) >= 4
        assert refreshes(text_of(run))
        refine(Method(), images, cams=cams, out=run / "masks")
        assert "<script>alert" not in text_of(run)
        report(run, data)
    last = text_of(run)
    assert not refreshes(last)
    assert states(last) == {}
    assert is_finished(run)


@stage(kind="train", makes="weights", title="CAM")
def slow_training(settings: Method, images: Images, *, out: Path, seen: list[str]) -> dict[str, Any]:
    history: list[dict[str, float]] = []
    with Progress("train", settings.steps) as progress:
        watch.training(out, None, history)  # type: ignore[arg-type]
        for step in range(settings.steps):
            history.append({"step": step, "lr": 0.1, "a <loss>": 1 / (1 + step)})
            progress.advance(stop=False)
            seen.append(text_of(out.parent))
    return {}


def test_losses_so_far(tmp_path: Path, data: Dataset, often: None) -> None:
    seen: list[str] = []
    with reporting(tmp_path / "run", data, "CAM", PLANNED):
        slow_training(Method(steps=5), data.split("train"), out=tmp_path / "run" / "classifier", seen=seen)
    page = Page(seen[2])
    assert states(seen[2])["classifier"] == "running"
    assert "3 of 5" in page.section("plan")
    assert "a <loss>" in page.section("training")
    assert [len((attributes["points"] or "").split()) for attributes, _ in page.all("polyline")] == [3, 3]


# Pictures that the stage below fails at
BROKEN: set[int] = set()


@stage(kind="localize", makes="maps", title="CAM")
def maps_of_some(settings: Method, images: Images, *, out: Path) -> dict[str, Any]:
    def compute(index: int, size_hw: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        if index in BROKEN:
            raise BadInput("7.jpg", "a <hole> in it", "a picture", "Mend it.")
        return index, size_hw

    def write(path: Path, made: tuple[int, tuple[int, int]]) -> None:
        classes = np.array(images.classes(made[0]))
        write_cams(path, classes, np.full((len(classes), *made[1]), 0.5, np.float32))

    for_each_picture(images, out, ".npz", images.size_hw, compute, write, title="localize")
    return {}


def test_the_maps_of_an_unfinished_stage_are_shown_and_a_stop_says_why(
    tmp_path: Path, data: Dataset, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setitem(globals(), "BROKEN", {11})
    with pytest.raises(BadInput), reporting(run, data, "CAM", PLANNED):
        maps_of_some(Method(), data.split("train"), out=run / "cams")
    text = text_of(run)
    assert not refreshes(text)
    assert "The run is not finished:" in text
    assert "a &lt;hole&gt; in it" in text
    names = [inner for _, inner in Page(text).all("span", "name")]
    images = data.split("train")
    assert len(names) == 4
    assert set(names) <= set(images.names[:11])
    assert not is_finished(run)
    assert len(Page(text).all("figure")) >= 8

    # the same command goes on
    monkeypatch.setitem(globals(), "BROKEN", set())
    with reporting(run, data, "CAM", PLANNED):
        maps_of_some(Method(), data.split("train"), out=run / "cams")
        assert refreshes(text_of(run))
    assert is_finished(run)


def test_a_finished_run_is_left_alone(tmp_path: Path, data: Dataset, often: None) -> None:
    run = tmp_path / "run"

    def command() -> None:
        with reporting(run, data, "CAM", PLANNED):
            train(Method(steps=3), data.split("train"), out=run / "classifier")

    command()
    report(run, data)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    command()
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


def test_pages_take_a_bounded_share_of_the_time(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    written: list[float] = []

    def write(*_: Any) -> None:
        now[0] += 2.0
        written.append(now[0])

    monkeypatch.setattr(live, "write_growing_report", write)
    growing = LiveReport(tmp_path / "run", data, "CAM", PLANNED)
    growing.start()
    growing._running.append(("cams", StageInfo("localize", "maps", "CAM", ()), 0.0))
    monkeypatch.setattr(live, "read_running_stage", lambda *_: None)
    while now[0] < 7200:
        now[0] += 0.5
        growing.advanced("maps", 1, 2)
    assert 2 * len(written) <= live.SHARE * 7200 + 2
    assert len(written) > 30, "every few minutes"
    assert max(later - earlier for earlier, later in itertools.pairwise(written)) < live.LONGEST_PAUSE + 3


def test_a_page_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, data: Dataset, often: None, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    (run / "report.html").mkdir(parents=True)
    with reporting(run, data, "CAM", PLANNED):
        train(Method(steps=3), data.split("train"), out=run / "classifier")
    assert (run / "classifier" / "done.json").exists()
    complaints = [record for record in caplog.records if "could not be updated" in record.message]
    assert len(complaints) == 1


def test_stages_are_the_same_bytes_with_and_without_the_page(tmp_path: Path, data: Dataset, often: None) -> None:
    images = data.split("train")
    train(Method(steps=3), images, out=tmp_path / "without" / "classifier")
    with reporting(tmp_path / "with", data, "CAM", PLANNED):
        train(Method(steps=3), images, out=tmp_path / "with" / "classifier")
    for path in (tmp_path / "without" / "classifier").iterdir():
        if path.name != "seconds.json":
            assert (tmp_path / "with" / "classifier" / path.name).read_bytes() == path.read_bytes()


class Constant:
    """Settings of a method, a network that is trained, and its maps."""

    title = "CAM"

    def localizer(self, images: Images, *, weights: Path) -> "Constant":
        assert (weights / "weights").exists()
        torch.rand(3)
        return self

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def cams(self, prepared: np.ndarray, size_hw: tuple[int, int], label: np.ndarray) -> Cams:
        assert prepared.shape[:2] == size_hw
        assert label.sum() == 1
        return Cams(np.flatnonzero(label), np.full((1, *size_hw), 0.5, np.float32), None)

    def write(self, out: Path) -> None:
        (out / "weights").touch()


@stage(kind="train", makes="weights", title="CAM")
def constant_training(settings: Method, images: Images, *, out: Path) -> dict[str, Any]:
    history: list[dict[str, float]] = []
    with Progress("train", settings.steps) as progress:
        watch.training(out, cast(Any, Constant()), history)
        for step in range(settings.steps):
            history.append({"step": step, "lr": 0.1, "loss": 1.0})
            before = torch.get_rng_state()
            progress.advance(stop=False)
            assert torch.equal(torch.get_rng_state(), before)
    Constant().write(out)
    return {}


def test_examples_of_the_current_weights(
    tmp_path: Path, data: Dataset, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "EXAMPLES_SHARE", 1e9)
    run, images = tmp_path / "run", data.split("train")
    examples = Examples(run, images, cast(Any, Constant()))
    with reporting(run, data, "CAM", PLANNED, examples):
        constant_training(Method(steps=8), images, out=run / "classifier")
    (run / "plots" / "classifier" / "000003" / "999.png").touch()
    report(run, data)
    page = Page(text_of(run))
    captions = [caption for _, caption in page.all("figcaption")]
    # the drawing after the last update is that of the trained weights
    assert captions[:7] == ["picture", *(f"update {number}" for number in (1, 2, 4, 5, 7, 8))]
    assert captions == captions[:7] * 4
    names = [name for _, name in page.all("span", "name")]
    assert names == [images.names[index] for index in examples.indices]
    damaged = run / "plots" / "classifier" / "000001" / f"{examples.indices[0]}.png"
    damaged.write_bytes(b"no picture")
    with pytest.raises(BadInput, match="plots"):
        report(run, data)


def test_only_the_first_process_writes(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsss.peers.rank", lambda: 1)
    growing = LiveReport(tmp_path / "run", data, "CAM", PLANNED)
    growing.start()
    growing.stop("a reason")
    growing.finish()
    assert not (tmp_path / "run").exists()


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / RUN_STATE).write_text('{"finished": "perhaps"}')
    with pytest.raises(BadInput, match=r"run\.json"):
        is_finished(tmp_path)


def test_what_killed_commands_left_in_the_run_folder_is_removed(tmp_path: Path, data: Dataset) -> None:
    run = tmp_path / "run"
    run.mkdir()
    stays = [run / name for name in ("notes.part", ".a-lock-of-another-command.part", ".newer123.part", "report.html")]
    for path in (run / ".killed12.part", *stays):
        path.touch()
        os.utime(path, (time.time() - 60, time.time() - 60))
    growing = LiveReport(run, data, "CAM", PLANNED)
    os.utime(run / ".newer123.part", (time.time() + 60, time.time() + 60))  # of a review that writes now
    growing.finish()
    assert set(run.iterdir()) == {*stays, run / RUN_STATE}
