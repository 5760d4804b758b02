"""Write the report of a run as one self-contained HTML page, and its scores as a text table."""

import logging
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from wsss import __version__
from wsss.data.images import Dataset, Images
from wsss.errors import BadInput
from wsss.health import notes
from wsss.run import STARTED
from wsss.stages.charts import loss_charts, threshold_chart
from wsss.stages.check import read_notes
from wsss.stages.closing import next_commands
from wsss.stages.examples import example_rows
from wsss.stages.gallery import galleries, growing_galleries, suspicious_tags
from wsss.stages.nearest import nearest_regions
from wsss.stages.pages import (
    CONTOUR_COLOURS,
    aligned,
    class_bars,
    data_uri,
    flattened,
    percent,
    write_page,
    write_page_here,
)
from wsss.stages.progress import RunProgress
from wsss.stages.records import Score, Stage, folders_with, holds, read_scores, read_stages, relative_name
from wsss.stages.supervised import spoken, supervision
from wsss.stages.train import HISTORY
from wsss.storage import read_json, read_only

REPORT = "report.html"

log = logging.getLogger("wsss")

# Larger confusion matrices are cut to the most confused labels
MAX_MATRIX_LABELS = 25

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
    return write_page(page, REPORT, lambda: _final_content(run, data))


def write_growing_report(run: Path, data: Dataset, stages: Sequence[Stage], progress: RunProgress) -> None:
    """Write `report.html` of a run that is not finished, in this process only: its plan, loss curves, and a few pictures.

    Args:
        run: run folder.
        data: its dataset.
        stages: its finished stages, and the one that is running.
        progress: what the page says about the rest.
    """
    finished = [stage for stage in stages if stage.finished]
    scored = read_scores(finished)
    splits = _splits(stages, data, run)
    content = _content(run, data, finished, scored, splits)
    content |= {"progress": progress, "method": progress.method}
    content["galleries"] = growing_galleries(stages, scored, splits)
    if progress.training:
        content["trainings"] = [loss_charts(*progress.training), *_trainings(finished)]
    write_page_here(run / REPORT, REPORT, content, "nothing")


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


def _final_content(run: Path, data: Dataset) -> dict[str, object]:
    stages = read_stages(run)
    scored = read_scores(stages)
    splits = _splits(stages, data, run)
    unfinished = [relative_name(folder, run.resolve()) for folder in sorted(folders_with(run.resolve(), STARTED))]
    content = _content(run, data, stages, scored, splits)
    return content | {"unfinished": unfinished, "galleries": galleries(stages, scored, splits)}


def _content(
    run: Path, data: Dataset, stages: Sequence[Stage], scored: Sequence[Score], splits: Mapping[str, Images]
) -> dict[str, object]:
    """The variables of the page's template, but for its pictures, from the finished stages."""
    found = read_notes(run)
    return {
        "progress": None,
        "unfinished": [],
        "method": _method(stages) or run.resolve().name,
        "run": str(run),
        "data": data,
        "scored": scored,
        "stages": [_stage_row(stage) for stage in stages],
        "without_pictures": [stage.name for stage in stages if stage.fingerprint and stage.fingerprint not in splits],
        "edited": [stage.changes.describe(stage.name, stage.kind) for stage in stages if stage.changes],
        "total_seconds": sum(stage.seconds for stage in stages),
        "bars": class_bars([(f"{score.short} on {score.split}", score) for score in scored]),
        "thresholds": threshold_chart(scored),
        "trainings": _trainings(stages),
        "examples": example_rows(run, data.split(data.train)),
        "confusions": [_confusion(score) for score in scored],
        "figures": [_figure(stage) for stage in stages if (stage.folder / FIGURE).exists()],
        "contour_colours": {name: f"rgb{colour}" for name, colour in CONTOUR_COLOURS.items()},
        "next_commands": next_commands(run),
        "supervision": list(spoken(supervision(run, stages)).items()) if stages else [],
        "notes": list(data.notes),
        "health": notes(run),
        "suspects": suspicious_tags(stages, splits),
        "nearest": nearest_regions(stages, splits),
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


def _trainings(stages: Sequence[Stage]) -> list[dict[str, object]]:
    return [
        loss_charts(stage.name, read_json(stage.folder / HISTORY, "the losses of a training"))
        for stage in stages
        if (stage.folder / HISTORY).exists()
    ]


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
