"""Refinement with class-agnostic regions: maps averaged within regions, or masks that follow them; no network is trained.

The regions are made once, by `wsss regions` or here. `levels` averages the maps; `votes` also compares regions with those of other pictures;
`sams` labels regions by their maps; `sepl` and `mode` correct masks, which are made from the maps unless they are given.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from wsss.arrays import UInt8
from wsss.data.files import write_cams, write_mask
from wsss.data.images import Images
from wsss.data.maps import read_matching_cams
from wsss.errors import BadInput, check_range
from wsss.metrics import Background
from wsss.networks.body import Backbone
from wsss.ops.region_labels import level_means, most_frequent, sams, sepl, with_values_of
from wsss.ops.regions import Regions
from wsss.refiners.crf import MaskSettings, refine
from wsss.refiners.region_votes import LevelSettings, VoteSettings, change_by_votes, vote_regions
from wsss.refiners.task import RefinementTask
from wsss.regions import ProposerSettings
from wsss.regions.files import read_regions_of
from wsss.regions.tree import TreeSettings
from wsss.run import stage, unrecorded
from wsss.stages.bank import make_bank
from wsss.stages.each import as_loaded, by_pixels, for_each_picture
from wsss.stages.evaluate import evaluate_cams
from wsss.stages.localize import Cams
from wsss.stages.propose import propose
from wsss.stages.thresholds import PIXEL_LABELS, pixel_labels

By = Literal["levels", "votes", "sams", "sepl", "mode"]

# bytes a pixel of regions and of what is computed with them, and of the maps of a class
_BYTES, _OF_CLASS = 50, 12


@dataclasses.dataclass(frozen=True)
class SAMSSettings:
    """Seeds from regions."""

    title: ClassVar[str] = "SAMS"

    power: float = 0.6
    """exponent of the background score (1 - highest class score)^power of a region; published: 0.6 and 0.7 on VOC, 0.3 to 1 on COCO"""

    def __post_init__(self) -> None:
        check_range("refiner.sams.power", self.power, 0)


@dataclasses.dataclass(frozen=True)
class SEPLSettings:
    """Regions that join the classes of a mask."""

    title: ClassVar[str] = "SEPL"

    share: float = 0.85
    """a region that holds at least this share of a class's pixels joins the class, as does one of which more than half has the class"""
    at_least_half: bool = False
    """the variant of FMA-WSSS: half of a region is enough, and regions of earlier classes cover pixels too"""
    keep_ignored: bool = False
    """ignored pixels (255) stay ignored where no class is painted; as published, they become background"""

    def __post_init__(self) -> None:
        check_range("refiner.sepl.share", self.share, 0, 1)

    def corrected(self, regions: Regions, mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """The mask after the correction."""
        return sepl(regions, mask, share=self.share, at_least_half=self.at_least_half, keep_ignored=self.keep_ignored)


@dataclasses.dataclass(frozen=True)
class ModeSettings:
    """The most frequent label of each region."""

    title: ClassVar[str] = "most frequent label"

    score: float = 0.5
    """regions with a lower score are left out"""
    paint: Literal["score", "area"] = "score"
    """which region is on top where they overlap: the surest one, or the largest one (published for SAM 2)"""
    level: int | None = None
    """the highest level of regions that is used, on top of lower ones; null: all levels alike"""
    all_regions: bool = False
    """correct every region; as published, one stays as it is in pictures without a pixel outside the regions"""

    def __post_init__(self) -> None:
        check_range("refiner.mode.score", self.score, 0, 1)
        if self.level is not None:
            check_range("refiner.mode.level", self.level, 0, 255)

    def corrected(self, regions: Regions, mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """The mask after the correction."""
        painted = regions.flattened(self.score, self.paint, self.level)
        return most_frequent(mask, painted, -1 if self.all_regions else None)


# the ways to correct masks
Correction = SEPLSettings | ModeSettings


@dataclasses.dataclass(frozen=True)
class RegionsSettings:
    """Pseudo masks that follow class-agnostic regions."""

    kind: Literal["regions"] = "regions"
    """class-agnostic regions; nothing is trained"""
    by: By = "levels"
    """levels: maps averaged within regions, then `masks`; votes: the same, with votes of the regions of other pictures; sams: each region
    takes the class with the highest map; sepl, mode: `masks` first, then regions join their classes, or take their most frequent label"""
    regions: Path | None = unrecorded(None)
    """folder of regions made by `wsss regions`; by default they are made with `proposer`"""
    proposer: ProposerSettings = TreeSettings()
    """what proposes the regions"""
    masks: MaskSettings = MaskSettings()
    """how maps become masks: averaged maps for levels and votes, the maps themselves for sepl and mode; Otsu's threshold is always that of the
    maps themselves"""
    levels: LevelSettings = LevelSettings()
    """averages of maps"""
    votes: VoteSettings = VoteSettings()
    """votes of the regions of other pictures"""
    sams: SAMSSettings = SAMSSettings()
    """labels of regions by SAMS"""
    sepl: SEPLSettings = SEPLSettings()
    """correction by SEPL"""
    mode: ModeSettings = ModeSettings()
    """correction by the most frequent label"""

    @property
    def correction(self) -> Correction | None:
        """The correction of masks, if that is what is chosen."""
        return self.sepl if self.by == "sepl" else self.mode if self.by == "mode" else None

    def check(self, classifier: Path | Backbone | None, scored: Background | None = None) -> None:
        """See `wsss.refiners.task.Refiner`."""
        if self.regions is None:
            self.proposer.check()
        elif not self.regions.is_dir():
            raise BadInput(self.regions, "no such folder", "regions made by `wsss regions`", "Check refiner.regions.")
        if self.by == "votes":
            if self.masks.lower is not None:
                do = "Leave it out, or choose levels."
                raise BadInput("refiner.masks.lower", f"{self.masks.lower} with votes", "none", do)
            self.votes.bank.check(classifier)
        if self.by in ("levels", "votes"):
            # averaged maps are scored with a constant, however the maps are
            self.masks.check_rule("refiner.masks", scored and "constant")
        elif self.correction is not None:
            self.masks.check_rule("refiner.masks", scored)

    def refined(self, task: RefinementTask) -> Path:
        """Make the pseudo masks, and return their folder; regions and averaged maps are next to it."""
        regions = self._regions(task.images, task.folder("regions"), task.regions)
        if self.by == "sams":
            return label(self.sams, task.images, cams=task.cams, regions=regions, out=task.folder("masks"))
        if self.correction is not None:
            masks = self._uncorrected(task)
            return correct(self.correction, task.images, masks=masks, regions=regions, out=task.folder("masks"))
        after, thresholds = self._averaged(task, regions)
        masks_settings = self.masks
        if self.by == "votes":
            after = self._voted(task, regions, after, thresholds)
            # where background and class are equally probable
            masks_settings = dataclasses.replace(self.masks, threshold=0.5, exponent=1.0)
        return refine(masks_settings, task.images, cams=after, thresholds=thresholds, out=task.folder("masks"))

    def _uncorrected(self, task: RefinementTask) -> Path:
        """Masks of the maps as they are."""
        thresholds = task.thresholds(self.masks.rule, task.cams, "cams", task.cams_scores)
        out = task.folder("masks-uncorrected")
        return refine(self.masks, task.images, cams=task.cams, thresholds=thresholds, out=out)

    def _averaged(self, task: RefinementTask, regions: Path) -> tuple[Path, Path | None]:
        """The folders of the averaged maps, and of the stage that chose their threshold.

        Otsu's threshold is that of the maps before they are averaged: averages differ less, and theirs is often too low (docs/regions.md). The
        best threshold on true masks is that of the averaged maps.
        """
        name = "cams-levels"
        after = average(self.levels, task.images, cams=task.cams, regions=regions, out=task.folder(name))
        scores = task.trained / f"{name}-scores" if task.trained is not None else None
        if task.scored is not None:
            out = task.folder(f"{name}-scores")
            scores = evaluate_cams(task.scores.of_constants(), task.scored, cams=after, out=out)
        return after, task.thresholds(self.masks.rule, task.cams, "cams", scores)

    def _voted(self, task: RefinementTask, regions: Path, after: Path, thresholds: Path | None) -> Path:
        """The averaged maps after the votes; the bank is made from masks, or is that of the run that is reused."""
        if task.trained is not None:
            bank = task.trained / "votes-bank"
        else:
            if self.votes.made_from == "maps":
                masks = self._uncorrected(task)
            else:
                out = task.folder("masks-uncorrected")
                masks = refine(self.masks, task.images, cams=after, thresholds=thresholds, out=out)
            bank = make_bank(
                self.votes.bank.after(task.classifier), task.images, masks=masks, out=task.folder("votes-bank")
            )
        given = vote_regions(
            # the weight is chosen after the votes
            dataclasses.replace(self.votes, weight=VoteSettings.weight),
            self.levels,
            self.masks,
            task.images,
            cams=task.cams,
            averages=after,
            regions=regions,
            bank=bank,
            thresholds=thresholds,
            out=task.folder("votes"),
        )
        return change_by_votes(
            self.votes,
            self.levels,
            self.masks,
            task.images,
            cams=task.cams,
            averages=after,
            regions=regions,
            given=given,
            judged=given if task.trained is None else task.trained / "votes",
            thresholds=thresholds,
            out=task.folder("cams-votes"),
        )

    def corrected(self, images: Images, masks: Path, out: Path) -> Path:
        """Correct masks that exist already, and return the folder of the corrected ones, `out/masks`.

        Raises:
            BadInput: what is chosen needs maps.
        """
        if self.correction is None:
            raise BadInput("--masks", f"it with --by {self.by}", "--by sepl or mode", "Give the maps with --cams.")
        regions = self._regions(images, out / "regions")
        return correct(self.correction, images, masks=masks, regions=regions, out=out / "masks")

    def _regions(self, images: Images, out: Path, of_maps: Path | None = None) -> Path:
        """The folder of the regions: the one that is given, or that of the maps, or a new one."""
        known = self.regions or of_maps
        return propose(self.proposer, images, out=out) if known is None else known


@stage(kind="regions", makes="maps", title=None)
def average(settings: LevelSettings, images: Images, *, cams: Path, regions: Path, out: Path) -> dict[str, Any]:
    """Write the maps of every picture, averaged within regions, as `NAME.npz`; pictures whose file exists are skipped.

    Args:
        settings: how they are averaged.
        images: the pictures.
        cams: folder of their maps.
        regions: folder of their regions.
        out: the stage's folder.
    """

    def load(index: int) -> Cams:
        classes, maps, found = _maps_and_regions(images, cams, regions, index)
        averages = level_means(found, maps, settings.count)
        return Cams(classes, with_values_of(averages, maps) if settings.values == "kept" else averages, None)

    def write(path: Path, made: Cams) -> None:
        write_cams(path, *made)

    needs = by_pixels(images, _BYTES, 2 * _OF_CLASS)
    for_each_picture(images, out, ".npz", load, as_loaded, write, title=f"average {out.name}", needs=needs)
    return {"images": len(images)}


@stage(kind="regions", makes="masks", title=None)
def label(settings: SAMSSettings, images: Images, *, cams: Path, regions: Path, out: Path) -> dict[str, Any]:
    """Write the pseudo mask of every picture whose regions take the class with the highest map; existing masks are skipped.

    Args:
        settings: how regions are labelled.
        images: the pictures.
        cams: folder of their maps.
        regions: folder of their regions.
        out: the stage's folder.
    """
    images.check_maskable()

    def load(index: int) -> UInt8[np.ndarray, "h w"]:
        classes, maps, found = _maps_and_regions(images, cams, regions, index)
        return sams(found, classes, maps, settings.power).mask

    needs = by_pixels(images, _BYTES, _OF_CLASS)
    for_each_picture(images, out, ".png", load, as_loaded, write_mask, title=f"label {out.name}", needs=needs)
    return {"images": len(images), PIXEL_LABELS: "none"}


@stage(kind="regions", makes="masks", title=None)
def correct(settings: Correction, images: Images, *, masks: Path, regions: Path, out: Path) -> dict[str, Any]:
    """Write the mask of every picture after a correction with its regions; existing masks are skipped.

    Args:
        settings: the correction.
        images: the pictures.
        masks: folder of the masks to correct.
        regions: folder of the regions.
        out: the stage's folder.

    Raises:
        BadInput: a mask has another size than its picture, or a label of no class.
    """
    images.check_maskable()

    def load(index: int) -> UInt8[np.ndarray, "h w"]:
        picture, mask = images.read_with(masks, index)
        return settings.corrected(read_regions_of(images, regions, index, picture.shape[:2]), mask)

    needs = by_pixels(images, _BYTES)
    for_each_picture(images, out, ".png", load, as_loaded, write_mask, title=f"correct {out.name}", needs=needs)
    return {"images": len(images), PIXEL_LABELS: pixel_labels(masks)}


def _maps_and_regions(images: Images, cams: Path, regions: Path, index: int) -> tuple[np.ndarray, np.ndarray, Regions]:
    """Classes, maps and regions of a picture."""
    size_hw = images.size_hw(index)
    return *read_matching_cams(images, cams, index, size_hw), read_regions_of(images, regions, index, size_hw)
