"""Pseudo masks from activation maps by a background threshold, followed by a dense CRF or not; nothing is learned."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float, Int, UInt8

from wsss.data.files import write_mask
from wsss.data.images import IGNORE, Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput, check_range
from wsss.networks.body import Backbone
from wsss.ops.crf import PRESETS, DenseCRF, Preset, dense_crf, unary_from_labels
from wsss.refiners.task import RefinementTask
from wsss.run import stage
from wsss.stages.each import as_loaded, for_each_picture

# IRNet's threshold on VOC, for pictures without true masks to find a better one on
DEFAULT_THRESHOLD = 0.15

S = TypeVar("S", bound="MaskSettings")


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """How maps become masks."""

    by: Literal["crf", "threshold", "scores"] = "crf"
    """the threshold alone, a dense CRF on the thresholded maps (IRNet's label step), or one on the maps themselves (CLIP-ES')"""
    threshold: float | None = None
    """background score; by default the best one on the split with true masks, and 0.15 where there is none"""
    lower: float | None = None
    """a second, lower background score: pixels that are object at it, but not at `threshold`, become 255"""
    certainty: float = 0.7
    """probability that the CRF gives to the thresholded label"""
    exponent: float | None = 1.0
    """background score (1 - highest map)^exponent that the CRF on the maps starts from; null takes the best one, as for `threshold`, or 1"""
    confidence: float = 0.0
    """pixels whose probability after the CRF on the maps is below it become 255"""
    crf: Preset | DenseCRF = "irn"
    """kernels and iterations of the CRF: the name of a published set, or its numbers"""

    @property
    def title(self) -> str:
        """What makes the masks, in reports and records."""
        ways = {"threshold": "threshold", "crf": "dense CRF on thresholded maps", "scores": "dense CRF on maps"}
        return ways[self.by]

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_range("refiner.threshold", self.threshold, 0, 1)
        if self.lower is not None:
            check_range("refiner.lower", self.lower, 0, 1 if self.threshold is None else self.threshold)
        if self.exponent is not None:
            check_range("refiner.exponent", self.exponent, 0)
        check_range("refiner.certainty", self.certainty, 0, 1)
        check_range("refiner.confidence", self.confidence, 0, 1)

    def at(self: S, found: float | None) -> S:
        """These settings with the threshold or exponent that was found best, unless it is set or none was looked for."""
        if self.by == "scores":
            return self if self.exponent is not None else dataclasses.replace(self, exponent=found or 1.0)
        if self.threshold is not None:
            return self
        return dataclasses.replace(self, threshold=DEFAULT_THRESHOLD if found is None else found)


@dataclasses.dataclass(frozen=True)
class CRFSettings(MaskSettings):
    """Maps to pseudo masks without learning."""

    kind: Literal["crf"] = "crf"
    """a threshold and a dense CRF; nothing is learned"""

    def check(self, classifier: Path | Backbone | None) -> None:
        """Every combination works; see `wsss.refiners.task.Refiner`."""

    def refined(self, task: RefinementTask) -> Path:
        """The folder of the pseudo masks."""
        return refine(self.at(task.found), task.images, cams=task.cams, out=task.folder("masks"))


@stage(kind="refine", makes="masks", title=None)
def refine(settings: MaskSettings, images: Images, *, cams: Path, out: Path) -> dict[str, Any]:
    """Write a pseudo mask `NAME.png` for every picture; pictures whose mask is there are left alone.

    Args:
        settings: with a threshold or exponent.
        images: the pictures.
        cams: folder of their activation maps.
        out: the stage's folder.

    Raises:
        BadInput: no threshold or exponent is set, or the maps do not fit the picture.
    """
    name = "exponent" if settings.by == "scores" else "threshold"
    if getattr(settings, name) is None:
        expected = "a number from 0 on" if settings.by == "scores" else "a number in [0, 1]"
        raise BadInput(
            f"refiner.{name}", "nothing", expected, "Set it, or take the best one that `wsss evaluate` found."
        )
    images.check_maskable()

    def load(index: int) -> UInt8[np.ndarray, "h w"]:
        image = images.read(index)
        classes, maps = read_matching_cams(images, cams, index, image.shape[:2])
        return pseudo_mask(image, classes, maps, settings)

    for_each_picture(images, out, ".png", load, as_loaded, write_mask, title=f"refine {out.name}")
    return {"images": len(images)}


def pseudo_mask(
    image: UInt8[np.ndarray, "h w 3"],
    classes: Int[np.ndarray, " k"],
    maps: Float[np.ndarray, "k h w"],
    settings: MaskSettings,
) -> UInt8[np.ndarray, "h w"]:
    """The pseudo mask of one picture: 0 background, class + 1, 255 unsure.

    By `threshold` and `crf`, a pixel is an object where it is one at `threshold`, background where it is that at
    `lower`, and unsure elsewhere; both CRFs run in one pass (IRNet, `cam_to_ir_label`). By `scores`, the CRF starts
    from [(1 - highest map)^exponent, maps], and a pixel is unsure where it is not confident enough (CLIP-ES, `eval_cam_with_crf`).

    Args:
        image: RGB.
        classes: 0-based, of the maps.
        maps: in [0, 1].
    """
    labels = np.concatenate([[0], classes + 1]).astype(np.uint8)
    kernels = PRESETS[settings.crf] if isinstance(settings.crf, str) else settings.crf
    if settings.by == "scores":
        if len(classes) == 0:
            return np.zeros(image.shape[:2], np.uint8)
        assert settings.exponent is not None
        q = dense_crf(image, scores_unary(maps, settings.exponent), kernels, threads=1)
        return np.where(q.max(0) < settings.confidence, IGNORE, labels[q.argmax(0)]).astype(np.uint8)
    assert settings.threshold is not None
    thresholds = (settings.threshold,) if settings.lower is None else (settings.threshold, settings.lower)
    seeds = [_thresholded(maps, threshold) for threshold in thresholds]
    if settings.by == "crf" and len(classes):
        unaries = [unary_from_labels(seed, len(labels), settings.certainty) for seed in seeds]
        seeds = [q.argmax(0) for q in dense_crf(image, unaries, kernels, threads=1)]
    certain, possible = labels[seeds[0]], labels[seeds[-1]]
    return np.where(certain > 0, certain, np.where(possible == 0, 0, IGNORE)).astype(np.uint8)


def scores_unary(maps: Float[np.ndarray, "k h w"], exponent: float = 1.0) -> Float[np.ndarray, "l h w"]:
    """-ln of [(1 - highest map)^exponent, maps], clipped to [1e-5, 1] and computed in float16 as CLIP-ES does, which stores float16."""
    half = maps.astype(np.float16)
    scores = np.concatenate([(1 - half.max(0, keepdims=True)) ** exponent, half])
    return -np.log(np.clip(scores, 1e-5, 1)).astype(np.float32)


def _thresholded(maps: Float[np.ndarray, "k h w"], threshold: float) -> Int[np.ndarray, "h w"]:
    background = np.full((1, *maps.shape[1:]), threshold, maps.dtype)
    return np.concatenate([background, maps]).argmax(0)
