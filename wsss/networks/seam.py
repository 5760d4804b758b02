"""SEAM's network (Wang et al., Self-supervised equivariant attention mechanism for weakly supervised segmentation, CVPR 2020).

A classifier with a background channel, and the pixel correlation module (PCM), which revises maps L with the similarity of
their cells: with g_i the unit feature of cell i, A_ij = ReLU(g_i · g_j) and L'_j = sum_i L_i A_ij / sum_i A_ij. ICAM and the
binomial follow-up have the same layers, with the same names.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsss.arrays import Float
from wsss.errors import BadInput
from wsss.networks.affinitynet import TrunkWithHeads
from wsss.networks.backbone import create_backbone
from wsss.precision import at_least_single

_EPSILON = 1e-5
# number of affinities in memory at a time
_AFFINITIES = 1 << 21
# bytes of these, and of the product that they are made from
AFFINITY_BYTES = 8 * _AFFINITIES


class SEAMOutput(NamedTuple):
    """The output of the network for a batch of pictures.

    Attributes:
        logits: L of background and classes.
        features: g, before normalisation.
    """

    logits: Float[Tensor, "n l h w"]
    features: Float[Tensor, "n d h w"]


class SEAMNetwork(TrunkWithHeads):
    """A backbone with fc8 (classes), f8_3, f8_4 and f9 (features of the PCM), 1x1 convolutions without bias.

    Args:
        n_classes: without the background.
        backbone: see `create_backbone`. The first two of its last three features are resized to the cells of the third, if necessary;
            in ResNet-38 all have stride 8.
        output_stride: of the deepest feature.
        dropout: dropout rate of the channels of the deepest feature.

    Raises:
        BadInput: there is no such backbone, it does not support this stride, or it has fewer than three features.
    """

    def __init__(
        self, n_classes: int, backbone: str = "resnet38", output_stride: int = 8, dropout: float = 0.5
    ) -> None:
        body = create_backbone(backbone, output_stride)
        if len(body.channels) < 3:
            raise BadInput(
                f"backbone {backbone}",
                f"{len(body.channels)} features",
                "at least three",
                "Choose resnet38, resnet50 or another network with stages.",
            )
        super().__init__(body)
        third, fourth, fifth = body.channels[-3:]
        self.dropout7 = nn.Dropout2d(dropout)
        self.fc8 = nn.Conv2d(fifth, n_classes + 1, 1, bias=False)
        self.f8_3 = nn.Conv2d(third, 64, 1, bias=False)
        self.f8_4 = nn.Conv2d(fourth, 128, 1, bias=False)
        self.f9 = nn.Conv2d(64 + 128 + 3, 192, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)
        for layer in (self.f8_3, self.f8_4):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, image: Float[Tensor, "n 3 h w"]) -> SEAMOutput:
        third, fourth, fifth = self.body(image)[-3:]
        cells = fifth.shape[2:]
        # the correlations only train their own layers
        inputs = [
            resized(image, cells).to(fifth.dtype),
            resized(F.relu(self.f8_3(third.detach())), cells),
            resized(F.relu(self.f8_4(fourth.detach())), cells),
        ]
        logits = self.fc8(self.dropout7(fifth))
        # no half precision from here on: sums over all cells follow
        return SEAMOutput(at_least_single(logits), at_least_single(self.f9(torch.cat(inputs, 1))))


def resized(maps: Float[Tensor, "n c h w"], size_hw: tuple[int, int] | torch.Size) -> Float[Tensor, "n c h2 w2"]:
    """Resize bilinearly with aligned corners."""
    if maps.shape[2:] == tuple(size_hw):
        return maps
    return F.interpolate(maps, size_hw, mode="bilinear", align_corners=True)


def correlated(
    maps: Float[Tensor, "n l h w"], features: Float[Tensor, "n d h w"], *, affinities: int = _AFFINITIES
) -> Float[Tensor, "n l h w"]:
    """The pixel correlation module: maps L', the means of L over similar cells.

    The columns of A are computed block by block, also for the gradient, so that memory grows linearly with the number of cells.

    Args:
        maps: L.
        features: g, not normalised.
        affinities: number of entries of A in memory at a time.
    """
    with torch.autocast(maps.device.type, enabled=False):
        flat = features.flatten(2)
        g = flat / (flat.norm(dim=1, keepdim=True) + _EPSILON)
        # an additional row of ones sums the affinities
        values = torch.cat([maps.flatten(2), torch.ones_like(maps[:, :1]).flatten(2)], 1)
        sums = _Correlation.apply(values, g, affinities)
        return (sums[:, :-1] / (sums[:, -1:] + _EPSILON)).view_as(maps)


class _Correlation(torch.autograd.Function):
    """values · ReLU(gᵀ g), block by block of its columns."""

    @staticmethod
    def forward(context: Any, values: Tensor, g: Tensor, affinities: int) -> Tensor:
        context.save_for_backward(values, g)
        context.block = max(1, affinities // math.prod(g.shape[::2]))
        out = torch.empty_like(values)
        for start in range(0, g.shape[2], context.block):
            block = slice(start, start + context.block)
            out[..., block] = values @ (g.mT @ g[..., block]).relu_()
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        values, g = context.saved_tensors
        into_values, into_g = torch.zeros_like(values), torch.zeros_like(g)
        for start in range(0, g.shape[2], context.block):
            block = slice(start, start + context.block)
            affinity = (g.mT @ g[..., block]).relu_()
            gradient = gradients[0][..., block]
            if context.needs_input_grad[0]:
                into_values += gradient @ affinity.mT
            # the gradient passes the ReLU where the affinity is positive
            pairs = (values.mT @ gradient).mul_(affinity > 0)
            into_g += g[..., block] @ pairs.mT
            into_g[..., block] += g @ pairs
        return into_values, into_g, None
