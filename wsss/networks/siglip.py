"""Sigmoid loss for language image pre-training (SigLIP; Zhai et al., ICCV 2023) and SigLIP 2 (arXiv 2502.14786).

A picture and a text belong together with the probability sigmoid(s <T, f> + b), whatever other texts there are. There is no class token: f is
pooled from the patches by attention with a learned query. Layers and parameter names are those of Hugging Face transformers; for symbols, and why
the forward pass is ours, see `wsss.networks.clip`.
"""

import string
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from wsss.arrays import Float, Int
from wsss.data.augment import Colours
from wsss.networks.clip import ImageText, Vocabulary

if TYPE_CHECKING:  # slow to import
    import transformers

_HALF: Colours = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class PaddedVocabulary(Vocabulary):
    """Token ids as SigLIP was trained with: in lower case, padded at the right to the full context, since padding takes part in the attention.

    Args:
        tokenizer: adds an end token itself; it has a padding token.
        context: number of tokens of every text, padding included.
        punctuation: false removes punctuation, as for the first SigLIP.
    """

    def __init__(self, tokenizer: "transformers.PreTrainedTokenizerBase", context: int, punctuation: bool) -> None:
        super().__init__(tokenizer, context)
        self.punctuation, self.padding = punctuation, int(tokenizer.pad_token_id)
        self.added = list(tokenizer("")["input_ids"])

    def clean(self, text: str) -> str:
        """The text that is divided into tokens."""
        clean = super().clean(text)
        return clean if self.punctuation else " ".join(clean.translate(_NO_PUNCTUATION).split())

    def row(self, text: str, truncate: bool) -> list[int]:
        """The token ids of one text, with as many tokens as the context."""
        row = [*self.fitting(text, self.words(text), truncate, self.context - len(self.added)), *self.added]
        return row + [self.padding] * (self.context - len(row))


class SigLIP(ImageText):
    """A SigLIP or SigLIP 2.

    Args:
        model: the layers: a SiglipModel (also SigLIP 2 of a fixed size), or a Siglip2Model (NaFlex).
        vocabulary: of its texts.
        colours: how its pictures are normalised.
    """

    FAMILY = "SigLIP"
    FIRST = 0

    def __init__(self, model: Any, vocabulary: PaddedVocabulary, colours: Colours = _HALF) -> None:
        super().__init__(model, vocabulary, colours)
        self.naflex = model.config.model_type == "siglip2"

    def text_weights(self) -> list[Tensor]:
        """All weights that text features depend on."""
        return list(self.model.text_model.state_dict().values())

    @property
    def bias(self) -> Float[Tensor, ""]:
        """b, which is added to the scaled cosine similarities."""
        return self.model.logit_bias.reshape(())

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "l d"]:
        """Positional embeddings of a (g_h, g_w) grid, resized as in the network's own training: bicubic, or bilinear with antialiasing (NaFlex)."""
        weight, side = self._vision.embeddings.position_embedding.weight, self.native_grid
        if grid == (side, side):
            return weight
        square = weight.T.reshape(1, -1, side, side)
        if self.naflex:
            # in single precision, as in transformers
            resized = F.interpolate(square.float(), grid, mode="bilinear", align_corners=False, antialias=True)
        else:
            resized = F.interpolate(square, grid, mode="bicubic", align_corners=False)
        return resized[0].flatten(1).T.to(weight.dtype)

    def embed(self, image: Float[Tensor, "b 3 h w"], positions: Float[Tensor, "l d"]) -> Float[Tensor, "b l d"]:
        """The tokens that enter the first block; the sides of the image are multiples of the patch."""
        layer, patch = self._vision.embeddings.patch_embedding, self.patch
        patches = image.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 1, 3, 5)
        if self.naflex:
            # its patches have their channels last
            patches = patches.permute(0, 1, 2, 4, 5, 3)
        # a matrix product also for the convolution, whose gradient is slow on a CPU
        return F.linear(patches.flatten(3).flatten(1, 2), layer.weight.flatten(1), layer.bias) + positions

    def of_patches(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b d"]:
        """The attention pooling that the network was trained with."""
        return self._vision.head(self._vision.post_layernorm(x))

    def encode_image(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Features of pictures in the joint space, not normalised; the sides are multiples of the patch."""
        x = self.embed(image, self.positions((image.shape[2] // self.patch, image.shape[3] // self.patch)))
        for index in range(self.n_blocks):
            x, _ = self.block(index, x)
        return self.of_patches(x)

    def embedding(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors of whole pictures; sides are at least a patch, and the rest of a patch is not used."""
        height, width = (side // self.patch * self.patch for side in image.shape[2:])
        return F.normalize(self.encode_image(image[:, :, :height, :width]).float(), dim=1)

    def encode_text(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Text features in the joint space, not normalised: from the last token, to which all tokens have contributed."""
        return self.model.text_model(input_ids=tokens).pooler_output
