"""EMANet (Li et al., ICCV 2019): training on pseudo masks and testing as in its authors' code."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss import launch
from wsss.arrays import Float, UInt8
from wsss.data.augment import ColourRule, normalise
from wsss.data.images import Images
from wsss.data.mask_augment import EMANetAugment
from wsss.errors import check_range
from wsss.loading import load_into
from wsss.networks.body import Backbone
from wsss.networks.deeplab import balanced_cross_entropy, cross_entropy, pretended_underfitting
from wsss.networks.emanet import EMANet, EMANetLayers
from wsss.ops.enlarging import Step
from wsss.run import pretrained
from wsss.segmenters.learning import CORRECTED_WEIGHT, SegmenterObjective, check_layered, layered_objective
from wsss.segmenters.trained import Enlarging, Local, Part, default_classes, rescaled, settings_of
from wsss.stages.train import Training

LOSSES = {
    "all": partial(pretended_underfitting, rule="off"),
    "plain": partial(cross_entropy, over_processes=launch.mean_over_processes),
    "balanced": partial(balanced_cross_entropy, over_processes=launch.mean_over_processes),
}


@dataclasses.dataclass(frozen=True)
class EMANetSettings:
    """An EMANet and its training."""

    title: ClassVar[str] = "EMANet"

    kind: Literal["emanet"] = "emanet"
    """EMANet"""
    network: EMANetLayers = EMANetLayers()
    """layers"""
    init: str = pretrained("auto")
    """initial weights of the backbone: auto: `classifier` (the network that produced the maps) if it has this backbone, otherwise `imagenet`;
    or one of these two, `none`, the folder of a segmenter to train on from, or a file such as
    resnet101-2a57e44d.pth"""
    loss: Literal["all", "plain", "balanced"] = "all"
    """all: cross-entropy summed over the labelled pixels and divided by the number of all pixels, as published; plain: its mean over the
    labelled pixels; balanced: half over background and half over foreground"""
    corrected_weight: int = CORRECTED_WEIGHT
    """how often pictures with a corrected mask (`--corrected`) occur in an epoch"""
    augment: EMANetAugment = EMANetAugment()
    """augmentation of training pictures and masks"""
    # settings.py and train.py, which counts updates from 1
    training: Training = Training(
        batch=16,
        epochs=None,
        steps=30_000,
        lr=9e-3,
        weight_decay=1e-4,
        momentum=0.9,
        poly_every=10,
        poly_first=1,
        seed=66,
    )
    """how the network is trained"""
    signature: ClassVar[str] = "emau.mu"
    head: ClassVar[tuple[str, ...]] = ("fc2.*",)

    def __post_init__(self) -> None:
        check_range("segmenter.corrected_weight", self.corrected_weight, 1)

    def check(self, classifier: Path | Backbone | None = None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs."""
        with torch.device("meta"):
            network = EMANet(2, self.network)
        check_layered(self, network, network.extractor, classifier)

    def trainable(self, images: Images, masks: Path, corrected: Path | None = None) -> SegmenterObjective:
        """The network with new or given weights, and its loss on the pseudo masks in `masks` and the masks in `corrected`."""
        self.check()
        network = EMANet(images.n_labels, self.network, launch.mean_over_processes)
        return layered_objective(
            self,
            network,
            network.extractor,
            partial(losses, loss=self.loss),
            network.param_groups,
            images=images,
            masks=masks,
            corrected=corrected,
        )

    @staticmethod
    def load(state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> "TrainedEMANet":
        """A trained network, from the content of a file."""
        return TrainedEMANet(state, metadata, path)


def losses(network: EMANet, image: Tensor, label: Tensor, loss: str) -> dict[str, Float[Tensor, ""]]:
    """The loss of the logits at the picture's size; the forward pass also updates the bases."""
    return {"segmentation": LOSSES[loss](network(image), label)}


class TrainedEMANet(Enlarging):
    """A trained EMANet; see `wsss.segmenters.trained`. Its test has one scale and no mirror images."""

    scales, flip = (1.0,), False
    averaged: Literal["probabilities", "logits"] = "probabilities"
    colours: ColourRule = "imagenet"
    fit: tuple[int, int] | None = None
    window: int | None = None
    # the attention sees the whole picture
    local: Local | None = None

    def __init__(self, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> None:
        metadata = metadata or _published(state)
        self.classes: tuple[str, ...] = tuple(metadata["classes"])
        settings = settings_of(EMANetLayers, metadata["network"])
        self.cell = settings.output_stride
        network = EMANet(len(self.classes) + 1, settings)
        load_into(network, state, path)
        self.network = network.eval()

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        return rescaled(torch.from_numpy(normalise(image))[None], scale, align_corners=True)

    def coarse(self, view: Float[Tensor, "b 3 hs ws"], compute: Part | None = None) -> Float[Tensor, "b l hc wc"]:
        return self.network.low(padded(view, self.cell))

    def steps(
        self, coarse: Float[Tensor, "b l hc wc"], view_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> Sequence[Step]:
        first = Step(padded_size(view_hw, self.cell), align_corners=True, kept=view_hw)
        return (first,) if size_hw == view_hw else (first, Step(size_hw))

    def crf_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return image


def padded(image: Float[Tensor, "b 3 h w"], stride: int) -> Float[Tensor, "b 3 hp wp"]:
    """Pad a picture with the mean colour at the right and bottom, to sides of 1 modulo `stride`, so that corners align with cells."""
    height, width = image.shape[-2:]
    down, across = padded_size((height, width), stride)
    return F.pad(image, (0, across - width, 0, down - height))


def padded_size(size_hw: tuple[int, int], stride: int) -> tuple[int, int]:
    """The smallest sides, not below these, of 1 modulo `stride`."""
    height, width = (side + (stride + 1 - side % stride) % stride for side in size_hw)
    return height, width


def _published(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Metadata of a published checkpoint of EMANet. Its stride cannot be derived from the tensors; it is 8 in the repository."""
    blocks = {name.split(".")[2] for name in state if name.startswith("extractor.6.")}
    depth = {6: 50, 23: 101, 36: 152}.get(len(blocks), 101)
    _, channels, bases = state[EMANetSettings.signature].shape
    return {
        "classes": default_classes(len(state["fc2.bias"])),
        "network": {"backbone": f"resnet{depth}s", "channels": channels, "bases": bases},
    }
