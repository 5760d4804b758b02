"""Put runs side by side: scores, what they were made with, what they cannot be compared in, and the same pictures of each."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from wsss import __version__, launch
from wsss.data.files import read_mask
from wsss.data.images import Dataset, Images
from wsss.data.tables import table_text
from wsss.run import DONE, STARTED
from wsss.stages.check import DATA, noted, reopened
from wsss.stages.evaluate import truth_fingerprint
from wsss.stages.pages import (
    PICTURE_BYTES,
    PICTURES_BYTES,
    SIDE,
    aligned,
    class_bars,
    duration,
    mask_picture,
    percent,
    small,
    some,
    uri,
    write_page,
)
from wsss.stages.records import (
    KINDS,
    MAPS,
    MASKS,
    PREDICTIONS,
    REFINED,
    Score,
    Stage,
    folders_with,
    holds,
    made_from,
    scores_of,
    stage_name,
    stages_of,
)
from wsss.stages.report import REPORT
from wsss.storage import read_json, whole_file, write_json
from wsss.weights import WEIGHTS, read_metadata

COMPARISON = "compare"
# What `wsss run all` leaves: in its folder the names of its runs, in the folder of one that failed the reason
RUNS, FAILED = "runs.json", "failed.json"

# Pictures that runs differ in most, and others
DIFFERENT, RANDOM = 8, 6
# letters of a setting that are shown
_LONGEST = 60

# settings that the protocol has lines of its own for
_IN_PROTOCOL = ("variant", "backbone", "init", "clip", "seed")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, as it is compared.

    Attributes:
        name: different for each run.
        folder: where it lies.
        stages: those that are finished.
        unfinished: folders of stages that are not.
        planned: its method, as `wsss run all` says, and nothing where another command made the run.
        scores: what is compared, by its kind.
    """

    name: str
    folder: Path
    stages: Sequence[Stage]
    unfinished: Sequence[str]
    planned: str = ""
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)

    @cached_property
    def all_scores(self) -> list[Score]:
        """Everything that was scored."""
        return scores_of(self.stages)

    @property
    def besides(self) -> list[Score]:
        """What was scored, but is not compared: on other pictures, or on the way."""
        compared = [score.stage.folder for score in self.scores.values()]
        return [score for score in self.all_scores if score.stage.folder not in compared]

    @cached_property
    def failed(self) -> str | None:
        """Why `wsss run all` gave it up."""
        path = self.folder / FAILED
        return read_json(path, "why a run failed")["error"] if path.exists() else None

    @property
    def status(self) -> str:
        """`finished`, or what it lacks."""
        if self.failed is not None:
            return "failed"
        if self.unfinished:
            return f"unfinished: {', '.join(self.unfinished)}"
        # a recipe writes its report at the end
        return "unfinished" if (self.folder / DATA).exists() and not (self.folder / REPORT).exists() else "finished"

    @property
    def seconds(self) -> float:
        """Of all its stages."""
        return sum(stage.seconds for stage in self.stages)

    @cached_property
    def protocol(self) -> dict[str, str]:
        """What it was made with, as far as its stages say; the same names for each run."""
        return dict(self._protocol())

    @cached_property
    def settings(self) -> dict[str, str]:
        """Settings of the stages that its maps were made by, but for those that the protocol names, under `stage.name.of.setting`."""
        maps = self._last_maps
        stages = [*made_from(maps, self.stages), maps] if maps else []
        found: dict[str, str] = {}
        for stage in stages:
            if stage.kind in ("train", "localize"):
                flat = _flat(stage.inputs.get("settings"), Path(stage.name).name)
                found |= {name: text for name, text in flat if name.rpartition(".")[2] not in _IN_PROTOCOL}
        return found

    @property
    def method(self) -> str:
        """The method of its maps."""
        return self.protocol["method"] or self.planned

    def _protocol(self) -> Iterator[tuple[str, str]]:
        maps = self._last_maps
        before = [*made_from(maps, self.stages), maps] if maps else []
        networks = [stage for stage in before if stage.kind == "train"]
        variant = next((text for stage in networks[::-1] for text in _values(stage, "variant")), "")
        method = maps.title if maps else ""
        yield "method", f"{method} ({variant})" if method and variant not in ("", method.lower()) else method
        yield "trained on", _pictures(networks[0] if networks else maps)
        yield "tags", self._tags(maps)
        yield "backbone", next((text for stage in networks for text in _backbone(stage)), "")
        yield "initial weights", next((text for stage in networks for text in self._named(stage, "init")), "")
        yield "CLIP", next((text for stage in before[::-1] for text in self._named(stage, "clip")), "")
        for kind in (MAPS, REFINED):
            yield f"threshold of {kind}", _threshold(self.scores[kind]) if kind in self.scores else ""
        masks = [stage for stage in self.stages if stage.makes == "masks"][-1:]
        refiners = [
            stage.title
            for one in masks
            for stage in (*made_from(one, self.stages), one)
            if stage.kind == "walk" or stage.folder == one.folder
        ]
        yield "refiner", ", then ".join(refiners)
        yield "threshold of pseudo masks", "".join(self._mask_threshold(one) for one in masks)
        tests = [stage for stage in self.stages if stage.makes == "predictions"][-1:]
        segmenters = [stage for one in tests for stage in made_from(one, self.stages) if stage.kind == "train"][-1:]
        parts = [
            text
            for stage in segmenters
            for text in (stage.title, *_backbone(stage), f"{stage.record['result']['steps']} updates")
        ]
        yield "segmenter", ", ".join(filter(None, parts))
        yield (
            "segmenter's initial weights",
            ", ".join(text for stage in segmenters for text in self._named(stage, "init")),
        )
        chosen = [item for stage in tests for item in stage.inputs["settings"].items() if item[1] is not None]
        tested = ", ".join(f"{key} {_short(value)}" for key, value in chosen)
        yield "segmenter's test", tested or ("as published" if tests else "")
        trainings = [text for stage in self.stages for text in _values(stage, "training", "seed")]
        yield "seeds", ", ".join(sorted(set(trainings)))
        for kind in KINDS:
            score = self.scores.get(kind)
            yield f"{kind} scored on", f"{score.split}, {score.images} pictures" if score else ""
        protocols = [score.protocol for score in self.scores.values()]
        yield "mean of mIoU", ", ".join(sorted({str(protocol["convention"]) for protocol in protocols}))
        tolerances = {protocol["contour tolerance"] for protocol in protocols} - {None}
        yield "contour tolerance", ", ".join(map(str, sorted(tolerances)))
        yield "made by", ", ".join(sorted({f"wsss {stage.record['version']}" for stage in self.stages}))

    @property
    def _last_maps(self) -> Stage | None:
        """What gave the maps that all else was made from, in this run or in another."""
        every = [stage for one in self.stages for stage in (*made_from(one, self.stages), one)]
        scored = self.scores[MAPS].source if MAPS in self.scores else None
        return scored or next((stage for stage in every[::-1] if stage.kind == "localize"), None)

    def _tags(self, maps: Stage | None) -> str:
        # tags are part of a fingerprint: those of the pictures as they came, and those that the maps were made from
        taggers = [stage for stage in self.stages if stage.makes == "tags"]
        if maps and (found := [stage.title for stage in taggers if stage.fingerprint != maps.fingerprint]):
            return found[0]
        opened = noted(self.folder).get("opened", {})
        return Path(opened["tags"]).name if opened.get("tags") else "data set"

    def _named(self, stage: Stage, key: str) -> list[str]:
        """A setting that holds a word or a file; files that a stage of this run made go by its name."""
        made = {identity: other.name for other in self.stages for identity in other.changes.files.values()}
        return [
            made.get(value["identity"], value["file"]) if holds(value, "file") else str(value)
            for value in _raw(stage, key)
        ]

    def _mask_threshold(self, masks: Stage) -> str:
        settings = masks.inputs["settings"]
        name = "exponent" if settings.get("by") == "scores" else "threshold"
        value = settings.get(name)
        if value is None:
            return ""
        swept = [score for kind, score in self.scores.items() if kind in (MAPS, REFINED) and _is_swept(score)]
        best = [
            score.protocol["threshold"]
            for score in swept
            if score.source and score.source.folder in masks.folders.values()
        ]
        return f"{name} {value:g}" + (", the best of the maps" if value in best else "")


def _raw(stage: Stage, *keys: str) -> list[Any]:
    """A setting, where the stage has it."""
    value = stage.inputs.get("settings")
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return [] if value is None else [value]


def _values(stage: Stage, *keys: str) -> list[str]:
    return [str(value) for value in _raw(stage, *keys)]


def _backbone(stage: Stage) -> list[str]:
    """Of a network's file, which knows what `auto` became, or of its settings."""
    metadata = _metadata(stage)
    holders = (metadata, metadata.get("network"), stage.inputs["settings"])
    return [str(holder["backbone"]) for holder in holders if holder and "backbone" in holder][:1]


def _flat(settings: Any, name: str) -> Iterator[tuple[str, str]]:
    """Settings in settings by their full names; a file is one setting."""
    if isinstance(settings, dict) and not holds(settings, "file"):
        for key, value in settings.items():
            yield from _flat(value, f"{name}.{key}")
    else:
        text = settings["file"] if isinstance(settings, dict) else "null" if settings is None else _short(settings)
        yield name, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _metadata(stage: Stage) -> dict[str, Any]:
    path = stage.folder / WEIGHTS
    return read_metadata(path) if path.exists() else {}


def _pictures(stage: Stage | None) -> str:
    inputs = stage.inputs.values() if stage else ()
    return next((f"{value['images']}, {value['count']} pictures" for value in inputs if holds(value, "images")), "")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "of its own" if isinstance(value, dict) else str(value)


def _is_swept(score: Score) -> bool:
    return len(score.content["curve"]["thresholds"]) > 1


def _threshold(score: Score) -> str:
    name = "exponent" if score.protocol.get("background") == "power" else "threshold"
    value = f"{name} {score.protocol['threshold']:g}"
    return f"{value}, best of {len(score.content['curve']['thresholds'])}" if _is_swept(score) else f"{value}, given"


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; one that `wsss run all` wrote stands for all of its runs.

    Raises:
        BadInput: a folder is no run.
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
    """A score on the pictures that most runs have scores of this kind on."""
    every = [[score for score in run.all_scores if score.kind == kind] for run in runs]

    def runs_like(one: Score) -> int:
        return sum(any(_same_pictures(one, other) for other in scores) for scores in every)

    return max((score for scores in every for score in scores), key=runs_like, default=None)


def _chosen(run: Run, references: Mapping[str, Score | None]) -> dict[str, Score]:
    """Of each kind what was scored last on the pictures of the others, or last at all."""
    chosen: dict[str, Score] = {}
    for kind, reference in references.items():
        scores = [score for score in run.all_scores if score.kind == kind]
        alike = [score for score in scores if reference and _same_pictures(score, reference)]
        if scores:
            chosen[kind] = (alike or scores)[-1]
    return chosen


def _open_run(folder: Path, name: str, method: str) -> Run:
    started = sorted(stage_name(path, folder) for path in folders_with(folder, STARTED))
    begun = started or (folder / FAILED).exists() or (folder / DATA).exists()
    nothing = begun and next(folders_with(folder, DONE), None) is None
    return Run(name, folder, [] if nothing else stages_of(folder), started, method)


def _labels(run: Run) -> tuple[str, ...]:
    """Background and classes of what was scored."""
    return tuple(next(iter(run.scores.values())).content["labels"])


def _same_pictures(one: Score, other: Score) -> bool:
    # records of older versions know pictures, masks and tags together only
    if "truth" in one.content and "truth" in other.content:
        return one.content["truth"] == other.content["truth"]
    return one.stage.fingerprint == other.stage.fingerprint


def _why_not(score: Score, reference: Score) -> str:
    """Why two scores must not be compared; nothing if they may be."""
    reasons = []
    if not _same_pictures(score, reference):
        here, there = (f"{one.split}, {one.images} pictures" for one in (score, reference))
        reasons.append(f"scored on {here} instead of {there}" if here != there else f"other files in {here}")
    if score.protocol["convention"] != reference.protocol["convention"]:
        reasons.append(f"mean `{score.protocol['convention']}` instead of `{reference.protocol['convention']}`")
    if (
        score.contour
        and reference.contour
        and score.protocol["contour tolerance"] != reference.protocol["contour tolerance"]
    ):
        reasons.append(
            f"contour tolerance {score.protocol['contour tolerance']} instead of {reference.protocol['contour tolerance']}"
        )
    return "; ".join(reasons)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs, and which of their scores may be compared.

    Attributes:
        runs: at least one.
    """

    runs: Sequence[Run]

    @cached_property
    def odd(self) -> dict[tuple[str, str], str]:
        """Scores that are not comparable with most others of their kind, and why: by name of the run and kind."""
        found: dict[tuple[str, str], str] = {}
        labels = Counter(_labels(run) for run in self.runs if run.scores).most_common(1)
        for kind in KINDS:
            here = [run for run in self.runs if kind in run.scores]
            scores = [run.scores[kind] for run in here if _labels(run) == labels[0][0]]
            # the one with the most like it
            reference = max(scores, key=lambda one: sum(not _why_not(other, one) for other in scores), default=None)
            for run in here:
                if _labels(run) != labels[0][0]:
                    found[run.name, kind] = (
                        f"other classes ({', '.join(_labels(run)[1:6])}) in {run.scores[kind].split}"
                    )
                elif reference and (why := _why_not(run.scores[kind], reference)):
                    found[run.name, kind] = why
        return found

    @property
    def remarks(self) -> list[str]:
        """What is to be known before scores are compared, one sentence each."""
        covered: dict[tuple[str, str], list[str]] = {}
        for run in self.runs:
            for kind, score in run.scores.items():
                if score.coverage:
                    covered.setdefault((kind, score.coverage), []).append(run.name)
        lines = [f"{', '.join(names)}: {kind}: {text}" for (kind, text), names in covered.items()]
        lines += [f"{name}: {kind} not comparable: {why}" for (name, kind), why in self.odd.items()]
        lines += [f"{run.name}: failed: {run.failed}" for run in self.runs if run.failed is not None]
        return lines + [f"{run.name}: {run.status}" for run in self.runs if run.status.startswith("unfinished")]

    @cached_property
    def protocols(self) -> list[tuple[str, list[str]]]:
        """What each run was made with, name by name, in the order of the runs; `-` where a run has nothing of it."""
        lines = [(name, [run.protocol[name] or "-" for run in self.runs]) for name in self.runs[0].protocol]
        return [(name, texts) for name, texts in lines if set(texts) != {"-"}]

    @property
    def same(self) -> list[tuple[str, str]]:
        """What no two runs that have it differ in."""
        return [(name, max(texts)) for name, texts in self.protocols if not _differ(texts)]

    @property
    def different(self) -> list[tuple[str, list[str]]]:
        """What runs differ in: their making, and settings that runs of one method differ in."""
        lines = [(name, texts) for name, texts in self.protocols if _differ(texts)]
        methods = [run.method.partition(" ")[0] for run in self.runs]
        for name in dict.fromkeys(name for run in self.runs for name in run.settings):
            texts = [run.settings.get(name, "-") for run in self.runs]
            if any(_differ([text for text, its in zip(texts, methods, strict=True) if its == one]) for one in methods):
                lines.append((name, texts))
        return lines

    def best(self, kind: str, figure: str) -> float | None:
        """The best `miou` or `contour_f` among comparable scores, None where none is better than another."""
        values = [
            value
            for run in self.runs
            if kind in run.scores and (run.name, kind) not in self.odd
            if (value := figures(run.scores[kind])[figure]) is not None
        ]
        return max(values) if len(set(values)) > 1 else None


def figures(score: Score) -> dict[str, float | None]:
    """`miou` and `contour_f`, as shares."""
    return {"miou": score.scores["miou"], "contour_f": score.contour["mean_f"] if score.contour else None}


def compare(folders: Sequence[Path], out: Path, data: Dataset | None = None) -> Comparison:
    """Write `compare.html`, `compare.csv` and `compare.json` of runs.

    Args:
        folders: of the runs, or of `wsss run all`; a stage that a run lacks is left empty.
        out: folder for the files.
        data: what the runs were made from, for the pictures; by default what the runs say of it.

    Raises:
        BadInput: a folder is no run, or the data set of the runs is not there any more.
    """
    comparison = Comparison(open_runs(folders))
    if launch.is_first():
        with whole_file(out / f"{COMPARISON}.csv") as temporary:
            temporary.write_text(_csv(comparison), encoding="utf-8", errors="surrogateescape")
        write_json(out / f"{COMPARISON}.json", _json(comparison))
    write_page(out / f"{COMPARISON}.html", f"{COMPARISON}.html", lambda: _content(comparison, data))
    return comparison


def table(comparison: Comparison) -> str:
    """The comparison as text: scores in per cent, what differs in the making, remarks."""
    kinds = [kind for kind in KINDS if any(kind in run.scores for run in comparison.runs)]
    header = ["run", "method", *(f"{kind}: {figure}" for kind in kinds for figure in ("mIoU", "F")), "time"]
    rows = [header]
    for run in comparison.runs:
        cells = []
        for kind in kinds:
            shown = [percent(value) for value in figures(run.scores[kind]).values()] if kind in run.scores else ["", ""]
            cells += [f"{text}*" if (run.name, kind) in comparison.odd else text for text in shown]
        rows.append([run.name, run.method, *cells, duration(run.seconds) if run.stages else ""])
    parts = [aligned(rows, texts=2)]
    different = [[name, *texts] for name, texts in comparison.different if name != "method"]
    if different:
        names = ["what differs", *(run.name for run in comparison.runs)]
        parts.append(aligned([names, *different], texts=len(names)))
    if comparison.remarks:
        marks = " (marked *)" if comparison.odd else ""
        parts.append("\n".join([f"remarks{marks}:", *(f"  {remark}" for remark in comparison.remarks)]))
    return "\n\n".join(parts)


def _rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A row for each run and kind, empty where there is no score."""
    for run in comparison.runs:
        for kind in KINDS:
            score = run.scores.get(kind)
            why = comparison.odd.get((run.name, kind), "")
            scored = (
                {
                    "folder": (score.source or score.stage).name,
                    "split": score.split,
                    "pictures": score.images,
                    **figures(score),
                    "seconds": score.source.seconds if score.source else None,
                    "comparable": not why,
                    "why not": why,
                }
                if score
                else dict.fromkeys(
                    ("folder", "split", "pictures", "miou", "contour_f", "seconds", "comparable", "why not")
                )
            )
            yield {"run": run.name, "status": run.status, "what": kind, **scored}


def _csv(comparison: Comparison) -> str:
    rows = list(_rows(comparison))
    protocol = list(comparison.runs[0].protocol)
    by_name = {run.name: run for run in comparison.runs}
    lines: list[list[object]] = [[*rows[0], "seconds of the run", *protocol]]
    for row in rows:
        run = by_name[row["run"]]
        lines.append([*row.values(), round(run.seconds, 3), *(run.protocol.get(key) for key in protocol)])
    return table_text(lines)


def _json(comparison: Comparison) -> dict[str, Any]:
    rows = list(_rows(comparison))
    return {
        "runs": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "status": run.status,
                "error": run.failed,
                "seconds": round(run.seconds, 3),
                "seconds of stages": {stage.name: stage.seconds for stage in run.stages},
                "protocol": run.protocol,
                "scores": {
                    row["what"]: {key: value for key, value in row.items() if key not in ("run", "status", "what")}
                    for row in rows
                    if row["run"] == run.name and row["folder"] is not None
                },
                "scored besides": [
                    {"what": score.title, "split": score.split, "pictures": score.images, **figures(score)}
                    for score in run.besides
                ],
            }
            for run in comparison.runs
        ],
        "remarks": comparison.remarks,
    }


def _content(comparison: Comparison, data: Dataset | None) -> dict[str, Any]:
    data = data or next((found for run in comparison.runs if (found := reopened(run.folder))), None)
    kinds = [kind for kind in KINDS if any(kind in run.scores for run in comparison.runs)]
    bars = []
    for kind in kinds:
        named = [(run.name, run.scores[kind]) for run in _comparable(comparison, kind)]
        bars.append((kind, class_bars(named)))
    return {
        "comparison": comparison,
        "kinds": kinds,
        "figures": figures,
        "different": [(name, _marked(texts)) for name, texts in comparison.different if name != "method"],
        "bars": bars,
        "galleries": _galleries(comparison, data) if data else [],
        "data": data,
        "version": __version__,
    }


def _comparable(comparison: Comparison, kind: str) -> list[Run]:
    return [run for run in comparison.runs if kind in run.scores and (run.name, kind) not in comparison.odd]


def _differ(texts: Sequence[str]) -> bool:
    return len(set(texts) - {"-"}) > 1


def _marked(texts: Sequence[str]) -> list[tuple[str, bool]]:
    """Texts, and whether each is another than the one that most runs have."""
    (most, count), *others = Counter(text for text in texts if text != "-").most_common()
    common = most if others[0][1] < count else None
    return [(text, text not in ("-", common)) for text in texts]


def _galleries(comparison: Comparison, data: Dataset) -> list[dict[str, Any]]:
    chosen = []
    for kind in (PREDICTIONS, MASKS):
        runs = [run for run in _comparable(comparison, kind) if run.scores[kind].source]
        images = _images(runs[0].scores[kind], data) if runs else None
        if images is not None:
            chosen.append((kind, runs, images, _picked([run.scores[kind] for run in runs])))
    count = sum(len(names) * (2 + len(runs)) for _, runs, _, groups in chosen for _, names in groups)
    limit = min(PICTURE_BYTES, PICTURES_BYTES // max(count, 1))
    return [
        {
            "kind": kind,
            "split": images.title,
            "columns": 2 + len(runs),
            "groups": [
                {"title": title, "rows": [_row(kind, runs, images, name, limit) for name in names]}
                for title, names in groups
            ],
        }
        for kind, runs, images, groups in chosen
    ]


def _images(score: Score, data: Dataset) -> Images | None:
    """The split that was scored."""
    for images in data.splits.values():
        if score.content.get("truth") == truth_fingerprint(images) or score.stage.fingerprint == images.fingerprint():
            return images
    return None


def _picked(scores: Sequence[Score]) -> list[tuple[str, list[str]]]:
    """Names of pictures: those whose IoU differs most between the runs, and some others."""
    names = sorted(set.intersection(*(set(score.per_image) for score in scores)))
    spread: dict[str, float] = {}
    for name in names:
        reached = [iou for score in scores if (iou := score.per_image[name]) is not None]
        spread[name] = max(reached) - min(reached) if reached else 0.0
    different = sorted((name for name in names if spread[name] > 0), key=lambda name: (-spread[name], name))[:DIFFERENT]
    groups = [
        ("Where the runs differ most", different),
        ("Random", some([n for n in names if n not in different], RANDOM)),
    ]
    return [(title, picked) for title, picked in groups if picked]


def _row(kind: str, runs: Sequence[Run], images: Images, name: str, limit: int) -> dict[str, Any]:
    position = images.names.index(name)
    picture = small(Image.fromarray(images.read(position)), SIDE)
    truth = images.read_mask(position)
    shown = [
        {"caption": "picture", "reached": "", "kind": "picture", "uri": uri(picture, limit)},
        {"caption": "true mask", "reached": "", "kind": "mask", "uri": uri(mask_picture(truth), limit)},
    ]
    for run in runs:
        score = run.scores[kind]
        assert score.source is not None
        iou, f = score.per_image[name], score.per_image_contour.get(name)
        reached = f"{percent(iou)}" + ("" if f is None else f" · F {percent(f)}")
        mask = read_mask(score.source.folder / f"{name}.png")
        shown.append({"caption": run.name, "reached": reached, "kind": "mask", "uri": uri(mask_picture(mask), limit)})
    tags = [(label + 1, images.class_names[label]) for label in images.classes(position)]
    return {"name": name, "tags": tags, "figures": shown}
