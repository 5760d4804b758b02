"""What all recipes end with: maps -> pseudo masks -> segmenter -> predictions -> scores -> report."""

import dataclasses
from pathlib import Path

from wsss.data.images import Dataset
from wsss.run import stage_folders
from wsss.stages import evaluate, predict, refine, report, segment
from wsss.stages.train import train


@dataclasses.dataclass(frozen=True)
class Tail:
    """From activation maps to a scored segmenter."""

    refine: refine.Settings = refine.Settings()
    """maps to pseudo masks"""
    segmenter: segment.Settings = segment.Settings()
    """the segmenter that learns from them"""
    test: predict.Settings = predict.Settings()
    """how the segmenter is tested"""
    scores: evaluate.Settings = evaluate.Settings()
    """how everything is scored"""


def finish(run: Path, data: Dataset, cams: Path, settings: Tail) -> None:
    """Pseudo masks of the training pictures, a segmenter, its predictions on val; scores wherever there are true masks."""
    images = data.split(data.train)
    threshold = refine.DEFAULT_THRESHOLD
    if data.seed_split:
        seeds = data.split(data.seed_split)
        scored = evaluate.evaluate_cams(settings.scores, seeds, cams=cams, out=run / "cams-scores")
        threshold = evaluate.best_threshold(scored)
    masks = refine.refine(settings.refine.at(threshold), images, cams=cams, out=run / "masks")
    if data.seed_split:
        evaluate.evaluate_masks(settings.scores, seeds, masks=masks, out=run / "masks-scores")
    segmenter = train(settings.segmenter, images, masks=masks, out=run / "segmenter")
    if data.val:
        val = data.split(data.val)
        predictions = predict.predict(settings.test, val, weights=segmenter, out=run / "predictions")
        if val.has_masks:
            evaluate.evaluate_masks(settings.scores, val, masks=predictions, out=run / "predictions-scores")
    report.report(run, data)
