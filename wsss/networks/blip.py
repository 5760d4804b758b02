"""Bootstrapping language-image pre-training (BLIP; Li et al., ICML 2022), question answering: layers of transformers, our forward pass.

The tokens of a picture, and the keys and values of the cross-attention to them, are computed once for all questions.
Questions are answered in groups of equal length: padding would change the answers, since the decoder attends to it too.

Symbols: L tokens of a picture (the class token first), D the width, t tokens of a question.
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float, Int
from wsss.errors import BadInput

if TYPE_CHECKING:  # slow to import
    import transformers

# channels of an attention head of the published vision transformer and BERT
_HEAD = 64
# maximum tokens of a question, of an answer including its start, and the beam width, as in blip_vqa.py
QUESTION_TOKENS, ANSWER_TOKENS, BEAMS = 35, 10, 3
# that of timm, with which BLIP was trained; the configurations of transformers have 1e-5
VISION_EPSILON = 1e-6
# BLIP's tensor names and those of transformers; all others are equal
_NAMES = (
    (r"visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
    (r"visual_encoder\.norm\.", "vision_model.post_layernorm."),
)
_POSITIONS = "vision_model.embeddings.position_embedding"
_TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}

# keys and values of the cross-attention of each layer, head by head
CrossAttention = list[tuple[Float[Tensor, "1 a l e"], Float[Tensor, "1 a l e"]]]


class BLIP(nn.Module):
    """A BLIP that answers questions about pictures.

    Args:
        model: the layers; the last two entries of its vocabulary are the start of an answer and the start of a question.
        tokenizer: BERT's, which lacks these two entries.
    """

    def __init__(self, model: "transformers.BlipForQuestionAnswering", tokenizer: "transformers.BertTokenizer") -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        text: Any = model.config.text_config
        words = int(text.vocab_size)
        self.answer_start, self.question_start = words - 2, words - 1

    @property
    def size(self) -> int:
        """Side of the input pictures, in pixels."""
        return int(self.model.config.vision_config.image_size)

    def tokens(self, question: str) -> list[int]:
        """The token ids of a question, truncated to 35; the first is the start of a question."""
        ids = self.tokenizer(question, max_length=QUESTION_TOKENS, truncation=True)["input_ids"]
        return [self.question_start, *ids[1:]]

    def embed(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b l d"]:
        """The tokens of pictures."""
        return self.model.vision_model(pixel_values=pixels)[0]

    def cross_attention(self, picture: Float[Tensor, "1 l d"]) -> CrossAttention:
        """The keys and values of a picture's tokens for the cross-attention of questions."""
        return [_keys_values(layer.crossattention.self, picture) for layer in self._layers]

    @property
    def _layers(self) -> Any:
        return self.model.text_encoder.encoder.layer

    def states(self, picture: CrossAttention, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t w"]:
        """The encoder's hidden states of questions of equal length about a picture."""
        x = self.model.text_encoder.embeddings(input_ids=tokens)
        for layer, (keys, values) in zip(self._layers, picture, strict=True):
            attention = layer.attention
            x = attention.output(_attended(attention.self, x, *_keys_values(attention.self, x)), x)
            attention = layer.crossattention
            shape = (len(x), -1, -1, -1)
            x = attention.output(_attended(attention.self, x, keys.expand(shape), values.expand(shape)), x)
            x = layer.feed_forward_chunk(x)
        return x

    def generate(self, states: Float[Tensor, "n t w"]) -> Int[Tensor, "n m"]:
        """The token ids of an answer to each question, by beam search, with the start token first; ids after the end token are padding."""
        return self.model.text_decoder.generate(
            input_ids=torch.full((len(states), 1), self.answer_start, device=states.device),
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
            eos_token_id=self.tokenizer.sep_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            num_beams=BEAMS,
            max_length=ANSWER_TOKENS,
            min_length=1,
            length_penalty=1.0,
            do_sample=False,
        )

    def text(self, ids: Sequence[int]) -> str:
        """The token ids of an answer, up to the end token, as lower-case text."""
        ids = list(ids)
        end = self.tokenizer.sep_token_id
        ids = ids[: ids.index(end)] if end in ids else ids
        words = [index for index in ids if index < self.answer_start]
        return self.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=True)

    @torch.inference_mode()
    def answers(self, pixels: Float[Tensor, "1 3 s s"], questions: Sequence[str], batch: int = 64) -> list[str]:
        """Answers to questions about one picture, which is encoded once.

        Args:
            pixels: normalised with CLIP's mean and standard deviation.
            questions: in any order and of any length.
            batch: maximum number of questions answered in one batch.
        """
        tokens = [self.tokens(question) for question in questions]
        groups: dict[int, list[int]] = {}
        for position, ids in enumerate(tokens):
            groups.setdefault(len(ids), []).append(position)
        picture = self.cross_attention(self.embed(pixels))
        texts = [""] * len(questions)
        for positions in groups.values():
            for start in range(0, len(positions), batch):
                part = positions[start : start + batch]
                ids_of_part = torch.tensor([tokens[position] for position in part], device=pixels.device)
                generated = self.generate(self.states(picture, ids_of_part)).tolist()
                for position, answer in zip(part, generated, strict=True):
                    texts[position] = self.text(answer)
        return texts


def _keys_values(layer: Any, y: Float[Tensor, "n l d"]) -> tuple[Float[Tensor, "n a l e"], Float[Tensor, "n a l e"]]:
    keys, values = (proj(y).unflatten(2, (layer.num_attention_heads, -1)) for proj in (layer.key, layer.value))
    return keys.transpose(1, 2), values.transpose(1, 2)


def _attended(
    layer: Any, x: Float[Tensor, "n t w"], keys: Float[Tensor, "n a l e"], values: Float[Tensor, "n a l e"]
) -> Float[Tensor, "n t w"]:
    queries = layer.query(x).unflatten(2, (layer.num_attention_heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)


def resized_positions(positions: Float[Tensor, "1 l d"], side: int) -> Float[Tensor, "1 m d"]:
    """Positional embeddings of the class token and of a square grid, the grid resized bicubically (align_corners False)."""
    old_side = math.isqrt(positions.shape[1] - 1)
    if old_side == side:
        return positions
    grid = positions[:, 1:].mT.unflatten(2, (old_side, old_side))
    resized = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.flatten(2).mT], 1)


def resized(model: "transformers.BlipForQuestionAnswering", size: int) -> "transformers.BlipForQuestionAnswering":
    """Adapt a model to pictures with sides of `size` pixels."""
    vision: Any = model.config.vision_config
    check_size(size, vision.patch_size)
    embeddings: Any = model.vision_model.embeddings
    positions = resized_positions(embeddings.position_embedding.detach(), size // vision.patch_size)
    embeddings.position_embedding = nn.Parameter(positions)
    vision.image_size = size
    return model


def check_size(size: int, patch: int) -> None:
    """Raise BadInput unless `size` is a multiple of the patch size."""
    if size < patch or size % patch:
        raise BadInput("size", str(size), f"a multiple of the patch size, {patch} pixels", "Change it.")


def is_published(state: dict[str, Tensor]) -> bool:
    """Whether a state dict has the tensor names of BLIP's authors."""
    return "visual_encoder.cls_token" in state


def from_published(
    state: dict[str, Tensor], where: str, heads: tuple[int, int] | None = None
) -> "transformers.BlipForQuestionAnswering":
    """The model of a state dict with the tensor names of BLIP's authors (`model_base_vqa_capfilt_large.pth`).

    Args:
        state: of a BLIP for question answering.
        where: the source to name in an error.
        heads: attention heads of the vision and of the text encoders; None: the width divided by 64.

    Raises:
        BadInput: tensors are missing or unknown, or their shapes are inconsistent.
    """
    named = {}
    for name, value in state.items():
        for theirs, ours in _NAMES:
            name = re.sub(rf"^{theirs}", ours, name)
        if not name.endswith("position_ids"):
            named[name] = value.to(torch.float32, copy=True).contiguous()
    named |= {name: named[source] for name, source in _TIED.items() if source in named}
    from transformers import BlipForQuestionAnswering  # slow to import

    try:
        with torch.device("meta"):
            model = BlipForQuestionAnswering(_config(named, heads))
        target = model.state_dict()
        faults = [
            f"{len(wrong)} tensors {what} ({', '.join(wrong[:3])})"
            for what, wrong in (
                ("missing", [name for name in target if name not in named]),
                ("that it does not have", [name for name in named if name not in target]),
                ("of other shapes", [n for n in named if n in target and named[n].shape != target[n].shape]),
            )
            if wrong
        ]
        if faults:
            raise ValueError(", ".join(faults))
    except (KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        found = f"no complete BLIP for question answering ({(str(error).splitlines() or [''])[-1].strip()[:200]})"
        do = "Give the file of BLIP's VQA model; those for captions and retrieval cannot answer questions."
        raise BadInput(where, found, "a complete state dict such as model_base_vqa_capfilt_large.pth", do) from error
    model.load_state_dict(named, strict=True, assign=True)
    encoders: Any = (model.text_encoder, model.text_decoder.bert)
    for embeddings in (encoder.embeddings for encoder in encoders):
        # not part of the state dict
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
    return model


def _config(state: dict[str, Tensor], heads: tuple[int, int] | None) -> "transformers.BlipConfig":
    width, _, patch, _ = state["vision_model.embeddings.patch_embedding.weight"].shape
    words, text_width = state["text_encoder.embeddings.word_embeddings.weight"].shape
    vision_heads, text_heads = heads or (width // _HEAD, text_width // _HEAD)
    from transformers import BlipConfig

    return BlipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": len(state["vision_model.encoder.layers.0.mlp.fc1.weight"]),
            "num_hidden_layers": _count(state, "vision_model.encoder.layers."),
            "num_attention_heads": vision_heads,
            "image_size": patch * math.isqrt(state[_POSITIONS].shape[1] - 1),
            "patch_size": patch,
            "layer_norm_eps": VISION_EPSILON,
            "hidden_act": "gelu",
        },
        text_config={
            "vocab_size": words,
            "hidden_size": text_width,
            "encoder_hidden_size": width,
            "intermediate_size": len(state["text_encoder.encoder.layer.0.intermediate.dense.weight"]),
            "num_hidden_layers": _count(state, "text_encoder.encoder.layer."),
            "num_attention_heads": text_heads,
            "max_position_embeddings": len(state["text_encoder.embeddings.position_embeddings.weight"]),
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
            "is_decoder": True,
            "bos_token_id": words - 2,
        },
    )


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """The number of numbered children of a prefix."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})
