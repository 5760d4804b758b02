"""Grounding DINO (Liu et al., ECCV 2024): boxes of all objects that words name; Segment Anything turns them into masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from wsss.arrays import Bool, Float, UInt8
from wsss.errors import BadInput
from wsss.prompting.finder import Found, Prepared, network_bytes
from wsss.regions.sam import SAM

KINDS = {
    "grounding-dino": "GroundingDinoForObjectDetection",
    "mm-grounding-dino": "MMGroundingDinoForObjectDetection",
}


class GroundingDINO:
    """See `wsss.prompting.finder.Finder`. All words are asked for at once, separated by full stops.

    Args:
        model, processor, tokenizer: of transformers; the model is on the device.
        words: phrases.
        threshold: objects with a lower score are left out.
        sam: turns boxes into masks; None: the boxes themselves are the masks.

    Raises:
        BadInput: a word has a full stop, or all words are too long together.
    """

    def __init__(
        self, model: Any, processor: Any, tokenizer: Any, words: Sequence[str], threshold: float, sam: SAM | None
    ) -> None:
        self.model, self.processor, self.threshold, self.sam = model, processor, threshold, sam
        phrases = [word.strip().lower() for word in words]
        for word in phrases:
            if "." in word:
                raise BadInput(
                    f"the class name {word!r}", "a full stop", "a name without", "Give another with --words."
                )
        text, spans = "", []
        for phrase in phrases:
            spans.append((len(text), len(text) + len(phrase)))
            text += f"{phrase}. "
        tokens = tokenizer(text.rstrip(), return_offsets_mapping=True, return_tensors="pt")
        offsets = tokens.pop("offset_mapping")[0]
        limit = int(model.config.max_text_len)
        if len(offsets) > limit:
            do = "Ask for fewer classes, or use SAM 3, which is asked for one at a time."
            raise BadInput("the class names", f"{len(offsets)} tokens", f"at most {limit} together", do)
        self.text = {name: value.to(model.device) for name, value in tokens.items()}
        # the tokens of each word
        self.of: Bool[Tensor, "k t"] = torch.stack(
            [
                (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
                for start, end in spans
            ]
        ).to(model.device)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """See `wsss.prompting.finder.Finder`."""
        return Prepared.by(self.processor, image, None if self.sam is None else self.sam.prepare(image))

    @property
    def network_bytes(self) -> float:
        """See `wsss.prompting.finder.Finder`."""
        return sum(network_bytes(one.processor) for one in (self, self.sam) if one is not None)

    @torch.inference_mode()
    def found(self, prepared: Prepared, words: list[int]) -> list[Found]:
        """The objects of each word whose score is above the threshold; an object belongs to its best word."""
        device = self.model.device
        pictures = {name: prepared.inputs[name].to(device) for name in ("pixel_values", "pixel_mask")}
        out = self.model(**pictures, **self.text)
        # logits of the padding are minus infinity
        by_token = out.logits[0, :, : self.of.shape[1]].sigmoid()
        by_word = torch.stack([by_token[:, of].amax(1) for of in self.of[words]], 1)
        scores, best = by_word.max(1)
        sure = scores > self.threshold
        height, width = prepared.size_hw
        corners = box_convert(out.pred_boxes[0, sure], "cxcywh", "xyxy").clamp(0, 1)
        masks = self._masks(prepared, corners * corners.new_tensor([width, height, width, height]))
        scores, best = scores[sure].float(), best[sure]
        return [Found(scores[best == number], masks[best == number]) for number in range(len(words))]

    def _masks(self, prepared: Prepared, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        if self.sam is not None:
            return self.sam.of_boxes(prepared.of_sam, boxes)
        y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in prepared.size_hw)
        inside_x = (x >= boxes[:, :1]) & (x <= boxes[:, 2:3])
        inside_y = (y >= boxes[:, 1:2]) & (y <= boxes[:, 3:])
        return (inside_y[:, :, None] & inside_x[:, None]).float()
