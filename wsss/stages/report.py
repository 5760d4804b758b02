"""Write the report of a run as one self-contained HTML page, and its scores as a text table."""

import logging
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from wsss import __version__
from wsss.data.files import read_mask
from wsss.data.images import Dataset, Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput
from wsss.run import STARTED
from wsss.stages.check import read_notes
from wsss.stages.pages import (
    CONTOUR_COLOURS,
    PICTURE_BYTES,
    PICTURES_BYTES,
    SIDE,
    aligned,
    class_bars,
    coloured_mask,
    contour_uri,
    contours,
    data_uri,
    flattened,
    heatmap,
    percent,
    random_names,
    shrunk,
    write_page,
)
from wsss.stages.records import Score, Stage, folders_with, holds, read_scores, read_stages, relative_name, result_kind
from wsss.stages.train import HISTORY
from wsss.storage import read_json, read_only

REPORT = "report.html"

log = logging.getLogger("wsss")

# Pictures of each group in a gallery, and maps shown for a picture
WORST, BEST, RANDOM, MAPS = 6, 6, 4, 3
CURVE_POINTS = 500
# Suffixes of the results that a gallery shows
_SUFFIXES = {"maps": ".npz", "masks": ".png", "predictions": ".png", "instances": ".png"}
# Larger confusion matrices are cut to the most confused labels
MAX_MATRIX_LABELS = 25

# Distances between the ticks of an axis, times a power of ten
_STEPS = [1, 2, 2.5, 5, 10]
# A figure that a stage may draw of its result
FIGURE = "figure.jpg"
FIGURE_BYTES = 600_000


def report(run: Path, data: Dataset, out: Path | None = None) -> Path:
    """Write `report.html` of a run: scores, curves, pictures, settings.

    Stages are found by their records. Pictures come from the splits of `data` that the stages were made from. A report in
    a read-only folder is left unchanged.

    Args:
        run: run folder, with the folders of the stages and `data.json`.
        data: the dataset that the run was made from.
        out: folder for the report, None for the run folder.

    Raises:
        BadInput: there is no finished stage, files of a stage are missing, or `data` is not the dataset of the stages.
    """
    page = (out or run) / REPORT
    if read_only(page.parent) and page.exists():
        log.info("%s is left unchanged, since the folder is read-only; choose another one with --out", page)
        return page
    return write_page(page, REPORT, lambda: _content(run, data))


def table(run: Path) -> str:
    """The scores of a run, or of a single stage, as aligned text with a row for each score.

    Raises:
        BadInput: there is no finished stage.
    """
    scored = read_scores(read_stages(run))
    rows = [
        (
            score.title,
            score.split,
            str(score.images),
            percent(score.scores["miou"]),
            percent(score.contour["mean_f"] if score.contour else None),
            percent(score.scores["pixel_accuracy"]),
            f"{score.source.seconds:.1f}" if score.source else "-",
        )
        for score in scored
    ]
    if not rows:
        return f"{run}: no scores, since there are no true masks to score against"
    header = ("what", "split", "images", "mIoU %", "contour F %", "pixel accuracy %", "seconds")
    remarks = [f"{score.title}, {score.split}: {score.coverage}" for score in scored if score.coverage]
    return "\n".join([aligned((header, *rows), texts=2), *remarks])


def _content(run: Path, data: Dataset) -> dict[str, object]:
    stages = read_stages(run)
    scored = read_scores(stages)
    splits = _splits(stages, data, run)
    found = read_notes(run)
    return {
        "method": _method(stages) or run.resolve().name,
        "run": str(run),
        "data": data,
        "scored": scored,
        "stages": [_stage_row(stage) for stage in stages],
        "without_pictures": [stage.name for stage in stages if stage.fingerprint and stage.fingerprint not in splits],
        "edited": [stage.changes.describe(stage.name, stage.kind) for stage in stages if stage.changes],
        "unfinished": [relative_name(folder, run.resolve()) for folder in sorted(folders_with(run.resolve(), STARTED))],
        "total_seconds": sum(stage.seconds for stage in stages),
        "bars": class_bars([(f"{score.short} on {score.split}", score) for score in scored]),
        "thresholds": _threshold_chart(scored),
        "trainings": [_training(stage) for stage in stages if (stage.folder / HISTORY).exists()],
        "confusions": [_confusion(score) for score in scored],
        "figures": [_figure(stage) for stage in stages if (stage.folder / FIGURE).exists()],
        "galleries": _galleries(stages, scored, splits),
        "contour_colours": {name: f"rgb{colour}" for name, colour in CONTOUR_COLOURS.items()},
        "notes": list(data.notes),
        "overview": list(flattened(found.get("overview", {}))),
        "bad": found.get("bad", {}),
        "version": __version__,
        "versions": {
            "wsss": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "torchvision", "timm", "numpy")},
        },
    }


def _method(stages: Sequence[Stage]) -> str | None:
    """The method that made the last maps."""
    return next((stage.title for stage in reversed(stages) if stage.kind == "localize"), None)


def _stage_row(stage: Stage) -> dict[str, object]:
    """A stage as a row of the report: its inputs, settings and result."""
    sources: list[str] = []
    settings: list[tuple[str, str]] = []
    for key, value in stage.inputs.items():
        if holds(value, "fingerprint"):
            sources.append(f"{value['count']} pictures of {value['images']}")
        elif holds(value, "folder"):
            source = f"{key}: {os.path.normpath(os.path.join(stage.name, value['folder']))}"
            edits = [f"{len(value[kind])} files {kind} by hand" for kind in ("edited", "added") if value.get(kind)]
            sources.append(f"{source} ({', '.join(edits)})" if edits else source)
        elif holds(value, "file"):
            sources.append(f"{key}: {value['file']}")
        else:
            settings += flattened(value, "" if key == "settings" else f"{key}.")
    return {
        "name": stage.name,
        "title": stage.title,
        "makes": stage.makes,
        "seconds": stage.seconds,
        "version": stage.record.get("version", "-"),
        "sources": sources,
        "settings": settings,
        "result": list(flattened(stage.record.get("result", {}))),
    }


def _figure(stage: Stage) -> dict[str, object]:
    """A stage's figure with the result in its record."""
    with Image.open(stage.folder / FIGURE) as figure:
        drawn = data_uri(figure.convert("RGB"), FIGURE_BYTES)
    return {"name": stage.name, "uri": drawn, "result": list(flattened(stage.record["result"]))}


class _Line(NamedTuple):
    """A curve of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def _chart(
    lines: Sequence[_Line], x_name: str, y_name: str, marks: Sequence[tuple[float, float]] = ()
) -> dict[str, object]:
    """Coordinates of a chart's curves, ticks and marks, in the units of its view box."""
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


def _threshold_chart(scored: Sequence[Score]) -> dict[str, object] | None:
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


def _training(stage: Stage) -> dict[str, object]:
    """Losses and learning rate of a training; neighbouring updates are averaged if there are many."""
    history: list[dict[str, float]] = read_json(stage.folder / HISTORY, "the losses of a training")
    if not history:
        return {"name": stage.name, "steps": 0, "every": 1, "charts": []}
    every = -(-len(history) // CURVE_POINTS)
    parts = [history[start : start + every] for start in range(0, len(history), every)]

    def line(name: str) -> _Line:
        known = [[entry for entry in part if name in entry] for part in parts]
        means = [[float(np.mean([entry[key] for entry in part])) for part in known if part] for key in ("step", name)]
        return _Line(name, *means)

    terms = [name for name in dict.fromkeys(key for entry in history for key in entry) if name not in ("step", "lr")]
    charts = [_chart([line(name) for name in terms], "update", "loss"), _chart([line("lr")], "update", "learning rate")]
    return {"name": stage.name, "steps": len(history), "every": every, "charts": charts}


def _confusion(score: Score) -> dict[str, object]:
    """The confusion matrix as shares of the true pixels, cut to the most confused labels if there are many."""
    labels, counts = score.content["labels"], score.confusion
    truth = counts.sum(1)
    shares = counts / np.maximum(truth, 1)[:, None]
    wrong = np.where(np.eye(len(labels), dtype=bool), 0, counts)
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:20]
    top = [divmod(int(position), len(labels)) for position in order if wrong.flat[position]]
    shown = list(range(len(labels)))
    if len(labels) > MAX_MATRIX_LABELS:
        confused = wrong.sum(0) + wrong.sum(1)
        shown = sorted(
            label for label in np.argsort(confused, kind="stable")[::-1][:MAX_MATRIX_LABELS].tolist() if confused[label]
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


class _Output(NamedTuple):
    """A stage that made a file for each picture of a split."""

    title: str
    stage: Stage
    images: Images
    positions: Mapping[str, int]

    @property
    def holds_maps(self) -> bool:
        return self.stage.makes == "maps"

    def file(self, name: str) -> Path:
        return self.stage.folder / f"{name}{_SUFFIXES[self.stage.makes]}"

    def has(self, name: str, picture: str) -> bool:
        """Whether it was made from this picture file: another split may have a picture of the same name."""
        return name in self.positions and self.images.where(self.positions[name]) == picture


class _Selection(NamedTuple):
    """Pictures of a split to show."""

    images: Images
    ranked_by: Score | None
    groups: Sequence[tuple[str, Sequence[str]]]


def _splits(stages: Sequence[Stage], data: Dataset, run: Path) -> dict[str, Images]:
    """The splits that the stages were made from, by fingerprint."""
    wanted = {stage.fingerprint for stage in stages} - {None}
    found: dict[str, Images] = {}
    for name in dict.fromkeys([data.train, data.scored_split, data.val, *data.splits]):
        if name is not None and not wanted <= found.keys():
            images = data.split(name)
            found.setdefault(images.fingerprint(), images)
    if wanted and not wanted & found.keys():
        raise BadInput(
            run,
            "stages made from other pictures",
            f"stages made from {', '.join(images.title for images in data.splits.values())}",
            "Give the dataset that the run was made from, with the same options.",
        )
    return found


def _galleries(
    stages: Sequence[Stage], scored: Sequence[Score], splits: Mapping[str, Images]
) -> list[dict[str, object]]:
    made = _outputs(stages, splits)
    chosen = []
    for fingerprint, images in splits.items():
        judges = [score for score in scored if score.stage.fingerprint == fingerprint]
        if judges:
            chosen.append(_select_ranked(images, judges, made))
    for one in made:
        shown = {(name, images.where(i)) for images, *_ in chosen for i, name in enumerate(images.names)}
        if shown.isdisjoint((name, one.images.where(i)) for i, name in enumerate(one.images.names)):
            names = random_names(one.images.names, WORST + BEST)
            chosen.append(_Selection(one.images, None, [("Random", names)]))
    pictures = sum(
        len(names) * (2 + sum(MAPS if one.holds_maps else 2 for one in made))
        for part in chosen
        for _, names in part.groups
    )
    limit = min(PICTURE_BYTES, PICTURES_BYTES // max(pictures, 1))
    return [_gallery(part, made, scored, limit) for part in chosen]


def _outputs(stages: Sequence[Stage], splits: Mapping[str, Images]) -> list[_Output]:
    made = []
    for stage in stages:
        images = splits.get(stage.fingerprint or "")
        if images and stage.makes in _SUFFIXES:
            positions = {name: position for position, name in enumerate(images.names)}
            made.append(_Output(result_kind(stage, stages), stage, images, positions))
    titles = [one.title for one in made]
    return [
        one._replace(title=f"{one.title} ({one.stage.name})") if titles.count(one.title) > 1 else one for one in made
    ]


def _select_ranked(images: Images, judges: Sequence[Score], made: Sequence[_Output]) -> _Selection:
    """Worst, best and random pictures by the last score on a split."""
    judge = judges[-1]
    known = {name: iou for name, iou in judge.per_image.items() if iou is not None}
    ranking = sorted(known, key=lambda name: (known[name], name))
    tails = min(WORST, BEST, len(ranking) // 2)
    worst, best = ranking[:tails], ranking[len(ranking) - tails :][::-1]
    groups = [("Worst", worst), ("Best", best), ("Random", random_names(ranking[tails : len(ranking) - tails], RANDOM))]
    return _Selection(images, judge, [(title, names) for title, names in groups if names])


def _gallery(chosen: _Selection, made: Sequence[_Output], scored: Sequence[Score], limit: int) -> dict[str, object]:
    index = {name: position for position, name in enumerate(chosen.images.names)}
    groups: list[dict[str, Any]] = []
    for title, names in chosen.groups:
        rows = [_row(chosen.images, index[name], made, scored, limit) for name in names]
        groups.append({"title": title, "rows": rows})
    return {
        "split": chosen.images.title,
        "ranked_by": chosen.ranked_by,
        "groups": groups,
        "columns": max((len(row["figures"]) for group in groups for row in group["rows"]), default=1),
    }


def _row(images: Images, position: int, made: Sequence[_Output], scored: Sequence[Score], limit: int) -> dict[str, Any]:
    """One picture with its true mask and the results of all stages."""
    name, picture_of = images.names[position], images.where(position)
    full = Image.fromarray(images.read(position))
    picture = shrunk(full, SIDE)
    figures = [{"caption": "picture", "kind": "picture", "uri": data_uri(picture, limit)}]
    truth = images.read_mask(position) if images.masks[position] is not None else None
    if truth is not None:
        figures.append({"caption": "true mask", "kind": "mask", "uri": data_uri(coloured_mask(truth), limit)})
    reached = []
    for one in made:
        if not one.has(name, picture_of):
            continue
        judges = [score for score in scored if score.source and score.source.folder == one.stage.folder]
        if one.holds_maps:
            classes, maps = read_matching_cams(images, one.stage.folder, position, full.size[::-1])
            for k in np.argsort(-maps.mean((1, 2)), kind="stable")[:MAPS]:
                caption = f"{one.title}: {images.class_names[classes[k]]}"
                figures.append({"caption": caption, "kind": "map", "uri": data_uri(heatmap(picture, maps[k]), limit)})
        else:
            mask = read_mask(one.file(name))
            figures.append({"caption": one.title, "kind": "mask", "uri": data_uri(coloured_mask(mask), limit)})
            tolerance = next((score.protocol["contour tolerance"] for score in judges if score.contour), None)
            if truth is not None and tolerance is not None:
                outlines = contour_uri(full, contours(truth, mask, tolerance), limit)
                figures.append({"caption": f"contours of {one.title}", "kind": "contours", "uri": outlines})
        reached += [
            (score.short, score.per_image[name], score.per_image_contour.get(name))
            for score in judges
            if name in score.per_image
        ]
    tags = [(label + 1, images.class_names[label]) for label in images.classes(position)]
    return {"name": name, "tags": tags, "scores": reached, "figures": figures}
