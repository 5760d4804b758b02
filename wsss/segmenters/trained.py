"""What `wsss predict` needs of a trained segmenter."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wsss.data.augment import ColourRule, normalise
from wsss.data.voc import VOC_CLASSES
from wsss.networks.deeplab import resize_logits


class Trained(Protocol):
    """A trained segmenter, made from a state dict, from what was saved beside it, and from the file of both.

    Without anything beside it the file is a published checkpoint, which has the tensor `SIGN`.

    Attributes:
        network: on the CPU, in evaluation mode; whoever uses it moves it to a device.
        classes: the class names.
        scales, flip: sizes at which the published test sees a picture, and whether it sees its mirror image too.
        averaged: what is averaged over all views.
    """

    network: nn.Module
    classes: tuple[str, ...]
    scales: tuple[float, ...]
    flip: bool
    averaged: Literal["probabilities", "logits"]

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        """An RGB picture as the network takes it, on the CPU."""

    def logits(self, view: Float[Tensor, "1 3 hs ws"], size_hw: tuple[int, int]) -> Float[Tensor, "1 l h w"]:
        """Logits at the picture's own size, background first."""

    def seen(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The picture that a dense CRF is given."""


@dataclasses.dataclass
class TrainedNetwork:
    """A trained segmenter that is tested as it is: at one scale, without mirror images; see `Trained`.

    Attributes:
        network: in evaluation mode.
        classes: the class names.
        forward: gives logits of a batch of pictures, at any size.
        colours: how pictures are normalised.
    """

    network: nn.Module
    classes: tuple[str, ...]
    forward: Callable[[Tensor], Tensor]
    colours: ColourRule = "imagenet"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    averaged: Literal["probabilities", "logits"] = "probabilities"

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        return rescaled(torch.from_numpy(normalise(image, self.colours))[None], scale, align_corners=False)

    def logits(self, view: Float[Tensor, "1 3 hs ws"], size_hw: tuple[int, int]) -> Float[Tensor, "1 l h w"]:
        return resize_logits(self.forward(view), size_hw)

    def seen(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return image


def known_classes(n_labels: int) -> tuple[str, ...]:
    """Names for the classes of a checkpoint that does not say them: VOC's where their number is the same."""
    return VOC_CLASSES if n_labels == len(VOC_CLASSES) + 1 else tuple(f"class {i}" for i in range(1, n_labels))


def settings_of(kind: type, values: Mapping[str, Any]) -> Any:
    """Settings from a file's metadata, whose lists are their tuples."""
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def rescaled(planes: Float[Tensor, "1 3 h w"], scale: float, align_corners: bool) -> Float[Tensor, "1 3 hs ws"]:
    """A normalised picture at another size, bilinear."""
    if scale == 1:
        return planes
    shape = [max(1, round(side * scale)) for side in planes.shape[-2:]]
    return F.interpolate(planes, shape, mode="bilinear", align_corners=align_corners)
