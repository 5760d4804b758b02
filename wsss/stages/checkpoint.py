"""Checkpoints: what a training that was stopped or killed goes on from, and how a damaged one is told from a whole one.

A file is a line with what it is, the digest of all that follows, and a line with the identity of the stage, before what torch
writes. The last two are kept, so that whatever befalls the newer one, or a process while it is written, there is another.
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

CHECKPOINT, BEFORE = "checkpoint.pt", "checkpoint-before.pt"
KIND = b"wsss checkpoint 1\n"

log = logging.getLogger("wsss")

History = list[dict[str, float]]


class Unusable(Exception):
    """Why a checkpoint cannot be gone on from."""


class Checkpoints:
    """The checkpoints of one training.

    Args:
        out: the stage's folder, with its `started.json`.
        trainable: the module whose state is kept.
        optimizer: its optimiser, which `restore` fills.
        scaler: of half precision, None where there is none.
    """

    def __init__(self, out: Path, trainable: Any, optimizer: Any, scaler: Any) -> None:
        self.out, self.trainable, self.optimizer, self.scaler = out, trainable, optimizer, scaler
        started = read_json(out / STARTED, "the record of a stage that has begun")
        self._identity = f"{started['identity']}\n".encode()

    def save(self, step: int, history: Sequence[dict[str, float]]) -> None:
        """Write what is known after `step` updates, on process 0; the one before stays."""
        if not launch.is_first():
            return
        content = {
            "step": step,
            "history": list(history),
            "network": self.trainable.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }
        # torch's own writer reports a full disk as an error of its archive
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
                os.replace(path, self.out / BEFORE)

    def restore(self, last: int) -> tuple[int, History]:
        """Load the last whole checkpoint into module and optimiser, on every process.

        What cannot be used is said and removed.

        Args:
            last: updates that the training has in all.

        Returns:
            Updates that are done, and their losses; 0 and none where the training begins at its start.

        Raises:
            BadInput: the processes do not see the same files.
        """
        content: dict[str, Any] | None = None

        def choose() -> str | None:
            nonlocal content
            unusable = []
            for name in (CHECKPOINT, BEFORE):
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
                log.warning("%s: the training goes on from %s", self.out, how)
            for name in unusable:  # it must not take the place of a whole one
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
                    "Choose an output folder that all of them share.",
                ) from reason
        self.trainable.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(content["scaler"])
        log.info("%s: going on at update %d", self.out, content["step"])
        return content["step"], content["history"]

    def _read(self, path: Path, last: int) -> dict[str, Any]:
        """What a checkpoint holds.

        Raises:
            Unusable: it is damaged, of another training, or does not fit this one.
        """
        whole = path.read_bytes()
        head, digest, rest = whole[: len(KIND)], whole[len(KIND) :][:64], whole[len(KIND) + 65 :]
        if head != KIND:
            raise Unusable("it is empty, cut off or no checkpoint of this program")
        if hashlib.sha256(rest).hexdigest().encode() != digest or whole[len(KIND) + 64] != ord("\n"):
            raise Unusable("it is cut off or its bytes have changed")
        if not rest.startswith(self._identity):
            raise Unusable("it belongs to another training")
        try:
            content = torch.load(io.BytesIO(rest[len(self._identity) :]), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, EOFError, OSError) as error:
            raise Unusable(f"torch cannot read it: {type(error).__name__}") from error
        self._check(content, last)
        return content

    def _check(self, content: Any, last: int) -> None:
        """Raise Unusable unless all of it can be loaded: what is loaded in part is neither the one nor the other training."""
        if not isinstance(content, dict) or {*content} != {"step", "history", "network", "optimizer", "scaler"}:
            raise Unusable("it holds something else")
        step, history = content["step"], content["history"]
        if type(step) is not int or not 0 < step <= last:
            raise Unusable(f"it is of update {step!r} of {last}")
        if not isinstance(history, list) or len(history) != step or not all(map(_is_row, history)):
            raise Unusable("its losses are not those of its updates")
        if _shapes(content["network"]) != _shapes(self.trainable.state_dict()):
            raise Unusable("its network has other layers")
        if not self._fits(content["optimizer"]):
            raise Unusable("its optimiser's state does not fit the network")
        if (content["scaler"] is None) != (self.scaler is None):
            raise Unusable("it is of another precision")

    def _fits(self, state: Any) -> bool:
        """Whether the optimiser can go on from a state: its groups, and a tensor of its parameter's shape, or a number, for each."""
        own = self.optimizer.state_dict()["param_groups"]
        if not isinstance(state, dict) or {*state} != {"param_groups", "state"} or not isinstance(state["state"], dict):
            return False
        groups = state["param_groups"]
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            return False
        if [(group.get("params"), {*group}) for group in groups] != [(group["params"], {*group}) for group in own]:
            return False
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        shapes = dict(
            zip((index for group in own for index in group["params"]), (p.shape for p in parameters), strict=True)
        )
        return all(
            index in shapes
            and isinstance(kept, dict)
            and all(
                not isinstance(value, torch.Tensor) or value.shape in (shapes[index], torch.Size([]))
                for value in kept.values()
            )
            for index, kept in state["state"].items()
        )


def discard(out: Path) -> None:
    """Remove the checkpoints of a training that is done."""
    for name in (CHECKPOINT, BEFORE):
        (out / name).unlink(missing_ok=True)


def _is_row(row: Any) -> bool:
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
