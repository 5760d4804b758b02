"""Importance sampling of class maps (Jonnarth and Felsberg, Importance sampling CAMs for weakly-supervised segmentation, ICASSP 2022).

A picture has a class if any of its cells has it. Max pooling uses a single cell k of a map P_c; here cells are sampled
with the probabilities pi_c(k) = P_c(k) / sum P_c, and all sampled cells enter the loss. The sampling itself has no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.arrays import Bool, Float, Int, Shaped

# epsilon of the conversion from probabilities to logits
EPSILON = 1e-3
# added to the sampling probabilities in the binomial follow-up
_FLOOR = 1e-5


def probability_logits(p: Float[Tensor, "*s"], epsilon: float = EPSILON) -> Float[Tensor, "*s"]:
    """l(p) = ln(p (1 - eps) + eps) - ln(1 - p (1 - eps)), which is finite at 0 and 1."""
    shrunk = p * (1 - epsilon)
    return (shrunk + epsilon).log() - (1 - shrunk).log()


def multi_label_loss(logits: Float[Tensor, "n c *s"], label: Shaped[Tensor, "n c"]) -> Float[Tensor, ""]:
    """The multi-label soft margin loss: the mean over pictures, classes (and samples) of the binary cross-entropy with logits."""
    target = label.to(logits.dtype).reshape(*label.shape, *[1] * (logits.ndim - 2)).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, target)


def draw_cells(weights: Float[Tensor, "n c h w"], draws: Float[Tensor, "n c s"]) -> Int[Tensor, "n c s"]:
    """Cells (row-major positions) sampled with replacement, with probabilities proportional to `weights`.

    Args:
        weights: 0 or more.
        draws: uniform random numbers in [0, 1), one per sample.
    """
    # in double precision: the sum over a map of 10,000 cells must be exact to less than the weight of a cell
    cumulative = weights.detach().double().flatten(2).cumsum(2)
    cells = torch.searchsorted(cumulative / cumulative[..., -1:], draws.double().contiguous(), right=True)
    # 0 / 0 for a map that is 0 everywhere
    return cells.clamp_(max=cumulative.shape[2] - 1)


def importance_loss(
    maps: Float[Tensor, "n c h w"],
    label: Shaped[Tensor, "n c"],
    draws: Float[Tensor, "n c s"] | None,
    inside: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, ""]:
    """ICAM's L_IS: the classification loss of the probabilities at cells that are sampled with these probabilities.

    Args:
        maps: probabilities P of the foreground classes.
        label: tags, 0 or 1.
        draws: see `draw_cells`; None: the expectation over all samples.
        inside: the cells that can be sampled; by default all.
    """
    return _sampled(probability_logits(maps), maps, label, draws, inside)


def binomial_importance_loss(
    logits: Float[Tensor, "n c h w"],
    label: Shaped[Tensor, "n c"],
    draws: Float[Tensor, "n c s"] | None,
    inside: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, ""]:
    """L_IS of the follow-up (High-fidelity pseudo-labels, Jonnarth et al., WACV 2024), which uses a sigmoid for each class.

    The loss is that of the logits at the sampled cells.

    Args:
        logits: of the foreground classes.
        label, draws, inside: as for `importance_loss`.
    """
    return _sampled(logits, logits.detach().sigmoid() + _FLOOR, label, draws, inside)


def _sampled(logits: Tensor, weights: Tensor, label: Tensor, draws: Tensor | None, inside: Tensor | None) -> Tensor:
    if inside is not None:
        weights = weights * inside[:, None]
    if draws is not None:
        return multi_label_loss(logits.flatten(2).gather(2, draw_cells(weights, draws)), label)
    probability = weights.detach().flatten(2)
    total = probability.sum(2, keepdim=True)
    # in a map that is 0 everywhere, all cells have the same probability
    probability = torch.where(total > 0, probability / total, 1 / probability.shape[2])
    target = label.to(logits.dtype)[..., None].expand_as(probability)
    each = F.binary_cross_entropy_with_logits(logits.flatten(2), target, reduction="none")
    return (probability * each).sum(2).mean()
