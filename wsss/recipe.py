"""What all recipes end with: maps -> pseudo masks -> segmenter -> predictions -> scores -> report."""

import dataclasses
from pathlib import Path

from wsss.data.images import Dataset
from wsss.stages.evaluate import Settings as ScoreSettings
from wsss.stages.evaluate import best_threshold, evaluate_cams, evaluate_masks
from wsss.stages.predict import Settings as TestSettings
from wsss.stages.predict import predict
from wsss.stages.refine import DEFAULT_THRESHOLD, refine
from wsss.stages.refine import Settings as RefineSettings
from wsss.stages.report import report
from wsss.stages.segment import Settings as SegmenterSettings
from wsss.stages.train import train


@dataclasses.dataclass(frozen=True)
class Tail:
    """From activation maps to a scored segmenter."""

    refine: RefineSettings = RefineSettings()
    """maps to pseudo masks"""
    segmenter: SegmenterSettings = SegmenterSettings()
    """the segmenter that learns from them"""
    test: TestSettings = TestSettings()
    """how the segmenter is tested"""
    scores: ScoreSettings = ScoreSettings()
    """how everything is scored"""


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
    threshold = DEFAULT_THRESHOLD
    if data.seed_split:
        seeds = data.split(data.seed_split)
        scored = evaluate_cams(settings.scores, seeds, cams=cams, out=run / "cams-scores")
        threshold = best_threshold(scored)
    masks = refine(settings.refine.at(threshold), images, cams=cams, out=run / "masks")
    if data.seed_split:
        evaluate_masks(settings.scores, seeds, masks=masks, out=run / "masks-scores")
    segmenter = train(settings.segmenter.starting_from(classifier), images, masks=masks, out=run / "segmenter")
    if data.val:
        val = data.split(data.val)
        predictions = predict(settings.test, val, weights=segmenter, out=run / "predictions")
        if val.has_masks:
            evaluate_masks(settings.scores, val, masks=predictions, out=run / "predictions-scores")
    report(run, data)
