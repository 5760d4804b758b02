"""Propose class-agnostic regions: one file per picture, which every method can use."""

from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from wsss.data.images import Images
from wsss.ops.regions import Regions
from wsss.regions.files import SUFFIX, write_regions
from wsss.run import stage
from wsss.stages.each import for_each_picture, read_prepared


class Proposer(Protocol):
    """Proposes regions; `prepare` runs ahead in threads, `regions` on the device of the network."""

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Any:
        """The part of the work that needs no network, for one picture (RGB)."""

    def regions(self, prepared: Any) -> Regions:
        """The regions of a picture, at its size."""


class ProposerSettings(Protocol):
    """Settings that can build their proposer."""

    @property
    def title(self) -> str:
        """What proposes the regions, for reports and records."""

    def check(self) -> None:
        """Raise BadInput for settings or weights that cannot be used, before a picture is decoded."""

    def proposer(self) -> Proposer:
        """The proposer, on the device of this process."""


@stage(kind="propose", makes="regions", title=None)
def propose(settings: ProposerSettings, images: Images, *, out: Path) -> dict[str, Any]:
    """Write the regions of every picture as `NAME.npz` (see `wsss.regions.files`); pictures whose file exists are skipped.

    Args:
        settings: settings of the proposer.
        images: the pictures.
        out: the stage's folder.
    """
    proposer = settings.proposer()

    def compute(index: int, loaded: tuple[Any, tuple[int, int]]) -> Regions:
        return proposer.regions(loaded[0])

    load = partial(read_prepared, proposer.prepare, images)
    for_each_picture(images, out, SUFFIX, load, compute, write_regions, title=f"propose {out.name}")
    return {"images": len(images)}
