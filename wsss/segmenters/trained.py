"""The interface of trained segmenters, as used by `wsss predict`."""

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float, UInt8
from wsss.data.augment import ColourRule, normalise
from wsss.data.voc import VOC_CLASSES
from wsss.errors import Unreadable
from wsss.ops.enlarging import Step, enlarge

K = TypeVar("K")
# from a view to the output of a part of a network
Part = Callable[[Tensor], Tensor]
Local = tuple[nn.Module, Part]


class TrainedSegmenter(Protocol):
    """A trained segmenter, made from a state dict, its metadata, and the path of the file.

    Without metadata, the file is a published checkpoint, which is recognised by its tensor `signature`.

    Attributes:
        network: on the CPU, in evaluation mode; the caller moves it to a device.
        classes: the class names.
        scales, flip: scales of the published test, and whether it includes mirror images.
        averaged: what is averaged over all views.
        colours: how pictures are normalised.
        fit: the longest and the shortest side that pictures are resized to; None if they keep their size.
        window: side of the overlapping windows in which logits are computed; None for the whole picture.
        local: the part of the network that consists of convolutions and can be computed in tiles, and the function that calls it; None if there
            is no such part.
        cell: pixels of a view, to a side, of a cell of the coarse logits.
    """

    network: nn.Module
    classes: tuple[str, ...]
    scales: tuple[float, ...]
    flip: bool
    averaged: Literal["probabilities", "logits"]
    colours: ColourRule

    @property
    def fit(self) -> tuple[int, int] | None: ...

    @property
    def window(self) -> int | None: ...

    @property
    def local(self) -> Local | None: ...

    @property
    def cell(self) -> int: ...

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        """An RGB picture, rescaled and normalised as input of the network, on the CPU."""

    def coarse(self, view: Float[Tensor, "b 3 hs ws"], compute: Part | None = None) -> Float[Tensor, "b l hc wc"]:
        """Logits in the cells of the network, background first; `compute` takes the place of the function of `local`."""

    def enlarged(
        self,
        coarse: Float[Tensor, "b l hc wc"],
        view_hw: tuple[int, int],
        size_hw: tuple[int, int],
        rows: slice | None = None,
    ) -> Float[Tensor, "b l h w"]:
        """Logits at the original size of the picture: all rows, or some of them (see `wsss.ops.enlarging`)."""

    def crf_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The RGB picture that a dense CRF uses."""


def logits_of(
    trained: TrainedSegmenter, view: Float[Tensor, "b 3 hs ws"], size_hw: tuple[int, int]
) -> Float[Tensor, "b l h w"]:
    """Logits at the original size of the picture, background first."""
    return trained.enlarged(trained.coarse(view), (view.shape[2], view.shape[3]), size_hw)


class Enlarging(abc.ABC):
    """Brings coarse logits to the size of a picture; see `TrainedSegmenter`.

    Attributes:
        of_shares: the network gives shares of votes, of which logits are the logarithms.
    """

    of_shares: ClassVar[bool] = False

    @abc.abstractmethod
    def steps(
        self, coarse: Float[Tensor, "b l hc wc"], view_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> Sequence[Step]:
        """The resizings from the cells of a view of this size to the pixels of the picture."""

    def enlarged(
        self,
        coarse: Float[Tensor, "b l hc wc"],
        view_hw: tuple[int, int],
        size_hw: tuple[int, int],
        rows: slice | None = None,
    ) -> Float[Tensor, "b l h w"]:
        scores = enlarge(coarse, self.steps(coarse, view_hw, size_hw), rows)
        return scores.clamp_min(1e-12).log() if self.of_shares else scores


@dataclasses.dataclass
class TrainedNetwork(Enlarging):
    """A trained segmenter that is tested at one scale, without mirror images; see `TrainedSegmenter`.

    Attributes:
        network: in evaluation mode.
        classes: the class names.
        forward: computes the coarse logits of a batch of pictures.
        colours: how pictures are normalised.
    """

    network: nn.Module
    classes: tuple[str, ...]
    forward: Callable[[Tensor], Tensor]
    colours: ColourRule = "imagenet"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    averaged: Literal["probabilities", "logits"] = "probabilities"
    fit: tuple[int, int] | None = None
    window: int | None = None
    local: Local | None = None
    cell: int = 1

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        return rescaled(torch.from_numpy(normalise(image, self.colours))[None], scale, align_corners=False)

    def coarse(self, view: Float[Tensor, "b 3 hs ws"], compute: Part | None = None) -> Float[Tensor, "b l hc wc"]:
        return self.forward(view)

    def steps(
        self, coarse: Float[Tensor, "b l hc wc"], view_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> Sequence[Step]:
        return (Step(size_hw),)

    def crf_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return image


def default_classes(n_labels: int) -> tuple[str, ...]:
    """Class names for a checkpoint that does not store any: those of VOC if their number matches, otherwise `class 1`, ..."""
    return VOC_CLASSES if n_labels == len(VOC_CLASSES) + 1 else tuple(f"class {i}" for i in range(1, n_labels))


def settings_of(kind: Callable[..., K], values: object) -> K:
    """Settings from a file's metadata, in which tuples are lists.

    Raises:
        Unreadable: they are no settings of this kind.
    """
    if not isinstance(values, Mapping) or not set(values) <= set(inspect.signature(kind).parameters):
        raise Unreadable(f"the settings {values!r:.60}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def rescaled(planes: Float[Tensor, "1 3 h w"], scale: float, align_corners: bool) -> Float[Tensor, "1 3 hs ws"]:
    """A normalised picture at another scale, bilinear."""
    if scale == 1:
        return planes
    shape = [max(1, round(side * scale)) for side in planes.shape[-2:]]
    return F.interpolate(planes, shape, mode="bilinear", align_corners=align_corners)
