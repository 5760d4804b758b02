"""Importance sampling of class maps (Jonnarth and Felsberg, Importance sampling CAMs for weakly-supervised segmentation, ICASSP 2022).

A picture's class is there if it is somewhere. The maximum over the cells k of a map P_c asks that of one cell; here cells are drawn
with the probabilities pi_c(k) = P_c(k) / sum P_c, and all that are drawn are asked. The draw itself has no gradient.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

# of the map from probabilities to logits
EPSILON = 1e-3
# what the binomial follow-up adds to the probabilities that it draws by
_FLOOR = 1e-5


def probability_logits(p: Float[Tensor, "*s"], epsilon: float = EPSILON) -> Float[Tensor, "*s"]:
    """l(p) = ln(p (1 - eps) + eps) - ln(1 - p (1 - eps)), which is finite in 0 and 1."""
    shrunk = p * (1 - epsilon)
    return (shrunk + epsilon).log() - (1 - shrunk).log()


def multi_label_loss(logits: Float[Tensor, "n c *s"], label: Shaped[Tensor, "n c"]) -> Float[Tensor, ""]:
    """The multi-label soft margin: the mean over pictures, classes (and samples) of the binary cross entropy with logits."""
    wanted = label.to(logits.dtype).reshape(*label.shape, *[1] * (logits.ndim - 2)).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, wanted)


def draw_cells(weights: Float[Tensor, "n c h w"], draws: Float[Tensor, "n c s"]) -> Int[Tensor, "n c s"]:
    """Cells, as positions in row-major order, drawn with replacement with probabilities in proportion to `weights`.

    Args:
        weights: 0 or more.
        draws: uniform numbers in [0, 1), one a sample.
    """
    # in double precision: a class's sum over a map of 10,000 cells has to be exact to less than a cell
    below = weights.detach().double().flatten(2).cumsum(2)
    cells = torch.searchsorted(below / below[..., -1:], draws.double().contiguous(), right=True)
    # 0 / 0 of a map that is 0 everywhere, where all cells are alike
    return cells.clamp_(max=below.shape[2] - 1)


def importance_loss(
    maps: Float[Tensor, "n c h w"],
    label: Shaped[Tensor, "n c"],
    draws: Float[Tensor, "n c s"] | None,
    inside: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, ""]:
    """ICAM's L_IS: the loss of the probabilities at the cells that are drawn by them.

    Args:
        maps: probabilities P of the foreground classes.
        label: tags, 0 or 1.
        draws: see `draw_cells`; None: the mean over all draws, as of infinitely many samples.
        inside: the cells that can be drawn; by default all.
    """
    return _sampled(probability_logits(maps), maps, label, draws, inside)


def binomial_importance_loss(
    logits: Float[Tensor, "n c h w"],
    label: Shaped[Tensor, "n c"],
    draws: Float[Tensor, "n c s"] | None,
    inside: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, ""]:
    """L_IS of the follow-up (High-fidelity pseudo-labels, Jonnarth et al., WACV 2024), where each class has its own sigmoid.

    The logits at the drawn cells are asked as they are.

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
    share = weights.detach().flatten(2)
    total = share.sum(2, keepdim=True)
    # in a map that is 0 everywhere all cells are alike
    share = torch.where(total > 0, share / total, 1 / share.shape[2])
    wanted = label.to(logits.dtype)[..., None].expand_as(share)
    each = F.binary_cross_entropy_with_logits(logits.flatten(2), wanted, reduction="none")
    return (share * each).sum(2).mean()
