"""What every body of a network offers besides being a module; each architecture knows the names it was published under."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn


class Body(nn.Module, ABC):
    """A network without its head, which gives features for RGB pictures normalised with ImageNet's mean and deviation.

    Attributes:
        channels: of each feature, the shallowest first.
        strides: of each feature, in pixels; a side of n pixels has ceil(n / stride) cells.
        IMAGENET: the library that offers its ImageNet weights; None if no library does.
        INITIAL: where no library does, the file to start from.
        LEFT_OUT: patterns of the published names that are not part of the body.
    """

    channels: list[int]
    strides: list[int]
    IMAGENET: ClassVar[Literal["torchvision", "timm"] | None]
    INITIAL: ClassVar[str] = "a state dict of the backbone"
    LEFT_OUT: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict under the names of its authors, or under those used here, under those used here.

        Names that it does not know stay, so that whoever loads them can refuse them.
        """

    @abstractmethod
    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c hs ws"]]:
        """The features; the last is the deepest."""


class Backbone(Body):
    """A body whose first layers can be frozen."""

    @abstractmethod
    def parameters_until(self, feature: int) -> list[nn.Parameter]:
        """The parameters of everything that feature number `feature` is made with."""
