"""ReCAM: class re-activation maps for weakly-supervised semantic segmentation (Chen et al., CVPR 2022).

The CAM baseline learns on with a second classifier, w', next to its own, w. With features f, tags y, and for each tag k of a picture
M_k = ReLU(w_k · f) over its maximum and z'_k = w' · avg(M_k f), the scores of all classes on what the map of k covers:

    L = multi-label soft margin(w · avg f, y) + lambda mean over k of -ln softmax(z'_k)_k

A softmax makes classes exclude each other, as sigmoids do not. Maps are those of the baseline, with w_k w'_k in the place of w_k.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss import classifier, launch
from wsss.arrays import Float
from wsss.data.images import Images
from wsss.errors import check_range
from wsss.methods.cam import CAMSettings, baseline
from wsss.recipe import Method
from wsss.stages.train import Training


def pooled_features(features: Float[Tensor, "b d h w"], weight: Float[Tensor, "c d 1 1"]) -> Float[Tensor, "b c d"]:
    """avg(M_k f) of every class. Gradients pass through the maps and their maxima."""
    maps = F.conv2d(features, weight).relu()
    maps = maps / (maps.amax((2, 3), keepdim=True) + 1e-5)
    return torch.einsum("bchw,bdhw->bcd", maps, features) / maps[0, 0].numel()


def softmax_loss(scores: Float[Tensor, "b c c"], tags: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """-ln softmax(z'_k)_k, its mean over the tags k of a picture, and the mean of these over the pictures; 0 for one without tags."""
    of_class = -scores.log_softmax(2).diagonal(dim1=1, dim2=2)
    return ((of_class * tags).sum(1) / tags.sum(1).clamp_min(1)).mean()


class ReCAMNetwork(classifier.CAMNetwork):
    """A CAM network with the second classifier, `predictor`, which sees what `pooled_features` gives."""

    def __init__(self, backbone: str, n_classes: int, output_stride: int = 16) -> None:
        super().__init__(backbone, n_classes, output_stride)
        self.predictor = nn.Conv2d(self.classifier.in_channels, n_classes, 1, bias=False)


@dataclasses.dataclass(frozen=True)
class ReCAMSettings(classifier.FromBaseline):
    """The second classifier, and the further training of the baseline. Batch norms keep their statistics, unless nothing is frozen."""

    title: ClassVar[str] = "ReCAM"

    frozen: Literal["stages", "stem", "nothing"] = "stages"
    """layers of the backbone that keep their weights: stem and two stages, as in IRNet's baseline, or the stem"""
    weight: float = 1.0
    """lambda, of the softmax loss"""
    # 5e-4 for both classifiers; that the body learns ten times more slowly is IRNet's rule, and a choice made here, as are the decays
    training: Training = Training(batch=16, epochs=4, lr=5e-5, weight_decay=1e-4, momentum=1e-4)
    """how the network is trained"""

    def __post_init__(self) -> None:
        check_range("weight", self.weight, 0)

    def check(self, images: Images) -> Path | None:
        """See `wsss.recipe.ClassifierSettings`."""
        return self.continued

    def trainable(self, images: Images) -> "ReCAMObjective":
        """The baseline with a new second classifier, and both losses."""
        network, known = classifier.load_baseline(ReCAMNetwork, "recam", self, images, new=("predictor.*",))
        return ReCAMObjective(self, images, network, known, keep_statistics=self.frozen != "nothing")


class ReCAMObjective(classifier.TagObjective[ReCAMSettings, ReCAMNetwork]):
    """Both losses."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms."""
        network, tags = self.network, batch["label"]
        features = network.body(batch["image"])[-1]
        logits = network.classifier(features.mean((2, 3), keepdim=True))[:, :, 0, 0]
        scores = F.linear(pooled_features(features, network.classifier.weight), network.predictor.weight[:, :, 0, 0])
        return {
            "classification": F.multilabel_soft_margin_loss(logits.float(), tags),
            "softmax": self.settings.weight * softmax_loss(scores.float(), tags),
        }


@dataclasses.dataclass(frozen=True)
class ReCAMInference(classifier.MultiScale):
    """How maps are taken from the network: those of a CAM network with the product of both classifiers in the place of its own."""

    title: ClassVar[str] = "ReCAM"

    def localizer(self, images: Images, weights: Path) -> classifier.CAMLocalizer:
        """A trained network, ready to give maps; see `wsss.methods.cam.CAMInference`."""
        network, metadata = classifier.load_as(ReCAMNetwork, "recam", weights, images)
        network.requires_grad_(False).classifier.weight *= network.predictor.weight
        return classifier.CAMLocalizer(network.to(launch.device()).eval(), self, metadata["colours"])


METHOD = Method(
    name="recam",
    paper="ReCAM (Chen et al., CVPR 2022), maps that a second, softmax classifier re-activates",
    needs={classifier.BASELINE: baseline(CAMSettings())},
    classifier=ReCAMSettings(),
    inference=ReCAMInference(),
)
