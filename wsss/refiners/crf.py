"""Pseudo masks from activation maps with a background threshold and an optional dense CRF; nothing is trained."""

import dataclasses
from pathlib import Path
from typing import Literal, TypeVar

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

# IRNet's threshold on VOC, used if there are no true masks to find a better one
DEFAULT_THRESHOLD = 0.15

S = TypeVar("S", bound="MaskSettings")


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """How maps are turned into masks."""

    by: Literal["crf", "threshold", "scores"] = "crf"
    """threshold: only a background threshold; crf: a dense CRF on the thresholded maps (IRNet's label step); scores: a dense CRF on the maps
    (CLIP-ES)"""
    threshold: float | None = None
    """background threshold; by default the best one on the split with true masks, or 0.15 if there is none"""
    lower: float | None = None
    """a second, lower background threshold: pixels between the two become 255 (ignored)"""
    certainty: float = 0.7
    """initial probability of the thresholded label in the CRF"""
    exponent: float | None = 1.0
    """exponent of the background score (1 - highest map)^exponent in the CRF on the maps; null: the best one on the split with true masks,
    or 1 if there is none"""
    confidence: float = 0.0
    """pixels whose probability after the CRF on the maps is below this become 255 (ignored)"""
    crf: Preset | DenseCRF = "irn"
    """kernels and iterations of the CRF: the name of a published preset, or values"""

    @property
    def title(self) -> str:
        """How the masks are made, in reports and records."""
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

    def at(self: S, best: float | None) -> S:
        """These settings; a threshold or exponent that is not set becomes `best`, or the default if that is None."""
        if self.by == "scores":
            return self if self.exponent is not None else dataclasses.replace(self, exponent=best or 1.0)
        if self.threshold is not None:
            return self
        return dataclasses.replace(self, threshold=DEFAULT_THRESHOLD if best is None else best)


@dataclasses.dataclass(frozen=True)
class CRFSettings(MaskSettings):
    """Pseudo masks without training."""

    kind: Literal["crf"] = "crf"
    """a threshold and a dense CRF; nothing is trained"""

    def check(self, classifier: Path | Backbone | None) -> None:
        """All settings work with any classifier; see `wsss.refiners.task.Refiner`."""

    def refined(self, task: RefinementTask) -> Path:
        """Make the pseudo masks, and return their folder."""
        return refine(self.at(task.best), task.images, cams=task.cams, out=task.folder("masks"))


@stage(kind="refine", makes="masks", title=None)
def refine(settings: MaskSettings, images: Images, *, cams: Path, out: Path) -> dict[str, int]:
    """Write a pseudo mask `NAME.png` for every picture; pictures with an existing mask are skipped.

    Args:
        settings: with a threshold or exponent.
        images: the pictures.
        cams: folder of their activation maps.
        out: the stage's folder.

    Raises:
        BadInput: no threshold or exponent is set, or the maps do not match the picture.
    """
    name = "exponent" if settings.by == "scores" else "threshold"
    if getattr(settings, name) is None:
        expected = "a number of at least 0" if settings.by == "scores" else "a number in [0, 1]"
        raise BadInput(
            f"refiner.{name}", "nothing", expected, "Set it, for example to the best value found by `wsss evaluate`."
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
    """The pseudo mask of one picture: 0 for background, class + 1, 255 for uncertain pixels.

    With `threshold` and `crf`, a pixel has a class if it has one at `threshold`, is background if it is background at
    `lower`, and is uncertain otherwise; both CRFs run in one pass (IRNet, `cam_to_ir_label`). With `scores`, the CRF starts
    from [(1 - highest map)^exponent, maps], and a pixel is uncertain if its probability is below `confidence` (CLIP-ES,
    `eval_cam_with_crf`).

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
    masks = [_thresholded(maps, threshold) for threshold in thresholds]
    if settings.by == "crf" and len(classes):
        unaries = [unary_from_labels(mask, len(labels), settings.certainty) for mask in masks]
        masks = [q.argmax(0) for q in dense_crf(image, unaries, kernels, threads=1)]
    certain, possible = labels[masks[0]], labels[masks[-1]]
    return np.where(certain > 0, certain, np.where(possible == 0, 0, IGNORE)).astype(np.uint8)


def scores_unary(maps: Float[np.ndarray, "k h w"], exponent: float = 1.0) -> Float[np.ndarray, "l h w"]:
    """-ln of [(1 - highest map)^exponent, maps], clipped to [1e-5, 1] and computed in float16 as CLIP-ES does, which stores float16."""
    half = maps.astype(np.float16)
    scores = np.concatenate([(1 - half.max(0, keepdims=True)) ** exponent, half])
    return -np.log(np.clip(scores, 1e-5, 1)).astype(np.float32)


def _thresholded(maps: Float[np.ndarray, "k h w"], threshold: float) -> Int[np.ndarray, "h w"]:
    background = np.full((1, *maps.shape[1:]), threshold, maps.dtype)
    return np.concatenate([background, maps]).argmax(0)
