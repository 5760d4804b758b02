"""High-fidelity pseudo-labels for boosting weakly-supervised segmentation (Jonnarth et al., WACV 2024), on any classifier's maps.

Two losses that ICAM's authors put on SEAM (see `wsss.methods.seam`), for a classifier with logits L_c(k) of class c at cell k; y are the
tags, l the multi-label soft margin and x the colours of the cells:

    L = (1 - lambda) l(avg L, y) + lambda L_IS(L, y) + w L_FS(max_norm(L) y, x)

L_IS draws cells by their sigmoids and asks their logits (`wsss.ops.importance`), L_FS makes maps follow colours
(`wsss.ops.feature_similarity`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from wsss.data.augment import mean_and_deviation
from wsss.errors import check_range
from wsss.methods.seam import similarity_loss
from wsss.ops.feature_similarity import cell_colours, cells_inside, check_sigma
from wsss.ops.importance import binomial_importance_loss, multi_label_loss


@dataclasses.dataclass(frozen=True)
class HighFidelity:
    """Losses of the binomial follow-up of ICAM; by default none."""

    importance: float = 0.0
    """lambda, the share of the importance sampling loss; 0.2 on SEAM"""
    samples: int = 10
    """cells drawn a class; 0: the mean over all draws, as of infinitely many"""
    similarity: float = 0.0
    """weight w of the feature similarity loss; 1 on SEAM and VOC, 0.2 on COCO"""
    mu: float = 2.5
    """of the feature similarity loss: colours nearer than 1 / (1 + e^mu) pull predictions together"""
    sigma: float | None = 5.0
    """of the feature similarity loss: width of the neighbourhood in cells; null: the whole map"""
    mask_padding: bool = False
    """keep both losses from the cells beside the picture in a crop, which the published code counts"""

    def __post_init__(self) -> None:
        check_range("high_fidelity.importance", self.importance, 0, 1)
        check_range("high_fidelity.samples", self.samples, 0)
        check_range("high_fidelity.similarity", self.similarity, 0)
        check_sigma("high_fidelity.sigma", self.sigma)

    def draws(self, n_classes: int) -> tuple[int, int] | None:
        """The shape of the uniform numbers that one picture's cells are drawn by: classes, samples; None if none are."""
        return (n_classes, self.samples) if self.importance > 0 and self.samples else None


def losses(
    settings: HighFidelity,
    logits: Float[Tensor, "n c h w"],
    tags: Shaped[Tensor, "n c"],
    draws: Float[Tensor, "n c s"] | None,
    image: Float[Tensor, "n 3 hi wi"],
    colours: Literal["imagenet", "clip"] = "imagenet",
) -> dict[str, Float[Tensor, ""]]:
    """The classification loss and the weighted L_FS.

    Args:
        settings: shares and weights.
        logits: one value a cell and class, without a background.
        tags: 0 or 1.
        draws: see `wsss.ops.importance.draw_cells`; None: the mean over all.
        image: the crops, normalised, 0 beside the pictures.
        colours: what they are normalised by.
    """
    cells = logits.shape[2:]
    inside = cells_inside(image, cells) if settings.mask_padding else None
    classification = (1 - settings.importance) * multi_label_loss(logits.mean((2, 3)), tags)
    if settings.importance > 0:
        classification = classification + settings.importance * binomial_importance_loss(logits, tags, draws, inside)
    found = {"classification": classification}
    if settings.similarity > 0:
        none = torch.zeros_like(logits[:, :1])
        label = torch.cat([torch.ones_like(tags[:, :1]), tags], 1)
        seen = cell_colours(image, cells, *mean_and_deviation(colours))
        similarity = similarity_loss(torch.cat([none, logits], 1), label, seen, settings.mu, settings.sigma, inside)
        found["feature_similarity"] = settings.similarity * similarity
    return found


def with_draws(
    examples: Callable[[int, np.random.Generator], dict[str, Any]],
    shape: tuple[int, ...],
    index: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """An example, and the uniform numbers that its cells are drawn by."""
    return examples(index, rng) | {"draws": torch.from_numpy(rng.random(shape))}
