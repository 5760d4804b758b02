"""The losses of WeCLIP and WeCLIP+ on labels that are made in each training step (see `wsss.methods.weclip_labels`).

With L_c and L_d the logits of both adapters, L their mean, p = softmax(L), y labels, A the affinity of two cells, `seg` half the mean cross-entropy
over the background and half that over the foreground:

    dice = 1 - mean over labels of 2 sum p y / (sum p + sum y + 1e-7)
    cross = seg(L_c, highest of L_d) + seg(L_d, highest of L_c)
    affinity = (sum over alike pairs of (1 - A) / (their number + 1) + sum over unlike pairs of A / (their number + 1)) / 2

All sums and means are over the whole batch. The published `seg` is not a number if the batch has no background or no foreground; here, as in
`balanced_cross_entropy`, a half without pixels is 0.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.arrays import Bool, Float, Int
from wsss.data.images import IGNORE
from wsss.networks.deeplab import balanced_cross_entropy

_EPSILON = 1e-7


class Pairs(NamedTuple):
    """Pairs of cells at most `radius` rows and columns apart, in both orders, and each cell with itself.

    Attributes:
        alike: with the same label.
        unlike: with different labels.
    """

    alike: Bool[Tensor, "b n n"]
    unlike: Bool[Tensor, "b n n"]

    def numbers(self) -> Int[Tensor, " 2"]:
        """How many pairs there are of either kind."""
        return torch.stack([self.alike.sum(), self.unlike.sum()])


def cell_labels(labels: Int[Tensor, "b hi wi"], grid: tuple[int, int]) -> Int[Tensor, "b h w"]:
    """The label of the top left pixel of each cell."""
    rows, columns = (
        torch.arange(cells, device=labels.device) * side // cells
        for cells, side in zip(grid, labels.shape[1:], strict=True)
    )
    return labels[:, rows[:, None], columns]


def pairs(labels: Int[Tensor, "b h w"], radius: int) -> Pairs:
    """The pairs of all cells, row by row; those with a label of 255 are left out."""
    height, width = labels.shape[1:]
    near = [
        (places[:, None] - places).abs() <= radius
        for places in (torch.arange(side, device=labels.device) for side in (height, width))
    ]
    # (h, w, h, w): a square window
    inside = (near[0][:, None, :, None] & near[1][None, :, None, :]).reshape(height * width, -1)
    flat = labels.flatten(1)
    known = flat != IGNORE
    valid = known[:, :, None] & known[:, None] & inside
    same = flat[:, :, None] == flat[:, None]
    return Pairs(same & valid, ~same & valid)


def affinity_loss(affinity: Float[Tensor, "b n n"], pairs: Pairs) -> Float[Tensor, ""]:
    """Pulls the affinity of alike pairs to 1 and that of unlike pairs to 0."""
    alike = ((1 - affinity) * pairs.alike).sum() / (pairs.alike.sum() + 1)
    return (alike + (affinity * pairs.unlike).sum() / (pairs.unlike.sum() + 1)) / 2


def dice_loss(logits: Float[Tensor, "b l h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Dice over all labels, the background too. Ignored pixels count in the sum of p, as published."""
    p = logits.softmax(1)
    known = labels != IGNORE
    y = F.one_hot(labels.where(known, 0).long(), logits.shape[1]).movedim(3, 1) * known[:, None]
    both, sums = (p * y).sum((0, 2, 3)), p.sum((0, 2, 3)) + y.sum((0, 2, 3))
    return 1 - (2 * both / (sums + _EPSILON)).mean()


def cross_losses(
    first: Float[Tensor, "b l h w"], second: Float[Tensor, "b l h w"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Each of two predictions with the highest of the other as labels."""
    return balanced_cross_entropy(first, second.argmax(1)), balanced_cross_entropy(second, first.argmax(1))


def replaced(labels: Int[Tensor, "b h w"], logits: Float[Tensor, "b l h w"], confidence: float) -> Int[Tensor, "b h w"]:
    """The labels, replaced by the highest prediction where its probability is above `confidence`; a class need not be tagged."""
    probability, predicted = logits.softmax(1).max(1)
    return torch.where(probability > confidence, predicted, labels)
