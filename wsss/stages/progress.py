"""What the report says about a run that is not finished."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class StageProgress(NamedTuple):
    """A stage of a run, in its plan.

    Attributes:
        name: its folder, relative to the run folder.
        about: what it does, in a few words.
        state: `done`, `running` or `to come`.
        seconds: how long it took, how long it has been running, or, to come, how long it may take; None if that is not known.
        steps: steps or pictures done, and how many there are; None unless it is running.
    """

    name: str
    about: str
    state: str
    seconds: float | None
    steps: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """How far a run is.

    Attributes:
        method: title of its method.
        stages: its stages, in order.
        written: when the page was written, for people.
        seconds: since the command started.
        stopped: why the command ended early; empty while it runs.
        training: name of the stage that trains a network, and its losses so far; None if none does.
    """

    method: str
    stages: Sequence[StageProgress]
    written: str
    seconds: float
    stopped: str = ""
    training: tuple[str, Sequence[Mapping[str, float]]] | None = None
