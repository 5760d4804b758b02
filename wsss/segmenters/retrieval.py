"""ModuSeg: regions of any picture, each labelled by the most similar regions of the training pictures (arXiv 2604.07021). Nothing is trained.

A proposer says where things are, a frozen network and a bank of vectors say what they are. The bank is the model: it is made from the pseudo masks
in one pass, and pictures and classes can be added later. Everything beyond the published rules is off unless a setting turns it on.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wsss import memory
from wsss.arrays import Float, Int, UInt8
from wsss.data.augment import ColourRule
from wsss.data.images import Images
from wsss.errors import BadInput, check_range
from wsss.foundations import (
    CLASSIFIER,
    FeatureSettings,
    check_identity,
    digest,
    features_of,
    load_features,
    rebuilt,
)
from wsss.networks.body import Backbone
from wsss.networks.features import BodyFeatures, DenseFeatures
from wsss.networks.receptive import ROUGH, Passes
from wsss.ops.enlarging import Step
from wsss.ops.region_shapes import EROSION, FEWEST_PIXELS, MOST_OVERLAP, distinct
from wsss.ops.regions import Regions
from wsss.ops.retrieval import DROPPED, NEIGHBOURS, Votes, Voting, pool, shares_inside, vote
from wsss.regions import DEFAULT, ProposerSettings
from wsss.regions.proposer import Proposer
from wsss.run import pretrained
from wsss.segmenters.bank import Bank, bank_of
from wsss.segmenters.trained import Enlarging, Local, Part, rescaled
from wsss.settings import build
from wsss.stages.each import within_budget
from wsss.weights import read_metadata, read_weights, weights_in

KIND, NONE = "retrieval", "none"


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    """A bank of region features, and how regions are labelled with it."""

    title: ClassVar[str] = "ModuSeg"

    kind: Literal["retrieval"] = "retrieval"
    """ModuSeg: regions are labelled by the most similar regions of the training pictures; nothing is trained"""
    init: str = pretrained(NONE)
    """a segmenter of this kind, to whose bank the pictures are added: its folder or file; it also gives the network of the features"""
    features: FeatureSettings = FeatureSettings()
    """the frozen network"""
    proposer: ProposerSettings = DEFAULT
    """what proposes the regions of a picture"""
    erosion: int = EROSION
    """pixels by which regions of the masks are eroded before they enter the bank"""
    erosion_share: float | None = None
    """erode by this share of the square root of a region's area instead, for pictures and objects of any size"""
    components: bool = False
    """each connected component of a class is a region of the bank; otherwise all objects of a class in a picture are one"""
    fewest_pixels: int = FEWEST_PIXELS
    """smaller regions are used neither in the bank, after the erosion, nor in a prediction"""
    dropped: float = DROPPED
    """share of the regions of each class, those farthest from their mean, that do not vote"""
    neighbours: int = NEIGHBOURS
    """number of the most similar regions that vote"""
    voting: Voting = "plain"
    """plain: each vote counts the same; balanced: less for frequent classes; by-class: the mean of the 8 highest similarities to each class"""
    background: Literal["votes", "left-out"] = "votes"
    """votes: background is a class like the others; left-out: regions are also background if they are less similar to the whole bank than a
    threshold, which is found by leaving pictures out of the bank"""
    combined: Literal["painted", "mean"] = "painted"
    """painted: the region with the highest similarity decides on a pixel; mean: all regions that contain it do"""
    lowest_score: float = 0.6
    """proposed regions with a lower score are not used"""
    most_overlap: float = MOST_OVERLAP
    """of two regions with the same label whose overlap is higher, one is left out; only for painted"""
    signature: ClassVar[str] = "bank.vectors"

    def __post_init__(self) -> None:
        for name, low, high in (
            ("erosion", 0, math.inf),
            ("fewest_pixels", 1, math.inf),
            ("dropped", 0, 0.99),
            ("neighbours", 1, math.inf),
            ("lowest_score", 0, 1),
            ("most_overlap", 0, 1),
        ):
            check_range(f"segmenter.{name}", getattr(self, name), low, high)
        if self.erosion_share is not None:
            check_range("segmenter.erosion_share", self.erosion_share, 0, 0.5)

    def check(self, classifier: Path | Backbone | None = None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs."""
        self.proposer.check()
        if self.init != NONE:
            metadata_of(Path(self.init))
        elif self.features.source == CLASSIFIER and isinstance(classifier, Backbone):
            features_of(self.features, classifier)
        else:
            load_features(self.after(classifier if isinstance(classifier, Path) else None).features)

    def after(self, classifier: Path | None) -> "RetrievalSettings":
        """These settings with the file of the run's classifier in place of the word."""
        if self.init != NONE or self.features.source != CLASSIFIER or classifier is None:
            return self
        return dataclasses.replace(
            self, features=dataclasses.replace(self.features, source=str(weights_in(classifier)))
        )

    @staticmethod
    def load(state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> "TrainedRetrieval":
        """A segmenter from the content of a file."""
        known = checked_metadata(metadata or {}, path)
        classes, settings = tuple(known["classes"]), settings_in(known, path)
        bank, network, _ = _bank_and_network(state, known, path)
        trained = TrainedRetrieval(network, classes, bank, settings, float(known["threshold"]))
        if network_digest(trained.proposer) != known["proposer"].get("digest"):
            do = "Restore that network, or make the segmenter again."
            raise BadInput(path, f"regions of another {settings.proposer.title}", "the proposer of its bank", do)
        return trained


def network_digest(proposer: Proposer) -> str | None:
    """The digest of the network that proposes regions; None for a proposer without one."""
    model = getattr(proposer, "model", None)
    return digest(model) if isinstance(model, nn.Module) else None


def metadata_of(where: Path) -> dict[str, Any]:
    """What the file of a retrieval segmenter says about itself.

    Raises:
        BadInput: there is no such file, or it holds something else.
    """
    path = weights_in(where)
    if not path.exists():
        do = "Check segmenter.init."
        raise BadInput(path, "no such file", "a segmenter of kind `retrieval`", do)
    return checked_metadata(read_metadata(path), path)


def checked_metadata(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The metadata of a retrieval segmenter, which has all its entries."""
    needed = {
        "kind": str,
        "classes": list,
        "pictures": list,
        "features": dict,
        "proposer": dict,
        "settings": dict,
        "threshold": float,
    }
    wrong = [name for name, kind in needed.items() if not isinstance(metadata.get(name), kind)]
    if wrong or metadata["kind"] != KIND:
        found = f"metadata without {', '.join(wrong)}" if wrong else f"a segmenter of kind `{metadata['kind']}`"
        raise BadInput(path, found, "a segmenter of kind `retrieval`", "Give the folder of such a segmenter.")
    if not -1 <= metadata["threshold"] <= 1:
        do = "Make the segmenter again."
        raise BadInput(path, f"a threshold of {metadata['threshold']}", "a similarity, at most 1", do)
    check_identity(metadata["features"], path)
    return dict(metadata)


def settings_in(metadata: Mapping[str, Any], path: Path) -> RetrievalSettings:
    """The settings in the metadata of a file."""
    known = metadata["settings"]
    # those of the network are in `features`; others would silently be the published ones
    lacking = [name.name for name in dataclasses.fields(RetrievalSettings) if name.name not in {"features", *known}]
    if lacking:
        raise BadInput(path, f"no settings {', '.join(lacking)}", "all settings", "Make the segmenter again.")
    try:
        return build(RetrievalSettings, known)
    except BadInput as error:
        found = f"segmenter.{error.where} {error.found}"
        raise BadInput(path, found, error.expected, "Make the segmenter again.") from error


def opened_bank(where: Path) -> tuple[Bank, dict[str, Any], DenseFeatures, Mapping[str, Tensor]]:
    """The bank of a segmenter, its metadata, its network, and the weights of the network in the file."""
    path = weights_in(where)
    metadata = metadata_of(path)
    bank, network, weights = _bank_and_network(read_weights(path)[0], metadata, path)
    return bank, metadata, network, weights


def _bank_and_network(
    state: Mapping[str, Tensor], metadata: Mapping[str, Any], path: Path
) -> tuple[Bank, DenseFeatures, Mapping[str, Tensor]]:
    bank, weights = bank_of(state, metadata["pictures"], len(metadata["classes"]) + 1, path)
    network = rebuilt(metadata["features"], weights, path)
    bank.check_vectors(network.channels, path)
    return bank, network, weights


def pooling_needs(images: Images, features: DenseFeatures) -> Callable[[int], int]:
    """The `needs` of `wsss.stages.each.for_each_picture` for pictures whose regions are described."""
    passes = Passes(features, features)
    # the grid while its layers are joined
    grid = 12 * features.channels / features.cell**2

    def bytes_for(index: int, size_hw: tuple[int, int]) -> float:
        pixels = math.prod(size_hw)
        # attention may grow with the square of the pixels, and is not tried out
        network: float = pixels * ROUGH * features.enlarge**2
        if isinstance(features.network, BodyFeatures):
            network = passes.whole(pixels, memory.budget())
        # the picture and its regions, and maps
        return network + pixels * (40 + grid + 20 * len(images.classes(index)))

    return within_budget(images, bytes_for, ", or shrink the picture")


def described(features: DenseFeatures, image: UInt8[np.ndarray, "h w 3"], regions: Regions) -> Float[np.ndarray, "n d"]:
    """The unit vector of each region of a picture."""
    grid = features.grid(image)
    shares = shares_inside(regions, features.cell, (grid.shape[0], grid.shape[1]))
    return pool(grid.reshape(-1, grid.shape[2]), shares)


class Decided(NamedTuple):
    """The regions of a picture, and what the bank says about them.

    Attributes:
        regions: those that were used.
        votes: for each; `neighbours` are rows of the bank.
        kept: the regions that repeat no better one, by descending score.
    """

    regions: Regions
    votes: Votes
    kept: Int[np.ndarray, " k"]


class TrainedRetrieval(Enlarging):
    """A bank with its network and its proposer; see `wsss.segmenters.trained.TrainedSegmenter`.

    Args:
        network: the frozen network.
        classes: the class names.
        bank: the vectors, all of them.
        settings: how regions are labelled.
        threshold: regions less similar to the whole bank are background.
    """

    of_shares = True

    def __init__(
        self,
        network: DenseFeatures,
        classes: tuple[str, ...],
        bank: Bank,
        settings: RetrievalSettings,
        threshold: float,
    ) -> None:
        self.network: nn.Module = network
        self.features, self.classes, self.settings, self.threshold = network, classes, settings, threshold
        self.scales: tuple[float, ...] = (1.0,)
        self.flip = False
        self.averaged: Literal["probabilities", "logits"] = "probabilities"
        self.colours: ColourRule = "imagenet"
        self.fit: tuple[int, int] | None = None
        self.window: int | None = None
        self.local: Local | None = None
        self.cell = 1
        # the vectors that vote
        self.bank = bank.chosen(bank.kept(settings.dropped))
        # column by column, which the matrix product reads 1.5 times as fast
        self._vectors = np.asfortranarray(self.bank.unit_vectors())
        self._labels = self.bank.labels.astype(np.int64)
        self.proposer = settings.proposer.proposer()

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        """The picture itself, with values from 0 to 255, since regions are proposed from it."""
        return rescaled(torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None], scale, align_corners=False)

    def coarse(
        self, view: Float[Tensor, "1 3 hs ws"], compute: Part | None = None, regions: Regions | None = None
    ) -> Float[Tensor, "1 l hs ws"]:
        """The shares of the votes; `regions` are those of the view, and are proposed here if they are not given."""
        image = view[0].round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        return torch.from_numpy(self.shares(self.decide(image, regions)))[None].to(view.device)

    def steps(
        self, coarse: Float[Tensor, "b l hc wc"], view_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> Sequence[Step]:
        return () if view_hw == size_hw else (Step(size_hw),)

    def crf_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The picture unchanged."""
        return image

    def decide(self, image: UInt8[np.ndarray, "h w 3"], regions: Regions | None = None) -> Decided:
        """The regions of a picture with their labels.

        Args:
            image: the picture.
            regions: those of the picture; proposed here by default.
        """
        settings = self.settings
        if regions is None:
            regions = self.proposer.regions(self.proposer.prepare(image))
        used = (regions.scores >= np.float32(settings.lowest_score)) & (regions.areas >= settings.fewest_pixels)
        regions = regions.chosen(np.flatnonzero(used))
        vectors = described(self.features, image, regions)
        # a vector without a direction is similar to nothing
        usable = np.flatnonzero(vectors.any(1))
        if len(usable) < len(regions):
            regions, vectors = regions.chosen(usable), vectors[usable]
        votes = vote(
            vectors, self._vectors, self._labels, len(self.classes) + 1, k=settings.neighbours, voting=settings.voting
        )
        if self.threshold > 0:
            votes = _with_background(votes, votes.nearest < self.threshold)
        kept = distinct(regions.intersections(), votes.labels, votes.scores, settings.most_overlap)
        return Decided(regions, votes, kept)

    def shares(self, decided: Decided) -> Float[np.ndarray, "l h w"]:
        """The shares of the votes at each pixel; all for the background where there is no region."""
        regions, votes, kept = decided
        n_labels = len(self.classes) + 1
        nothing = np.eye(1, n_labels, dtype=np.float32)
        if self.settings.combined == "mean":
            inside = regions.incidence().astype(np.float32)
            count = inside.sum(0)[:, None]
            of_atoms = np.where(count > 0, inside.T @ votes.shares / np.maximum(count, 1), nothing)
            return np.ascontiguousarray(of_atoms[regions.atoms].transpose(2, 0, 1), np.float32)
        objects = votes.labels[kept] > 0
        # regions of the background are not painted over objects, nor do they hide what lies in them
        painted, behind = (regions.painted(kept[chosen][::-1]) for chosen in (objects, ~objects))
        table = np.concatenate([votes.shares, nothing])
        return np.ascontiguousarray(table[np.where(painted >= 0, painted, behind)].transpose(2, 0, 1))


def _with_background(votes: Votes, background: Any) -> Votes:
    """The votes with some of the regions as background."""
    shares = np.where(background[:, None], np.eye(1, votes.shares.shape[1], dtype=np.float32), votes.shares)
    return votes._replace(labels=np.where(background, 0, votes.labels), shares=shares)
