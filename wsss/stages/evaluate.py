"""Score activation maps and masks against true masks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsss import launch
from wsss.arrays import UInt8
from wsss.data.files import read_mask
from wsss.data.images import IGNORE, Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput, check_range
from wsss.metrics import (
    Background,
    ConfusionMatrix,
    ContourCounts,
    Convention,
    ThresholdSweep,
    contour_scores,
    coverage,
    scores,
)
from wsss.ops.contour import tolerance_radius
from wsss.run import stage
from wsss.stages.each import by_pixels, sum_over_pictures
from wsss.stages.ranks import Packed, RankedPicture, opened, packed
from wsss.stages.thresholds import PIXEL_LABELS, pixel_labels
from wsss.storage import read_json, write_json

# bytes a pixel of reading, ranking, and comparing labels and contours; and of the maps of a class, packed, unpacked and as numbers
_BYTES, _OF_CLASS = 30, 10
# a true mask, and the labels to be scored
_Pair = tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]

SCORES, PER_IMAGE, PER_IMAGE_CONTOUR = "scores.json", "per_image.json", "per_image_contour.json"


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    """How maps and masks are scored."""

    thresholds: tuple[float, ...] = tuple(round(0.01 * step, 2) for step in range(61))
    """background thresholds (or exponents) at which maps are scored, in one pass"""
    background: Background = "constant"
    """background score: a constant threshold t, or (1 - highest map)^t as in CLIP-ES (power)"""
    convention: Convention = "present"
    """how classes that do not occur count in the means, also of the contour F-score: present, nan, zero, icam or devkit"""
    contour: bool = True
    """also measure the contour F-score"""
    contour_tolerance: float = 0.008
    """distance up to which contours match: below 1 a share of the picture's diagonal, otherwise a whole number of pixels"""

    def __post_init__(self) -> None:
        check_range("scores.thresholds", self.thresholds, 0, 1 if self.background == "constant" else 1000)
        tolerance_radius((1, 1), self.contour_tolerance)  # raises if it is neither

    @property
    def chosen(self) -> str:
        """The name of the setting that the best of `thresholds` is a value of."""
        return "threshold" if self.background == "constant" else "exponent"

    def of_constants(self) -> "ScoreSettings":
        """These settings for maps whose background score is a constant."""
        if self.background == "constant":
            return self
        return dataclasses.replace(self, background="constant", thresholds=ScoreSettings.thresholds)


@stage(kind="score", makes="scores", title="maps")
def evaluate_cams(settings: ScoreSettings, images: Images, *, cams: Path, out: Path) -> dict[str, Any]:
    """Score activation maps at all thresholds, and at the best one in full.

    Writes `scores.json` (with the threshold curve), `per_image.json` and `per_image_contour.json`.

    Args:
        settings: thresholds and conventions.
        images: pictures with true masks; a subset of those that have maps will do.
        cams: folder of the maps.
        out: the stage's folder.
    """
    check_masks(images)
    sweep = ThresholdSweep(settings.thresholds, len(images.class_names), settings.background)
    # the power is computed in the dtype of stored maps, as published
    dtype = np.float16 if settings.background == "power" else np.float32

    def load(index: int) -> tuple[RankedPicture, Packed]:
        truth = images.read_mask(index)
        classes, maps = read_matching_cams(images, cams, index, truth.shape)
        where = str(cams / f"{images.names[index]}.npz")
        picture = RankedPicture(truth, sweep.ranked(truth, maps.astype(dtype, copy=False), classes, where))
        return picture, packed(picture)

    with opened(out) as store:

        def add(index: int, loaded: tuple[RankedPicture, Packed]) -> None:
            sweep.count(*loaded[0])
            store.add(index, loaded[1])

        needs = by_pixels(images, _BYTES, _OF_CLASS)
        sum_over_pictures(images, load, add, title=f"thresholds {out.name}", needs=needs)
        sweep.counts = launch.summed(sweep.counts)
        best, _ = sweep.best(settings.convention)

        def at_best(index: int) -> _Pair:
            truth, ranks = store.read(index)
            return truth, sweep.labelled(ranks, best)

        return _score(settings, images, at_best, out, *_protocol_of_maps(settings, sweep, best))


def _protocol_of_maps(
    settings: ScoreSettings, sweep: ThresholdSweep, best: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How maps were scored, and the scores at all thresholds."""
    shown = "threshold" if settings.background == "constant" else "(1 - highest map)^threshold"
    curve = {
        "thresholds": list(settings.thresholds),
        "miou": [score.miou for score in sweep.scores(settings.convention)],
    }
    protocol = {
        "maps": f"argmax over [{shown}, maps]",
        "background": settings.background,
        "threshold": best,
        PIXEL_LABELS: settings.chosen if len(settings.thresholds) > 1 else "none",
    }
    return protocol, curve


@stage(kind="score", makes="scores", title="masks")
def evaluate_masks(settings: ScoreSettings, images: Images, *, masks: Path, out: Path) -> dict[str, Any]:
    """Score pseudo masks or predictions; their unsure pixels (255) count as background, as in IRNet.

    Writes `scores.json`, `per_image.json` and `per_image_contour.json`.

    Args:
        settings: conventions.
        images: pictures with true masks; it may be a subset of the pictures with pseudo masks.
        masks: folder of the masks.
        out: the stage's folder.
    """
    check_masks(images)

    def read(index: int) -> _Pair:
        mask = read_mask(masks / f"{images.names[index]}.png")
        return images.read_mask(index, mask.shape), np.where(mask == IGNORE, 0, mask)

    return _score(
        settings, images, read, out, {"unsure pixels": "count as background", PIXEL_LABELS: pixel_labels(masks)}, None
    )


def best_threshold(scored: Path) -> float:
    """The best threshold that `evaluate_cams` found in a stage folder."""
    return float(read_json(scored / SCORES, "scores of activation maps")["protocol"]["threshold"])


def truth_fingerprint(images: Images) -> str:
    """A fingerprint of pictures and true masks only, regardless of tags."""
    return dataclasses.replace(images, labels=np.zeros_like(images.labels)).fingerprint()


def check_masks(images: Images) -> None:
    """Raise BadInput if some pictures have no true mask to score against."""
    images.check_maskable()
    if not images.has_masks:
        missing = sum(mask is None for mask in images.masks)
        raise BadInput(
            images.title,
            f"{missing} of {len(images)} pictures without a true mask",
            "true masks to score against",
            "Choose a split with masks, or skip this stage.",
        )


class _Counts(NamedTuple):
    """Counts over the pictures of all processes, and scores of single pictures."""

    labels: np.ndarray
    contours: np.ndarray
    per_image: dict[str, float | None]
    per_image_contour: dict[str, float | None]


def _count(settings: ScoreSettings, images: Images, read: Callable[[int], _Pair], title: str) -> _Counts:
    matrix = ConfusionMatrix(images.n_labels)
    contours = ContourCounts(len(images.class_names), settings.contour_tolerance)
    per_image: list[tuple[str, float | None]] = []
    per_image_contour: list[tuple[str, float | None]] = []

    def add(index: int, loaded: _Pair) -> None:
        (truth, mask), name = loaded, images.names[index]
        single = ConfusionMatrix(images.n_labels)
        single.add(truth, mask, name)
        matrix.merge(single.counts)
        per_image.append((name, scores(single.counts, "present").miou))
        if settings.contour:
            outlines = ContourCounts(len(images.class_names), settings.contour_tolerance)
            outlines.add(truth, mask, name)
            contours.merge(outlines.counts)
            per_image_contour.append((name, contour_scores(outlines.counts, "present").mean_f))

    sum_over_pictures(images, read, add, title=f"evaluate {title}", needs=by_pixels(images, _BYTES))
    singles = [dict(sorted(launch.gathered(pairs))) for pairs in (per_image, per_image_contour)]
    return _Counts(launch.summed(matrix.counts), launch.summed(contours.counts), *singles)


def _score(
    settings: ScoreSettings,
    images: Images,
    read: Callable[[int], _Pair],
    out: Path,
    protocol: dict[str, Any],
    curve: dict[str, Any] | None,
) -> dict[str, Any]:
    counted = _count(settings, images, read, out.name)
    score = scores(counted.labels, settings.convention)
    contour = contour_scores(counted.contours, settings.convention) if settings.contour else None
    if launch.is_first():
        write_json(out / PER_IMAGE, counted.per_image)
        if settings.contour:
            write_json(out / PER_IMAGE_CONTOUR, counted.per_image_contour)
        write_json(
            out / SCORES,
            {
                "protocol": {
                    "split": images.title,
                    "images": len(images),
                    "convention": settings.convention,
                    "truth 255": "ignored in the mIoU, background in the contour F-score",
                    "contour tolerance": settings.contour_tolerance if settings.contour else None,
                    **protocol,
                },
                "truth": truth_fingerprint(images),
                "labels": ["background", *images.class_names],
                "scores": dataclasses.asdict(score),
                "coverage": coverage(counted.labels, ["background", *images.class_names], score.n_scored),
                "contour": dataclasses.asdict(contour) if contour else None,
                "curve": curve,
                "confusion": counted.labels.tolist(),
            },
        )
    return {"miou": score.miou, "contour_f": contour.mean_f if contour else None, **protocol}
