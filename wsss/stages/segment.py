"""Train a segmenter on pseudo masks: DeepLab v2 (Chen et al., TPAMI 2018), as deeplab-pytorch and CLIMS train it."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsss import launch
from wsss.data.augment import ColourRule, SegmenterAugment
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.networks.deeplab import (
    PUBLISHED_BODY,
    DeepLabSettings,
    balanced_cross_entropy,
    create_deeplab,
    cross_entropy,
    output_losses,
)
from wsss.run import maybe_file
from wsss.stages.train import Training
from wsss.weights import (
    WEIGHTS,
    check_initial,
    classifier_weights,
    load_backbone,
    load_deeplab,
    read_checkpoint,
    write_weights,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A DeepLab v2 and its training."""

    network: DeepLabSettings = DeepLabSettings()
    """layers"""
    init: str = maybe_file("imagenet")
    """initial weights: a file such as deeplabv1_resnet101-coco.pth, `imagenet` for other backbones, `classifier` (that gave the maps), or `none`"""
    loss: Literal["plain", "balanced"] = "plain"
    """cross-entropy over all pixels, or half of it over background and half over foreground"""
    augment: SegmenterAugment = SegmenterAugment()
    """what training pictures and masks go through"""
    # deeplab-pytorch's VOC 2012 settings
    training: Training = Training(
        batch=5, accumulate=2, epochs=None, steps=20_000, lr=2.5e-4, weight_decay=5e-4, momentum=0.9, poly_every=10
    )
    """how the network is trained"""

    def check(self) -> None:
        """Raise BadInput for settings that cannot work, before hours are spent on what comes first."""
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
        if self.init == "none" and self.network.batch_norm == "frozen":
            raise BadInput(
                "segmenter.network.batch_norm",
                "`frozen` with new weights, whose statistics would stay those of nothing",
                "`live` where init is `none`",
                "Set it to live, or give initial weights.",
            )

    def starting_from(self, classifier: Path | None) -> "Settings":
        """These settings with the file of the classifier's weights in the place of the word `classifier`."""
        if self.init != "classifier":
            return self
        return dataclasses.replace(self, init=classifier_weights("segmenter.init", classifier))

    def trainable(self, images: Images, masks: Path) -> "Learning":
        """The network with new or given weights, and its loss on the pseudo masks of the folder `masks`."""
        self.starting_from(None).check()
        network = create_deeplab(images.n_labels, self.network)
        if self.network.backbone == PUBLISHED_BODY and self.init != "none":
            load_deeplab(network, read_checkpoint(Path(self.init)), self.init, new_head=True)
        elif self.init != "none":
            load_backbone(network.get_submodule("base.backbone"), self.network.backbone, self.init)
        return Learning(self, network, images, masks)


class Learning(nn.Module):
    """Cross-entropy on each output of the multi-scale network, labels resized to each; the sum is minimised."""

    def __init__(self, settings: Settings, network: nn.Module, images: Images, masks: Path) -> None:
        super().__init__()
        self.network = network
        self.loss = partial(
            {"plain": cross_entropy, "balanced": balanced_cross_entropy}[settings.loss],
            over_processes=launch.mean_over_processes,
        )
        self.examples = partial(_example, images, masks, settings.augment, settings.network.colours)
        self.metadata: dict[str, Any] = {
            "kind": "deeplab",
            "network": dataclasses.asdict(settings.network),
            "colours": settings.network.colours,
            "classes": list(images.class_names),
        }

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        losses = output_losses(self.network(batch["image"]), batch["label"], self.loss)
        return {"segmentation": torch.stack(losses).sum()}

    def write(self, out: Path) -> None:
        write_weights(out / WEIGHTS, self.network.state_dict(), self.metadata)

    def param_groups(self, training: Training) -> list[dict[str, Any]]:
        return self.network.param_groups(training.lr, training.weight_decay)  # type: ignore[operator]


def _example(
    images: Images, masks: Path, augment: SegmenterAugment, colours: ColourRule, index: int, rng: np.random.Generator
) -> dict[str, Any]:
    image, label = images.read_with(masks, index)
    view, label = augment(image, label, rng, colours)
    return {"image": torch.from_numpy(view), "label": torch.from_numpy(label.astype(np.int64))}
