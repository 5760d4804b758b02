"""Encoding regions of pictures with a frozen CLIP: shared by CLIMS and the methods that build on it.

For each class that a picture has, the classifier's map masks out a region of the picture. Gradients flow through CLIP to the maps.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wsss import launch
from wsss.arrays import Float, Int
from wsss.data.augment import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from wsss.errors import BadInput
from wsss.networks.clip import CLIP, ImageText
from wsss.networks.clip_resnet import ResNetCLIP
from wsss.networks.siglip import SigLIP

# replaces the patch tokens (n, N, width) after block number d; d = 0 is before the first block
Replace = Callable[[int, Tensor], Tensor]


class Pairs(NamedTuple):
    """Pairs of a picture and a class that it has, ordered by picture.

    Attributes:
        rows: index of the picture in the batch.
        classes: 0-based class.
    """

    rows: Int[Tensor, " p"]
    classes: Int[Tensor, " p"]


def pairs_of(label: Float[Tensor, "b c"]) -> Pairs:
    """The pairs of a batch with the tags `label`."""
    return Pairs(*label.nonzero(as_tuple=True))


def regions(
    scores: Float[Tensor, "p 1 h w"], pictures: Float[Tensor, "p 3 s s"]
) -> tuple[Float[Tensor, "p 3 s s"], Float[Tensor, "p 3 s s"]]:
    """Pictures I masked by maps X in [0, 1], resized to the pictures' size: the object regions X I and the backgrounds (1 - X) I."""
    x = F.interpolate(scores, pictures.shape[2:], mode="bilinear", align_corners=True)
    return x * pictures, (1 - x) * pictures


def in_chunks(encode: Callable[..., Tensor], size: int, *inputs: Tensor) -> Tensor:
    """Apply `encode` to the rows of the inputs, in chunks.

    If there are several chunks, each is recomputed in the backward pass (activation checkpointing), so that only one of
    them occupies memory at a time. The result is the same.

    Args:
        encode: handles each row of its inputs independently.
        size: maximum number of rows in a chunk.
        inputs: tensors with equal numbers of rows.
    """
    if len(inputs[0]) <= size:
        return encode(*inputs)
    chunks = zip(*(value.split(size) for value in inputs), strict=True)
    return torch.cat([checkpoint(encode, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])


def pair_mean(values: Float[Tensor, "p *k"]) -> Float[Tensor, "*k"]:
    """This process's contribution to the mean over the pairs of all processes; 0 if there are no pairs.

    The number of pairs differs between processes. Gradients are averaged over the processes, and the average of these
    contributions is the mean over all pairs.
    """
    pairs = launch.mean_over_processes(values.new_tensor(len(values)))
    return values.sum(0) / pairs.clamp_min(1 / launch.processes())


def input_size(clip: ImageText | ResNetCLIP) -> int:
    """Side length of the pictures that a CLIP was trained on, in pixels."""
    return clip.input_size if isinstance(clip, ResNetCLIP) else clip.patch * clip.native_grid


def described(clip: ImageText | ResNetCLIP, similarity: str) -> dict[str, str]:
    """What the metadata of weights says of the frozen network that they were trained with, and of how its similarities were used."""
    return {"image_text": clip.FAMILY, "similarity": similarity}


def encode_image(
    clip: ImageText | ResNetCLIP, image: Float[Tensor, "n 3 s s"], replace: Replace | None = None
) -> Float[Tensor, "n d"]:
    """Image features of pictures of `input_size`, in the joint space, not normalised.

    Args:
        clip: the network.
        image: the pictures.
        replace: replaces some patch tokens, as mask prompts do; CLIPs with a vision transformer only.
    """
    if isinstance(clip, ResNetCLIP | SigLIP):
        return clip.encode_image(image)
    assert isinstance(clip, CLIP)
    x = _tokens(clip, image, replace)
    for index in range(clip.n_blocks - 1):
        x, _ = clip.block(index, x)
        if replace is not None:
            x = torch.cat([x[:, :1], replace(index + 1, x[:, 1:])], 1)
    return clip.project(_last_class_token(clip.last_block(), x))


def _tokens(clip: CLIP, image: Float[Tensor, "n 3 s s"], replace: Replace | None) -> Float[Tensor, "n l width"]:
    """As `CLIP.embed`, with a matrix product: on a CPU, the gradient of the convolution with respect to its input is much slower."""
    vision: Any = clip.model.vision_model
    side, patch = clip.native_grid, clip.patch
    patches = image.unflatten(3, (side, patch)).unflatten(2, (side, patch)).permute(0, 2, 4, 1, 3, 5)
    embedded = F.linear(patches.flatten(3).flatten(1, 2), vision.embeddings.patch_embedding.weight.flatten(1))
    embedded = embedded if replace is None else replace(0, embedded)
    first = vision.embeddings.class_embedding.expand(len(image), 1, -1)
    return vision.pre_layrnorm(torch.cat([first, embedded], 1) + clip.positions((side, side), rounded=False))


def _last_class_token(layer: Any, x: Float[Tensor, "n l width"]) -> Float[Tensor, "n width"]:
    """The class token after the last block; of the other tokens only keys and values are computed."""
    attention, y = layer.self_attn, layer.layer_norm1(x)
    q, k, v = (
        projection(rows).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for projection, rows in ((attention.q_proj, y[:, :1]), (attention.k_proj, y), (attention.v_proj, y))
    )
    first = x[:, 0] + attention.out_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))
    return first + layer.mlp(layer.layer_norm2(first))


def to_clip(
    clip: ImageText | ResNetCLIP, colours: Literal["imagenet", "clip"], clip_colours: Literal["same", "clip"]
) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """Scale and shift that convert pictures normalised with `colours` to the normalisation that CLIP gets.

    Raises:
        BadInput: a SigLIP should get the same pictures, which have about twice the contrast of its own.
    """
    if clip_colours == "same":
        if isinstance(clip, SigLIP):
            do = "Set clip_colours to clip."
            raise BadInput("clip_colours", "same, with a SigLIP, whose pictures have values from -1 to 1", "clip", do)
        return torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    theirs = (CLIP_MEAN, CLIP_STD) if isinstance(clip, ResNetCLIP) else clip.colours
    ours = (IMAGENET_MEAN, IMAGENET_STD) if colours == "imagenet" else (CLIP_MEAN, CLIP_STD)
    if ours == theirs:
        return torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    mean, std, clip_mean, clip_std = (torch.tensor(values)[:, None, None] for values in (*ours, *theirs))
    return std / clip_std, (mean - clip_mean) / clip_std
