"""Text prompts: maps of what a network finds when it is asked for the classes by name; no tags are needed, and nothing is trained.

Such networks were trained on masks or boxes that people drew, which the other methods are not. They are here so that they can be compared under
the same protocol. SAM 3 finds masks by words; Grounding DINO finds boxes, which Segment Anything turns into masks. With the score s of an object and
its probability q of a pixel, the map of a class is

    the highest over its objects of: (1 + s) / 2 where q > 0.5, otherwise s q

so a pixel is above 0.5 where an object covers it, and the class of the surest object is the highest.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss import launch
from wsss.arrays import Bool, Float, UInt8
from wsss.data.images import Images
from wsss.data.words import read_words
from wsss.errors import check_range
from wsss.prompting import grounding_dino, sam3
from wsss.prompting.finder import Finder, Found, load_with_words
from wsss.recipe import Method
from wsss.refiners.crf import CRFSettings
from wsss.regions.loading import load_proposer
from wsss.regions.sam import KINDS as SAM_KINDS
from wsss.regions.sam import SAM, SAMSettings
from wsss.regions.sam import WHAT as SAM_NAME
from wsss.run import maybe_file, pretrained
from wsss.stages.evaluate import ScoreSettings
from wsss.stages.localize import Cams
from wsss.supervision import MASKS, described_by

_WHAT = "a network that finds objects by words"
# value of `masks`: boxes are used as they are
BOXES = "none"
# objects in a picture that its memory is estimated with
_OBJECTS = 10


@dataclasses.dataclass(frozen=True)
class PromptsInference:
    """How objects are found by words."""

    title: ClassVar[str] = "text prompts"

    model: str = pretrained("facebook/sam3", MASKS)
    """SAM 3 or Grounding DINO: a hub id, or a folder saved by transformers"""
    masks: str = pretrained("facebook/sam2.1-hiera-small", MASKS)
    """SAM or SAM 2 that turns the boxes of Grounding DINO into masks, or none: the boxes are the masks; SAM 3 needs none"""
    words: str = maybe_file("auto")
    """names of the classes: a YAML file (`names`), or auto for the names in the dataset"""
    words_only: bool = True
    """do not use tags: maps of all classes that are found; false: only of the classes of a picture's tags"""
    threshold: float = 0.3
    """objects with a lower score are left out"""

    def __post_init__(self) -> None:
        check_range("inference.threshold", self.threshold, 0, 1)

    @property
    def unused_networks(self) -> tuple[str, ...]:
        """See `wsss.supervision.ChoosesNetworks`: SAM 3 makes its masks itself."""
        by_itself = any("sam3" in word.lower() for word in described_by(self.model))
        return ("masks",) if by_itself else ()

    def check(self, images: Images) -> None:
        """Raise BadInput for words or networks that cannot be used, before a picture is decoded."""
        self.finder(images)

    def finder(self, images: Images) -> Finder:
        """The network, on the CPU or the device, with the words of these classes."""
        words = read_words(self.words, images.class_names).names
        model, processor, tokenizer = _loaded(self.model)
        model = model.to(launch.device())
        if model.config.model_type in grounding_dino.KINDS:
            sam = None
            if self.masks != BOXES:
                network, its_processor = _loaded_sam(self.masks)
                sam = SAM(SAMSettings(), network.to(launch.device()), its_processor)
            return grounding_dino.GroundingDINO(model, processor, tokenizer, words, self.threshold, sam)
        return sam3.SAM3(model, processor, tokenizer, words, self.threshold)

    def localizer(self, images: Images) -> "PromptsLocalizer":
        """The localizer, with the network on the device."""
        return PromptsLocalizer(self.finder(images), self.words_only)


@functools.lru_cache(maxsize=1)
def _loaded(source: str) -> tuple[Any, Any, Any]:
    """Loaded once for the check and for the maps."""
    return load_with_words(source, {**sam3.KINDS, **grounding_dino.KINDS}, _WHAT)


@functools.lru_cache(maxsize=1)
def _loaded_sam(source: str) -> tuple[Any, Any]:
    return load_proposer(source, SAM_KINDS, SAM_NAME)


class PromptsLocalizer:
    """Computes the maps of the classes that are found.

    Args:
        finder: finds objects by words.
        words_only: ask for all classes, and write maps of those that are found.
    """

    def __init__(self, finder: Finder, words_only: bool) -> None:
        self.finder, self.words_only = finder, words_only

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Any:
        """The part of the work that needs no network."""
        return self.finder.prepare(image)

    def bytes_for(self, size_hw: tuple[int, int], classes: int) -> int:
        """See `wsss.stages.localize.Bounded`; how many objects will be found is not known, and taken to be `_OBJECTS` of as many classes."""
        # the picture while it is resized; the masks of objects, and their joining or the maps of as many classes
        made = math.prod(size_hw) * (30 + 16 * _OBJECTS)
        return int(self.finder.network_bytes + made)

    @torch.inference_mode()
    def cams(self, prepared: Any, size_hw: tuple[int, int], label: Bool[np.ndarray, " c"]) -> Cams:
        """Maps in [0, 1]: at the picture's size, and at a quarter of it."""
        classes = np.arange(len(label)) if self.words_only else np.flatnonzero(label)
        found = self.finder.found(prepared, classes.tolist()) if len(classes) else []
        if self.words_only:
            classes = classes[[len(one.scores) > 0 for one in found]]
            found = [one for one in found if len(one.scores)]
        quarter = (-(-size_hw[0] // 4), -(-size_hw[1] // 4))
        maps = torch.stack([joined_map(one, size_hw) for one in found]) if found else torch.zeros(0, *size_hw)
        small = F.interpolate(maps[None], quarter, mode="bilinear", align_corners=False)[0] if len(maps) else None
        return Cams(
            classes,
            maps.cpu().numpy(),
            np.zeros((0, *quarter), np.float32) if small is None else small.cpu().numpy(),
        )


def joined_map(found: Found, size_hw: tuple[int, int]) -> Float[Tensor, "h w"]:
    """The map of a class from its objects; 0 without any."""
    if not len(found.scores):
        return found.masks.new_zeros(size_hw)
    scores = found.scores[:, None, None]
    return torch.where(found.masks > 0.5, (1 + scores) / 2, scores * found.masks).amax(0)


METHOD = Method(
    name="prompts",
    paper="text prompts (SAM 3, arXiv 2511.16719; Grounding DINO, ECCV 2024), maps of what words find",
    inference=PromptsInference(),
    refiner=CRFSettings(by="threshold", threshold=0.5),
    scores=ScoreSettings(thresholds=(0.5,)),
)
