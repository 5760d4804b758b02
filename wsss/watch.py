"""What a running command says about its work while it runs: stages that start and finish, steps done, trainings under way.

A listener, such as the report that grows while a run lasts, is registered for a block of code with `listening`.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # only types: this module is imported by commands that must answer at once
    from wsss.run import StageInfo
    from wsss.stages.train import Trainable

_listeners: contextvars.ContextVar[tuple["Listener", ...]] = contextvars.ContextVar("listeners", default=())


class Listener(Protocol):
    """Is told about the stages of a command, in every process and in the main thread."""

    def stage_started(self, folder: Path, info: "StageInfo") -> None:
        """A stage begins its work, or continues it."""

    def stage_finished(self, folder: Path, info: "StageInfo", made_before: bool) -> None:
        """The record of a stage is written; `made_before`: an earlier command or another run has made it."""

    def training(self, folder: Path, trainable: "Trainable", history: Sequence[dict[str, float]]) -> None:
        """The stage in this folder trains a network; the history grows with every update."""

    def advanced(self, title: str, done: int, total: int) -> None:
        """One more step or picture is done."""


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside this block, the listener is told about everything that this module has a function for."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def stage_started(folder: Path, info: "StageInfo") -> None:
    """Tell all listeners that a stage begins."""
    for listener in _listeners.get():
        listener.stage_started(folder, info)


def stage_finished(folder: Path, info: "StageInfo", made_before: bool) -> None:
    """Tell all listeners that a stage is finished."""
    for listener in _listeners.get():
        listener.stage_finished(folder, info, made_before)


def training(folder: Path, trainable: "Trainable", history: Sequence[dict[str, float]]) -> None:
    """Tell all listeners that a training begins or continues."""
    for listener in _listeners.get():
        listener.training(folder, trainable, history)


def advanced(title: str, done: int, total: int) -> None:
    """Tell all listeners that a step is done."""
    for listener in _listeners.get():
        listener.advanced(title, done, total)
