"""CorrCLIP: reconstructing patch correlations in CLIP for open-vocabulary semantic segmentation (Zhang et al., ICCV 2025), with tags as in ModuSeg.

Nothing is trained. CLIP's patches attend only to patches of the same region (`wsss.networks.corrclip`), in overlapping windows. With the cosine
c_w of a pixel and a word, a class has the score c of its best word, and the background that of the best of its words. The map of a class is

    sigmoid(40 (c of the class - highest c of all others))

so it is above 0.5 where the published labels have the class. The published correction, the most frequent label of each region, is the
refiner `regions` with `by: mode`.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss import launch
from wsss.arrays import Bool, Float, Int, Int32, UInt8
from wsss.data.augment import normalise
from wsss.data.images import Images
from wsss.data.words import IMAGENET_TEMPLATES, check_templates, read_words
from wsss.errors import BadInput, check_range
from wsss.foundations import FeatureSettings, load_features
from wsss.methods.clip_es import check_names, patched, text_features
from wsss.networks.clip import CLIP
from wsss.networks.corrclip import FEWEST_BLOCKS, linked, over_windows, region_features, resized_nearest, scope
from wsss.networks.features import DenseFeatures, PatchDescriptions, TransformerFeatures
from wsss.networks.receptive import ROUGH
from wsss.ops.regions import Regions
from wsss.precision import Precision, mixed
from wsss.pretrained import FromCLIP, load_clip
from wsss.recipe import Method
from wsss.refiners.crf import MaskSettings
from wsss.refiners.regions import ModeSettings, RegionsSettings
from wsss.regions.sam import SAMSettings
from wsss.run import maybe_file, pretrained, unrecorded
from wsss.stages.evaluate import ScoreSettings
from wsss.stages.localize import Cams

# value of `dino`: the patches are compared by CLIP's own queries and keys
_ITSELF = "none"


@dataclasses.dataclass(frozen=True)
class CorrCLIPInference(FromCLIP):
    """How maps are computed with CLIP within regions."""

    title: ClassVar[str] = "CorrCLIP"

    dino: str = pretrained("facebook/dino-vitb8")
    """the frozen transformer whose patches are compared: a hub id, a folder saved by transformers, a name of timm, or none:
    CLIP's own queries and keys"""
    words: str = maybe_file("auto")
    """texts of the classes and backgrounds: a YAML file, a list of CorrCLIP (.txt), or auto for the lists of CorrCLIP"""
    templates: tuple[str, ...] = IMAGENET_TEMPLATES
    """sentences that the texts are inserted into; their features are averaged"""
    words_only: bool = False
    """do not use tags: maps of all classes that have the highest score somewhere"""
    competitors: Literal["present", "all"] = "present"
    """classes that compete: those of the picture (published), or all, where the others count as background"""
    backgrounds: bool = True
    """compare with the background texts"""
    sharpness: float = 40.0
    """factor of the cosines"""
    threshold: float = 0.0
    """pixels whose highest probability over all texts is lower are background; published without tags: 0.2 for VOC, 0.25 for COCO"""
    window: int = 336
    """side of the windows in which networks see the picture, in pixels"""
    step: int = 112
    """distance between windows in pixels"""
    short_side: int | None = None
    """shorter side that pictures are resized to (longer side at most 2048); none: their own size; published without tags: 336"""
    score: float = 0.0
    """regions with a lower score are left out; published for EntitySeg: 0.5"""
    paint: Literal["area", "score"] = "area"
    """which region is on top where they overlap: the largest one (published for SAM 2), or the surest one"""
    level: int | None = None
    """the highest level of regions that is used, on top of lower ones; null: all levels alike"""
    regions: Path | None = unrecorded(None)
    """folder of regions made by `wsss regions`; a run makes them with `proposer` otherwise"""
    precision: Precision = "no"
    """precision of the networks (published: fp16); `no` is float32"""
    cache: bool = unrecorded(True)
    """cache text features on disk"""

    def __post_init__(self) -> None:
        check_templates("inference.templates", self.templates)
        for name, low, high in (("threshold", 0.0, 1.0), ("score", 0.0, 1.0), ("sharpness", 0.0, 1e4)):
            check_range(f"inference.{name}", getattr(self, name), low, high)
        check_range("inference.window", self.window, 16)
        check_range("inference.step", self.step, 1, self.window)
        if self.short_side is not None:
            check_range("inference.short_side", self.short_side, 16)
        if self.level is not None:
            check_range("inference.level", self.level, 0, 255)

    def check(self, images: Images) -> None:
        """Raise BadInput for words, networks or regions that cannot be used, before any stage runs."""
        if self.regions is not None and not self.regions.is_dir():
            do = "Check inference.regions."
            raise BadInput(self.regions, "no such folder", "regions made by `wsss regions`", do)
        words = read_words(self.words, images.class_names, "corrclip")
        if not self.backgrounds and self.competitors == "present":
            do = "Set inference.competitors to all, or inference.backgrounds to true."
            raise BadInput("inference.backgrounds", "false, with the classes of the picture alone", "a background", do)
        clip, _ = self._networks()
        check_names(clip, (*words.names, *words.background))

    def _networks(self) -> tuple[CLIP, PatchDescriptions]:
        clip = load_clip(self.clip, self.activation, "no class token to copy for each region")
        if clip.n_blocks < FEWEST_BLOCKS:
            raise BadInput(self.clip, f"{clip.n_blocks} blocks", f"at least {FEWEST_BLOCKS}", "Give a larger CLIP.")
        if self.dino == _ITSELF:
            vision: Any = clip.model
            features = DenseFeatures(TransformerFeatures(vision.vision_model, "clip"))
        else:
            features = load_features(FeatureSettings(self.dino, layers=1, enlarge=1)).features
        return clip, PatchDescriptions(features, self.dino)

    def localizer(self, images: Images, regions: Path) -> "CorrCLIPLocalizer":
        """The localizer: both networks on the device, with the text features of these classes."""
        words = read_words(self.words, images.class_names, "corrclip")
        device = launch.device()
        clip, dino = self._networks()
        clip, dino = clip.to(device), dino.to(device)
        of_classes = [(name, *others) for name, others in zip(words.names, words.synonyms, strict=True)]
        texts = [word for group in of_classes for word in group]
        check_names(clip, (*texts, *words.background))
        background = words.background if self.backgrounds else ()
        classes, backgrounds = text_features(clip, texts, background, self.templates, self.cache)
        of = [0] * len(background) + [label for label, group in enumerate(of_classes, 1) for _ in group]
        return CorrCLIPLocalizer(clip, dino, torch.cat([backgrounds, classes]).to(device), np.array(of), self)


class Prepared(NamedTuple):
    """A picture as the networks see it.

    Attributes:
        view: normalised for CLIP, on the CPU.
        regions: numbers of the regions; 0 for pixels without a region.
    """

    view: Float[Tensor, "1 3 hv wv"]
    regions: Int32[np.ndarray, "hv wv"]


class CorrCLIPLocalizer:
    """Computes the maps of the classes that a picture has, or may have.

    Args:
        clip: with frozen weights, on the device.
        dino: the network that patches are compared with, on the device.
        texts: unit vectors of all words.
        of: the label of each word; 0 for the background.
        settings: of the method.
    """

    def __init__(
        self,
        clip: CLIP,
        dino: PatchDescriptions,
        texts: Float[Tensor, "w d"],
        of: Int[np.ndarray, " w"],
        settings: CorrCLIPInference,
    ) -> None:
        self.clip, self.dino, self.texts, self.of, self.settings = clip, dino, texts, of, settings
        mean, deviation = (torch.tensor(values, device=texts.device)[:, None, None] for values in clip.colours)
        self._mean, self._deviation = 255 * mean, 255 * deviation

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """The picture, normalised, without any region."""
        return self.prepare_within(image, Regions.of_masks(np.zeros((0, *image.shape[:2]), bool)))

    def prepare_within(self, image: UInt8[np.ndarray, "h w 3"], regions: Regions) -> Prepared:
        """The picture, normalised, and its region map; see `wsss.stages.localize.WithinRegions`."""
        settings = self.settings
        painted = regions.flattened(settings.score, settings.paint, settings.level) + 1
        size = view_size((image.shape[0], image.shape[1]), settings.short_side)
        planes = torch.from_numpy(normalise(image, self.clip.colours))[None]
        if size != image.shape[:2]:
            planes = F.interpolate(planes, size, mode="bilinear", align_corners=False)
        return Prepared(planes, resized_nearest(painted, size).astype(np.int32))

    def bytes_for(self, size_hw: tuple[int, int], classes: int) -> int:
        """See `wsss.stages.localize.Bounded`."""
        seen = math.prod(view_size(size_hw, self.settings.short_side))
        counts = np.bincount(self.of)
        words = len(self.of)
        if self.settings.competitors != "all" and not self.settings.words_only:
            words = int(counts[0] + classes * counts[1:].max(initial=0))
        found = len(counts) if self.settings.words_only else classes
        # the picture, its regions, its view, and the cosines and maps of words and classes; two networks see a window
        view = seen * (20 + 8 * words)
        return int(math.prod(size_hw) * (20 + 12 * words + 12 * found) + view + 2 * ROUGH * self.settings.window**2)

    @torch.inference_mode()
    def describe(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " d"]:
        """CLIP's embedding of a picture, a unit vector; see `wsss.stages.localize.Describer`."""
        view = torch.from_numpy(patched(image, self.clip.patch, self.clip.colours))[None].to(self.texts.device)
        return self.clip.embedding(view)[0].cpu().numpy()

    @torch.inference_mode()
    def cams(self, prepared: Prepared, size_hw: tuple[int, int], label: Bool[np.ndarray, " c"]) -> Cams:
        """Maps in [0, 1] of the classes in `label`, or of those that words find: at the picture's size, and at a quarter of it."""
        candidates = np.arange(len(label)) if self.settings.words_only else np.flatnonzero(label)
        quarter = (-(-size_hw[0] // 4), -(-size_hw[1] // 4))
        if len(candidates) == 0:
            return Cams(candidates, np.zeros((0, *size_hw), np.float32), np.zeros((0, *quarter), np.float32))
        rows = self._rows(candidates)
        cosines = self.cosines(prepared, torch.from_numpy(rows).to(self.texts.device))
        maps = [
            contrasts(
                F.interpolate(cosines[None], size, mode="bilinear", align_corners=False)[0],
                self.of[rows],
                candidates + 1,
                self.settings.sharpness,
                self.settings.threshold,
            )
            for size in (size_hw, quarter)
        ]
        if self.settings.words_only:
            found = (maps[0] > 0.5).flatten(1).any(1)
            candidates, maps = candidates[found.cpu().numpy()], [one[found] for one in maps]
        return Cams(candidates, *(one.cpu().numpy() for one in maps))

    def _rows(self, candidates: Int[np.ndarray, " k"]) -> Int[np.ndarray, " r"]:
        """The words that compete in a picture."""
        if self.settings.competitors == "all":
            return np.arange(len(self.of))
        return np.flatnonzero(np.isin(self.of, [0, *(candidates + 1)]))

    def cosines(self, prepared: Prepared, rows: Int[Tensor, " r"]) -> Float[Tensor, "r hv wv"]:
        """The cosines of the pixels and these words, averaged over the windows."""
        texts, settings = self.texts[rows], self.settings
        networks = partial(mixed, settings.precision, texts.device)

        def of_window(window: Float[Tensor, "1 3 h w"], regions: Int[np.ndarray, "h w"]) -> Float[Tensor, "r h w"]:
            with networks():
                compared = self.dino(window * self._deviation + self._mean)[0]
            cells = (compared.shape[1], compared.shape[2])
            features = F.normalize(compared.float().flatten(1).T, dim=1)
            joined = linked(resized_nearest(regions, cells), features)
            attention = scope(joined, features)
            with networks():
                found = region_features(self.clip, window, joined, attention)
            maps = (F.normalize(found.float(), dim=1) @ texts.T).T.unflatten(1, cells)
            return F.interpolate(maps[None], regions.shape, mode="bilinear", align_corners=False)[0]

        view = prepared.view.to(texts.device)
        return over_windows(of_window, view, prepared.regions, settings.window, settings.step)


def view_size(size_hw: tuple[int, int], short_side: int | None, longest: int = 2048) -> tuple[int, int]:
    """The size at which a picture is seen: its shorter side becomes `short_side`, its longer side at most `longest`."""
    if short_side is None:
        return size_hw
    factor = min(short_side / min(size_hw), longest / max(size_hw))
    height, width = (max(1, int(side * factor + 0.5)) for side in size_hw)
    return height, width


def contrasts(
    cosines: Float[Tensor, "r h w"],
    of: Int[np.ndarray, " r"],
    labels: Int[np.ndarray, " k"],
    sharpness: float,
    threshold: float = 0.0,
) -> Float[Tensor, "k h w"]:
    """sigmoid(s (c_label - highest c of the other labels)) for each of `labels`, where c is the highest cosine of a label's words.

    Args:
        cosines: of each word.
        of: the label of each word; labels that are not in `labels` count as background.
        labels: ascending, each with a word.
        sharpness: s.
        threshold: where the highest softmax of s times the cosines over all words is lower, all maps are below 0.5.
    """
    best = torch.stack([cosines[np.flatnonzero(of == label)].amax(0) for label in labels])
    others = np.flatnonzero(~np.isin(of, labels))
    everyone = torch.cat([best, cosines[others].amax(0, keepdim=True)]) if len(others) else best
    if len(everyone) == 1:
        maps = torch.ones_like(best)
    else:
        (first, second), (winner, _) = everyone.topk(2, dim=0)
        numbers = torch.arange(len(labels), device=best.device)[:, None, None]
        maps = torch.sigmoid(sharpness * (best - torch.where(winner == numbers, second, first)))
    if threshold > 0:
        highest = (sharpness * cosines).softmax(0).amax(0)
        maps = torch.where(highest < threshold, maps.minimum(0.5 * highest / threshold), maps)
    return maps


METHOD = Method(
    name="corrclip",
    paper="CorrCLIP (Zhang et al., ICCV 2025), maps of a frozen CLIP within regions",
    inference=CorrCLIPInference(),
    # SAM 2 as published
    proposer=SAMSettings(points=8, masks="one", iou=0.4, stability=0.4),
    refiner=RegionsSettings(
        by="mode", masks=MaskSettings(by="threshold", threshold=0.5), mode=ModeSettings(score=0.0, paint="area")
    ),
    scores=ScoreSettings(thresholds=(0.3, 0.4, 0.5, 0.6, 0.7)),
)
