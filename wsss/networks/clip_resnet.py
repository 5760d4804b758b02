"""A CLIP with a ResNet and attention pooling (Radford et al., ICML 2021), such as RN50x4: layers of open_clip, tensor names of OpenAI.

It can be used by methods that only need pooled features; those that use the attention between patches need `networks.clip`.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float, Int
from wsss.errors import BadInput
from wsss.networks.clip import Vocabulary

# channels of an attention head; stride of the deepest feature
_HEAD, _STRIDE = 64, 32
# entries of OpenAI's archives that are not weights
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


class ResNetCLIP(nn.Module):
    """A CLIP whose vision encoder is a ResNet.

    Args:
        model: open_clip's.
        vocabulary: of its texts.

    Attributes:
        FAMILY: its name in records.
        input_size: side of the input pictures, in pixels.
    """

    FAMILY: ClassVar[str] = "CLIP"

    def __init__(self, model: nn.Module, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.model: Any
        self.add_module("model", model)
        self.vocabulary = vocabulary
        self.input_size = int(self.model.visual.image_size)

    def encode_image(self, image: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Image features of pictures of `input_size`, in the joint space, not normalised."""
        return self.model.encode_image(image)

    def encode_text(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Text features in the joint space, not normalised."""
        return self.model.encode_text(F.pad(tokens, (0, self.vocabulary.context - tokens.shape[1])))


def is_resnet(state: dict[str, Tensor]) -> bool:
    """Whether a state dict with OpenAI's names belongs to a CLIP with a ResNet."""
    return "visual.layer1.0.conv1.weight" in state


def resnet_from_openai(state: dict[str, Tensor], where: str, activation: str = "quick_gelu") -> nn.Module:
    """open_clip's model from a state dict with OpenAI's names; all sizes are derived from the tensors.

    Args:
        state: of a CLIP with a ResNet.
        where: the source to name in an error.
        activation: of the text encoder: `quick_gelu` (OpenAI), or `gelu` (some networks of open_clip).

    Raises:
        BadInput: tensors are missing or unknown, or their shapes are inconsistent.
    """
    # imported here, since it takes seconds and is rarely needed
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name not in _NO_WEIGHTS}
    try:
        text_width, joint = state["text_projection"].shape
        width = len(state["visual.layer1.0.conv1.weight"])
        positions = len(state["visual.attnpool.positional_embedding"])
        vision = CLIPVisionCfg(
            layers=tuple(_count(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
            width=width,
            head_width=_HEAD,
            image_size=_STRIDE * math.isqrt(positions - 1),
            patch_size=None,
        )
        text = CLIPTextCfg(
            context_length=len(state["positional_embedding"]),
            vocab_size=len(state["token_embedding.weight"]),
            width=text_width,
            heads=text_width // _HEAD,
            layers=_count(state, "transformer.resblocks."),
        )
        # on the meta device, since inconsistent shapes may require any amount of memory
        with torch.device("meta"):
            model = CLIP(joint, vision, text, quick_gelu=activation == "quick_gelu")
        model.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BadInput(
            where,
            f"no complete CLIP with a ResNet ({(lines or [''])[-1][:200]})",
            "a complete state dict such as RN50.pt, and no other entries",
            "Download it again.",
        ) from error
    # not part of the state dict
    model.attn_mask = torch.full((model.context_length, model.context_length), -torch.inf).triu_(1)
    return model


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """The number of numbered children of a prefix."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})
