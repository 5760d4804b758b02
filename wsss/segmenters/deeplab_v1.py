"""DeepLab v1 on ResNet-38: training on pseudo masks and testing as in the final stage of ICAM (Jonnarth and Felsberg, ICASSP 2022).

The segmenters of SEAM and of the binomial follow-up (HFPL) are the same without the feature similarity loss.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from wsss import launch
from wsss.arrays import Float, UInt8
from wsss.data.augment import IMAGENET_MEAN, IMAGENET_STD, ColourRule, denormalise
from wsss.data.images import Images
from wsss.data.mask_augment import DeepLabV1Augment, resize_by_factor
from wsss.errors import check_range
from wsss.loading import check_batch_norm, load_into
from wsss.networks.body import Backbone
from wsss.networks.deeplab import cross_entropy
from wsss.networks.deeplab_v1 import DeepLabV1, DeepLabV1Layers, enlarged
from wsss.ops.enlarging import Step
from wsss.ops.feature_similarity import cell_colours, check_sigma, feature_similarity_loss
from wsss.run import pretrained
from wsss.segmenters.learning import CORRECTED_WEIGHT, SegmenterObjective, check_layered, layered_objective
from wsss.segmenters.trained import Enlarging, Local, Part, default_classes, settings_of
from wsss.stages.train import Training


@dataclasses.dataclass(frozen=True)
class DeepLabV1Settings:
    """A DeepLab v1 and its training."""

    title: ClassVar[str] = "DeepLab v1"

    kind: Literal["deeplab_v1"] = "deeplab_v1"
    """DeepLab v1"""
    network: DeepLabV1Layers = DeepLabV1Layers()
    """layers"""
    init: str = pretrained("auto")
    """initial weights of the backbone: auto: `classifier` (the network that produced the maps) if it has this backbone, otherwise `imagenet`;
    or one of these two, `none`, the folder of a segmenter to train on from, or a file such as
    ilsvrc-cls_rna-a1_cls1000_ep-0001.params (required for resnet38)"""
    similarity: float = 0.5
    """weight of the feature similarity loss; 0 in the final stages of SEAM and HFPL"""
    mu: float = 2.5
    """the gate of the feature similarity loss changes its sign at a colour distance of 1 / (1 + e^mu)"""
    sigma: float | None = 5.0
    """width of the neighbourhood of the feature similarity loss, in cells; null: the whole map"""
    corrected_weight: int = CORRECTED_WEIGHT
    """how often pictures with a corrected mask (`--corrected`) occur in an epoch"""
    augment: DeepLabV1Augment = DeepLabV1Augment()
    """augmentation of training pictures and masks"""
    # VOC 2012; 200,000 updates for COCO. Update i has the learning rate lr (1 - i / (I + 1))^0.9
    training: Training = Training(
        batch=10,
        epochs=None,
        steps=20_000,
        lr=1e-3,
        weight_decay=5e-4,
        momentum=0.9,
        poly_beyond=1,
        seed=1,
    )
    """how the network is trained"""
    signature: ClassVar[str] = "conv_fov.weight"
    head: ClassVar[tuple[str, ...]] = ("cls_conv.*",)

    def __post_init__(self) -> None:
        check_range("segmenter.corrected_weight", self.corrected_weight, 1)
        check_range("segmenter.similarity", self.similarity, 0)
        check_sigma("segmenter.sigma", self.sigma)

    def check(self, classifier: Path | Backbone | None = None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs."""
        with torch.device("meta"):
            network = DeepLabV1(2, self.network)
        check_layered(self, network, network.backbone, classifier)
        check_batch_norm("segmenter.network.batch_norm", self.network.batch_norm, self.init)

    def trainable(self, images: Images, masks: Path, corrected: Path | None = None) -> SegmenterObjective:
        """The network with new or given weights, and its losses on the pseudo masks in `masks` and the masks in `corrected`."""
        self.check()
        network = DeepLabV1(images.n_labels, self.network)
        return layered_objective(
            self,
            network,
            network.backbone,
            partial(losses, settings=self),
            network.param_groups,
            images=images,
            masks=masks,
            corrected=corrected,
        )

    @staticmethod
    def load(state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> "TrainedDeepLabV1":
        """A trained network, from the content of a file."""
        return TrainedDeepLabV1(state, metadata, path)


def losses(
    network: DeepLabV1, image: Tensor, label: Tensor, settings: DeepLabV1Settings
) -> dict[str, Float[Tensor, ""]]:
    """Cross-entropy at the picture's size, and the feature similarity loss of the cells."""
    low = network.low(image)
    logits = enlarged(low, image.shape[-2:])
    terms = {"segmentation": cross_entropy(logits, label, over_processes=launch.mean_over_processes)}
    if settings.similarity:
        probabilities = low.to(torch.promote_types(low.dtype, torch.float32)).softmax(1)
        colours = cell_colours(image, low.shape[-2:], IMAGENET_MEAN, IMAGENET_STD)
        similarity = feature_similarity_loss(probabilities, colours, settings.mu, settings.sigma)
        terms["similarity"] = settings.similarity * similarity
    return terms


class TrainedDeepLabV1(Enlarging):
    """A trained DeepLab v1; see `wsss.segmenters.trained`.

    Its test averages the logits of six scales and their mirror images. Its dense CRF uses the normalised picture converted back to 8 bits,
    which changes some values by one level.
    """

    scales, flip = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), True
    averaged: Literal["probabilities", "logits"] = "logits"
    colours: ColourRule = "imagenet"
    fit: tuple[int, int] | None = None
    window: int | None = None

    def __init__(self, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> None:
        # a published checkpoint has no metadata
        metadata = metadata or {"classes": default_classes(len(state["cls_conv.bias"])), "network": {}}
        self.classes: tuple[str, ...] = tuple(metadata["classes"])
        layers = settings_of(DeepLabV1Layers, metadata["network"])
        network = DeepLabV1(len(self.classes) + 1, layers)
        load_into(network, state, path)
        self.network = network.eval()
        self.local: Local | None = (network, network.low)
        self.cell = layers.output_stride

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        rows = _normalised(image)
        if scale != 1:
            rows = resize_by_factor(rows, scale, cv2.INTER_CUBIC)
        return torch.from_numpy(np.ascontiguousarray(rows.transpose(2, 0, 1)))[None]

    def coarse(self, view: Float[Tensor, "b 3 hs ws"], compute: Part | None = None) -> Float[Tensor, "b l hc wc"]:
        return (compute or self.network.low)(view)

    def steps(
        self, coarse: Float[Tensor, "b l hc wc"], view_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> Sequence[Step]:
        return (Step(view_hw, True), Step(size_hw, True))

    def crf_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return denormalise(_normalised(image).transpose(2, 0, 1))


def _normalised(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    # in single precision throughout, as published: rounding decides which levels change when converted back
    mean, std = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.astype(np.float32) / np.float32(255) - mean) / std
