"""The CAM classifier, and code shared by the methods that train a classifier.

The network is that of IRNet (Ahn et al., CVPR 2019), from which CLIMS and QA-CLIMS start: a backbone, global average pooling, and a 1x1
convolution w. Its class activation maps are M_c(x, y) = w_c · f(x, y), computed without the pooling.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss import memory
from wsss.arrays import Bool, Float, UInt8
from wsss.data.augment import (
    SMALLEST_SCALE,
    ClassifierAugment,
    ColourRule,
    JitteredAugment,
    normalise,
    resize_bicubic,
    scaled_size,
)
from wsss.data.grids import Grids
from wsss.data.images import Images
from wsss.errors import BadInput, check_range
from wsss.loading import load_into
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Backbone
from wsss.networks.irnet import IRNET_ALIASES
from wsss.networks.receptive import Tiles, tiled
from wsss.objective import Objective, body_and_head
from wsss.precision import Precision, at_least_single, mixed
from wsss.registry import no_baseline
from wsss.run import pretrained, unrecorded
from wsss.stages.localize import Cams, SummedCams, number_together
from wsss.weights import State, trained_weights

KIND, BASELINE = "cam", "baseline"


class CAMNetwork(nn.Module):
    """A backbone with a 1x1 convolution as the classifier.

    The state dict has IRNet's names: `resnet50.*` (or the name of the ResNet used; `backbone.*` for timm models)
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
    def body(self) -> Backbone:
        """The backbone."""
        return cast(Backbone, self.get_submodule(self.body_name))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Logits of the classes."""
        pooled = self.body(image)[-1].mean((2, 3), keepdim=True)
        return self.classifier(pooled)[:, :, 0, 0]

    def feature_maps(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The feature maps of the backbone's stages, the deepest last."""
        return self.body(image)

    def maps(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hs ws"]:
        """Raw class activation maps M, before ReLU."""
        return self.classifier(self.body(image)[-1])


N = TypeVar("N", bound=CAMNetwork)


@dataclasses.dataclass(frozen=True)
class ClassifierWeights:
    """The weights of a trained classifier.

    Attributes:
        state: the state dict.
        metadata: as saved with the weights; for a published file, derived from its tensors.
        published: whether the file was written by another program.
        path: the file.
    """

    state: State
    metadata: Mapping[str, Any]
    published: bool
    path: Path


def trained_classifier(
    weights: Path, images: Images, kind: str, recognise: Callable[[State, Images, Path], Mapping[str, Any]]
) -> ClassifierWeights:
    """Read the weights of a trained classifier.

    Args:
        weights: a stage folder, its weights file, or a published checkpoint.
        images: the pictures that the classifier will be applied to.
        kind: the `kind` that the metadata of our own files must have.
        recognise: derives the metadata of a published file from its tensors.

    Raises:
        BadInput: the weights belong to another network, or their classes are not those of the pictures.
    """
    state, metadata, path = trained_weights(weights, kind)
    loaded = ClassifierWeights(state, metadata or recognise(state, images, path), metadata is None, path)
    check_classes(path, loaded.metadata["classes"], images)
    return loaded


def load(weights: Path, images: Images) -> tuple[CAMNetwork, Mapping[str, Any]]:
    """A trained CAM network on the CPU, and its metadata: `backbone`, `output_stride`, `classes`, `colours`.

    Args:
        weights: a stage folder, its weights file, or a published checkpoint such as `res50_cam.pth`.
        images: the pictures that the network will be applied to.

    Raises:
        BadInput: the weights belong to another network, or their classes are not those of the pictures.
    """
    return load_as(CAMNetwork, KIND, weights, images)


def load_as(network: type[N], kind: str, weights: Path, images: Images) -> tuple[N, Mapping[str, Any]]:
    """As `load`, for a subclass with additional layers; its own files have this `kind`."""
    loaded = trained_classifier(weights, images, kind, _published)
    return cam_network(network, loaded), loaded.metadata


def cam_network(network: type[N], loaded: ClassifierWeights, new: Sequence[str] = ()) -> N:
    """A CAM network with these weights, on the CPU.

    Args:
        network: the class of the network.
        loaded: the weights.
        new: patterns of tensor names that the weights may lack; these tensors keep their initial values.

    Raises:
        BadInput: the weights belong to another network.
    """
    metadata = loaded.metadata
    instance = network(metadata["backbone"], len(metadata["classes"]), metadata["output_stride"])
    load_into(instance, loaded.state, loaded.path, ignore=metadata.get("ignore", ()), allow_missing=new)
    return instance


def check_classes(path: Path, classes: Sequence[str], images: Images) -> None:
    """Raise BadInput unless the classes of a network are those of the pictures, in the same order."""
    if tuple(classes) != images.class_names:
        raise BadInput(
            path,
            f"a classifier of {_listed(classes)}",
            f"the classes of {images.title}: {_listed(images.class_names)}",
            "Use the dataset that it was trained on, or give its class list with --classes.",
        )


def _published(state: State, images: Images, path: Path) -> dict[str, object]:
    """Metadata of a published checkpoint with IRNet's names. It holds no class names: they are taken to be those of the dataset, in order."""
    body = next((match[1] for name in state if (match := re.match(r"(resnet\d+)\.conv1\.", name))), None)
    head = state.get("classifier.weight")
    if body is None or head is None or len(head) != len(images.class_names):
        raise BadInput(
            path,
            f"no ResNet with a classifier (first tensors: {', '.join(list(state)[:3])})"
            if body is None or head is None
            else f"a classifier of {len(head)} classes",
            f"resnet50.* and classifier.weight for {len(images.class_names)} classes, as IRNet's res50_cam.pth has",
            "Give a checkpoint of this network and dataset.",
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


@dataclasses.dataclass(frozen=True)
class FromBaseline:
    """Settings of a method that fine-tunes a baseline, which a run trains first."""

    init: str = pretrained(BASELINE)
    """classifier to start from: `baseline`, which `wsss run` trains first, or a folder or file such as res50_cam.pth"""
    frozen: Literal["stem", "stages", "nothing"] = "stem"
    """layers of the backbone whose weights are frozen: stages is the stem and the first two stages (IRNet), stem the stem only (CLIMS)"""
    classifier_lr: float = 10.0
    """learning rate of all layers outside the backbone, as a multiple of the backbone's"""
    colours: Literal["imagenet", "clip"] = "imagenet"
    """mean and standard deviation that pictures are normalised with, as in the training of `init`"""
    augment: ClassifierAugment = ClassifierAugment()
    """augmentation of training pictures"""

    @property
    def continued(self) -> Path | None:
        """The weights that the training starts from; None if the run trains them first."""
        return None if self.init == BASELINE else Path(self.init)


def load_baseline(
    network: type[N], method: str, settings: FromBaseline, images: Images, new: Sequence[str] = ()
) -> tuple[N, dict[str, Any]]:
    """The network that a method fine-tunes, with the weights of the baseline, and the metadata to write with its new weights.

    Args:
        network: class of the method's network.
        method: name of the method.
        settings: of the method.
        images: the training pictures.
        new: patterns of tensor names that the baseline lacks; these tensors keep their initial values.

    Raises:
        BadInput: no weights are given, they belong to another network, or their classes or `colours` differ.
    """
    check_baseline(settings.init, method)
    loaded = trained_classifier(Path(settings.init), images, KIND, _published)
    check_colours(settings.init, loaded.metadata["colours"], settings.colours)
    instance = cam_network(network, loaded, new)
    freeze(instance.body, settings.frozen)
    keys = ("backbone", "output_stride", "classes", "colours")
    # a network with additional layers is not a plain CAM network
    return instance, {"kind": method if new else KIND, **{key: loaded.metadata[key] for key in keys}}


def check_baseline(init: str, method: str) -> None:
    """Raise BadInput if a single training stage should start from the baseline, which only `wsss run` trains."""
    if init == BASELINE:
        raise no_baseline(method, BASELINE)


def check_colours(init: str, found: str, expected: str) -> None:
    """Raise BadInput if a network was trained on pictures that were normalised differently."""
    if found != expected:
        do = "Set `colours` to the same value in `baseline` and `classifier`."
        raise BadInput(init, f"weights trained with colours {found}", f"colours {expected}", do)


def freeze(body: Backbone, layers: str) -> None:
    """Freeze the weights of a backbone's `stem`, or of its stem and first two `stages`; or `nothing`."""
    if layers == "nothing":
        return
    # IRNet detaches the output of layer2 (stride 8), so nothing before layer3 is trained; CLIMS dropped that
    last = body.strides.index(8) if layers == "stages" and 8 in body.strides else 0
    for parameter in body.parameters_until(last):
        parameter.requires_grad_(False)


def example(
    images: Images,
    augment: ClassifierAugment | JitteredAugment,
    colours: ColourRule,
    index: int,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """A training example: an augmented picture, `image` (3, crop, crop), and its tags, `label` (c,), 0 or 1; both float32."""
    return {
        "image": torch.from_numpy(augment(images.read(index), rng, colours)),
        "label": torch.from_numpy(images.labels[index].astype(np.float32)),
    }


class TagSettings(Protocol):
    """Settings of a training on pictures and tags."""

    @property
    def augment(self) -> ClassifierAugment:
        """Augmentation of the pictures."""

    @property
    def colours(self) -> ColourRule:
        """How the pictures are normalised."""

    @property
    def classifier_lr(self) -> float:
        """Learning rate of all layers outside the backbone, as a multiple of the backbone's."""


S = TypeVar("S", bound=TagSettings)


class TagObjective(Objective, Generic[S, N]):
    """A CAM network trained on pictures and tags: a batch has `image` (b, 3, crop, crop) and `label` (b, c), 0 or 1.

    Args:
        settings: of the method.
        images: the training pictures.
        network: `requires_grad` of its frozen weights is already False.
        metadata: written with the weights; `kind` names the type of network.
        keep_statistics: freeze the running statistics of all batch norms.
    """

    network: N

    def __init__(
        self,
        settings: S,
        images: Images,
        network: N,
        metadata: dict[str, Any],
        *,
        keep_statistics: bool = False,
    ) -> None:
        examples = partial(example, images, settings.augment, settings.colours)
        groups = partial(body_and_head, network, settings.classifier_lr)
        super().__init__(network, examples, metadata, groups, keep_statistics=keep_statistics)
        self.settings, self.network = settings, network


@dataclasses.dataclass(frozen=True)
class MultiScale:
    """The views of a picture whose maps are summed."""

    # maps are stored with the grids that they were enlarged from
    from_grids: ClassVar[bool] = True
    # the order in which IRNet adds the maps
    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    """scales of the picture whose maps are added"""
    flip: bool = True
    """add the maps of the mirror image"""
    precision: Precision = "no"
    """precision of the network; `no` is float32"""
    batch: int = unrecorded(0)
    """pictures of equal size that the network computes together; 0: as many as make it faster, up to 8 on a GPU, and small ones on a CPU"""

    def __post_init__(self) -> None:
        check_range("inference.scales", self.scales, SMALLEST_SCALE)
        check_range("inference.batch", self.batch, 0)


@runtime_checkable
class Classifier(Protocol):
    """A network that computes class activation maps."""

    def feature_maps(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Feature maps (b, d, hs, ws), the deepest last."""

    def maps(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hs ws"]:
        """Raw class activation maps M, before ReLU."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""


def at_scales(
    image: UInt8[np.ndarray, "h w 3"], scales: Sequence[float], colours: ColourRule = "imagenet"
) -> list[Float[Tensor, "1 3 _ _"]]:
    """A picture at each scale, normalised."""
    sizes = [scaled_size(image.shape[:2], scale) for scale in scales]
    return [torch.from_numpy(normalise(resize_bicubic(image, size), colours))[None] for size in sizes]


# a picture at each scale: normalised, or RGB
Views = list[Float[Tensor, "1 3 _ _"]] | list[UInt8[np.ndarray, "_ _ 3"]]
# share of the memory budget that a tile takes
_OF_TILE = 0.25


class CAMLocalizer:
    """Computes the maps of the classes that a picture is tagged with, over several scales and mirror images.

    The maps at one scale are ReLU(M(I)) + mirrored ReLU(M(mirrored I)). They are resized (bilinear, align_corners
    False), summed over the scales, cropped to the picture, and divided by (their maximum + 1e-5), class by class.

    Args:
        network: on the device.
        settings: scales, and whether to include mirror images.
        colours: the normalisation that the network was trained with.
        fuse: combines the maps of a picture with those of its mirror image; by default their sum.
        multiple: maps are computed at the picture's size rounded up to a multiple of this number of pixels, then cropped.
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
        self._tiles = Tiles(cast(nn.Module, network), network.maps, 1 + settings.flip)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Views:
        """The picture at each scale: normalised, or as RGB if it is too large to be in the network as a whole."""
        if not self.in_tiles((image.shape[0], image.shape[1])):
            return at_scales(image, self.settings.scales, self.colours)
        return [resize_bicubic(image, scaled_size(image.shape[:2], scale)) for scale in self.settings.scales]

    def in_tiles(self, size_hw: tuple[int, int]) -> bool:
        """Whether the maps of a picture of this size are computed tile by tile, since the memory budget does not allow otherwise."""
        return self._whole(size_hw) > memory.budget() and self._tiles.reach.local

    def bytes_for(self, size_hw: tuple[int, int], classes: int) -> int:
        """See `wsss.stages.localize.Bounded`."""
        pixels = size_hw[0] * size_hw[1]
        # maps in float32, their sum and the half-precision copy that is written
        maps = 12 * classes * pixels
        if not self.in_tiles(size_hw):
            return int(self._whole(size_hw) + maps)
        # RGB at each scale, and once more for the largest one while it is resized
        views = 3 * pixels * (sum(scale**2 for scale in self.settings.scales) + max(self.settings.scales) ** 2)
        return int(views + maps + self._tiles.of_tile(self._core()))

    def _whole(self, size_hw: tuple[int, int]) -> float:
        """About the bytes of a picture's views, and of the forward pass of the largest one."""
        pixels = size_hw[0] * size_hw[1]
        views = 12 * pixels * sum(scale**2 for scale in self.settings.scales)
        return views + self._tiles.whole(pixels * max(self.settings.scales) ** 2, memory.budget() - views)

    def _core(self) -> int:
        """The side of tiles without their overlap."""
        return self._tiles.core(_OF_TILE * memory.budget())

    def together(self, size_hw: tuple[int, int]) -> int:
        """See `wsss.stages.localize.Together`."""
        return number_together(self.settings.batch, size_hw, next(self.network.parameters()).device)

    def _raw(self, views: Sequence[Float[Tensor, "1 3 _ _"] | UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "b c _ _"]:
        """The maps of a view of each picture, and then of their mirror images if the settings say so, after ReLU."""
        device = next(self.network.parameters()).device

        def maps(image: Tensor) -> Tensor:
            with mixed(self.settings.precision, device):
                raw = self.network.maps(image)
            return at_least_single(raw).relu()

        whole = [view for view in views if isinstance(view, Tensor)]
        if whole:
            pictures = torch.cat(whole).to(device)
            return maps(torch.cat([pictures, pictures.flip(3)]) if self.settings.flip else pictures)
        # a picture in tiles is alone
        (view,) = (view for view in views if not isinstance(view, Tensor))

        def of_tile(rows: slice, columns: slice) -> Tensor:
            both = [view, view[:, ::-1]] if self.settings.flip else [view]
            tiles = [normalise(np.ascontiguousarray(one[rows, columns]), self.colours) for one in both]
            return maps(torch.from_numpy(np.stack(tiles)).to(device))

        return tiled(of_tile, (view.shape[0], view.shape[1]), self._tiles.reach, self._core())

    @torch.inference_mode()
    def describe(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " d"]:
        """The highest values of the features of a picture at its own size; see `wsss.stages.localize.Describer`."""
        view = at_scales(image, (1.0,), self.colours)[0].to(next(self.network.parameters()).device)
        return highest_features(self.network.feature_maps(view))

    def cams(self, views: Views, size_hw: tuple[int, int], label: Bool[np.ndarray, " c"]) -> Cams:
        """Maps in [0, 1] of the classes in `label`: at the picture's size, and at a quarter of it."""
        return self.cams_of([views], size_hw, label[None])[0]

    @torch.inference_mode()
    def cams_of(
        self, prepared: Sequence[Views], size_hw: tuple[int, int], labels: Bool[np.ndarray, "n c"]
    ) -> list[Cams]:
        """The maps of several pictures of equal size, whose views go through the network together."""
        if len(prepared) > 1 and self.in_tiles(size_hw):
            return [self.cams(views, size_hw, label) for views, label in zip(prepared, labels, strict=True)]
        device = next(self.network.parameters()).device
        height, width = size_hw
        quarter_size = (-(-height // 4), -(-width // 4))
        padded_size = tuple(-(-side // self.multiple) * self.multiple for side in size_hw)
        present = [torch.from_numpy(np.flatnonzero(label)) for label in labels]
        stride4 = [torch.zeros(len(one), *quarter_size, device=device) for one in present]
        full = [torch.zeros(len(one), *padded_size, device=device) for one in present]
        grids: list[list[Tensor]] = [[] for _ in present]
        # the network computes nothing for pictures without tags
        tagged = [number for number, one in enumerate(present) if len(one)]
        for views in zip(*(prepared[number] for number in tagged), strict=True):
            raw = self._raw(views)
            for place, number in enumerate(tagged):
                fused = raw[place : place + 1, present[number]]
                if self.settings.flip:
                    mirrored = len(tagged) + place
                    fused = self.fuse(fused, raw[mirrored : mirrored + 1, present[number]].flip(3))
                grids[number].append(fused[0])
                stride4[number] += F.interpolate(fused, quarter_size, mode="bilinear", align_corners=False)[0]
                full[number] += F.interpolate(fused, padded_size, mode="bilinear", align_corners=False)[0]
        found = []
        for classes, whole, quarter, parts in zip(present, full, stride4, grids, strict=True):
            maps = (_divided_by_maximum(one).cpu().numpy() for one in (whole[:, :height, :width], quarter))
            cams = Cams(classes.numpy(), *maps)
            enlarged = Grids([part.cpu().numpy() for part in parts], (padded_size[0], padded_size[1]))
            found.append(SummedCams.of(cams, enlarged) if parts else cams)
        return found


def highest_features(stages: Sequence[Tensor]) -> Float[np.ndarray, " d"]:
    """The highest value of each feature of one picture, in the last stage but one: the last has memorised more of the tags (docs/health.md).

    Args:
        stages: feature maps (1, d, h, w), the deepest last; a network with a single stage is described by that.
    """
    return stages[-2:][0][0].amax((1, 2)).float().cpu().numpy()


def _divided_by_maximum(maps: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
    return maps.div_(maps.amax((1, 2), keepdim=True) + 1e-5)
