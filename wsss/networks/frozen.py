"""A small head on the feature maps of a frozen network: adapter and decoder of WeCLIP (Zhang et al., CVPR 2024) on any backbone.

The maps are standardised channel by channel, so that the head suits networks with features of any size. Symbols as in `wsss.networks.weclip`.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss.arrays import Bool, Float, Num
from wsss.errors import BadInput, check_range
from wsss.networks.features import DenseFeatures
from wsss.networks.weclip import Adapter, Decoder
from wsss.ops.enlarging import Step, enlarge

# channels of an attention head, as published
_OF_HEAD = 32
_WIDEST, _DEEPEST = 256, 3


@dataclasses.dataclass(frozen=True)
class HeadLayers:
    """Adapter and decoder; as published, 256 channels and 3 blocks."""

    embedding: int | None = None
    """channels, a multiple of 32; none: half of those of the deepest feature map, at least 32 and at most 256"""
    blocks: int | None = None
    """transformer blocks of the decoder; none: 3 with 256 channels, 2 from 128 on, otherwise 1"""

    def __post_init__(self) -> None:
        if self.embedding is not None and (self.embedding < _OF_HEAD or self.embedding % _OF_HEAD):
            expected = f"a multiple of {_OF_HEAD}, the channels of an attention head"
            raise BadInput("segmenter.network.embedding", str(self.embedding), expected, "Change it.")
        if self.blocks is not None:
            check_range("segmenter.network.blocks", self.blocks, 0)

    def on(self, width: int) -> "HeadLayers":
        """These layers with numbers in place of none.

        Args:
            width: channels of the deepest feature map.
        """
        fitting = min(max(width // 2 // _OF_HEAD * _OF_HEAD, _OF_HEAD), _WIDEST)
        embedding = fitting if self.embedding is None else self.embedding
        usual = _DEEPEST if embedding >= _WIDEST else 2 if embedding >= _WIDEST // 2 else 1
        return HeadLayers(embedding, usual if self.blocks is None else self.blocks)


class FrozenHead(nn.Module):
    """Logits from feature maps.

    Args:
        n_labels: the background and the classes.
        channels: of each feature map, the deepest last.
        enlarged: the factor between the finest grid and that of each map.
        embedding, blocks: see `HeadLayers`.
    """

    def __init__(
        self, n_labels: int, channels: Sequence[int], enlarged: Sequence[int], embedding: int, blocks: int
    ) -> None:
        super().__init__()
        self.adapter = Adapter(channels, embedding, enlarged, standardised=True)
        self.decoder = Decoder(embedding, embedding // _OF_HEAD, blocks, n_labels)

    def standardise_by(self, means: Sequence[Tensor], deviations: Sequence[Tensor]) -> None:
        """Use these means and standard deviations of the channels of each map; channels that are constant stay as they are."""
        for layer, mean, deviation in zip(self.adapter.linears_modulelist, means, deviations, strict=True):
            layer.get_buffer("mean").copy_(mean)
            layer.get_buffer("deviation").copy_(torch.where(deviation > 0, deviation, torch.ones(())))

    def forward(
        self,
        maps: Sequence[Float[Tensor, "b _ _ _"]],
        outside: Bool[Tensor, "b h w"] | None = None,
        factors: Float[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b l h w"]:
        """Logits on the finest grid.

        Args:
            maps: the deepest last.
            outside: cells to which no other cell attends.
            factors: of each channel of the adapter, for dropout; None: 1.
        """
        features = self.adapter(maps)
        if factors is not None:
            features = features * factors[:, :, None, None]
        return self.decoder(features, outside)


class FrozenSegmenter(nn.Module):
    """A frozen network and a head.

    Args:
        features: the frozen network; None while the head is trained, from cached features.
        head: the trained layers.
    """

    def __init__(self, features: DenseFeatures | None, head: FrozenHead) -> None:
        super().__init__()
        self.features, self.head = features, head

    def coarse(self, pictures: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b l hc wc"]:
        """Logits of RGB pictures with values from 0 to 255, in cells that cover them."""
        assert self.features is not None
        return self.head(self.features(pictures))

    def forward(self, pictures: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b l h w"]:
        """Logits of RGB pictures with values from 0 to 255, at their size."""
        coarse = self.coarse(pictures)
        return enlarge(coarse, [self.covered(coarse, (pictures.shape[2], pictures.shape[3]))])

    def covered(self, coarse: Float[Tensor, "b l hc wc"], size_hw: tuple[int, int]) -> Step:
        """How coarse logits are resized to pixels; the cells may cover more than the picture."""
        assert self.features is not None
        height, width = (side * self.features.cell for side in coarse.shape[2:])
        return Step((height, width), kept=size_hw)
