"""The interface of refiners."""

import dataclasses
from pathlib import Path
from typing import Protocol

from wsss.data.images import Images
from wsss.networks.body import Backbone
from wsss.stages.evaluate import ScoreSettings


@dataclasses.dataclass(frozen=True)
class RefinementTask:
    """Activation maps to be turned into pseudo masks.

    Attributes:
        images: the pictures.
        cams: folder of their activation maps.
        out: folder of the run; the masks are written to `out/masks`, and intermediate results next to them.
        classifier: folder or weights file of the network that produced the maps, for `init: classifier`.
        scored: pictures with true masks, to score intermediate maps on; None if there are none.
        scores: how maps are scored.
        best: the best threshold or exponent for these maps on the pictures with true masks; None if there are none.
        trained: folder of a run whose trained network is reused; None to train one here.
        suffix: appended to the names of all folders.
    """

    images: Images
    cams: Path
    out: Path
    classifier: Path | None = None
    scored: Images | None = None
    scores: ScoreSettings = ScoreSettings()
    best: float | None = None
    trained: Path | None = None
    suffix: str = ""

    def folder(self, name: str) -> Path:
        """The folder of the stage with this name."""
        return self.out / f"{name}{self.suffix}"


class Refiner(Protocol):
    """Settings of a refiner; `kind` is its name."""

    kind: str

    def check(self, classifier: Path | Backbone | None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs.

        Args:
            classifier: the network that produces the maps, for `init: classifier`; see `wsss.loading.check_initial`.
        """

    def refined(self, task: RefinementTask) -> Path:
        """Make the pseudo masks, and return their folder."""
