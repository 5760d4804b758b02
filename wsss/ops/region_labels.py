"""Labels and maps that follow regions: SEPL, SAMS, the most frequent label, and averages over levels."""

from typing import NamedTuple

import numpy as np

from wsss.arrays import Float, Int, UInt8
from wsss.ops.regions import Regions

IGNORE = 255
# of SAMS: what is added to the range of a class before the division by it
_EPSILON = 1e-7


def sepl(
    regions: Regions,
    mask: UInt8[np.ndarray, "h w"],
    *,
    share: float = 0.85,
    at_least_half: bool = False,
    keep_ignored: bool = False,
) -> UInt8[np.ndarray, "h w"]:
    """Segment anything enhances pseudo labels (Chen et al., arXiv 2305.05803): regions join the classes of a mask.

    Classes take their turn in ascending order. A region that no class has taken joins the class if more than half of the region has it, or
    if the region holds at least `share` of its pixels. The class is then painted on its regions, and on those of its own pixels that no
    region covers, without the regions of earlier classes. The rest is background.

    Args:
        regions: their order does not matter.
        mask: labels; 0 is background, 255 ignored.
        share: share of a class.
        at_least_half: the variant of FMA-WSSS (Yang and Gong, WACV 2024): half of a region is enough, and a pixel is covered by regions that
            earlier classes have taken too. Shares are computed in float32, as there.
        keep_ignored: pixels of 255 that no class is painted on stay 255; as published, they become background.
    """
    classes = np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE)[1:IGNORE]) + 1
    of_atoms = regions.atom_labels(mask, IGNORE)[:, classes]
    totals, overlaps, areas = of_atoms.sum(axis=0), regions.summed(of_atoms), regions.areas
    # the class that each region joins, 0 for none
    joined = np.zeros(len(regions), np.int64)
    for label, total, overlap in zip(classes, totals, overlaps.T, strict=True):
        if at_least_half:
            of_region = overlap.astype(np.float32) / np.maximum(areas, 1).astype(np.float32)
            fits = (of_region >= 0.5) | (overlap.astype(np.float32) / np.float32(total) >= np.float32(share))
        else:
            fits = (2 * overlap > areas) | (overlap / total >= share)
        joined[fits & (joined == 0) & (areas > 0)] = label
    # a region covers pixels up to the turn of the class that it joins
    last_turn = np.full(len(regions), IGNORE) if at_least_half else np.where(joined > 0, joined, IGNORE)
    top, covered = (_highest(regions, of_region)[regions.atoms] for of_region in (joined, last_turn))
    # a later class lies over an earlier one
    painted = np.maximum(top, np.where((covered < mask) & (mask < IGNORE), mask, 0)).astype(np.uint8)
    if keep_ignored:
        painted[(mask == IGNORE) & (painted == 0)] = IGNORE
    return painted


def _highest(regions: Regions, of_region: Int[np.ndarray, " n"]) -> Int[np.ndarray, " a"]:
    """The highest value of the regions of each atom, 0 for an atom in none."""
    highest = np.zeros(len(regions.atom_areas), np.int64)
    np.maximum.at(highest, regions.members, of_region[regions.of_member])
    return highest


class Sams(NamedTuple):
    """Labels of regions by SAMS.

    Attributes:
        mask: the labels of the pixels, (h, w).
        regions: the regions that are not empty, (s,).
        scores: of background and classes for these regions, (1 + k, s), float64.
        order: the order in which these regions are painted, as positions in `regions`.
    """

    mask: UInt8[np.ndarray, "h w"]
    regions: Int[np.ndarray, " s"]
    scores: Float[np.ndarray, "l s"]
    order: Int[np.ndarray, " s"]


def sams(
    regions: Regions, classes: Int[np.ndarray, " k"], maps: Float[np.ndarray, "k h w"], power: float = 0.6
) -> Sams:
    """SAM-based seeding (FMA-WSSS; Yang and Gong, WACV 2024): every region takes the class with the highest mean of its map.

    The means are stretched to [0, 1] over the regions of the picture, for each class; the score of the background is
    (1 - highest score)^power. Regions are painted in ascending order of level and score, so that wholes are on top of their parts.

    Args:
        regions: equal ones are painted in their order.
        classes: 0-based, ascending.
        maps: values below 0 count as 0.
        power: published: 0.6 and 0.7 on VOC, 0.3 to 1 on COCO.
    """
    filled = np.flatnonzero(regions.areas > 0)
    if not len(filled) or not len(classes):
        background = np.concatenate([np.ones((1, len(filled))), np.zeros((len(classes), len(filled)))])
        order = np.lexsort((background[0], regions.levels[filled]))
        return Sams(np.zeros(regions.size_hw, np.uint8), filled, background, order)
    means = (regions.sums(np.maximum(maps, 0)) / np.maximum(regions.areas, 1)[:, None])[filled].T
    least, most = means.min(axis=1, keepdims=True), means.max(axis=1, keepdims=True)
    stretched = (means - least) / (most - least + _EPSILON)
    scores = np.concatenate([(1 - stretched.max(axis=0, keepdims=True)) ** power, stretched])
    labels = np.zeros(len(regions) + 1, np.uint8)
    labels[filled] = np.concatenate([[0], classes + 1])[scores.argmax(axis=0)]
    order = np.lexsort((scores.max(axis=0), regions.levels[filled]))
    # the last entry is for pixels without a region, -1
    return Sams(labels[regions.painted(filled[order])], filled, scores, order)


def most_frequent(
    labels: UInt8[np.ndarray, "h w"], regions: Int[np.ndarray, "h w"], unsegmented: int | None = None
) -> UInt8[np.ndarray, "h w"]:
    """Every region takes its most frequent label, the smallest one on ties (CorrCLIP; Zhang et al., ICCV 2025).

    Labels of 255 do not count; a region that has no others keeps them.

    Args:
        labels: labels of the pixels.
        regions: number of the region of each pixel.
        unsegmented: the number of pixels without a region, whose labels stay as they are. None for the smallest number that occurs, whatever
            it is, as published: if regions cover the whole picture, one of them is not corrected.
    """
    numbers, of = np.unique(regions, return_inverse=True)
    of = of.reshape(regions.shape)
    counts = np.bincount((of * 256 + labels).ravel(), minlength=256 * len(numbers)).reshape(-1, 256)[:, :IGNORE]
    winner = np.where(counts.any(axis=1), counts.argmax(axis=1), IGNORE).astype(np.uint8)
    kept = numbers == (numbers[0] if unsegmented is None else unsegmented)
    return np.where(kept[of], labels, winner[of])


def level_means(
    regions: Regions, maps: Float[np.ndarray, "k h w"], levels: int | None = None
) -> Float[np.ndarray, "k h w"]:
    """Maps averaged within the regions of each level, and then over the levels; see `spread`.

    Args:
        regions: with levels.
        maps: of any number of classes.
        levels: how many levels are used, the lowest ones first; None for all.
    """
    means = regions.sums(maps) / np.maximum(regions.areas, 1)[:, None]
    return spread(regions, means, maps, levels)


def with_values_of(
    averages: Float[np.ndarray, "k h w"], maps: Float[np.ndarray, "k h w"]
) -> Float[np.ndarray, "k h w"]:
    """Averages in their order, with the values that the maps had: the highest average takes the highest value of its class, and so on.

    So about as many pixels as before lie above any threshold: averages say where a class is, its map how much of the picture it fills. Pixels
    with equal averages share the places of their values, and take the one in the middle (of two the lower one).

    Args:
        averages: maps, such as those of `level_means`.
        maps: those they were made from.

    Returns:
        float32.
    """
    made = np.empty(averages.shape, np.float32)
    for one, of_class, before in zip(made, averages, maps, strict=True):
        _, places, counts = np.unique(of_class, return_inverse=True, return_counts=True)
        middles = np.sort(before, axis=None)[counts.cumsum() - (counts + 2) // 2]
        one[:] = middles[places].reshape(one.shape)
    return made


def spread(
    regions: Regions,
    values: Float[np.ndarray, "n k"],
    otherwise: Float[np.ndarray, "k h w"],
    levels: int | None = None,
) -> Float[np.ndarray, "k h w"]:
    """Values of regions as maps, averaged over the levels.

    On a level, a pixel has the value of its region on that level, or else on the next lower level that has one there; with several regions of
    one level, the mean of their values. A pixel that lies in no region up to a level keeps its own value there.

    Args:
        regions: with levels.
        values: of each region.
        otherwise: the pixels' own values.
        levels: how many levels are used, the lowest ones first; None for all.

    Returns:
        float32.
    """
    used = np.unique(regions.levels)[:levels]
    if not len(used) or not len(otherwise):
        return otherwise.astype(np.float32)
    count = len(regions.atom_areas)
    current, total = (np.zeros((count, len(otherwise))) for _ in range(2))
    covered, levels_covered = np.zeros(count, bool), np.zeros(count)
    for level in used:
        of_level = np.flatnonzero(regions.levels == level)
        part = regions.chosen(of_level)
        number = part.spread(np.ones((len(part), 1)))
        here = number[:, 0] > 0
        current[here] = part.spread(values[of_level].astype(np.float64))[here] / number[here]
        covered |= here
        total[covered] += current[covered]
        levels_covered += covered
    shares, own = (total / len(used)).T, (1 - levels_covered / len(used))[regions.atoms]
    made = np.empty(otherwise.shape, np.float32)
    for one, of_class, pixels in zip(made, shares, otherwise, strict=True):
        one[:] = of_class[regions.atoms] + own * pixels
    return made
