"""Unary energies of the dense CRF."""

import numpy as np

from wsss.arrays import Float, Float32, Shaped
from wsss.errors import BadInput

CLIP = 1e-5  # pydensecrf's unary_from_softmax; repositories pass raw scores, so this is the value of their zeros


def unary_from_scores(scores: Float[np.ndarray, "l ..."], scale: float | None = None) -> Float32[np.ndarray, "l ..."]:
    """U = -ln P, for probabilities or any scores P clipped to [1e-5, 1]; they need not sum to 1.

    Args:
        scores: P, one map per label; NaN stays NaN.
        scale: a confidence s in (0, 1]: P is first replaced by s P + (1 - s) / l.

    Raises:
        BadInput: `scale` is outside (0, 1].
    """
    scores = scores.astype(np.result_type(scores, np.float32), copy=False)
    if scale is not None:
        if not 0 < scale <= 1:
            raise BadInput("unary scale", f"{scale}", "a number in (0, 1]", "Leave it out to use the scores unchanged.")
        scores = scale * scores + (1 - scale) / len(scores)
    return -np.log(np.clip(scores, CLIP, 1)).astype(np.float32)


def unary_from_labels(
    labels: Shaped[np.ndarray, "..."], n_labels: int, certainty: float, zero_unsure: bool = False
) -> Float32[np.ndarray, "{n_labels} ..."]:
    """-ln(certainty) at a pixel's label, -ln((1 - certainty) / (n_labels - 1)) at all others.

    Args:
        labels: integers in 0..n_labels - 1, or in 0..n_labels with `zero_unsure`.
        n_labels: number of labels.
        certainty: the probability in (0, 1) that a label is correct.
        zero_unsure: label 0 means unknown (-ln(1 / n_labels) everywhere), and label k is row k - 1.

    Raises:
        BadInput: fewer than two labels, a certainty outside (0, 1), or labels out of range.
    """
    check_labels(n_labels)
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


def check_labels(n_labels: int) -> None:
    """Raise BadInput for fewer than two labels."""
    if n_labels < 2:
        raise BadInput(
            "dense CRF labels", f"{n_labels}", "2 or more", "Skip pictures that have no class but the background."
        )


def bad_energy() -> BadInput:
    """The error for a unary that cannot initialise the mean field."""
    return BadInput(
        "dense CRF unary",
        "a pixel with NaN, -inf or no finite energy",
        "energies -ln P with at least one finite label at each pixel",
        "Look for NaN in the scores, and clip probabilities before the logarithm.",
    )
