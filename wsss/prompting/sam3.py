"""Segment Anything 3 (arXiv 2511.16719): masks of all objects that a short noun phrase names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from wsss.arrays import UInt8
from wsss.prompting.finder import Found, Prepared, network_bytes

KINDS = {"sam3": "Sam3Model", "sam3_video": "Sam3Model"}
# tokens of a phrase, as in the processor of transformers
_TOKENS = 32


class SAM3:
    """See `wsss.prompting.finder.Finder`. The picture is encoded once for all words.

    Args:
        model, processor, tokenizer: of transformers; the model is on the device.
        words: phrases.
        threshold: objects with a lower score are left out.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, words: Sequence[str], threshold: float) -> None:
        self.model, self.processor, self.threshold = model, processor, threshold
        tokens = tokenizer(list(words), padding="max_length", max_length=_TOKENS, truncation=True, return_tensors="pt")
        self.tokens, self.mask = (tokens[name].to(model.device) for name in ("input_ids", "attention_mask"))

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """See `wsss.prompting.finder.Finder`."""
        return Prepared.by(self.processor, image)

    @property
    def network_bytes(self) -> float:
        """See `wsss.prompting.finder.Finder`."""
        return network_bytes(self.processor)

    @torch.inference_mode()
    def found(self, prepared: Prepared, words: list[int]) -> list[Found]:
        """The objects of each word whose score, that of the object times that of the word's presence, is above the threshold."""
        seen = self.model.get_vision_features(prepared.inputs["pixel_values"].to(self.model.device))
        return [self._of_word(seen, word, prepared.size_hw) for word in words]

    def _of_word(self, seen: Any, word: int, size_hw: tuple[int, int]) -> Found:
        one = slice(word, word + 1)
        out = self.model(vision_embeds=seen, input_ids=self.tokens[one], attention_mask=self.mask[one])
        scores = (out.pred_logits.sigmoid() * out.presence_logits.sigmoid())[0]
        sure = scores > self.threshold
        masks = out.pred_masks[:, sure].sigmoid()
        if sure.any():
            masks = F.interpolate(masks, size_hw, mode="bilinear", align_corners=False)
        else:
            masks = masks.new_zeros(1, 0, *size_hw)
        return Found(scores[sure].float(), masks[0].float())
