"""A small head on a frozen network, trained on pseudo masks from cached tokens: adapter and decoder of WeCLIP (Zhang et al., CVPR 2024).

The frozen network sees each picture once, in a few fixed views; `wsss.stages.tokens` caches what it gives. A training reads tokens and no
pictures: an example is a square of cells of one of the views, with the labels of a grid of points in it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss import launch
from wsss.arrays import Float, Shaped, UInt8
from wsss.data.images import IGNORE, Images
from wsss.errors import BadInput, check_range
from wsss.foundations import CLASSIFIER, KEPT, FeatureSettings, features_of, load_features, rebuilt
from wsss.loading import load_into, load_segmenter
from wsss.networks.body import Backbone
from wsss.networks.deeplab import balanced_cross_entropy, cross_entropy, resize_logits
from wsss.networks.frozen import FrozenHead, FrozenSegmenter, HeadLayers
from wsss.objective import Objective
from wsss.ops.enlarging import Step
from wsss.run import pretrained, unrecorded
from wsss.segmenters.learning import CORRECTED_WEIGHT, Target
from wsss.segmenters.tokens import TokenCache, TokenSettings, ViewSettings, as_tensors
from wsss.segmenters.trained import TrainedNetwork
from wsss.stages.train import Training
from wsss.stream import in_threads
from wsss.weights import read_metadata, weights_in

KIND, NONE = "frozen", "none"
_IN_FILE = f"{KEPT}*"


@dataclasses.dataclass(frozen=True)
class FrozenSettings:
    """A head on a frozen network, and its training from cached tokens."""

    title: ClassVar[str] = "head on a frozen network"

    kind: Literal["frozen"] = "frozen"
    """a small head on cached tokens of a frozen network: adapter and decoder of WeCLIP"""
    init: str = pretrained(NONE)
    """a segmenter of this kind to train on from: its folder or file; it also gives the frozen network"""
    features: FeatureSettings = FeatureSettings()
    """the frozen network"""
    views: ViewSettings = ViewSettings()
    """the views of a picture whose tokens are cached"""
    tokens: Path | None = unrecorded(None)
    """folder of tokens that an earlier command has cached (`tokens`); none: they are cached here"""
    network: HeadLayers = HeadLayers()
    """adapter and decoder"""
    loss: Literal["plain", "balanced"] = "plain"
    """plain: cross-entropy over all points; balanced: half over background and half over foreground"""
    crop: int = 320
    """side of the square of cells that an example has, in pixels; at most that of the largest view"""
    points: int = 4
    """distance of the labelled points, in pixels"""
    dropout: float = 0.1
    """probability that a channel of the adapter is dropped in an example"""
    corrected_weight: int = CORRECTED_WEIGHT
    """how often pictures with a corrected mask (`--corrected`) occur in an epoch"""
    # WeCLIP's, for as many pictures in larger batches
    training: Training = Training(
        batch=16, epochs=None, steps=8000, optimizer="adamw", lr=5e-4, weight_decay=0.01, warmup=50, poly_power=1.0
    )
    """how the head is trained"""
    signature: ClassVar[str] = "head.decoder.linear_pred.bias"
    head: ClassVar[tuple[str, ...]] = ("head.decoder.linear_pred.*",)

    def __post_init__(self) -> None:
        check_range("segmenter.corrected_weight", self.corrected_weight, 1)
        check_range("segmenter.crop", self.crop, 1)
        check_range("segmenter.points", self.points, 1)
        check_range("segmenter.dropout", self.dropout, 0, 0.9)

    def check(self, classifier: Path | Backbone | None = None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs."""
        if self.init != NONE:
            metadata_of(Path(self.init))
        if self.tokens is not None:
            TokenCache(self.tokens)
        elif self.features.source == CLASSIFIER and self.init == NONE and isinstance(classifier, Backbone):
            features_of(self.features, classifier)
        else:
            load_features(self.after(classifier if isinstance(classifier, Path) else None).features)

    def after(self, classifier: Path | None) -> "FrozenSettings":
        """These settings with a file in place of the word `classifier`: that of `init`, or that of the run's classifier."""
        start = classifier if self.init == NONE else Path(self.init)
        if self.features.source != CLASSIFIER or start is None:
            return self
        return dataclasses.replace(self, features=dataclasses.replace(self.features, source=str(weights_in(start))))

    @property
    def of_tokens(self) -> TokenSettings:
        """What the cache depends on."""
        return TokenSettings(self.features, self.views)

    def trainable(self, images: Images, masks: Path, tokens: Path, corrected: Path | None = None) -> "FrozenObjective":
        """The head with new or given weights, and its loss on the pseudo masks in `masks` and the masks in `corrected`.

        Args:
            images: the pictures, of which only the names are used.
            masks: folder of their pseudo masks.
            tokens: folder of their tokens.
            corrected: folder of corrected masks.

        Raises:
            BadInput: tokens of a picture are missing or were made from something else, or no mask contains a class.
        """
        cache = TokenCache(tokens)
        index = cache.index
        before = {} if self.init == NONE else metadata_of(Path(self.init))["network"]
        layers = HeadLayers(self.network.embedding or before.get("embedding"), self.network.blocks)
        layers = dataclasses.replace(layers, blocks=before.get("blocks") if layers.blocks is None else layers.blocks)
        known = {
            **dataclasses.asdict(layers.on(index.channels[-1])),
            "channels": index.channels,
            "enlarged": index.factors,
        }
        network = FrozenSegmenter(None, FrozenHead(images.n_labels, **known))
        network.head.standardise_by(as_tensors(index.means), as_tensors(index.deviations))
        load_segmenter(network, self.init, self.kind, known, self.head, images.class_names, ignore=(_IN_FILE,))
        target = Target.of(images, masks, corrected, self.corrected_weight)
        metadata = {"kind": self.kind, "network": known, "features": index.features, **target.metadata}
        return FrozenObjective(self, network, cache, target, metadata, self._kept(index.features))

    def _kept(self, identity: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weights of a classifier's backbone, for the file of the segmenter.

        Raises:
            BadInput: it is no longer the network of the tokens.
        """
        if identity["body"] is None:
            return {}
        source = identity["source"] if self.features.source == CLASSIFIER else self.features.source
        loaded = load_features(FeatureSettings(source, identity["layers"], identity["enlarge"]))
        if loaded.digest != identity["digest"]:
            expected = f"the network of the tokens, with digest {identity['digest'][:12]}"
            do = "Set segmenter.features.source to that network, or cache the tokens again."
            raise BadInput(source, f"a network with digest {loaded.digest[:12]}", expected, do)
        return {f"{KEPT}{name}": value for name, value in loaded.features.network.state_dict().items()}

    @staticmethod
    def load(state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> TrainedNetwork:
        """A trained network, from the content of a file."""
        known = checked_metadata(metadata or {}, path)
        kept = {name.removeprefix(KEPT): value for name, value in state.items() if name.startswith(KEPT)}
        features = rebuilt(known["features"], kept, path)
        layers, classes = known["network"], tuple(known["classes"])
        if layers["channels"] != features.map_channels or layers["enlarged"] != features.factors:
            found = f"a head for maps with {layers['channels']} channels"
            raise BadInput(path, found, f"{features.map_channels}, those of its network", "Train it again.")
        network = FrozenSegmenter(None, FrozenHead(len(classes) + 1, **layers))
        load_into(network, state, path, ignore=(_IN_FILE,))
        network.features = features
        return TrainedFrozen(network.eval(), classes, network.coarse, "raw", cell=features.cell)


class TrainedFrozen(TrainedNetwork):
    """A trained head on a frozen network."""

    network: FrozenSegmenter

    def steps(
        self, coarse: Float[Tensor, "b l hc wc"], view_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> Sequence[Step]:
        return (self.network.covered(coarse, view_hw), Step(size_hw))


def metadata_of(where: Path) -> dict[str, Any]:
    """What the file of a segmenter of this kind says about itself.

    Raises:
        BadInput: there is no such file, or it holds something else.
    """
    path = weights_in(where)
    if not path.exists():
        do = "Check segmenter.init."
        raise BadInput(path, "no such file", f"a segmenter of kind `{KIND}`", do)
    return checked_metadata(read_metadata(path), path)


def checked_metadata(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The metadata of a segmenter of this kind, which has all its entries."""
    if metadata.get("kind") != KIND:
        found = f"a segmenter of kind `{metadata.get('kind')}`"
        raise BadInput(path, found, f"one of kind `{KIND}`", "Give the folder of such a segmenter.")
    layers = metadata.get("network")
    numbers = ("embedding", "blocks"), ("channels", "enlarged")
    entries = layers if isinstance(layers, dict) and set(layers) == {*numbers[0], *numbers[1]} else {}
    right = entries and all(isinstance(entries[name], int) and entries[name] >= 0 for name in numbers[0])
    right = right and all(
        isinstance(entries[name], list)
        and entries[name]
        and all(isinstance(one, int) and one > 0 for one in entries[name])
        for name in numbers[1]
    )
    classes = metadata.get("classes")
    if not right or not isinstance(classes, list) or not classes or not isinstance(metadata.get("features"), dict):
        found = f"the layers {layers!r:.60} and the classes {classes!r:.60}"
        raise BadInput(path, found, "those of a head on a frozen network", "Restore the file, or train it again.")
    return dict(metadata)


class FrozenObjective(Objective):
    """A head and its loss, on squares of cached tokens.

    Args:
        settings: of the segmenter.
        network: the head.
        cache: of the tokens.
        target: the masks.
        metadata: written with the weights.
        kept: weights of the frozen network that are written with them.
    """

    def __init__(
        self,
        settings: FrozenSettings,
        network: FrozenSegmenter,
        cache: TokenCache,
        target: Target,
        metadata: dict[str, Any],
        kept: Mapping[str, Tensor],
    ) -> None:
        examples = TokenExamples(settings, cache, target, network.head.decoder.linear_pred.in_channels)
        super().__init__(network, examples, metadata, constant=kept)
        self.repeats = target.repeats
        self.loss = {"plain": cross_entropy, "balanced": balanced_cross_entropy}[settings.loss]
        self.head = network.head

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The cross-entropy at the labelled points."""
        dtype = next(self.head.parameters()).dtype
        maps = [batch[f"map_{level}"].to(dtype) for level in range(len(self.head.adapter.enlarged))]
        outside = batch["outside"]
        logits = self.head(maps, outside if bool(outside.any()) else None, batch["factors"].to(dtype))
        logits = resize_logits(logits, batch["label"].shape[1:])
        return {"segmentation": self.loss(logits, batch["label"], over_processes=launch.mean_over_processes)}


class TokenExamples:
    """Random squares of cells from the cache, with the labels of their points. No picture or mask is read after the construction.

    Args:
        settings: of the segmenter.
        cache: of the tokens.
        target: the masks.
        embedding: channels of the adapter, for dropout.

    Raises:
        BadInput: tokens or masks do not fit the pictures, or no mask contains a class.
    """

    def __init__(self, settings: FrozenSettings, cache: TokenCache, target: Target, embedding: int) -> None:
        index = cache.index
        self.cache, self.dropout, self.embedding = cache, settings.dropout, embedding
        self.positions, self.factors = cache.positions(target.images), index.factors
        # the square, in cells of the coarsest and of the finest map
        self.coarse = max(index.factors)
        self.side = max(1, round(settings.crop / (self.coarse * index.cell)))
        self.per_cell = max(1, round(index.cell / settings.points))
        self.labels = list(in_threads(partial(self._labels, target), range(len(target.images))))
        target.check(label for labels in self.labels for label in labels)
        # no larger than the largest view
        points = self.coarse * self.per_cell
        self.side = min(self.side, max(max(label.shape) for labels in self.labels for label in labels) // points)

    def _labels(self, target: Target, picture: int) -> list[UInt8[np.ndarray, "_ _"]]:
        """The labels of the points of each view of a picture."""
        position, cell = self.positions[picture], self.cache.index.cell
        mask = target.images.read_pseudo_mask(target.folders[picture], picture, self.cache.index.sizes[position])
        found = []
        for number, view in enumerate(self.cache.views):
            rows, columns = max(self.cache.grids_hw(position, number))
            grid_hw = (rows * self.per_cell, columns * self.per_cell)
            found.append(view.labels(mask, grid_hw, cell / self.per_cell))
        return found

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """A random square of a random view; outside the view, its border is repeated, no cell attends to it, and labels are 255."""
        view = int(rng.integers(len(self.cache.views)))
        maps, labels = self.cache.maps(self.positions[index], view), self.labels[index][view]
        # cells of each map in a cell of the coarsest one
        steps = [self.coarse // factor for factor in self.factors]
        grid_hw = [side // steps[-1] for side in maps[-1].shape[1:]]
        top, left = (int(rng.integers(max(count - self.side, 0) + 1)) for count in grid_hw)
        example = {
            f"map_{level}": _square(one, top * step, left * step, self.side * step)
            for level, (one, step) in enumerate(zip(maps, steps, strict=True))
        }
        points, side = self.coarse * self.per_cell, self.side * self.coarse
        outside = torch.ones(side, side, dtype=torch.bool)
        outside[: (grid_hw[0] - top) * self.coarse, : (grid_hw[1] - left) * self.coarse] = False
        kept = rng.random(self.embedding) >= self.dropout
        return {
            **example,
            "outside": outside,
            "label": _filled(torch.from_numpy(labels), top * points, left * points, self.side * points, IGNORE).long(),
            "factors": torch.from_numpy(kept / (1 - self.dropout)).float(),
        }


def _square(tokens: Float[Tensor, "d rows columns"], top: int, left: int, side: int) -> Float[Tensor, "d side side"]:
    """A square of a map; beyond its end, the last row and column are repeated."""
    rows, columns = tokens.shape[1:]
    part = tokens[:, top : top + side, left : left + side]
    if part.shape[1:] == (side, side):
        return part
    down, across = (
        torch.arange(start, start + side).clamp_max(count - 1) for start, count in ((top, rows), (left, columns))
    )
    return tokens[:, down][:, :, across]


def _filled(
    values: Shaped[Tensor, "rows columns"], top: int, left: int, side: int, fill: int
) -> Shaped[Tensor, "side side"]:
    """A square of an array, with a constant beyond its end."""
    part = values[top : top + side, left : left + side]
    return F.pad(part, (0, side - part.shape[1], 0, side - part.shape[0]), value=fill)
