"""What do a few corrected masks add? Trains a segmenter on the pseudo masks of a run, without and with corrections.

    python benchmarks/corrections.py --data DATA --run RUN --out OUT --correct 10 --weights 1,2,4,8 --seeds 0,1

A person who corrects masks is imitated: the pictures whose pseudo masks agree least with the true masks get the true masks. The run must
have a classifier and pseudo masks (`wsss run cam --config wsss/configs/demo_cam.yaml`), and the data true masks of both splits.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

import wsss
from wsss.data.augment import SegmenterAugment
from wsss.data.files import read_mask, write_mask
from wsss.data.images import IGNORE, Images
from wsss.networks.deeplab import DeepLabLayers
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.stages.evaluate import SCORES, ScoreSettings, evaluate_masks
from wsss.stages.predict import PredictSettings, predict
from wsss.stages.train import Training, train
from wsss.storage import read_json


def main() -> None:
    """Print a table: mIoU on val for each weight and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--run", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--correct", type=int, default=10, help="number of corrected masks")
    parser.add_argument("--weights", default="1,2,4,8", help="values of segmenter.corrected_weight")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=240)
    options = parser.parse_args()
    data = wsss.open_dataset(options.data)
    images, val, seeds = data.split("train"), data.split("val"), [int(seed) for seed in options.seeds.split(",")]
    corrected = options.out / "corrected"
    for index in worst(images, options.run / "masks")[: options.correct]:
        write_mask(corrected / f"{images.names[index]}.png", images.read_mask(index))
    rows: dict[str, list[float]] = {}
    for weight in (0, *map(int, options.weights.split(","))):
        title = f"{options.correct} corrected, weight {weight}" if weight else "no corrections"
        for seed in seeds:
            out = options.out / f"weight {weight} seed {seed}"
            settings = segmenter(options.run, max(weight, 1), seed, options.steps)
            inputs = {"corrected": corrected} if weight else {}
            trained = train(settings, images, masks=options.run / "masks", out=out / "segmenter", **inputs)
            masks = predict(PredictSettings(), val, weights=trained, out=out / "predictions")
            scored = evaluate_masks(ScoreSettings(), val, masks=masks, out=out / "scores")
            rows.setdefault(title, []).append(100 * read_json(scored / SCORES, "scores")["scores"]["miou"])
            print(f"{title}, seed {seed}: {rows[title][-1]:.1f}", flush=True)
    print(f"\n| segmenter | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |\n|---|{'---|' * (len(seeds) + 1)}")
    for title, scores in rows.items():
        print(f"| {title} | {' | '.join(f'{score:.1f}' for score in scores)} | {np.mean(scores):.1f} |")


def worst(images: Images, masks: Path) -> list[int]:
    """The pictures by the mean IoU of the labels in their pseudo mask or true mask, lowest first."""
    found = [agreement(images.read_mask(i), read_mask(masks / f"{name}.png")) for i, name in enumerate(images.names)]
    return np.argsort(found, kind="stable").tolist()


def agreement(truth: np.ndarray, mask: np.ndarray) -> float:
    """The mean IoU of the labels that occur in one of two masks, without pixels that are ignored in the true one."""
    truth, mask = truth[truth != IGNORE], mask[truth != IGNORE]
    pairs = [(truth == label, mask == label) for label in np.union1d(truth, mask)]
    return float(np.mean([(one & other).sum() / (one | other).sum() for one, other in pairs]))


def segmenter(run: Path, weight: int, seed: int, steps: int) -> DeepLabSettings:
    """The segmenter of `demo_cam.yaml` with smaller batches, trained for a fixed number of updates."""
    training = Training(
        batch=8, epochs=None, steps=steps, optimizer="adamw", lr=1e-3, weight_decay=0.05, poly_every=10, warmup=50
    )
    return DeepLabSettings(
        network=DeepLabLayers("test_resnet", 8, (1, 2, 4), (), batch_norm="live"),
        init=str(run / "classifier"),
        corrected_weight=weight,
        augment=SegmenterAugment(scales=(0.75, 1.0, 1.25), crop=96),
        training=dataclasses.replace(training, seed=seed),
    )


if __name__ == "__main__":
    main()
