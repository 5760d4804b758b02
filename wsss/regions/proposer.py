"""The interface of proposers of regions."""

from typing import Any, Protocol

import numpy as np

from wsss.arrays import UInt8
from wsss.ops.regions import Regions


class Proposer(Protocol):
    """Proposes regions; `prepare` runs ahead in threads, `regions` on the device of the network."""

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Any:
        """The part of the work that needs no network, for one picture (RGB)."""

    def regions(self, prepared: Any) -> Regions:
        """The regions of a picture, at its size."""


class Proposable(Protocol):
    """Settings that can build their proposer."""

    @property
    def title(self) -> str:
        """What proposes the regions, for reports and records."""

    def check(self) -> None:
        """Raise BadInput for settings or weights that cannot be used, before a picture is decoded."""

    def proposer(self) -> Proposer:
        """The proposer, on the device of this process."""
