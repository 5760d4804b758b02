"""Maps of a trained WeCLIP or WeCLIP+, and what the training made of its labels: scores of those of its first and of its last step."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from wsss import launch
from wsss.arrays import Bool, Float, UInt8
from wsss.classifier import check_classes
from wsss.data.augment import normalise
from wsss.data.images import Images
from wsss.errors import check_range
from wsss.health.sample import sampled
from wsss.methods.weclip_labels import LabelMaker, LabelRule, at_size, text_vectors
from wsss.metrics import ConfusionMatrix, Convention, scores
from wsss.networks.weclip import Decoded, FrozenNetworks, Tokens, WeCLIPNetwork
from wsss.ops.pixel_refine import PixelRefinement
from wsss.run import stage, unrecorded
from wsss.segmenters.trained import settings_of
from wsss.segmenters.weclip import FIRST, KIND, load_network
from wsss.stages.each import sum_over_pictures
from wsss.stages.localize import Cams
from wsss.stages.pages import percent
from wsss.weights import read_weights, trained_weights, weights_in

log = logging.getLogger("wsss")


@dataclasses.dataclass(frozen=True)
class WeCLIPInference:
    """How maps are computed: as those from which the labels of the last training step were made, of whole pictures."""

    title: ClassVar[str] = "WeCLIP"

    cache: bool = unrecorded(True)
    """cache text features on disk"""

    def localizer(self, images: Images, weights: Path) -> "WeCLIPLocalizer":
        """The localizer of a trained network.

        Raises:
            BadInput: the weights belong to another network, or their classes are not those of the pictures.
        """
        state, metadata, path = trained_weights(weights, KIND)
        found = load_network(state, metadata, path)
        check_classes(path, found.classes, images)
        assert metadata is not None
        frozen, network = found.frozen.to(launch.device()), found.network.to(launch.device())
        rule = LabelRule(**{**metadata["rule"], "par": settings_of(PixelRefinement, metadata["rule"]["par"])})
        words = (metadata["prompts"], metadata["backgrounds"], metadata["templates"])
        maker = LabelMaker(frozen.clip, text_vectors(frozen.clip, *words, self.cache), rule)
        return WeCLIPLocalizer(frozen, network, maker, Choosing(**metadata["choosing"]))


@dataclasses.dataclass(frozen=True)
class Choosing:
    """Whether the decoder's affinity chose the attention, as opposed to the plain mean.

    Attributes:
        first: in the first step of the training.
        last: in the last one.
    """

    first: bool
    last: bool


class WeCLIPLocalizer:
    """Computes the refined maps R of the classes that a picture has, in one view.

    Args:
        frozen: CLIP and DINOv2, on the device.
        network: the trained layers, on the device.
        maker: makes maps and labels.
        choosing: when the affinity chose in the training.
    """

    def __init__(self, frozen: FrozenNetworks, network: WeCLIPNetwork, maker: LabelMaker, choosing: Choosing) -> None:
        self.frozen, self.network, self.maker, self.choosing = frozen, network, maker, choosing

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 hp wp"]:
        """The picture, normalised, with sides that are the nearest multiples of CLIP's patch, as in the published validation."""
        patch, least = self.frozen.clip.patch, self.frozen.smallest
        planes = torch.from_numpy(normalise(image))[None]
        size = tuple(max(round(side / patch) * patch, -(-least // patch) * patch) for side in image.shape[:2])
        return torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False)

    def bytes_for(self, size_hw: tuple[int, int], classes: int) -> int:
        """See `wsss.stages.localize.Bounded`."""
        pixels, patches = math.prod(size_hw), math.prod(size_hw) / self.frozen.clip.patch**2
        heads = self.frozen.clip.last_block().self_attn.num_heads
        # the attention of all heads of the last block, means over the heads, and their products; activations; view and maps
        return int(4 * patches**2 * (heads + 8 + self.maker.rule.attentions) + pixels * (900 + 12 * classes))

    def cams(self, view: Float[Tensor, "1 3 hp wp"], size_hw: tuple[int, int], label: Bool[np.ndarray, " c"]) -> Cams:
        """Maps in [0, 1] of the classes in `label`: at the picture's size, and at a quarter of it."""
        present = np.flatnonzero(label)
        quarter = (-(-size_hw[0] // 4), -(-size_hw[1] // 4))
        if len(present) == 0:
            return Cams(present, np.zeros((0, *size_hw), np.float32), np.zeros((0, *quarter), np.float32))
        with torch.no_grad():
            view = self.on_device(view)
            tokens = self.tokens(view)
            decoded = self.network(tokens)
            chosen = torch.from_numpy(present).to(view.device)
            affinity = decoded.affinity()[0] if self.choosing.last else None
            maps = self.maker.grid_maps(tokens, 0, chosen, affinity, decoded.mean().softmax(1)[0])
            sizes = [at_size(maps, view, size).clamp(0, 1).cpu().numpy() for size in (size_hw, quarter)]
        return Cams(present, *sizes)

    @torch.inference_mode()
    def describe(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " d"]:
        """CLIP's embedding of a picture, a unit vector; see `wsss.stages.localize.Describer`."""
        return self.frozen.clip.embedding(self.on_device(self.prepare(image)))[0].cpu().numpy()

    def on_device(self, view: Float[Tensor, "1 3 hp wp"]) -> Float[Tensor, "1 3 hp wp"]:
        """A picture on the device of the networks."""
        return view.to(self.maker.texts.classes.device)

    def tokens(self, view: Float[Tensor, "1 3 hp wp"]) -> Tokens:
        """What the frozen networks give for a picture."""
        return self.frozen(view, self.maker.rule.attentions)


@dataclasses.dataclass(frozen=True)
class LabelScoreSettings:
    """Scores of the labels of the first and of the last training step, on whole pictures and without dropout."""

    pictures: int = 500
    """most pictures that are scored; 0: none"""
    convention: Convention = "present"
    """how classes that do not occur count in the mean: present, nan, zero, icam or devkit"""

    def __post_init__(self) -> None:
        check_range("labels.pictures", self.pictures, 0)


def score_labels(settings: LabelScoreSettings, images: Images, weights: Path, out: Path) -> None:
    """Score the labels, unless `settings.pictures` is 0, or the weights were not trained by this version of the method."""
    where = weights_in(weights)
    if settings.pictures and (where.parent / FIRST).exists():
        labels_of_steps(settings, images.subset(sampled(images, settings.pictures)), weights=where.parent, out=out)


@stage(kind="labels", makes="notes", title="labels of the training")
def labels_of_steps(settings: LabelScoreSettings, images: Images, *, weights: Path, out: Path) -> dict[str, Any]:
    """Score the labels that the decoder has at the start and at the end of its training.

    True masks are used for these scores alone. In WeCLIP+, the replacement of labels by confident predictions is left out.

    Args:
        settings: how they are scored.
        images: pictures with tags and true masks.
        weights: folder of the training.
        out: the stage's folder.
    """
    localizer = WeCLIPInference().localizer(images, weights)
    state, metadata = read_weights(weights / FIRST)
    first = load_network(state, metadata, weights / FIRST).network.to(launch.device())
    choosing, maker = localizer.choosing, localizer.maker
    steps = {"first": (first, choosing.first), "last": (localizer.network, choosing.last)}
    counts = {name: ConfusionMatrix(images.n_labels) for name in steps}

    def load(index: int) -> tuple[Tensor, np.ndarray]:
        return localizer.prepare(images.read(index)), images.read_mask(index)

    @torch.no_grad()
    def add(index: int, loaded: tuple[Tensor, np.ndarray]) -> None:
        view, truth = localizer.on_device(loaded[0]), loaded[1]
        tokens, tags = localizer.tokens(view), torch.from_numpy(images.labels[index : index + 1]).to(view)
        for name, (network, chosen) in steps.items():
            decoded: Decoded = network(tokens)
            affinity = decoded.affinity() if chosen else None
            made = maker.labels(view, tags, tokens, affinity, decoded.mean().softmax(1))
            resized = torch.nn.functional.interpolate(made[None].double(), truth.shape, mode="nearest-exact")
            counts[name].add(truth, resized[0, 0].to(torch.uint8).cpu().numpy(), images.names[index])

    sum_over_pictures(images, load, add, title=f"labels {out.name}")
    miou = {name: scores(launch.summed(one.counts), settings.convention).miou for name, one in counts.items()}
    if launch.is_first():
        shown = ", ".join(f"of the {name} step {percent(value)} mIoU" for name, value in miou.items())
        log.info("labels %s (%d pictures of %s)", shown, len(images), images.title)
    return {"images": len(images), **{f"mIoU of the labels of the {name} step": value for name, value in miou.items()}}
