"""Train a segmenter on pseudo masks: DeepLab v2 (Chen et al., TPAMI 2018), or one of those in `wsss/segmenters`."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from wsss.data.augment import SegmenterAugment
from wsss.data.images import Images
from wsss.errors import BadInput, check_range
from wsss.networks.deeplab import PUBLISHED_BODY, DeepLabSettings, create_deeplab
from wsss.run import maybe_file, unrecorded
from wsss.segmenters import deeplab
from wsss.segmenters.deeplab_v1 import Settings as DeepLabV1Settings
from wsss.segmenters.emanet import Settings as EMANetSettings
from wsss.segmenters.learning import Learning
from wsss.segmenters.pspnet import Settings as PSPNetSettings
from wsss.stages.train import Training
from wsss.weights import (
    check_batch_norm,
    check_initial,
    classifier_weights,
    load_backbone,
    load_deeplab,
    read_checkpoint,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A segmenter and its training: DeepLab v2 by the settings right here, or another by its own settings below."""

    # what is not chosen changes nothing, and what is chosen is recorded alone: see `starting_from`
    kind: Literal["deeplab", "emanet", "deeplab_v1", "pspnet"] = unrecorded("deeplab")
    """which segmenter: DeepLab v2, or the one that has its settings under this name"""
    network: DeepLabSettings = DeepLabSettings()
    """layers"""
    init: str = maybe_file("imagenet")
    """initial weights: a file such as deeplabv1_resnet101-coco.pth, `imagenet` for other backbones, `classifier` (that gave the maps), or `none`"""
    loss: Literal["plain", "balanced"] = "plain"
    """cross-entropy over all pixels, or half of it over background and half over foreground"""
    head_lr: tuple[float, float] = (10.0, 20.0)
    """learning rates of the head's weights and of its biases, times that of the body"""
    augment: SegmenterAugment = SegmenterAugment()
    """what training pictures and masks go through"""
    # deeplab-pytorch's VOC 2012 settings
    training: Training = Training(
        batch=5, accumulate=2, epochs=None, steps=20_000, lr=2.5e-4, weight_decay=5e-4, momentum=0.9, poly_every=10
    )
    """how the network is trained"""
    emanet: EMANetSettings = unrecorded(EMANetSettings())
    """EMANet"""
    deeplab_v1: DeepLabV1Settings = unrecorded(DeepLabV1Settings())
    """DeepLab v1, ICAM's last stage"""
    pspnet: PSPNetSettings = unrecorded(PSPNetSettings())
    """PSPNet, the extended training of PMM and ICAM"""

    def __post_init__(self) -> None:
        check_range("segmenter.head_lr", self.head_lr, 0)

    def starting_from(
        self, classifier: Path | None
    ) -> "Settings | EMANetSettings | DeepLabV1Settings | PSPNetSettings":
        """The settings of the chosen segmenter, with the file of the classifier's weights in the place of the word `classifier`."""
        chosen = self if self.kind == "deeplab" else getattr(self, self.kind)
        if chosen.init != "classifier":
            return chosen
        return dataclasses.replace(chosen, init=classifier_weights("segmenter.init", classifier))

    def check(self, usual: "Settings | None" = None) -> None:
        """Raise BadInput for settings that cannot work, before hours are spent on what comes first.

        Args:
            usual: what DeepLab v2 is set to where nobody asks for anything else; by default what it is here.
        """
        if self.kind != "deeplab":
            self._check_unused(usual or Settings())
            getattr(self, self.kind).check()
            return
        if self.network.backbone == PUBLISHED_BODY and self.init == "imagenet":
            raise BadInput(
                "segmenter.init",
                "`imagenet`, which no library offers for this body",
                "a file: deeplabv1_resnet101-coco.pth (deeplab-pytorch) or deeplabv1_resnet101-imagenet.pth (AdvCAM)",
                "Fetch one of them from its authors, choose another segmenter.network.backbone, or start anew with `none`.",
            )
        with torch.device("meta"):  # an unknown backbone or a stride that it cannot have
            create_deeplab(2, self.network)
        if self.network.backbone == PUBLISHED_BODY and self.init == "classifier":
            raise BadInput(
                "segmenter.init",
                "`classifier` for a body that no classifier here has",
                "the backbone of the classifier as segmenter.network.backbone",
                "Set it, or give a file such as deeplabv1_resnet101-coco.pth.",
            )
        check_initial("segmenter.init", self.network.backbone, self.init)
        check_batch_norm("segmenter.network.batch_norm", self.network.batch_norm, self.init)

    def _check_unused(self, usual: "Settings") -> None:
        """Raise BadInput for settings of DeepLab v2 that someone gave, while another segmenter is chosen."""
        for field in dataclasses.fields(self):
            if not field.metadata.get("unrecorded") and getattr(self, field.name) != getattr(usual, field.name):
                raise BadInput(
                    f"segmenter.{field.name}",
                    f"a setting of DeepLab v2, while segmenter.kind is {self.kind}",
                    f"the settings of the chosen segmenter, segmenter.{self.kind}",
                    "Give it there, leave it out, or set segmenter.kind to deeplab.",
                )

    def trainable(self, images: Images, masks: Path) -> Learning:
        """The network with new or given weights, and its loss on the pseudo masks of the folder `masks`.

        Only settings that `starting_from` gave are trained.
        """
        assert self.kind == "deeplab"
        self.check()
        network = create_deeplab(images.n_labels, self.network)
        if self.network.backbone == PUBLISHED_BODY and self.init != "none":
            load_deeplab(network, read_checkpoint(Path(self.init)), self.init, new_head=True)
        elif self.init != "none":
            load_backbone(network.get_submodule("base.backbone"), self.network.backbone, self.init)
        colours = self.network.colours
        metadata = {"kind": deeplab.KIND, "network": dataclasses.asdict(self.network), "colours": colours}
        losses, view = partial(deeplab.losses, loss=self.loss), partial(self.augment, colours=colours)
        groups = partial(network.param_groups, head_lr=self.head_lr)
        return Learning(network, losses, images, masks, view, metadata, groups)
