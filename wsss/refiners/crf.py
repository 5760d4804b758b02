"""Pseudo masks from activation maps with a threshold, a dense CRF or pixel-adaptive refinement; nothing is trained."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from wsss.arrays import Float, Int, UInt8
from wsss.data.augment import normalise
from wsss.data.files import write_mask
from wsss.data.images import IGNORE, Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput, check_range
from wsss.metrics import Background
from wsss.networks.body import Backbone
from wsss.ops.crf import PRESETS, DenseCRF, Preset, crf_bytes, dense_crf, unary_from_labels
from wsss.ops.pixel_refine import PixelRefinement, pixel_refine
from wsss.ops.thresholds import Thresholds, exponent_at, highest_label
from wsss.refiners.task import RefinementTask, Rule
from wsss.run import stage
from wsss.stages.each import as_loaded, for_each_picture, within_budget
from wsss.stages.evaluate import best_threshold
from wsss.stages.thresholds import PIXEL_LABELS, found_thresholds, given

log = logging.getLogger("wsss")

S = TypeVar("S", bound="MaskSettings")


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """How maps are turned into masks."""

    by: Literal["crf", "threshold", "scores", "par"] = "crf"
    """threshold: only a background threshold; crf: a dense CRF on the thresholded maps (IRNet's label step); scores: a dense CRF on the maps
    (CLIP-ES); par: pixel-adaptive refinement of the maps (WeCLIP)"""
    threshold: float | Literal["otsu", "otsu_sqrt", "best"] = "otsu"
    """background threshold; otsu: Otsu's threshold of the highest map values of all pictures, which needs no true masks; otsu_sqrt: that of
    their square roots, for walked maps; best: the best one on the split with true masks"""
    lower: float | Literal["otsu"] | None = None
    """a second, lower background threshold: pixels between the two become 255 (ignored); otsu: Otsu's threshold of the values below
    Otsu's threshold"""
    certainty: float = 0.7
    """initial probability of the thresholded label in the CRF"""
    # in this order, since typing would take the choices of `threshold` for these, which are the same in another order
    exponent: Literal["otsu_sqrt", "otsu", "best"] | float = "otsu_sqrt"
    """exponent of the background score (1 - highest map)^exponent, for `scores` and `par`; otsu, otsu_sqrt: background and map are equal at
    this threshold; best: the best one on the split with true masks"""
    confidence: float = 0.0
    """pixels whose probability after `scores` or `par` is below this become 255 (ignored)"""
    crf: Preset | DenseCRF = "irn"
    """kernels and iterations of the CRF: the name of a published preset, or values"""
    par: PixelRefinement = PixelRefinement()
    """neighbours and iterations of the pixel-adaptive refinement"""

    @property
    def title(self) -> str:
        """How the masks are made, in reports and records."""
        ways = {
            "threshold": "threshold",
            "crf": "dense CRF on thresholded maps",
            "scores": "dense CRF on maps",
            "par": "PAR on maps",
        }
        return ways[self.by]

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, str):
            check_range("refiner.threshold", self.threshold, 0, 1)
        if isinstance(self.lower, str) and self.threshold != "otsu":
            raise BadInput(
                "refiner.lower", f"otsu with a threshold of {self.threshold}", "otsu for both", "Change one."
            )
        if self.lower is not None and not isinstance(self.lower, str):
            check_range("refiner.lower", self.lower, 0, 1 if isinstance(self.threshold, str) else self.threshold)
        if not isinstance(self.exponent, str):
            check_range("refiner.exponent", self.exponent, 0)
        check_range("refiner.certainty", self.certainty, 0, 1)
        check_range("refiner.confidence", self.confidence, 0, 1)

    @property
    def chosen(self) -> str:
        """The setting that chooses between background and classes: its name."""
        return "exponent" if self.by in ("scores", "par") else "threshold"

    @property
    def rule(self) -> Rule | None:
        """How the threshold or exponent is chosen; None if it is given."""
        value = self.exponent if self.chosen == "exponent" else self.threshold
        return value if isinstance(value, str) else None

    def check_rule(self, where: str, scored: Background | None) -> None:
        """Raise BadInput if the best value is to be found, but the maps will not be scored accordingly.

        Args:
            where: name of these settings.
            scored: the background score with which the maps will be scored on true masks; None if they will not be.
        """
        wanted = "power" if self.chosen == "exponent" else "constant"
        if self.rule != "best" or scored == wanted:
            return
        name = f"{where}.{self.chosen}"
        if scored is None:
            do = "Choose otsu, which needs no true masks, or a number; with true masks, `wsss evaluate` finds the best one."
            raise BadInput(name, "best, without scores of the maps on true masks", "otsu or a number", do)
        do = f"Set scores.background to {wanted}, or choose otsu or a number for {name}."
        raise BadInput("scores.background", scored, f"{wanted}, since {name} is best", do)

    def at(self: S, thresholds: Path | None) -> S:
        """These settings with numbers.

        Args:
            thresholds: folder of the stage that chose them: of `evaluate_cams` for `best`, otherwise of `choose_thresholds`.

        Raises:
            BadInput: there is no such folder, or `lower` is above the chosen threshold.
        """
        if self.rule is None:
            return self
        folder = given(f"refiner.{self.chosen}", thresholds)
        if self.rule == "best":
            best = best_threshold(folder)
            exponent = self.chosen == "exponent"
            return dataclasses.replace(self, exponent=best) if exponent else dataclasses.replace(self, threshold=best)
        return self.of(found_thresholds(folder))

    def of(self: S, found: Thresholds) -> S:
        """These settings with numbers for `otsu` and `otsu_sqrt`."""
        if self.rule is None or self.rule == "best":
            return self
        threshold = found.otsu if self.rule == "otsu" else found.otsu_sqrt
        if self.chosen == "exponent":
            return dataclasses.replace(self, exponent=exponent_at(threshold))
        lower = found.lower if self.lower == "otsu" else self.lower
        return dataclasses.replace(self, threshold=threshold, lower=lower)

    def bytes_for(self, pixels: int, classes: int) -> float:
        """About the bytes that the mask of a picture with this number of pixels and classes takes."""
        labels = classes + 1
        # the picture, maps in float32 and while they are unpacked, labels and comparisons
        read = pixels * (3 + 10 * classes + 8)
        if self.by == "threshold" or classes == 0:
            return read
        if self.by == "par":
            # similarities to all neighbours, twice while they are normalised, and labels
            return read + pixels * (8 * 8 * len(self.par.dilations) + 16 * labels)
        unaries = max(1, len(self.values()))
        return read + pixels * 12 * labels * unaries + crf_bytes(pixels, [labels] * unaries)

    def values(self) -> dict[str, float]:
        """The numbers that decide between background and classes, by the names of their settings."""
        names = ("exponent",) if self.chosen == "exponent" else ("threshold", "lower")
        return {name: value for name in names if isinstance(value := getattr(self, name), int | float)}


@dataclasses.dataclass(frozen=True)
class CRFSettings(MaskSettings):
    """Pseudo masks without training."""

    kind: Literal["crf"] = "crf"
    """a threshold, a dense CRF or PAR (`by`); nothing is trained"""

    def check(self, classifier: Path | Backbone | None, scored: Background | None = None) -> None:
        """See `wsss.refiners.task.Refiner`; all settings work with any classifier."""
        self.check_rule("refiner", scored)

    def refined(self, task: RefinementTask) -> Path:
        """Make the pseudo masks, and return their folder."""
        thresholds = task.thresholds(self.rule, task.cams, "cams", task.cams_scores)
        return refine(self, task.images, cams=task.cams, thresholds=thresholds, out=task.folder("masks"))


@stage(kind="refine", makes="masks", title=None)
def refine(
    settings: MaskSettings, images: Images, *, cams: Path, thresholds: Path | None = None, out: Path
) -> dict[str, Any]:
    """Write a pseudo mask `NAME.png` for every picture; pictures with an existing mask are skipped.

    Args:
        settings: how masks are made.
        images: the pictures.
        cams: folder of their activation maps.
        thresholds: folder of the stage that chose the threshold or exponent, if it is not a number; see `MaskSettings.at`.
        out: the stage's folder.

    Raises:
        BadInput: no threshold or exponent is set or chosen, or the maps do not match the picture.
    """
    pixel_labels = settings.chosen if settings.rule == "best" else "none"
    rule, settings = settings.rule, settings.at(thresholds)
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in settings.values().items())
    log.info("%s: %s (%s); %s: %s", out, numbers, rule or "given", PIXEL_LABELS, pixel_labels)
    images.check_maskable()

    def load(index: int) -> UInt8[np.ndarray, "h w"]:
        image = images.read(index)
        classes, maps = read_matching_cams(images, cams, index, image.shape[:2])
        return pseudo_mask(image, classes, maps, settings)

    needs = within_budget(
        images,
        lambda index, size_hw: settings.bytes_for(math.prod(size_hw), len(images.classes(index))),
        ", shrink the picture, or set refiner.by to threshold",
    )
    for_each_picture(images, out, ".png", load, as_loaded, write_mask, title=f"refine {out.name}", needs=needs)
    return {"images": len(images), **settings.values(), PIXEL_LABELS: pixel_labels}


def pseudo_mask(
    image: UInt8[np.ndarray, "h w 3"],
    classes: Int[np.ndarray, " k"],
    maps: Float[np.ndarray, "k h w"],
    settings: MaskSettings,
) -> UInt8[np.ndarray, "h w"]:
    """The pseudo mask of one picture: 0 for background, class + 1, 255 for uncertain pixels.

    With `threshold` and `crf`, a pixel has a class if it has one at `threshold`, is background if it is background at
    `lower`, and is uncertain otherwise; both CRFs run in one pass (IRNet, `cam_to_ir_label`). With `scores` and
    `par`, the CRF (CLIP-ES, `eval_cam_with_crf`) or PAR (WeCLIP) starts from [(1 - highest map)^exponent, maps], and a pixel is
    uncertain if its probability is below `confidence`.

    Args:
        image: RGB.
        classes: 0-based, of the maps.
        maps: in [0, 1].
        settings: with numbers.
    """
    labels = np.concatenate([[0], classes + 1]).astype(np.uint8)
    kernels = PRESETS[settings.crf] if isinstance(settings.crf, str) else settings.crf
    if settings.chosen == "exponent":
        if len(classes) == 0:
            return np.zeros(image.shape[:2], np.uint8)
        assert not isinstance(settings.exponent, str)
        if settings.by == "scores":
            q = dense_crf(image, scores_unary(maps, settings.exponent), kernels, threads=1, overwrite=True)
        else:
            q = pixel_refined(image, maps, settings.exponent, settings.par)
        return np.where(q.max(0) < settings.confidence, IGNORE, labels[highest_label(q)]).astype(np.uint8)
    masks = [_thresholded(maps, threshold) for threshold in settings.values().values()]
    if settings.by == "crf" and len(classes):
        unaries = [unary_from_labels(mask, len(labels), settings.certainty) for mask in masks]
        masks = [highest_label(q) for q in dense_crf(image, unaries, kernels, threads=1, overwrite=True)]
    certain, possible = labels[masks[0]], labels[masks[-1]]
    return np.where(certain > 0, certain, np.where(possible == 0, 0, IGNORE)).astype(np.uint8)


def scores_unary(maps: Float[np.ndarray, "k h w"], exponent: float = 1.0) -> Float[np.ndarray, "l h w"]:
    """-ln of [(1 - highest map)^exponent, maps], clipped to [1e-5, 1] and computed in float16 as CLIP-ES does, which stores float16."""
    half = maps.astype(np.float16)
    scores = np.concatenate([(1 - half.max(0, keepdims=True)) ** exponent, half])
    return -np.log(np.clip(scores, 1e-5, 1)).astype(np.float32)


def pixel_refined(
    image: UInt8[np.ndarray, "h w 3"], maps: Float[np.ndarray, "k h w"], exponent: float, settings: PixelRefinement
) -> Float[np.ndarray, "l h w"]:
    """[(1 - highest map)^exponent, maps] after PAR, divided by their sum, which makes them probabilities."""
    scores = maps.astype(np.float32)
    scores = np.concatenate([(1 - scores.max(0, keepdims=True)) ** np.float32(exponent), scores])
    colours = torch.from_numpy(normalise(image, "imagenet"))
    refined = pixel_refine(colours, torch.from_numpy(scores), settings).numpy()
    return refined / refined.sum(0)


def _thresholded(maps: Float[np.ndarray, "k h w"], threshold: float) -> UInt8[np.ndarray, "h w"]:
    return highest_label(maps, np.full((), threshold, maps.dtype))
