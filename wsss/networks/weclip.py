"""The learned layers of WeCLIP (Zhang et al., CVPR 2024) and WeCLIP+ (TPAMI 2025): adapters and a decoder on tokens of frozen networks.

An adapter maps the tokens of each block that it is given with two linear layers, joins them with a 1x1 convolution, and, in a training, drops whole
channels. WeCLIP has one adapter, for all blocks of CLIP but the last; WeCLIP+ has two, for the last but one block of CLIP and for DINOv2. The
same decoder, a few transformer blocks and a 1x1 convolution, gives the logits of each. Parameters have their published names.

Symbols: b pictures, (h, w) the grid of CLIP's patches, n = h w cells, F the output of an adapter, G all of them side by side.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Bool, Float
from wsss.networks.clip import CLIP

# of CLIP's activation x sigmoid(1.702 x), which the decoder has too
_QUICK = 1.702
ADAPTERS = ("decoder_fts_fuse", "dino_decoder_fts_fuse")


class Projection(nn.Module):
    """Two linear layers with a ReLU between them, applied to each cell.

    Args:
        width: channels of the input.
        embedding: channels of the output.
        standardised: whether the input is standardised first, by the buffers `mean` and `deviation` of its channels.
    """

    def __init__(self, width: int, embedding: int, standardised: bool = False) -> None:
        super().__init__()
        self.proj = nn.Linear(width, embedding)
        self.proj_2 = nn.Linear(embedding, embedding)
        self.standardised = standardised
        if standardised:
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("deviation", torch.ones(width))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w e"]:
        return self.proj_2(self._first(x).relu())

    def _first(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w e"]:
        if not self.standardised:
            return self.proj(x)
        # on the weights, which are fewer than the cells
        weight = self.proj.weight / self.get_buffer("deviation")
        return F.linear(x, weight, self.proj.bias - weight @ self.get_buffer("mean"))


class Adapter(nn.Module):
    """F, from maps of the tokens of one or more blocks.

    Args:
        widths: channels of each block.
        embedding: channels of F.
        enlarged: the factor by which the projected map of each block is enlarged (bilinear), for maps on different grids; None: 1 for all.
        standardised: see `Projection`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        embedding: int,
        enlarged: Sequence[int] | None = None,
        standardised: bool = False,
    ) -> None:
        super().__init__()
        self.linears_modulelist = nn.ModuleList(Projection(width, embedding, standardised) for width in widths)
        self.linear_fuse = nn.Conv2d(len(widths) * embedding, embedding, 1)
        self.enlarged = [1] * len(widths) if enlarged is None else list(enlarged)

    def forward(self, blocks: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b e h w"]:
        projected = [
            layer(x.movedim(1, 3)).movedim(3, 1) for layer, x in zip(self.linears_modulelist, blocks, strict=True)
        ]
        on_grid = [
            x if factor == 1 else F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
            for factor, x in zip(self.enlarged, projected, strict=True)
        ]
        return self.linear_fuse(torch.cat(on_grid, 1))


class MLP(nn.Module):
    """The MLP of a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b n e"]) -> Float[Tensor, "b n e"]:
        hidden = self.c_fc(x)
        return self.c_proj(hidden * (_QUICK * hidden).sigmoid())


class Block(nn.Module):
    """A transformer block as CLIP's: norms before attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b n e"], outside: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n e"]:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, key_padding_mask=outside, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    """Transformer blocks, one after the other."""

    def __init__(self, width: int, heads: int, count: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads) for _ in range(count)))

    def forward(self, x: Float[Tensor, "b n e"], outside: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n e"]:
        for block in self.resblocks:
            x = block(x, outside)
        return x


class Decoder(nn.Module):
    """Logits of background and classes from F, without positional embeddings. Cells that are marked as outside are not attended to."""

    def __init__(self, embedding: int, heads: int, blocks: int, n_labels: int) -> None:
        super().__init__()
        self.transformer = Blocks(embedding, heads, blocks)
        self.linear_pred = nn.Conv2d(embedding, n_labels, 1)

    def forward(
        self, features: Float[Tensor, "b e h w"], outside: Bool[Tensor, "b h w"] | None = None
    ) -> Float[Tensor, "b l h w"]:
        decoded = self.transformer(features.flatten(2).mT, None if outside is None else outside.flatten(1))
        return self.linear_pred(decoded.mT.unflatten(2, features.shape[2:]))


class Tokens(NamedTuple):
    """What the frozen networks give for a batch of pictures.

    Attributes:
        blocks: the outputs of all blocks of CLIP but the last, with the class token, (b, 1 + n, d).
        attention: of the last of these blocks, averaged over the heads, without the class token, (b, n, n).
        dino: the map of DINOv2 on a grid of its own; None without it.
        grid: (h, w).
    """

    blocks: list[Tensor]
    attention: list[Tensor]
    dino: Tensor | None
    grid: tuple[int, int]

    def maps(self, index: int) -> Float[Tensor, "b d h w"]:
        """The tokens after a block of CLIP, without the class token."""
        return self.blocks[index][:, 1:].mT.unflatten(2, self.grid)


class Decoded(NamedTuple):
    """What the learned layers give for a batch of pictures.

    Attributes:
        logits: of each adapter, (b, l, h, w).
        features: G.
    """

    logits: list[Tensor]
    features: Float[Tensor, "b g h w"]

    def mean(self) -> Float[Tensor, "b l h w"]:
        """The mean of the logits of all adapters, which predicts the labels."""
        return torch.stack(self.logits).mean(0)

    def affinity(self) -> Float[Tensor, "b n n"]:
        """A = sigmoid(G^T G)."""
        return affinity(self.features)


def affinity(features: Float[Tensor, "b g h w"]) -> Float[Tensor, "b n n"]:
    """A = sigmoid(G^T G) of each picture; G is neither normalised nor scaled."""
    flat = features.flatten(2)
    return (flat.mT @ flat).sigmoid()


class WeCLIPNetwork(nn.Module):
    """Adapters and decoder.

    Args:
        n_labels: the background and the classes.
        clip_width: channels of CLIP's tokens.
        clip_blocks: how many blocks of CLIP the first adapter uses: the last ones before the very last.
        dino_width: channels of DINOv2; None for WeCLIP, which has no second adapter.
        embedding: channels of the adapters and the decoder, a multiple of `heads`.
        heads, decoder_blocks: of the decoder.
    """

    def __init__(
        self,
        n_labels: int,
        clip_width: int,
        clip_blocks: int,
        dino_width: int | None,
        embedding: int = 256,
        heads: int = 8,
        decoder_blocks: int = 3,
    ) -> None:
        super().__init__()
        self.clip_blocks = clip_blocks
        self.decoder_fts_fuse = Adapter([clip_width] * clip_blocks, embedding)
        if dino_width is not None:
            self.dino_decoder_fts_fuse = Adapter([dino_width], embedding)
        self.has_dino = dino_width is not None
        self.decoder = Decoder(embedding, heads, decoder_blocks, n_labels)

    @property
    def n_adapters(self) -> int:
        """How many adapters there are."""
        return 1 + self.has_dino

    def forward(self, tokens: Tokens, factors: Float[Tensor, "b a e"] | None = None) -> Decoded:
        """Logits and features.

        Args:
            tokens: of the frozen networks.
            factors: of each channel of each adapter, for dropout; None: 1.
        """
        count = len(tokens.blocks)
        maps = [self.decoder_fts_fuse([tokens.maps(index) for index in range(count - self.clip_blocks, count)])]
        if self.has_dino:
            assert tokens.dino is not None
            maps.append(self.dino_decoder_fts_fuse([tokens.dino]))
        if factors is not None:
            maps = [x * factors[:, index, :, None, None] for index, x in enumerate(maps)]
        maps = [F.interpolate(x, tokens.grid, mode="bilinear", align_corners=False) for x in maps]
        return Decoded([self.decoder(x) for x in maps], torch.cat(maps, 1))


class PatchNetwork(Protocol):
    """A network that gives maps of normalised pictures whose sides are multiples of `stride`; see `wsss.networks.features`."""

    stride: int

    def maps(self, pictures: Float[Tensor, "b 3 h w"], layers: int) -> list[Tensor]:
        """The last feature maps, the deepest last."""


class FrozenNetworks(nn.Module):
    """CLIP and, for WeCLIP+, DINOv2, with frozen weights; both are given pictures normalised with ImageNet's mean and deviation.

    Args:
        clip: its weights are frozen.
        dino: its weights are frozen; None for WeCLIP.
    """

    def __init__(self, clip: CLIP, dino: nn.Module | None) -> None:
        super().__init__()
        self.clip, self.dino = clip, dino

    @property
    def smallest(self) -> int:
        """The smallest side of a picture, in pixels: that of the larger patch."""
        return self.clip.patch if self.dino is None else max(self.clip.patch, cast(PatchNetwork, self.dino).stride)

    def train(self, mode: bool = True) -> "FrozenNetworks":
        """Frozen networks stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "b 3 h w"], attentions: int = 0) -> Tokens:
        """Tokens of a batch of pictures, in float32 at least.

        What is left of a side beyond a multiple of CLIP's patch is not used; for DINOv2 the picture is resized to multiples of its patch.

        Args:
            image: normalised with ImageNet's mean and deviation.
            attentions: for how many of the last blocks before the very last attention is given.
        """
        clip, size = self.clip, image.shape[2:]
        grid = (size[0] // clip.patch, size[1] // clip.patch)
        x = clip.embed(image, clip.positions(grid))
        blocks, kept = [], []
        for index in range(clip.n_blocks - 1):
            x, attention = clip.block(index, x, average=index >= clip.n_blocks - 1 - attentions)
            blocks.append(_full(x))
            if attention is not None:
                kept.append(_full(attention[:, 1:, 1:]))
        return Tokens(blocks, kept, None if self.dino is None else _full(self._dino_map(image)), grid)

    def _dino_map(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d hd wd"]:
        dino = cast(PatchNetwork, self.dino)
        size = [max(1, side // dino.stride) * dino.stride for side in image.shape[2:]]
        return dino.maps(F.interpolate(image, size, mode="bilinear", align_corners=False), 1)[-1]


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
