"""What all recipes end with: maps -> pseudo masks -> segmenter -> predictions -> scores -> report."""

import dataclasses
from pathlib import Path
from typing import Literal

from wsss.data.images import Dataset
from wsss.errors import BadInput
from wsss.refiners.affinitynet import Refinement as AffinityNetSettings
from wsss.refiners.irnet import Refinement as IRNetSettings
from wsss.stages.evaluate import ScoreSettings, best_threshold, evaluate_cams, evaluate_masks
from wsss.stages.predict import PredictSettings, predict
from wsss.stages.refine import Settings as RefineSettings
from wsss.stages.refine import refine
from wsss.stages.report import report
from wsss.stages.segment import Settings as SegmenterSettings
from wsss.stages.train import train
from wsss.weights import classifier_weights


@dataclasses.dataclass(frozen=True)
class Tail:
    """From activation maps to a scored segmenter."""

    refiner: Literal["crf", "irnet", "affinitynet"] = "crf"
    """what makes pseudo masks of the maps: `refine` alone, or a learned affinity"""
    refine: RefineSettings = RefineSettings()
    """maps to pseudo masks without learning"""
    irnet: IRNetSettings = IRNetSettings()
    """maps to pseudo masks by IRNet"""
    affinitynet: AffinityNetSettings = AffinityNetSettings()
    """maps to pseudo masks by AffinityNet"""
    segmenter: SegmenterSettings = SegmenterSettings()
    """the segmenter that learns from them"""
    test: PredictSettings = PredictSettings()
    """how the segmenter is tested"""
    scores: ScoreSettings = ScoreSettings()
    """how everything is scored"""

    def __post_init__(self) -> None:
        if self.refine.by == "scores" and self.refine.exponent is None and self.scores.background != "power":
            raise BadInput(
                "scores.background",
                self.scores.background,
                "`power` where the best refine.exponent is to be found",
                "Set it, or the exponent.",
            )

    def check(self, classifier: bool, usual: SegmenterSettings | None = None) -> None:
        """Raise BadInput for settings that cannot work, before hours are spent on what comes first.

        Args:
            classifier: whether a trained classifier gives the maps.
            usual: the recipe's own settings of the segmenter.
        """
        learned: IRNetSettings | AffinityNetSettings | None = None
        if self.refiner != "crf":
            learned = self.irnet if self.refiner == "irnet" else self.affinitynet
        if learned is not None:
            learned.check()
        if not classifier:
            if learned is not None and learned.weights == "none" and learned.network.init == "classifier":
                classifier_weights(f"{self.refiner}.network.init", None)
            self.segmenter.starting_from(None)
        self.segmenter.check(usual)


def finish(run: Path, data: Dataset, cams: Path, settings: Tail, classifier: Path | None = None) -> None:
    """Pseudo masks of the training pictures, a segmenter, its predictions on val; scores wherever there are true masks.

    Args:
        run: folder of the run.
        data: with a split to train on.
        cams: folder of the activation maps of that split.
        settings: of all that follows.
        classifier: folder of the network that gave the maps, for a segmenter that starts from it.
    """
    images = data.split(data.train)
    seeds, found = None, None
    if data.scored_split:
        seeds = data.split(data.scored_split)
        scored = evaluate_cams(settings.scores, seeds, cams=cams, out=run / "cams-scores")
        found = best_threshold(scored)
    if settings.refiner == "irnet":
        masks = settings.irnet.refined(
            images, cams=cams, out=run, classifier=classifier, seeds=seeds, scores=settings.scores
        )
    elif settings.refiner == "affinitynet":
        masks = settings.affinitynet.refined(images, cams=cams, out=run, classifier=classifier)
    else:
        masks = refine(settings.refine.at(found), images, cams=cams, out=run / "masks")
    if seeds is not None:
        evaluate_masks(settings.scores, seeds, masks=masks, out=run / "masks-scores")
    segmenter = train(settings.segmenter.starting_from(classifier), images, masks=masks, out=run / "segmenter")
    if data.val:
        val = data.split(data.val)
        predictions = predict(settings.test, val, weights=segmenter, out=run / "predictions")
        if val.has_masks:
            evaluate_masks(settings.scores, val, masks=predictions, out=run / "predictions-scores")
    report(run, data)
