"""Refinement by AffinityNet (Ahn and Kwak, Learning pixel-level semantic affinity with image-level supervision, CVPR 2018).

Maps -> two dense CRFs, with much and with little background -> features learned from the pixels that both agree on ->
the maps, background among them, walk at random between cells of like features -> the highest of them. SEAM and ICAM
refine in the same way, with other numbers.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from wsss import launch
from wsss.checkpoints import trained_weights
from wsss.data.augment import ColourRule, PosteriorAugment, denormalised, normalise
from wsss.data.files import read_posteriors, write_mask, write_posteriors
from wsss.data.images import IGNORE, Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput, check_range
from wsss.loading import check_initial, load_backbone, load_into, started_from
from wsss.networks.affinitynet import AffinityNet, affinity_losses
from wsss.networks.body import Backbone
from wsss.objective import Objective
from wsss.ops.affinity import directions, feature_affinity, feature_affinity_planes, pair_labels
from wsss.ops.crf import PRESETS, dense_crf, unary_from_scores
from wsss.ops.random_walk import random_walk
from wsss.refiners.task import RefinementTask
from wsss.run import maybe_file, stage
from wsss.stages.each import as_loaded, for_each_picture
from wsss.stages.train import Training, train

KIND, STRIDE = "affinitynet", 8
# cells whose scores, background included, add up to less lie beside the picture
_NOTHING = 1e-5


@dataclasses.dataclass(frozen=True)
class AffinityNetLabels:
    """The two CRFs: background scores are (1 - highest map)^alpha."""

    low: float = 4.0
    """alpha of much background; 4 in PSA and SEAM, 2 in ICAM"""
    high: float = 32.0
    """alpha of little background; 32 in PSA's repository, 24 in its paper and in SEAM, 4 in ICAM"""

    def __post_init__(self) -> None:
        check_range("labels.low", self.low, 0)
        check_range("labels.high", self.high, self.low)


@dataclasses.dataclass(frozen=True)
class AffinityNetTraining:
    """The network and its training."""

    title: ClassVar[str] = "AffinityNet"

    backbone: str = "resnet38"
    """resnet38, or a backbone whose last three features have stride 8"""
    init: str = maybe_file("imagenet")
    """initial weights: a file such as ilsvrc-cls_rna-a1_cls1000_ep-0001.params, `imagenet` for other backbones, `classifier`, or `none`"""
    radius: int = 5
    """pairs of cells are closer than that"""
    augment: PosteriorAugment = PosteriorAugment()
    """what training pictures and label sets go through"""
    # 0.01 is what PSA reports for ResNet-38 (its script's 0.1 is for VGG-16); its PolyOptimizer hands the weight decay to
    # SGD's momentum
    training: Training = Training(batch=8, epochs=8, lr=0.01, weight_decay=5e-4, momentum=5e-4)
    """how the network is trained"""

    def __post_init__(self) -> None:
        check_range("refiner.network.radius", self.radius, 2)

    def check(self, classifier: Path | Backbone | None = None) -> None:
        """Raise BadInput for settings that cannot work, before hours are spent on what comes first."""
        with torch.device("meta"):
            network = AffinityNet(self.backbone)
        if self.augment.stride != STRIDE or self.augment.crop < STRIDE * (2 * self.radius - 1):
            raise BadInput(
                "refiner.network.augment",
                f"a crop of {self.augment.crop} and labels at stride {self.augment.stride}",
                f"at least {2 * self.radius - 1} cells of {STRIDE} pixels for pairs of radius {self.radius}",
                "Set its crop and stride.",
            )
        check_initial("refiner.network.init", network.body, self.backbone, self.init, classifier)

    def trainable(self, images: Images, labels: Path) -> "AffinityNetObjective":
        """The network and its losses on the label sets of the folder `labels`."""
        self.check()
        if not any(_is_confident(labels / f"{name}.npz") for name in images.names):
            raise BadInput(
                labels,
                f"{len(images)} label sets without a pixel that is surely of a class",
                "some, to learn from",
                "Raise refiner.labels.low, or look at the maps.",
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
    """The losses over pairs of cells, over the pairs of all processes."""

    def __init__(self, settings: AffinityNetTraining, network: AffinityNet, images: Images, labels: Path) -> None:
        metadata: dict[str, Any] = {"kind": KIND, "backbone": settings.backbone, "classes": list(images.class_names)}
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
) -> dict[str, Any]:
    image, path = images.read(index), labels / f"{images.names[index]}.npz"
    low, high = read_posteriors(path)
    if low.shape[1:] != image.shape[:2]:
        raise BadInput(
            path,
            f"label sets of {low.shape[1]}x{low.shape[2]} (height x width)",
            f"{image.shape[0]}x{image.shape[1]} like its picture {images.where(index)}",
            "Make the label sets again for these pictures.",
        )
    view, cells = augment(image, np.concatenate([low, high]), rng, colours)
    return {"image": torch.from_numpy(view), "label": torch.from_numpy(confident_labels(*np.split(cells, 2)))}


def confident_labels(low: Float[np.ndarray, "l h w"], high: Float[np.ndarray, "l h w"]) -> Int[np.ndarray, "h w"]:
    """Row of the best score of each cell where both sets see the same kind of thing, 255 elsewhere; int64.

    A cell is of a class where even `low` says so, background where even `high` does, else unknown.

    Args:
        low, high: scores of background and classes, with much and with little background; all 0 beside the picture.
    """
    label = low.argmax(0)
    label[label == 0] = IGNORE
    label[high.argmax(0) == 0] = 0
    label[np.maximum(low.max(0), high.max(0)) < _NOTHING] = IGNORE
    return label


def with_background(maps: Float[np.ndarray, "k h w"], alpha: float) -> Float[np.ndarray, "l h w"]:
    """[(1 - highest map)^alpha, maps]."""
    return np.concatenate([(1 - maps.max(0, keepdims=True, initial=0)) ** alpha, maps])


@stage(kind="labels", makes="labels", title="AffinityNet")
def label_sets(settings: AffinityNetLabels, images: Images, *, cams: Path, out: Path) -> dict[str, Any]:
    """Write the class probabilities of both CRFs, `NAME.npz`; pictures whose file is there are left alone.

    Args:
        settings: the background scores.
        images: the pictures.
        cams: folder of their activation maps.
        out: the stage's folder.
    """

    def load(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = images.read(index)
        classes, maps = read_matching_cams(images, cams, index, image.shape[:2])
        low, high = (with_background(maps, alpha) for alpha in (settings.low, settings.high))
        if len(classes):
            low, high = dense_crf(image, [unary_from_scores(score) for score in (low, high)], PRESETS["psa"], threads=1)
        return classes, low, high

    def write(path: Path, posteriors: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        write_posteriors(path, *posteriors)

    for_each_picture(images, out, ".npz", load, as_loaded, write, title=f"label {out.name}")
    return {"images": len(images)}


@dataclasses.dataclass(frozen=True)
class AffinityNetWalk:
    """How maps walk."""

    radius: int = 5
    """steps lead to cells closer than that"""
    alpha: float = 16.0
    """background scores are (1 - highest map)^alpha; 16 in PSA, 6 in SEAM and ICAM"""
    beta: float = 8.0
    """exponent of the affinities"""
    doublings: int = 8
    """2 to the power of it is the number of steps; 8 in PSA, 6 in SEAM and ICAM"""
    pad_border: bool = False
    """link cells along the border as all others; the published code leaves most of their links out"""
    shrink: bool = False
    """take a radius of (short side - 1) // 2 cells for maps too small for 2 radius + 1, as ICAM does"""
    crf: bool = False
    """one step of a dense CRF on the walked maps (an option of ICAM)"""

    def __post_init__(self) -> None:
        check_range("walk.radius", self.radius, 2)
        for name in ("alpha", "beta", "doublings"):
            check_range(f"walk.{name}", getattr(self, name), 0)


def load(weights: Path) -> AffinityNet:
    """A trained network on the device: of a stage's folder, or a published checkpoint (`aff.pth`, on ResNet-38)."""
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
        features: one cell a stride.
    """
    cells = F.avg_pool2d(scores[None], STRIDE)[0]
    height, width = cells.shape[1:]
    most = (min(height, width) - 1) // 2 if settings.shrink else settings.radius
    radius = max(2, min(settings.radius, most))
    # the published sources leave maps below radius x (2 radius - 1) without any; PSA fails there, ICAM on the smallest
    pad = settings.pad_border or height < radius or width < 2 * radius - 1
    planes = feature_affinity_planes(features, radius, pad_border=pad)
    return random_walk(cells, planes, directions(radius), beta=settings.beta, steps=2**settings.doublings)


class _Walked(NamedTuple):
    image: UInt8[np.ndarray, "h w 3"]
    classes: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, "l hp wp"]


@stage(kind="walk", makes="masks", title="AffinityNet")
def walk_to_masks(settings: AffinityNetWalk, images: Images, *, cams: Path, weights: Path, out: Path) -> dict[str, Any]:
    """Write a pseudo mask `NAME.png` of the walked maps for every picture; pictures whose mask is there are left alone.

    Args:
        settings: of the walk.
        images: the pictures.
        cams: folder of their activation maps.
        weights: folder of the trained network, or a published checkpoint.
        out: the stage's folder.
    """
    network = load(weights)
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

    for_each_picture(images, out, ".png", load_one, compute, write, title=f"walk {out.name}")
    return {"images": len(images)}


@torch.inference_mode()
def walked_scores(
    network: AffinityNet, image: UInt8[np.ndarray, "h w 3"], maps: Float[np.ndarray, "k h w"], settings: AffinityNetWalk
) -> Float[np.ndarray, "l hp wp"]:
    """Scores of background and classes of a picture after the walk, at the size of the filled-up picture.

    Picture and scores are filled up with zeros (the background too) to multiples of the stride, at the right and bottom.
    """
    device = launch.device()
    view = torch.from_numpy(_filled_up(normalise(image, network.colours))).to(device)
    scores = torch.from_numpy(_filled_up(with_background(maps, settings.alpha))).to(device)
    after = walked(scores, network(view[None])[0], settings)
    return F.interpolate(after[None], view.shape[1:], mode="bilinear", align_corners=False)[0].cpu().numpy()


def crf_scores(
    image: UInt8[np.ndarray, "h w 3"],
    labels: UInt8[np.ndarray, " l"],
    scores: Float[np.ndarray, "l hp wp"],
    n_labels: int,
    colours: ColourRule,
) -> Float[np.ndarray, "{n_labels} hp wp"]:
    """Probabilities of all labels, after one step of PSA's dense CRF from the scores of some.

    As in ICAM, absent labels take part with the least score that there is, and the picture is the one that the network
    sees, filled up, and taken back to 8 bits.
    """
    every = np.zeros((n_labels, *scores.shape[1:]), np.float32)
    every[labels] = scores
    picture = denormalised(_filled_up(normalise(image, colours)), colours)
    settings = dataclasses.replace(PRESETS["psa"], iterations=1)
    return dense_crf(picture, unary_from_scores(every), settings, threads=1)


def _filled_up(planes: Float[np.ndarray, "c h w"]) -> Float[np.ndarray, "c hp wp"]:
    return np.pad(planes, ((0, 0), (0, -planes.shape[1] % STRIDE), (0, -planes.shape[2] % STRIDE)))


@dataclasses.dataclass(frozen=True)
class AffinityNetSettings:
    """Maps to pseudo masks by AffinityNet."""

    kind: Literal["affinitynet"] = "affinitynet"
    """AffinityNet: a random walk between cells of like features, which a network learns from the maps"""
    labels: AffinityNetLabels = AffinityNetLabels()
    """the two label sets of the maps"""
    network: AffinityNetTraining = AffinityNetTraining()
    """the network that learns from them"""
    weights: str = maybe_file("none")
    """a network to walk with, such as aff.pth; `none` trains one"""
    walk: AffinityNetWalk = AffinityNetWalk()
    """the walk of the maps"""

    def check(self, classifier: Path | Backbone | None) -> None:
        """See `wsss.refiners.task.Refiner`."""
        if self.weights == "none":
            self.network.check(classifier)
        else:
            load(Path(self.weights))

    def refined(self, task: RefinementTask) -> Path:
        """The folder of the pseudo masks; label sets and network lie next to it."""
        weights = self._trained(task)
        return walk_to_masks(self.walk, task.images, cams=task.cams, weights=weights, out=task.folder("masks"))

    def _trained(self, task: RefinementTask) -> Path:
        if self.weights != "none":
            return Path(self.weights)
        if task.learned is not None:
            return task.learned / "affinitynet"
        network = started_from(self.network, "refiner.network.init", task.classifier)
        labels = label_sets(self.labels, task.images, cams=task.cams, out=task.folder("affinitynet-labels"))
        return train(network, task.images, labels=labels, out=task.folder("affinitynet"))
