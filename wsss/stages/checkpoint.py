"""Checkpoints, from which a stopped or killed training continues, and how a damaged one is recognised.

A file consists of a line with the format, a line with the digest of all that follows, a line with the identity of the stage,
and the data that torch writes. The last two checkpoints are kept, in case the newer one is damaged or only partly written.
"""

import hashlib
import io
import logging
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wsss import launch
from wsss.errors import BadInput
from wsss.run import STARTED
from wsss.storage import read_json, whole_file

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint-before.pt"
KIND = b"wsss checkpoint 1\n"

log = logging.getLogger("wsss")

History = list[dict[str, float]]


class Unusable(Exception):
    """The reason why a training cannot continue from a checkpoint."""


class Checkpoints:
    """The checkpoints of one training.

    Args:
        out: the stage's folder, with its `started.json`.
        trainable: the module whose state is saved.
        optimizer: its optimiser, which `restore` fills.
        scaler: gradient scaler of half precision, None if there is none.
    """

    def __init__(self, out: Path, trainable: Any, optimizer: Any, scaler: Any) -> None:
        self.out, self.trainable, self.optimizer, self.scaler = out, trainable, optimizer, scaler
        started = read_json(out / STARTED, "the record of an unfinished stage")
        self._identity = f"{started['identity']}\n".encode()

    def save(self, step: int, history: Sequence[dict[str, float]]) -> None:
        """Write a checkpoint after `step` updates, on process 0, and keep the previous one."""
        if not launch.is_first():
            return
        content = {
            "step": step,
            "history": list(history),
            "network": self.trainable.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        # torch's writer would report a full disk as an error of its archive format
        buffer = io.BytesIO()
        torch.save(content, buffer)
        digest = hashlib.sha256(self._identity)
        digest.update(buffer.getbuffer())
        path = self.out / CHECKPOINT
        with whole_file(path) as temporary:
            with temporary.open("wb") as stream:
                stream.write(KIND + digest.hexdigest().encode() + b"\n" + self._identity)
                stream.write(buffer.getbuffer())
            if path.exists():
                os.replace(path, self.out / PREVIOUS)

    def restore(self, last: int) -> tuple[int, History]:
        """Load the last intact checkpoint into module and optimiser, on every process.

        Unusable checkpoints are reported and removed.

        Args:
            last: total number of updates of the training.

        Returns:
            The number of updates done, and their losses; 0 and none if there is no checkpoint.

        Raises:
            BadInput: processes see different files.
        """
        content: dict[str, Any] | None = None

        def choose() -> str | None:
            nonlocal content
            unusable = []
            for name in (CHECKPOINT, PREVIOUS):
                if (self.out / name).exists():
                    try:
                        content = self._read(self.out / name, last)
                    except Unusable as reason:
                        unusable.append(name)
                        log.warning("%s: cannot be used (%s)", self.out / name, reason)
                    else:
                        break
            if unusable:
                how = f"update {content['step']}" if content else "its start"
                log.warning("%s: the training continues from %s", self.out, how)
            for name in unusable:  # it must not become the previous checkpoint of the next save
                (self.out / name).unlink()
            return name if content else None

        name = launch.decided_by_first(choose)
        if name is None:
            return 0, []
        if content is None:
            try:
                content = self._read(self.out / name, last)
            except (Unusable, OSError) as reason:
                raise BadInput(
                    self.out / name,
                    f"a checkpoint that process 0 can use and process {launch.rank()} cannot ({reason})",
                    "the same files on all hosts",
                    "Choose an output folder that all hosts share.",
                ) from reason
        self.trainable.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(content["scaler"])
        log.info("%s: continuing at update %d", self.out, content["step"])
        return content["step"], content["history"]

    def _read(self, path: Path, last: int) -> dict[str, Any]:
        """The content of a checkpoint.

        Raises:
            Unusable: it is damaged, belongs to another training, or does not match this one.
        """
        data = path.read_bytes()
        head, digest, rest = data[: len(KIND)], data[len(KIND) :][:64], data[len(KIND) + 65 :]
        if head != KIND:
            raise Unusable("it is empty, truncated or not a checkpoint of this program")
        if hashlib.sha256(rest).hexdigest().encode() != digest or data[len(KIND) + 64] != ord("\n"):
            raise Unusable("it is truncated or its bytes have changed")
        if not rest.startswith(self._identity):
            raise Unusable("it belongs to another training")
        try:
            content = torch.load(io.BytesIO(rest[len(self._identity) :]), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, EOFError, OSError) as error:
            raise Unusable(f"torch cannot read it: {type(error).__name__}") from error
        self._check(content, last)
        return content

    def _check(self, content: Any, last: int) -> None:
        """Raise Unusable unless all of it can be loaded: a state that is loaded in part would mix two trainings."""
        if not isinstance(content, dict) or {*content} != {"step", "history", "network", "optimizer", "scaler"}:
            raise Unusable("it has other content")
        step, history = content["step"], content["history"]
        if type(step) is not int or not 0 < step <= last:
            raise Unusable(f"it is of update {step!r} of {last}")
        if not isinstance(history, list) or len(history) != step or not all(map(_is_history_entry, history)):
            raise Unusable("its losses do not match its updates")
        if _shapes(content["network"]) != _shapes(self.trainable.state_dict()):
            raise Unusable("its network has other layers")
        if not self._fits(content["optimizer"]):
            raise Unusable("its optimiser's state does not fit the network")
        if (content["scaler"] is None) != (self.scaler is None):
            raise Unusable("it has another precision")

    def _fits(self, state: Any) -> bool:
        """Whether a state matches the optimiser: the same groups, and for each parameter tensors of its shape, or numbers."""
        expected = self.optimizer.state_dict()["param_groups"]
        if not isinstance(state, dict) or {*state} != {"param_groups", "state"} or not isinstance(state["state"], dict):
            return False
        groups = state["param_groups"]
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            return False
        if [(group.get("params"), {*group}) for group in groups] != [(group["params"], {*group}) for group in expected]:
            return False
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        shapes = dict(
            zip((index for group in expected for index in group["params"]), (p.shape for p in parameters), strict=True)
        )
        return all(
            index in shapes
            and isinstance(entries, dict)
            and all(
                not isinstance(value, torch.Tensor) or value.shape in (shapes[index], torch.Size([]))
                for value in entries.values()
            )
            for index, entries in state["state"].items()
        )


def discard(out: Path) -> None:
    """Remove the checkpoints of a finished training."""
    for name in (CHECKPOINT, PREVIOUS):
        (out / name).unlink(missing_ok=True)


def _is_history_entry(row: Any) -> bool:
    return (
        isinstance(row, Mapping)
        and {"step", "lr"} <= {*row}
        and all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())
    )


def _shapes(state: Any) -> Any:
    if not isinstance(state, Mapping):
        return None
    return {
        name: (value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value)
        for name, value in state.items()
    }
