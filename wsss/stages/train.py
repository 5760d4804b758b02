"""Train a network: one loop for all methods, affinity networks and segmenters."""

import contextlib
import ctypes
import dataclasses
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from wsss import launch, stopping, watch
from wsss.arrays import Float
from wsss.data.images import Images
from wsss.data.samples import DEFAULT_READING
from wsss.errors import BadInput, check_range
from wsss.networks.body import ParamGroup
from wsss.precision import Precision
from wsss.progress import Progress
from wsss.run import plain, stage, unrecorded
from wsss.stages.checkpoint import Checkpoints, discard
from wsss.storage import read_json, write_json

HISTORY = "history.json"


@dataclasses.dataclass(frozen=True)
class Training:
    """How a network is trained."""

    batch: int = 16
    """pictures in a batch, over all processes"""
    accumulate: int = 1
    """batches whose gradients are accumulated for one update"""
    epochs: int | None = 5
    """passes over the pictures; ignored if `steps` is set"""
    steps: int | None = None
    """total number of updates"""
    stop_epochs: int | None = None
    """stop training after this many epochs, with the schedule of the full length; none: train to the end, or stop as published"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """the optimiser"""
    lr: float = 0.1
    """learning rate of the backbone; parameter groups of the method multiply it"""
    weight_decay: float = 1e-4
    """weight decay, for parameter groups that have one"""
    momentum: float = 1e-4
    """momentum of SGD"""
    nesterov: bool = False
    """use Nesterov momentum"""
    poly_power: float = 0.9
    """exponent of the polynomial schedule; 0 keeps the learning rate constant"""
    poly_every: int = 1
    """updates between two changes of the learning rate"""
    poly_first: int = 0
    """number of the first update in the schedule"""
    poly_beyond: int = 0
    """updates by which the schedule is longer than the training"""
    min_lr: float = 0.0
    """final learning rate of the schedule"""
    warmup: int = 0
    """updates of linear warm-up of the learning rate"""
    warmup_from: float | None = None
    """factor of the learning rate in the first update of a warm-up that replaces the schedule, as in WeCLIP; none: the warm-up multiplies the
    schedule"""
    clip: float | None = None
    """maximum norm of the gradient; larger gradients are clipped"""
    seed: int = 0
    """random seed; for initial weights, order, augmentation and dropout"""
    precision: Precision = "no"
    """mixed precision; `no` is float32"""
    workers: int = unrecorded(-1)
    """number of loader processes; -1: one less than the number of cores, at most 8"""
    checkpoint_steps: int = unrecorded(200)
    """updates between two checkpoints, from which a killed training continues"""
    checkpoint_minutes: float = unrecorded(5.0)
    """longest time between two checkpoints, in minutes"""
    tensorboard: bool = unrecorded(False)
    """also write losses and learning rates for TensorBoard"""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "poly_every", "checkpoint_steps"):
            check_range(f"training.{name}", getattr(self, name), 1)
        for name in (
            "seed",
            "lr",
            "weight_decay",
            "warmup",
            "min_lr",
            "poly_power",
            "poly_first",
            "poly_beyond",
            "momentum",
            "checkpoint_minutes",
        ):
            check_range(f"training.{name}", getattr(self, name), 0)
        if self.warmup_from is not None:
            check_range("training.warmup_from", self.warmup_from, 0, 1)
        if self.stop_epochs is not None:
            check_range("training.stop_epochs", self.stop_epochs, 1)
        if (self.steps if self.steps is not None else self.epochs or 0) < 1:
            found = f"epochs {self.epochs} and steps {self.steps}"
            raise BadInput("training", found, "at least one epoch or step", "Set training.epochs or training.steps.")


@runtime_checkable
class Examples(Protocol):
    """Makes one training example from one picture, in a loader process."""

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Tensors of the example; all randomness comes from `rng`."""


# a socket's path has 107 bytes on Linux, of which multiprocessing takes 32 for its folder and the name
_LONGEST_TEMPORARY = 75


class Trainable(Protocol):
    """A module that can be trained: a network, its losses and its examples."""

    @property
    def network(self) -> nn.Module:
        """The network, with parameters under the published names."""

    @property
    def examples(self) -> Examples:
        """Makes the examples."""

    @property
    def stop_epochs(self) -> int | None:
        """The epoch whose weights were published, if not the last; training stops there unless the settings say otherwise."""

    @property
    def repeats(self) -> Sequence[int] | None:
        """How often each picture occurs in an epoch; None: once."""

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the weights file; `train` adds how the pictures were read, if not as 8-bit pictures."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms; their sum is minimised."""

    def param_groups(self, training: Training) -> list[ParamGroup]:
        """Parameter groups with their learning rates and weight decays."""

    def write(self, out: Path) -> None:
        """Write the trained weights into the stage's folder, with all that is needed to load them."""


class TrainableSettings(Protocol):
    """Settings that can build their trainable module."""

    @property
    def title(self) -> str:
        """Name of the method or network, for reports and records."""

    @property
    def training(self) -> Training:
        """How the network is trained."""

    @property
    def trainable(self) -> Callable[..., Trainable]:
        """Builds the network with its losses and examples, on the CPU, with initial weights, from pictures and named inputs."""


@stage(kind="train", makes="weights", title=None)
def train(settings: TrainableSettings, images: Images, *, out: Path, **inputs: Path) -> dict[str, Any]:
    """Train the network that the settings describe.

    Writes the trained weights (usually `weights.safetensors`) and `history.json` (losses and learning rate). Batches are
    formed globally and then divided among the processes, and randomness depends only on (seed, epoch, picture): 1 and n processes
    train the same network, and a killed training continues from its last intact checkpoint; on a CPU with the same number of threads it
    ends in the same bytes. After a signal, a checkpoint is saved first. Only dropout depends on the process.

    Args:
        settings: settings of the method or network.
        images: the pictures.
        out: the stage's folder.
        inputs: earlier stages or files that the method needs, by name (`init`, `masks`, ...).

    Raises:
        BadInput: no pictures, a batch size that the number of processes does not divide, fewer pictures than a batch, or a loss
            that is not finite.
        Stopped: a signal has arrived; the updates up to then are saved.
    """
    training = settings.training
    _check_batches(training, images)
    if launch.decided_by_first((out / HISTORY).exists):  # killed between its last file and its record
        return _result(images, read_json(out / HISTORY, "the losses of a training"), out)
    torch.manual_seed(training.seed)
    trainable = settings.trainable(images, **inputs)
    assert isinstance(trainable, nn.Module)
    if images.reading != DEFAULT_READING:
        trainable.metadata["reading"] = images.reading.plain()
    launch.synchronise_batch_norm(trainable)
    if launch.device().type == "cpu":
        # oneDNN trains networks with convolutions faster in this layout (docs/performance.md)
        trainable.to(memory_format=torch.channels_last)
    occurrences = _occurrences(len(images), trainable.repeats)
    epoch_steps = _epoch_steps(training, len(occurrences))
    loop = _Loop(training, trainable, _length(training, len(occurrences), trainable.stop_epochs), out)
    if training.tensorboard:
        loop.accelerator.init_trackers("wsss", config={"settings": json.dumps(plain(settings))})
    batches = _Batches(training, occurrences, epoch_steps, loop.start, loop.length.run)
    loader = _loader(trainable.examples, training, batches)
    with (
        _naming_loader_failures(),
        Progress(f"train {out.name}", loop.length.run, done=loop.start) as progress,
        contextlib.closing(_load_batches(loader)) as loaded,
    ):
        watch.training(out, trainable, loop.history)
        loop.run(loaded, progress)
        launch.wait()
        if launch.is_first():
            trainable.write(out)
            write_json(out / HISTORY, loop.history)
        launch.wait()
    loop.accelerator.free_memory()
    return _result(images, loop.history, out)


class _Length(NamedTuple):
    """Number of updates in the learning rate schedule, and number of updates that are run."""

    scheduled: int
    run: int


def update_count(training: Training, n_examples: int) -> int:
    """The number of updates in the learning rate schedule of a training with this number of examples per epoch."""
    if training.steps is not None:
        return training.steps
    return _epoch_steps(training, n_examples) * (training.epochs or 0)


def _length(training: Training, n_examples: int, published_stop: int | None) -> _Length:
    scheduled, epoch_steps = update_count(training, n_examples), _epoch_steps(training, n_examples)
    stop = training.stop_epochs or published_stop
    return _Length(scheduled, scheduled if stop is None else min(scheduled, epoch_steps * stop))


class _Loop:
    """A training, from its last checkpoint on.

    Args:
        training: how the network is trained.
        trainable: a module, on the CPU.
        length: number of updates.
        out: the stage's folder.

    Attributes:
        start: number of updates done before.
        history: losses and learning rate of each update.
    """

    def __init__(self, training: Training, trainable: Trainable, length: _Length, out: Path) -> None:
        self.training, self.length, self.out = training, length, out
        trackers = str(out / "tensorboard") if training.tensorboard else None
        self.accelerator = launch.accelerator(training.precision, training.accumulate, trackers)
        groups = trainable.param_groups(training)
        self.base_lrs = [group["lr"] for group in groups]
        self.model, self.optimizer = self.accelerator.prepare(trainable, make_optimizer(training, groups))
        self.checkpoints = Checkpoints(out, trainable, self.optimizer, self.accelerator.scaler)
        self.start, self.history = self.checkpoints.restore(length.run)
        self.saved_at = time.monotonic()

    def run(self, loaded: Iterator[dict[str, Tensor]], progress: Progress) -> None:
        """Run the remaining updates.

        Raises:
            Stopped: a signal has arrived; a checkpoint is saved.
            BadInput: a loss that is not finite, or a bad picture.
        """
        self.model.train()
        self.saved_at = time.monotonic()
        for step in range(self.start, self.length.run):
            update = self._update(step, loaded)
            self.history.append({"step": step, "lr": self.optimizer.param_groups[0]["lr"], **update.terms})
            progress.advance(" ".join(f"{name} {value:.4f}" for name, value in update.terms.items()), stop=False)
            if self.training.tensorboard:
                self.accelerator.log({**update.terms, "lr": self.history[-1]["lr"]}, step=step)
            due = update.overdue or (step + 1) % self.training.checkpoint_steps == 0
            if update.stop or (due and step + 1 < self.length.run):
                self.checkpoints.save(step + 1, self.history)
                self.saved_at = time.monotonic()
            if update.stop:
                launch.wait()  # no process ends before process 0 has saved
                number = stopping.requested_signal() or signal.SIGTERM
                raise stopping.Stopped(
                    number, f"train {self.out.name}: {step + 1} of {self.length.run} updates are saved"
                )
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _update(self, step: int, loaded: Iterator[dict[str, Tensor]]) -> "_Update":
        scale = poly_factor(self.training, step, self.length.scheduled)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = (base - self.training.min_lr) * scale + self.training.min_lr
        terms: dict[str, float] = {}
        overdue = stop = False
        for part in range(self.training.accumulate):
            losses = self._backward(next(loaded), step, part)
            # only the clock of process 0 counts, and a signal may reach only one process
            waited = time.monotonic() - self.saved_at
            overdue = launch.is_first() and waited >= 60 * self.training.checkpoint_minutes
            means, overdue, stop = _mean_losses(
                losses, overdue, stopping.requested_signal() is not None, self.accelerator
            )
            for name, value in means.items():
                terms[name] = terms.get(name, 0.0) + value / self.training.accumulate
        _check_finite(terms, step)
        return _Update(terms, overdue, stop)

    def _backward(self, batch: dict[str, Tensor], step: int, part: int) -> dict[str, Tensor]:
        """The losses of a batch; gradients accumulate, and the last batch of an update changes the weights."""
        # the same dropout in a continued training as in an uninterrupted one
        torch.manual_seed(_seed(self.training.seed, step, part, launch.rank()))
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            losses = self.model({key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()})
            accelerator.backward(sum(losses.values()))
            if self.training.clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.model.parameters(), self.training.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return losses


class _Update(NamedTuple):
    """Mean losses over all processes, and whether any process has a checkpoint overdue or has to stop."""

    terms: dict[str, float]
    overdue: bool
    stop: bool


def _result(images: Images, history: list[dict[str, float]], out: Path) -> dict[str, Any]:
    if launch.is_first():
        discard(out)
    return {"steps": len(history), "images": len(images), "final": history[-1]}


def poly_factor(training: Training, step: int, n_steps: int) -> float:
    """Factor of the learning rate in update number `step`: (1 - step / n_steps) ** power, after a linear warm-up."""
    if training.warmup_from is not None and step < training.warmup:
        return 1 - (1 - step / training.warmup) * (1 - training.warmup_from)
    warmup = min(1.0, (step + 1) / (training.warmup + 1)) if training.warmup_from is None else 1.0
    counted = min(step, n_steps - 1) + training.poly_first
    stepped = counted // training.poly_every * training.poly_every
    return warmup * (1 - stepped / max(n_steps + training.poly_beyond, 1)) ** training.poly_power


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _check_batches(training: Training, images: Images) -> None:
    if len(images) == 0:
        raise BadInput(images.title, "no pictures", "pictures to train on", "Check the dataset with `wsss data info`.")
    if training.batch % launch.processes():
        raise BadInput(
            "training.batch",
            f"a batch of {training.batch} for {launch.processes()} processes",
            "a batch size that the number of processes divides",
            "Change the batch size or the number of processes.",
        )
    if len(images) < training.batch:
        raise BadInput(
            images.title,
            f"{len(images)} pictures",
            f"at least one batch of {training.batch}",
            "Add pictures, or set a smaller training.batch.",
        )


def _occurrences(n_images: int, repeats: Sequence[int] | None) -> list[tuple[int, int]]:
    """The pictures of an epoch, each with the number of its occurrence, from 0."""
    return [(index, copy) for index in range(n_images) for copy in range(1 if repeats is None else repeats[index])]


def _epoch_steps(training: Training, n_examples: int) -> int:
    """The updates of an epoch; incomplete batches and updates are dropped, as in the published loaders."""
    return max(1, n_examples // training.batch // training.accumulate)


def make_optimizer(training: Training, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
    """The optimiser of a training, for parameter groups that may set `lr` and `weight_decay`."""
    given = [dict(group) for group in groups]
    if training.optimizer == "adamw":
        # one kernel for each weight instead of ten; on GPUs torch chooses, and losses of fp16 are scaled
        fused = True if launch.device().type == "cpu" and training.precision != "fp16" else None
        return torch.optim.AdamW(given, lr=training.lr, weight_decay=training.weight_decay, fused=fused)
    return torch.optim.SGD(
        given,
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.nesterov,
    )


class _Batches:
    """This process's part of the batches, as lists of (epoch, picture, occurrence in the epoch), from update `start` on."""

    def __init__(
        self, training: Training, occurrences: Sequence[tuple[int, int]], epoch_steps: int, start: int, n_steps: int
    ) -> None:
        self.training, self.occurrences, self.epoch_steps = training, occurrences, epoch_steps
        self.start, self.n_steps = start, n_steps

    def __len__(self) -> int:
        return (self.n_steps - self.start) * self.training.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        batch, order, ordered, count = self.training.batch, np.empty(0, np.int64), -1, len(self.occurrences)
        for position in range(self.start * self.training.accumulate, self.n_steps * self.training.accumulate):
            epoch, within = divmod(position, self.epoch_steps * self.training.accumulate)
            if epoch != ordered:
                order, ordered = np.random.default_rng([self.training.seed, epoch]).permutation(count), epoch
            chosen = [int(order[i % count]) for i in range(within * batch, (within + 1) * batch)]
            yield [(epoch, *self.occurrences[position]) for position in launch.share(chosen)]


class _Seeded(TorchDataset[dict[str, Any] | BadInput]):
    """Examples by (epoch, picture, occurrence in the epoch).

    For a bad picture its error is returned, since torch would wrap one raised in a loader process.
    """

    def __init__(self, examples: Examples, seed: int) -> None:
        self.examples, self.seed = examples, seed

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, Any] | BadInput:
        epoch, index, copy = key
        try:
            # later occurrences have other random numbers; the first one has those of a picture that occurs once
            return self.examples(index, np.random.default_rng([self.seed, epoch, index, *([copy] if copy else [])]))
        except BadInput as error:
            return error


def _collated(examples: list[dict[str, Any] | BadInput]) -> dict[str, Any] | BadInput:
    return next((item for item in examples if isinstance(item, BadInput)), None) or default_collate(examples)


def _loader(examples: Examples, training: Training, batches: _Batches) -> DataLoader[dict[str, Any] | BadInput]:
    workers = training.workers if training.workers >= 0 else min(8, max(1, launch.threads() - 1))
    if workers:
        _check_sockets()
    return DataLoader(
        _Seeded(examples, training.seed),
        batch_sampler=batches,
        collate_fn=_collated,
        num_workers=workers,
        pin_memory=launch.device().type == "cuda",
        worker_init_fn=_start_loader_process,
        prefetch_factor=4 if workers else None,
    )


def _check_sockets() -> None:
    """Raise BadInput where loader processes could hand nothing over: they use sockets below the folder for temporary files, and wait forever
    if their paths are too long for the system (seen with torch 2.15 and Python 3.11)."""
    folder = tempfile.gettempdir()
    length = len(os.fsencode(folder))
    if sys.platform == "linux" and length > _LONGEST_TEMPORARY:
        raise BadInput(
            "TMPDIR",
            f"{folder}, a path of {length} bytes",
            f"at most {_LONGEST_TEMPORARY}, for the sockets of loader processes",
            "Set TMPDIR to a folder with a shorter path, such as /tmp, or the setting training.workers to 0.",
        )


def _start_loader_process(worker: int) -> None:
    torch.set_num_threads(1)
    # signals reach all processes of a terminal or job, but the current update still needs its examples
    for number in stopping.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # the process dies with its parent, however that ends
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def _naming_loader_failures() -> Iterator[None]:
    """Turn the errors that torch raises after a loader process was killed into BadInput."""
    try:
        yield
    except (
        RuntimeError,
        ConnectionError,
        EOFError,
    ) as error:  # the latter two if it was killed while sending an example
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        if not isinstance(error, RuntimeError):  # torch's own error follows when the process has ended
            with contextlib.suppress(RuntimeError):
                time.sleep(1.0)
        raise BadInput(
            "training.workers",
            f"a loader process that was killed ({error})",
            "loader processes that run until the training ends",
            "If memory ran out, set fewer of them. Run the same command to continue from the last checkpoint.",
        ) from error


def _load_batches(loader: DataLoader[dict[str, Any] | BadInput]) -> Generator[dict[str, Tensor], None, None]:
    """The batches; closing the generator ends the loader processes.

    Raises:
        BadInput: a picture is bad.
    """
    for batch in loader:
        if isinstance(batch, BadInput):
            raise batch
        yield batch


def _mean_losses(
    losses: dict[str, Tensor], overdue: bool, stop: bool, accelerator: Accelerator
) -> tuple[dict[str, float], bool, bool]:
    """Means of the losses over all processes, and whether any process has a checkpoint overdue or has to stop."""
    values = torch.stack([value.detach().float() for value in losses.values()])
    flags = values.new_tensor([overdue, stop])
    means = accelerator.reduce(torch.cat([values, flags]), reduction="mean").tolist()
    return dict(zip(losses, means, strict=False)), means[-2] > 0, means[-1] > 0


def _check_finite(terms: dict[str, float], step: int) -> None:
    broken = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
    if broken:
        raise BadInput(
            f"training, update {step}",
            f"a loss that is not finite ({', '.join(broken)})",
            "finite losses",
            "Lower training.lr, set training.clip, or train without mixed precision.",
        )
