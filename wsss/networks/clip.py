"""Learning transferable visual models from natural language supervision (CLIP; Radford et al., ICML 2021).

Layers and parameter names are those of Hugging Face transformers. The forward pass is ours, because the
methods need more than features: positional embeddings for non-square grids, the attention matrices of some
blocks (all others run fused), additive attention masks, and gradients only at the last block.

Symbols: b pictures, N = g_h g_w patches, L = 1 + N tokens (the class token first), D the width, d the joint size.
"""

import html
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import ftfy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float, Int
from wsss.data.augment import CLIP_MEAN, CLIP_STD, Colours
from wsss.errors import BadInput
from wsss.precision import at_least_single

if TYPE_CHECKING:  # slow to import
    import transformers

# OpenAI's tensor names and those of transformers: outside the blocks, and in each block
_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_BLOCK_NAMES = {
    "attn.in_proj_": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "attn.out_proj.": ("self_attn.out_proj.",),
    "ln_1.": ("layer_norm1.",),
    "ln_2.": ("layer_norm2.",),
    "mlp.c_fc.": ("mlp.fc1.",),
    "mlp.c_proj.": ("mlp.fc2.",),
}
_TRANSPOSED = ("visual.proj", "text_projection")
# entries of OpenAI's archives and old open_clip files that are not weights
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
# OpenAI's heads have 64 channels in both encoders; those of open_clip's large vision encoders (its model_configs) have more, by width
_HEAD, _LARGE_HEADS = 64, {1280: 80, 1408: 88, 1664: 104, 1792: 112}

# factor of OpenAI's quick GELU, x sigmoid(1.702 x)
_QUICK = 1.702

_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\..+")


class Vocabulary:
    """Converts texts to token ids, after cleaning them as OpenAI does: Unicode errors, HTML entities, white space, lower case.

    Args:
        tokenizer: with a start and an end token.
        context: maximum number of tokens of a text, including start and end.
        lower: false keeps capital letters, which MetaCLIP 2 has seen.
    """

    def __init__(self, tokenizer: "transformers.PreTrainedTokenizerBase", context: int, lower: bool = True) -> None:
        self.tokenizer, self.context, self.lower = tokenizer, context, lower
        self.start: Any = tokenizer.bos_token_id
        self.end: Any = tokenizer.eos_token_id

    def clean(self, text: str) -> str:
        """The text that is divided into tokens."""
        clean = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
        return clean.lower() if self.lower else clean

    def words(self, text: str) -> list[int]:
        """The token ids of a text without start and end; empty for a text without a visible character."""
        clean = self.clean(text)
        return list(self.tokenizer(clean, add_special_tokens=False)["input_ids"]) if clean else []

    def __call__(self, texts: Sequence[str], truncate: bool = False) -> Int[Tensor, "n t"]:
        """The token ids of texts, padded with 0 after the end token to the length of the longest.

        Raises:
            BadInput: a text is longer than the context, and `truncate` is off.
        """
        rows = [self.row(text, truncate) for text in texts]
        longest = max(map(len, rows), default=0)
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.long).reshape(
            len(rows), longest
        )

    def row(self, text: str, truncate: bool) -> list[int]:
        """The token ids of one text."""
        return [self.start, *self.fitting(text, self.words(text), truncate, self.context - 2), self.end]

    def fitting(self, text: str, words: list[int], truncate: bool, room: int) -> list[int]:
        """The ids of a text for which there is room; BadInput if it is longer, unless it is truncated."""
        if len(words) > room and not truncate:
            raise BadInput(
                f"the text {text[:60]!r}",
                f"{len(words) + self.context - room} tokens",
                f"at most {self.context}, including start and end",
                "Use a shorter class name or template.",
            )
        return words[:room]


class ImageText(nn.Module, ABC):
    """A network that was trained on pictures and their texts, with a vision transformer.

    Args:
        model: the layers, with names as in CLIP.
        vocabulary: of its texts.
        colours: how its pictures are normalised.

    Attributes:
        FAMILY: its name in records.
        FIRST: number of tokens before those of the patches.
        patch: side of a patch in pixels.
        n_blocks: number of blocks of the vision encoder.
    """

    FAMILY: ClassVar[str]
    FIRST: ClassVar[int]

    def __init__(self, model: Any, vocabulary: Vocabulary, colours: Colours) -> None:
        super().__init__()
        self.model: Any
        self.add_module("model", model)
        self.vocabulary, self.colours = vocabulary, colours
        settings: Any = model.config.vision_config
        self.patch, self.n_blocks = int(settings.patch_size), int(settings.num_hidden_layers)

    @property
    def _vision(self) -> Any:
        return self.model.vision_model

    @property
    def text_activation(self) -> str:
        """Name of the activation in the text encoder."""
        return str(self.model.config.text_config.hidden_act)

    @abstractmethod
    def text_weights(self) -> list[Tensor]:
        """All weights that text features depend on."""

    def last_block(self) -> Any:
        """The last block of the vision encoder, with `layer_norm1`, `self_attn`, `layer_norm2` and `mlp`."""
        return self._vision.encoder.layers[-1]

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """The factor of cosine similarities: exp(logit_scale)."""
        return self.model.logit_scale.exp().reshape(())

    @abstractmethod
    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "l d"]:
        """Positional embeddings of the tokens of a (g_h, g_w) grid."""

    @abstractmethod
    def embed(self, image: Float[Tensor, "b 3 h w"], positions: Float[Tensor, "l d"]) -> Float[Tensor, "b l d"]:
        """The tokens that enter the first block; the sides of the image are multiples of the patch."""

    @abstractmethod
    def of_patches(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b d"]:
        """Features of pictures in the joint space from their patches after the last block, not normalised."""

    @abstractmethod
    def embedding(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors of whole pictures; sides are at least a patch, and the rest of a patch is not used."""

    @abstractmethod
    def encode_text(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Text features in the joint space, not normalised."""

    @property
    def native_grid(self) -> int:
        """Number of patches along a side of the pictures that the network was trained on."""
        return math.isqrt(len(self._vision.embeddings.position_embedding.weight) - self.FIRST)

    def block(
        self,
        index: int,
        x: Float[Tensor, "b l d"],
        bias: Float[Tensor, "..."] | None = None,
        average: bool = False,
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l l"] | None]:
        """Apply one block of the vision encoder.

        Args:
            index: of the block, from 0.
            x: its input tokens.
            bias: added to the attention logits: (l, l), or (b, 1, l, l) for one per picture.
            average: also return the attention without the bias, averaged over the heads.
        """
        layer = self._vision.encoder.layers[index]
        attended, attention = attend(layer.self_attn, layer.layer_norm1(x), bias, average)
        x = x + attended
        return x + _mlp(layer, layer.layer_norm2(x)), attention


class CLIP(ImageText):
    """A CLIP with a vision transformer, or a MetaCLIP, which is one.

    Args:
        model: the layers: a CLIPModel or a MetaClip2Model.
        vocabulary: of its texts.
        colours: how its pictures are normalised.
    """

    FAMILY = "CLIP"
    FIRST = 1

    def __init__(self, model: Any, vocabulary: Vocabulary, colours: Colours = (CLIP_MEAN, CLIP_STD)) -> None:
        super().__init__(model, vocabulary, colours)

    def text_weights(self) -> list[Tensor]:
        """All weights that text features depend on."""
        return [*self.model.text_model.state_dict().values(), self.model.text_projection.weight]

    def positions(self, grid: tuple[int, int], rounded: bool = True) -> Float[Tensor, "l d"]:
        """Positional embeddings of the class token and of a (g_h, g_w) grid, resized bilinearly without antialiasing.

        Args:
            grid: rows and columns.
            rounded: round to float16, as CLIP-ES and TagCLIP do even when the network runs in float32.
        """
        weight = self._vision.embeddings.position_embedding.weight
        side = self.native_grid
        if rounded:
            # in single precision even if the network is in double: some values would be rounded to another number
            native = weight.float().cpu()
            resized = _resized_in_single(native[1:].view(side, side, -1), grid)
            return torch.cat([native[:1], resized.flatten(0, 1)]).half().to(weight)
        square = weight[1:].T.reshape(1, -1, side, side)
        resized = F.interpolate(square, grid, mode="bilinear", align_corners=False)
        return torch.cat([weight[:1], resized[0].flatten(1).T])

    def scaled_positions(self, grid: tuple[int, int]) -> Float[Tensor, "l d"]:
        """Positional embeddings as DINO and CorrCLIP resize them: bicubic, by the factors (grid + 0.1) / native grid; `positions` otherwise.

        Args:
            grid: rows and columns; with as many patches as the native grid, whatever its shape, nothing is resized.
        """
        native, side = self._vision.embeddings.position_embedding.weight, self.native_grid
        if grid[0] * grid[1] == side * side:
            return native
        square = native[1:].T.reshape(1, -1, side, side)
        factors = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
        resized = F.interpolate(square, scale_factor=factors, mode="bicubic", align_corners=False)
        return torch.cat([native[:1], resized[0].flatten(1).T])

    def embed(self, image: Float[Tensor, "b 3 h w"], positions: Float[Tensor, "l d"]) -> Float[Tensor, "b l d"]:
        """The tokens that enter the first block; the sides of the image are multiples of the patch."""
        patches = self._vision.embeddings.patch_embedding(image).flatten(2).mT
        first = self._vision.embeddings.class_embedding.expand(len(image), 1, -1)
        return self._vision.pre_layrnorm(torch.cat([first, patches], 1) + positions)

    def project(self, x: Float[Tensor, "*s width"]) -> Float[Tensor, "*s d"]:
        """Project tokens after the last block into the joint space, not normalised."""
        return self.model.visual_projection(self._vision.post_layernorm(x))

    def of_patches(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b d"]:
        """The mean of the patches' features, as in CLIP-ES; CLIP itself was trained with the class token."""
        return self.project(x).mean(1)

    def embedding(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors of whole pictures, from the class token; sides are at least a patch, and the rest of a patch is not used."""
        x = self.embed(image, self.positions((image.shape[2] // self.patch, image.shape[3] // self.patch)))
        for index in range(self.n_blocks):
            x, _ = self.block(index, x)
        return F.normalize(self.project(x[:, 0]).float(), dim=1)

    def encode_text(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Text features in the joint space, not normalised.

        Since attention is causal, the padding after the end token does not change the result.
        """
        text = self.model.text_model
        x = text.embeddings.token_embedding(tokens) + text.embeddings.position_embedding.weight[: tokens.shape[1]]
        for layer in text.encoder.layers:
            q, k, v = _heads(layer.self_attn, layer.layer_norm1(x))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + layer.self_attn.out_proj(out.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.layer_norm2(x))
        end = (tokens == self.vocabulary.end).int().argmax(1)
        return self.model.text_projection(text.final_layer_norm(x[torch.arange(len(x), device=x.device), end]))


def _mlp(layer: Any, y: Float[Tensor, "b l width"]) -> Float[Tensor, "b l width"]:
    """The MLP of a block; if no gradient is needed, x sigmoid(1.702 x) is computed in place as silu(1.702 x) / 1.702."""
    mlp = layer.mlp
    if torch.is_grad_enabled() or mlp.fc2.bias is None or type(mlp.activation_fn).__name__ != "QuickGELUActivation":
        return mlp(y)
    hidden = F.silu(mlp.fc1(y).mul_(_QUICK), inplace=True)
    return F.linear(hidden, mlp.fc2.weight).div_(_QUICK).add_(mlp.fc2.bias)


def _heads(attention: Any, y: Float[Tensor, "b l d"]) -> list[Float[Tensor, "b a l e"]]:
    """Queries, keys and values, head by head."""
    return [
        projection(y).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]


def attend(
    attention: Any, y: Float[Tensor, "b l d"], bias: Float[Tensor, "..."] | None = None, average: bool = False
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b l l"] | None]:
    """Multi-head self-attention of normalised tokens; see `CLIP.block`."""
    q, k, v = _heads(attention, y)
    if not average:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return attention.out_proj(out.transpose(1, 2).flatten(2)), None
    biases = [None] * len(q) if bias is None else bias.expand(len(q), 1, *bias.shape[-2:])[:, 0]
    pictures = [_head_by_head(*one) for one in zip(q * attention.scale, k, v, biases, strict=True)]
    out, mean = (torch.stack(one) for one in zip(*pictures, strict=True))
    return attention.out_proj(out.transpose(1, 2).flatten(2)), mean


def _head_by_head(
    q: Float[Tensor, "a l e"], k: Float[Tensor, "a m e"], v: Float[Tensor, "a m e"], bias: Float[Tensor, "l m"] | None
) -> tuple[Float[Tensor, "a l e"], Float[Tensor, "l m"]]:
    """Attention of scaled queries, and its weights without the bias, averaged over the heads.

    If no gradient is needed, all heads use the same memory, since the weights of all do not fit into the caches of a processor.
    """
    differentiable = any(one.requires_grad for one in (q, k, v))
    memory = None if differentiable else q.new_empty(q.shape[1], k.shape[1])
    total = at_least_single(q.new_zeros(q.shape[1], k.shape[1]))
    outs = []
    for queries, keys, values in zip(q, k, v, strict=True):
        logits = torch.mm(queries, keys.T, out=memory)
        biased = None if bias is None else (logits + bias).softmax(-1)
        weights = torch.softmax(logits, -1, out=memory)
        outs.append((weights if biased is None else biased) @ values)
        total = total + weights if differentiable else total.add_(weights)
    return torch.stack(outs), total / len(q)


def is_openai(state: dict[str, Tensor]) -> bool:
    """Whether a state dict has OpenAI's (and open_clip's) names."""
    return "visual.conv1.weight" in state or "visual.layer1.0.conv1.weight" in state


def from_openai(state: dict[str, Tensor], where: str, activation: str = "quick_gelu") -> "transformers.CLIPModel":
    """A CLIP from a state dict with the tensor names of OpenAI or open_clip; all sizes are derived from the tensors.

    Args:
        state: of a vision transformer.
        where: the source to name in an error.
        activation: `quick_gelu` (OpenAI), or `gelu` (most networks of open_clip).

    Raises:
        BadInput: it is a ResNet, tensors are missing or unknown, or their shapes are inconsistent.
    """
    state = {name: value for name, value in state.items() if name not in _NO_WEIGHTS}
    expected = "the complete state dict of a CLIP with a vision transformer, such as ViT-B-16.pt, and no other entries"
    if any(name.startswith("visual.layer1.") for name in state):
        raise BadInput(
            where, "a CLIP with a ResNet", expected, "Give a ViT: this method uses its attention between patches."
        )
    depths = [len({m[2] for n in state if (m := _BLOCK.fullmatch(n)) and m[1] == tower}) for tower in ("visual.", None)]
    names = _both_names(*depths)
    faults = [
        f"{len(wrong)} tensors {what} ({', '.join(wrong[:3])})"
        for what, wrong in (
            ("missing", [name for name in names if name not in state]),
            ("that a CLIP does not have", [name for name in state if name not in names]),
        )
        if wrong
    ]
    if faults:
        raise BadInput(where, ", ".join(faults), expected, "Give a file published by OpenAI or open_clip.")
    from transformers import CLIPModel  # slow to import

    converted: dict[str, Tensor] = {}
    try:
        for name, theirs in names.items():
            value = state[name].t() if name in _TRANSPOSED else state[name]
            converted |= zip(theirs, value.chunk(len(theirs)) if len(theirs) > 1 else [value], strict=True)
        # on the meta device, since inconsistent shapes may require any amount of memory
        with torch.device("meta"):
            model = CLIPModel(_config(state, depths, activation))
        target = model.state_dict()
        wrong = [name for name, theirs in names.items() if any(converted[n].shape != target[n].shape for n in theirs)]
        if wrong:
            raise ValueError(", ".join(f"{name} of {tuple(state[name].shape)}" for name in wrong[:3]))
    except (KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        found = f"inconsistent shapes ({(str(error).splitlines() or [''])[-1].strip()[:200]})"
        raise BadInput(where, found, expected, "Download it again.") from error
    parameters = {name: value.to(torch.float32, copy=True).contiguous() for name, value in converted.items()}
    model.load_state_dict(parameters, strict=True, assign=True)
    for embeddings in (model.vision_model.embeddings, model.text_model.embeddings):
        # not part of the state dict
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
    return model


def _both_names(vision_depth: int, text_depth: int) -> dict[str, tuple[str, ...]]:
    """OpenAI's name of each tensor, and in transformers its name, or the names of its parts."""
    names: dict[str, tuple[str, ...]] = {name: (theirs,) for name, theirs in _NAMES.items()}
    for ours, theirs, depth in (("visual.", "vision_model", vision_depth), ("", "text_model", text_depth)):
        for i in range(depth):
            for layer, parts in _BLOCK_NAMES.items():
                for kind in ("weight", "bias"):
                    names[f"{ours}transformer.resblocks.{i}.{layer}{kind}"] = tuple(
                        f"{theirs}.encoder.layers.{i}.{part}{kind}" for part in parts
                    )
    return names


def _config(state: dict[str, Tensor], depths: list[int], activation: str) -> "transformers.CLIPConfig":
    width, _, patch, _ = state["visual.conv1.weight"].shape
    text_width, joint = state["text_projection"].shape
    grid = math.isqrt(len(state["visual.positional_embedding"]) - 1)
    vocabulary = len(state["token_embedding.weight"])
    from transformers import CLIPConfig

    return CLIPConfig(
        projection_dim=joint,
        vision_config={
            "hidden_size": width,
            "intermediate_size": len(state["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
            "num_hidden_layers": depths[0],
            "num_attention_heads": width // _LARGE_HEADS.get(width, _HEAD),
            "image_size": patch * grid,
            "patch_size": patch,
            "hidden_act": activation,
            "projection_dim": joint,
        },
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": text_width,
            "intermediate_size": len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
            "num_hidden_layers": depths[1],
            "num_attention_heads": text_width // _HEAD,
            "max_position_embeddings": len(state["positional_embedding"]),
            "hidden_act": activation,
            "projection_dim": joint,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
    )


def unit_text_features(
    clip: ImageText, names: Sequence[str], templates: Sequence[str], batch: int = 512
) -> Float[Tensor, "k d"]:
    """One unit vector per name: the features of all templates are normalised, averaged, and normalised again.

    Args:
        clip: the network.
        names: inserted into the templates.
        templates: with one `{}` each.
        batch: number of texts encoded in one batch.
    """
    prompts = [template.replace("{}", name) for name in names for template in templates]
    device = clip.model.logit_scale.device
    with torch.inference_mode():
        parts = [
            clip.encode_text(clip.vocabulary(prompts[start : start + batch]).to(device))
            for start in range(0, len(prompts), batch)
        ]
    features = F.normalize(torch.cat(parts).clone(), dim=1).unflatten(0, (len(names), len(templates)))
    return F.normalize(features.mean(1), dim=1)


def _resized_in_single(values: Float[Tensor, "h w d"], size: tuple[int, int]) -> Float[Tensor, "h2 w2 d"]:
    """Bilinear resizing in single precision without antialiasing, with the same bytes on every processor.

    `F.interpolate` rounds differently with and without instructions that multiply and add at once, and where its result is rounded to float16, values
    close to the middle of two numbers go either way. This gives what it gives with these instructions (AVX2, AVX-512): a product of two single
    numbers is exact in double precision, so that each addition is rounded once.
    """
    (top, bottom, upper, lower), (left, right, before, behind) = (
        _between(native, wanted) for native, wanted in zip(values.shape[:2], size, strict=True)
    )

    def share(row: Tensor, column: Tensor) -> Tensor:
        return (row[:, None] * column)[..., None]

    total = values[bottom][:, left] * share(lower, before)
    # the order of torch's sum
    for rows, columns, weight in (
        (bottom, right, share(lower, behind)),
        (top, right, share(upper, behind)),
        (top, left, share(upper, before)),
    ):
        total = (total.double() + values[rows][:, columns].double() * weight.double()).float()
    return total


def _between(native: int, wanted: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each wanted cell's two native neighbours along a side, and the weights of both."""
    scale = torch.tensor(native, dtype=torch.float32) / torch.tensor(wanted, dtype=torch.float32)
    centres = (scale.double() * (torch.arange(wanted, dtype=torch.float64) + 0.5) - 0.5).float().clamp(min=0)
    first = centres.long()
    weight = centres - first
    return first, (first + 1).clamp(max=native - 1), 1 - weight, weight
