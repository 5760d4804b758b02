"""A bank of region features: what a retrieval segmenter knows, in one file. It grows by adding pictures, and forgets nothing."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss.arrays import Bool, Float, Float16, Int32, Int64, UInt8
from wsss.errors import BadInput
from wsss.ops.retrieval import LeftOut, Voting, background_threshold, leave_pictures_out, nearest_to_mean, unit_rows
from wsss.weights import State

_PREFIX, _NETWORK = "bank.", "network."
# more vectors are not compared with all others: they are sampled evenly
MOST_LEFT_OUT = 10_000
# how much the length of a vector may differ from 1 in float16
_ROUNDED = 0.01
# the tensors that a bank consists of, with the type and the shape of each row
_LAYOUT: Mapping[str, tuple[type, tuple[int, ...]]] = {
    "labels": (np.uint8, ()),
    "pictures": (np.int32, ()),
    "areas": (np.int32, ()),
    "boxes": (np.int32, (4,)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Bank:
    """Unit vectors of regions of training pictures, and where they come from.

    Attributes:
        names: of the pictures.
        vectors: of the regions, (m, d), float16.
        labels: their labels, 0 for the background.
        pictures: number of the picture of each.
        areas: number of pixels of each, after the erosion.
        boxes: top, left, bottom and right of each in its picture, in pixels; bottom and right lie outside.
    """

    names: tuple[str, ...]
    vectors: Float16[np.ndarray, "m d"]
    labels: UInt8[np.ndarray, " m"]
    pictures: Int32[np.ndarray, " m"]
    areas: Int32[np.ndarray, " m"]
    boxes: Int32[np.ndarray, "m 4"]

    def __len__(self) -> int:
        return len(self.labels)

    def unit_vectors(self) -> Float[np.ndarray, "m d"]:
        """The vectors in single precision."""
        return unit_rows(self.vectors)

    def kept(self, dropped: float) -> Int64[np.ndarray, " k"]:
        """The vectors that vote, as ascending indices: of each class, the share that is farthest from its mean does not; all of the background do."""
        chosen = [np.flatnonzero(self.labels == 0)]
        for label in np.unique(self.labels[self.labels > 0]):
            of_label = np.flatnonzero(self.labels == label)
            chosen.append(of_label[nearest_to_mean(unit_rows(self.vectors[of_label]), dropped)])
        return np.sort(np.concatenate(chosen)).astype(np.int64)

    def check_vectors(self, width: int, where: Path) -> None:
        """Raise BadInput unless the vectors are unit vectors of this width, as those of their network."""
        found = ""
        if self.vectors.shape[1] != width:
            found = f"vectors of {self.vectors.shape[1]} numbers for a network with {width}"
        else:
            lengths = np.sqrt(np.einsum("md,md->m", self.vectors, self.vectors, dtype=np.float32))
            if (np.abs(lengths - 1) > _ROUNDED).any():
                found = f"vectors of lengths from {lengths.min():.3g} to {lengths.max():.3g}"
        if found:
            expected = "unit vectors of a bank that belongs to its network"
            raise BadInput(where, found, expected, "Make the segmenter again.")

    def chosen(self, rows: Int64[np.ndarray, " k"] | Bool[np.ndarray, " m"]) -> "Bank":
        """The bank of these vectors; it keeps all names."""
        arrays = (self.vectors, self.labels, self.pictures, self.areas, self.boxes)
        return Bank(self.names, *(array[rows] for array in arrays))

    def without_pictures(self, names: Sequence[str]) -> "Bank":
        """The bank without the vectors and the names of these pictures."""
        gone = set(names)
        stays = np.array([name not in gone for name in self.names], bool)
        number = np.cumsum(stays) - 1
        bank = self.chosen(stays[self.pictures])
        kept = tuple(name for name in self.names if name not in gone)
        return dataclasses.replace(bank, names=kept, pictures=number[bank.pictures].astype(np.int32))

    def joined(self, other: "Bank") -> "Bank":
        """The vectors of both, those of this bank first. They have no picture in common."""
        pictures = np.concatenate([self.pictures, other.pictures + np.int32(len(self.names))])
        arrays = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("vectors", "labels", "areas", "boxes")
        }
        return Bank((*self.names, *other.names), pictures=pictures, **arrays)

    def left_out(self, n_labels: int, k: int, voting: Voting) -> tuple[Int64[np.ndarray, " q"], LeftOut]:
        """What the others say about each vector, or about 10,000 of them: their indices, and the votes."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), MOST_LEFT_OUT)).round().astype(np.int64))
        labels = self.labels.astype(np.int64)
        found = leave_pictures_out(self.unit_vectors(), labels, self.pictures, n_labels, k=k, voting=voting, rows=rows)
        return rows, found

    def threshold(self, n_labels: int, k: int, voting: Voting) -> float:
        """See `background_threshold`."""
        rows, found = self.left_out(n_labels, k, voting)
        return background_threshold(found, self.labels[rows].astype(np.int64))

    def state(self, network: Mapping[str, Tensor]) -> State:
        """The tensors of the file.

        Args:
            network: the weights of a network that has no file of its own.
        """
        arrays = {f"{_PREFIX}{name}": torch.from_numpy(getattr(self, name)) for name in ("vectors", *_LAYOUT)}
        return {**arrays, **{f"{_NETWORK}{name}": value for name, value in network.items()}}


def bank_of(state: Mapping[str, Tensor], names: Any, n_labels: int, where: Path) -> tuple[Bank, State]:
    """The bank in a file's tensors, and the weights of the network in it.

    Raises:
        BadInput: tensors are missing or do not fit together.
    """
    network = {name.removeprefix(_NETWORK): value for name, value in state.items() if name.startswith(_NETWORK)}
    do = "The file was changed after it was written: restore it, or make the segmenter again."
    tensors = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    if set(tensors) != {"vectors", *_LAYOUT}:
        raise BadInput(where, f"tensors {', '.join(sorted(tensors))}", f"vectors, {', '.join(_LAYOUT)}", do)
    rows = len(tensors["vectors"]) if tensors["vectors"].ndim else 0
    for name, tensor in tensors.items():
        kind, shape = _LAYOUT[name] if name in _LAYOUT else (np.float16, tuple(tensor.shape[-1:]))
        described = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if described != (np.dtype(kind).name, (rows, *shape)):
            expected = f"{np.dtype(kind)} {(rows, *shape)}" if name in _LAYOUT else "float16 (regions, width)"
            raise BadInput(where, f"`{_PREFIX}{name}`: {described[0]} {described[1]}", expected, do)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise BadInput(where, f"the pictures {names!r:.40}", "a list of names, each once", do)
    bank = Bank(tuple(names), **{name: tensor.numpy() for name, tensor in tensors.items()})
    problem = _problem(bank, n_labels)
    if problem is not None:
        raise BadInput(where, *problem, do)
    return bank, network


def _problem(bank: Bank, n_labels: int) -> tuple[str, str] | None:
    """What was found in a bank that cannot be so, and what was expected; None if all is well."""
    limits = {"labels": n_labels, "pictures": len(bank.names)}
    for name, limit in limits.items():
        values = getattr(bank, name)
        if len(bank) and not 0 <= int(values.min()) <= int(values.max()) < limit:
            return f"`{_PREFIX}{name}` from {values.min()} to {values.max()}", f"numbers from 0 to {limit - 1}"
    if not (bank.labels > 0).any():
        return "a bank without a region of any class", "regions of the classes"
    top_left, bottom_right = bank.boxes[:, :2], bank.boxes[:, 2:]
    if (bank.areas < 1).any() or (top_left < 0).any() or (bottom_right <= top_left).any():
        return "boxes or areas of regions that have no pixel", "regions of pictures"
    return None
