"""The options of `wsss review` and `wsss try`."""

import dataclasses
from pathlib import Path
from typing import Literal

from wsss.arguments import switch
from wsss.options import ReadingOptions


@dataclasses.dataclass(frozen=True)
class PageOptions:
    """How a page is served, on this machine only."""

    port: int = 0
    """port on 127.0.0.1; 0 chooses a free one"""
    open: bool = switch()
    """open the page in the default browser"""


@dataclasses.dataclass(frozen=True)
class ReviewOptions(PageOptions, ReadingOptions):
    """Options of `wsss review`."""

    run: Path | None = dataclasses.field(default=None, metadata={"positional": True})
    """run folder, whose masks and maps are shown; without one, only tags are reviewed"""
    data: Path | None = None
    """dataset; by default the one that the run was made from"""
    split: str | None = None
    """split to review; by default the training split"""
    masks: Path | None = None
    """folder of masks to correct; by default RUN/masks"""
    cams: Path | None = None
    """folder of activation maps to show; by default RUN/cams"""
    out: Path | None = None
    """output folder for tags.csv and corrected/NAME.png; by default RUN/review, or `review` without a run"""


@dataclasses.dataclass(frozen=True)
class TryOptions(PageOptions):
    """Options of `wsss try`."""

    run: Path = dataclasses.field(default=None, metadata={"positional": True, "required": True})  # type: ignore[assignment]
    """run folder, folder of a trained segmenter, or its weights file"""
    device: Literal["auto", "cpu"] = "auto"
    """auto uses a GPU if there is one"""
