"""Finished stages and their scores, as the report and the comparison read them from run folders."""

import dataclasses
import graphlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wsss.errors import BadInput
from wsss.outputs import Changes, changes
from wsss.run import DONE, STARTED, read_record, read_seconds
from wsss.stages.evaluate import PER_IMAGE, PER_IMAGE_CONTOUR, SCORES
from wsss.storage import TEMPORARY_SUFFIX, read_json

# The kinds of results that are scored, shown and compared
MAPS, REFINED, MASKS, PREDICTIONS = KINDS = ("maps", "refined maps", "pseudo masks", "predictions")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage, or one that is running.

    Attributes:
        name: its folder, relative to the run folder.
        folder: its absolute path.
        record: content of `done.json`; of `started.json`, which has no result, while it is running.
        seconds: how long it took.
        changes: files edited or added since it finished.
        finished: whether it has a result.
    """

    name: str
    folder: Path
    record: Mapping[str, Any]
    seconds: float
    changes: Changes
    finished: bool = True

    @property
    def kind(self) -> str:
        return str(self.record["kind"])

    @property
    def makes(self) -> str:
        return str(self.record["makes"])

    @property
    def title(self) -> str:
        return str(self.record["title"])

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Settings, pictures, stages and files that it was made from; the record nests those passed as `**inputs`."""
        inputs: Mapping[str, Any] = self.record["inputs"]
        named = inputs.get("inputs", {})
        return {key: value for key, value in inputs.items() if key != "inputs"} | dict(named)

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the pictures that it was made from."""
        return next((value["fingerprint"] for value in self.inputs.values() if holds(value, "fingerprint")), None)

    @cached_property
    def folders(self) -> dict[str, Path]:
        """The stages that it was made from, by the names of the inputs."""
        return {
            key: Path(os.path.normpath(self.folder / value["folder"]))
            for key, value in self.inputs.items()
            if holds(value, "folder")
        }


def holds(value: Any, key: str) -> bool:
    """Whether a value in a record describes pictures (key `fingerprint`), a stage (`folder`) or a file (`file`), as `wsss.run` writes them."""
    return isinstance(value, Mapping) and key in value


def read_stages(run: Path) -> list[Stage]:
    """The finished stages below a folder, or the folder itself; each after its inputs.

    Raises:
        BadInput: there is no finished stage, or files of one are missing or damaged.
    """
    if not run.is_dir():
        raise BadInput(run, "no such folder", "a run folder", "Check the path.")
    top = run.resolve()
    folders = list(folders_with(top, DONE))
    if not folders:
        raise BadInput(run, "no finished stage in it", "a run folder", "Check the path, or start the run first.")
    stages = {folder: read_stage(folder, relative_name(folder, top)) for folder in folders}
    order = graphlib.TopologicalSorter(
        {folder: [source for source in stage.folders.values() if source in stages] for folder, stage in stages.items()}
    )
    order.prepare()
    ordered = []
    while order.is_active():
        ready = sorted(order.get_ready())
        order.done(*ready)
        ordered += [stages[folder] for folder in ready]
    return ordered


def read_stage(folder: Path, name: str) -> Stage:
    """The finished stage in a folder.

    Raises:
        BadInput: it is not finished, or files of it are missing or damaged.
    """
    done = read_record(folder)
    return Stage(name, folder, done, read_seconds(folder), changes(folder, done))


def read_running_stage(folder: Path, name: str) -> Stage:
    """The unfinished stage in a folder."""
    started = read_json(folder / STARTED, "the record of an unfinished stage")
    return Stage(name, folder, started, read_seconds(folder), Changes({}), finished=False)


def ancestors(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """All stages that a stage was made from, directly or not, roots first; stages of other runs too, if they still exist.

    Weights that settings identify by content are traced to the stage that made them.
    """
    known = {other.folder: other for other in stages}
    makers = _makers(stages)
    found: dict[Path, Stage] = {}

    def visit(one: Stage) -> None:
        sources = [
            known.get(folder) or read_stage(folder, folder.name)
            for folder in one.folders.values()
            if folder in known or (folder / DONE).exists()
        ]
        sources += [makers[identity] for identity in _identities(one.inputs.get("settings")) if identity in makers]
        for source in sources:
            if source.folder not in found and source.folder != stage.folder:
                visit(source)
                found[source.folder] = source

    visit(stage)
    return list(found.values())


def _makers(stages: Sequence[Stage]) -> dict[str, Stage]:
    """The stage that made each file, by the identity of its content. Stages may keep copies of the files that their settings name."""
    made: dict[str, Stage] = {}
    for stage in stages:
        named = set(_identities(stage.inputs.get("settings")))
        for identity in stage.changes.files.values() if stage.kind != "adopt" else ():
            if identity not in named:
                made.setdefault(identity, stage)
    return made


def result_kind(stage: Stage, stages: Sequence[Stage]) -> str:
    """What a stage makes, one of `KINDS` where that applies: maps made from other maps are refined maps."""
    if stage.makes == "maps":
        return REFINED if any(before.makes == "maps" for before in ancestors(stage, stages)) else MAPS
    return MASKS if stage.makes == "masks" else stage.makes


def _identities(value: Any) -> Iterator[str]:
    """Identities of all files in settings."""
    if holds(value, "identity"):
        yield value["identity"]
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _identities(inner)


def folders_with(folder: Path, marker: str) -> Iterator[Path]:
    """Folders that contain a marker file; folders below a stage's folder hold its pictures and are not searched."""
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.endswith(TEMPORARY_SUFFIX)]
        if marker in files:
            yield Path(place)
        if DONE in files or STARTED in files:
            inner.clear()


def relative_name(folder: Path, top: Path) -> str:
    """A stage's folder relative to the run folder, which is the stage's name in it."""
    return top.name if folder == top else folder.relative_to(top).as_posix()


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores of maps or masks, as `wsss.stages.evaluate` wrote them.

    Attributes:
        kind: what was scored: one of `KINDS`.
        title: the kind, with the folder if there are several of a kind, and the threshold.
        short: the title without the threshold, for legends.
        stage: the stage that scored.
        source: the stage that was scored, None if it no longer exists.
        content: content of `scores.json`.
    """

    kind: str
    title: str
    short: str
    stage: Stage
    source: Stage | None
    content: Mapping[str, Any]

    @property
    def protocol(self) -> Mapping[str, Any]:
        return self.content["protocol"]

    @property
    def split(self) -> str:
        return str(self.protocol["split"])

    @property
    def images(self) -> int:
        return int(self.protocol["images"])

    @property
    def scores(self) -> Mapping[str, Any]:
        return self.content["scores"]

    @property
    def coverage(self) -> str | None:
        """A remark on labels that do not occur in the truth, None if all do; see `wsss.metrics.coverage`."""
        return self.content["coverage"]

    @property
    def contour(self) -> Mapping[str, Any] | None:
        return self.content["contour"]

    @cached_property
    def confusion(self) -> np.ndarray:
        return np.array(self.content["confusion"], np.int64)

    @cached_property
    def per_image(self) -> dict[str, float | None]:
        return read_json(self.stage.folder / PER_IMAGE, "scores of single pictures")

    @cached_property
    def per_image_contour(self) -> dict[str, float | None]:
        """Contour F-scores of single pictures; empty if none were measured."""
        path = self.stage.folder / PER_IMAGE_CONTOUR
        return read_json(path, "contour scores of single pictures") if path.exists() else {}


def read_scores(stages: Sequence[Stage]) -> list[Score]:
    """All scores, in the order of the stages."""
    read = []
    for stage in stages:
        if (stage.folder / SCORES).exists():
            source = _scored_stage(stage, stages)
            read.append((stage, source, read_json(stage.folder / SCORES, "scores")))
    shown = [result_kind(source, stages) if source else stage.name for stage, source, _ in read]
    found = []
    for (stage, source, content), what in zip(read, shown, strict=True):
        protocol = content["protocol"]
        unknown = MAPS if "maps" in protocol else MASKS
        short = f"{what} ({(source or stage).name})" if shown.count(what) > 1 else what
        found.append(
            Score(what if source else unknown, f"{short}{_threshold(protocol)}", short, stage, source, content)
        )
    return found


def _threshold(protocol: Mapping[str, Any]) -> str:
    threshold = protocol.get("threshold")
    what = "exponent" if protocol.get("background") == "power" else "threshold"
    return f" at the best {what} ({threshold:g})" if threshold is not None else ""


def _scored_stage(stage: Stage, stages: Sequence[Stage]) -> Stage | None:
    """The stage that a stage scored; outside of `stages` if only the folder of scores is read."""
    for folder in stage.folders.values():
        for other in stages:
            if other.folder == folder:
                return other
        if (folder / DONE).exists():
            return read_stage(folder, folder.name)
    return None
