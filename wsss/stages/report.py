"""Write what a run made as one page that needs no network, and its scores as a table of text."""

import base64
import dataclasses
import graphlib
import io
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.ticker import MaxNLocator
from PIL import Image

from wsss import __version__, launch
from wsss.data.files import read_cams, read_mask, voc_palette
from wsss.data.images import Dataset, Images
from wsss.errors import BadInput
from wsss.ops.contour import boundary_matches
from wsss.run import DONE, STARTED, record, seconds
from wsss.stages.check import DATA
from wsss.stages.evaluate import PER_IMAGE, SCORES
from wsss.stages.train import HISTORY
from wsss.storage import read_json, whole_file

REPORT = "report.html"

# What the pictures of a page weigh together at most, before base64 adds a third
PICTURES_BYTES = 6_500_000
PICTURE_BYTES = 60_000
# Longest side of a gallery's pictures, and of those with contours
SIDE, CONTOUR_SIDE = 320, 640
# Pictures of each kind in a gallery, and classes whose maps are shown
WORST, BEST, RANDOM, MAPS = 6, 6, 4, 3
CURVE_POINTS = 500
# Confusion matrices of more labels are shown by their greatest confusions
WHOLE_MATRIX = 25

CONTOUR_COLOURS = {
    "true contour, found": (60, 220, 130),
    "predicted contour, right": (160, 245, 255),
    "true contour, missed": (255, 196, 0),
    "predicted contour, wrong": (255, 70, 110),
}

# Between the ticks of an axis, times a power of ten
_STEPS = [1, 2, 2.5, 5, 10]
# What a stage found, drawn for people
FIGURE = "figure.jpg"
FIGURE_BYTES = 600_000
# What stages make, in words
_MAKES = {
    "localize": "maps",
    "walk": "walked maps",
    "refine": "pseudo masks",
    "walk_to_masks": "pseudo masks",
    "predict": "segmenter",
}


def report(run: Path, data: Dataset) -> Path:
    """Write `report.html` of a run anew: scores, curves, pictures, settings.

    Stages are found by their records. Pictures come from the splits of `data` that the stages were made from.

    Args:
        run: folder that holds the stages' folders, and `data.json` with bad pictures where some were left out.
        data: the data set that the run was made from.

    Raises:
        BadInput: there is no finished stage, or `data` is not what the stages were made from.
    """
    out = run / REPORT

    def write() -> None:
        page = _page(run, data)
        with whole_file(out) as temporary:
            temporary.write_text(page, encoding="utf-8")

    launch.decided_by_first(write)
    return out


def table(run: Path) -> str:
    """The scores of a run, or of one folder of scores, as aligned text: a row for everything that was scored.

    Raises:
        BadInput: there is no finished stage.
    """
    rows = [
        (
            score.title,
            score.split,
            str(score.images),
            _percent(score.scores["miou"]),
            _percent(score.contour["mean_f"] if score.contour else None),
            _percent(score.scores["pixel_accuracy"]),
            f"{score.source.seconds:.1f}" if score.source else "-",
        )
        for score in _scored(_stages(run))
    ]
    if not rows:
        return f"{run}: no scores, since there were no true masks to score against"
    header = ("what", "split", "images", "mIoU %", "contour F %", "pixel accuracy %", "seconds")
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A finished stage.

    Attributes:
        name: its folder, as seen from the run's.
        folder: where it lies.
        record: what `done.json` says.
        seconds: how long it took.
    """

    name: str
    folder: Path
    record: Mapping[str, Any]
    seconds: float

    @property
    def kind(self) -> str:
        return str(self.record["stage"])

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Settings, pictures, stages and files that it was made from; those of a function's `**inputs` stand nested."""
        inputs: Mapping[str, Any] = self.record["inputs"]
        named = inputs.get("inputs", {})
        return {key: value for key, value in inputs.items() if key != "inputs"} | dict(named)

    @property
    def fingerprint(self) -> str | None:
        """Of the pictures that it was made from."""
        return next((value["fingerprint"] for value in self.inputs.values() if _holds(value, "fingerprint")), None)

    @cached_property
    def folders(self) -> dict[str, Path]:
        """The stages that it was made from, by the names of the inputs."""
        return {
            key: Path(os.path.normpath(self.folder / value["folder"]))
            for key, value in self.inputs.items()
            if _holds(value, "folder")
        }


def _holds(value: Any, key: str) -> bool:
    return isinstance(value, Mapping) and key in value


def _stages(run: Path) -> list[_Stage]:
    """Finished stages below a folder, or the folder itself; each after those that it was made from."""
    if not run.is_dir():
        raise BadInput(run, "no such folder", "the folder of a run", "Check the path.")
    top = run.resolve()
    folders = list(_folders(top, DONE))
    if not folders:
        raise BadInput(run, "no finished stage in it", "the folder of a run", "Check the path, or make the run first.")
    stages = {folder: _Stage(_name(folder, top), folder, record(folder), seconds(folder)) for folder in folders}
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


def _folders(folder: Path, marker: str) -> Iterator[Path]:
    """Folders with this marker; what lies below a stage's folder belongs to its pictures."""
    for place, inner, files in os.walk(folder):
        if marker in files:
            yield Path(place)
        if DONE in files or STARTED in files:
            inner.clear()


def _name(folder: Path, top: Path) -> str:
    return top.name if folder == top else folder.relative_to(top).as_posix()


@dataclasses.dataclass(frozen=True)
class _Score:
    """What `wsss.stages.evaluate` wrote about maps or masks.

    Attributes:
        title: what was scored, in words.
        short: the same for legends.
        stage: the one that scored.
        source: the one that made what was scored, None if it is gone.
        content: of `scores.json`.
    """

    title: str
    short: str
    stage: _Stage
    source: _Stage | None
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
    def contour(self) -> Mapping[str, Any] | None:
        return self.content["contour"]

    @cached_property
    def confusion(self) -> np.ndarray:
        return np.array(self.content["confusion"], np.int64)

    @cached_property
    def per_image(self) -> dict[str, float | None]:
        return read_json(self.stage.folder / PER_IMAGE, "scores of single pictures")


def _scored(stages: Sequence[_Stage]) -> list[_Score]:
    scored = []
    for stage in stages:
        if not (stage.folder / SCORES).exists():
            continue
        content = read_json(stage.folder / SCORES, "scores")
        source = _source(stage, stages)
        scored.append((stage, source, content, _MAKES.get(source.kind, source.name) if source else stage.name))
    kinds = [kind for *_, kind in scored]
    found = []
    for stage, source, content, kind in scored:
        name = f" ({(source or stage).name})" if kinds.count(kind) > 1 else ""
        threshold = content["protocol"].get("threshold")
        what = "exponent" if content["protocol"].get("background") == "power" else "threshold"
        at = f" at the best {what} ({threshold:g})" if threshold is not None else ""
        found.append(_Score(f"{kind}{name}{at}", f"{kind}{name}", stage, source, content))
    return found


def _source(stage: _Stage, stages: Sequence[_Stage]) -> _Stage | None:
    """What a stage scored; when its folder alone is looked at, that lies elsewhere."""
    for folder in stage.folders.values():
        for other in stages:
            if other.folder == folder:
                return other
        if (folder / DONE).exists():
            return _Stage(folder.name, folder, record(folder), seconds(folder))
    return None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _duration(spent: float) -> str:
    minutes, rest = divmod(round(spent), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{spent:.1f} s"


def _page(run: Path, data: Dataset) -> str:
    stages = _stages(run)
    scored = _scored(stages)
    splits = _splits(stages, data, run)
    noted = read_json(run / DATA, "notes on the data set") if (run / DATA).exists() else {}
    colours = [f"rgb{tuple(colour)}" for colour in voc_palette().tolist()]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wsss", "stages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "duration": _duration}
    return environment.get_template(REPORT).render(
        method=_method(stages) or run.resolve().name,
        run=str(run),
        data=data,
        colours=colours,
        scored=scored,
        stages=[_described(stage) for stage in stages],
        strange=[stage.name for stage in stages if stage.fingerprint and stage.fingerprint not in splits],
        unfinished=[_name(folder, run.resolve()) for folder in sorted(_folders(run.resolve(), STARTED))],
        total_seconds=sum(stage.seconds for stage in stages),
        bars=_all_bars(scored),
        thresholds=_threshold_chart(scored),
        trainings=[_training(stage) for stage in stages if (stage.folder / HISTORY).exists()],
        confusions=[_confusion(score) for score in scored],
        looks=[_look(stage) for stage in stages if (stage.folder / FIGURE).exists()],
        galleries=_galleries(stages, scored, splits),
        contour_colours={name: f"rgb{colour}" for name, colour in CONTOUR_COLOURS.items()},
        notes=list(data.notes),
        overview=list(_flat(noted.get("overview", {}))),
        bad=noted.get("bad", {}),
        versions={
            "wsss": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "torchvision", "timm", "numpy")},
        },
    )


def _method(stages: Sequence[_Stage]) -> str | None:
    """The method that the last maps were made with."""
    return next((stage.record["result"].get("method") for stage in reversed(stages) if stage.kind == "localize"), None)


def _described(stage: _Stage) -> dict[str, Any]:
    """A stage for the page: what it was made from, and all that its record holds."""
    sources: list[str] = []
    settings: list[tuple[str, str]] = []
    for key, value in stage.inputs.items():
        if _holds(value, "fingerprint"):
            sources.append(f"{value['count']} pictures of {value['images']}")
        elif _holds(value, "folder"):
            sources.append(f"{key}: {os.path.normpath(os.path.join(stage.name, value['folder']))}")
        elif _holds(value, "file"):
            sources.append(f"{key}: {value['file']}")
        else:
            settings += _flat(value, "" if key == "settings" else f"{key}.")
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": stage.seconds,
        "version": stage.record.get("version", "-"),
        "sources": sources,
        "settings": settings,
        "result": list(_flat(stage.record.get("result", {}))),
    }


def _look(stage: _Stage) -> dict[str, Any]:
    """A stage's figure, and what its record says of it."""
    with Image.open(stage.folder / FIGURE) as figure:
        uri = _uri(figure.convert("RGB"), FIGURE_BYTES)
    return {"name": stage.name, "uri": uri, "result": list(_flat(stage.record["result"]))}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (dotted name, text)."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}{key}.")
    elif isinstance(value, list) and not any(isinstance(item, Mapping | list) for item in value):
        yield prefix.rstrip("."), ", ".join(map(_text, value))
    else:
        yield prefix.rstrip("."), _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == {}:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _all_bars(scored: Sequence[_Score]) -> list[dict[str, Any]]:
    """IoU and contour F of each class, for all that was scored."""
    iou = [(number, score, (score.scores["miou"], *score.scores["iou"])) for number, score in enumerate(scored)]
    contour = [
        (number, score, (score.contour["mean_f"], *score.contour["f"]))
        for number, score in enumerate(scored)
        if score.contour
    ]
    charts = []
    for title, note, first, series in (
        ("IoU", "A class that occurs in neither truth nor prediction has no bar.", 0, iou),
        ("Contour F", "A class whose outline occurs in neither truth nor prediction counts 100.", 1, contour),
    ):
        if not series:
            continue
        names = [(None, "mean"), *list(enumerate(series[0][1].content["labels"]))[first:]]
        rows = [
            {"label": label, "name": name, "shares": [(number, shares[row]) for number, _, shares in series]}
            for row, (label, name) in enumerate(names)
        ]
        charts.append(
            {"title": title, "note": note, "series": [(number, score) for number, score, _ in series], "rows": rows}
        )
    return charts


class _Line(NamedTuple):
    """A curve of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def _chart(
    lines: Sequence[_Line], x_name: str, y_name: str, marks: Sequence[tuple[float, float]] = ()
) -> dict[str, Any]:
    """Where a chart's curves, ticks and marks are drawn, in the units of its view box."""
    width, height, left, right, top, bottom = 640, 260, 78, 14, 12, 40
    low_x, high_x = _range([x for line in lines for x in line.x])
    slack = 1e-9 * (high_x - low_x)
    ticks_x = [
        x for x in MaxNLocator(8, steps=_STEPS).tick_values(low_x, high_x) if low_x - slack <= x <= high_x + slack
    ]
    ticks_y = MaxNLocator(6, steps=_STEPS).tick_values(*_range([y for line in lines for y in line.y]))
    low_y, high_y = float(ticks_y[0]), float(ticks_y[-1])

    def at_x(x: float) -> float:
        return round(left + (x - low_x) / (high_x - low_x) * (width - left - right), 1)

    def at_y(y: float) -> float:
        return round(height - bottom - (y - low_y) / (high_y - low_y) * (height - top - bottom), 1)

    return {
        "width": width,
        "height": height,
        "left": left,
        "right": width - right,
        "top": top,
        "bottom": height - bottom,
        "x_name": x_name,
        "y_name": y_name,
        "x_ticks": [(at_x(x), f"{x:g}") for x in ticks_x],
        "y_ticks": [(at_y(y), f"{y:g}") for y in ticks_y],
        "lines": [(line.name, " ".join(f"{at_x(x)},{at_y(y)}" for x, y in zip(line.x, line.y))) for line in lines],
        "marks": [(at_x(x), at_y(y)) for x, y in marks],
    }


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low < high:
        return low, high
    return low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)


def _threshold_chart(scored: Sequence[_Score]) -> dict[str, Any] | None:
    lines, marks, numbers, texts = [], [], [], []
    for number, score in enumerate(scored):
        curve = score.content["curve"]
        known = [(x, 100 * y) for x, y in zip(curve["thresholds"], curve["miou"]) if y is not None] if curve else []
        if not known:
            continue
        best = score.protocol["threshold"]
        lines.append(_Line(score.short, *zip(*known)))
        marks.append(next(point for point in known if point[0] == best))
        numbers.append(number)
        near = [x for x, y in known if y >= marks[-1][1] - 1]
        texts.append(
            f"{score.short}: best at {best:g} ({marks[-1][1]:.1f} %), within one point of it from {near[0]:g} to {near[-1]:g}"
        )
    if not lines:
        return None
    return {"chart": _chart(lines, "threshold", "mIoU %", marks), "numbers": numbers, "texts": texts}


def _training(stage: _Stage) -> dict[str, Any]:
    """Losses and learning rate of a trained network; neighbouring updates are averaged where there are many."""
    history: list[dict[str, float]] = read_json(stage.folder / HISTORY, "the losses of a training")
    if not history:
        return {"name": stage.name, "steps": 0, "every": 1, "charts": []}
    every = -(-len(history) // CURVE_POINTS)
    parts = [history[start : start + every] for start in range(0, len(history), every)]

    def line(name: str) -> _Line:
        there = [[entry for entry in part if name in entry] for part in parts]
        means = [[float(np.mean([entry[key] for entry in part])) for part in there if part] for key in ("step", name)]
        return _Line(name, *means)

    terms = [name for name in dict.fromkeys(key for entry in history for key in entry) if name not in ("step", "lr")]
    charts = [_chart([line(name) for name in terms], "update", "loss"), _chart([line("lr")], "update", "learning rate")]
    return {"name": stage.name, "steps": len(history), "every": every, "charts": charts}


def _confusion(score: _Score) -> dict[str, Any]:
    """The confusion matrix in shares of the true pixels, cut to the most confused labels where there are many."""
    labels, counts = score.content["labels"], score.confusion
    truth = counts.sum(1)
    shares = counts / np.maximum(truth, 1)[:, None]
    wrong = np.where(np.eye(len(labels), dtype=bool), 0, counts)
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:20]
    top = [divmod(int(position), len(labels)) for position in order if wrong.flat[position]]
    shown = list(range(len(labels)))
    if len(labels) > WHOLE_MATRIX:
        confused = wrong.sum(0) + wrong.sum(1)
        shown = sorted(
            label for label in np.argsort(confused, kind="stable")[::-1][:WHOLE_MATRIX].tolist() if confused[label]
        )
    return {
        "score": score,
        "labels": [(label, labels[label]) for label in shown],
        "cut": len(labels) - len(shown),
        "rows": [[float(shares[row, column]) if truth[row] else None for column in shown] for row in shown],
        "top": [
            (labels[row], labels[column], float(shares[row, column]), int(counts[row, column])) for row, column in top
        ],
    }


class _Made(NamedTuple):
    """A stage that made a file of each picture of a split."""

    title: str
    stage: _Stage
    images: Images
    positions: Mapping[str, int]
    holds_maps: bool

    def file(self, name: str) -> Path:
        return self.stage.folder / f"{name}{'.npz' if self.holds_maps else '.png'}"

    def has(self, name: str, picture: Path) -> bool:
        """Whether it was made from this very picture: another split may have one of the same name."""
        return name in self.positions and self.images.paths[self.positions[name]] == picture


class _Chosen(NamedTuple):
    """Pictures of a split to show."""

    images: Images
    ranked_by: _Score | None
    groups: Sequence[tuple[str, Sequence[str]]]
    contour: tuple["_Made", str, float] | None


def _splits(stages: Sequence[_Stage], data: Dataset, run: Path) -> dict[str, Images]:
    """The splits that stages were made from, by their fingerprints."""
    wanted = {stage.fingerprint for stage in stages} - {None}
    found: dict[str, Images] = {}
    for name in dict.fromkeys([data.train, data.seed_split, data.val, *data.splits]):
        if name is not None and not wanted <= found.keys():
            images = data.split(name)
            found.setdefault(images.fingerprint(), images)
    if wanted and not wanted & found.keys():
        raise BadInput(
            run,
            "stages made from other pictures",
            f"stages made from {', '.join(images.title for images in data.splits.values())}",
            "Give the data set that the run was made from, with the same options.",
        )
    return found


def _galleries(
    stages: Sequence[_Stage], scored: Sequence[_Score], splits: Mapping[str, Images]
) -> list[dict[str, Any]]:
    made = _made(stages, splits)
    chosen = []
    for fingerprint, images in splits.items():
        judges = [score for score in scored if score.stage.fingerprint == fingerprint]
        if judges:
            chosen.append(_ranked(images, judges, made))
    for one in made:
        names = {(name, images.paths[i]) for images, *_ in chosen for i, name in enumerate(images.names)}
        if names.isdisjoint(zip(one.images.names, one.images.paths, strict=True)):
            some = _some(one.images.names, WORST + BEST)
            chosen.append(_Chosen(one.images, None, [("Random", some)], None))
    pictures = sum(
        len(names) * (2 + sum(MAPS if one.holds_maps else 1 for one in made)) + 1
        for part in chosen
        for _, names in part.groups
    )
    limit = min(PICTURE_BYTES, PICTURES_BYTES // max(pictures, 1))
    return [_gallery(part, made, scored, limit) for part in chosen]


def _made(stages: Sequence[_Stage], splits: Mapping[str, Images]) -> list[_Made]:
    made = []
    for stage in stages:
        images = splits.get(stage.fingerprint or "")
        # label sets are probabilities that AffinityNet learns from, two for each label: no maps to show
        if not images or stage.kind == "label_sets":
            continue
        for suffix in (".npz", ".png"):
            if (stage.folder / f"{images.names[0]}{suffix}").exists():
                positions = {name: position for position, name in enumerate(images.names)}
                made.append(_Made(_MAKES.get(stage.kind, stage.name), stage, images, positions, suffix == ".npz"))
    titles = [one.title for one in made]
    return [
        one._replace(title=f"{one.title} ({one.stage.name})") if titles.count(one.title) > 1 else one for one in made
    ]


def _some(names: Sequence[str], count: int) -> list[str]:
    """A few names, always the same ones."""
    picked = np.random.default_rng(0).permutation(len(names))[:count]
    return [names[position] for position in sorted(picked.tolist())]


def _ranked(images: Images, judges: Sequence[_Score], made: Sequence[_Made]) -> _Chosen:
    """Worst, best and random pictures by what was scored last on a split."""
    judge = judges[-1]
    known = {name: iou for name, iou in judge.per_image.items() if iou is not None}
    ranking = sorted(known, key=lambda name: (known[name], name))
    tails = min(WORST, BEST, len(ranking) // 2)
    worst, best = ranking[:tails], ranking[len(ranking) - tails :][::-1]
    groups = [("Worst", worst), ("Best", best), ("Random", _some(ranking[tails : len(ranking) - tails], RANDOM))]
    masks = [one for one in made if judge.source and one.stage.folder == judge.source.folder and not one.holds_maps]
    middle = len(ranking) // 2
    outlined = (name for name in ranking[middle:] + ranking[:middle] if images.labels[images.names.index(name)].any())
    name = next(outlined, None)
    contour = (masks[0], name, judge.protocol["contour tolerance"]) if masks and name and judge.contour else None
    return _Chosen(images, judge, [(title, names) for title, names in groups if names], contour)


def _gallery(chosen: _Chosen, made: Sequence[_Made], scored: Sequence[_Score], limit: int) -> dict[str, Any]:
    index = {name: position for position, name in enumerate(chosen.images.names)}
    groups: list[dict[str, Any]] = []
    for title, names in chosen.groups:
        rows = [_row(chosen.images, index[name], made, scored, limit) for name in names]
        groups.append({"title": title, "rows": rows})
    contour = None
    if chosen.contour:
        one, name, tolerance = chosen.contour
        contour = _contour_picture(chosen.images, index[name], one, tolerance, limit)
    return {
        "split": chosen.images.title,
        "ranked_by": chosen.ranked_by,
        "groups": groups,
        "columns": max((len(row["figures"]) for group in groups for row in group["rows"]), default=1),
        "contour": contour,
    }


def _row(images: Images, position: int, made: Sequence[_Made], scored: Sequence[_Score], limit: int) -> dict[str, Any]:
    """One picture with its true mask and everything that stages made of it."""
    name, path = images.names[position], images.paths[position]
    picture = _small(Image.fromarray(images.read(position)), SIDE)
    figures = [{"caption": "picture", "kind": "picture", "uri": _uri(picture, limit)}]
    if images.masks[position] is not None:
        figures.append(
            {"caption": "true mask", "kind": "mask", "uri": _uri(_mask_picture(images.read_mask(position)), limit)}
        )
    ious = []
    for one in made:
        if not one.has(name, path):
            continue
        if one.holds_maps:
            classes, maps = read_cams(one.file(name))
            for k in np.argsort(-maps.mean((1, 2)), kind="stable")[:MAPS]:
                caption = f"{one.title}: {images.class_names[classes[k]]}"
                figures.append({"caption": caption, "kind": "map", "uri": _uri(_heated(picture, maps[k]), limit)})
        else:
            mask = read_mask(one.file(name))
            figures.append({"caption": one.title, "kind": "mask", "uri": _uri(_mask_picture(mask), limit)})
        ious += [
            (score.short, score.per_image[name])
            for score in scored
            if score.source and score.source.folder == one.stage.folder and name in score.per_image
        ]
    tags = [(label + 1, images.class_names[label]) for label in images.classes(position)]
    return {"name": name, "tags": tags, "ious": ious, "figures": figures}


def _small(picture: Image.Image, side: int) -> Image.Image:
    """At most `side` pixels wide and high; labels are not mixed."""
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if picture.mode == "P" else Image.Resampling.BOX)


def _mask_picture(mask: UInt8[np.ndarray, "h w"]) -> Image.Image:
    picture = Image.fromarray(mask)
    picture.putpalette(voc_palette().ravel().tolist())
    return _small(picture, SIDE)


def _heated(picture: Image.Image, heat: Float[np.ndarray, "h w"]) -> Image.Image:
    resized = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BILINEAR))
    colours = matplotlib.colormaps["turbo"](resized.clip(0, 1), bytes=True)[:, :, :3]
    weights = 0.25 + 0.45 * resized.clip(0, 1)[:, :, None]
    return Image.fromarray((np.asarray(picture) * (1 - weights) + colours * weights).astype(np.uint8))


def _uri(picture: Image.Image, limit: int) -> str:
    """A picture as a data URI of at most `limit` bytes before base64: labels as PNG, all else as JPEG; made smaller if need be."""
    kind = "png" if picture.mode == "P" else "jpeg"
    while True:
        stream = io.BytesIO()
        picture.save(stream, kind, quality=82)
        if stream.tell() <= limit or max(picture.size) <= 16:
            return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
        picture = _small(picture, int(max(picture.size) * min(0.9, math.sqrt(limit / stream.tell()))))


def _contour_picture(images: Images, position: int, one: _Made, tolerance: float, limit: int) -> dict[str, Any]:
    """The class with the longest outline: which contour pixels of truth and mask have a partner within the tolerance."""
    name = images.names[position]
    truth, mask = images.read_mask(position), read_mask(one.file(name))
    labels = [label + 1 for label in images.classes(position)]
    matches = {label: boundary_matches(truth, mask, label, tolerance) for label in labels}
    label = max(labels, key=lambda label: matches[label].truth_matched.sum() + matches[label].truth_missed.sum())
    found, missed, right, wrong = matches[label]
    # in the order they are drawn: what is wrong lies on top
    drawn = [np.argwhere(pixels) for pixels in (right, found, wrong, missed)]
    view = _around(np.concatenate(drawn), truth.shape)
    grey = (
        Image.fromarray(images.read(position)[view]).convert("L").convert("RGB").point(lambda value: 25 + value * 0.4)
    )
    small = _small(grey, CONTOUR_SIDE)
    # small pictures are enlarged so that single contour pixels can be told apart
    factor = max(1, CONTOUR_SIDE // max(small.size))
    canvas = np.array(small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST))
    scale = np.array(canvas.shape[:2]) / (grey.height, grey.width)
    for pixels, colour in zip(drawn, _drawn(), strict=True):
        for top, left in ((pixels - [view[0].start, view[1].start]) * scale).astype(int).tolist():
            canvas[top : top + factor, left : left + factor] = colour
    n_found, n_missed, n_right, n_wrong = (int(pixels.sum()) for pixels in (found, missed, right, wrong))
    recall, precision = n_found / max(n_found + n_missed, 1), n_right / max(n_right + n_wrong, 1)
    return {
        "name": name,
        "what": one.title,
        "label": label,
        "class": images.class_names[label - 1],
        "tolerance": tolerance,
        "recall": recall,
        "precision": precision,
        "f": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "uri": _uri(Image.fromarray(canvas), max(limit, PICTURE_BYTES)),
    }


def _around(pixels: Int[np.ndarray, "n 2"], size_hw: tuple[int, ...]) -> tuple[slice, slice]:
    """The part of a picture with these pixels and some room around them; all of it if there are none."""
    if not len(pixels):
        return slice(0, size_hw[0]), slice(0, size_hw[1])
    low, high = pixels.min(0), pixels.max(0) + 1
    room = max(8, int(0.2 * (high - low).max()))
    rows, columns = (
        slice(max(0, a - room), min(b + room, most)) for a, b, most in zip(low.tolist(), high.tolist(), size_hw)
    )
    return rows, columns


def _drawn() -> Iterable[tuple[int, int, int]]:
    found, right, missed, wrong = CONTOUR_COLOURS.values()
    return right, found, wrong, missed
