"""Propose class-agnostic regions: one file per picture, which every method can use."""

import math
from functools import partial
from pathlib import Path
from typing import Any

from wsss.data.images import Images
from wsss.ops.regions import Regions
from wsss.regions.files import SUFFIX, write_regions
from wsss.regions.proposer import Proposable
from wsss.run import stage
from wsss.stages.each import for_each_picture, read_prepared, within_budget

# for each pixel, from picture to file: 48 of `tree` at 2 megapixels, 17 at 24 (benchmarks/memory.py --stages regions)
_BYTES = 50


@stage(kind="propose", makes="regions", title=None)
def propose(settings: Proposable, images: Images, *, out: Path) -> dict[str, Any]:
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
    needs = within_budget(images, lambda _, size_hw: _BYTES * math.prod(size_hw), ", or shrink the picture")
    for_each_picture(images, out, SUFFIX, load, compute, write_regions, title=f"propose {out.name}", needs=needs)
    return {"images": len(images)}
