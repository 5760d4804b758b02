"""Run a trained segmenter on pictures."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wsss import launch
from wsss.data.augment import SMALLEST_SCALE, normalise
from wsss.data.files import write_mask
from wsss.data.images import Images
from wsss.data.voc import VOC_CLASSES
from wsss.errors import BadInput, check_range
from wsss.networks.deeplab import DeepLabSettings, create_deeplab, resize_logits
from wsss.ops.dense_crf import PRESETS, DenseCRF, Preset, dense_crf, unary_from_scores
from wsss.progress import Progress
from wsss.run import stage
from wsss.stream import in_threads
from wsss.weights import load_deeplab, trained_weights


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a segmenter is tested."""

    scales: tuple[float, ...] = (1.0,)
    """sizes of the picture whose probabilities are averaged; the published test has the network's own pyramid alone"""
    flip: bool = False
    """average with the mirror image too"""
    crf: Preset | DenseCRF | None = None
    """dense CRF on the probabilities: the name of a published set (`deeplab` is DeepLab's), or one's own"""

    def __post_init__(self) -> None:
        check_range("test.scales", self.scales, SMALLEST_SCALE)


def _published(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """What a checkpoint of deeplab-pytorch is; it says nothing itself."""
    bias = state.get("base.aspp.c0.bias")
    if bias is None:
        raise BadInput(
            path,
            f"no DeepLab v2 (first tensors: {', '.join(list(state)[:3])})",
            "base.* and base.aspp.c0.bias, as deeplab-pytorch's trained checkpoints have",
            "Give a trained segmenter.",
        )
    classes = VOC_CLASSES if len(bias) == len(VOC_CLASSES) + 1 else [f"class {i}" for i in range(1, len(bias))]
    return {"classes": classes, "colours": "caffe", "network": {}}


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


class Segmenter:
    """A trained segmenter, read from a stage folder or a weights file.

    Args:
        weights: folder or file; what `wsss segment` writes knows its own classes and layers.
        settings: scales, mirror images, CRF.

    Attributes:
        classes: the class names.
    """

    def __init__(self, weights: Path, settings: Settings) -> None:
        state, metadata, path = trained_weights(weights, "deeplab")
        if metadata is None:
            metadata = _published(state, path)
        self.settings = settings
        self.classes: tuple[str, ...] = tuple(metadata["classes"])
        self.colours = metadata["colours"]
        network = create_deeplab(len(self.classes) + 1, DeepLabSettings(**_tuples(metadata["network"])))
        load_deeplab(network, state, path)
        self.network = network.to(launch.device()).eval()

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 h w"]:
        """The picture as the network takes it, on the CPU."""
        return torch.from_numpy(normalise(image, self.colours))[None]

    @torch.inference_mode()
    def probabilities(self, view: Float[Tensor, "1 3 h w"]) -> Float[np.ndarray, "l h w"]:
        """Class probabilities at the picture's size, background first, before any CRF."""
        size_hw = view.shape[-2:]
        view = view.to(launch.device())
        total = torch.zeros((), device=view.device)
        for scale in self.settings.scales:
            scaled = view
            if scale != 1:
                shape = [max(1, round(side * scale)) for side in size_hw]
                scaled = torch.nn.functional.interpolate(view, shape, mode="bilinear", align_corners=False)
            for mirrored in (False, True) if self.settings.flip else (False,):
                logits = resize_logits(self.network(scaled.flip(3) if mirrored else scaled), size_hw)
                total = total + (logits.flip(3) if mirrored else logits).softmax(1)
        n = len(self.settings.scales) * (2 if self.settings.flip else 1)
        return (total[0] / n).cpu().numpy()

    def refined(
        self, image: UInt8[np.ndarray, "h w 3"], probabilities: Float[np.ndarray, "l h w"]
    ) -> UInt8[np.ndarray, "h w"]:
        """The labels, after the CRF where the settings have one."""
        if self.settings.crf is not None:
            crf = self.settings.crf
            kernels = PRESETS[crf] if isinstance(crf, str) else crf
            probabilities = dense_crf(image, unary_from_scores(probabilities), kernels, threads=1)
        return probabilities.argmax(0).astype(np.uint8)

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """Labels of one RGB picture: 0 background, class + 1."""
        return self.refined(image, self.probabilities(self.prepare(image)))


@stage
def predict(settings: Settings, images: Images, *, weights: Path, out: Path) -> dict[str, Any]:
    """Write a predicted mask `NAME.png` for every picture; pictures whose mask is there are left alone.

    Args:
        settings: scales, mirror images, CRF.
        images: any pictures; their tags are not looked at.
        weights: folder of a trained segmenter, or its file.
        out: the stage's folder.
    """
    segmenter = Segmenter(weights, settings)
    todo = launch.missing(images.names, out, ".png")
    mine = len(launch.share(images.names))

    def load(index: int) -> tuple[UInt8[np.ndarray, "h w 3"], Float[Tensor, "1 3 h w"]]:
        image = images.read(index)
        return image, segmenter.prepare(image)

    def finish(item: tuple[int, UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "l h w"]]) -> None:
        index, image, probabilities = item
        write_mask(out / f"{images.names[index]}.png", segmenter.refined(image, probabilities))

    with Progress(f"predict {out.name}", mine, done=mine - len(todo)) as progress:
        loaded = zip(todo, in_threads(load, todo, threads=launch.threads()), strict=True)
        forwarded = ((index, image, segmenter.probabilities(view)) for index, (image, view) in loaded)
        for _ in in_threads(finish, forwarded, threads=launch.threads()):
            progress.advance()
    return {"images": len(images), "classes": list(segmenter.classes)}
