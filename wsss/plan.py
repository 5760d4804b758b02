"""What a run will do: its stages, and about how long they take, how much disk and memory they need.

Networks are measured with one picture, which takes seconds; all other numbers are rough estimates.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from wsss import launch, progress, watch
from wsss.data.images import Dataset, Images
from wsss.errors import BadInput
from wsss.networks.backbone import create_backbone
from wsss.networks.deeplab import PUBLISHED_BODY

if TYPE_CHECKING:
    from wsss.recipe import RunSettings
    from wsss.run import StageInfo

# pixels of the picture that a network is measured with; other sizes are proportional
_MEASURED = 160
# seconds of one core for one pixel: a dense CRF with ten iterations, for each label; reading, augmenting or scoring a picture
_CRF, _PICTURE = 2.5e-7, 2e-7
# bytes of torch, of the loader processes and of the pictures in progress
_RESIDENT = 1.2e9

log = logging.getLogger("wsss")


class Cost(NamedTuple):
    """Seconds and bytes of activations for one pixel of a picture in a network, and the bytes of its weights."""

    train: float
    infer: float
    activations: float
    weights: float


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
    """

    stages: list[PlannedStage] = field(default_factory=list)
    disk: float = 0.0
    memory: float = _RESIDENT

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
    made.disk, made.memory = estimate.disk, estimate.memory
    return made


class _Estimate:
    """Estimates for the stages of a run; `disk` and `memory` grow with each."""

    def __init__(self, settings: "RunSettings", data: Dataset) -> None:
        self.settings, self.train = settings, data.split(data.train)
        self.val = data.split(data.val) if data.val else None
        self.scored = data.split(data.scored_split) if data.scored_split else None
        self.pixels, self.tags = _pixels(self.train), max(1.0, float(self.train.labels.sum(1).mean()))
        self.disk, self.memory = 0.0, _RESIDENT
        self._costs: dict[tuple[str, int], Cost] = {}

    def seconds(self, folder: str) -> float | None:
        """The duration of a stage."""
        section: Any = getattr(self.settings, folder, None)
        if folder.endswith("-scores"):
            return self._scoring(folder)
        if folder.endswith("-health"):
            if self._baseline is None:
                return None
            return (
                len(self.train) * self.pixels * self._cost(self._baseline.backbone, self._baseline.output_stride).infer
            )
        if folder.startswith("cams"):
            return self._maps(self.val if folder == "cams-val" else self.train)
        if folder.startswith("masks"):
            return self._masks(self.val if folder == "masks-val" else self.train)
        if folder.startswith("predictions"):
            return self._predicting(self.scored if folder == "predictions-train" else self.val)
        if folder == "segmenter":
            factor = 1 + sum(scale**2 for scale in getattr(section.network, "pyramid_scales", ()))
            return self._training(section, section.network, factor)
        if hasattr(section, "training"):
            return self._training(section, section if hasattr(section, "backbone") else self._baseline, 1.0)
        return None

    @property
    def _baseline(self) -> Any:
        """The settings of the network that makes the maps; None for a method without one."""
        for name in ("baseline", "classifier"):
            section = getattr(self.settings, name, None)
            if hasattr(section, "backbone"):
                return section
        return None

    def _training(self, section: Any, network: Any, factor: float) -> float | None:
        if network is None:
            return None
        training, crop = section.training, section.augment.crop
        cost = self._cost(network.backbone, network.output_stride)
        steps = training.steps
        if steps is None:
            steps = max(1, len(self.train) // training.batch // training.accumulate) * training.epochs
        pictures = steps * training.accumulate * training.batch
        self.disk += 8 * cost.weights
        self.memory = max(
            self.memory, _RESIDENT + 4 * cost.weights + training.batch * crop**2 * factor * cost.activations
        )
        decoding = self.pixels * _PICTURE / launch.threads()
        return pictures * (crop**2 * factor * cost.train + decoding) / launch.processes()

    def _maps(self, images: Images | None) -> float | None:
        network, inference = self._baseline, self.settings.inference
        if images is None:
            return 0.0
        self.disk += len(images) * self.pixels * self.tags * 2
        scales = getattr(inference, "scales", (1.0,))
        if network is None:
            return None
        views = sum(scale**2 for scale in scales) * (2 if getattr(inference, "flip", False) else 1)
        cost = self._cost(network.backbone, network.output_stride)
        return len(images) * self.pixels * (views * cost.infer + _PICTURE) / launch.processes()

    def _masks(self, images: Images | None) -> float | None:
        if images is None:
            return 0.0
        refiner: Any = self.settings.refiner
        self.disk += len(images) * self.pixels * 0.05
        crf = len(images) * self.pixels * (self.tags + 1) * _CRF / launch.threads() / launch.processes()
        if refiner.kind == "crf":
            return crf
        trained = self._training(refiner.network, _WithStride(refiner.network), 1.0)
        return None if trained is None else trained + 2 * crf

    def _predicting(self, images: Images | None) -> float | None:
        if images is None:
            return 0.0
        self.disk += len(images) * self.pixels * 0.05
        network, test = self.settings.segmenter.network, self.settings.test
        pyramid = 1 + sum(scale**2 for scale in getattr(network, "pyramid_scales", ()))
        views = pyramid * sum(scale**2 for scale in test.scales or (1.0,)) * (2 if test.flip else 1)
        cost = self._cost(network.backbone, network.output_stride)
        return len(images) * _pixels(images) * (views * cost.infer + _PICTURE) / launch.processes()

    def _scoring(self, folder: str) -> float:
        images = self.val if "val" in folder or folder == "predictions-scores" else self.scored
        return 0.0 if images is None else len(images) * self.pixels * 5 * _PICTURE / launch.processes()

    def _cost(self, backbone: str, stride: int) -> Cost:
        name = "resnet101" if backbone == PUBLISHED_BODY else backbone
        if (name, stride) not in self._costs:
            self._costs[name, stride] = measured(name, stride)
        return self._costs[name, stride]


class _WithStride:
    """The backbone of a refiner's network, which may fix the stride."""

    def __init__(self, network: Any) -> None:
        self.backbone, self.output_stride = network.backbone, getattr(network, "output_stride", 8)


def measured(backbone: str, stride: int) -> Cost:
    """Measure a backbone with one picture on the device of this process.

    A network that does not fit there, or that is only a part of a segmenter, counts as a ResNet-101.
    """
    with torch.random.fork_rng():
        try:
            network = create_backbone(backbone, stride)
        except BadInput:
            network = create_backbone("resnet101", 8)
        device = launch.device()
        network = network.to(device)
        picture = torch.zeros(2, 3, _MEASURED, _MEASURED, device=device)
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        def forward_and_backward() -> None:
            network(picture)[-1].mean().backward()

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            forward_and_backward()
        train = _timed(forward_and_backward)
        network.eval()
        with torch.inference_mode():
            infer = _timed(lambda: network(picture))
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    pixels = len(picture) * _MEASURED**2
    kept = max(0, sum(saved.values()) - weights)
    return Cost(train / pixels, infer / pixels, kept / pixels, weights)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the faster of two times, which other programs have disturbed less."""
    seconds = []
    for _ in range(2):
        before = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
    return min(seconds)


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
    with watch.listening(_Numbers(out, stages)):
        yield


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
