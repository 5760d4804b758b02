"""Learning deep features for discriminative localization (class activation maps; Zhou et al., CVPR 2016).

Implemented as in the baseline of IRNet (Ahn et al., CVPR 2019): a classifier with global average pooling is trained with the
multi-label soft margin loss. Its maps M_c(x, y) = w_c · f(x, y) are summed over scales and mirror images.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from wsss import launch
from wsss.arrays import Float
from wsss.classifier import BASELINE, KIND, CAMLocalizer, CAMNetwork, MultiScale, TagObjective, freeze, load
from wsss.data.augment import ClassifierAugment
from wsss.data.images import Images
from wsss.loading import check_initial, load_backbone, to_be_trained
from wsss.methods import high_fidelity
from wsss.methods.high_fidelity import HighFidelity
from wsss.networks.body import Backbone
from wsss.recipe import Method, Need
from wsss.run import pretrained
from wsss.stages.train import Training, train
from wsss.weights import WEIGHTS


@dataclasses.dataclass(frozen=True)
class CAMSettings:
    """The classifier that produces the maps."""

    title: ClassVar[str] = "CAM"

    backbone: str = "resnet50"
    """resnet18 .. resnet152, or any timm model that returns feature maps"""
    output_stride: int = 16
    """pixels per cell of the maps"""
    init: str = pretrained("imagenet")
    """initial weights of the backbone: `imagenet`, `none`, or a file"""
    frozen: Literal["auto", "nothing", "stem", "stages"] = "auto"
    """layers whose weights are frozen: stages is the stem and the first two stages (IRNet), stem the stem only (CLIMS); both also freeze
    all batch-norm statistics; auto: nothing if `init` is `none`, otherwise stages"""
    classifier_lr: float = 10.0
    """learning rate of the classifier, as a multiple of the backbone's"""
    augment: ClassifierAugment = ClassifierAugment()
    """augmentation of training pictures"""
    colours: Literal["imagenet", "clip"] = "imagenet"
    """mean and standard deviation that pictures are normalised with; the camera-ready CLIMS uses clip"""
    high_fidelity: HighFidelity = HighFidelity()
    """importance sampling and feature similarity losses of ICAM's follow-up; off by default"""
    # IRNet's PolyOptimizer passes its weight decay to SGD as momentum, so the published numbers were obtained with 1e-4
    training: Training = Training(batch=16, epochs=5, lr=0.1, weight_decay=1e-4, momentum=1e-4)
    """how the network is trained"""

    @property
    def frozen_layers(self) -> str:
        """`frozen`, with `auto` resolved."""
        return self.frozen if self.frozen != "auto" else "nothing" if self.init == "none" else "stages"

    def check(self, images: Images) -> Backbone:
        """The backbone that will be trained; see `wsss.recipe.ClassifierSettings`."""
        body = to_be_trained(self.backbone, self.output_stride)
        check_initial("classifier.init", body, self.backbone, self.init)
        return body

    def trainable(self, images: Images) -> "CAMObjective":
        """The network with new or given weights, and its loss."""
        network = CAMNetwork(self.backbone, len(images.class_names), self.output_stride)
        if self.init != "none":
            load_backbone(network.body, self.backbone, self.init)
        return CAMObjective(self, network, images)


class CAMObjective(TagObjective[CAMSettings, CAMNetwork]):
    """Multi-label soft margin loss (binary cross-entropy with logits, mean over pictures and classes), plus `high_fidelity` if set."""

    def __init__(self, settings: CAMSettings, network: CAMNetwork, images: Images) -> None:
        metadata = {
            "kind": KIND,
            "backbone": settings.backbone,
            "output_stride": settings.output_stride,
            "classes": list(images.class_names),
            "colours": settings.colours,
        }
        super().__init__(settings, images, network, metadata, keep_statistics=settings.frozen_layers != "nothing")
        if shape := settings.high_fidelity.draws(len(images.class_names)):
            self.examples = partial(high_fidelity.with_draws, self.examples, shape)
        freeze(network.body, settings.frozen_layers)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms."""
        image, tags, extra = batch["image"], batch["label"], self.settings.high_fidelity
        if not (extra.importance or extra.similarity):
            return {"classification": F.multilabel_soft_margin_loss(self.network(image).float(), tags)}
        logits = self.network.maps(image).float()
        return high_fidelity.losses(extra, logits, tags, batch.get("draws"), image, self.settings.colours)


@dataclasses.dataclass(frozen=True)
class CAMInference(MultiScale):
    """How the classifier's maps are computed."""

    title: ClassVar[str] = "CAM"

    def localizer(self, images: Images, weights: Path) -> CAMLocalizer:
        """The localizer of a trained classifier, loaded from a stage folder or a published checkpoint (`res50_cam.pth`).

        Raises:
            BadInput: the weights belong to another network, or their classes are not those of the pictures.
        """
        network, metadata = load(weights, images)
        return CAMLocalizer(network.to(launch.device()).eval(), self, metadata["colours"])


def train_baseline(settings: CAMSettings, images: Images, out: Path) -> Path:
    """Train a baseline, and return its weights file."""
    return train(settings, images, out=out) / WEIGHTS


def baseline(settings: CAMSettings) -> Need:
    """The prerequisite of a method with `init: baseline`; `settings` are the default values of its section."""
    return Need(settings, train_baseline, "init", BASELINE, "training of the baseline")


METHOD = Method(
    name="cam",
    paper="class activation maps (Zhou et al., CVPR 2016), the baseline of IRNet and CLIMS",
    classifier=CAMSettings(),
    inference=CAMInference(),
)
