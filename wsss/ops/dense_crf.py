"""Dense CRF (Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011).

With unary energies U and Gaussian kernels K_m of weight w_m, the mean field iterates

    Q <- softmax_l(-U),   Q <- softmax_l(-U + sum_m w_m K_m Q)

for a fixed number of steps. K_m is filtered on the permutohedral lattice and normalised symmetrically; a pixel's
message to itself stays in. Every Q agrees with the published C++ library to 1e-4 (tests/parity/test_dense_crf.py).
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, get_args, overload

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped, UInt8
from scipy.special import softmax

from wsss.errors import BadInput
from wsss.ops.permutohedral import (
    PermutohedralFilter,
    TorchPermutohedralFilter,
    bad_energy,
    potts_mean_field,
    strips_of,
)

Picture = Literal["rgb", "bgr", "wrapped_bgr"]
Energy = TypeVar("Energy", np.ndarray, torch.Tensor)

BGR_MEAN = (104.008, 116.669, 122.675)  # what deeplab-pytorch and CLIP-ES subtract, for B, G, R
CLIP = 1e-5  # pydensecrf's unary_from_softmax; repositories pass raw scores, so it decides their zeros
RECENT = 4  # position-only lattices that are kept
RECENT_PIXELS = 1 << 20  # a larger lattice is not kept


@dataclasses.dataclass(frozen=True)
class DenseCRF:
    """Two Potts kernels and how long to iterate (Krähenbühl and Koltun, NeurIPS 2011, equation 3)."""

    gaussian_sxy: float | tuple[float, float] = 3.0
    """standard deviation of the smoothness kernel in pixels, one for both axes or (x, y)"""
    gaussian_weight: float = 3.0
    """weight of the smoothness kernel"""
    bilateral_sxy: float | tuple[float, float] = 50.0
    """standard deviation of the appearance kernel in pixels, one for both axes or (x, y)"""
    bilateral_srgb: float | tuple[float, float, float] = 5.0
    """standard deviation of the appearance kernel in grey levels of 0..255, one or one a channel of `picture`"""
    bilateral_weight: float = 10.0
    """weight of the appearance kernel"""
    iterations: int = 10
    """steps of the mean field; 0 gives the softmax of the unary"""
    picture: Picture = "rgb"
    """channels that the appearance kernel sees; wrapped_bgr is BGR minus its mean, wrapped around in 8 bits"""

    def __post_init__(self) -> None:
        for name, axes in (("gaussian_sxy", 2), ("bilateral_sxy", 2), ("bilateral_srgb", 3)):
            given = getattr(self, name)
            values = np.atleast_1d(np.asarray(given, np.float64))
            if values.shape not in ((1,), (axes,)) or not ((values > 0) & (values < np.inf)).all():
                expected = f"a positive number, or {axes} of them"
                raise BadInput(
                    f"dense CRF setting {name}",
                    f"{given}",
                    expected,
                    "Give standard deviations in pixels or grey levels.",
                )
        for name in ("gaussian_weight", "bilateral_weight"):
            if not np.isfinite(getattr(self, name)):
                raise BadInput(
                    f"dense CRF setting {name}",
                    f"{getattr(self, name)}",
                    "a finite number",
                    "Give 0 to leave the kernel out.",
                )
        if self.iterations < 0:
            raise BadInput(
                "dense CRF setting iterations", f"{self.iterations}", "0 or more", "The published values are 1 and 10."
            )
        if self.picture not in get_args(Picture):
            raise BadInput(
                "dense CRF setting picture", repr(self.picture), f"one of {get_args(Picture)}", "Choose one of them."
            )


Preset = Literal["irn", "psa", "deeplab", "vwl", "icam-final"]
PRESETS: dict[Preset, DenseCRF] = {
    # misc/imutils.py: crf_inference_label of IRNet; used by CLIMS, QA-CLIMS and VWL alike
    "irn": DenseCRF(3.0, 3.0, 50.0, 5.0, 10.0, 10),
    # tool/imutils.py: crf_inference of PSA; used by SEAM and ICAM alike
    "psa": DenseCRF(3.0, 3.0, 80.0, 13.0, 10.0, 10),
    # libs/utils/crf.py of deeplab-pytorch; used by CLIMS, QA-CLIMS and CLIP-ES alike, on the picture that main.py wraps
    "deeplab": DenseCRF(1.0, 3.0, 67.0, 3.0, 4.0, 10, "wrapped_bgr"),
    # VWL v2, post-processing of the CAMs
    "vwl": DenseCRF(1.0, 3.0, 64.0, 3.0, 4.0, 10),
    # ICAM, evaluation of the final model
    "icam-final": DenseCRF(3.0, 3.0, 32.0, 13.0, 10.0, 1),
}
"""Published settings. `dataclasses.replace(PRESETS["deeplab"], picture="rgb")` is "deeplab" on the picture as it is."""


def unary_from_scores(scores: Float[np.ndarray, "l ..."], scale: float | None = None) -> Float32[np.ndarray, "l ..."]:
    """U = -ln P, for probabilities or any scores P clipped to [1e-5, 1]; they need not sum to 1.

    Args:
        scores: P, one map a label; NaN stays NaN.
        scale: a confidence s in (0, 1]: P becomes s P + (1 - s) / l first.

    Raises:
        BadInput: `scale` is outside (0, 1].
    """
    scores = scores.astype(np.result_type(scores, np.float32), copy=False)
    if scale is not None:
        if not 0 < scale <= 1:
            raise BadInput(
                "unary scale", f"{scale}", "a number in (0, 1]", "Leave it out to use the scores as they are."
            )
        scores = scale * scores + (1 - scale) / len(scores)
    return -np.log(np.clip(scores, CLIP, 1)).astype(np.float32)


def unary_from_labels(
    labels: Shaped[np.ndarray, "..."], n_labels: int, certainty: float, zero_unsure: bool = False
) -> Float32[np.ndarray, "{n_labels} ..."]:
    """-ln(certainty) at a pixel's label, -ln((1 - certainty) / (n_labels - 1)) at every other.

    Args:
        labels: integers in 0..n_labels - 1, or in 0..n_labels with `zero_unsure`.
        certainty: the probability in (0, 1) that a label is right.
        zero_unsure: label 0 means unknown (-ln(1 / n_labels) everywhere) and label k stands for row k - 1.

    Raises:
        BadInput: fewer than two labels, a certainty outside (0, 1), or labels out of range.
    """
    _check_labels(n_labels)
    if not 0 < certainty < 1:
        raise BadInput("unary certainty", f"{certainty}", "a number in (0, 1)", "IRNet uses 0.7.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
        raise BadInput(
            "unary labels", f"{labels.dtype} {labels.shape}", "a map of integers", "Give the label of each pixel."
        )
    low, high = int(labels.min()), int(labels.max())
    most = n_labels - (not zero_unsure)
    if low < 0 or high > most:
        raise BadInput(
            "unary labels", f"values {low}..{high}", f"values in 0..{most}", "Map ignored pixels to a label first."
        )
    rows = np.arange(n_labels).reshape(-1, *(1,) * labels.ndim) + int(zero_unsure)
    sure, other = -np.log(certainty), -np.log((1 - certainty) / (n_labels - 1))
    unary = np.where(labels == rows, np.float32(sure), np.float32(other))
    if zero_unsure:
        unary[:, labels == 0] = -np.log(1 / n_labels)
    return unary


def wrapped_bgr(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """BGR minus its mean, cast to uint8 as x86 does: cut toward zero, then modulo 256, so that dark pixels turn bright.

    The CRF of deeplab-pytorch (main.py), CLIMS and CLIP-ES gets this picture, and their published figures rest on it.
    """
    centred = image[..., ::-1].astype(np.float32) - np.array(BGR_MEAN, np.float32)
    return (centred.astype(np.int32) & 255).astype(np.uint8)


def position_features(size_hw: tuple[int, int], sxy: float | tuple[float, float]) -> Float32[np.ndarray, "2 n"]:
    """(x / sx, y / sy) of each pixel, row by row."""
    sx, sy = np.broadcast_to(np.asarray(sxy, np.float32), 2)
    y, x = np.indices(size_hw, np.float32)
    return np.stack([x / sx, y / sy]).reshape(2, -1)


def bilateral_features(
    picture: UInt8[np.ndarray, "h w 3"], sxy: float | tuple[float, float], srgb: float | tuple[float, float, float]
) -> Float32[np.ndarray, "5 n"]:
    """(x / sx, y / sy, c0 / s0, c1 / s1, c2 / s2) of each pixel, row by row, c the channels in the order given.

    The order matters: the lattice treats its axes differently, so RGB and BGR give different results.
    """
    deviations = np.broadcast_to(np.asarray(srgb, np.float32), 3)
    colours = [np.divide(picture[..., c], deviations[c], dtype=np.float32).ravel() for c in range(3)]
    return np.concatenate([position_features(picture.shape[:2], sxy), colours])


@overload
def dense_crf(
    image: Shaped[np.ndarray, "..."], unary: Energy, settings: DenseCRF, *, threads: int | None = None
) -> Energy: ...
@overload
def dense_crf(
    image: Shaped[np.ndarray, "..."], unary: Sequence[Energy], settings: DenseCRF, *, threads: int | None = None
) -> list[Energy]: ...
def dense_crf(image: Any, unary: Any, settings: DenseCRF, *, threads: int | None = None) -> Any:
    """Q, the mean field of one or several unaries on one picture (Krähenbühl and Koltun, NeurIPS 2011, algorithm 1).

    Several unaries share the lattices, and each step filters all of them at once. A NumPy array is computed by
    compiled code on the CPU, a torch tensor by torch on the tensor's device.

    Args:
        image: uint8 RGB (height, width, 3).
        unary: energies (labels, height, width), at least two labels; or a sequence of such, whose labels may differ
            in number. +inf forbids a label.
        settings: see `PRESETS`.
        threads: of the compiled code; None takes every CPU that the process may use. The result does not depend on it.

    Returns:
        float32 of the shape of `unary`, summing to 1 over the labels; a list of these for a sequence.

    Raises:
        BadInput: a picture or unary of another type or shape, fewer than two labels, a pixel with NaN, -inf or no
            finite energy, or standard deviations too small for the lattice.
    """
    unaries: list[Any] = [unary] if isinstance(unary, np.ndarray | torch.Tensor) else list(unary)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or image.size == 0:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise BadInput("dense CRF image", found, "a uint8 array (height, width, 3)", "Undo any normalisation first.")
    for one in unaries:
        _check_unary(one, type(unaries[0]), image.shape[:2])
    if threads is not None and threads < 1:
        raise BadInput("dense CRF threads", f"{threads}", "1 or more", "Leave it out to use every CPU.")
    if settings.picture == "bgr":
        image = image[..., ::-1]
    elif settings.picture == "wrapped_bgr":
        image = wrapped_bgr(image)
    qs: list[Any] = []
    if unaries:
        on_torch = isinstance(unaries[0], torch.Tensor)
        qs = _infer_torch(image, unaries, settings) if on_torch else _infer(image, unaries, settings, threads)
    return qs[0] if unaries and unary is unaries[0] else qs


Potential = tuple[Callable[[Energy], Energy], float | np.ndarray]
"""A kernel's filter, and a Potts weight w (message w K Q), a vector v (-v_l (K Q)_l) or a matrix M (-(M + M^T) / 2 K Q)."""


def mean_field(unaries: Sequence[Energy], potentials: Sequence[Potential[Energy]], iterations: int) -> list[Energy]:
    """The mean field with any kernels and label compatibilities, on NumPy arrays or torch tensors (labels, pixels).

    `dense_crf` is much faster for Potts weights on a CPU.
    """
    parts = np.cumsum([0, *map(len, unaries)])
    qs = [_softmax(-unary) for unary in unaries]
    for _ in range(iterations):
        joined: Any = torch.cat(qs) if isinstance(qs[0], torch.Tensor) else np.concatenate(qs)
        filtered = [(kernel(joined), compatibility) for kernel, compatibility in potentials]
        qs = [
            _softmax(sum((_message(kq[start:stop], compatibility) for kq, compatibility in filtered), -unary))
            for unary, start, stop in zip(unaries, parts[:-1], parts[1:], strict=True)
        ]
    return qs


def kl_divergence(
    q: Float[np.ndarray, "l n"], unary: Float[np.ndarray, "l n"], potentials: Sequence[Potential[np.ndarray]]
) -> float:
    """KL divergence of Q from the model, up to a constant: sum Q ln Q + sum U Q - sum_m <Q, message_m>, for monitoring."""
    exact = q.astype(np.float64)
    energy = (exact * np.log(np.maximum(exact, 1e-20))).sum() + (exact * unary).sum()
    return float(
        energy - sum((exact * _message(kernel(q), compatibility)).sum() for kernel, compatibility in potentials)
    )


def _message(kq: Any, compatibility: float | np.ndarray) -> Any:
    if np.ndim(compatibility) == 0:
        return compatibility * kq
    matrix: Any = np.asarray(compatibility, np.float32)
    matrix = np.diag(matrix) if matrix.ndim == 1 else (matrix + matrix.T) / 2
    return -((torch.from_numpy(matrix).to(kq) if isinstance(kq, torch.Tensor) else matrix) @ kq)


def _softmax(x: Any) -> Any:
    return torch.softmax(x, 0) if isinstance(x, torch.Tensor) else softmax(x, axis=0)


def _check_labels(n_labels: int) -> None:
    if n_labels < 2:
        raise BadInput(
            "dense CRF labels", f"{n_labels}", "2 or more", "Skip pictures that have no class beside the background."
        )


def _check_unary(unary: Any, kind: Any, size_hw: tuple[int, int]) -> None:
    dtype: Any = getattr(unary, "dtype", np.object_)
    floating = dtype.is_floating_point if isinstance(unary, torch.Tensor) else np.issubdtype(dtype, np.floating)
    if type(unary) is not kind or not floating or unary.ndim != 3 or tuple(unary.shape[1:]) != size_hw:
        found = f"{type(unary).__name__} {dtype} {tuple(getattr(unary, 'shape', ()))}"
        expected = f"floats (labels, {size_hw[0]}, {size_hw[1]}), all in NumPy or all in torch"
        raise BadInput("dense CRF unary", found, expected, "Resize the scores to the picture before the logarithm.")
    _check_labels(len(unary))


def _infer_torch(
    image: UInt8[np.ndarray, "h w 3"], unaries: list[torch.Tensor], settings: DenseCRF
) -> list[torch.Tensor]:
    energies = [unary.detach().float().flatten(1) for unary in unaries]
    for energy in energies:
        if not bool(((energy > -torch.inf).all(0) & (energy < torch.inf).any(0)).all()):
            raise bad_energy()
    device = energies[0].device
    position = position_features(image.shape[:2], settings.gaussian_sxy)
    colour = bilateral_features(image, settings.bilateral_sxy, settings.bilateral_srgb)
    kernels = [TorchPermutohedralFilter(torch.from_numpy(features).to(device)) for features in (colour, position)]
    weights = (settings.bilateral_weight, settings.gaussian_weight)
    qs = mean_field(energies, list(zip(kernels, weights, strict=True)), settings.iterations)
    return [q.reshape(unary.shape) for q, unary in zip(qs, unaries, strict=True)]


def _infer(
    image: UInt8[np.ndarray, "h w 3"], unaries: list[np.ndarray], settings: DenseCRF, threads: int | None
) -> list[np.ndarray]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(threads or cpus, strips_of(image.shape[0] * image.shape[1]))
    colour = bilateral_features(image, settings.bilateral_sxy, settings.bilateral_srgb)
    potentials = (
        (PermutohedralFilter(colour, threads=threads), settings.bilateral_weight),
        (_position_filter(image.shape[:2], settings.gaussian_sxy, threads), settings.gaussian_weight),
    )
    energies = [unary.reshape(len(unary), -1).astype(np.float32, copy=False) for unary in unaries]
    qs = potts_mean_field(energies, potentials, settings.iterations, threads=threads)
    return [q.reshape(unary.shape) for q, unary in zip(qs, unaries, strict=True)]


_recent: dict[Any, PermutohedralFilter] = {}
_recent_lock = threading.Lock()


def _position_filter(size_hw: tuple[int, int], sxy: float | tuple[float, float], threads: int) -> PermutohedralFilter:
    """The kernel that hangs on the size alone, kept from one picture to the next."""
    key = (*size_hw, *np.broadcast_to(sxy, 2).tolist())
    with _recent_lock:
        kernel = _recent.pop(key, None)
    kernel = kernel or PermutohedralFilter(position_features(size_hw, sxy), threads=threads)
    if size_hw[0] * size_hw[1] <= RECENT_PIXELS:
        with _recent_lock:
            _recent[key] = kernel
            while len(_recent) > RECENT:
                del _recent[next(iter(_recent))]
    return kernel
