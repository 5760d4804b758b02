"""The interface of networks that find what words name, and how they are loaded."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import transformers
from torch import Tensor, nn

from wsss.arrays import Float, UInt8
from wsss.errors import BadInput
from wsss.pretrained import loading_model
from wsss.regions.loading import load_proposer, place_of

# bytes of a pass for each pixel of the input
_OF_PIXEL = 900


class Prepared(NamedTuple):
    """A picture as the networks take it.

    Attributes:
        inputs: what the image processor gives.
        size_hw: of the picture.
        of_sam: what `SAM.prepare` gives, for boxes that become masks.
    """

    inputs: Any
    size_hw: tuple[int, int]
    of_sam: Any = None

    @classmethod
    def by(cls, processor: Any, image: UInt8[np.ndarray, "h w 3"], of_sam: Any = None) -> "Prepared":
        """The picture as an image processor of transformers prepares it."""
        inputs = processor(images=image.copy(), return_tensors="pt", input_data_format="channels_last")
        return cls(inputs, (image.shape[0], image.shape[1]), of_sam)


class Found(NamedTuple):
    """What a word names in a picture.

    Attributes:
        scores: how sure the network is of each object, in [0, 1].
        masks: probability of each pixel of each object, at the picture's size.
    """

    scores: Float[Tensor, " n"]
    masks: Float[Tensor, "n h w"]


@runtime_checkable
class Finder(Protocol):
    """Finds objects by words; `prepare` runs ahead in threads, `found` on the device of the network."""

    def prepare(self, image: Any) -> Any:
        """The part of the work that needs no network, for one picture (RGB)."""

    def found(self, prepared: Any, words: list[int]) -> list[Found]:
        """The objects of each of these words, which are numbers from 0 in the order of the words that the finder was made for."""

    @property
    def network_bytes(self) -> float:
        """About the bytes that the networks take for a picture of any size."""


def network_bytes(processor: Any) -> float:
    """About the bytes of a pass of a network, from the size to which its image processor brings pictures."""
    sides = dict(processor.size)
    height = sides.get("height") or sides.get("shortest_edge") or sides["longest_edge"]
    return _OF_PIXEL * height * (sides.get("width") or sides.get("longest_edge") or height)


GATED = {
    "facebook/sam3": (
        "Its weights are gated: accept their licence on the page of facebook/sam3 on the hub, log in with `hf auth login`, and try again; or give a "
        "folder saved by transformers. Grounding DINO (IDEA-Research/grounding-dino-tiny) with SAM 2 needs no permission."
    )
}


def load_with_words(source: str, kinds: dict[str, str], what: str) -> tuple[nn.Module, Any, Any]:
    """A network, its image processor and its tokenizer, on the CPU, in float32, with frozen weights.

    Raises:
        BadInput: the source does not exist, cannot be downloaded, has another architecture, or lacks a part. For gated weights, the error says how to
            get them.
    """
    where, folder = place_of(source, what)
    try:
        model, processor = load_proposer(source, kinds, what)
        with loading_model(where, folder, what, f"{what}, with its tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except BadInput as error:
        if source not in GATED or Path(source).exists():
            raise
        raise BadInput(error.where, error.found, error.expected, GATED[source]) from error
    return model, processor, tokenizer
