"""The report of a run while it lasts: written at its start and after its stages, and now and then during long ones."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss import peers, watch
from wsss.data.images import Dataset
from wsss.errors import BadInput
from wsss.run import StageInfo
from wsss.stages.progress import RunProgress, StageProgress
from wsss.stages.records import Stage, read_running_stage, read_stage
from wsss.stages.report import REPORT, write_growing_report
from wsss.stages.train import Trainable
from wsss.storage import read_json, read_only, write_json

# In a run folder: the title of its method, and whether all of its stages are finished
RUN_STATE = "run.json"
# The largest share of the run's time that writing pages may take
SHARE = 0.03
# Seconds between two pages during a stage: they grow with the time that the run has taken
SHORTEST_PAUSE, LONGEST_PAUSE = 10.0, 180.0

log = logging.getLogger("wsss")


class LiveReport:
    """Writes `report.html` while a run lasts; listens to its stages.

    Only process 0 writes. Nothing that a stage computes or writes depends on it, and a page that cannot be written does not end the run.

    Args:
        run: run folder.
        data: its dataset.
        title: title of the method.
        planned: the stages that the run will make, in order: folders, relative to the run folder, and what the stage does; others
            may come between.
    """

    def __init__(self, run: Path, data: Dataset, title: str, planned: Mapping[str, str]) -> None:
        self.run, self.data, self.title = run, data, title
        self._planned = dict(planned)
        self._stages: dict[str, Stage] = {}
        self._running: list[tuple[str, StageInfo, float]] = []
        self._steps: tuple[int, int] | None = None
        self._training: tuple[str, Sequence[Mapping[str, float]]] | None = None
        self._started = self._written = time.monotonic()
        self._spent = self._last_cost = 0.0
        self._complaints: set[str] = set()
        self._silent = peers.rank() > 0 or read_only(run)

    def start(self) -> None:
        """Write the first page, unless an earlier command has written one that may be complete."""
        if not (self.run / REPORT).exists():
            self._begin()
            self._write("")

    def stop(self, reason: str) -> None:
        """Say on the page why the run ended early."""
        if self._running or not self._is_finished():
            self._write(reason)

    def finish(self) -> None:
        """Note that all stages are finished."""
        if not self._silent and not self._is_finished():
            write_json(self.run / RUN_STATE, {"method": self.title, "finished": True})

    def stage_started(self, folder: Path, info: StageInfo) -> None:
        """See `wsss.watch.Listener`."""
        self._begin()
        self._running.append((self._name(folder), info, time.monotonic()))
        self._steps = None
        self._write_if_affordable()

    def stage_finished(self, folder: Path, info: StageInfo, made_before: bool) -> None:
        """See `wsss.watch.Listener`."""
        name = self._name(folder)
        self._running = [one for one in self._running if one[0] != name]
        self._training = self._steps = None
        if self._silent:
            return
        with self._never_ending_the_run():
            self._stages[name] = read_stage(folder.resolve(), name)
        if not made_before:
            self._write_if_affordable()

    def training(self, folder: Path, trainable: Trainable, history: Sequence[dict[str, float]]) -> None:
        """See `wsss.watch.Listener`."""
        self._training = (self._name(folder), history)

    def advanced(self, title: str, done: int, total: int) -> None:
        """See `wsss.watch.Listener`."""
        if self._running:
            self._steps = (done, total)
            now = time.monotonic()
            pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, (now - self._started) / 10))
            if now - self._written >= pause:
                self._write_if_affordable()

    def _name(self, folder: Path) -> str:
        return os.path.relpath(folder.resolve(), self.run.resolve())

    def _begin(self) -> None:
        if not self._silent and (self._is_finished() or not (self.run / RUN_STATE).exists()):
            write_json(self.run / RUN_STATE, {"method": self.title, "finished": False})

    def _is_finished(self) -> bool:
        return is_finished(self.run)

    def _write_if_affordable(self) -> None:
        if self._spent + self._last_cost <= SHARE * (time.monotonic() - self._started):
            self._write("")

    def _write(self, stopped: str) -> None:
        if self._silent:
            return
        before = time.monotonic()
        with self._never_ending_the_run():
            stages = list(self._stages.values())
            for name, _, _ in self._running[-1:]:
                stages.append(read_running_stage((self.run / name).resolve(), name))
            write_growing_report(self.run, self.data, stages, self._progress(stopped))
        self._written = time.monotonic()
        self._last_cost = self._written - before
        self._spent += self._last_cost
        log.debug("%s written in %.2f s, %.1f s in all", REPORT, self._last_cost, self._spent)

    @contextlib.contextmanager
    def _never_ending_the_run(self) -> Iterator[None]:
        """Report an error once, and go on: results are worth more than a page about them."""
        try:
            yield
        except Exception as error:
            if os.environ.get("WSSS_STRICT") and not isinstance(error, BadInput | OSError):
                raise
            text = f"{self.run / REPORT} could not be updated, the run goes on: {error}"
            if text not in self._complaints:
                log.warning("%s", text)
            self._complaints.add(text)

    def _about(self, name: str, title: str, makes: str) -> str:
        return self._planned.get(name, f"{title}: {makes}")

    def _progress(self, stopped: str) -> RunProgress:
        now = time.monotonic()
        done = [
            StageProgress(name, self._about(name, one.title, one.makes), "done", one.seconds, None)
            for name, one in self._stages.items()
        ]
        running = [
            StageProgress(name, self._about(name, info.title, info.makes), "running", now - since, self._steps)
            for name, info, since in self._running
        ]
        begun = [one.name for one in (*done, *running)]
        order = list(self._planned)
        last = max((order.index(name) for name in begun if name in order), default=-1)
        coming = [StageProgress(name, self._planned[name], "to come", 0.0, None) for name in order[last + 1 :]]
        return RunProgress(
            self.title,
            (*done, *running, *coming),
            time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            now - self._started,
            stopped,
            self._training,
        )


@contextlib.contextmanager
def reporting(run: Path, data: Dataset, title: str, planned: Mapping[str, str]) -> Iterator[None]:
    """Inside this block, the report of the run is kept up to date; see `LiveReport`."""
    live = LiveReport(run, data, title, planned)
    live.start()
    try:
        with watch.listening(live):
            yield
    except BaseException as error:  # signals and the end of another process too
        live.stop(str(error) or type(error).__name__)
        raise
    live.finish()


def is_finished(run: Path) -> bool:
    """Whether a run has finished all of its stages.

    Raises:
        BadInput: its `run.json` is damaged.
    """
    path = run / RUN_STATE
    if not path.exists():
        return False
    content: Any = read_json(path, "the state of a run")
    if not isinstance(content, dict) or not isinstance(content.get("finished"), bool):
        do = "It was changed after it was written: remove it."
        raise BadInput(path, f"{content!s:.50}", "the state of a run", do)
    return bool(content["finished"])
