"""High-fidelity pseudo-labels for boosting weakly-supervised segmentation (Jonnarth et al., WACV 2024), for the maps of any classifier.

The authors of ICAM add two losses to SEAM (see `wsss.methods.seam`). Here they apply to a classifier with logits L_c(k) of class c at
cell k; y are the tags, l the multi-label soft margin loss and x the colours of the cells:

    L = (1 - lambda) l(avg L, y) + lambda L_IS(L, y) + w L_FS(max_norm(L) y, x)

L_IS samples cells with probabilities proportional to their sigmoids and classifies their logits (`wsss.ops.importance`). L_FS aligns
maps with colour boundaries (`wsss.ops.feature_similarity`).
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wsss.arrays import Float, Shaped
from wsss.data.augment import mean_and_deviation
from wsss.errors import check_range
from wsss.methods.seam import similarity_loss
from wsss.ops.feature_similarity import cell_colours, cells_inside, check_sigma
from wsss.ops.importance import binomial_importance_loss, multi_label_loss


@dataclasses.dataclass(frozen=True)
class HighFidelity:
    """Losses of the binomial follow-up of ICAM; off by default."""

    importance: float = 0.0
    """lambda, weight of the importance sampling loss against the pooled one; 0.2 for SEAM"""
    samples: int = 10
    """cells sampled per class; 0: the expectation over all samples"""
    similarity: float = 0.0
    """weight w of the feature similarity loss; for SEAM 1 on VOC, 0.2 on COCO"""
    mu: float = 2.5
    """of the feature similarity loss: cells whose colours differ by less than 1 / (1 + e^mu) are pulled to the same prediction"""
    sigma: float | None = 5.0
    """of the feature similarity loss: width of the neighbourhood in cells; null: the whole map"""
    mask_padding: bool = False
    """exclude the padding of a crop from both losses; the published code includes it"""

    def __post_init__(self) -> None:
        check_range("high_fidelity.importance", self.importance, 0, 1)
        check_range("high_fidelity.samples", self.samples, 0)
        check_range("high_fidelity.similarity", self.similarity, 0)
        check_sigma("high_fidelity.sigma", self.sigma)

    def draws(self, n_classes: int) -> tuple[int, int] | None:
        """The shape (classes, samples) of the uniform random numbers that sample a picture's cells; None if no cells are sampled."""
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
        settings: weights of the losses.
        logits: one value per cell and class, without a background.
        tags: 0 or 1.
        draws: see `wsss.ops.importance.draw_cells`; None: the expectation over all samples.
        image: the crops, normalised; padding is 0.
        colours: their normalisation.
    """
    cells = logits.shape[2:]
    inside = cells_inside(image, cells) if settings.mask_padding else None
    classification = (1 - settings.importance) * multi_label_loss(logits.mean((2, 3)), tags)
    if settings.importance > 0:
        classification = classification + settings.importance * binomial_importance_loss(logits, tags, draws, inside)
    terms = {"classification": classification}
    if settings.similarity > 0:
        background = torch.zeros_like(logits[:, :1])
        label = torch.cat([torch.ones_like(tags[:, :1]), tags], 1)
        pixels = cell_colours(image, cells, *mean_and_deviation(colours))
        with_background = torch.cat([background, logits], 1)
        similarity = similarity_loss(with_background, label, pixels, settings.mu, settings.sigma, inside)
        terms["feature_similarity"] = settings.similarity * similarity
    return terms


def with_draws(
    examples: Callable[[int, np.random.Generator], dict[str, Tensor]],
    shape: tuple[int, ...],
    index: int,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """A training example with `draws`, the uniform random numbers in [0, 1) that sample its cells."""
    return examples(index, rng) | {"draws": torch.from_numpy(rng.random(shape))}
