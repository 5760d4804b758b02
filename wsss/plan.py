"""What a run will do: its stages, and about how long they take, how much disk and memory they need.

Networks are measured with a batch and a picture of the sizes of the run, which takes seconds; all other numbers are rough estimates.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from wsss import launch, progress, registry, watch
from wsss.data.images import Dataset, Images
from wsss.errors import BadInput
from wsss.foundations import CLASSIFIER, FeatureSettings, features_of, load_features
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Backbone
from wsss.networks.deeplab import PUBLISHED_BODY
from wsss.networks.features import DenseFeatures
from wsss.networks.frozen import FrozenHead
from wsss.ops import crf
from wsss.regions.proposer import Proposable
from wsss.segmenters.frozen import FrozenSettings
from wsss.segmenters.tokens import TokenCache, views_of
from wsss.stages.tokens import token_bytes

if TYPE_CHECKING:
    from wsss.recipe import RunSettings
    from wsss.run import StageInfo

# pixels of a batch that a network is measured with: more would take long, and fewer cost more each, as small pictures do
_MEASURED = 4e5
# seconds after which a network is not measured again
_ENOUGH = 1.5
# seconds of one core for one pixel: a dense CRF with ten iterations, for each label; regions of similar colours; reading, augmenting or
# scoring a picture
_CRF, _REGIONS, _PICTURE = 2.5e-7, 3e-6, 2e-7
# seconds to compile the dense CRF on a computer that has not used it
_COMPILING = 40.0
# bytes of a pixel of a packed map, with the grids that it was enlarged from and without, and of the rest of a file of maps
_WITH_GRIDS, _PACKED, _EACH_FILE = 0.07, 0.45, 2000
# bytes of torch, of the loader processes and of the pictures in progress
_RESIDENT = 1.2e9

log = logging.getLogger("wsss")


class Cost(NamedTuple):
    """What one pixel of a picture costs in a network.

    Attributes:
        seconds: of a step of training, or of one forward pass.
        activations: bytes kept for the gradients; 0 without training.
        weights: bytes of the weights.
    """

    seconds: float
    activations: float
    weights: float


class Work(NamedTuple):
    """What is measured of a method that is no single backbone.

    Attributes:
        step: computes, on the device, the sum of the losses of a batch, or the maps of one picture.
        pixels: of the pictures of a step.
        weights: bytes of the weights that are trained.
    """

    step: Callable[[], torch.Tensor]
    pixels: float
    weights: float


@runtime_checkable
class Measurable(Protocol):
    """Settings of a training whose network is no single backbone, and which is measured as a whole."""

    @property
    def training_side(self) -> int:
        """Side of the square views that it is trained on."""

    def measurable(self, images: Images) -> Callable[[int, int], Work]:
        """Loads the networks; gives the work for pictures of this side and a batch of this size, 0 for the maps of one picture."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage and its estimated duration in seconds; None if it depends on something that is not known yet."""

    folder: str
    about: str
    seconds: float | None


@dataclass
class Plan:
    """What a run will do.

    Attributes:
        stages: in order.
        disk: bytes that it writes.
        memory: bytes that its largest stage needs.
        compiles: whether a stage has to compile the dense CRF.
    """

    stages: list[PlannedStage] = field(default_factory=list)
    disk: float = 0.0
    memory: float = _RESIDENT
    compiles: bool = False

    def check_disk(self, out: Path) -> None:
        """Raise BadInput if the disk of the output folder clearly has too little space."""
        free = _free(out)
        if self.disk > 2 * free:
            raise BadInput(
                out,
                f"a disk with {_size(free)} of free space",
                f"about {_size(self.disk)} for this run",
                "Free some space, or choose an output folder on another disk.",
            )

    def lines(self, out: Path) -> list[str]:
        """The plan as lines of text."""
        width = max((len(stage.folder) for stage in self.stages), default=0)
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        more = "at least " if len(known) < len(self.stages) else "about "
        return [
            f"{len(self.stages)} stages, {more}{duration(sum(known))} in all:",
            *(
                f"  {number} {stage.folder:<{width}}  {stage.about} "
                f"({'not estimated' if stage.seconds is None else f'about {duration(stage.seconds)}'})"
                for number, stage in enumerate(self.stages, start=1)
            ),
            f"disk about {_size(self.disk)} of {_size(_free(out))} free; memory about {_size(self.memory)}",
            f"report {out / 'report.html'}",
        ]


def plan(stages: Mapping[str, str], settings: "RunSettings", data: Dataset) -> Plan:
    """The plan of a run.

    Args:
        stages: what its stages do, by folder; see `wsss.recipe.planned_stages`.
        settings: of the run.
        data: the dataset.
    """
    estimate = _Estimate(settings, data)
    made = Plan()
    for folder, about in stages.items():
        seconds = estimate.seconds(folder)
        made.stages.append(PlannedStage(folder, about, None if seconds is None else max(1.0, seconds)))
    made.disk, made.memory, made.compiles = estimate.disk, estimate.memory, estimate.compiles
    return made


class _Estimate:
    """Estimates for the stages of a run; `disk` and `memory` grow with each."""

    def __init__(self, settings: "RunSettings", data: Dataset) -> None:
        self.settings, self.train = settings, data.split(data.train)
        self.val = data.split(data.val) if data.val else None
        self.scored = data.split(data.scored_split) if data.scored_split else None
        self.pixels, self.tags = _pixels(self.train), max(1.0, float(self.train.labels.sum(1).mean()))
        self.disk, self.memory = 0.0, _RESIDENT
        self._costs: dict[tuple[str, int, int, int], Cost] = {}
        self._work: Callable[[int, int], Work] | None = None
        self._frozen: tuple[DenseFeatures, float] | None = None
        self._compiled, self.compiles = crf.is_compiled(), False

    def seconds(self, folder: str) -> float | None:
        """The duration of a stage."""
        section: Any = getattr(self.settings, folder, None)
        if folder.endswith("-scores"):
            return self._scoring(folder)
        if folder.endswith("-health"):
            if self._baseline is None:
                return None
            return len(self.train) * self.pixels * self._one_picture(self._baseline, self.pixels).seconds
        if folder == "labels":
            most = min(len(self.scored or ()), section.pictures)
            return None if self._baseline is None else 2 * self._seen(most, self.pixels, 1.0)
        if folder == "regions":
            proposer: Any = getattr(self.settings, registry.PROPOSER)
            return self._tree(self.train) if proposer.kind == "tree" else self._proposing(proposer)
        if folder.startswith("cams"):
            return self._maps(self.val if folder == "cams-val" else self.train)
        if folder.startswith("masks"):
            return self._masks(self.val if folder == "masks-val" else self.train)
        if folder.startswith("predictions"):
            return self._predicting(self.scored if folder == "predictions-train" else self.val)
        frozen = self.settings.segmenter
        if isinstance(frozen, FrozenSettings) and folder in ("tokens", "segmenter"):
            return self._tokens(frozen) if folder == "tokens" else self._head(frozen)
        if folder == "segmenter":
            if not hasattr(section, "training"):
                return self._describing(section) if hasattr(section, "features") else 0.0
            network = _network(section)
            factor = 1 + sum(scale**2 for scale in getattr(network, "pyramid_scales", ()))
            return self._training(section, network, factor)
        if hasattr(section, "training"):
            return self._training(section, section if _is_network(section) else self._baseline, 1.0)
        return None

    @property
    def _baseline(self) -> Any:
        """The settings of the network that makes the maps; None for a method without one."""
        for name in ("baseline", "classifier"):
            section = getattr(self.settings, name, None)
            if _is_network(section):
                return section
        return None

    def _seen(self, count: int, pixels: float, views: float) -> float:
        """Seconds for reading pictures and looking at them with the network that makes the maps."""
        cost = self._one_picture(self._baseline, pixels)
        return count * pixels * (views * cost.seconds + _PICTURE) / launch.processes()

    def _training(self, section: Any, network: Any, factor: float) -> float | None:
        if network is None:
            return None
        training = section.training
        crop = network.training_side if isinstance(network, Measurable) else section.augment.crop
        cost = self._cost(network, int(crop), training.batch)
        decoding = self.pixels * _PICTURE / launch.threads()
        return self._updates(training, int(crop), cost, factor, decoding)

    def _updates(self, training: Any, crop: int, cost: Cost, factor: float = 1.0, decoding: float = 0.0) -> float:
        """Seconds of a training.

        Args:
            training: its settings.
            crop: side of the squares that it is trained on.
            cost: of a pixel of them.
            factor: how many pixels the network sees for each of them.
            decoding: seconds to read a picture.
        """
        steps = training.steps
        if steps is None:
            steps = max(1, len(self.train) // training.batch // training.accumulate) * training.epochs
        pictures = steps * training.accumulate * training.batch
        self.disk += 8 * cost.weights
        self.memory = max(
            self.memory, _RESIDENT + 4 * cost.weights + training.batch * crop**2 * factor * cost.activations
        )
        return pictures * (crop**2 * factor * cost.seconds + decoding) / launch.processes()

    def _describing(self, section: Any, views: float = 1.0) -> float | None:
        """The features of all pictures; of views with this area, as a share of that of the picture."""
        found = self._features(section.features)
        if found is None:
            return None
        return len(self.train) * self.pixels * (views * found[1] + _PICTURE) / launch.processes()

    def _features(self, settings: FeatureSettings) -> tuple[DenseFeatures, float] | None:
        """A frozen network, and its seconds for a pixel of a picture; None if it is that of a run without one."""
        if self._frozen is not None:
            return self._frozen
        side = round(self.pixels**0.5)
        if settings.source != CLASSIFIER:
            features = load_features(settings).features.to(launch.device())
            self._frozen = features, _seconds_of(features, side)
        elif self._baseline is not None and not isinstance(self._baseline, Measurable):
            features = features_of(settings, _created(*_named(self._baseline)))
            self._frozen = features, features.enlarge**2 * self._one_picture(self._baseline, self.pixels).seconds
        return self._frozen

    def _on_network(self, section: FrozenSettings) -> FrozenSettings:
        """The settings with the classifier that the run is given, if there is one, as the frozen network that they name."""
        given = getattr(self.settings, "weights", registry.NONE)  # methods without a classifier have none
        return section.after(None if given == registry.NONE else Path(given))

    def _tokens(self, section: FrozenSettings) -> float | None:
        """The features of all views of all pictures, on the disk."""
        section, views = self._on_network(section), views_of(section.views)
        found = self._features(section.features)
        if found is not None:
            side = round(self.pixels**0.5)
            self.disk += len(self.train) * token_bytes(found[0], views, (side, side))
        return self._describing(section, sum(view.scale**2 for view in views))

    def _head(self, section: FrozenSettings) -> float | None:
        """The training of a head on tokens, which reads no pictures."""
        if section.tokens is not None:
            index = TokenCache(section.tokens).index
            shape = index.channels, index.factors, index.cell
        elif (found := self._features(self._on_network(section).features)) is not None:
            shape = found[0].map_channels, found[0].factors, found[0].cell
        else:
            return None
        cost = _cost_of_head(section, 1 + len(self.train.class_names), *shape)
        return self._updates(section.training, section.crop, cost)

    def _maps(self, images: Images | None) -> float | None:
        network, inference = self._baseline, self.settings.inference
        if images is None:
            return 0.0
        # see docs/performance.md
        each = _WITH_GRIDS if getattr(inference, "from_grids", False) else _PACKED
        self.disk += len(images) * (_EACH_FILE + self.pixels * self.tags * each)
        scales = getattr(inference, "scales", (1.0,))
        if network is None:
            return None
        views = sum(scale**2 for scale in scales) * (2 if getattr(inference, "flip", False) else 1)
        return self._seen(len(images), self.pixels, views)

    def _masks(self, images: Images | None) -> float | None:
        if images is None:
            return 0.0
        refiner: Any = self.settings.refiner
        self.disk += len(images) * self.pixels * 0.05
        seconds = len(images) * self.pixels * (self.tags + 1) * _CRF / launch.threads() / launch.processes()
        has_crf = registry.uses_crf(refiner)
        compiling = 0.0 if self._compiled or not has_crf else _COMPILING
        self.compiles = self.compiles or compiling > 0
        self._compiled = self._compiled or has_crf
        if refiner.kind == "crf" or (refiner.kind == "regions" and refiner.regions is not None):
            return seconds + compiling
        if refiner.kind == "regions" and refiner.proposer.kind == "tree":
            return seconds + compiling + self._tree(images)
        network = _network(refiner)
        trained = None if network is None else self._training(network, network, 1.0)
        return None if trained is None else trained + 2 * seconds + compiling

    def _tree(self, images: Images) -> float:
        """The regions of similar colours."""
        return len(images) * self.pixels * _REGIONS / launch.threads() / launch.processes()

    def _proposing(self, settings: Proposable) -> float:
        """The regions of a network, which is timed with one picture of the usual size."""
        proposer, side = settings.proposer(), max(1, round(self.pixels**0.5))
        picture = proposer.prepare(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
        return len(self.train) * _timed(lambda: proposer.regions(picture)) / launch.processes()

    def _predicting(self, images: Images | None) -> float | None:
        if images is None:
            return 0.0
        self.disk += len(images) * self.pixels * 0.05
        network, test, pixels = _network(self.settings.segmenter), self.settings.test, _pixels(images)
        if isinstance(self._baseline, Measurable) and not hasattr(self.settings.segmenter, "training"):
            network = self._baseline  # what was trained for the maps is the segmenter
        if network is None:
            return self._predicting_frozen(len(images) * pixels)
        pyramid = 1 + sum(scale**2 for scale in getattr(network, "pyramid_scales", ()))
        views = pyramid * sum(scale**2 for scale in test.scales or (1.0,)) * (2 if test.flip else 1)
        cost = self._one_picture(network, pixels)
        return len(images) * pixels * (views * cost.seconds + _PICTURE) / launch.processes()

    def _predicting_frozen(self, pixels: float) -> float | None:
        """Predictions by a head on a frozen network, which itself takes little; None for segmenters without such networks."""
        section, test = self.settings.segmenter, self.settings.test
        found = self._features(self._on_network(section).features) if isinstance(section, FrozenSettings) else None
        if found is None:
            return None
        views = sum(scale**2 for scale in test.scales or (1.0,)) * (2 if test.flip else 1)
        return pixels * (views * found[1] + _PICTURE) / launch.processes()

    def _scoring(self, folder: str) -> float:
        images = self.val if "val" in folder or folder == "predictions-scores" else self.scored
        return 0.0 if images is None else len(images) * self.pixels * 5 * _PICTURE / launch.processes()

    def _one_picture(self, network: Any, pixels: float) -> Cost:
        """The cost of a forward pass of a picture with an area."""
        return self._cost(network, round(pixels**0.5), 0)

    def _cost(self, network: Any, side: int, batch: int) -> Cost:
        if isinstance(network, Measurable):
            return self._whole(network, side, batch)
        key = (*_named(network), side, batch)
        if key not in self._costs:
            self._costs[key] = measured(*key)
        return self._costs[key]

    def _whole(self, network: Measurable, side: int, batch: int) -> Cost:
        """The cost of a method that is measured as a whole."""
        side, batch = _measured_size(side, batch)
        key = ("", 0, side, batch)
        if key not in self._costs:
            with torch.random.fork_rng():
                self._work = self._work or network.measurable(self.train)
                work = self._work(side, batch)
                self._costs[key] = _cost_of(work) if batch else Cost(_timed(work.step) / work.pixels, 0.0, work.weights)
        return self._costs[key]


def _is_network(section: Any) -> bool:
    return hasattr(section, "backbone") or isinstance(section, Measurable)


def _network(section: Any) -> Any:
    """The settings that name a backbone: those of a section's network, or its own; None if it has none."""
    network = getattr(section, "network", section)
    return network if hasattr(network, "backbone") else None


def _named(network: Any) -> tuple[str, int]:
    """The backbone and the output stride in settings of a network; some refiners fix the stride, most of them at 8."""
    return "resnet101" if network.backbone == PUBLISHED_BODY else network.backbone, getattr(network, "output_stride", 8)


def _created(backbone: str, stride: int) -> Backbone:
    """A backbone; a ResNet-101 in place of one that is only a part of a segmenter."""
    try:
        return create_backbone(backbone, stride)
    except BadInput:
        return create_backbone("resnet101", 8)


@torch.inference_mode()
def _seconds_of(features: DenseFeatures, side: int) -> float:
    """Seconds of a frozen network for a pixel of a picture."""
    side, _ = _measured_size(side, 0)
    picture = torch.zeros(1, 3, side, side, device=launch.device())
    features(picture)
    return _timed(lambda: features(picture)) / side**2


def _cost_of_head(
    settings: FrozenSettings, n_labels: int, channels: Sequence[int], factors: Sequence[int], cell: int
) -> Cost:
    """What a pixel of a square costs in a training step of a head on tokens.

    Args:
        settings: of the segmenter.
        n_labels: the background and the classes.
        channels: of the feature maps.
        factors: between the finest grid and that of each map.
        cell: side of the cells of the finest grid, in pixels.
    """
    side, number = _measured_size(settings.crop, settings.training.batch)
    cells = max(1, side // (max(factors) * cell)) * max(factors)
    layers = settings.network.on(channels[-1])
    assert layers.embedding is not None
    assert layers.blocks is not None
    with torch.random.fork_rng():
        head = FrozenHead(n_labels, channels, factors, layers.embedding, layers.blocks).to(launch.device())
        maps = [
            torch.zeros(number, width, cells // factor, cells // factor, device=launch.device())
            for width, factor in zip(channels, factors, strict=True)
        ]
        weights = sum(value.numel() * value.element_size() for value in head.state_dict().values())
        return _cost_of(Work(lambda: head(maps).mean(), number * side**2, weights))


def measured(backbone: str, stride: int, side: int, batch: int) -> Cost:
    """Measure a backbone on the device of this process.

    A network that does not fit there, or that is only a part of a segmenter, counts as a ResNet-101.

    Args:
        backbone, stride: the network; see `create_backbone`.
        side: pixels of the square pictures. Large ones are measured as smaller ones.
        batch: pictures of a training step, of which at least one is measured; 0 for a forward pass of one picture.
    """
    side, number = _measured_size(side, batch)
    with torch.random.fork_rng():
        device = launch.device()
        network = _created(backbone, stride).to(device)
        picture = torch.zeros(max(1, number), 3, side, side, device=device)
        weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
        pixels = picture.numel() / 3
        if not batch:
            network.eval()
            with torch.inference_mode():
                network(picture)
                return Cost(_timed(lambda: network(picture)) / pixels, 0.0, weights)
        return _cost_of(Work(lambda: network(picture)[-1].mean(), pixels, weights))


def _measured_size(side: int, batch: int) -> tuple[int, int]:
    """Side and number of the pictures that are measured: large ones as smaller ones, and no more of them than needed."""
    side = max(32, min(side, int(_MEASURED**0.5)))
    return side, max(1, min(batch, int(_MEASURED / side**2))) if batch else 0


def _cost_of(work: Work) -> Cost:
    """The cost of steps of training."""
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    def forward_and_backward() -> None:
        work.step().backward()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward_and_backward()
    kept = max(0, sum(saved.values()) - work.weights)
    return Cost(_timed(forward_and_backward) / work.pixels, kept / work.pixels, work.weights)


def _timed(work: Callable[[], object]) -> float:
    """Mean seconds of up to twenty times: other programs on the computer will slow the run down too."""
    seconds: list[float] = []
    while len(seconds) < 20 and sum(seconds) < _ENOUGH:
        before = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
    return sum(seconds) / len(seconds)


def _pixels(images: Images) -> float:
    """The mean area of a few pictures."""
    few = range(0, len(images), max(1, len(images) // 8))
    sizes = [images.size_hw(index) for index in few]
    return sum(height * width for height, width in sizes) / max(1, len(sizes))


@contextlib.contextmanager
def numbered(out: Path, stages: Mapping[str, str]) -> Iterator[None]:
    """Inside this block, each stage of a run is announced with its number.

    Args:
        out: the run folder.
        stages: what the stages do, by folder, in order.
    """
    try:
        with watch.listening(_Numbers(out, stages)):
            yield
    finally:
        progress.unset_stage()


class _Numbers:
    """Announces stages; see `wsss.watch.Listener`."""

    def __init__(self, out: Path, stages: Mapping[str, str]) -> None:
        self.out, self.stages, self.order = out, stages, list(stages)

    def stage_started(self, folder: Path, info: "StageInfo") -> None:
        name = os.path.relpath(folder.resolve(), self.out.resolve())
        if name in self.stages:
            number, count = self.order.index(name) + 1, len(self.order)
            progress.set_stage(number, count)
            if launch.is_first():
                log.info("stage %d of %d: %s %s", number, count, name, self.stages[name])

    def stage_finished(self, folder: Path, info: "StageInfo", made_before: bool) -> None:
        pass

    def training(self, folder: Path, trainable: Any, history: Any) -> None:
        pass

    def advanced(self, title: str, done: int, total: int) -> None:
        pass


def _free(out: Path) -> int:
    existing = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def duration(seconds: float) -> str:
    """A duration in words: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{max(1, number / 1e6):.0f} MB"
