"""The interface of refiners."""

import dataclasses
from pathlib import Path
from typing import Literal, Protocol

from wsss.data.images import Images
from wsss.metrics import Background
from wsss.networks.body import Backbone
from wsss.stages.evaluate import ScoreSettings
from wsss.stages.thresholds import choose_thresholds

# How a threshold or exponent is chosen: from the values of the maps, or on true masks
Rule = Literal["otsu", "otsu_sqrt", "best"]


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
        cams_scores: folder of the scores of these maps; None if no picture has a true mask.
        trained: folder of a run whose trained network is reused; None to train one here.
        suffix: appended to the names of all folders.
        regions: folder of the regions that the maps were made in, if they were.
    """

    images: Images
    cams: Path
    out: Path
    classifier: Path | None = None
    scored: Images | None = None
    scores: ScoreSettings = ScoreSettings()
    cams_scores: Path | None = None
    trained: Path | None = None
    suffix: str = ""
    regions: Path | None = None

    def folder(self, name: str) -> Path:
        """The folder of the stage with this name."""
        return self.out / f"{name}{self.suffix}"

    def thresholds(self, rule: Rule | None, cams: Path, name: str, scores: Path | None) -> Path | None:
        """The folder of the stage that chooses the threshold or exponent of maps; None if none is to be chosen.

        If the trained network of another run is reused, so is its choice.

        Args:
            rule: how it is chosen.
            cams: folder of the maps.
            name: name of that folder.
            scores: folder of the scores of these maps, or of those made from them, for `best`.
        """
        if rule is not None and rule != "best":
            known = self.trained / f"{name}-threshold" if self.trained is not None else None
            return known or choose_thresholds(self.images, cams=cams, out=self.folder(f"{name}-threshold"))
        return None if rule is None else scores


class Refiner(Protocol):
    """Settings of a refiner; `kind` is its name."""

    kind: str

    def check(self, classifier: Path | Backbone | None, scored: Background | None = None) -> None:
        """Raise BadInput for settings that cannot work, before any stage runs.

        Args:
            classifier: the network that produces the maps, for `init: classifier`; see `wsss.loading.check_initial`.
            scored: the background score with which the maps will be scored on true masks; None if they will not be.
        """

    def refined(self, task: RefinementTask) -> Path:
        """Make the pseudo masks, and return their folder."""
