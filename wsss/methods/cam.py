"""Learning deep features for discriminative localization (class activation maps; Zhou et al., CVPR 2016).

As the baseline of IRNet (Ahn et al., CVPR 2019), which CLIMS and QA-CLIMS start from: a classifier with global average
pooling and one 1x1 convolution w, whose maps are M_c(x, y) = w_c · f(x, y), without the pooling.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from wsss import launch
from wsss.data.augment import (
    SMALLEST_SCALE,
    ClassifierAugment,
    ColourRule,
    JitteredAugment,
    normalise,
    resize_bicubic,
    scaled_size,
)
from wsss.data.images import Dataset, Images
from wsss.errors import BadInput, check_range
from wsss.methods import high_fidelity
from wsss.methods.high_fidelity import HighFidelity
from wsss.networks.backbone import create_backbone, freeze_batch_norm
from wsss.recipe import Tail, finish
from wsss.run import maybe_file
from wsss.stages.localize import Cams, localize
from wsss.stages.train import Training, train
from wsss.weights import IRNET_ALIASES, WEIGHTS, load_backbone, load_into, trained_weights, write_weights


@dataclasses.dataclass(frozen=True)
class CAMSettings:
    """The classifier that maps are taken from."""

    backbone: str = "resnet50"
    """resnet18 .. resnet152, or any timm model that gives features"""
    output_stride: int = 16
    """pixels a cell of the maps"""
    init: str = maybe_file("imagenet")
    """initial weights of the backbone: `imagenet`, `none`, or a file"""
    frozen: Literal["auto", "nothing", "stem", "stages"] = "auto"
    """what keeps its weights, and all batch-norm statistics with it: stem and two stages (IRNet) or the stem (CLIMS); auto: nothing if new"""
    classifier_lr: float = 10.0
    """learning rate of the classifier, times that of the body"""
    augment: ClassifierAugment = ClassifierAugment()
    """what training pictures go through"""
    colours: Literal["imagenet", "clip"] = "imagenet"
    """mean and deviation that pictures are normalised by; clip is that of the camera-ready CLIMS"""
    high_fidelity: HighFidelity = HighFidelity()
    """importance sampling and feature similarity, as the follow-up of ICAM adds them to a method; by default neither"""
    # IRNet's PolyOptimizer hands its weight decay to SGD's momentum: 1e-4 is what the published numbers were made with
    training: Training = Training(batch=16, epochs=5, lr=0.1, weight_decay=1e-4, momentum=1e-4)
    """how the network is trained"""

    @property
    def kept(self) -> str:
        """What stays as it was given."""
        return self.frozen if self.frozen != "auto" else "nothing" if self.init == "none" else "stages"

    def trainable(self, images: Images) -> "CAMObjective":
        """The network with new or given weights, and its loss."""
        network = CAMNetwork(self.backbone, len(images.class_names), self.output_stride)
        if self.init != "none":
            load_backbone(network.body, self.backbone, self.init)
        return CAMObjective(self, network, images)


@dataclasses.dataclass(frozen=True)
class MultiScale:
    """The views of a picture whose maps are added up."""

    # in this order in IRNet, which adds the maps up one after the other
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """sizes of the picture whose maps are added"""
    flip: bool = True
    """add the maps of the mirror image"""

    def __post_init__(self) -> None:
        check_range("inference.scales", self.scales, SMALLEST_SCALE)


@dataclasses.dataclass(frozen=True)
class CAMInference(MultiScale):
    """How maps are taken from the classifier."""

    def localizer(self, images: Images, weights: Path) -> "CAMLocalizer":
        """A trained classifier, ready to give maps: of a stage folder, or a published checkpoint (`res50_cam.pth`).

        Raises:
            BadInput: the weights are of another network, or of other classes than the pictures have.
        """
        network, metadata = load(weights, images)
        return CAMLocalizer(network.to(launch.device()).eval(), self, metadata["colours"])


def load(weights: Path, images: Images) -> tuple["CAMNetwork", dict[str, Any]]:
    """A trained classifier on the CPU, and what is known of it: `backbone`, `output_stride`, `classes`, `colours`.

    Args:
        weights: a stage's folder, its file, or a published checkpoint.
        images: the pictures that it is for.

    Raises:
        BadInput: the weights are of another network, or of other classes than the pictures have.
    """
    state, metadata, path = trained_weights(weights, "cam")
    if metadata is None:
        metadata = _published(state, images, path)
    check_classes(path, metadata["classes"], images)
    network = CAMNetwork(metadata["backbone"], len(metadata["classes"]), metadata["output_stride"])
    load_into(network, state, path, ignore=metadata.get("ignore", ()))
    return network, metadata


def check_classes(path: Path, classes: Sequence[str], images: Images) -> None:
    """Raise BadInput unless the classes of a network are those of the pictures."""
    if tuple(classes) != images.class_names:
        raise BadInput(
            path,
            f"a classifier of {_listed(classes)}",
            f"the classes of {images.title}: {_listed(images.class_names)}",
            "Use the data set that it was trained on, or give its class list with --classes.",
        )


def _published(state: Mapping[str, Tensor], images: Images, path: Path) -> dict[str, Any]:
    """What a checkpoint of IRNet's family is; it says nothing itself, and its classes are the data set's in order."""
    body = next((match[1] for name in state if (match := re.match(r"(resnet\d+)\.conv1\.", name))), None)
    head = state.get("classifier.weight")
    if body is None or head is None or len(head) != len(images.class_names):
        raise BadInput(
            path,
            f"no ResNet with a classifier (first tensors: {', '.join(list(state)[:3])})"
            if body is None or head is None
            else f"a classifier of {len(head)} classes",
            f"resnet50.* and classifier.weight for {len(images.class_names)} classes, as IRNet's res50_cam.pth has",
            "Give a checkpoint of this network and data set.",
        )
    return {
        "backbone": body,
        "output_stride": 16,
        "classes": list(images.class_names),
        "colours": "imagenet",
        "ignore": IRNET_ALIASES,
    }


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


class CAMNetwork(nn.Module):
    """Backbone, and a 1x1 convolution as the classifier.

    Entries of the state dict are IRNet's: `resnet50.*` (or the other ResNet's name; `backbone.*` for timm's models)
    and `classifier.weight`.
    """

    def __init__(self, backbone: str, n_classes: int, output_stride: int = 16) -> None:
        super().__init__()
        body = create_backbone(backbone, output_stride)
        self.body_name = backbone if backbone.startswith("resnet") and hasattr(body, "layer4") else "backbone"
        self.add_module(self.body_name, body)
        # PyTorch's default initialisation, as in IRNet
        self.classifier = nn.Conv2d(body.channels[-1], n_classes, 1, bias=False)

    @property
    def body(self) -> Any:
        """The backbone."""
        return self.get_submodule(self.body_name)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Logits of the classes."""
        pooled = self.body(image)[-1].mean((2, 3), keepdim=True)
        return self.classifier(pooled)[:, :, 0, 0]

    def maps(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hs ws"]:
        """Raw class activation maps M, before ReLU."""
        return self.classifier(self.body(image)[-1])


class CAMObjective(nn.Module):
    """Multi-label soft margin: the mean over pictures and classes of the binary cross entropy with logits; and `high_fidelity`, if set."""

    def __init__(self, settings: CAMSettings, network: CAMNetwork, images: Images) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        self.examples = partial(example, images, settings.augment, settings.colours)
        if shape := settings.high_fidelity.draws(len(images.class_names)):
            self.examples = partial(high_fidelity.with_draws, self.examples, shape)
        self.metadata: dict[str, Any] = {
            "kind": "cam",
            "backbone": settings.backbone,
            "output_stride": settings.output_stride,
            "classes": list(images.class_names),
            "colours": settings.colours,
        }
        freeze(network.body, settings.kept)

    def train(self, mode: bool = True) -> "CAMObjective":
        super().train(mode)
        if self.settings.kept != "nothing":
            freeze_batch_norm(self.network)
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        image, tags, chosen = batch["image"], batch["label"], self.settings.high_fidelity
        if not (chosen.importance or chosen.similarity):
            return {"classification": F.multilabel_soft_margin_loss(self.network(image).float(), tags)}
        logits = self.network.maps(image).float()
        return high_fidelity.losses(chosen, logits, tags, batch.get("draws"), image, self.settings.colours)

    def write(self, out: Path) -> None:
        write_weights(out / WEIGHTS, self.network.state_dict(), self.metadata)

    def param_groups(self, training: Training) -> list[dict[str, Any]]:
        return param_groups(self.network, training, self.settings.classifier_lr)


def freeze(body: Any, kept: str) -> None:
    """Let a backbone's `stem`, or stem and two `stages`, keep their weights."""
    if kept == "nothing":
        return
    # IRNet detaches the output of layer2 (stride 8), so nothing before layer3 learns; CLIMS dropped that
    last = body.strides.index(8) if kept == "stages" and 8 in body.strides else 0
    for parameter in body.parameters_until(last):
        parameter.requires_grad_(False)


def param_groups(network: CAMNetwork, training: Training, classifier_lr: float) -> list[dict[str, Any]]:
    """What learns of the body, and the classifier, whose learning rate is `classifier_lr` times as high."""
    body = [parameter for parameter in network.body.parameters() if parameter.requires_grad]
    decay = training.weight_decay
    return [
        {"params": body, "lr": training.lr, "weight_decay": decay},
        {
            "params": list(network.classifier.parameters()),
            "lr": training.lr * classifier_lr,
            "weight_decay": decay,
        },
    ]


def example(
    images: Images,
    augment: ClassifierAugment | JitteredAugment,
    colours: ColourRule,
    index: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """A view of a picture (3, crop, crop), and its tags (c,), 0 or 1."""
    return {
        "image": torch.from_numpy(augment(images.read(index), rng, colours)),
        "label": torch.from_numpy(images.labels[index].astype(np.float32)),
    }


@runtime_checkable
class Classifier(Protocol):
    """A network that maps can be taken from."""

    def maps(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hs ws"]:
        """Raw class activation maps M, before ReLU."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of its weights."""


def at_scales(
    image: UInt8[np.ndarray, "h w 3"], scales: Sequence[float], colours: ColourRule = "imagenet"
) -> list[Float[Tensor, "1 3 _ _"]]:
    """A picture at each scale, normalised."""
    sizes = [scaled_size(image.shape[:2], scale) for scale in scales]
    return [torch.from_numpy(normalise(resize_bicubic(image, size), colours))[None] for size in sizes]


class CAMLocalizer:
    """Maps of the classes that a picture has, over scales and mirror images.

    The maps of one scale are ReLU(M(I)) + mirrored ReLU(M(mirrored I)). They are resized (bilinear, align_corners
    False), added up over the scales, cut to the picture, and divided by (their maximum + 1e-5), class by class.

    Args:
        network: on the device.
        settings: scales, and whether mirror images count.
        colours: of the network.
        fuse: another than the sum of the maps of a picture and of its mirror image.
        multiple: maps are made at multiples of so many pixels, then cut.
    """

    def __init__(
        self,
        network: Classifier,
        settings: MultiScale,
        colours: ColourRule = "imagenet",
        *,
        fuse: Callable[[Tensor, Tensor], Tensor] = torch.add,
        multiple: int = 16,
    ) -> None:
        self.network, self.settings, self.colours = network, settings, colours
        self.fuse, self.multiple = fuse, multiple

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> list[Float[Tensor, "1 3 _ _"]]:
        """The picture at each scale."""
        return at_scales(image, self.settings.scales, self.colours)

    @torch.inference_mode()
    def cams(
        self, views: list[Float[Tensor, "1 3 _ _"]], size_hw: tuple[int, int], label: Bool[np.ndarray, " c"]
    ) -> Cams:
        """Maps in [0, 1] of the classes in `label`: at the picture's size, and at a quarter of it."""
        present = torch.from_numpy(np.flatnonzero(label))
        height, width = size_hw
        quarter = (-(-height // 4), -(-width // 4))
        whole = tuple(-(-side // self.multiple) * self.multiple for side in size_hw)
        strided = torch.zeros(len(present), *quarter)
        full = torch.zeros(len(present), *whole)
        if len(present) == 0:
            return Cams(present.numpy(), full[:, :height, :width].numpy(), strided.numpy())
        device = next(self.network.parameters()).device
        strided, full = strided.to(device), full.to(device)
        for view in views:
            view = view.to(device)
            pair = torch.cat([view, view.flip(3)]) if self.settings.flip else view
            raw = self.network.maps(pair).relu()[:, present]
            fused = self.fuse(raw[:1], raw[1:].flip(3)) if self.settings.flip else raw
            strided += F.interpolate(fused, quarter, mode="bilinear", align_corners=False)[0]
            full += F.interpolate(fused, whole, mode="bilinear", align_corners=False)[0]
        return Cams(
            present.numpy(),
            _over_maximum(full[:, :height, :width]).cpu().numpy(),
            _over_maximum(strided).cpu().numpy(),
        )


def _over_maximum(maps: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
    return maps / (maps.amax((1, 2), keepdim=True) + 1e-5)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Class activation maps, refined by a dense CRF, teach a segmenter."""

    classifier: CAMSettings = CAMSettings()
    """the classifier"""
    inference: CAMInference = CAMInference()
    """the maps"""
    tail: Tail = Tail()
    """pseudo masks, segmenter and scores"""


def recipe(run: Path, data: Dataset, settings: Recipe) -> None:
    """Tags -> classifier -> maps -> pseudo masks -> segmenter -> scores, each in a folder of `run`."""
    settings.tail.check(classifier=True)
    images = data.split(data.train)
    classifier = train(settings.classifier, images, out=run / "classifier")
    cams = localize(settings.inference, images, weights=classifier, out=run / "cams")
    finish(run, data, cams, settings.tail, classifier)
