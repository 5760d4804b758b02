"""The interface of backbones; each architecture knows its published tensor names."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, TypedDict

from torch import Tensor, nn

from wsss.arrays import Float


class ParamGroup(TypedDict):
    """A parameter group of an optimiser."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


class Body(nn.Module, ABC):
    """A network without its head. It computes feature maps of RGB pictures normalised with ImageNet's mean and standard deviation.

    Attributes:
        channels: of each feature, the shallowest first.
        strides: of each feature, in pixels; a side of n pixels has ceil(n / stride) cells.
        IMAGENET: the library that offers its ImageNet weights; None if no library does.
        INITIAL: if no library does, the file to start from.
        LEFT_OUT: patterns of published tensor names that are not part of the body.
    """

    channels: list[int]
    strides: list[int]
    IMAGENET: ClassVar[Literal["torchvision", "timm"] | None]
    INITIAL: ClassVar[str] = "a state dict of the backbone"
    LEFT_OUT: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a published state dict to the names used here; a state dict with these names is returned unchanged.

        Unknown names are kept, so that the caller can refuse them.
        """

    @abstractmethod
    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        """The features; the last is the deepest."""


class Backbone(Body):
    """A body whose first layers can be frozen."""

    @abstractmethod
    def parameters_until(self, feature: int) -> list[nn.Parameter]:
        """The parameters of all layers that compute feature number `feature`."""
