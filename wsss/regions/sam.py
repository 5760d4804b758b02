"""Regions of Segment Anything (Kirillov et al., ICCV 2023; SAM 2: Ravi et al., ICLR 2025), from a grid of points.

Masks are kept as in the published automatic mask generation, without crops of the picture: by the predicted IoU, by stability (the IoU of
the mask at a lower and at a higher threshold), and by suppression of masks whose boxes overlap. Small holes and islands can be removed, as by
the authors' code, which then suppresses masks a second time; of two, one that was not changed is kept.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsss import launch
from wsss.arrays import Bool, Float, Int, UInt8
from wsss.errors import check_range
from wsss.ops.region_shapes import without_small_parts
from wsss.ops.regions import Regions
from wsss.regions.loading import check_proposer, load_proposer
from wsss.regions.proposer import Proposer
from wsss.run import pretrained, unrecorded
from wsss.supervision import MASKS

# kinds of models in config.json, and their classes in transformers; published files of SAM 2 say that they are for videos
KINDS = {"sam": "SamModel", "sam2": "Sam2Model", "sam2_video": "Sam2Model"}
WHAT = "Segment Anything"


@dataclasses.dataclass(frozen=True)
class SAMSettings:
    """Masks that Segment Anything predicts for the points of a grid."""

    title: ClassVar[str] = WHAT

    kind: Literal["sam"] = "sam"
    """masks of Segment Anything for a grid of points; levels are its three masks of a point"""
    model: str = pretrained("facebook/sam2.1-hiera-small", MASKS)
    """SAM or SAM 2: a hub id, or a folder saved by transformers"""
    points: int = 32
    """points along each side of the picture"""
    masks: Literal["three", "one"] = "three"
    """masks of a point: a part of a part, a part and a whole, as levels 0, 1 and 2; or one, published for SAM 2"""
    iou: float = 0.88
    """masks with a lower predicted IoU are left out"""
    stability: float = 0.95
    """masks with a lower stability are left out"""
    overlap: float = 0.7
    """of masks whose boxes have a higher IoU, the surest one is kept"""
    smallest: int = 0
    """holes and islands of masks with fewer pixels are removed; SAM and transformers remove none, SAMS those below 100"""
    batch: int = unrecorded(64)
    """points that are predicted at once"""

    def __post_init__(self) -> None:
        check_range("proposer.points", self.points, 1)
        for name in ("iou", "stability", "overlap"):
            check_range(f"proposer.{name}", getattr(self, name), 0, 1)
        check_range("proposer.smallest", self.smallest, 0)
        check_range("proposer.batch", self.batch, 1)

    def check(self) -> None:
        """See `wsss.regions.proposer.Proposable`."""
        check_proposer(self.model, KINDS, WHAT)

    def proposer(self) -> Proposer:
        """See `wsss.regions.proposer.Proposable`."""
        model, processor = load_proposer(self.model, KINDS, WHAT)
        return SAM(self, model.to(launch.device()), processor)


class _Prepared(NamedTuple):
    """A picture as the network takes it.

    Attributes:
        inputs: with the key `pixel_values`.
        input_hw: the part of the input that the picture fills.
        size_hw: of the picture.
    """

    inputs: Any
    input_hw: tuple[int, int]
    size_hw: tuple[int, int]


class SAM:
    """See `wsss.regions.proposer.Proposer`.

    Args:
        settings: which masks are kept.
        model: a model of transformers, on the device.
        processor: its image processor.
    """

    def __init__(self, settings: SAMSettings, model: Any, processor: Any) -> None:
        self.settings, self.model, self.processor = settings, model, processor

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> _Prepared:
        """See `wsss.regions.proposer.Proposer`."""
        inputs = self.processor(images=image.copy(), return_tensors="pt", input_data_format="channels_last")
        height, width = (
            inputs["reshaped_input_sizes"][0] if "reshaped_input_sizes" in inputs else inputs["pixel_values"].shape[2:]
        )
        return _Prepared(inputs, (int(height), int(width)), (image.shape[0], image.shape[1]))

    @torch.inference_mode()
    def regions(self, prepared: _Prepared) -> Regions:
        """The masks of all points that are kept, surest first."""
        from torchvision.ops import nms  # slow to import

        embeddings = self.model.get_image_embeddings(prepared.inputs["pixel_values"].to(self.model.device))
        found = [
            self._of_points(prepared, embeddings, points)
            for points in grid(self.settings.points, prepared.input_hw).split(self.settings.batch)
        ]
        masks, scores, levels = (torch.cat(parts) for parts in zip(*found, strict=True))
        kept = nms(_boxes(masks), scores, self.settings.overlap)
        masks, scores, levels = masks[kept], scores[kept], levels[kept]
        if self.settings.smallest:
            masks, kept = cleaned(masks, self.settings.smallest, self.settings.overlap)
            scores, levels = scores[kept], levels[kept]
        return Regions.of_masks(masks.cpu().numpy(), scores.clamp(0, 1).cpu().numpy(), levels.cpu().numpy())

    @torch.inference_mode()
    def of_boxes(self, prepared: _Prepared, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        """The probability of each pixel in the mask of each box.

        Args:
            prepared: the picture.
            boxes: x and y of the top left and of the bottom right corner, in pixels of the picture.
        """
        if not len(boxes):
            return boxes.new_zeros(0, *prepared.size_hw)
        device = self.model.device
        embeddings = self.model.get_image_embeddings(prepared.inputs["pixel_values"].to(device))
        ratio = torch.tensor(prepared.input_hw).flip(0) / torch.tensor(prepared.size_hw).flip(0)
        scaled = boxes.to(device) * ratio.repeat(2).to(device)
        masks = []
        for part in scaled.split(self.settings.batch):
            out = self.model(image_embeddings=embeddings, input_boxes=part[None], multimask_output=False)
            sizes = {"reshaped_input_sizes": [prepared.input_hw]}
            (logits,) = self.processor.post_process_masks(out.pred_masks, [prepared.size_hw], binarize=False, **sizes)
            masks.append(logits[:, 0].float().sigmoid())
        return torch.cat(masks)

    def _of_points(
        self, prepared: _Prepared, embeddings: Any, points: Float[Tensor, "p 2"]
    ) -> tuple[Bool[Tensor, "m h w"], Float[Tensor, " m"], Int[Tensor, " m"]]:
        """The masks of a few points that are sure and stable, their predicted IoU, and their levels."""
        device = self.model.device
        out = self.model(
            image_embeddings=embeddings,
            input_points=points[None, :, None].to(device),
            input_labels=torch.ones((1, len(points), 1), dtype=torch.int64, device=device),
            multimask_output=self.settings.masks == "three",
        )
        sizes = {"reshaped_input_sizes": [prepared.input_hw]}
        (logits,) = self.processor.post_process_masks(out.pred_masks, [prepared.size_hw], binarize=False, **sizes)
        levels = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2]).flatten()
        logits, scores = logits.flatten(0, 1).float(), out.iou_scores[0].flatten().float()
        kept = (scores > self.settings.iou) & (stabilities(logits) > self.settings.stability)
        masks = logits[kept] > 0
        filled = masks.flatten(1).any(dim=1)
        return masks[filled], scores[kept][filled], levels[kept][filled]


def grid(side: int, size_hw: tuple[int, int]) -> Float[Tensor, "p 2"]:
    """The centres of `side` x `side` cells, as x and y in pixels."""
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres * size_hw[0], centres * size_hw[1], indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def cleaned(
    masks: Bool[Tensor, "m h w"], smallest: int, overlap: float
) -> tuple[Bool[Tensor, "k h w"], Int[Tensor, " k"]]:
    """Masks without small holes and islands, without those that then repeat others, in their order, and which of the given ones they are.

    Args:
        masks: none is empty.
        smallest: see `wsss.ops.region_shapes.without_small_parts`.
        overlap: of masks whose boxes have a higher IoU one is kept, the first of those without small parts before the first of the others.
    """
    from torchvision.ops import nms

    if not len(masks):
        return masks, torch.zeros(0, dtype=torch.int64, device=masks.device)
    made, had = zip(*(without_small_parts(mask, smallest) for mask in masks.cpu().numpy()), strict=True)
    after = torch.from_numpy(np.stack(made)).to(masks.device)
    kept = nms(_boxes(after), 1 - torch.tensor(had, dtype=torch.float32, device=masks.device), overlap).sort().values
    return after[kept], kept


def stabilities(logits: Float[Tensor, "m h w"]) -> Float[Tensor, " m"]:
    """The number of pixels above 1 divided by that of pixels above -1; 0 if there are none."""
    high, low = (logits.flatten(1) > offset for offset in (1.0, -1.0))
    return high.sum(dim=1) / low.sum(dim=1).clamp_min(1)


def _boxes(masks: Bool[Tensor, "m h w"]) -> Float[Tensor, "m 4"]:
    from torchvision.ops import masks_to_boxes

    return masks_to_boxes(masks) if len(masks) else torch.zeros((0, 4), device=masks.device)
