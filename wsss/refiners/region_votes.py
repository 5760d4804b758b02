"""Votes of regions: the regions of a picture are compared with those of other pictures, and change its maps.

A bank has the features of the eroded regions of all pseudo masks, as in ModuSeg (arXiv 2604.07021). A region of a picture gets, for each tag and
for the background, the mean of its 8 highest similarities to vectors of other pictures with that label, and a softmax of these.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from wsss import launch
from wsss.data.files import write_cams
from wsss.data.images import Images
from wsss.data.maps import read_matching_cams
from wsss.errors import check_range
from wsss.foundations import FeatureSettings
from wsss.ops.region_labels import spread
from wsss.ops.regions import Regions
from wsss.ops.retrieval import vote
from wsss.refiners.crf import MaskSettings
from wsss.regions.files import read_regions_of
from wsss.run import stage
from wsss.segmenters.retrieval import RetrievalSettings, described, opened_bank
from wsss.stages.each import for_each_picture
from wsss.stages.localize import Cams
from wsss.stages.thresholds import PIXEL_LABELS, pixel_labels


@dataclasses.dataclass(frozen=True)
class LevelSettings:
    """Averages of maps within regions."""

    title: ClassVar[str] = "averages over regions"

    count: int | None = 4
    """number of levels over which maps are averaged, from the smallest regions on; null for all"""

    def __post_init__(self) -> None:
        if self.count is not None:
            check_range("refiner.levels.count", self.count, 1)


@dataclasses.dataclass(frozen=True)
class VoteSettings:
    """Votes of the regions of other pictures."""

    title: ClassVar[str] = "votes of regions"

    weight: float = 0.3
    """weight of the votes against the averaged maps"""
    features: FeatureSettings = FeatureSettings()
    """the frozen network that describes regions; its source `classifier` is the network that made the maps"""
    erosion: int = 2
    """pixels by which the regions of masks are eroded before they enter the bank"""
    fewest_pixels: int = 60
    """smaller regions of masks, after the erosion, do not enter the bank"""

    def __post_init__(self) -> None:
        check_range("refiner.votes.weight", self.weight, 0, 1)
        check_range("refiner.votes.erosion", self.erosion, 0)
        check_range("refiner.votes.fewest_pixels", self.fewest_pixels, 1)

    @property
    def bank(self) -> RetrievalSettings:
        """How the bank is made."""
        return RetrievalSettings(
            features=self.features,
            erosion=self.erosion,
            fewest_pixels=self.fewest_pixels,
            dropped=0.0,
            voting="by-class",
        )


def votes(
    bank: Float[np.ndarray, "m d"],
    of: Int[np.ndarray, " m"],
    queries: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " l"],
    allowed: Bool[np.ndarray, " m"],
) -> Float[np.ndarray, "n l"] | None:
    """The share of the votes that each region gives to each label, rows sum to 1; None if a label has no vector in the bank.

    Args:
        bank: unit vectors of all pictures.
        of: their labels.
        queries: unit vectors of the regions.
        labels: background and tags of the picture.
        allowed: the vectors that may vote: not those of the picture itself.
    """
    rows = np.flatnonzero(allowed & np.isin(of, labels))
    if len(np.unique(of[rows])) < len(labels):
        return None
    return vote(queries, bank[rows], of[rows], int(labels.max()) + 1, k=1, voting="by-class").shares[:, labels]


def with_votes(
    base: Float[np.ndarray, "l h w"], given: Float[np.ndarray, "l h w"], weight: float
) -> Float[np.ndarray, "k h w"]:
    """Maps of the classes in which 0.5 is where class and background are equally probable.

    Args:
        base, given: probabilities of background and classes, from the maps and from votes.
        weight: of the votes.
    """
    both = (1 - weight) * base + weight * given
    return (both[1:] / np.maximum(both[1:] + both[:1], 1e-12)).astype(np.float32)


def probabilities(maps: Float[np.ndarray, "k h w"], masks: MaskSettings) -> Float[np.ndarray, "l h w"]:
    """Background and maps, divided by their sum; the background has the score with which `masks` compares the maps.

    Args:
        maps: in [0, 1].
        masks: with numbers.
    """
    if masks.by == "scores":
        assert not isinstance(masks.exponent, str)
        background = (1 - maps.max(axis=0, keepdims=True, initial=0)) ** masks.exponent
    else:
        assert not isinstance(masks.threshold, str)
        background = np.full((1, *maps.shape[1:]), masks.threshold, np.float32)
    scores = np.concatenate([background, maps])
    return scores / np.maximum(scores.sum(axis=0), 1e-12)


@stage(kind="regions", makes="maps", title=None)
def change_by_votes(
    settings: VoteSettings,
    levels: LevelSettings,
    masks: MaskSettings,
    images: Images,
    *,
    cams: Path,
    regions: Path,
    bank: Path,
    thresholds: Path | None,
    out: Path,
) -> dict[str, Any]:
    """Write maps into which the votes of regions have entered, as `NAME.npz`; pictures whose file exists are skipped.

    The maps of a picture with a tag that no other picture gives a vector for change only in that 0.5 becomes their threshold.

    Args:
        settings: the votes.
        levels: those over which the maps were averaged; so are the votes.
        masks: how maps become masks, which says what the score of the background is.
        images: the pictures.
        cams: folder of maps that are averaged within regions.
        regions: folder of the regions.
        bank: folder of the bank.
        thresholds: folder of the stage that chose the threshold or exponent of `masks`.
        out: the stage's folder.
    """
    numbers = masks.at(thresholds)
    known, _, features, _ = opened_bank(bank)
    features = features.to(launch.device())
    vectors, of = known.unit_vectors(), known.labels.astype(np.int64)
    numbered = {name: number for number, name in enumerate(known.names)}

    def load(index: int) -> tuple[UInt8[np.ndarray, "h w 3"], Cams, Regions]:
        image = images.read(index)
        size_hw = (image.shape[0], image.shape[1])
        classes, maps = read_matching_cams(images, cams, index, size_hw)
        found = read_regions_of(images, regions, index, size_hw)
        used = np.isin(found.levels, np.unique(found.levels)[: levels.count])
        return image, Cams(classes, maps, None), found.chosen(np.flatnonzero(used))

    def compute(index: int, loaded: tuple[UInt8[np.ndarray, "h w 3"], Cams, Regions]) -> Cams:
        image, (classes, maps, _), found = loaded
        base = probabilities(maps, numbers)
        labels = np.concatenate([[0], classes.astype(np.int64) + 1])
        others = known.pictures != numbered.get(images.names[index], -1)
        given = None
        if len(found) and len(classes):
            given = votes(vectors, of, described(features, image, found), labels, others)
        voted = base if given is None else spread(found, given, base)
        return Cams(classes, with_votes(base, voted, settings.weight), None)

    def write(path: Path, made: Cams) -> None:
        write_cams(path, *made)

    for_each_picture(images, out, ".npz", load, compute, write, title=f"votes {out.name}")
    return {"images": len(images), **numbers.values(), PIXEL_LABELS: pixel_labels(thresholds) if thresholds else "none"}
