"""The training objective of all segmenters: losses on pseudo masks."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from wsss import launch
from wsss.arrays import Float, UInt8
from wsss.corrections import corrected_pictures
from wsss.data.images import IGNORE, Images
from wsss.errors import BadInput
from wsss.loading import check_initial, load_backbone, load_segmenter
from wsss.networks.body import Backbone, Body
from wsss.objective import Groups, Objective
from wsss.stream import in_threads

log = logging.getLogger("wsss")

N = TypeVar("N", bound=nn.Module)
_MOST_MEASURED = 1000
# measured in docs/corrections.md
CORRECTED_WEIGHT = 2


class Augment(Protocol):
    """Augmentation of a training picture and its mask."""

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], label: UInt8[np.ndarray, "h w"], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "3 crop crop"], UInt8[np.ndarray, "crop crop"]]:
        """A random view of both; `rng` is the only source of randomness."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The masks that a segmenter is trained on.

    Attributes:
        images: the training pictures.
        masks: folder of their pseudo masks.
        folders: of the mask of each picture: that of the pseudo masks, or that of corrected ones.
        repeats: how often each picture occurs in an epoch; None: once.
        metadata: what the weights file says about them: `classes`, `long_sides`, and the names of `corrected` pictures.
    """

    images: Images
    masks: Path
    folders: Sequence[Path]
    repeats: Sequence[int] | None
    metadata: dict[str, Any]

    @staticmethod
    def of(images: Images, masks: Path, corrected: Path | None, corrected_weight: int) -> "Target":
        """The target of a training; see `SegmenterObjective`."""
        chosen = [] if corrected is None else corrected_pictures(images, corrected)
        folders = [masks] * len(images)
        for index in chosen:
            assert corrected is not None
            folders[index] = corrected
        known = {"classes": list(images.class_names), "long_sides": list(typical_long_sides(images))}
        repeats = None
        if chosen:
            known["corrected"] = [images.names[index] for index in chosen]
            repeats = [corrected_weight if folder == corrected else 1 for folder in folders]
            if launch.is_first():
                log.info("%s: %d of %d masks are corrected ones", corrected, len(chosen), len(images))
        return Target(images, masks, folders, repeats, known)

    def check(self, labels: Iterable[UInt8[np.ndarray, "h w"]]) -> None:
        """Raise BadInput if no mask contains a class; only as many are looked at as are needed to find one, usually the first.

        Args:
            labels: of the pictures, in order.
        """
        values: set[int] = set()
        for label in labels:
            values.update(np.unique(label).tolist())
            if values - {0, IGNORE}:
                return
        names = self.images.class_names
        found = {frozenset({0}): "only background", frozenset({IGNORE}): "only 255, which is ignored"}
        raise BadInput(
            self.masks,
            f"masks with {found.get(frozenset(values), 'only background and 255')}, in all of {len(self.images)} pictures",
            f"masks with classes ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}) to train on",
            "Look at the maps (report.html): lower the threshold of refine, or train the classifier for longer.",
        )


class SegmenterObjective(Objective):
    """A segmenter and its losses on pseudo masks.

    Args:
        network: the segmenter.
        losses: computes named loss terms from the network, a batch of pictures, and their labels; their sum is minimised.
        images: the training pictures.
        masks: folder of their masks, which have the same names.
        augment: augmentation of pictures and masks.
        metadata: what is needed to use the network later, besides its classes and the sizes of its training pictures; `kind` is the name
            of the segmenter.
        groups: of parameters; by default one, of all trainable weights.
        corrected: folder of corrected masks of some of the pictures, which are used in place of the pseudo masks; see
            `wsss.corrections`.
        corrected_weight: how often a picture with a corrected mask occurs in an epoch.

    Raises:
        BadInput: no mask contains any class, or a corrected mask does not fit.
    """

    def __init__(
        self,
        network: N,
        losses: Callable[[N, Tensor, Tensor], dict[str, Float[Tensor, ""]]],
        images: Images,
        masks: Path,
        augment: Augment,
        metadata: dict[str, Any],
        groups: Groups | None = None,
        corrected: Path | None = None,
        corrected_weight: int = CORRECTED_WEIGHT,
    ) -> None:
        target = Target.of(images, masks, corrected, corrected_weight)
        target.check(images.read_with(folder, index)[1] for index, folder in enumerate(target.folders))
        examples = partial(_example, images, target.folders, augment)
        super().__init__(network, examples, {**metadata, **target.metadata}, groups)
        self.repeats = target.repeats
        self.losses = partial(losses, network)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms."""
        return self.losses(batch["image"], batch["label"])


class LayeredSettings(Protocol):
    """Settings of a segmenter whose layers stand on one backbone."""

    head: ClassVar[tuple[str, ...]]

    @property
    def kind(self) -> str: ...

    @property
    def init(self) -> str: ...

    @property
    def corrected_weight(self) -> int: ...

    @property
    def network(self) -> "Layers": ...

    @property
    def augment(self) -> Augment: ...


class Layers(Protocol):
    """The layers of a segmenter, which name its backbone; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def backbone(self) -> str: ...


def check_layered(
    settings: LayeredSettings, network: nn.Module, body: Body, classifier: Path | Backbone | None
) -> None:
    """Raise BadInput unless the initial weights of a segmenter can be had, and fit.

    Args:
        settings: of the segmenter.
        network: the segmenter, on the meta device.
        body: its backbone.
        classifier: see `check_initial`.
    """
    layers = dataclasses.asdict(settings.network)
    if not load_segmenter(network, settings.init, settings.kind, layers, settings.head, None):
        check_initial("segmenter.init", body, settings.network.backbone, settings.init, classifier)


def layered_objective(
    settings: LayeredSettings,
    network: N,
    body: Body,
    losses: Callable[[N, Tensor, Tensor], dict[str, Float[Tensor, ""]]],
    groups: Groups,
    *,
    images: Images,
    masks: Path,
    corrected: Path | None,
    **metadata: Any,
) -> SegmenterObjective:
    """A segmenter on one backbone with its initial weights: those of a segmenter that is trained on, of the backbone alone, or new ones.

    Args:
        settings: of the segmenter.
        network: the segmenter, with new weights.
        body: its backbone.
        losses, groups, images, masks, corrected: see `SegmenterObjective`.
        metadata: what is needed to use the network later, besides its kind and layers.
    """
    layers = dataclasses.asdict(settings.network)
    continued = load_segmenter(network, settings.init, settings.kind, layers, settings.head, images.class_names)
    if not continued and settings.init != "none":
        load_backbone(body, settings.network.backbone, settings.init)
    known = {"kind": settings.kind, "network": layers, **metadata}
    return SegmenterObjective(
        network, losses, images, masks, settings.augment, known, groups, corrected, settings.corrected_weight
    )


def typical_long_sides(images: Images) -> tuple[int, int]:
    """The 5th and the 95th percentile of the longest sides of at most 1000 pictures, spread evenly over all, in pixels."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), _MOST_MEASURED)).round().astype(int))
    sides = list(in_threads(lambda index: max(images.size_hw(index)), chosen.tolist()))
    low, high = np.percentile(sides, (5, 95), method="nearest")
    return int(low), int(high)


def known_long_sides(metadata: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    """The sizes of the training pictures in the metadata of a file; None if it has none."""
    match metadata.get("long_sides"):
        case None:
            return None
        case [int(low), int(high)] if 1 <= low <= high:
            return low, high
        case found:
            do = "The file was changed after it was written: restore it."
            raise BadInput(path, f"`long_sides` {found!r:.60}", "two whole numbers, the smaller first", do)


def _example(
    images: Images, folders: Sequence[Path], augment: Augment, index: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    view, label = augment(*images.read_with(folders[index], index), rng)
    return {"image": torch.from_numpy(view), "label": torch.from_numpy(label.astype(np.int64))}
