"""The CLIP that comes with the package: it finds the generated shapes, and each step of CLIP-ES finds them better."""

import numpy as np
import pytest

from wsss.configs import CONFIGS
from wsss.configs.make_demo_clip import draw
from wsss.data.open import open_dataset
from wsss.data.shapes import GROUNDS, SHAPES, make_shapes
from wsss.methods.clip_es import CLIPESInference
from wsss.refiners.crf import MaskSettings, refine
from wsss.stages.evaluate import ScoreSettings, best_threshold, evaluate_cams, evaluate_masks
from wsss.stages.localize import localize
from wsss.storage import read_json

CLIP = CONFIGS / "demo_clip"


@pytest.mark.usefixtures("one_torch_thread")
def test_maps_then_spread_maps_then_crf(tmp_path):
    images = open_dataset(make_shapes(tmp_path / "shapes", train=1, val=60, size=112, seed=3)).split("val")
    scored = {}
    settings = ScoreSettings(background="power", thresholds=(1.0, 2.0, 3.0, 5.0), contour=False)
    for refined in (False, True):
        inference = CLIPESInference(
            clip=str(CLIP), words=str(CLIP / "words.yaml"), attention_blocks=3, refined=refined, cache=False
        )
        cams = localize(inference, images, out=tmp_path / f"cams-{refined}")
        scored[refined] = evaluate_cams(settings, images, cams=cams, out=tmp_path / f"scores-{refined}")
    crf = MaskSettings(by="scores", crf="irn", exponent=best_threshold(scored[True]))
    masks = refine(crf, images, cams=tmp_path / "cams-True", out=tmp_path / "masks")
    last = evaluate_masks(settings, images, masks=masks, out=tmp_path / "masks-scores")
    first, spread, certain = (
        read_json(folder / "scores.json", "scores")["scores"]["miou"] for folder in (scored[False], scored[True], last)
    )
    assert 0.2 < first < spread < certain


def test_pictures_that_it_learned_from():
    for index in range(0, 40, 7):
        image, shown = draw(index)
        assert image.shape == (72, 72, 3)
        assert image.dtype == np.uint8
        assert shown[-1] in (*GROUNDS, "water")
        assert set(shown[:-1]) <= set(SHAPES)
        np.testing.assert_array_equal(draw(index)[0], image)
