"""DeepLab v2 (Chen et al., TPAMI 2018): training on pseudo masks and testing as in deeplab-pytorch and CLIMS."""

import dataclasses
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from wsss import launch
from wsss.arrays import Float
from wsss.checkpoints import read_checkpoint
from wsss.data.augment import SegmenterAugment
from wsss.data.images import Images
from wsss.errors import BadInput, check_range
from wsss.loading import AUTO, check_batch_norm, check_initial, load_backbone, load_deeplab, load_segmenter
from wsss.networks.body import Backbone, Body
from wsss.networks.deeplab import (
    MSC,
    PUBLISHED_BODY,
    DeepLabLayers,
    balanced_cross_entropy,
    create_deeplab,
    cross_entropy,
    output_losses,
)
from wsss.run import pretrained
from wsss.segmenters.learning import CORRECTED_WEIGHT, SegmenterObjective
from wsss.segmenters.trained import Part, TrainedNetwork, default_classes, settings_of
from wsss.stages.train import Training


@dataclasses.dataclass(frozen=True)
class DeepLabSettings:
    """A DeepLab v2 and its training."""

    title: ClassVar[str] = "DeepLab v2"

    kind: Literal["deeplab"] = "deeplab"
    """DeepLab v2"""
    # the published backbone, `deeplab-resnet101`, needs a file of its authors (preset paper)
    network: DeepLabLayers = DeepLabLayers(backbone="resnet101")
    """layers"""
    init: str = pretrained("auto")
    """initial weights of the backbone: auto: `classifier` (the network that produced the maps) if it has this backbone, otherwise `imagenet`;
    or one of these two, `none`, the folder of a segmenter to train on from, or a file; deeplab-resnet101 needs a file such as
    deeplabv1_resnet101-coco.pth"""
    loss: Literal["plain", "balanced"] = "plain"
    """plain: cross-entropy over all pixels; balanced: half over background and half over foreground"""
    head_lr: tuple[float, float] = (10.0, 20.0)
    """learning rates of the head's weights and of its biases, as multiples of the backbone's"""
    corrected_weight: int = CORRECTED_WEIGHT
    """how often pictures with a corrected mask (`--corrected`) occur in an epoch"""
    augment: SegmenterAugment = SegmenterAugment()
    """augmentation of training pictures and masks"""
    # deeplab-pytorch's VOC 2012 settings
    training: Training = Training(
        batch=5, accumulate=2, epochs=None, steps=20_000, lr=2.5e-4, weight_decay=5e-4, momentum=0.9, poly_every=10
    )
    """how the network is trained"""
    signature: ClassVar[str] = "base.aspp.c0.bias"
    head: ClassVar[tuple[str, ...]] = ("base.aspp.*",)

    def __post_init__(self) -> None:
        check_range("segmenter.corrected_weight", self.corrected_weight, 1)
        check_range("segmenter.head_lr", self.head_lr, 0)

    def check(self, classifier: Path | Backbone | None = None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs."""
        if self.network.backbone == PUBLISHED_BODY and self.init in (AUTO, "imagenet"):
            raise BadInput(
                "segmenter.init",
                f"`{self.init}`, ImageNet weights, which no library offers for this backbone",
                "a file: deeplabv1_resnet101-coco.pth (deeplab-pytorch) or deeplabv1_resnet101-imagenet.pth (AdvCAM)",
                "Download one of them from its authors, choose another segmenter.network.backbone, or train from scratch with `none`.",
            )
        with torch.device("meta"):  # raises BadInput for an unknown backbone or stride
            network = create_deeplab(2, self.network)
        if self.network.backbone == PUBLISHED_BODY and self.init == "classifier":
            raise BadInput(
                "segmenter.init",
                "`classifier`, but no classifier has this backbone",
                "the backbone of the classifier as segmenter.network.backbone",
                "Set it, or give a file such as deeplabv1_resnet101-coco.pth.",
            )
        if load_segmenter(network, self.init, self.kind, dataclasses.asdict(self.network), self.head, None):
            return
        if self.network.backbone != PUBLISHED_BODY:
            body = cast(Body, network.get_submodule("base.backbone"))
            check_initial("segmenter.init", body, self.network.backbone, self.init, classifier)
        elif self.init != "none":
            if not os.path.exists(self.init):
                do = "Download it from its authors and give its path, or use another preset or segmenter.network.backbone."
                raise BadInput("segmenter.init", f"no file {self.init}", f"initial weights of {PUBLISHED_BODY}", do)
            load_deeplab(network, read_checkpoint(Path(self.init)), self.init, new_head=True)
        check_batch_norm("segmenter.network.batch_norm", self.network.batch_norm, self.init)

    def trainable(self, images: Images, masks: Path, corrected: Path | None = None) -> SegmenterObjective:
        """The network with new or given weights, and its loss on the pseudo masks in `masks` and the masks in `corrected`."""
        self.check()
        network = create_deeplab(images.n_labels, self.network)
        layers = dataclasses.asdict(self.network)
        if not load_segmenter(network, self.init, self.kind, layers, self.head, images.class_names):
            self._load_backbone(network)
        colours = self.network.colours
        metadata = {"kind": self.kind, "network": layers, "colours": colours}
        terms, augment = partial(losses, loss=self.loss), partial(self.augment, colours=colours)
        groups = partial(network.param_groups, head_lr=self.head_lr)
        return SegmenterObjective(
            network, terms, images, masks, augment, metadata, groups, corrected, self.corrected_weight
        )

    def _load_backbone(self, network: MSC) -> None:
        if self.network.backbone == PUBLISHED_BODY and self.init != "none":
            load_deeplab(network, read_checkpoint(Path(self.init)), self.init, new_head=True)
        elif self.init != "none":
            load_backbone(cast(Body, network.get_submodule("base.backbone")), self.network.backbone, self.init)

    @staticmethod
    def load(state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> TrainedNetwork:
        """A trained network, from the content of a file. Its test uses only the scale pyramid of the network itself."""
        # a checkpoint of deeplab-pytorch has no metadata
        known = metadata or {
            "classes": default_classes(len(state[DeepLabSettings.signature])),
            "colours": "caffe",
            "network": {},
        }
        classes = tuple(known["classes"])
        network = create_deeplab(len(classes) + 1, settings_of(DeepLabLayers, known["network"]))
        load_deeplab(network, state, path)
        local = (network.base, network.base)
        stride = settings_of(DeepLabLayers, known["network"]).output_stride
        return TrainedDeepLab(network.eval(), classes, network, known["colours"], local=local, cell=stride)


class TrainedDeepLab(TrainedNetwork):
    """A trained DeepLab v2; each scale of its pyramid is computed in tiles of its own, if at all."""

    network: MSC

    def coarse(self, view: Float[Tensor, "b 3 hs ws"], compute: Part | None = None) -> Float[Tensor, "b l hc wc"]:
        return self.network(view, compute)


def losses(network: MSC, image: Tensor, label: Tensor, loss: Literal["plain", "balanced"]) -> dict[str, Tensor]:
    """The sum of the cross-entropies of all outputs of the multi-scale network, with labels resized to each."""
    each = {"plain": cross_entropy, "balanced": balanced_cross_entropy}[loss]
    of_outputs = output_losses(network(image), label, partial(each, over_processes=launch.mean_over_processes))
    return {"segmentation": torch.stack(of_outputs).sum()}
