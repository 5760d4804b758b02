"""PSPNet on Res2Net-101 or ResNet-38: the extended training of PMM (Li et al., ICCV 2021), used for the `ET` rows of ICAM."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from wsss import launch
from wsss.arrays import Float, UInt8
from wsss.data.augment import ColourRule, normalise, resize_bilinear
from wsss.data.images import Images
from wsss.data.mask_augment import PSPNetAugment, size_within
from wsss.errors import check_range
from wsss.loading import load_into
from wsss.networks.body import Backbone
from wsss.networks.deeplab import pretended_underfitting
from wsss.networks.pspnet import PSPNet, PSPNetLayers
from wsss.ops.enlarging import Step
from wsss.ops.windows import average_over_windows
from wsss.run import pretrained
from wsss.segmenters.learning import CORRECTED_WEIGHT, SegmenterObjective, check_layered, layered_objective
from wsss.segmenters.trained import Enlarging, Local, Part, default_classes, settings_of
from wsss.stages.train import Training


@dataclasses.dataclass(frozen=True)
class PSPNetSettings:
    """A PSPNet and its training."""

    title: ClassVar[str] = "PSPNet"

    kind: Literal["pspnet"] = "pspnet"
    """PSPNet"""
    network: PSPNetLayers = PSPNetLayers()
    """layers"""
    init: str = pretrained("auto")
    """initial weights of the backbone: auto: `classifier` (the network that produced the maps) if it has this backbone, otherwise `imagenet`;
    or one of these two, `none`, the folder of a segmenter to train on from, or a file such as
    res2net101_v1b_26w_4s-0812c246.pth (required for resnet38)"""
    underfitting: Literal["clamp", "pow", "ignore", "off"] = "clamp"
    """pretended underfitting: how the loss of hard pixels is limited once the mean loss is low; PMM trains a second time with `off`"""
    beta: float = 0.5
    """the mean loss below which it is limited; 0.8 on COCO 2014"""
    k: float = 0.5
    """the maximum loss of a pixel (clamp, ignore), or an exponent (pow); 0.8 on COCO 2014"""
    auxiliary: float = 0.4
    """weight of the auxiliary head's loss"""
    corrected_weight: int = CORRECTED_WEIGHT
    """how often pictures with a corrected mask (`--corrected`) occur in an epoch"""
    augment: PSPNetAugment = PSPNetAugment()
    """augmentation of training pictures and masks"""
    # VOC 2012, 8 GPUs with 2 pictures each; COCO 2014: batch 32, 40,000 updates, lr 0.01, min_lr 5e-5
    training: Training = Training(
        batch=16, epochs=None, steps=20_000, lr=5e-3, weight_decay=5e-4, momentum=0.9, min_lr=1e-4
    )
    """how the network is trained"""
    signature: ClassVar[str] = "decode_head.conv_seg.bias"
    head: ClassVar[tuple[str, ...]] = ("decode_head.conv_seg.*", "auxiliary_head.conv_seg.*")

    def __post_init__(self) -> None:
        check_range("segmenter.corrected_weight", self.corrected_weight, 1)
        for name in ("beta", "k", "auxiliary"):
            check_range(f"segmenter.{name}", getattr(self, name), 0)

    def check(self, classifier: Path | Backbone | None = None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs."""
        with torch.device("meta"):
            network = PSPNet(2, self.network)
        # the global average is a single cell per picture, so its batch norm needs at least two pictures
        check_range("segmenter.training.batch", self.training.batch, 2)
        check_layered(self, network, network.backbone, classifier)

    def trainable(self, images: Images, masks: Path, corrected: Path | None = None) -> SegmenterObjective:
        """The network with new or given weights, and its losses on the pseudo masks in `masks` and the masks in `corrected`."""
        self.check()
        network = PSPNet(images.n_labels, self.network)
        return layered_objective(
            self,
            network,
            network.backbone,
            partial(losses, settings=self),
            network.param_groups,
            images=images,
            masks=masks,
            corrected=corrected,
            fit=list(self.augment.fit),
            window=self.augment.crop,
        )

    @staticmethod
    def load(state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> "TrainedPSPNet":
        """A trained network, from the content of a file."""
        return TrainedPSPNet(state, metadata, path)


def losses(network: PSPNet, image: Tensor, label: Tensor, settings: PSPNetSettings) -> dict[str, Float[Tensor, ""]]:
    """The losses of the main and the auxiliary head, each with pretended underfitting."""
    logits, auxiliary = (
        pretended_underfitting(
            each,
            label,
            settings.underfitting,
            beta=settings.beta,
            k=settings.k,
            over_processes=launch.mean_over_processes,
        )
        for each in network(image)
    )
    return {"segmentation": logits, "auxiliary": settings.auxiliary * auxiliary}


class TrainedPSPNet(Enlarging):
    """A trained PSPNet; see `wsss.segmenters.trained`.

    Its test averages the probabilities of six scales and their mirror images, each computed in overlapping windows.
    """

    scales, flip = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), True
    averaged: Literal["probabilities", "logits"] = "probabilities"
    colours: ColourRule = "imagenet"

    def __init__(self, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> None:
        metadata = metadata or _published(state)
        self.classes: tuple[str, ...] = tuple(metadata["classes"])
        long_side, short_side = metadata["fit"]
        self.fit: tuple[int, int] = (long_side, short_side)
        self.window: int = metadata["window"]
        # the pyramid sees a whole window
        self.local: Local | None = None
        self.cell = 1
        network = PSPNet(len(self.classes) + 1, settings_of(PSPNetLayers, metadata["network"]))
        load_into(network, state, path)
        self.network = network.eval()

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        size_hw = size_within(image.shape[:2], *(max(1, int(side * scale)) for side in self.fit))
        return torch.from_numpy(normalise(resize_bilinear(image, size_hw)))[None]

    def coarse(self, view: Float[Tensor, "b 3 hs ws"], compute: Part | None = None) -> Float[Tensor, "b l hs ws"]:
        # 480 pixels for windows of 512, as published
        step = max(1, self.window * 15 // 16)
        height, width = view.shape[2:]
        return average_over_windows(
            lambda rows, columns: self.network(view[..., rows, columns]), (height, width), self.window, step
        )

    def steps(
        self, coarse: Float[Tensor, "b l hc wc"], view_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> Sequence[Step]:
        return (Step(size_hw),)

    def crf_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return image


def _published(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Metadata of a published checkpoint of WSSS_MMSeg."""
    augment = PSPNetAugment()
    return {
        "classes": default_classes(len(state[PSPNetSettings.signature])),
        "network": {"backbone": "resnet38" if "backbone.conv1a.weight" in state else "res2net101d"},
        "fit": augment.fit,
        "window": augment.crop,
    }
