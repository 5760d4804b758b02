"""Processes and devices: only this module knows how many there are.

`torchrun`, `accelerate launch` and `srun` start the same command in every process. Training averages gradients over
them; in per-picture stages each process takes every n-th picture.
"""

import atexit
import datetime
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from wsss import peers
from wsss.errors import BadInput
from wsss.precision import Precision, warn_if_slow

Item = TypeVar("Item")

# Variables of srun and their names in torchrun; the user has to set MASTER_ADDR and MASTER_PORT
_SLURM = {"SLURM_PROCID": "RANK", "SLURM_NTASKS": "WORLD_SIZE", "SLURM_LOCALID": "LOCAL_RANK"}

# Between two stages, one process may be hours ahead of another
TIMEOUT = datetime.timedelta(hours=24)


@functools.cache
def _state() -> PartialState:
    for slurm, torchrun in _SLURM.items():
        if slurm in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            os.environ.setdefault(torchrun, os.environ[slurm])
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    state = PartialState(cpu=_on_cpu(), timeout=TIMEOUT, **(_rendezvous() if several else {}))
    # gloo's threads abort a process that ends before its process group is destroyed
    atexit.register(state.destroy_process_group)
    return state


def _rendezvous() -> dict[str, Any]:
    """Arguments of the process group, once all processes have joined and watch each other."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise BadInput(
            "processes",
            f"WORLD_SIZE {os.environ['WORLD_SIZE']} without {', '.join(missing)}",
            "all of WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT",
            "Set them, or start with torchrun or accelerate launch; unset WORLD_SIZE for one process.",
        )
    devices = torch.accelerator.device_count()
    os.environ.setdefault("LOCAL_RANK", str(int(os.environ["RANK"]) % devices if devices else int(os.environ["RANK"])))
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=peers.JOIN_TIMEOUT)))
        peers.connect(store, rank, count, os.environ["MASTER_ADDR"])
    except dist.DistError as error:
        raise BadInput(
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            f"no rendezvous of the {os.environ['WORLD_SIZE']} processes ({str(error).splitlines()[0]})",
            "a free port on the host of process 0, and all processes started within a few minutes",
            "Change MASTER_ADDR or MASTER_PORT, or find out why some processes did not start.",
        ) from error
    return {"store": store, "rank": rank, "world_size": count}


def join() -> None:
    """Join the other processes of this command, if there are any, before anything can fail in one of them."""
    _state()


def _on_cpu() -> bool:
    # accelerate runs several processes on CPUs only if cpu=True is set explicitly
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def device() -> torch.device:
    """The device of this process: a GPU if there is one, unless ACCELERATE_USE_CPU is set."""
    return _state().device


def described_device() -> str:
    """The device of this process, with its name or its number of threads, and how many processes there are."""
    kind = device().type
    name = torch.cuda.get_device_name(device()) if kind == "cuda" else f"{threads()} threads" if kind == "cpu" else ""
    several = f", {processes()} processes" if processes() > 1 else ""
    return f"{kind}{f' ({name})' if name else ''}{several}"


def require(kind: Literal["cuda", "mps"]) -> None:
    """Raise BadInput unless torch can use a device of this kind."""
    if not (torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()):
        found = f"{kind}, but torch {torch.__version__} finds no such device"
        raise BadInput("--device", found, "a device of this machine", "Use --device auto or cpu, or check the driver.")


def processes() -> int:
    """How many processes run this command."""
    return _state().num_processes


def rank() -> int:
    """The number of this process, from 0."""
    return _state().process_index


def is_first() -> bool:
    """Whether this is process 0, which writes records and prints."""
    return _state().is_main_process


def threads() -> int:
    """Number of threads for this process: the cores of the machine divided by the processes on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes()))
    return max(1, cores // local)


def wait() -> None:
    """Wait until every process has reached this point."""
    _state().wait_for_everyone()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share of the items: every n-th one."""
    return items[rank() :: processes()]


def decided_by_first(decide: Callable[[], Item]) -> Item:
    """Run `decide` on process 0 only, and return its result, or raise its BadInput, on all processes."""
    if processes() == 1:
        return decide()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = decide()
        except BadInput as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def summed(counts: np.ndarray) -> np.ndarray:
    """The sum of an integer array over all processes."""
    if processes() == 1:
        return counts
    total = torch.from_numpy(np.ascontiguousarray(counts)).to(device())
    dist.all_reduce(total)
    return total.cpu().numpy()


def gathered(items: Sequence[Item]) -> list[Item]:
    """The items of all processes in one list, in the order of the processes."""
    if processes() == 1:
        return list(items)
    parts: list[Any] = [None] * processes()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without gradient."""
    if processes() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / processes()


def joined(value: Tensor) -> Tensor:
    """The rows of all processes, in the order of the global batch, with a gradient for the rows of this process."""
    if processes() == 1:
        return value
    return _JoinOverProcesses.apply(value)


def accelerator(precision: Precision, accumulate: int, tracker_folder: str | None) -> Accelerator:
    """Hugging Face accelerate, set up for one training.

    Args:
        precision: `no` (float32), `bf16` or `fp16`.
        accumulate: batches whose gradients are accumulated for one update.
        tracker_folder: folder for TensorBoard's files, None for no tracking.
    """
    warn_if_slow(precision, device().type)
    # one command may train several networks with different precisions
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(
        cpu=_on_cpu(),
        mixed_precision=precision,
        gradient_accumulation_steps=accumulate,
        log_with="tensorboard" if tracker_folder else None,
        project_dir=tracker_folder,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=TIMEOUT),
            # some timm backbones have layers that do not contribute to the last feature map
            DistributedDataParallelKwargs(find_unused_parameters=True),
        ],
        step_scheduler_with_optimizer=False,
    )


def synchronise_batch_norm(network: nn.Module) -> None:
    """Make batch norms compute batch statistics over all processes.

    torch's SyncBatchNorm runs only on GPUs, and its converter drops the activations inside timm's norm layers.
    """
    if processes() == 1:
        return
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.__class__ = _shared_batch_norm(type(module))  # type: ignore[arg-type]


@functools.cache
def _shared_batch_norm(kind: type[nn.BatchNorm2d]) -> type[nn.BatchNorm2d]:
    """A subclass of `kind` with batch statistics over all processes."""

    class SharedBatchNorm(kind):  # type: ignore[valid-type, misc]
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return super().forward(x)
            with torch.autocast(x.device.type, enabled=False):
                out = self._normalised(x if x.dtype == torch.float64 else x.float()).to(x.dtype)
            return self.act(self.drop(out)) if hasattr(self, "act") else out

        def _normalised(self, x: Tensor) -> Tensor:
            count = _sum_over_processes(torch.tensor([x.numel() / x.shape[1]], dtype=x.dtype, device=x.device))
            mean = _sum_over_processes(x.sum((0, 2, 3))) / count
            centred = x - mean[:, None, None]
            variance = _sum_over_processes((centred * centred).sum((0, 2, 3))) / count
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
            out = centred * torch.rsqrt(variance + self.eps)[:, None, None]
            return out * self.weight[:, None, None] + self.bias[:, None, None] if self.affine else out

    return SharedBatchNorm


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; the loss of every process depends on the value of each."""

    @staticmethod
    def forward(context: FunctionCtx, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class _JoinOverProcesses(torch.autograd.Function):
    """All rows on every process; all compute the same loss, and the gradients of this process's rows are summed over the processes."""

    @staticmethod
    def forward(context: FunctionCtx, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value) for _ in range(processes())]
        dist.all_gather(parts, value.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(context: FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total[rank() :: processes()]


def _sum_over_processes(value: Tensor) -> Tensor:
    return _SumOverProcesses.apply(value)
