"""Make pseudo masks of activation maps: by a background threshold alone, or with a dense CRF behind it."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from wsss import launch
from wsss.data.files import read_cams, write_mask
from wsss.data.images import IGNORE, Images
from wsss.errors import BadInput, check_range
from wsss.ops.dense_crf import PRESETS, DenseCRF, Preset, dense_crf, unary_from_labels
from wsss.progress import Progress
from wsss.run import stage
from wsss.stream import in_threads

# IRNet's threshold on VOC, for pictures without true masks to find a better one on
DEFAULT_THRESHOLD = 0.15


@dataclasses.dataclass(frozen=True)
class Settings:
    """How maps become masks."""

    by: Literal["threshold", "crf", "scores"] = "crf"
    """the threshold alone, a dense CRF on the thresholded maps (IRNet's label step), or one on the maps themselves (CLIP-ES')"""
    threshold: float | None = None
    """background score; by default the best one on the split with true masks, and 0.15 where there is none"""
    unsure: float = 0.0
    """pixels that are object at `threshold` - unsure but not at `threshold` + unsure become 255"""
    certainty: float = 0.7
    """probability that the CRF gives to the thresholded label"""
    confidence: float = 0.0
    """pixels whose probability after the CRF on the maps is below it become 255"""
    crf: Preset | DenseCRF = "irn"
    """kernels and iterations of the CRF: the name of a published set, or one's own"""

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_range("refine.threshold", self.threshold, 0, 1)
        check_range("refine.unsure", self.unsure, 0, 1)
        check_range("refine.certainty", self.certainty, 0, 1)
        check_range("refine.confidence", self.confidence, 0, 1)

    def at(self, threshold: float) -> "Settings":
        """These settings with the threshold that was found, unless one is set or none is needed."""
        return (
            self
            if self.threshold is not None or self.by == "scores"
            else dataclasses.replace(self, threshold=threshold)
        )


@stage
def refine(settings: Settings, images: Images, *, cams: Path, out: Path) -> dict[str, Any]:
    """Write a pseudo mask `NAME.png` for every picture; pictures whose mask is there are left alone.

    Args:
        settings: with a threshold.
        images: the pictures.
        cams: folder of their activation maps.
        out: the stage's folder.

    Raises:
        BadInput: no threshold is set, or the maps do not fit the picture.
    """
    if settings.threshold is None and settings.by != "scores":
        raise BadInput(
            "refine.threshold",
            "nothing",
            "a number in [0, 1]",
            "Set it, or take the best one that `wsss evaluate` found.",
        )
    todo = launch.missing(images.names, out, ".png")
    mine = len(launch.share(images.names))

    def work(index: int) -> None:
        image, path = images.read(index), cams / f"{images.names[index]}.npz"
        classes, maps = read_cams(path)
        if maps.shape[1:] != image.shape[:2] or (classes >= len(images.class_names)).any():
            raise BadInput(
                path,
                f"maps of {maps.shape[1]}x{maps.shape[2]} (height x width), classes {classes.tolist()}",
                f"{image.shape[0]}x{image.shape[1]} and classes below {len(images.class_names)}",
                "Make the activation maps again for this data set.",
            )
        write_mask(out / f"{images.names[index]}.png", pseudo_mask(image, classes, maps, settings))

    with Progress(f"refine {out.name}", mine, done=mine - len(todo)) as progress:
        for _ in in_threads(work, todo, threads=launch.threads()):
            progress.advance()
    return {"images": len(images)}


def pseudo_mask(
    image: UInt8[np.ndarray, "h w 3"],
    classes: Int[np.ndarray, " k"],
    maps: Float[np.ndarray, "k h w"],
    settings: Settings,
) -> UInt8[np.ndarray, "h w"]:
    """The pseudo mask of one picture: 0 background, class + 1, 255 unsure.

    By `threshold` and `crf`, a pixel is an object where it is one at the higher threshold, background where it is that at
    the lower one, and unsure elsewhere; both CRFs run in one pass (IRNet, `cam_to_ir_label`). By `scores`, the CRF starts
    from [1 - highest map, maps], and a pixel is unsure where it is not confident enough (CLIP-ES, `eval_cam_with_crf`).

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
        q = dense_crf(image, scores_unary(maps), kernels, threads=1)
        return np.where(q.max(0) < settings.confidence, IGNORE, labels[q.argmax(0)]).astype(np.uint8)
    assert settings.threshold is not None
    spread = (settings.unsure, -settings.unsure) if settings.unsure else (0.0,)
    seeds = [_thresholded(maps, settings.threshold + shift) for shift in spread]
    if settings.by == "crf" and len(classes):
        unaries = [unary_from_labels(seed, len(labels), settings.certainty) for seed in seeds]
        seeds = [q.argmax(0) for q in dense_crf(image, unaries, kernels, threads=1)]
    certain, possible = labels[seeds[0]], labels[seeds[-1]]
    return np.where(certain > 0, certain, np.where(possible == 0, 0, IGNORE)).astype(np.uint8)


def scores_unary(maps: Float[np.ndarray, "k h w"]) -> Float[np.ndarray, "l h w"]:
    """-ln of [1 - highest map, maps], clipped to [1e-5, 1] and computed in float16 as CLIP-ES does, which stores float16."""
    half = maps.astype(np.float16)
    scores = np.concatenate([1 - half.max(0, keepdims=True), half])
    return -np.log(np.clip(scores, 1e-5, 1)).astype(np.float32)


def _thresholded(maps: Float[np.ndarray, "k h w"], threshold: float) -> Int[np.ndarray, "h w"]:
    background = np.full((1, *maps.shape[1:]), threshold, maps.dtype)
    return np.concatenate([background, maps]).argmax(0)
