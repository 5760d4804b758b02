"""Compare runs: scores, protocols, reasons why scores are not comparable, and the same pictures of each run."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from wsss import __version__, launch
from wsss.data.files import read_mask
from wsss.data.images import Dataset, Images
from wsss.data.tables import table_text
from wsss.stages.check import reopen
from wsss.stages.evaluate import truth_fingerprint
from wsss.stages.pages import (
    PICTURE_BYTES,
    PICTURES_BYTES,
    SIDE,
    aligned,
    class_bars,
    coloured_mask,
    data_uri,
    duration,
    percent,
    random_names,
    shrunk,
    write_page,
)
from wsss.stages.records import KINDS, MASKS, PREDICTIONS, Score
from wsss.stages.runs import Run, open_runs, same_pictures
from wsss.stages.supervised import NOTHING
from wsss.storage import whole_file, write_json

COMPARISON = "compare"
# Pictures in a gallery: where runs differ most, and random ones
MOST_DIFFERENT, RANDOM = 8, 6


def _labels(run: Run) -> tuple[str, ...]:
    """Names of the labels that were scored, background first."""
    return tuple(next(iter(run.scores.values())).content["labels"])


def _reason_not_comparable(score: Score, reference: Score) -> str:
    """Why two scores are not comparable; empty if they are."""
    reasons = []
    if not same_pictures(score, reference):
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
    """Runs, and which of their scores are comparable.

    Attributes:
        runs: at least one.
    """

    runs: Sequence[Run]

    @cached_property
    def not_comparable(self) -> dict[tuple[str, str], str]:
        """Why scores are not comparable with most others of their kind, by name of the run and kind."""
        found: dict[tuple[str, str], str] = {}
        labels = Counter(_labels(run) for run in self.runs if run.scores).most_common(1)
        for kind in KINDS:
            here = [run for run in self.runs if kind in run.scores]
            scores = [run.scores[kind] for run in here if _labels(run) == labels[0][0]]
            # the score that most others are comparable with
            reference = max(
                scores, key=lambda one: sum(not _reason_not_comparable(other, one) for other in scores), default=None
            )
            for run in here:
                if _labels(run) != labels[0][0]:
                    found[run.name, kind] = (
                        f"other classes ({', '.join(_labels(run)[1:6])}) in {run.scores[kind].split}"
                    )
                elif reference and (why := _reason_not_comparable(run.scores[kind], reference)):
                    found[run.name, kind] = why
        return found

    @property
    def remarks(self) -> list[str]:
        """Remarks to read before the scores, one sentence each."""
        covered: dict[tuple[str, str], list[str]] = {}
        for run in self.runs:
            for kind, score in run.scores.items():
                if score.coverage:
                    covered.setdefault((kind, score.coverage), []).append(run.name)
        lines = [f"{', '.join(names)}: {kind}: {text}" for (kind, text), names in covered.items()]
        lines += [f"{name}: {kind} not comparable: {why}" for (name, kind), why in self.not_comparable.items()]
        lines += [f"{run.name}: health notes: {note.found}" for run in self.runs for note in run.health]
        lines += [f"{run.name}: failed: {run.failed}" for run in self.runs if run.failed is not None]
        return lines + [f"{run.name}: {run.status}" for run in self.runs if run.status.startswith("unfinished")]

    @cached_property
    def protocols(self) -> list[tuple[str, list[str]]]:
        """Lines of the protocol: a name, and its value for each run; `-` where it does not apply."""
        lines = [(name, [run.protocol[name] or "-" for run in self.runs]) for name in self.runs[0].protocol]
        return [(name, texts) for name, texts in lines if set(texts) != {"-"}]

    @cached_property
    def supervision(self) -> list[tuple[str, list[str]]]:
        """What supervised each run: a name, and its value for each run; without lines that say `none` for all."""
        lines = [(name, [run.supervision[name] or "-" for run in self.runs]) for name in self.runs[0].supervision]
        always = dict(lines[:2])
        return [(name, texts) for name, texts in lines if name in always or set(texts) - {"-", NOTHING}]

    @property
    def same(self) -> list[tuple[str, str]]:
        """Lines of the protocol that agree in all runs to which they apply."""
        return [(name, max(texts)) for name, texts in self.protocols if not _differ(texts)]

    @property
    def different(self) -> list[tuple[str, list[str]]]:
        """Lines of the protocol that differ, and settings that differ between runs of one method."""
        lines = [(name, texts) for name, texts in self.protocols if _differ(texts)]
        methods = [run.method.partition(" ")[0] for run in self.runs]
        for name in dict.fromkeys(name for run in self.runs for name in run.settings):
            texts = [run.settings.get(name, "-") for run in self.runs]
            if any(_differ([text for text, its in zip(texts, methods, strict=True) if its == one]) for one in methods):
                lines.append((name, texts))
        return lines

    def best(self, kind: str, figure: str) -> float | None:
        """The best `miou` or `contour_f` among comparable scores, None if all are equal."""
        values = [
            value
            for run in self.runs
            if kind in run.scores and (run.name, kind) not in self.not_comparable
            if (value := figures(run.scores[kind])[figure]) is not None
        ]
        return max(values) if len(set(values)) > 1 else None


def figures(score: Score) -> dict[str, float | None]:
    """`miou` and `contour_f` as shares in [0, 1]."""
    return {"miou": score.scores["miou"], "contour_f": score.contour["mean_f"] if score.contour else None}


def compare(folders: Sequence[Path], out: Path, data: Dataset | None = None) -> Comparison:
    """Write `compare.html`, `compare.csv` and `compare.json` of runs.

    Args:
        folders: run folders, or output folders of `wsss run all`; the cells of a stage that a run lacks stay empty.
        out: folder for the files.
        data: the dataset of the runs, for the pictures; by default the one that the runs name.

    Raises:
        BadInput: a folder is not a run folder, or the dataset of the runs no longer exists.
    """
    comparison = Comparison(open_runs(folders))
    if launch.is_first():
        with whole_file(out / f"{COMPARISON}.csv") as temporary:
            temporary.write_text(_csv(comparison), encoding="utf-8", errors="surrogateescape")
        write_json(out / f"{COMPARISON}.json", _json(comparison))
    write_page(out / f"{COMPARISON}.html", f"{COMPARISON}.html", lambda: _content(comparison, data))
    return comparison


def table(comparison: Comparison) -> str:
    """The comparison as text: scores in per cent, differences in the protocol, remarks."""
    kinds = [kind for kind in KINDS if any(kind in run.scores for run in comparison.runs)]
    header = ["run", "method", *(f"{kind}: {figure}" for kind in kinds for figure in ("mIoU", "F")), "time"]
    rows = [header]
    for run in comparison.runs:
        cells = []
        for kind in kinds:
            shown = [percent(value) for value in figures(run.scores[kind]).values()] if kind in run.scores else ["", ""]
            cells += [f"{text}*" if (run.name, kind) in comparison.not_comparable else text for text in shown]
        rows.append([run.name, run.method, *cells, duration(run.seconds) if run.stages else ""])
    parts = [aligned(rows, texts=2)]
    supervised = [[name, *texts] for name, texts in comparison.supervision]
    parts.append(
        aligned([["supervision", *(run.name for run in comparison.runs)], *supervised], texts=1 + len(comparison.runs))
    )
    apart = {"method", *(name for name, _ in comparison.supervision)}
    different = [[name, *texts] for name, texts in comparison.different if name not in apart]
    if different:
        names = ["what differs", *(run.name for run in comparison.runs)]
        parts.append(aligned([names, *different], texts=len(names)))
    if comparison.remarks:
        marks = " (marked *)" if comparison.not_comparable else ""
        parts.append("\n".join([f"remarks{marks}:", *(f"  {remark}" for remark in comparison.remarks)]))
    return "\n\n".join(parts)


def _rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """A row for each run and kind; its values are None if there is no score."""
    for run in comparison.runs:
        for kind in KINDS:
            score = run.scores.get(kind)
            why = comparison.not_comparable.get((run.name, kind), "")
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


def _json(comparison: Comparison) -> dict[str, object]:
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
                "health": [dataclasses.asdict(note) for note in run.health],
                "protocol": run.protocol,
                "scores": {
                    row["what"]: {key: value for key, value in row.items() if key not in ("run", "status", "what")}
                    for row in rows
                    if row["run"] == run.name and row["folder"] is not None
                },
                "scored besides": [
                    {"what": score.title, "split": score.split, "pictures": score.images, **figures(score)}
                    for score in run.other_scores
                ],
            }
            for run in comparison.runs
        ],
        "remarks": comparison.remarks,
    }


def _content(comparison: Comparison, data: Dataset | None) -> dict[str, object]:
    data = data or next((found for run in comparison.runs if (found := reopen(run.folder))), None)
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
    return [run for run in comparison.runs if kind in run.scores and (run.name, kind) not in comparison.not_comparable]


def _differ(texts: Sequence[str]) -> bool:
    return len(set(texts) - {"-"}) > 1


def _marked(texts: Sequence[str]) -> list[tuple[str, bool]]:
    """Texts, and whether each differs from the one that most runs have."""
    (most, count), *others = Counter(text for text in texts if text != "-").most_common()
    common = most if others[0][1] < count else None
    return [(text, text not in ("-", common)) for text in texts]


def _galleries(comparison: Comparison, data: Dataset) -> list[dict[str, object]]:
    chosen = []
    for kind in (PREDICTIONS, MASKS):
        runs = [run for run in _comparable(comparison, kind) if run.scores[kind].source]
        images = _scored_images(runs[0].scores[kind], data) if runs else None
        if images is not None:
            chosen.append((kind, runs, images, _select_pictures([run.scores[kind] for run in runs])))
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


def _scored_images(score: Score, data: Dataset) -> Images | None:
    """The split that was scored."""
    for images in data.splits.values():
        if score.content["truth"] == truth_fingerprint(images):
            return images
    return None


def _select_pictures(scores: Sequence[Score]) -> list[tuple[str, list[str]]]:
    """Names of the pictures whose IoU differs most between the runs, and of random others."""
    names = sorted(set.intersection(*(set(score.per_image) for score in scores)))
    spread: dict[str, float] = {}
    for name in names:
        reached = [iou for score in scores if (iou := score.per_image[name]) is not None]
        spread[name] = max(reached) - min(reached) if reached else 0.0
    different = sorted((name for name in names if spread[name] > 0), key=lambda name: (-spread[name], name))[
        :MOST_DIFFERENT
    ]
    groups = [
        ("Where the runs differ most", different),
        ("Random", random_names([n for n in names if n not in different], RANDOM)),
    ]
    return [(title, picked) for title, picked in groups if picked]


def _row(kind: str, runs: Sequence[Run], images: Images, name: str, limit: int) -> dict[str, object]:
    position = images.names.index(name)
    picture = shrunk(Image.fromarray(images.read(position)), SIDE)
    truth = images.read_mask(position)
    shown = [
        {"caption": "picture", "reached": "", "kind": "picture", "uri": data_uri(picture, limit)},
        {"caption": "true mask", "reached": "", "kind": "mask", "uri": data_uri(coloured_mask(truth), limit)},
    ]
    for run in runs:
        score = run.scores[kind]
        assert score.source is not None
        iou, f = score.per_image[name], score.per_image_contour.get(name)
        reached = f"{percent(iou)}" + ("" if f is None else f" · F {percent(f)}")
        mask = read_mask(score.source.folder / f"{name}.png")
        shown.append(
            {"caption": run.name, "reached": reached, "kind": "mask", "uri": data_uri(coloured_mask(mask), limit)}
        )
    tags = [(label + 1, images.class_names[label]) for label in images.classes(position)]
    return {"name": name, "tags": tags, "figures": shown}
