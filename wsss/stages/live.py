"""The report of a run while it lasts: written at its start and after its stages, and now and then during long ones."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from wsss import peers, watch
from wsss.data.images import Dataset
from wsss.errors import BadInput
from wsss.run import StageInfo
from wsss.stages.examples import DRAWN_STAGES, Examples
from wsss.stages.progress import RunProgress, StageProgress
from wsss.stages.records import Stage, read_running_stage, read_stage
from wsss.stages.report import REPORT, write_growing_report
from wsss.stages.train import Trainable
from wsss.storage import read_json, read_only, remove_leftovers, write_json

# In a run folder: the title of its method, and whether all of its stages are finished
RUN_STATE = "run.json"
# The largest share of the run's time that writing pages may take
SHARE = 0.03
# The largest share that drawing examples may take, with `--plots`
EXAMPLES_SHARE = 0.1
# Seconds between two pages during a stage: they grow with the time that the run has taken
SHORTEST_PAUSE, LONGEST_PAUSE = 10.0, 180.0

log = logging.getLogger("wsss")


class _Training(NamedTuple):
    """A training under way: its stage, its network, and its losses."""

    name: str
    trainable: Trainable
    history: Sequence[Mapping[str, float]]


class _Budget:
    """Time that some work may take, as a share of all the time.

    Args:
        share: the share.
    """

    def __init__(self, share: float) -> None:
        self.share, self.spent, self._last = share, 0.0, 0.0

    def has_room(self, seconds: float) -> bool:
        """Whether the work may be done again after this number of seconds, if it takes as long as last time."""
        return self.spent + self._last <= self.share * seconds

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time of this block."""
        before = time.monotonic()
        yield
        self._last = time.monotonic() - before
        self.spent += self._last


class LiveReport:
    """Writes `report.html` while a run lasts; listens to its stages.

    Only process 0 writes. Nothing that a stage computes or writes depends on it, and a page that cannot be written does not end the run.

    Args:
        run: run folder.
        data: its dataset.
        title: title of the method.
        planned: the stages that the run will make, in order: folders, relative to the run folder, and what the stage does; others
            may come between.
        examples: draws what networks make of a few pictures while they are trained; None to draw nothing.
        estimates: seconds that stages may take, by folder.
    """

    def __init__(
        self,
        run: Path,
        data: Dataset,
        title: str,
        planned: Mapping[str, str],
        examples: Examples | None = None,
        estimates: Mapping[str, float | None] = MappingProxyType({}),
    ) -> None:
        self.run, self.data, self.title = run, data, title
        self._planned, self._estimates = dict(planned), dict(estimates)
        self._stages: dict[str, Stage] = {}
        self._running: list[tuple[str, StageInfo, float]] = []
        self._steps: tuple[int, int] | None = None
        self._training: _Training | None = None
        self._started = self._written = time.monotonic()
        self._since = time.time()
        self._pages, self._drawings = _Budget(SHARE), _Budget(EXAMPLES_SHARE)
        self.examples = examples
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
        """Note that all stages are finished, and remove what killed commands left beside them: stages remove what is in their folders."""
        if self._silent:
            return
        remove_leftovers(self.run, self._since)
        if not self._is_finished():
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
        training, self._training, self._steps = self._training, None, None
        if self._silent:
            return
        if training and not made_before:
            self._draw_examples(training, folder)
        with self._never_ending_the_run():
            self._stages[name] = read_stage(folder.resolve(), name)
        if not made_before:
            self._write_if_affordable()

    def training(self, folder: Path, trainable: Trainable, history: Sequence[dict[str, float]]) -> None:
        """See `wsss.watch.Listener`."""
        self._training = _Training(self._name(folder), trainable, history)

    def advanced(self, title: str, done: int, total: int) -> None:
        """See `wsss.watch.Listener`."""
        if not self._running or self._silent:
            return
        self._steps = (done, total)
        now = time.monotonic()
        pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, (now - self._started) / 10))
        if now - self._written >= pause:
            if self._training:
                self._draw_examples(self._training, None)
            self._write_if_affordable()

    def _name(self, folder: Path) -> str:
        return os.path.relpath(folder.resolve(), self.run.resolve())

    def _begin(self) -> None:
        if not self._silent and (self._is_finished() or not (self.run / RUN_STATE).exists()):
            write_json(self.run / RUN_STATE, {"method": self.title, "finished": False})

    def _is_finished(self) -> bool:
        return is_finished(self.run)

    def _write_if_affordable(self) -> None:
        if self._pages.has_room(time.monotonic() - self._started):
            self._write("")

    def _draw_examples(self, training: "_Training", weights: Path | None) -> None:
        """Draw what the network makes of the pictures, from its trained weights or, without any, from its current ones."""
        name, updates = training.name, len(training.history)
        if self.examples is None or name not in DRAWN_STAGES or not updates:
            return
        if not self._drawings.has_room(time.monotonic() - self._started):
            return
        with self._drawings.spending(), self._never_ending_the_run():
            if weights is None:
                self.examples.draw_current(name, updates, training.trainable)
            else:
                self.examples.draw(name, updates, weights)

    def _write(self, stopped: str) -> None:
        if self._silent:
            return
        with self._pages.spending(), self._never_ending_the_run():
            stages = list(self._stages.values())
            for name, _, _ in self._running[-1:]:
                stages.append(read_running_stage((self.run / name).resolve(), name))
            write_growing_report(self.run, self.data, stages, self._progress(stopped))
        self._written = time.monotonic()
        log.debug("%s: %.1f s for pages, %.1f s for examples", REPORT, self._pages.spent, self._drawings.spent)

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
        coming = [
            StageProgress(name, self._planned[name], "to come", self._estimates.get(name), None)
            for name in order[last + 1 :]
        ]
        return RunProgress(
            self.title,
            (*done, *running, *coming),
            time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            now - self._started,
            stopped,
            (self._training.name, self._training.history) if self._training else None,
        )


@contextlib.contextmanager
def reporting(
    run: Path,
    data: Dataset,
    title: str,
    planned: Mapping[str, str],
    examples: Examples | None = None,
    estimates: Mapping[str, float | None] = MappingProxyType({}),
) -> Iterator[LiveReport]:
    """Inside this block, the report of the run is kept up to date; see `LiveReport`."""
    live = LiveReport(run, data, title, planned, examples, estimates)
    live.start()
    try:
        with watch.listening(live):
            yield live
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
