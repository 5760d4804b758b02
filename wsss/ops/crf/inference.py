"""The dense CRF of a picture, on the CPU or on any device of torch."""

import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard, TypeVar, overload

import numpy as np

from wsss.arrays import UInt8
from wsss.errors import BadInput
from wsss.ops.crf import ahead
from wsss.ops.crf.features import bilateral_features, channels_of, picture_features, position_features
from wsss.ops.crf.field import potts_mean_field, row_lanes, row_width
from wsss.ops.crf.filters import PermutohedralFilter
from wsss.ops.crf.lattice import KEPT, strips_of
from wsss.ops.crf.presets import DenseCRF
from wsss.ops.crf.unary import bad_energy, check_labels

if TYPE_CHECKING:
    from torch import Tensor

Energy = TypeVar("Energy", np.ndarray, "Tensor")

# vertices of both lattices for each pixel of a photograph with some noise
_VERTICES = 0.35
# bytes of a small picture besides
_LEAST = 10 * 2**20
RECENT = 4  # number of cached position-only lattices
RECENT_PIXELS = 1 << 20  # larger lattices are not cached


@overload
def dense_crf(
    image: UInt8[np.ndarray, "h w 3"],
    unary: Energy,
    settings: DenseCRF,
    *,
    threads: int | None = None,
    overwrite: bool = False,
) -> Energy: ...
@overload
def dense_crf(
    image: UInt8[np.ndarray, "h w 3"],
    unary: Sequence[Energy],
    settings: DenseCRF,
    *,
    threads: int | None = None,
    overwrite: bool = False,
) -> list[Energy]: ...
def dense_crf(
    image: UInt8[np.ndarray, "h w 3"],
    unary: "np.ndarray | Tensor | Sequence[np.ndarray | Tensor]",
    settings: DenseCRF,
    *,
    threads: int | None = None,
    overwrite: bool = False,
) -> "np.ndarray | Tensor | Sequence[np.ndarray | Tensor]":
    """Q, the mean field of one or several unaries on one picture (Krähenbühl and Koltun, NeurIPS 2011, algorithm 1).

    Several unaries share the lattices, and each iteration filters all of them together. NumPy arrays are processed by
    compiled code on the CPU, torch tensors by torch on their device.

    Args:
        image: uint8 RGB (height, width, 3).
        unary: energies (labels, height, width) with at least two labels; or a sequence of such arrays, whose numbers of labels may
            differ. +inf forbids a label.
        settings: see `PRESETS`.
        threads: of the compiled code; None uses all CPUs available to the process. The result does not depend on it.
        overwrite: the unaries may be overwritten, and their memory used for the result.

    Returns:
        float32 with the shape of `unary`, summing to 1 over the labels; a list of these for a sequence.

    Raises:
        BadInput: the picture or a unary has another type or shape, there are fewer than two labels, a pixel has NaN, -inf or no
            finite energy, or standard deviations are too small for the lattice.
    """
    alone = isinstance(unary, np.ndarray) or _is_tensor(unary)
    unaries = [unary] if alone else list(unary)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or image.size == 0:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise BadInput("dense CRF image", found, "a uint8 array (height, width, 3)", "Undo any normalisation first.")
    for one in unaries:
        _check_unary(one, type(unaries[0]), image.shape[:2])
    if threads is not None and threads < 1:
        raise BadInput("dense CRF threads", f"{threads}", "1 or more", "Leave it out to use every CPU.")
    image = channels_of(image, settings.picture)
    arrays = [one for one in unaries if isinstance(one, np.ndarray)]
    tensors = [one for one in unaries if _is_tensor(one)]
    qs: list[np.ndarray] | list[Tensor] = (
        _on_torch(image, tensors, settings) if tensors else _compiled(image, arrays, settings, threads, overwrite)
    )
    return qs[0] if alone else qs


def _is_tensor(value: object) -> "TypeGuard[Tensor]":
    """Whether a value is a tensor of torch, which is imported if there is one: importing it takes seconds."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _check_unary(unary: object, kind: type, size_hw: tuple[int, ...]) -> None:
    floating = (
        unary.dtype.is_floating_point
        if _is_tensor(unary)
        else isinstance(unary, np.ndarray) and np.issubdtype(unary.dtype, np.floating)
    )
    if (
        not (isinstance(unary, np.ndarray) or _is_tensor(unary))
        or type(unary) is not kind
        or not floating
        or unary.ndim != 3
    ):
        found = type(unary).__name__
        if isinstance(unary, np.ndarray) or _is_tensor(unary):
            found += f" {unary.dtype} {tuple(unary.shape)}"
        raise _not_a_unary(found, size_hw)
    if tuple(unary.shape[1:]) != size_hw:
        raise _not_a_unary(f"{type(unary).__name__} {unary.dtype} {tuple(unary.shape)}", size_hw)
    check_labels(len(unary))


def _not_a_unary(found: str, size_hw: tuple[int, ...]) -> BadInput:
    expected = f"floats (labels, {size_hw[0]}, {size_hw[1]}), all in NumPy or all in torch"
    return BadInput("dense CRF unary", found, expected, "Resize the scores to the picture before the logarithm.")


def _on_torch(image: UInt8[np.ndarray, "h w 3"], unaries: "list[Tensor]", settings: DenseCRF) -> "list[Tensor]":
    import torch

    from wsss.ops.crf.plain import LatticeFilter, mean_field

    energies = [unary.detach().float().flatten(1) for unary in unaries]
    for energy in energies:
        if not bool(((energy > -torch.inf).all(0) & (energy < torch.inf).any(0)).all()):
            raise bad_energy()
    device = energies[0].device
    position = position_features(image.shape[:2], settings.gaussian_sxy)
    colour = bilateral_features(image, settings.bilateral_sxy, settings.bilateral_srgb)
    kernels = [LatticeFilter(torch.from_numpy(features).to(device)) for features in (colour, position)]
    weights = (settings.bilateral_weight, settings.gaussian_weight)
    qs = mean_field(energies, list(zip(kernels, weights, strict=True)), settings.iterations)
    return [q.reshape(unary.shape) for q, unary in zip(qs, unaries, strict=True)]


def _compiled(
    image: UInt8[np.ndarray, "h w 3"],
    unaries: list[np.ndarray],
    settings: DenseCRF,
    threads: int | None,
    overwrite: bool,
) -> list[np.ndarray]:
    if not unaries:
        return []
    ahead.wait_for(row_width([len(unary) for unary in unaries]))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(threads or cpus, strips_of(image.shape[0] * image.shape[1]))
    colour = picture_features(image, settings.bilateral_sxy, settings.bilateral_srgb)
    kernels = (
        (PermutohedralFilter(colour, threads=threads), settings.bilateral_weight),
        (_position_filter(image.shape[:2], settings.gaussian_sxy, threads), settings.gaussian_weight),
    )
    energies = [unary.reshape(len(unary), -1).astype(np.float32, copy=False) for unary in unaries]
    qs = potts_mean_field(energies, kernels, settings.iterations, threads=threads, overwrite=overwrite)
    return [q.reshape(unary.shape) for q, unary in zip(qs, unaries, strict=True)]


def crf_bytes(pixels: int, labels: Sequence[int]) -> float:
    """About the bytes of a CRF on a photograph with one thread, besides picture and unaries, which it overwrites.

    Args:
        pixels: of the picture.
        labels: number of labels of each unary.
    """
    kept = 72 if pixels <= KEPT else 52
    return _LEAST + pixels * (kept + _VERTICES * (28 + 8 * row_lanes(labels)))


_recent: dict[tuple[float, ...], PermutohedralFilter] = {}
_recent_lock = threading.Lock()


def _position_filter(size_hw: tuple[int, int], sxy: float | tuple[float, float], threads: int) -> PermutohedralFilter:
    """The kernel that only depends on the picture's size, cached between pictures."""
    key = (*size_hw, *np.broadcast_to(sxy, 2).tolist())
    with _recent_lock:
        kernel = _recent.pop(key, None)
    kernel = kernel or PermutohedralFilter(picture_features(np.empty((*size_hw, 0), np.uint8), sxy), threads=threads)
    if size_hw[0] * size_hw[1] <= RECENT_PIXELS:
        with _recent_lock:
            _recent[key] = kernel
            while len(_recent) > RECENT:
                del _recent[next(iter(_recent))]
    return kernel
