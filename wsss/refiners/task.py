"""What a refiner is given, and what one is."""

import dataclasses
from pathlib import Path
from typing import Protocol

from wsss.data.images import Images
from wsss.networks.body import Backbone
from wsss.stages.evaluate import ScoreSettings


@dataclasses.dataclass(frozen=True)
class RefinementTask:
    """Activation maps that are to become pseudo masks.

    Attributes:
        images: the pictures.
        cams: folder of their activation maps.
        out: folder of the run; the masks go to `out/masks`, and whatever is made on the way lies next to them.
        classifier: folder, or file of the weights, of the network that gave the maps, for `init: classifier`.
        scored: those of the pictures that have true masks, to score maps on that are made on the way.
        scores: how they are scored.
        found: the best threshold or exponent for these maps on the pictures with true masks; None where there are none.
        learned: a run whose learned network is used; None to learn it here.
        suffix: of the folders' names.
    """

    images: Images
    cams: Path
    out: Path
    classifier: Path | None = None
    scored: Images | None = None
    scores: ScoreSettings = ScoreSettings()
    found: float | None = None
    learned: Path | None = None
    suffix: str = ""

    def folder(self, name: str) -> Path:
        """Where a stage of that name writes."""
        return self.out / f"{name}{self.suffix}"


class Refiner(Protocol):
    """Settings of a refiner; `kind` is its name."""

    kind: str

    def check(self, classifier: Path | Backbone | None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs.

        Args:
            classifier: what gives the maps, for `init: classifier`; see `wsss.loading.check_initial`.
        """

    def refined(self, task: RefinementTask) -> Path:
        """The folder of the pseudo masks."""
