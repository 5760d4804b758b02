"""Votes of regions: the regions of a picture are compared with those of other pictures, and change its maps.

A bank has the features of the eroded regions of all pseudo masks, as in ModuSeg (arXiv 2604.07021). A region of a picture gets, for each tag and
for the background, the mean of its 8 highest similarities to vectors of other pictures with that label, and a softmax of these.

Similarities of a class and of the background are not comparable: some classes would win too much, others too little. So the votes for a class are
shifted until they give it as much area, over all pictures, as the maps do: votes say where a class is, and the maps how much of it there is.

How much votes count is found without true masks too, for each class: by the correlation of the votes with the maps, over all regions. Where the two
disagree, votes mostly repeat what is common to the wrong masks of all pictures, such as the water around every boat.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from wsss import launch
from wsss.arrays import Bool, Float, Int, UInt8
from wsss.data.files import read_arrays, write_cams
from wsss.data.images import Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput, check_range
from wsss.foundations import FeatureSettings
from wsss.ops.region_labels import level_means, spread
from wsss.ops.regions import Regions
from wsss.ops.retrieval import vote
from wsss.refiners.crf import MaskSettings
from wsss.regions.files import read_regions_of
from wsss.run import stage
from wsss.segmenters.retrieval import RetrievalSettings, described, opened_bank, pooling_needs
from wsss.stages.each import as_loaded, by_pixels, for_each_picture
from wsss.stages.localize import Cams
from wsss.stages.thresholds import PIXEL_LABELS, pixel_labels
from wsss.storage import read_json, whole_file, write_json

log = logging.getLogger("wsss")

Against = Literal["others", "background"]

# the highest weight of votes, and the correlations of maps and votes from which on they count, and count fully (docs/regions.md)
_HIGHEST, _LEAST, _ENOUGH = 0.3, 0.6, 0.7
# in the folder of the votes: how much those of each class agree with the maps
AGREEMENT = "agreement.json"
# there too: the probability from which on votes give as much area to each class as the maps
BALANCE = "balance.json"
_SUFFIX, _NAMES = ".npz", ("shares", "moments", "areas")
# bins of these probabilities, and how far from a half they may be
_BINS, _FARTHEST = 200, 0.45
# bytes a pixel of changing maps by votes, and of each class: its maps, averages, votes and probabilities
CHANGING = (20, 40)
_EXPECTED = "the votes of the regions of a picture"
# below it, a class that covers the whole picture would have no cut
_LOWEST_CUT = 1e-3


@dataclasses.dataclass(frozen=True)
class LevelSettings:
    """Averages of maps within regions."""

    title: ClassVar[str] = "averages over regions"

    count: int | None = None
    """number of levels over which maps are averaged, from the smallest regions on; null for all"""
    values: Literal["kept", "averaged"] = "kept"
    """kept: each map takes the values it had before, in the order of its averages, so that as many pixels as before lie above any threshold;
    averaged: the averages themselves"""

    def __post_init__(self) -> None:
        if self.count is not None:
            check_range("refiner.levels.count", self.count, 1)


@dataclasses.dataclass(frozen=True)
class VoteSettings:
    """Votes of the regions of other pictures."""

    title: ClassVar[str] = "votes of regions"

    weight: Literal["agreement"] | float = "agreement"
    """weight of the votes against the averaged maps; agreement: that of each class, up to 0.3, by the correlation of votes and maps"""
    against: Against = "others"
    """what the votes for a class are compared with: those for the background and the other tags of the picture, or for the background alone"""
    features: FeatureSettings = FeatureSettings()
    """the frozen network that describes regions; its source `classifier` is the network that made the maps"""
    made_from: Literal["averages", "maps"] = "averages"
    """what the masks of the bank are made from: the averaged maps, or the maps themselves"""
    erosion: int = 2
    """pixels by which the regions of masks are eroded before they enter the bank"""
    fewest_pixels: int = 60
    """smaller regions of masks, after the erosion, do not enter the bank"""

    def __post_init__(self) -> None:
        if not isinstance(self.weight, str):
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


def against_background(probabilities: Float[np.ndarray, "l ..."]) -> Float[np.ndarray, "k ..."]:
    """The probability of each class if there is only this class and the background, which is the first label."""
    return probabilities[1:] / np.maximum(probabilities[1:] + probabilities[:1], 1e-12)


def of_classes(shares: Float[np.ndarray, "l ..."], against: Against) -> Float[np.ndarray, "k ..."]:
    """What votes say about each class, from their shares for the background and the classes; see `VoteSettings.against`."""
    return shares[1:] if against == "others" else against_background(shares)


def with_votes(
    base: Float[np.ndarray, "l h w"],
    given: Float[np.ndarray, "l h w"],
    weights: Float[np.ndarray, " k"],
    balance: Float[np.ndarray, " k"] | float = 0.5,
    against: Against = "background",
) -> Float[np.ndarray, "k h w"]:
    """Maps of the classes in which 0.5 is where class and background are equally probable.

    Args:
        base, given: probabilities of background and classes, from the maps and from votes.
        weights: of the votes, for each class.
        balance: the probability of votes for each class that becomes 0.5: odds are divided by its odds.
        against: see `VoteSettings.against`.
    """
    of_votes, half = weights[:, None, None], np.broadcast_to(balance, weights.shape)[:, None, None]
    voted = of_classes(given, against)
    voted = voted * (1 - half) / (voted * (1 - half) + (1 - voted) * half)
    return ((1 - of_votes) * against_background(base) + of_votes * voted).astype(np.float32)


def moments(
    of_maps: Float[np.ndarray, "n k"], of_votes: Float[np.ndarray, "n k"], areas: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "k 6"]:
    """What the correlation of the maps and the votes of regions is computed from, for each class; those of several pictures are added."""
    x, y = of_maps.astype(np.float64), of_votes.astype(np.float64)
    terms = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return np.stack([areas @ term for term in terms], axis=1)


def agreement(sums: Float[np.ndarray, "k 6"]) -> Float[np.ndarray, " k"]:
    """The correlation of maps and votes of each class, weighted by area, from `moments`; 0 where one of them is constant."""
    means = sums[:, 1:] / np.maximum(sums[:, :1], 1)
    x, y, xx, yy, xy = means.T
    spreads = (xx - x * x) * (yy - y * y)
    usable = spreads > 1e-12
    return np.where(usable, (xy - x * y) / np.sqrt(np.where(usable, spreads, 1)), 0)


def areas(
    of_maps: Float[np.ndarray, "k n"], of_votes: Float[np.ndarray, "k n"], sizes: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "k b"]:
    """The area of each class in the maps, and a histogram of the votes by area, from 0 to 1; those of several pictures are added.

    Args:
        of_maps, of_votes: probability of the class in each region.
        sizes: areas of the regions.
    """
    bins = np.minimum((of_votes * _BINS).astype(np.int64), _BINS - 1)
    return np.stack(
        [
            np.concatenate([[sizes[maps > 0.5].sum()], np.bincount(places, sizes, minlength=_BINS)])
            for maps, places in zip(of_maps, bins, strict=True)
        ]
    )


def balanced(sums: Float[np.ndarray, "k b"]) -> Float[np.ndarray, " k"]:
    """The probability above which votes give each class as much area as maps do, from `areas`; 0.5 for a class without any area."""
    wanted, above = sums[:, :1], sums[:, :0:-1].cumsum(axis=1)
    # of the edges of the bins from 1 down to 0, the one with the area that is closest
    edges = 1 - np.arange(_BINS + 1) / _BINS
    differences = np.abs(np.concatenate([np.zeros_like(wanted), above], axis=1) - wanted)
    found = np.clip(edges[differences.argmin(axis=1)], 0.5 - _FARTHEST, 0.5 + _FARTHEST)
    return np.where(wanted[:, 0] > 0, found, 0.5)


def weights_of(agreements: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """The weight of the votes of each class: 0 below a correlation of 0.6, the highest one above 0.7, linear in between."""
    return _HIGHEST * np.clip((agreements - _LEAST) / (_ENOUGH - _LEAST), 0, 1)


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


def at_cuts(
    averages: Float[np.ndarray, "k h w"], kept: Float[np.ndarray, "k h w"], masks: MaskSettings
) -> Float[np.ndarray, "l h w"]:
    """Probabilities as `probabilities`, of averages that are compared with a cut for each class: they are as high on the same pixels as the
    maps with kept values, and keep their distances, which those do not have.

    Args:
        averages: maps averaged over regions.
        kept: the same with the values of the maps before.
        masks: with numbers.
    """
    inside = against_background(probabilities(kept, masks)) > 0.5
    scores = np.ones((1 + len(averages), *averages.shape[1:]), np.float32)
    for score, of_class, pixels in zip(scores[1:], averages, inside, strict=True):
        # halfway between the lowest average inside and the highest one outside
        cut = (of_class[pixels].min(initial=1) + of_class[~pixels].max(initial=0)) / 2
        score[:] = of_class / max(cut, _LOWEST_CUT)
    return scores / scores.sum(axis=0)


class _Loaded(NamedTuple):
    """A picture with its classes, their maps, these after they were averaged, and its regions."""

    image: UInt8[np.ndarray, "h w 3"]
    classes: Int[np.ndarray, " k"]
    maps: Float[np.ndarray, "k h w"]
    averages: Float[np.ndarray, "k h w"]
    regions: Regions


@stage(kind="vote", makes="answers", title=None)
def vote_regions(
    settings: VoteSettings,
    levels: LevelSettings,
    masks: MaskSettings,
    images: Images,
    *,
    cams: Path,
    averages: Path,
    regions: Path,
    bank: Path,
    thresholds: Path | None,
    out: Path,
) -> dict[str, Any]:
    """Write the votes of the regions of every picture as `NAME.npz`; pictures whose file exists are skipped.

    `agreement.json` says for each class how well the votes agree with the maps, `balance.json` from which probability on they give it as much
    area. The votes of a picture are empty if a tag of it has no vector of another picture.

    Args:
        settings: what votes are compared with.
        levels: those whose regions are compared.
        masks: how maps become masks.
        images: the pictures.
        cams: folder of their maps, as they were before they were averaged.
        averages: folder of these maps after they were averaged.
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

    def load(index: int) -> _Loaded:
        image = images.read(index)
        size_hw = (image.shape[0], image.shape[1])
        classes, maps = read_matching_cams(images, cams, index, size_hw)
        _, after = read_matching_cams(images, averages, index, size_hw)
        return _Loaded(image, classes, maps, after, _of_levels(images, regions, index, size_hw, levels))

    def compute(index: int, loaded: _Loaded) -> dict[str, np.ndarray]:
        image, classes, maps, after, found = loaded
        labels = np.concatenate([[0], classes.astype(np.int64) + 1])
        others = known.pictures != numbered.get(images.names[index], -1)
        given = None
        if len(found) and len(classes):
            given = votes(vectors, of, described(features, image, found), labels, others)
        sums, of_areas = (np.zeros((len(images.class_names), width)) for width in (6, 1 + _BINS))
        if given is None:
            return {"shares": np.zeros((0, len(labels)), np.float32), "moments": sums, "areas": of_areas}
        of_maps = found.sums(maps) / np.maximum(found.areas, 1)[:, None]
        of_votes = of_classes(given.T, settings.against)
        sums[classes] = moments(of_maps, of_votes.T, found.areas)
        probable = against_background(probabilities(of_maps.T[..., None], numbers))[..., 0]
        of_areas[classes] = areas(probable, of_votes, found.areas)
        if levels.values == "kept":
            # the means of regions say less about areas
            inside = against_background(probabilities(after, numbers)) > 0.5
            of_areas[classes, 0] = found.sums(inside.astype(np.float32)).sum(axis=0)
        return {"shares": given.astype(np.float32), "moments": sums, "areas": of_areas}

    needs = pooling_needs(images, features)
    for_each_picture(images, out, _SUFFIX, load, compute, _write_votes, title=f"vote {out.name}", needs=needs)
    launch.wait()
    agreements, balance = launch.decided_by_first(lambda: _compared(images, out))
    return {"images": len(images), "agreement of votes and maps": agreements, "balance": balance}


def _write_votes(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with whole_file(path, sync="file") as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _compared(images: Images, out: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Write and return how the votes of each class compare with its maps: their agreement, and their balance."""
    do = f"Remove {out}, and run the command again."
    sums, of_areas = (np.zeros((len(images.class_names), width)) for width in (6, 1 + _BINS))
    for name in images.names:
        _, of_picture, more = read_arrays(out / f"{name}{_SUFFIX}", _NAMES, _EXPECTED, do)
        sums += of_picture
        of_areas += more
    agreements, balance = (
        {name: round(float(one), 4) for name, one in zip(images.class_names, values, strict=True)}
        for values in (agreement(sums), balanced(of_areas))
    )
    write_json(out / AGREEMENT, agreements)
    write_json(out / BALANCE, balance)
    return agreements, balance


def _of_levels(images: Images, regions: Path, index: int, size_hw: tuple[int, int], settings: LevelSettings) -> Regions:
    """The regions of a picture on the levels that are used."""
    found = read_regions_of(images, regions, index, size_hw)
    return found.chosen(np.flatnonzero(np.isin(found.levels, np.unique(found.levels)[: settings.count])))


@stage(kind="regions", makes="maps", title=None)
def change_by_votes(
    settings: VoteSettings,
    levels: LevelSettings,
    masks: MaskSettings,
    images: Images,
    *,
    cams: Path,
    averages: Path,
    regions: Path,
    given: Path,
    judged: Path,
    thresholds: Path | None,
    out: Path,
) -> dict[str, Any]:
    """Write maps into which the votes of regions have entered, as `NAME.npz`; pictures whose file exists are skipped.

    The maps of a picture without votes, or whose classes have votes without weight, change only in that 0.5 becomes their threshold.

    Args:
        settings: the votes.
        levels: those over which the maps were averaged; so are the votes.
        masks: how maps become masks, which says what the score of the background is.
        images: the pictures.
        cams: folder of the maps.
        averages: folder of these maps after they were averaged within regions.
        regions: folder of the regions.
        given: folder of their votes.
        judged: folder of votes by whose agreement with maps the votes are weighted; that of another run if its bank is reused.
        thresholds: folder of the stage that chose the threshold or exponent of `masks`.
        out: the stage's folder.
    """
    numbers = masks.at(thresholds)
    weights, balance = _weights(settings, judged, images), _of_classes(judged / BALANCE, images)
    shown = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(images.class_names, weights, strict=True))
    log.info("%s: weight of the votes (%s): %s", out, settings.weight, shown)

    def load(index: int) -> Cams:
        size_hw = images.size_hw(index)
        classes, after = read_matching_cams(images, averages, index, size_hw)
        base = probabilities(after, numbers)
        path = given / f"{images.names[index]}{_SUFFIX}"
        shares, *_ = read_arrays(path, _NAMES, _EXPECTED, f"Remove {given}, and run the command again.")
        if not len(shares) or not weights[classes].any():
            return Cams(classes, against_background(base).astype(np.float32), None)
        found = _of_levels(images, regions, index, size_hw, levels)
        if levels.values == "kept":
            _, maps = read_matching_cams(images, cams, index, size_hw)
            base = at_cuts(level_means(found, maps), after, numbers)
        voted = spread(found, shares, base)
        return Cams(classes, with_votes(base, voted, weights[classes], balance[classes], settings.against), None)

    def write(path: Path, made: Cams) -> None:
        write_cams(path, *made)

    needs = by_pixels(images, *CHANGING)
    for_each_picture(images, out, ".npz", load, as_loaded, write, title=f"votes {out.name}", needs=needs)
    used = {name: round(float(one), 4) for name, one in zip(images.class_names, weights, strict=True)}
    marks = {PIXEL_LABELS: pixel_labels(thresholds) if thresholds else "none"}
    return {
        "images": len(images),
        **numbers.values(),
        "weights of the votes": used,
        "chosen by": str(settings.weight),
        **marks,
    }


def _weights(settings: VoteSettings, judged: Path, images: Images) -> Float[np.ndarray, " c"]:
    """The weight of the votes of each class."""
    if not isinstance(settings.weight, str):
        return np.full(len(images.class_names), settings.weight)
    return weights_of(_of_classes(judged / AGREEMENT, images))


def _of_classes(path: Path, images: Images) -> Float[np.ndarray, " c"]:
    """The number of each class in a file that `vote_regions` wrote."""
    known = read_json(path, "how votes and maps compare")
    if not isinstance(known, dict) or any(not isinstance(known.get(name), float) for name in images.class_names):
        do = f"Remove {path.parent}, and run the command again."
        raise BadInput(path, f"{known!s:.60}", "a number for each class", do)
    return np.array([known[name] for name in images.class_names])
