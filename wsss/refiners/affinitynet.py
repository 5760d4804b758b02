"""Refinement by AffinityNet (Ahn and Kwak, Learning pixel-level semantic affinity with image-level supervision, CVPR 2018).

Maps -> two dense CRFs, with a high and a low background score -> a network trained on the pixels on which both agree ->
a random walk of the maps, including the background, between cells with similar features -> the label with the highest score.
SEAM and ICAM use the same refinement with other values.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss import launch, memory
from wsss.arrays import Float, Int, UInt8
from wsss.data.augment import ColourRule, PosteriorAugment, denormalise, normalise
from wsss.data.files import read_posteriors, write_mask, write_posteriors
from wsss.data.images import IGNORE, Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput, check_range
from wsss.loading import check_initial, load_backbone, load_into, started_from
from wsss.metrics import Background
from wsss.networks.affinitynet import FEATURES, AffinityNet, affinity_losses
from wsss.networks.body import Backbone
from wsss.networks.inference import for_inference
from wsss.networks.receptive import Passes
from wsss.objective import Objective
from wsss.ops.affinity import directions, feature_affinity, feature_affinity_planes, pair_labels
from wsss.ops.crf import PRESETS, crf_bytes, dense_crf, unary_from_scores
from wsss.ops.random_walk import random_walk
from wsss.ops.thresholds import exponent_at
from wsss.refiners.task import RefinementTask
from wsss.run import pretrained, stage
from wsss.stages.each import as_loaded, for_each_picture, within_budget
from wsss.stages.thresholds import PIXEL_LABELS, found_thresholds, given
from wsss.stages.train import Training, train
from wsss.weights import trained_weights

KIND, STRIDE = "affinitynet", 8
# cells whose scores, including the background, are all below this are padding
_PADDING = 1e-5


@dataclasses.dataclass(frozen=True)
class AffinityNetLabels:
    """The two dense CRFs; their background scores are (1 - highest map)^alpha."""

    low: float | Literal["otsu"] = 4.0
    """alpha of the high background score; published: 4 in PSA and SEAM, 2 in ICAM; otsu, for both: background and map
    are equal at Otsu's threshold for `low`, and at that of the values below it for `high`"""
    high: float | Literal["otsu"] = 32.0
    """alpha of the low background score; published: 32 in PSA's repository, 24 in its paper and in SEAM, 4 in ICAM"""

    def __post_init__(self) -> None:
        if isinstance(self.low, str) != isinstance(self.high, str):
            found = f"low {self.low} and high {self.high}"
            raise BadInput("labels", found, "otsu for both, or two numbers", "Change one.")
        if not isinstance(self.low, str) and not isinstance(self.high, str):
            check_range("labels.low", self.low, 0)
            check_range("labels.high", self.high, self.low)

    @property
    def rule(self) -> Literal["otsu"] | None:
        """How the exponents are chosen; None if they are given."""
        return "otsu" if self.low == "otsu" else None

    def alphas(self, thresholds: Path | None) -> tuple[float, float]:
        """`low` and `high` as numbers.

        Args:
            thresholds: folder of the stage that chose them.

        Raises:
            BadInput: there is no such folder.
        """
        if not isinstance(self.low, str) and not isinstance(self.high, str):
            return self.low, self.high
        found = found_thresholds(given("labels", thresholds))
        # a high threshold is a high background score
        return exponent_at(found.otsu), exponent_at(found.lower)


@dataclasses.dataclass(frozen=True)
class AffinityNetTraining:
    """The network and its training."""

    title: ClassVar[str] = "AffinityNet"

    backbone: str = "resnet38"
    """resnet38, or a backbone whose last three features have stride 8"""
    init: str = pretrained("imagenet")
    """initial weights: a file such as ilsvrc-cls_rna-a1_cls1000_ep-0001.params, `imagenet` for other backbones, `classifier`, or `none`"""
    radius: int = 5
    """maximum distance of the two cells of a pair (exclusive)"""
    augment: PosteriorAugment = PosteriorAugment()
    """augmentation of training pictures and their label sets"""
    # PSA reports 0.01 for ResNet-38 (the 0.1 of its script is for VGG-16); its PolyOptimizer passes the weight decay to SGD as
    # momentum
    training: Training = Training(batch=8, epochs=8, lr=0.01, weight_decay=5e-4, momentum=5e-4)
    """how the network is trained"""

    def __post_init__(self) -> None:
        check_range("refiner.network.radius", self.radius, 2)

    def check(self, classifier: Path | Backbone | None = None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs."""
        with torch.device("meta"):
            network = AffinityNet(self.backbone)
        if self.augment.stride != STRIDE or self.augment.crop < STRIDE * (2 * self.radius - 1):
            raise BadInput(
                "refiner.network.augment",
                f"a crop of {self.augment.crop} and labels at stride {self.augment.stride}",
                f"at least {2 * self.radius - 1} cells of {STRIDE} pixels for pairs of radius {self.radius}",
                "Change crop and stride.",
            )
        check_initial("refiner.network.init", network.body, self.backbone, self.init, classifier)

    def trainable(self, images: Images, labels: Path) -> "AffinityNetObjective":
        """The network and its losses on the label sets of the folder `labels`."""
        self.check()
        if not any(_is_confident(labels / f"{name}.npz") for name in images.names):
            raise BadInput(
                labels,
                f"{len(images)} label sets without a single pixel confidently labelled as a class",
                "some such pixels to train on",
                "Raise refiner.labels.low, or check the maps.",
            )
        network = AffinityNet(self.backbone)
        if self.init != "none":
            load_backbone(network.body, self.backbone, self.init)
            network.freeze()
        return AffinityNetObjective(self, network, images, labels)


def _is_confident(path: Path) -> bool:
    labels = confident_labels(*read_posteriors(path))
    return bool(((labels > 0) & (labels < IGNORE)).any())


class AffinityNetObjective(Objective):
    """The losses over the pairs of cells of all processes."""

    def __init__(self, settings: AffinityNetTraining, network: AffinityNet, images: Images, labels: Path) -> None:
        metadata = {"kind": KIND, "backbone": settings.backbone, "classes": list(images.class_names)}
        examples = partial(_example, images, labels, settings.augment, network.colours)
        super().__init__(network, examples, metadata, network.param_groups)
        self.radius = settings.radius

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms."""
        affinities = feature_affinity(self.network(batch["image"]), self.radius)
        pairs = pair_labels(batch["label"], self.radius, directions(self.radius), IGNORE)
        return affinity_losses(affinities, *pairs, over_processes=launch.mean_over_processes)


def _example(
    images: Images,
    labels: Path,
    augment: PosteriorAugment,
    colours: ColourRule,
    index: int,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    image, path = images.read(index), labels / f"{images.names[index]}.npz"
    low, high = read_posteriors(path)
    if low.shape[1:] != image.shape[:2]:
        raise BadInput(
            path,
            f"label sets of {low.shape[1]}x{low.shape[2]} (height x width)",
            f"{image.shape[0]}x{image.shape[1]}, the size of its picture {images.where(index)}",
            "Make the label sets again for these pictures.",
        )
    view, cells = augment(image, np.concatenate([low, high]), rng, colours)
    return {"image": torch.from_numpy(view), "label": torch.from_numpy(confident_labels(*np.split(cells, 2)))}


def confident_labels(low: Float[np.ndarray, "l h w"], high: Float[np.ndarray, "l h w"]) -> Int[np.ndarray, "h w"]:
    """For each cell, the row of its label where both sets agree, 255 elsewhere; int64.

    A cell belongs to a class if that class is highest even in `low`, and is background if it is highest even in `high`; all others
    are ignored.

    Args:
        low, high: scores of background and classes, with the high and the low background score; padding is all 0.
    """
    label = low.argmax(0)
    label[label == 0] = IGNORE
    label[high.argmax(0) == 0] = 0
    label[np.maximum(low.max(0), high.max(0)) < _PADDING] = IGNORE
    return label


def with_background(maps: Float[np.ndarray, "k h w"], alpha: float) -> Float[np.ndarray, "l h w"]:
    """[(1 - highest map)^alpha, maps]."""
    return np.concatenate([(1 - maps.max(0, keepdims=True, initial=0)) ** alpha, maps])


@stage(kind="labels", makes="labels", title="AffinityNet")
def label_sets(
    settings: AffinityNetLabels, images: Images, *, cams: Path, thresholds: Path | None = None, out: Path
) -> dict[str, Any]:
    """Write the class probabilities of both CRFs, `NAME.npz`; pictures with an existing file are skipped.

    Args:
        settings: the background scores.
        images: the pictures.
        cams: folder of their activation maps.
        thresholds: folder of the stage that chose the exponents, if they are not numbers.
        out: the stage's folder.
    """
    alphas = settings.alphas(thresholds)

    def load(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = images.read(index)
        classes, maps = read_matching_cams(images, cams, index, image.shape[:2])
        low, high = (with_background(maps, alpha) for alpha in alphas)
        if len(classes):
            low, high = dense_crf(
                image, [unary_from_scores(score) for score in (low, high)], PRESETS["psa"], threads=1, overwrite=True
            )
        return classes, low, high

    def write(path: Path, posteriors: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        write_posteriors(path, *posteriors)

    def bytes_for(index: int, size_hw: tuple[int, int]) -> float:
        pixels, labels = math.prod(size_hw), 1 + len(images.classes(index))
        return pixels * (3 + 32 * labels) + crf_bytes(pixels, [labels, labels])

    needs = within_budget(images, bytes_for, ", or shrink the picture")
    for_each_picture(images, out, ".npz", load, as_loaded, write, title=f"label {out.name}", needs=needs)
    return {"images": len(images), "low": alphas[0], "high": alphas[1], PIXEL_LABELS: "none"}


@dataclasses.dataclass(frozen=True)
class AffinityNetWalk:
    """The random walk of the maps."""

    radius: int = 5
    """maximum distance of a step in cells (exclusive)"""
    alpha: float | Literal["otsu"] = 16.0
    """background scores are (1 - highest map)^alpha; published: 16 in PSA, 6 in SEAM and ICAM; otsu: background and map are equal at Otsu's
    threshold of the map values"""
    beta: float = 8.0
    """exponent of the affinities"""
    doublings: int = 8
    """base-2 logarithm of the number of steps; 8 in PSA, 6 in SEAM and ICAM"""
    pad_border: bool = False
    """link cells at the border like all others; the published code omits most of their links"""
    shrink: bool = False
    """use a radius of (short side - 1) // 2 cells for maps smaller than 2 radius + 1, as ICAM does"""
    crf: bool = False
    """apply one step of a dense CRF to the walked maps (an option of ICAM)"""

    def __post_init__(self) -> None:
        check_range("walk.radius", self.radius, 2)
        for name in ("alpha", "beta", "doublings"):
            if not isinstance(getattr(self, name), str):
                check_range(f"walk.{name}", getattr(self, name), 0)

    @property
    def rule(self) -> Literal["otsu"] | None:
        """How alpha is chosen; None if it is given."""
        return "otsu" if self.alpha == "otsu" else None

    def at(self, thresholds: Path | None) -> "AffinityNetWalk":
        """These settings with a number for `alpha`, from the folder of the stage that chose it."""
        if self.rule is None:
            return self
        return dataclasses.replace(self, alpha=exponent_at(found_thresholds(given("walk.alpha", thresholds)).otsu))


def load(weights: Path) -> AffinityNet:
    """A trained network on the device, from a stage folder or a published checkpoint (`aff.pth`, on ResNet-38)."""
    state, metadata, path = trained_weights(weights, KIND)
    network = AffinityNet("resnet38" if metadata is None else metadata["backbone"])
    load_into(network, state, path)
    return network.to(launch.device()).eval()


def walked(
    scores: Float[Tensor, "l h w"], features: Float[Tensor, "c hs ws"], settings: AffinityNetWalk
) -> Float[Tensor, "l hs ws"]:
    """Scores of background and classes, averaged over cells, after the walk.

    Args:
        scores: sides are multiples of the stride.
        features: one cell per stride.
    """
    cells = F.avg_pool2d(scores[None], STRIDE)[0]
    height, width = cells.shape[1:]
    largest = (min(height, width) - 1) // 2 if settings.shrink else settings.radius
    radius = max(2, min(settings.radius, largest))
    # the published code has no source cells for maps below radius x (2 radius - 1): PSA fails on them, ICAM on the smallest
    pad = settings.pad_border or height < radius or width < 2 * radius - 1
    planes = feature_affinity_planes(features, radius, pad_border=pad)
    return random_walk(cells, planes, directions(radius), beta=settings.beta, steps=2**settings.doublings)


class _Walked(NamedTuple):
    image: UInt8[np.ndarray, "h w 3"]
    classes: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, "l hp wp"]


@stage(kind="walk", makes="masks", title="AffinityNet")
def walk_to_masks(
    settings: AffinityNetWalk,
    images: Images,
    *,
    cams: Path,
    weights: Path,
    thresholds: Path | None = None,
    out: Path,
) -> dict[str, Any]:
    """Write a pseudo mask `NAME.png` of the walked maps for every picture; pictures with an existing mask are skipped.

    Args:
        settings: of the walk.
        images: the pictures.
        cams: folder of their activation maps.
        weights: folder of the trained network, or a published checkpoint.
        thresholds: folder of the stage that chose alpha, if it is not a number.
        out: the stage's folder.
    """
    settings = settings.at(thresholds)
    network = for_inference(load(weights))
    images.check_maskable()

    def load_one(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = images.read(index)
        return image, *read_matching_cams(images, cams, index, image.shape[:2])

    def compute(_: int, loaded: tuple[np.ndarray, np.ndarray, np.ndarray]) -> _Walked:
        image, classes, maps = loaded
        return _Walked(image, classes, walked_scores(network, image, maps, settings))

    def write(path: Path, one: _Walked) -> None:
        labels, scores = np.concatenate([[0], one.classes + 1]).astype(np.uint8), one.scores
        if settings.crf:
            scores = crf_scores(one.image, labels, scores, images.n_labels, network.colours)
            labels = np.arange(images.n_labels, dtype=np.uint8)
        mask = labels[scores.argmax(0)]
        write_mask(path, mask[: one.image.shape[0], : one.image.shape[1]])

    needs = walk_needs(settings, images, network)
    for_each_picture(images, out, ".png", load_one, compute, write, title=f"walk {out.name}", needs=needs)
    return {"images": len(images), "alpha": settings.alpha, PIXEL_LABELS: "none"}


def walk_needs(settings: AffinityNetWalk, images: Images, network: AffinityNet) -> Callable[[int], int]:
    """The `needs` of `wsss.stages.each.for_each_picture` for the walk of the maps of these pictures."""
    passes = Passes(network, network)
    # features of the cells, and affinities in all directions
    between_cells = 4 * (3 * FEATURES + 4 * len(directions(settings.radius))) / STRIDE**2

    def bytes_for(index: int, size_hw: tuple[int, int]) -> float:
        pixels, labels = math.prod(size_hw), 1 + len(images.classes(index))
        # the network or the walk between cells, and maps before and after it
        walk = max(passes.whole(pixels, memory.budget()), pixels * between_cells) + pixels * (40 + 24 * labels)
        if not settings.crf:
            return walk
        return max(walk, pixels * (30 + 4 * labels + 16 * images.n_labels) + crf_bytes(pixels, [images.n_labels]))

    return within_budget(images, bytes_for, ", or shrink the picture")


@torch.inference_mode()
def walked_scores(
    network: AffinityNet, image: UInt8[np.ndarray, "h w 3"], maps: Float[np.ndarray, "k h w"], settings: AffinityNetWalk
) -> Float[np.ndarray, "l hp wp"]:
    """Scores of background and classes of a picture after the walk, at the size of the padded picture.

    Picture and scores (also those of the background) are padded with zeros to multiples of the stride, at the right and bottom.
    """
    device = launch.device()
    assert not isinstance(settings.alpha, str)
    view = torch.from_numpy(_padded(normalise(image, network.colours))).to(device)
    scores = torch.from_numpy(_padded(with_background(maps, settings.alpha))).to(device)
    after = walked(scores, network(view[None])[0], settings)
    return F.interpolate(after[None], view.shape[1:], mode="bilinear", align_corners=False)[0].cpu().numpy()


def crf_scores(
    image: UInt8[np.ndarray, "h w 3"],
    labels: UInt8[np.ndarray, " l"],
    scores: Float[np.ndarray, "l hp wp"],
    n_labels: int,
    colours: ColourRule,
) -> Float[np.ndarray, "{n_labels} hp wp"]:
    """Probabilities of all labels, after one step of PSA's dense CRF on the scores of the picture's labels.

    As in ICAM, absent labels take part with the lowest possible score, and the picture is the padded input of the network,
    converted back to 8 bits.
    """
    all_scores = np.zeros((n_labels, *scores.shape[1:]), np.float32)
    all_scores[labels] = scores
    picture = denormalise(_padded(normalise(image, colours)), colours)
    settings = dataclasses.replace(PRESETS["psa"], iterations=1)
    return dense_crf(picture, unary_from_scores(all_scores), settings, threads=1, overwrite=True)


def _padded(planes: Float[np.ndarray, "c h w"]) -> Float[np.ndarray, "c hp wp"]:
    return np.pad(planes, ((0, 0), (0, -planes.shape[1] % STRIDE), (0, -planes.shape[2] % STRIDE)))


@dataclasses.dataclass(frozen=True)
class AffinityNetSettings:
    """Pseudo masks with AffinityNet."""

    kind: Literal["affinitynet"] = "affinitynet"
    """AffinityNet: a random walk between cells with similar features; the network is trained on labels from the maps"""
    labels: AffinityNetLabels = AffinityNetLabels()
    """the two label sets made from the maps"""
    network: AffinityNetTraining = AffinityNetTraining()
    """the network trained on the label sets"""
    weights: str = pretrained("none")
    """a trained network, such as aff.pth; `none` trains one"""
    walk: AffinityNetWalk = AffinityNetWalk()
    """the random walk of the maps"""

    def check(self, classifier: Path | Backbone | None, scored: Background | None = None) -> None:
        """See `wsss.refiners.task.Refiner`."""
        if self.weights == "none":
            self.network.check(classifier)
        else:
            load(Path(self.weights))

    def refined(self, task: RefinementTask) -> Path:
        """Make the pseudo masks, and return their folder; label sets and network are next to it."""
        weights = self._trained(task)
        thresholds = task.thresholds(self.walk.rule, task.cams, "cams", None)
        out = task.folder("masks")
        return walk_to_masks(self.walk, task.images, cams=task.cams, weights=weights, thresholds=thresholds, out=out)

    def _trained(self, task: RefinementTask) -> Path:
        if self.weights != "none":
            return Path(self.weights)
        if task.trained is not None:
            return task.trained / "affinitynet"
        network = started_from(self.network, "refiner.network.init", task.classifier)
        thresholds = task.thresholds(self.labels.rule, task.cams, "cams", None)
        labels = label_sets(
            self.labels, task.images, cams=task.cams, thresholds=thresholds, out=task.folder("affinitynet-labels")
        )
        return train(network, task.images, labels=labels, out=task.folder("affinitynet"))
