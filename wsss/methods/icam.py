"""ICAM: importance sampling CAMs for weakly-supervised segmentation (Jonnarth and Felsberg, ICASSP 2022).

SEAM's network (see `wsss.networks.seam`) is applied to two views v of a picture, the second 0.3 times the size of the first. P = softmax(L)
over background and classes, P' = softmax(L') for the revised logits L', y are the tags (1 for the background), l is the multi-label soft
margin loss:

    L = sum over v of [(1 - lambda) l(avg L_v, y) + lambda L_IS(P_v, y) + l(logit max P'_v, y)]
      + |P_1 - P_2| + |P'_1 - P'_2| + |P_1 - P'_1| + |P_2 - P'_2| + |P_1 - P'_2| + |P_2 - P'_1| + L_FS(P_1) / 2

L_IS samples cells by their probabilities (`wsss.ops.importance`); L_FS aligns maps with colour boundaries (`wsss.ops.feature_similarity`).
Maps are (P + P') / 2, divided by the sum over the background and the tagged classes, averaged over four scales and mirror images. The
binomial follow-up (`hfpl`) adds both losses to SEAM, and keeps its maps and other losses (`wsss.methods.seam`).
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss import launch, memory
from wsss.arrays import Bool, Float, Int, Shaped, UInt8
from wsss.classifier import MultiScale, at_scales, example, highest_features, trained_classifier
from wsss.data.augment import IMAGENET_MEAN, IMAGENET_STD, JitteredAugment
from wsss.data.images import Images
from wsss.errors import BadInput, check_range
from wsss.loading import check_initial, load_backbone, load_into
from wsss.methods import high_fidelity, seam
from wsss.networks.body import Backbone
from wsss.networks.receptive import Passes
from wsss.networks.seam import AFFINITY_BYTES, SEAMNetwork, correlated, resized
from wsss.objective import Objective
from wsss.ops.feature_similarity import cell_colours, cells_inside, check_sigma, feature_similarity_loss
from wsss.ops.importance import importance_loss, multi_label_loss, probability_logits
from wsss.precision import mixed
from wsss.recipe import Method
from wsss.refiners.affinitynet import AffinityNetLabels, AffinityNetSettings, AffinityNetWalk
from wsss.run import pretrained
from wsss.segmenters.deeplab_v1 import DeepLabV1Settings
from wsss.stages.evaluate import ScoreSettings
from wsss.stages.localize import Cams, number_together
from wsss.stages.predict import PredictSettings
from wsss.stages.train import Training
from wsss.weights import State

KIND = "icam"

Variant = Literal["icam", "hfpl", "seam"]


class VariantDefaults(NamedTuple):
    """The settings in which the variants differ."""

    importance: float
    samples: int
    similarity: float


PUBLISHED: dict[Variant, VariantDefaults] = {
    "icam": VariantDefaults(0.8, 100, 0.5),
    # on VOC; the similarity weight for COCO is 0.2
    "hfpl": VariantDefaults(0.2, 10, 1.0),
    "seam": VariantDefaults(0.0, 10, 0.0),
}


@dataclasses.dataclass(frozen=True)
class ICAMSettings:
    """The network that produces the maps, and its losses."""

    title: ClassVar[str] = "ICAM"

    variant: Variant = "icam"
    """icam, its binomial follow-up based on SEAM (hfpl), or SEAM itself"""
    backbone: str = "resnet38"
    """resnet38, resnet18 .. resnet152, or any timm model that returns feature maps"""
    output_stride: int = 8
    """pixels per cell of the maps"""
    init: str = pretrained("imagenet")
    """initial weights: a file such as ilsvrc-cls_rna-a1_cls1000_ep-0001.params, `imagenet` for other backbones than resnet38, or `none`"""
    heads_lr: float = 10.0
    """learning rate of all layers outside the backbone, as a multiple of the backbone's"""
    dropout: float = 0.5
    """dropout rate of the channels of the deepest feature map"""
    view_scale: float = 0.3
    """size of the second view relative to the first"""
    importance: float | None = None
    """lambda, weight of the importance sampling loss against the pooled one; by default 0.8 for icam, 0.2 for hfpl, 0 for seam"""
    samples: int | None = None
    """cells sampled per class; by default 100 for icam, 10 for hfpl; 0: the expectation over all samples"""
    pooling: Literal["avg", "max"] = "avg"
    """pooling of the classification loss, for icam: the mean of the logits, or the maximum of the probabilities"""
    revised_pooling: Literal["max", "avg"] = "max"
    """pooling of the classification loss of the revised maps, for icam"""
    similarity: float | None = None
    """weight of the feature similarity loss; by default 0.5 for icam, 1 for hfpl (0.2 on COCO), 0 for seam"""
    mu: float = 2.5
    """of the feature similarity loss: cells whose colours differ by less than 1 / (1 + e^mu) are pulled to the same prediction"""
    sigma: float | None = 5.0
    """of the feature similarity loss: width of the neighbourhood in cells; null: the whole map"""
    mask_padding: bool = False
    """exclude the padding of a crop from importance sampling and feature similarity; the published code includes it"""
    augment: JitteredAugment = JitteredAugment()
    """augmentation of training pictures"""
    # PolyOptimizer passes its weight decay to SGD as momentum, and uses its own momentum of 0.9 as the exponent of the schedule
    training: Training = Training(batch=8, epochs=8, lr=0.01, weight_decay=5e-4, momentum=5e-4)
    """how the network is trained"""

    def __post_init__(self) -> None:
        check_range("heads_lr", self.heads_lr, 0)
        check_range("dropout", self.dropout, 0, 1)
        check_range("importance", self.resolved.importance, 0, 1)
        check_range("samples", self.resolved.samples, 0)
        check_range("similarity", self.resolved.similarity, 0)
        check_range("view_scale", self.view_scale, 0.01, 1)
        check_sigma("sigma", self.sigma)

    @property
    def resolved(self) -> VariantDefaults:
        """`importance`, `samples` and `similarity`; those that are not set have the variant's published values."""
        values = {name: getattr(self, name) for name in VariantDefaults._fields}
        return PUBLISHED[self.variant]._replace(**{name: value for name, value in values.items() if value is not None})

    def check(self, images: Images) -> Backbone:
        """The backbone that will be trained; see `wsss.recipe.ClassifierSettings`."""
        with torch.device("meta"):
            network = SEAMNetwork(1, self.backbone, self.output_stride, self.dropout)
        smaller = int(self.augment.crop * self.view_scale)
        if smaller < self.output_stride:
            raise BadInput(
                "classifier.augment.crop",
                f"a second view of {smaller} pixels ({self.augment.crop} times {self.view_scale:g})",
                f"at least a cell of {self.output_stride} pixels",
                "Set a larger crop, or a larger classifier.view_scale.",
            )
        check_initial("classifier.init", network.body, self.backbone, self.init)
        return network.body

    def trainable(self, images: Images) -> "ICAMObjective":
        """The network with new or given weights, and its losses."""
        self.check(images)
        network = SEAMNetwork(len(images.class_names), self.backbone, self.output_stride, self.dropout)
        if self.init != "none":
            load_backbone(network.body, self.backbone, self.init)
            network.freeze()
        return ICAMObjective(self, network, images)


class View(NamedTuple):
    """The logits L and revised logits L' of background and classes, for a view of a batch of pictures."""

    logits: Float[Tensor, "n l h w"]
    revised: Float[Tensor, "n l h w"]


def losses(
    settings: ICAMSettings,
    views: tuple[View, View],
    tags: Shaped[Tensor, "n c"],
    draws: Float[Tensor, "n v c s"] | None,
    colours: Float[Tensor, "n 3 h w"],
    inside: Sequence[Bool[Tensor, "n _ _"] | None] = (None, None),
) -> dict[str, Float[Tensor, ""]]:
    """ICAM's L_cls, L_ER, L_ECR and the weighted L_FS.

    Args:
        settings: weights and kinds of pooling.
        views: the first view and the smaller second one.
        tags: 0 or 1.
        draws: uniform random numbers for the samples of both views, see `draw_cells`; None: the expectation over all samples.
        colours: of the first view's cells, in [0, 1].
        inside: the cells of both views that enter the importance sampling loss and L_FS; None: all.
    """
    chosen = settings.resolved
    label = torch.cat([torch.ones_like(tags[:, :1]), tags], 1)
    p, revised = ([each.softmax(1) for each in kind] for kind in zip(*views, strict=True))
    classification = torch.zeros((), dtype=p[0].dtype, device=p[0].device)
    for v, view in enumerate(views):
        if chosen.importance < 1:
            pooled = _pooled(settings.pooling, view.logits, p[v], tags, label)
            classification = classification + (1 - chosen.importance) * pooled
        if chosen.importance > 0:
            # the published code also samples the background, but does not use it
            drawn = importance_loss(p[v][:, 1:], tags, None if draws is None else draws[:, v], inside[v])
            classification = classification + chosen.importance * drawn
        classification = classification + _pooled(settings.revised_pooling, view.revised, revised[v], tags, label)
    terms = {"classification": classification}
    similar = (
        chosen.similarity * feature_similarity_loss(p[0], colours, settings.mu, settings.sigma, inside=inside[0])
        if chosen.similarity > 0
        else None
    )
    cells = p[1].shape[2:]
    p[0], revised[0] = resized(p[0], cells), resized(revised[0], cells)
    terms["equivariance"] = sum(
        (_distance(a, b) for a, b in ((p[0], p[1]), (revised[0], revised[1]), (p[0], revised[0]), (p[1], revised[1]))),
        start=torch.zeros_like(classification),
    )
    terms["cross_equivariance"] = _distance(p[0], revised[1]) + _distance(p[1], revised[0])
    if similar is not None:
        terms["feature_similarity"] = similar
    return terms


def _pooled(pooling: str, logits: Tensor, p: Tensor, tags: Tensor, label: Tensor) -> Tensor:
    """The classification loss of the mean logits without the background, or of the maximum probabilities with it."""
    if pooling == "avg":
        return multi_label_loss(logits[:, 1:].mean((2, 3)), tags)
    return multi_label_loss(probability_logits(p.flatten(2).max(2).values), label)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().mean()


class ICAMObjective(Objective):
    """The losses over two views; the random numbers that sample the cells are part of the examples."""

    def __init__(self, settings: ICAMSettings, network: SEAMNetwork, images: Images) -> None:
        chosen = settings.resolved
        n_views = 2 if settings.variant == "icam" else 1
        shape = (n_views, len(images.class_names), chosen.samples) if chosen.importance > 0 and chosen.samples else None
        examples = partial(example, images, settings.augment, "imagenet")
        if shape:
            examples = partial(high_fidelity.with_draws, examples, shape)
        metadata = {
            "kind": KIND,
            "variant": settings.variant,
            "backbone": settings.backbone,
            "output_stride": settings.output_stride,
            "classes": list(images.class_names),
        }
        super().__init__(network, examples, metadata, partial(network.param_groups, heads=settings.heads_lr))
        self.network: SEAMNetwork = network
        self.settings = settings

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        image, tags, draws = batch["image"], batch["label"], batch.get("draws")
        smaller = F.interpolate(image, scale_factor=self.settings.view_scale, mode="bilinear", align_corners=True)
        outputs = [self.network(each) for each in (image, smaller)]
        with torch.autocast(image.device.type, enabled=False):
            sizes = [each.logits.shape[2:] for each in outputs]
            colours = cell_colours(image, sizes[0], IMAGENET_MEAN, IMAGENET_STD)
            inside = [cells_inside(image, size) if self.settings.mask_padding else None for size in sizes]
            if self.settings.variant == "icam":
                first, second = (View(each.logits, correlated(*each)) for each in outputs)
                return losses(self.settings, (first, second), tags, draws, colours, inside)
            chosen = self.settings.resolved
            return seam.losses(
                seam.view(outputs[0], image.shape[2:]),
                seam.view(outputs[1], smaller.shape[2:]),
                tags,
                None if draws is None else draws[:, 0],
                colours,
                importance=chosen.importance,
                similarity=chosen.similarity,
                mu=self.settings.mu,
                sigma=self.settings.sigma,
                inside=inside[0],
            )


@dataclasses.dataclass(frozen=True)
class ICAMInference(MultiScale):
    """How the network's maps are computed."""

    title: ClassVar[str] = "ICAM"
    # of the sums of enlarged grids, only the highest at each pixel is kept, or they are scaled by their minimum too
    from_grids: ClassVar[bool] = False

    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """scales of the picture whose maps are averaged"""
    flip: bool = True
    """include the maps of the mirror image"""
    variant: Literal["auto", "icam", "hfpl", "seam"] = "auto"
    """how maps are computed: auto is the variant that the weights were trained with; published files do not record it and count as icam"""

    def localizer(self, images: Images, weights: Path) -> "ICAMLocalizer":
        """The localizer of a trained network, loaded from a stage folder or a published checkpoint (`cam.pth`).

        Raises:
            BadInput: the weights belong to another network, or their classes are not those of the pictures.
        """
        network, trained_as = load(weights, images)
        variant = trained_as if self.variant == "auto" else self.variant
        return ICAMLocalizer(network.to(launch.device()).eval(), self, variant)


def load(weights: Path, images: Images) -> tuple[SEAMNetwork, Variant]:
    """A trained network on the CPU, and the variant it was trained with; from a stage folder, its weights file, or a published checkpoint.

    Raises:
        BadInput: the weights belong to another network, or their classes are not those of the pictures.
    """
    loaded = trained_classifier(weights, images, KIND, _published)
    metadata = loaded.metadata
    network = SEAMNetwork(len(images.class_names), metadata["backbone"], metadata["output_stride"])
    load_into(network, loaded.state, loaded.path)
    return network, metadata["variant"]


def _published(state: State, images: Images, path: Path) -> dict[str, object]:
    """Metadata of a published checkpoint of ICAM, HFPL or SEAM. It holds no class names: they are taken to be the dataset's, in order."""
    heads = [state[name] for name in ("fc8.weight", "f8_3.weight", "f8_4.weight", "f9.weight") if name in state]
    complete = len(heads) == 4 and "b7.conv_branch1.weight" in state
    if not complete or len(heads[0]) != len(images.class_names) + 1:
        raise BadInput(
            path,
            f"a classifier of {len(heads[0]) - 1} classes and the background"
            if complete
            else f"no network of ICAM or SEAM (first tensors: {', '.join(list(state)[:3])})",
            f"a ResNet-38 with fc8.weight for {len(images.class_names)} classes and the background, f8_3, f8_4 and f9",
            "Give a checkpoint of this network and dataset.",
        )
    return {"backbone": "resnet38", "output_stride": 8, "classes": images.class_names, "variant": "icam"}


def conditioned(p: Float[Tensor, "n l h w"], present: Int[Tensor, " k"]) -> Float[Tensor, "n k h w"]:
    """Probabilities of the classes that a picture has, divided by the sum over these classes and the background."""
    possible = torch.cat([p[:, :1], p[:, 1 + present]], 1)
    return (possible / possible.sum(1, keepdim=True).clamp_min(1e-8))[:, 1:]


# a picture at each scale
Views = list[Float[Tensor, "1 3 _ _"]]


class ICAMLocalizer:
    """Computes the maps of the classes that a picture has, over several scales and mirror images.

    ICAM: (P + P') / 2 divided by its sum over the background and the picture's classes, resized (bilinear, align_corners False), and
    averaged over scales and mirror images; then all but the highest class of each pixel are set to 0, and each map is divided by
    (its maximum + 1e-5).
    SEAM: the revised maps, resized and summed, each normalised to 0..1 by its minimum and maximum.

    Args:
        network: on the device.
        settings: scales, and whether to include mirror images.
        variant: how maps are computed.
    """

    def __init__(self, network: SEAMNetwork, settings: ICAMInference, variant: Variant) -> None:
        self.network, self.settings, self.variant = network, settings, variant
        self._passes = Passes(network, network, 1 + settings.flip)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Views:
        """The picture at each scale."""
        return at_scales(image, self.settings.scales)

    def bytes_for(self, size_hw: tuple[int, int], classes: int) -> int:
        """See `wsss.stages.localize.Bounded`."""
        scales, pixels, both = self.settings.scales, math.prod(size_hw), 1 + self.settings.flip
        seen = pixels * max(scales) ** 2
        views = 12 * (pixels * sum(scale**2 for scale in scales) + both * seen)
        # both mirror images of the largest view: in the network, or their maps and as many affinities as are computed at a time
        network = self._passes.whole(seen, memory.budget() - views)
        return int(views + max(network, 8 * both * seen * classes + AFFINITY_BYTES) + 20 * pixels * classes)

    @torch.inference_mode()
    def describe(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " d"]:
        """The highest values of the features of a picture at its own size; see `wsss.stages.localize.Describer`."""
        view = at_scales(image, (1.0,))[0].to(next(self.network.parameters()).device)
        return highest_features(self.network.body(view))

    def together(self, size_hw: tuple[int, int]) -> int:
        """See `wsss.stages.localize.Together`."""
        return number_together(self.settings.batch, size_hw, next(self.network.parameters()).device)

    def cams(self, views: Views, size_hw: tuple[int, int], label: Bool[np.ndarray, " c"]) -> Cams:
        """Maps of the classes in `label`, in [0, 1], at the picture's size and at a quarter of it."""
        return self.cams_of([views], size_hw, label[None])[0]

    def cams_of(
        self, prepared: Sequence[Views], size_hw: tuple[int, int], labels: Bool[np.ndarray, "n c"]
    ) -> list[Cams]:
        """The maps of several pictures of equal size, whose views go through the network together."""
        found = self.published_cams(prepared, size_hw, labels)
        return [Cams(classes, maps.clip(min=0), quarter.clip(min=0)) for classes, maps, quarter in found]

    @torch.inference_mode()
    def published_cams(
        self, prepared: Sequence[Views], size_hw: tuple[int, int], labels: Bool[np.ndarray, "n c"]
    ) -> list[tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k h w"], Float[np.ndarray, "k hs ws"]]]:
        """The same as the published code makes it: classes, and maps of both sizes, of which it subtracts so much that the lowest pixel of
        SEAM's is below 0."""
        sizes = (size_hw, (-(-size_hw[0] // 4), -(-size_hw[1] // 4)))
        device = next(self.network.parameters()).device
        present = [torch.from_numpy(np.flatnonzero(label)) for label in labels]
        totals = [[torch.zeros(len(one), *size, device=device) for size in sizes] for one in present]
        # the network computes nothing for pictures without tags
        tagged = [number for number, one in enumerate(present) if len(one)]
        compute = self._icam if self.variant == "icam" else self._seam
        for views in zip(*(prepared[number] for number in tagged), strict=True):
            pictures = torch.cat(views).to(device)
            with mixed(self.settings.precision, device):
                output = self.network(torch.cat([pictures, pictures.flip(3)]) if self.settings.flip else pictures)
            for place, number in enumerate(tagged):
                # of a picture and of its mirror image
                of_picture = seam.SEAMOutput(*(one[place :: len(tagged)] for one in output))
                maps = compute(of_picture, present[number], (pictures.shape[2], pictures.shape[3]))
                for total, size in zip(totals[number], sizes, strict=True):
                    full = F.interpolate(maps, size, mode="bilinear", align_corners=False)
                    total += full[0] + full[1].flip(2) if self.settings.flip else full[0]

        def finished(total: Float[Tensor, "k h w"]) -> Float[np.ndarray, "k h w"]:
            return (self._normalised(total) if len(total) else total).cpu().numpy()

        return [
            (classes.numpy(), finished(full), finished(quarter))
            for classes, (full, quarter) in zip(present, totals, strict=True)
        ]

    def _icam(self, output: seam.SEAMOutput, present: Tensor, _: tuple[int, int]) -> Float[Tensor, "v k hs ws"]:
        return conditioned((output.logits.softmax(1) + correlated(*output).softmax(1)) / 2, present)

    def _seam(self, output: seam.SEAMOutput, present: Tensor, size_hw: tuple[int, int]) -> Float[Tensor, "v k h w"]:
        return resized(correlated(seam.competing(output.logits)[:, 1 + present], output.features), size_hw)

    def _normalised(self, total: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
        if self.variant == "icam":
            mean = total / (len(self.settings.scales) * (2 if self.settings.flip else 1))
            highest = mean * (mean == mean.amax(0))
            return highest / (highest.amax((1, 2), keepdim=True) + 1e-5)
        positive = total.relu()
        minimum, maximum = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
        # infer_SEAM.py first sets the lowest pixels to 0, which is less than the minimum of a map that is positive everywhere
        positive = positive * (positive >= minimum + 1e-5)
        return (positive - minimum - 1e-5) / (maximum - minimum + 1e-5)


METHOD = Method(
    name="icam",
    paper="ICAM (Jonnarth et al., ICASSP 2022), its binomial follow-up (WACV 2024) and SEAM (Wang et al., CVPR 2020)",
    classifier=ICAMSettings(),
    inference=ICAMInference(),
    refiner=AffinityNetSettings(
        labels=AffinityNetLabels(low=2.0, high=4.0), walk=AffinityNetWalk(alpha=6.0, doublings=6, shrink=True)
    ),
    segmenter=DeepLabV1Settings(),
    test=PredictSettings(crf="icam-final"),
    # the background of its maps is 1 - their sum, so it wins while a map is below 0.5
    scores=ScoreSettings(thresholds=(0.5,)),
    # as run_all_voc.sh does
    both_splits=True,
)
