"""Run folders as the comparison reads them: scores, protocol, and what is missing."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from wsss.health import Note, notes
from wsss.run import DONE, STARTED
from wsss.stages.check import DATA
from wsss.stages.live import is_finished
from wsss.stages.records import (
    KINDS,
    MAPS,
    REFINED,
    Score,
    Stage,
    ancestors,
    folders_with,
    holds,
    read_scores,
    read_stages,
    relative_name,
)
from wsss.stages.supervised import supervision
from wsss.storage import read_json
from wsss.weights import read_metadata, weights_in

# Written by `wsss run all`: names of the runs, in its output folder; the reason of a failure, in the folder of the run
RUNS, FAILED = "runs.json", "failed.json"

# characters of a setting that are shown
_MAX_SHOWN = 60

# settings that have a line in the protocol
_IN_PROTOCOL = ("variant", "backbone", "init", "clip", "seed")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, as the comparison shows it.

    Attributes:
        name: unique among the runs.
        folder: absolute path.
        stages: the finished stages.
        unfinished: folders of unfinished stages.
        planned: the method according to `wsss run all`; empty if another command made the run.
        scores: the compared scores, by kind.
    """

    name: str
    folder: Path
    stages: Sequence[Stage]
    unfinished: Sequence[str]
    planned: str = ""
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)

    @cached_property
    def all_scores(self) -> list[Score]:
        """All scores of the run."""
        return read_scores(self.stages)

    @property
    def other_scores(self) -> list[Score]:
        """Scores that are not compared: on other pictures, or of intermediate results."""
        compared = [score.stage.folder for score in self.scores.values()]
        return [score for score in self.all_scores if score.stage.folder not in compared]

    @cached_property
    def failed(self) -> str | None:
        """Why the run failed, if `wsss run all` says so."""
        path = self.folder / FAILED
        return read_json(path, "why a run failed")["error"] if path.exists() else None

    @cached_property
    def health(self) -> list[Note]:
        """What the run thinks of itself; see `wsss.health`."""
        return notes(self.folder)

    @property
    def status(self) -> str:
        """`finished`, `failed`, or `unfinished` with the names of the stages."""
        if self.failed is not None:
            return "failed"
        if self.unfinished:
            return f"unfinished: {', '.join(self.unfinished)}"
        # a folder of single stages has no plan that could be unfinished
        return "unfinished" if (self.folder / DATA).exists() and not is_finished(self.folder) else "finished"

    @property
    def seconds(self) -> float:
        """Duration of all its stages together."""
        return sum(stage.seconds for stage in self.stages)

    @cached_property
    def protocol(self) -> dict[str, str]:
        """The protocol of the run, as far as its stages tell; every run has the same names."""
        return dict(self._protocol())

    @cached_property
    def settings(self) -> dict[str, str]:
        """Settings of the stages that made its maps, as `stage.name.of.setting`, without those in the protocol."""
        maps = self._last_maps
        stages = [*ancestors(maps, self.stages), maps] if maps else []
        found: dict[str, str] = {}
        for stage in stages:
            if stage.kind in ("train", "localize"):
                flat = _flat(stage.inputs.get("settings"), Path(stage.name).name)
                found |= {name: text for name, text in flat if name.rpartition(".")[2] not in _IN_PROTOCOL}
        return found

    @property
    def method(self) -> str:
        """The method that made its maps."""
        return self.protocol["method"] or self.planned

    @cached_property
    def supervision(self) -> dict[str, str]:
        """What supervised it; see `wsss.stages.supervised`. Every run has the same names."""
        return supervision(self.folder, self.stages)

    def _protocol(self) -> Iterator[tuple[str, str]]:
        yield from self._about_maps()
        yield from self.supervision.items()
        yield from self._about_masks()
        yield from self._about_the_segmenter()
        trainings = [text for stage in self.stages for text in _values(stage, "training", "seed")]
        yield "seeds", ", ".join(sorted(set(trainings)))
        yield from self._about_scores()
        yield "made by", ", ".join(sorted({f"wsss {stage.record['version']}" for stage in self.stages}))

    def _about_maps(self) -> Iterator[tuple[str, str]]:
        maps = self._last_maps
        before = [*ancestors(maps, self.stages), maps] if maps else []
        networks = [stage for stage in before if stage.kind == "train"]
        variant = next((text for stage in networks[::-1] for text in _values(stage, "variant")), "")
        method = maps.title if maps else ""
        yield "method", f"{method} ({variant})" if method and variant not in ("", method.lower()) else method
        yield "trained on", _pictures(networks[0] if networks else maps)
        yield "backbone", next((text for stage in networks for text in _backbone(stage)), "")
        yield "initial weights", next((text for stage in networks for text in self._named(stage, "init")), "")
        yield "CLIP", next((text for stage in before[::-1] for text in self._named(stage, "clip")), "")

    def _about_masks(self) -> Iterator[tuple[str, str]]:
        for kind in (MAPS, REFINED):
            yield f"threshold of {kind}", _threshold(self.scores[kind]) if kind in self.scores else ""
        masks = [stage for stage in self.stages if stage.makes == "masks"][-1:]
        refiners = [
            stage.title
            for one in masks
            for stage in (*ancestors(one, self.stages), one)
            if stage.kind in ("walk", "regions") or stage.folder == one.folder
        ]
        yield "refiner", ", then ".join(refiners)
        yield "threshold of pseudo masks", "".join(self._mask_threshold(one) for one in masks)

    def _about_the_segmenter(self) -> Iterator[tuple[str, str]]:
        tests = [stage for stage in self.stages if stage.makes == "predictions"][-1:]
        segmenters = [
            stage for one in tests for stage in ancestors(one, self.stages) if stage.kind in ("train", "bank")
        ][-1:]
        parts = [text for stage in segmenters for text in _about_segmenter(stage)]
        yield "segmenter", ", ".join(filter(None, parts))
        initial = [text for stage in segmenters for text in self._named(stage, "init")]
        yield "segmenter's initial weights", ", ".join(initial)
        settings = [item for stage in tests for item in stage.inputs["settings"].items()]
        chosen = [(key, value) for key, value in settings if value is not None and (key, value) != ("tags", False)]
        tested = ", ".join(f"{key} {_short(value)}" for key, value in chosen)
        yield "segmenter's test", tested or ("as published" if tests else "")

    def _about_scores(self) -> Iterator[tuple[str, str]]:
        for kind in KINDS:
            score = self.scores.get(kind)
            yield f"{kind} scored on", f"{score.split}, {score.images} pictures" if score else ""
        protocols = [score.protocol for score in self.scores.values()]
        yield "mean of mIoU", ", ".join(sorted({str(protocol["convention"]) for protocol in protocols}))
        tolerances = {protocol["contour tolerance"] for protocol in protocols} - {None}
        yield "contour tolerance", ", ".join(map(str, sorted(tolerances)))

    @property
    def _last_maps(self) -> Stage | None:
        """The stage that made the maps on which the rest of the run is built, in this run or in another."""
        every = [stage for one in self.stages for stage in (*ancestors(one, self.stages), one)]
        scored = self.scores[MAPS].source if MAPS in self.scores else None
        return scored or next((stage for stage in every[::-1] if stage.kind == "localize"), None)

    def _named(self, stage: Stage, key: str) -> list[str]:
        """A setting that holds a word or a file; a file made by a stage of this run is shown as the stage's name."""
        made = {identity: other.name for other in self.stages for identity in other.changes.files.values()}
        return [
            made.get(value["identity"], value["file"]) if holds(value, "file") else str(value)
            for value in _raw(stage, key)
        ]

    def _mask_threshold(self, masks: Stage) -> str:
        settings, result = masks.inputs["settings"], masks.record["result"]
        name = "exponent" if settings.get("by") in ("scores", "par") else "threshold"
        if name not in result:
            return ""
        how = {"otsu": "Otsu's", "otsu_sqrt": "Otsu's of the square roots", "best": "the best of the maps"}.get(
            settings.get(name), "given"
        )
        return f"{name} {result[name]:.4g}, {how}"


def _raw(stage: Stage, *keys: str) -> list[Any]:
    """The value of a setting; empty if the stage does not have it."""
    value = stage.inputs.get("settings")
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return [] if value is None else [value]


def _values(stage: Stage, *keys: str) -> list[str]:
    return [str(value) for value in _raw(stage, *keys)]


def _backbone(stage: Stage) -> list[str]:
    """The backbone or frozen network named in a network's file, which has what `auto` resolved to, or in its settings."""
    metadata = _metadata(stage)
    frozen = metadata.get("features")
    if isinstance(frozen, dict):
        return [frozen["body"]["backbone"] if frozen.get("body") else Path(str(frozen.get("source"))).name]
    holders = (metadata, metadata.get("network"), stage.inputs["settings"])
    return [str(holder["backbone"]) for holder in holders if holder and "backbone" in holder][:1]


def _about_segmenter(segmenter: Stage) -> Iterator[str]:
    """Title and network of a segmenter, and how long it was trained, or how large its bank is."""
    result, backbone = segmenter.record["result"], _backbone(segmenter)
    if "steps" in result:
        yield from (segmenter.title, *backbone, f"{result['steps']} updates")
    else:
        yield from (segmenter.title, f"{sum(result['regions'].values())} regions", *(f"of {name}" for name in backbone))


def _flat(settings: Any, name: str) -> Iterator[tuple[str, str]]:
    """Nested settings by dotted names; a file is one setting."""
    if isinstance(settings, dict) and not holds(settings, "file"):
        for key, value in settings.items():
            yield from _flat(value, f"{name}.{key}")
    else:
        text = settings["file"] if isinstance(settings, dict) else "null" if settings is None else _short(settings)
        yield name, text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _metadata(stage: Stage) -> dict[str, Any]:
    path = weights_in(stage.folder)
    return read_metadata(path) if path.exists() else {}


def _pictures(stage: Stage | None) -> str:
    inputs = stage.inputs.values() if stage else ()
    return next((f"{value['images']}, {value['count']} pictures" for value in inputs if holds(value, "images")), "")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "custom" if isinstance(value, dict) else str(value)


def _is_swept(score: Score) -> bool:
    return len(score.content["curve"]["thresholds"]) > 1


def _threshold(score: Score) -> str:
    name = "exponent" if score.protocol.get("background") == "power" else "threshold"
    value = f"{name} {score.protocol['threshold']:g}"
    return f"{value}, best of {len(score.content['curve']['thresholds'])}" if _is_swept(score) else f"{value}, given"


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; an output folder of `wsss run all` stands for all of its runs.

    Raises:
        BadInput: a folder is not a run folder.
    """
    methods: dict[Path, str] = {}
    for folder in folders:
        inner = read_json(folder / RUNS, "the names of runs") if (folder / RUNS).exists() else None
        found = {folder: ""} if inner is None else {folder / name: method for name, method in inner.items()}
        methods |= {Path(os.path.abspath(path)): method for path, method in found.items()}
    names = [path.name for path in methods]
    common = os.path.commonpath([path.parent for path in methods])
    runs = [
        _open_run(path, path.name if names.count(path.name) == 1 else path.relative_to(common).as_posix(), method)
        for path, method in methods.items()
    ]
    references = {kind: _reference(runs, kind) for kind in KINDS}
    return [dataclasses.replace(run, scores=_chosen(run, references)) for run in runs]


def _reference(runs: Sequence[Run], kind: str) -> Score | None:
    """A score of this kind on the pictures that most runs were scored on."""
    every = [[score for score in run.all_scores if score.kind == kind] for run in runs]

    def runs_like(one: Score) -> int:
        return sum(any(same_pictures(one, other) for other in scores) for scores in every)

    return max((score for scores in every for score in scores), key=runs_like, default=None)


def _chosen(run: Run, references: Mapping[str, Score | None]) -> dict[str, Score]:
    """The last score of each kind on the same pictures as the reference, or else the last score."""
    chosen: dict[str, Score] = {}
    for kind, reference in references.items():
        scores = [score for score in run.all_scores if score.kind == kind]
        alike = [score for score in scores if reference and same_pictures(score, reference)]
        if scores:
            chosen[kind] = (alike or scores)[-1]
    return chosen


def _open_run(folder: Path, name: str, method: str) -> Run:
    started = sorted(relative_name(path, folder) for path in folders_with(folder, STARTED))
    begun = started or (folder / FAILED).exists() or (folder / DATA).exists()
    nothing = begun and next(folders_with(folder, DONE), None) is None
    return Run(name, folder, [] if nothing else read_stages(folder), started, method)


def same_pictures(one: Score, other: Score) -> bool:
    """Whether two scores were measured on the same pictures and true masks, regardless of tags."""
    return bool(one.content["truth"] == other.content["truth"])
