"""Dense features of frozen networks: feature maps of RGB pictures of any size, whose cells are squares of pixels.

Pictures are padded with zeros at the right and at the bottom to whole cells, before they are normalised: left to itself, a transformer drops
the pixels of an incomplete patch, and its maps are shifted.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float, Num, UInt8
from wsss.data.augment import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Colours
from wsss.errors import BadInput
from wsss.networks.body import Body

if TYPE_CHECKING:  # slow to import
    import transformers

IMAGENET: Colours = (IMAGENET_MEAN, IMAGENET_STD)
CLIP: Colours = (CLIP_MEAN, CLIP_STD)
_HALF: Colours = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class FrozenNetwork(nn.Module, ABC):
    """A network that gives feature maps of normalised pictures whose sides are multiples of its stride.

    Attributes:
        colours: how pictures are normalised.
        stride: pixels that the sides of pictures are multiples of.
        strides: pixels of a cell of each feature map, the shallowest first.
        channels: of each feature map.
    """

    colours: Colours
    stride: int
    strides: Sequence[int]
    channels: Sequence[int]

    @abstractmethod
    def maps(self, pictures: Float[Tensor, "b 3 h w"], layers: int) -> list[Float[Tensor, "b d rows columns"]]:
        """The last feature maps, the deepest last."""


class DenseFeatures(nn.Module):
    """A frozen network, applied to RGB pictures of any size.

    Args:
        network: the network; its weights are frozen here.
        layers: number of feature maps that are used, counted from the deepest one.
        enlarge: factor by which pictures are enlarged (bilinear), for smaller cells.

    Attributes:
        cell: side of the cells of the grid, in pixels of the picture.
        channels: of the features of the grid.

    Raises:
        BadInput: the network has fewer layers, or its cells cannot be divided by `enlarge`.
    """

    def __init__(self, network: FrozenNetwork, layers: int = 1, enlarge: int = 1) -> None:
        super().__init__()
        if not 1 <= layers <= len(network.strides):
            do = "Set features.layers."
            raise BadInput("features.layers", str(layers), f"1 to {len(network.strides)} for this network", do)
        finest = min(network.strides[-layers:])
        if enlarge < 1 or finest % enlarge:
            expected = f"a divisor of {finest}, the side of this network's cells in pixels"
            raise BadInput("features.enlarge", str(enlarge), expected, "Set features.enlarge.")
        self.network, self.layers, self.enlarge = network.requires_grad_(False).eval(), layers, enlarge
        self.cell, self._multiple = finest // enlarge, network.stride
        self.channels = sum(network.channels[-layers:])
        mean, deviation = (torch.tensor(values)[:, None, None] for values in network.colours)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)

    def train(self, mode: bool = True) -> "DenseFeatures":
        """Frozen: dropout and batch norms stay as they are for predictions."""
        return super().train(False)

    def forward(self, pictures: Num[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b d rows columns"]]:
        """The feature maps of RGB pictures with values from 0 to 255, the deepest last.

        They cover the padding too; row i begins at pixel i times the side of a cell.
        """
        return self.network.maps(self._normalised(pictures), self.layers)

    def grid_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the grid of a picture of this height and width."""
        return max(self.grids_hw(size_hw))

    def grids_hw(self, size_hw: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of each feature map of a picture of this height and width, the deepest last."""
        height, width = (-(-side * self.enlarge // self._multiple) * self._multiple for side in size_hw)
        return [(height // stride, width // stride) for stride in self.network.strides[-self.layers :]]

    @property
    def map_channels(self) -> list[int]:
        """Channels of each feature map, the deepest last."""
        return list(self.network.channels[-self.layers :])

    @property
    def factors(self) -> list[int]:
        """The factor between the finest grid and that of each feature map, the deepest last."""
        return [stride // (self.cell * self.enlarge) for stride in self.network.strides[-self.layers :]]

    @torch.inference_mode()
    def grid(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "rows columns d"]:
        """The features of each cell of one picture.

        Several layers are brought to the finest cells (bilinear); each is divided by its mean norm over the picture, and they are put side by side.
        """
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(self.mean.device)
        maps = self(planes)
        if len(maps) > 1:
            grid_hw = self.grid_hw((image.shape[0], image.shape[1]))
            maps = [
                F.interpolate(one, grid_hw, mode="bilinear", align_corners=False)
                / one.norm(dim=1).mean().clamp_min(1e-12)
                for one in maps
            ]
        return torch.cat(maps, 1)[0].permute(1, 2, 0).float().cpu().numpy()

    def _normalised(self, pictures: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 hp wp"]:
        height, width = pictures.shape[2:]
        multiple = self._multiple // self.enlarge
        padded = F.pad(pictures, (0, -width % multiple, 0, -height % multiple)).float() / 255
        if self.enlarge > 1:
            padded = F.interpolate(padded, scale_factor=float(self.enlarge), mode="bilinear", align_corners=False)
        return (padded - self.mean) / self.deviation


class BodyFeatures(FrozenNetwork):
    """The feature maps of a backbone, such as that of a trained classifier, or any model of timm.

    Args:
        body: the backbone.
        colours: how pictures were normalised in its training.
    """

    def __init__(self, body: Body, colours: Colours = IMAGENET) -> None:
        super().__init__()
        self.body, self.colours = body, colours
        self.strides, self.channels, self.stride = body.strides, body.channels, max(body.strides)

    def maps(self, pictures: Float[Tensor, "b 3 h w"], layers: int) -> list[Float[Tensor, "b d rows columns"]]:
        return self.body(pictures)[-layers:]


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """A vision transformer of transformers.

    Attributes:
        name: of its class.
        colours: how pictures are normalised unless the source says otherwise.
        prefix: number of tokens before those of the patches, from the settings of the model.
        options: of its forward pass.
        in_blocks: whether pictures are given as rows of patches.
        inside: whether it normalises pictures itself.
        loading: options of its constructor.
    """

    name: str
    colours: Colours
    prefix: Callable[[Any], int]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    in_blocks: bool = False
    inside: bool = False
    loading: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> "type[transformers.PreTrainedModel]":
        """Its class in transformers."""
        import transformers

        found: type[transformers.PreTrainedModel] = getattr(transformers, self.name)
        return found


_RESIZED = {"interpolate_pos_encoding": True}
_CLIP_VISION = _Architecture("CLIPVisionModel", CLIP, lambda settings: 1, _RESIZED)
_SIGLIP = _Architecture("SiglipVisionModel", _HALF, lambda settings: 0, _RESIZED)
_SIGLIP2 = _Architecture("Siglip2VisionModel", _HALF, lambda settings: 0, in_blocks=True)
# by `model_type` in config.json; SigLIP 2 of a fixed size is a `siglip`, that of any aspect ratio (NaFlex) a `siglip2`
ARCHITECTURES: Mapping[str, _Architecture] = {
    "dinov2": _Architecture("Dinov2Model", IMAGENET, lambda settings: 1),
    "dinov2_with_registers": _Architecture(
        "Dinov2WithRegistersModel", IMAGENET, lambda settings: 1 + settings.num_register_tokens
    ),
    "dinov3_vit": _Architecture("DINOv3ViTModel", IMAGENET, lambda settings: 1 + settings.num_register_tokens),
    "radio": _Architecture(
        "RadioModel", ((0.0,) * 3, (1.0,) * 3), lambda settings: settings.num_summary_tokens, inside=True
    ),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
    # of DINO, and of others
    "vit": _Architecture("ViTModel", IMAGENET, lambda settings: 1, _RESIZED, loading={"add_pooling_layer": False}),
    "clip": _CLIP_VISION,
    "clip_vision_model": _CLIP_VISION,
}


class TransformerFeatures(FrozenNetwork):
    """The tokens of the patches after the last blocks of a vision transformer of transformers, as maps.

    The deepest map is the output of the network, after its last norm where it has one for patches; the others are the outputs of earlier blocks.

    Args:
        model: the vision transformer.
        kind: its key in `ARCHITECTURES`.
        colours: how pictures are normalised; None: as usual for this architecture.
    """

    KINDS: ClassVar = ARCHITECTURES

    def __init__(self, model: "transformers.PreTrainedModel", kind: str, colours: Colours | None = None) -> None:
        super().__init__()
        settings: Any = model.config
        self.model, self.kind, self.architecture = model, kind, ARCHITECTURES[kind]
        self.colours = self.architecture.colours if colours is None or self.architecture.inside else colours
        self.stride = int(settings.patch_size)
        self.strides = [self.stride] * int(settings.num_hidden_layers)
        self.channels = [int(settings.hidden_size)] * int(settings.num_hidden_layers)
        self.prefix = self.architecture.prefix(settings)

    def maps(self, pictures: Float[Tensor, "b 3 h w"], layers: int) -> list[Float[Tensor, "b d rows columns"]]:
        rows, columns = (side // self.stride for side in pictures.shape[2:])
        inputs: dict[str, Any] = {"pixel_values": pictures}
        if self.architecture.in_blocks:
            inputs = _as_patches(pictures, self.stride)
        found = self.model(**inputs, **self.architecture.options, output_hidden_states=layers > 1)
        tokens = [*(found.hidden_states[-layers:-1] if layers > 1 else ()), found.last_hidden_state]
        return [one[:, self.prefix :].transpose(1, 2).unflatten(2, (rows, columns)) for one in tokens]


def _as_patches(pictures: Float[Tensor, "b 3 h w"], side: int) -> dict[str, Tensor]:
    """Pictures as rows of patches, each with its pixels row by row and the channels last."""
    count, _, height, width = pictures.shape
    rows, columns = height // side, width // side
    patches = pictures.unflatten(3, (columns, side)).unflatten(2, (rows, side))
    return {
        "pixel_values": patches.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, side * side * 3),
        "pixel_attention_mask": torch.ones(count, rows * columns, dtype=torch.int64, device=pictures.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * count, device=pictures.device),
    }


class PatchDescriptions(nn.Module):
    """The sum of queries and keys of a transformer's last block, all heads side by side, by which patches are compared.

    Args:
        features: of a transformer whose tokens all attend to one another.
        source: its name, for errors.

    Raises:
        BadInput: the network has no such attention.
    """

    def __init__(self, features: DenseFeatures, source: str) -> None:
        super().__init__()
        self.features = features
        layers = [
            (name.rpartition(".")[2], one) for name, one in features.named_modules() if isinstance(one, nn.Linear)
        ]
        found = [[one for name, one in layers if name == wanted][-1:] for wanted in ("q_proj", "k_proj", "qkv")]
        queries, keys, joined = found
        # hidden in a list: submodules have one parent
        self._layers = [*queries, *keys] if queries and keys else joined
        side = 2 * features.cell
        with torch.inference_mode():
            _, outputs = self._seen(torch.zeros(1, 3, side, side))
        if not outputs or any(one.ndim != 3 or one.shape[0] != 1 or one.shape[1] < 4 for one in outputs):
            expected = "a transformer whose patches all attend to one another, such as facebook/dino-vitb8"
            raise BadInput(source, "a network without such attention", expected, "Give another network.")

    def _seen(self, pictures: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, list[Tensor]]:
        """The feature map of pictures, and the outputs of the layers on the way."""
        outputs: list[Tensor] = []
        # only here: the layers may be used elsewhere too
        hooks = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in self._layers]
        try:
            (grid,) = self.features(pictures)
        finally:
            for hook in hooks:
                hook.remove()
        return grid, outputs

    def forward(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d rows columns"]:
        """The descriptions of the patches of RGB pictures, 0 to 255."""
        grid, outputs = self._seen(pictures)
        queries, keys = outputs if len(outputs) == 2 else outputs[0].chunk(3, 2)[:2]
        rows, columns = grid.shape[2:]
        # the patches are the last tokens
        return (queries + keys)[:, -rows * columns :].mT.unflatten(2, (rows, columns))


def enlarged_by(network: nn.Module) -> int:
    """The factor by which a network, or a part of it, enlarges pictures; 1 if it does not."""
    return next((part.enlarge for part in network.modules() if isinstance(part, DenseFeatures)), 1)
