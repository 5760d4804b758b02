"""Regions of pictures in front of a frozen CLIP: what CLIMS and the methods that build on it share.

The maps of a classifier cut a region out of a picture for each class that the picture has; gradients go through CLIP to the maps.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wsss import launch
from wsss.data.augment import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from wsss.networks.clip import CLIP
from wsss.networks.clip_resnet import ResNetCLIP

# patches (n, N, width) after block number d, 0 before the first, to what goes on in their place
Replace = Callable[[int, Tensor], Tensor]


class Pairs(NamedTuple):
    """Pairs of a picture and a class that it has, picture by picture.

    Attributes:
        rows: of the pictures in the batch.
        classes: 0-based.
    """

    rows: Int[Tensor, " p"]
    classes: Int[Tensor, " p"]


def pairs_of(label: Float[Tensor, "b c"]) -> Pairs:
    """The pairs of a batch with the tags `label`."""
    return Pairs(*label.nonzero(as_tuple=True))


def regions(
    scores: Float[Tensor, "p 1 h w"], pictures: Float[Tensor, "p 3 s s"]
) -> tuple[Float[Tensor, "p 3 s s"], Float[Tensor, "p 3 s s"]]:
    """What maps X in [0, 1] leave of pictures I, and what they take away: X I and (1 - X) I, with X at the pictures' size."""
    x = F.interpolate(scores, pictures.shape[2:], mode="bilinear", align_corners=True)
    return x * pictures, (1 - x) * pictures


def in_parts(encode: Callable[..., Tensor], most: int, *inputs: Tensor) -> Tensor:
    """`encode` of all rows of the inputs, at most so many at a time.

    Where that takes several parts, each runs once more in the backward pass, so that no more than one of them takes
    memory at a time. The result is the same.

    Args:
        encode: of some rows of each input, row by row.
        most: rows at a time.
        inputs: with equal numbers of rows.
    """
    if len(inputs[0]) <= most:
        return encode(*inputs)
    parts = zip(*(value.split(most) for value in inputs), strict=True)
    return torch.cat([checkpoint(encode, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def pair_mean(values: Float[Tensor, "p *k"]) -> Float[Tensor, "*k"]:
    """The part of this process in a mean over the pairs of all processes; 0 where none has any.

    The number of pairs differs between processes. The mean of these parts over the processes, which gradients are
    averaged over, is the mean over all pairs.
    """
    pairs = launch.mean_over_processes(values.new_tensor(len(values)))
    return values.sum(0) / pairs.clamp_min(1 / launch.processes())


def input_size(clip: CLIP | ResNetCLIP) -> int:
    """Side of the pictures that a CLIP was trained on, in pixels."""
    return clip.input_size if isinstance(clip, ResNetCLIP) else clip.patch * clip.native_grid


def encode_image(
    clip: CLIP | ResNetCLIP, image: Float[Tensor, "n 3 s s"], replace: Replace | None = None
) -> Float[Tensor, "n d"]:
    """Pictures of `input_size` to the joint space, not normalised.

    Args:
        clip: the network.
        image: the pictures.
        replace: puts others in the place of some patches, as mask prompts do; of a vision transformer alone.
    """
    if isinstance(clip, ResNetCLIP):
        return clip.encode_image(image)
    x = _tokens(clip, image, replace)
    for index in range(clip.n_blocks - 1):
        x, _ = clip.block(index, x)
        if replace is not None:
            x = torch.cat([x[:, :1], replace(index + 1, x[:, 1:])], 1)
    return clip.project(_last_class_token(clip.last_block(), x))


def _tokens(clip: CLIP, image: Float[Tensor, "n 3 s s"], replace: Replace | None) -> Float[Tensor, "n l width"]:
    """As `CLIP.embed`, by a matrix product: a CPU takes much longer for the gradient of its convolution with respect to pictures."""
    vision: Any = clip.model.vision_model
    side, patch = clip.native_grid, clip.patch
    patches = image.unflatten(3, (side, patch)).unflatten(2, (side, patch)).permute(0, 2, 4, 1, 3, 5)
    embedded = F.linear(patches.flatten(3).flatten(1, 2), vision.embeddings.patch_embedding.weight.flatten(1))
    embedded = embedded if replace is None else replace(0, embedded)
    first = vision.embeddings.class_embedding.expand(len(image), 1, -1)
    return vision.pre_layrnorm(torch.cat([first, embedded], 1) + clip.positions((side, side), rounded=False))


def _last_class_token(layer: Any, x: Float[Tensor, "n l width"]) -> Float[Tensor, "n width"]:
    """The class token after the last block, of whose other tokens nothing but keys and values is needed."""
    own, y = layer.self_attn, layer.layer_norm1(x)
    q, k, v = (
        projection(rows).unflatten(2, (own.num_heads, -1)).transpose(1, 2)
        for projection, rows in ((own.q_proj, y[:, :1]), (own.k_proj, y), (own.v_proj, y))
    )
    first = x[:, 0] + own.out_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))
    return first + layer.mlp(layer.layer_norm2(first))


def to_clip(
    colours: Literal["imagenet", "clip"], clip_colours: Literal["same", "clip"]
) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """What pictures are multiplied by, and what is added then, to get the colours of the regions."""
    if clip_colours == "same" or colours == "clip":
        return torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    mean, std, own_mean, own_std = (
        torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD, CLIP_MEAN, CLIP_STD)
    )
    return std / own_std, (mean - own_mean) / own_std
