"""What runs left behind, as the report and the comparison read it: finished stages, and what was scored."""

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
from wsss.run import DONE, STARTED, record, seconds
from wsss.stages.evaluate import PER_IMAGE, PER_IMAGE_CONTOUR, SCORES
from wsss.storage import TEMPORARY_SUFFIX, read_json

# What is scored, shown and compared, in words
MAPS, REFINED, MASKS, PREDICTIONS = KINDS = ("maps", "refined maps", "pseudo masks", "predictions")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        name: its folder, as seen from the run's.
        folder: where it lies.
        record: what `done.json` says.
        seconds: how long it took.
        changes: what has become of its files since.
    """

    name: str
    folder: Path
    record: Mapping[str, Any]
    seconds: float
    changes: Changes

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
        """Settings, pictures, stages and files that it was made from; those of a function's `**inputs` stand nested."""
        inputs: Mapping[str, Any] = self.record["inputs"]
        named = inputs.get("inputs", {})
        return {key: value for key, value in inputs.items() if key != "inputs"} | dict(named)

    @property
    def fingerprint(self) -> str | None:
        """Of the pictures that it was made from."""
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
    """Whether a record's value is what `wsss.run` writes of pictures (`fingerprint`), stages (`folder`) or files (`file`)."""
    return isinstance(value, Mapping) and key in value


def stages_of(run: Path) -> list[Stage]:
    """Finished stages below a folder, or the folder itself; each after those that it was made from.

    Raises:
        BadInput: there is none, or files of one are missing or damaged.
    """
    if not run.is_dir():
        raise BadInput(run, "no such folder", "the folder of a run", "Check the path.")
    top = run.resolve()
    folders = list(folders_with(top, DONE))
    if not folders:
        raise BadInput(run, "no finished stage in it", "the folder of a run", "Check the path, or make the run first.")
    stages = {folder: _read(folder, stage_name(folder, top)) for folder in folders}
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


def _read(folder: Path, name: str) -> Stage:
    done = record(folder)
    return Stage(name, folder, done, seconds(folder), changes(folder, done))


def made_from(stage: Stage, stages: Sequence[Stage]) -> list[Stage]:
    """All that a stage was made from, directly or not, roots first: stages of a run, and those elsewhere that are still there.

    Weights that settings name by their content belong to the stage that made them.
    """
    known = {other.folder: other for other in stages}
    makers = {identity: other for other in stages for identity in other.changes.files.values()}
    found: dict[Path, Stage] = {}

    def visit(one: Stage) -> None:
        sources = [
            known.get(folder) or _read(folder, folder.name)
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


def in_words(stage: Stage, stages: Sequence[Stage]) -> str:
    """What a stage makes, in words: maps that were made from others are refined ones."""
    if stage.makes == "maps":
        return REFINED if any(before.makes == "maps" for before in made_from(stage, stages)) else MAPS
    return MASKS if stage.makes == "masks" else stage.makes


def _identities(value: Any) -> Iterator[str]:
    """Of all files in settings."""
    if holds(value, "identity"):
        yield value["identity"]
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _identities(inner)


def folders_with(folder: Path, marker: str) -> Iterator[Path]:
    """Folders with this marker; what lies below a stage's folder belongs to its pictures."""
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.endswith(TEMPORARY_SUFFIX)]
        if marker in files:
            yield Path(place)
        if DONE in files or STARTED in files:
            inner.clear()


def stage_name(folder: Path, top: Path) -> str:
    """What a stage is called in a run."""
    return top.name if folder == top else folder.relative_to(top).as_posix()


@dataclasses.dataclass(frozen=True)
class Score:
    """What `wsss.stages.evaluate` wrote about maps or masks.

    Attributes:
        kind: what was scored: one of `KINDS`.
        title: the same with what tells it from others of its kind.
        short: the title without the threshold, for legends.
        stage: the one that scored.
        source: the one that made what was scored, None if it is gone.
        content: of `scores.json`.
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
        """What the mean IoU leaves out or makes up, in words."""
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
        """Contour F-scores of single pictures; empty where none were measured."""
        path = self.stage.folder / PER_IMAGE_CONTOUR
        return read_json(path, "contour scores of single pictures") if path.exists() else {}


def scores_of(stages: Sequence[Stage]) -> list[Score]:
    """What was scored, in the order of the stages."""
    read = []
    for stage in stages:
        if (stage.folder / SCORES).exists():
            source = _source(stage, stages)
            read.append((stage, source, read_json(stage.folder / SCORES, "scores")))
    shown = [in_words(source, stages) if source else stage.name for stage, source, _ in read]
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


def _source(stage: Stage, stages: Sequence[Stage]) -> Stage | None:
    """What a stage scored; when its folder alone is looked at, that lies elsewhere."""
    for folder in stage.folders.values():
        for other in stages:
            if other.folder == folder:
                return other
        if (folder / DONE).exists():
            return _read(folder, folder.name)
    return None
