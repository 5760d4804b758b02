"""Regions of networks for panoptic segmentation: EoMT (Kerssies et al., CVPR 2025) and Mask2Former (Cheng et al., CVPR 2022).

Only the masks of their segments are used, not the classes.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from wsss import launch
from wsss.arrays import UInt8
from wsss.errors import check_range
from wsss.ops.regions import Regions
from wsss.regions.loading import check_proposer, load_proposer
from wsss.regions.proposer import Proposer
from wsss.run import pretrained
from wsss.supervision import MASKS

KINDS = {"eomt": "EomtForUniversalSegmentation", "mask2former": "Mask2FormerForUniversalSegmentation"}
WHAT = "EoMT or Mask2Former"


@dataclasses.dataclass(frozen=True)
class EoMTSettings:
    """Segments of a network for panoptic segmentation; they do not overlap and have no levels."""

    title: ClassVar[str] = WHAT

    kind: Literal["eomt"] = "eomt"
    """segments of EoMT or Mask2Former"""
    model: str = pretrained("tue-mps/coco_panoptic_eomt_large_640", MASKS)
    """EoMT or Mask2Former: a hub id, or a folder saved by transformers"""
    score: float = 0.8
    """segments with a lower score are left out"""
    mask: float = 0.5
    """a pixel belongs to the mask of a segment if its probability is at least this"""
    visible: float = 0.8
    """segments of whose masks a smaller share is visible are left out"""

    def __post_init__(self) -> None:
        for name in ("score", "mask", "visible"):
            check_range(f"proposer.{name}", getattr(self, name), 0, 1)

    def check(self) -> None:
        """See `wsss.regions.proposer.Proposable`."""
        check_proposer(self.model, KINDS, WHAT)

    def proposer(self) -> Proposer:
        """See `wsss.regions.proposer.Proposable`."""
        model, processor = load_proposer(self.model, KINDS, WHAT)
        return Panoptic(self, model.to(launch.device()), processor)


class Panoptic:
    """See `wsss.regions.proposer.Proposer`.

    Args:
        settings: which segments are kept.
        model: a model of transformers, on the device.
        processor: its image processor.
    """

    def __init__(self, settings: EoMTSettings, model: Any, processor: Any) -> None:
        self.settings, self.model, self.processor = settings, model, processor

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> tuple[Any, tuple[int, int]]:
        """The input of the network, and the size of the picture."""
        inputs = self.processor(images=image.copy(), return_tensors="pt", input_data_format="channels_last")
        return inputs, (image.shape[0], image.shape[1])

    @torch.inference_mode()
    def regions(self, prepared: tuple[Any, tuple[int, int]]) -> Regions:
        """The segments that are kept, in the order of the network."""
        inputs, size_hw = prepared
        out = self.model(pixel_values=inputs["pixel_values"].to(self.model.device))
        (found,) = self.processor.post_process_panoptic_segmentation(
            out,
            target_sizes=[size_hw],
            threshold=self.settings.score,
            mask_threshold=self.settings.mask,
            overlap_mask_area_threshold=self.settings.visible,
            **_SEPARATE.get(self.model.config.model_type, {}),
        )
        segments, numbers = found["segments_info"], found["segmentation"].cpu().numpy()
        masks = numbers[None] == np.array([one["id"] for one in segments])[:, None, None]
        scores = np.array([one["score"] for one in segments])
        kept = masks.any(axis=(1, 2)) if len(segments) else np.zeros(0, bool)
        return Regions.of_masks(masks.reshape(len(segments), *size_hw)[kept], scores[kept].clip(0, 1))


# segments of the same class stay separate, which Mask2Former is told by an empty set
_SEPARATE: dict[str, dict[str, Any]] = {"mask2former": {"label_ids_to_fuse": set()}}
