"""SEAM (Wang et al., Self-supervised equivariant attention mechanism for weakly supervised segmentation, CVPR 2020): losses and maps.

Two views of a picture, the second 0.3 times the size of the first, should have the same maps, both before and after the pixel
correlation module revises them. The binomial follow-up of ICAM (High-fidelity pseudo-labels for boosting weakly-supervised segmentation,
Jonnarth et al., WACV 2024) adds an importance sampling loss and a feature similarity loss. `wsss.methods.icam` trains and runs all three.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from wsss.arrays import Bool, Float, Shaped
from wsss.networks.seam import SEAMOutput, correlated, resized
from wsss.ops.feature_similarity import feature_similarity_loss
from wsss.ops.importance import binomial_importance_loss, multi_label_loss

_EPSILON = 1e-5


class View(NamedTuple):
    """The network's results for a view of a batch of pictures; the l channels are the background and the classes.

    Attributes:
        maps: L, resized to the view.
        revised: the maps revised by the pixel correlation module, resized to the view.
        logits: L, one value per cell.
    """

    maps: Float[Tensor, "n l h w"]
    revised: Float[Tensor, "n l h w"]
    logits: Float[Tensor, "n l hs ws"]


def view(output: SEAMOutput, size_hw: tuple[int, int] | torch.Size) -> View:
    """The maps that the losses need, from the network's output for a view of this size."""
    revised = correlated(competing(output.logits), output.features)
    return View(resized(output.logits, size_hw), resized(revised, size_hw), output.logits)


@torch.no_grad()
def competing(logits: Float[Tensor, "n l h w"]) -> Float[Tensor, "n l h w"]:
    """The maps to be revised: each class divided by its maximum, background 1 - highest, all but the highest class of each cell set to 0."""
    rectified = logits.relu()
    over = (rectified - _EPSILON).relu() / (rectified.amax((2, 3), keepdim=True) + _EPSILON)
    return highest_only(with_background(over))


def with_background(maps: Float[Tensor, "n l h w"]) -> Float[Tensor, "n l h w"]:
    """Replace channel 0 by 1 - the highest class."""
    return torch.cat([1 - maps[:, 1:].max(1, keepdim=True).values, maps[:, 1:]], 1)


def highest_only(maps: Float[Tensor, "n l h w"]) -> Float[Tensor, "n l h w"]:
    """Set all but the highest class of each cell to 0; the background is unchanged."""
    classes = maps[:, 1:]
    return torch.cat([maps[:, :1], classes * (classes == classes.amax(1, keepdim=True))], 1)


def max_norm(maps: Float[Tensor, "n l h w"]) -> Float[Tensor, "n l h w"]:
    """ReLU(q - min q - eps) / (max q - min q + eps) of q = ReLU(map), map by map, with a gradient through both extremes."""
    q = maps.relu().flatten(2)
    highest, lowest = q.max(2, keepdim=True).values, q.min(2, keepdim=True).values
    return ((q - lowest - _EPSILON).relu() / (highest - lowest + _EPSILON)).view_as(maps)


def minimum_pooling(revised: Float[Tensor, "n l h w"], label: Shaped[Tensor, "n l"]) -> Float[Tensor, ""]:
    """Pushes a quarter of each picture towards no class: the mean of the lowest quarter of values of max over its classes' maps."""
    highest = (revised * label[:, :, None, None])[:, 1:].amax(1).flatten(1)
    lowest = highest.topk(max(1, highest.shape[1] // 4), largest=False).values
    return lowest.relu().mean()


def losses(
    first: View,
    second: View,
    tags: Shaped[Tensor, "n c"],
    draws: Float[Tensor, "n c s"] | None,
    colours: Float[Tensor, "n 3 hs ws"],
    *,
    importance: float,
    similarity: float,
    mu: float = 2.5,
    sigma: float | None = 5.0,
    inside: Bool[Tensor, "n hs ws"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """L_cls, L_ER, L_ECR and the weighted L_FS.

    Args:
        first, second: views of the same pictures, the second smaller.
        tags: 0 or 1.
        draws: see `draw_cells`, for the first view; None: the expectation over all samples.
        colours: of the first view's cells, in [0, 1].
        importance: lambda, weight of the importance sampling loss in the first view's classification loss.
        similarity: weight of L_FS.
        mu, sigma: parameters of L_FS.
        inside: the cells of the first view that enter the importance sampling loss and L_FS; by default all.
    """
    label = torch.cat([torch.ones_like(tags[:, :1]), tags], 1).to(first.maps.dtype)
    pooled = [multi_label_loss(each.maps[:, 1:].mean((2, 3)), tags) for each in (first, second)]
    if importance > 0:
        pooled[0] = (1 - importance) * pooled[0]
        pooled[0] = pooled[0] + importance * binomial_importance_loss(first.logits[:, 1:], tags, draws, inside)
    background = [minimum_pooling(each.revised, label) for each in (first, second)]

    present, size_hw = label[:, :, None, None], second.maps.shape[2:]
    one, one_revised = (resized(max_norm(maps), size_hw) * present for maps in (first.maps, first.revised))
    two, two_revised = (max_norm(maps) * present for maps in (second.maps, second.revised))
    terms = {
        "classification": (pooled[0] + pooled[1]) / 2 + (background[0] + background[1]) / 2,
        "equivariance": (one[:, 1:] - two[:, 1:]).abs().mean(),
        "cross_equivariance": _largest_distances(with_background(two), one_revised)
        + _largest_distances(with_background(one), two_revised),
    }
    if similarity > 0:
        terms["feature_similarity"] = similarity * similarity_loss(first.logits, label, colours, mu, sigma, inside)
    return terms


def similarity_loss(
    logits: Float[Tensor, "n l h w"],
    label: Shaped[Tensor, "n l"],
    colours: Float[Tensor, "n 3 h w"],
    mu: float,
    sigma: float | None,
    inside: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, ""]:
    """L_FS of the follow-up, on the maps of the tagged classes and a background of 1 - the highest; channel 0 of the logits is not used."""
    maps = with_background(max_norm(logits) * label[:, :, None, None])
    # the follow-up halves the distance between predictions
    return feature_similarity_loss(maps, colours, mu, sigma, inside=inside) / 2


def _largest_distances(target: Tensor, revised: Tensor) -> Float[Tensor, ""]:
    """Mean distance to the target's highest classes, over the fifth of all values with the largest distances."""
    distance = (highest_only(target.detach()) - revised).abs().flatten(1)
    return distance.topk(max(1, int(0.2 * distance.shape[1]))).values.mean()
