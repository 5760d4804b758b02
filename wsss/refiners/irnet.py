"""Refinement by IRNet (Ahn et al., Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations, CVPR 2019).

Maps -> confident labels (a dense CRF at two thresholds) -> a network for edges and displacements trained on them -> a random walk
of the maps between cells that are not separated by edges -> a background threshold. CLIMS and QA-CLIMS use the same refinement.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from wsss import launch, memory
from wsss.arrays import Float, Int
from wsss.data.augment import AffinityAugment, crop_picture, normalise, top_left
from wsss.data.coco import COCO_CATEGORIES
from wsss.data.files import read_mask, write_cams, write_mask
from wsss.data.images import IGNORE, Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput, check_range
from wsss.loading import check_initial, load_backbone, load_into, started_from
from wsss.metrics import Background
from wsss.networks.body import Backbone
from wsss.networks.inference import for_inference
from wsss.networks.irnet import IRNET_ALIASES, IRNet, boundaries, irnet_losses
from wsss.networks.receptive import Passes
from wsss.objective import Objective
from wsss.ops.affinity import directions, path_affinity_planes
from wsss.ops.instances import Detections, detections, instance_map, split_cams
from wsss.ops.random_walk import random_walk
from wsss.progress import Progress
from wsss.refiners.crf import MaskSettings, refine
from wsss.refiners.task import RefinementTask
from wsss.run import pretrained, stage
from wsss.stages.each import for_each_picture, within_budget
from wsss.stages.evaluate import evaluate_cams
from wsss.stages.train import Training, train
from wsss.storage import read_json, write_json
from wsss.stream import in_threads
from wsss.weights import WEIGHTS, trained_weights, write_weights

KIND, _STRIDE = "irnet", 4
_TRAIN_DISPLACED = "Train it with refiner.network.displacement true."


@dataclasses.dataclass(frozen=True)
class IRNetTraining:
    """The network and its training."""

    title: ClassVar[str] = "IRNet"

    backbone: str = "resnet50"
    """resnet18 .. resnet152, or a timm model with five feature maps; its weights are frozen"""
    output_stride: int = 16
    """pixels per cell of the deepest feature map"""
    init: str = pretrained("imagenet")
    """weights of the backbone: `imagenet`, `classifier` (the network that produced the maps), or a file"""
    displacement: bool = True
    """also train displacements, which separate instances; without them this is the affinity network of the camera-ready CLIMS"""
    radius: int = 10
    """maximum distance of the two cells of a pair (exclusive)"""
    augment: AffinityAugment = AffinityAugment()
    """augmentation of training pictures and their labels"""
    # IRNet's PolyOptimizer passes its weight decay to SGD as momentum, so the published numbers were obtained with 1e-4
    training: Training = Training(batch=32, epochs=3, lr=0.1, weight_decay=1e-4, momentum=1e-4)
    """how the network is trained"""

    def __post_init__(self) -> None:
        check_range("refiner.network.radius", self.radius, 2)
        if self.init == "none":
            raise BadInput(
                "refiner.network.init",
                "`none`, but the backbone is frozen",
                "`imagenet`, `classifier` or a file",
                "Give it pretrained weights.",
            )

    def check(self, classifier: Path | Backbone | None = None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs."""
        with torch.device("meta"):
            network = IRNet(self.backbone, output_stride=self.output_stride, displacement=self.displacement)
        if network.stride != _STRIDE or self.augment.label_stride != _STRIDE:
            raise BadInput(
                "refiner.network",
                f"{self.backbone} with maps at stride {network.stride}, and labels at {self.augment.label_stride}",
                f"{_STRIDE} for both, as the activation maps have",
                "Choose a backbone whose second feature has stride 4, and set label_stride to 4.",
            )
        minimum = max(self.output_stride, _STRIDE * (2 * self.radius - 1))
        if self.augment.crop % self.output_stride or self.augment.crop < minimum:
            raise BadInput(
                "refiner.network.augment.crop",
                str(self.augment.crop),
                f"a multiple of {self.output_stride}, and at least {minimum} for pairs of radius {self.radius}",
                "Change it, or the radius.",
            )
        check_initial("refiner.network.init", network.body, self.backbone, self.init, classifier)

    def trainable(self, images: Images, labels: Path) -> "IRNetObjective":
        """The network and its losses on the confident labels of the folder `labels`."""
        self.check()
        if not any(_is_confident(read_mask(labels / f"{name}.png"), images.n_labels) for name in images.names):
            raise BadInput(
                labels,
                f"{len(images)} label maps without a single pixel confidently labelled as a class",
                "some such pixels to train on",
                "Lower the threshold of the labels (refiner.labels.threshold), or check the maps.",
            )
        network = IRNet(self.backbone, output_stride=self.output_stride, displacement=self.displacement)
        load_backbone(network.body, self.backbone, self.init)
        return IRNetObjective(self, network, images, labels)


def _is_confident(label: np.ndarray, n_labels: int) -> bool:
    return bool(((label > 0) & (label < n_labels)).any())


class IRNetObjective(Objective):
    """The losses over the pairs of cells of all processes."""

    def __init__(self, settings: IRNetTraining, network: IRNet, images: Images, labels: Path) -> None:
        metadata = {
            "kind": KIND,
            "backbone": settings.backbone,
            "output_stride": settings.output_stride,
            "displacement": settings.displacement,
            "classes": list(images.class_names),
        }
        examples = partial(_example, images, labels, settings.augment)
        super().__init__(network, examples, metadata, network.param_groups)
        self.losses = partial(
            irnet_losses,
            n_labels=images.n_labels,
            radius=settings.radius,
            over_processes=launch.mean_over_processes,
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms."""
        return self.losses(self.network(batch["image"]), batch["label"])


def _example(
    images: Images, labels: Path, augment: AffinityAugment, index: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    image, label = images.read_with(labels, index)
    view, label = augment(image, label, rng)
    return {"image": torch.from_numpy(view), "label": torch.from_numpy(label.astype(np.int64))}


@dataclasses.dataclass(frozen=True)
class IRNetWalk:
    """The random walk of the maps."""

    radius: int = 5
    """maximum distance of a step in cells (exclusive)"""
    beta: float = 10.0
    """exponent of the affinities"""
    doublings: int = 8
    """base-2 logarithm of the number of steps"""
    pad_to: int = 512
    """smaller pictures are padded with the mean colour to this number of pixels: 512 in IRNet, 0 in CLIMS and QA-CLIMS"""

    def __post_init__(self) -> None:
        check_range("walk.radius", self.radius, 2)
        for name in ("beta", "doublings", "pad_to"):
            check_range(f"walk.{name}", getattr(self, name), 0)


def load(weights: Path) -> IRNet:
    """A trained network on the device, from a stage folder or a published checkpoint (`res50_irn.pth`, `AffinityNet@ResNet50.pth`)."""
    state, metadata, path = trained_weights(weights, KIND)
    if metadata is None:
        displacement = any(name.startswith("fc_dp") for name in state)
        network = IRNet(displacement=displacement)
        load_into(network, network.named(state), path, ignore=IRNET_ALIASES)
    else:
        settings = {key: metadata[key] for key in ("output_stride", "displacement")}
        network = IRNet(metadata["backbone"], **settings)
        load_into(network, state, path)
    return network.to(launch.device()).eval()


def walked(maps: Float[Tensor, "k h w"], edge: Float[Tensor, "h w"], settings: IRNetWalk) -> Float[Tensor, "k h w"]:
    """Maps after the random walk: they are set to 0 on the edges, then spread between cells that no edge separates."""
    planes = path_affinity_planes(edge, settings.radius)
    return random_walk(
        maps * (1 - edge), planes, directions(settings.radius), beta=settings.beta, steps=2**settings.doublings
    )


def enlarged(maps: Float[Tensor, "k h w"], stride: int, size_hw: tuple[int, int]) -> Float[Tensor, "k hp wp"]:
    """Maps at the picture's size, divided by the maximum over all of them; maps that are 0 everywhere stay 0."""
    if len(maps) == 0:
        return maps.new_zeros(0, *size_hw)
    full = F.interpolate(maps[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    full = full[:, : size_hw[0], : size_hw[1]]
    # the published code divides 0 by 0 for such maps
    return full / full.max().clamp_min(torch.finfo(full.dtype).tiny)


class _Loaded(NamedTuple):
    """The picture as input of the network, and its maps, one cell per stride."""

    view: Float[Tensor, "3 h w"]
    classes: Int[np.ndarray, " k"]
    maps: Float[Tensor, "k hs ws"]


def _loaded(images: Images, cams: Path, stride: int, index: int) -> _Loaded:
    image = images.read(index)
    classes, maps = read_matching_cams(images, cams, index, image.shape[:2], stride)
    return _Loaded(torch.from_numpy(normalise(image)), classes, torch.from_numpy(maps))


# bytes a pixel of the maps of a class, before and after the walk
_OF_CLASS = 20


def walk_needs(spread: IRNetWalk, images: Images, network: IRNet, of_class: float = _OF_CLASS) -> Callable[[int], int]:
    """The `needs` of `wsss.stages.each.for_each_picture` for a walk.

    Args:
        spread: of the walk.
        images: the pictures.
        network: in evaluation mode.
        of_class: bytes a pixel of the maps of a class.
    """
    passes = Passes(network, network, 2)
    planes = 12 * len(directions(spread.radius)) / network.stride**2

    def bytes_for(index: int, size_hw: tuple[int, int]) -> float:
        pixels = math.prod(size_hw)
        # the network sees the picture and its mirror image, both padded
        seen = math.prod(max(side, spread.pad_to) for side in size_hw)
        views = 12 * pixels + 48 * seen
        passing = passes.whole(seen, memory.budget() - views)
        return views + max(passing, pixels * planes) + pixels * (10 + of_class * len(images.classes(index)))

    return within_budget(images, bytes_for, ", or shrink the picture")


@stage(kind="walk", makes="maps", title="IRNet")
def walk(settings: IRNetWalk, images: Images, *, cams: Path, weights: Path, out: Path) -> dict[str, int]:
    """Write the maps `NAME.npz` after the walk, with maximum 1 over all classes; pictures with an existing file are skipped.

    Args:
        settings: of the walk.
        images: the pictures.
        cams: folder of their activation maps, with maps at a quarter of the size.
        weights: folder of the trained network, or a published checkpoint.
        out: the stage's folder.

    Raises:
        BadInput: maps without `maps_stride4`, or of pictures of another size.
    """
    network = for_inference(load(weights))

    def compute(_: int, loaded: _Loaded) -> tuple[np.ndarray, np.ndarray]:
        size_hw = (loaded.view.shape[1], loaded.view.shape[2])
        edge = boundaries(network, loaded.view.to(launch.device()), settings.pad_to).edge
        spread = walked(loaded.maps.to(edge), edge, settings)
        return loaded.classes, enlarged(spread, network.stride, size_hw).cpu().numpy()

    def write(path: Path, made: tuple[np.ndarray, np.ndarray]) -> None:
        write_cams(path, *made)

    load_one = partial(_loaded, images, cams, network.stride)
    needs = walk_needs(settings, images, network)
    for_each_picture(images, out, ".npz", load_one, compute, write, title=f"walk {out.name}", needs=needs)
    return {"images": len(images)}


@stage(kind="centre", makes="weights", title="IRNet")
def centre(images: Images, *, weights: Path, crop: int, batch: int, out: Path) -> dict[str, list[float]]:
    """Write the weights with the mean displacement of the pictures, which is needed to find instances.

    Args:
        images: IRNet uses those of `train`, CLIMS those of `train_aug`.
        weights: folder of the trained network.
        crop: pixels from the top left corner; 512 as published.
        batch: crops per batch; an incomplete last batch is dropped, as published, unless it is the only one.
        out: the stage's folder.

    Raises:
        BadInput: the network has no displacements.
    """
    network = load(weights)
    if not network.displacement:
        raise BadInput(weights, "a network without displacements", "one with them", _TRAIN_DISPLACED)
    size = min(batch, len(images))
    starts = launch.share(range(0, len(images) - size + 1, size))

    def read(index: int) -> Float[np.ndarray, "3 crop crop"]:
        image = images.read(index)
        return crop_picture(top_left(image.shape[:2], crop), image)

    def views() -> Iterator[Tensor]:
        with Progress(f"centre {out.name}", len(starts), resumable=False) as progress:
            for start in starts:
                crops = in_threads(read, range(start, start + size), threads=launch.threads())
                yield torch.from_numpy(np.stack(list(crops))).to(launch.device())
                progress.advance()

    mean = network.mean_displacement(views(), over_processes=launch.mean_over_processes)
    network.mean_shift.running_mean.copy_(mean)
    _, metadata, _ = trained_weights(weights, KIND)
    if launch.is_first():
        write_weights(out / WEIGHTS, network.state_dict(), metadata or {"kind": KIND, **_PUBLISHED})
    return {"mean_displacement": mean.tolist()}


_PUBLISHED = {"backbone": "resnet50", "output_stride": 16, "displacement": True}


@dataclasses.dataclass(frozen=True)
class Instances:
    """How instances are separated."""

    threshold: float = 0.25
    """background threshold of the walked maps of the instances"""
    smallest: float = 0.01
    """fragments smaller than this fraction of the picture are dropped"""
    crop: int = 512
    """crop of the pictures for the mean displacement"""
    batch: int = 32
    """pictures per batch for the mean displacement; an incomplete last batch is dropped, as published"""

    def __post_init__(self) -> None:
        check_range("instances.threshold", self.threshold, 0, 1)
        check_range("instances.smallest", self.smallest, 0, 1)
        check_range("instances.crop", self.crop, 1)
        check_range("instances.batch", self.batch, 1)


@stage(kind="instances", makes="instances", title="IRNet")
def find_instances(
    settings: Instances, spread: IRNetWalk, images: Images, *, cams: Path, weights: Path, out: Path
) -> dict[str, int]:
    """Write instances: for each picture a map `NAME.png` and `NAME.json`, and for all pictures `coco_results.json`.

    In the map, a pixel's label is the number of its instance (1 for the first in the file, 0 for none). The JSON files hold lists of
    COCO results: `image_id` (COCO's number if the name contains one, otherwise the name), `category_id` (COCO's for the classes of
    COCO, otherwise 1 for the first class), `segmentation` (run lengths), `bbox` and `score`, with the highest score first.

    Args:
        settings: of the instances.
        spread: of the walk.
        images: the pictures.
        cams: folder of their activation maps.
        weights: folder of the centred network (`centre`), or a published checkpoint.
        out: the stage's folder.

    Raises:
        BadInput: the network has no displacements, or the maps do not match the pictures.
    """
    network = for_inference(load(weights))
    if not network.displacement:
        raise BadInput(weights, "a network without displacements", "one with them", _TRAIN_DISPLACED)

    def compute(index: int, loaded: _Loaded) -> tuple[int, Detections]:
        return index, instances(network, loaded.view, loaded.classes, loaded.maps, settings, spread)

    def write(path: Path, made: tuple[int, Detections]) -> None:
        _write_instances(path, images, *made)

    load_one = partial(_loaded, images, cams, network.stride)
    # a map is split into those of several instances
    needs = walk_needs(spread, images, network, 4 * _OF_CLASS)
    for_each_picture(images, out, ".json", load_one, compute, write, title=f"instances {out.name}", needs=needs)
    launch.wait()
    if launch.is_first():
        results = [result for name in images.names for result in read_json(out / f"{name}.json", "instances")]
        write_json(out / "coco_results.json", results)
    return {"images": len(images)}


def instances(
    network: IRNet,
    view: Float[Tensor, "3 h w"],
    classes: Int[np.ndarray, " k"],
    maps: Float[Tensor, "k hs ws"],
    settings: Instances,
    spread: IRNetWalk,
) -> Detections:
    """The instances of a picture, with the highest score first.

    Each map is split by the displacements into maps of single instances. After the random walk, a pixel belongs to the instance with the
    highest map above the threshold. As published, each connected fragment becomes an instance.
    """
    edge, displacement = boundaries(network, view.to(launch.device()), spread.pad_to)
    assert displacement is not None
    parts = split_cams(maps.numpy(), instance_map(displacement.cpu().numpy()))
    flat = torch.from_numpy(parts.reshape(-1, *parts.shape[2:])).to(edge)
    size_hw = (view.shape[1], view.shape[2])
    full = enlarged(walked(flat, edge, spread), network.stride, size_hw).cpu().numpy()
    best = np.concatenate([np.full((1, *size_hw), settings.threshold, np.float32), full]).argmax(0)
    present = np.flatnonzero(np.bincount(best.ravel(), minlength=len(full) + 1)[1:])
    found = detections(
        full[present],
        best == 1 + present[:, None, None],
        np.repeat(classes, parts.shape[1])[present],
        settings.smallest * best.size,
    )
    order = [i for i in np.argsort(-found.scores, kind="stable") if found.scores[i] > 0]
    return Detections(found.scores[order], found.masks[order], found.classes[order])


def _write_instances(path: Path, images: Images, index: int, found: Detections) -> None:
    name = images.names[index]
    number = re.fullmatch(r"(?:COCO_[a-z]+\d+_)?(\d{12})", Path(name).name)
    categories = {label: category for category, label in COCO_CATEGORIES.items()}
    results = []
    # 255 means "ignore" in a mask file, so it cannot number an instance
    drawn = np.zeros(found.masks.shape[1:], np.uint8)
    for position, (score, mask, label) in enumerate(zip(*found, strict=True)):
        if position < IGNORE - 1:
            drawn[mask] = position + 1
        run_lengths = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        results.append(
            {
                "image_id": int(number[1]) if number else name,
                "category_id": categories[images.class_names[label]]
                if set(images.class_names) == set(categories)
                else int(label) + 1,
                "segmentation": {"size": list(run_lengths["size"]), "counts": run_lengths["counts"].decode("ascii")},
                "bbox": coco_mask.toBbox(run_lengths).tolist(),
                "score": float(score),
            }
        )
    write_mask(path.with_name(f"{path.name.removesuffix('.json')}.png"), drawn)
    write_json(path, results, sync="file")


@dataclasses.dataclass(frozen=True)
class IRNetSettings:
    """Pseudo masks with IRNet."""

    kind: Literal["irnet"] = "irnet"
    """IRNet: a random walk that stops at object boundaries; the boundary network is trained on labels from the maps"""
    labels: MaskSettings = MaskSettings(by="crf", threshold="otsu", lower="otsu")
    """confident labels made from the maps; published: 0.30 and 0.05 on VOC, for CLIMS 0.30 and 0.10, and on COCO 0.35 and 0.10"""
    network: IRNetTraining = IRNetTraining()
    """the network trained on the labels"""
    weights: str = pretrained("none")
    """a trained network, such as res50_irn.pth; `none` trains one"""
    walk: IRNetWalk = IRNetWalk()
    """the random walk of the maps"""
    instances: Instances = Instances()
    """instances, if they are requested"""
    masks: MaskSettings = MaskSettings(by="threshold", threshold="otsu_sqrt")
    """pseudo masks from the walked maps; published: a threshold of 0.25 on VOC, for CLIMS 0.20"""

    def check(self, classifier: Path | Backbone | None, scored: Background | None = None) -> None:
        """See `wsss.refiners.task.Refiner`."""
        self.labels.check_rule("refiner.labels", scored)
        # walked maps are scored with a constant, however the maps are
        self.masks.check_rule("refiner.masks", scored and "constant")
        if self.weights == "none":
            self.network.check(classifier)
        else:
            load(Path(self.weights))

    def refined(self, task: RefinementTask) -> Path:
        """Make the pseudo masks, and return their folder; labels, network and walked maps are next to it."""
        weights = self._trained(task)
        after = walk(self.walk, task.images, cams=task.cams, weights=weights, out=task.folder("irnet-walk"))
        scores = task.trained / "irnet-walk-scores" if task.trained is not None else None
        if task.scored is not None:
            scores = evaluate_cams(
                task.scores.of_constants(), task.scored, cams=after, out=task.folder("irnet-walk-scores")
            )
        thresholds = task.thresholds(self.masks.rule, after, "irnet-walk", scores)
        return refine(self.masks, task.images, cams=after, thresholds=thresholds, out=task.folder("masks"))

    def instances_of(self, task: RefinementTask) -> Path:
        """Find the instances, and return their folder, `out/instances`; labels and networks are next to it."""
        weights = self._trained(task)
        network = load(weights)
        # published weights include their mean displacement
        if network.displacement and not network.mean_shift.running_mean.any():
            crop, batch = self.instances.crop, self.instances.batch
            weights = centre(task.images, weights=weights, crop=crop, batch=batch, out=task.folder("irnet-centred"))
        out = task.folder("instances")
        return find_instances(self.instances, self.walk, task.images, cams=task.cams, weights=weights, out=out)

    def _trained(self, task: RefinementTask) -> Path:
        if self.weights != "none":
            return Path(self.weights)
        if task.trained is not None:
            return task.trained / "irnet"
        network = started_from(self.network, "refiner.network.init", task.classifier)
        thresholds = task.thresholds(self.labels.rule, task.cams, "cams", task.cams_scores)
        labels = refine(
            self.labels, task.images, cams=task.cams, thresholds=thresholds, out=task.folder("irnet-labels")
        )
        return train(network, task.images, labels=labels, out=task.folder("irnet"))
