"""Run a trained segmenter on pictures."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wsss import launch
from wsss.data.augment import SMALLEST_SCALE
from wsss.data.files import write_mask
from wsss.data.images import Images
from wsss.data.lists import notes_on_unreadable
from wsss.data.open import open_pictures
from wsss.data.samples import DEFAULT_READING
from wsss.data.value_range import DEFAULT_REQUEST, ReadingRequest, choose_reading
from wsss.errors import BadInput, check_range
from wsss.ops.crf import PRESETS, DenseCRF, Preset, dense_crf, unary_from_scores
from wsss.run import stage
from wsss.segmenters import SegmenterSettings
from wsss.segmenters.trained import TrainedSegmenter
from wsss.stages.each import for_each_picture
from wsss.weights import reading_of, trained_weights

SEGMENTERS = {kind.kind: kind for kind in get_args(SegmenterSettings)}


@dataclasses.dataclass(frozen=True)
class PredictSettings:
    """How a segmenter predicts."""

    scales: tuple[float, ...] | None = None
    """scales of the picture over which scores are averaged; none: those of the published test of the segmenter, which are
    only 1 for DeepLab v2 and EMANet, 0.5, 0.75 .. 1.75 for DeepLab v1 and PSPNet"""
    flip: bool | None = None
    """also average over the mirrored picture; none: as in the published test, which is yes for DeepLab v1 and PSPNet"""
    crf: Preset | DenseCRF | None = None
    """dense CRF on the probabilities: the name of a published preset (`deeplab` for DeepLab v2, `icam-final` for DeepLab v1), or CRF settings"""

    def __post_init__(self) -> None:
        if self.scales is not None:
            check_range("test.scales", self.scales, SMALLEST_SCALE)


class Prepared(NamedTuple):
    """A picture prepared for the network, on the CPU.

    Attributes:
        views: the normalised picture at each scale, (1, 3, hs, ws).
        size_hw: size of the picture.
    """

    views: list[Tensor]
    size_hw: tuple[int, int]


class _Scored(NamedTuple):
    image: UInt8[np.ndarray, "h w 3"]
    probabilities: Float[np.ndarray, "l h w"]


class Segmenter:
    """A trained segmenter, read from a stage folder or a weights file.

    Args:
        weights: folder or file; files that `wsss segment` wrote name the kind, classes and layers. Published checkpoints are
            recognised by the names of their tensors.
        settings: scales, mirroring, CRF.
        device: device of the network; by default the device of this process.

    Attributes:
        kind: kind of the segmenter, for example `deeplab`.
        classes: the class names.
        reading: how its training pictures were read; None for published checkpoints.
    """

    def __init__(self, weights: Path, settings: PredictSettings, device: torch.device | None = None) -> None:
        state, metadata, path = trained_weights(weights, *SEGMENTERS)
        kind = (
            metadata["kind"]
            if metadata
            else next((name for name, one in SEGMENTERS.items() if one.signature in state), None)
        )
        if kind is None:
            raise BadInput(
                path,
                f"no segmenter (first tensors: {', '.join(list(state)[:3])})",
                f"one of {', '.join(f'{name} ({one.signature}, ..)' for name, one in SEGMENTERS.items())}",
                "Give a trained segmenter.",
            )
        self.settings, self.kind, self.device = settings, kind, device or launch.device()
        self.trained: TrainedSegmenter = SEGMENTERS[kind].load(state, metadata, path)
        self.trained.network.to(self.device)
        self.classes = self.trained.classes
        self.reading = reading_of(path)
        self.scales = self.trained.scales if settings.scales is None else settings.scales
        self.mirrored = (False, True) if (self.trained.flip if settings.flip is None else settings.flip) else (False,)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """The picture prepared for the network."""
        height, width = image.shape[:2]
        return Prepared([self.trained.view(image, scale) for scale in self.scales], (height, width))

    @torch.inference_mode()
    def probabilities(self, prepared: Prepared) -> Float[np.ndarray, "l h w"]:
        """Class probabilities at the size of the picture, background first, before any CRF."""
        total = torch.zeros((), device=self.device)
        for view in prepared.views:
            view = view.to(self.device)
            for mirrored in self.mirrored:
                logits = self.trained.logits(view.flip(3) if mirrored else view, prepared.size_hw)
                logits = logits.flip(3) if mirrored else logits
                total = total + (logits if self.trained.averaged == "logits" else logits.softmax(1))
        mean = total[0] / (len(prepared.views) * len(self.mirrored))
        return (mean.softmax(0) if self.trained.averaged == "logits" else mean).cpu().numpy()

    def refined(
        self, image: UInt8[np.ndarray, "h w 3"], probabilities: Float[np.ndarray, "l h w"]
    ) -> Float[np.ndarray, "l h w"]:
        """The probabilities after the CRF, if the settings have one."""
        crf = self.settings.crf
        if crf is None:
            return probabilities
        kernels = PRESETS[crf] if isinstance(crf, str) else crf
        return dense_crf(self.trained.crf_image(image), unary_from_scores(probabilities), kernels, threads=1)

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """Labels of one RGB picture: 0 for background, otherwise class + 1."""
        return most_probable(self.refined(image, self.probabilities(self.prepare(image))))


def most_probable(probabilities: Float[np.ndarray, "l h w"]) -> UInt8[np.ndarray, "h w"]:
    """The most probable label of each pixel."""
    return probabilities.argmax(0).astype(np.uint8)


def pictures(path: Path, *, weights: Path, request: ReadingRequest = DEFAULT_REQUEST) -> tuple[Images, list[str]]:
    """A picture, or all pictures of a folder, read like the training pictures of a segmenter, with notes for the user.

    Published checkpoints do not say how those were read; then it is decided from these pictures, as for a dataset.

    Args:
        path: the picture or the folder.
        weights: folder of a trained segmenter, or its weights file.
        request: the user's choice instead. With a value range, pictures of any kind are accepted.

    Raises:
        BadInput: there are no pictures, or they are not of the same kind as the training pictures.
    """
    images = open_pictures(path)
    reading, notes = choose_reading(images.paths, path, request, reading_of(weights))
    ignored = notes_on_unreadable(path) if path.is_dir() else []
    return dataclasses.replace(images, reading=reading), notes + ignored


@stage(kind="predict", makes="predictions", title="segmenter")
def predict(settings: PredictSettings, images: Images, *, weights: Path, out: Path) -> dict[str, Any]:
    """Write a predicted mask `NAME.png` for every picture; pictures whose mask exists are skipped.

    Args:
        settings: scales, mirroring, CRF.
        images: any pictures, read like the training pictures (see `pictures`); their tags are not used.
        weights: folder of a trained segmenter, or its weights file.
        out: the stage's folder.

    Raises:
        BadInput: the segmenter was trained on pictures with more than 8 bits, and these were opened as 8-bit pictures.
    """
    segmenter = Segmenter(weights, settings)
    if images.reading == DEFAULT_READING and segmenter.reading not in (None, DEFAULT_READING):
        raise BadInput(
            images.title,
            f"pictures opened with {images.reading}",
            f"{segmenter.reading}, as for the training of {weights}",
            "Open them with `wsss.stages.predict.pictures`.",
        )

    def load(index: int) -> tuple[UInt8[np.ndarray, "h w 3"], Prepared]:
        image = images.read(index)
        return image, segmenter.prepare(image)

    def compute(_: int, loaded: tuple[UInt8[np.ndarray, "h w 3"], Prepared]) -> _Scored:
        image, prepared = loaded
        return _Scored(image, segmenter.probabilities(prepared))

    def write(path: Path, scored: _Scored) -> None:
        write_mask(path, most_probable(segmenter.refined(scored.image, scored.probabilities)))

    for_each_picture(images, out, ".png", load, compute, write, title=f"predict {out.name}")
    return {"images": len(images), "classes": list(segmenter.classes)}
