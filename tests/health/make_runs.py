"""Make the runs that health notes are calibrated on: a good one, and spoiled ones, all of the CAM classifier on generated pictures.

    wsss data shapes SHAPES --train 200 --val 20 --size 112
    python -m tests.health.make_runs SHAPES RUNS tests/data/health

It keeps what the notes are computed from: tags, descriptions of the pictures, statistics of the maps, and shares of the labels in masks and
predictions. About 10 minutes on two free cores; finished stages are kept in RUNS.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

import wsss
from wsss.data.augment import ClassifierAugment, SegmenterAugment
from wsss.data.files import read_mask
from wsss.data.images import Images
from wsss.data.maps import read_matching_cams
from wsss.health.maps import map_statistics
from wsss.health.masks import PREDICTED, label_shares
from wsss.health.sample import sampled
from wsss.loading import started_from
from wsss.methods.cam import CAMInference, CAMSettings
from wsss.networks.deeplab import DeepLabLayers
from wsss.ops.thresholds import BINS, highest_values
from wsss.refiners.crf import MaskSettings, refine
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.stages.localize import localize
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.stages.train import Training, train

# as wsss/configs/demo_cam.yaml
SCALES = CAMInference(scales=(1.0, 0.75, 1.5))
THRESHOLD = 0.42
SEGMENTER = DeepLabSettings(
    network=DeepLabLayers(
        backbone="test_resnet", output_stride=8, atrous_rates=(1, 2, 4), pyramid_scales=(), batch_norm="live"
    ),
    init="classifier",
    augment=SegmenterAugment(scales=(0.75, 1.0, 1.25), crop=96),
    training=Training(
        batch=16, accumulate=1, epochs=40, steps=None, optimizer="adamw", lr=0.001, weight_decay=0.05, warmup=50
    ),
)


def classifier(lr: float = 0.003) -> CAMSettings:
    return CAMSettings(
        backbone="test_resnet",
        output_stride=8,
        init="none",
        classifier_lr=1.0,
        augment=ClassifierAugment(long_side=(88, 120), crop=104),
        training=Training(batch=16, epochs=15, optimizer="adamw", lr=lr, weight_decay=0.05, warmup=50),
    )


def described(images: Images, weights: Path) -> np.ndarray:
    localizer = SCALES.localizer(images, weights=weights)
    return np.array([localizer.describe(images.read(index)) for index in range(len(images))])


def of_maps(images: Images, cams: Path) -> dict[str, np.ndarray]:
    found, histogram = [], np.zeros(BINS, np.int64)
    for index in sampled(images):
        classes, maps = read_matching_cams(images, cams, index, images.size_hw(index))
        found += map_statistics(classes, maps)
        histogram += highest_values(maps)
    return {"maps": np.array(found, np.float32), "histogram": histogram}


def of_masks(images: Images, masks: Path) -> np.ndarray:
    return np.array(
        [label_shares(read_mask(masks / f"{images.names[index]}.png"), images.n_labels) for index in sampled(images)]
    )


def of_segmenter(images: Images, weights: Path) -> dict[str, np.ndarray]:
    segmenter = Segmenter(weights, PredictSettings(scales=(1.0,), flip=False))
    chosen = sampled(images, PREDICTED)
    shares = [label_shares(segmenter(images.read(index)), images.n_labels) for index in chosen]
    return {"predictions": np.array(shares, np.float32), "predicted_labels": images.labels[chosen]}


def spoiled(images: Images) -> dict[str, tuple[Images, float]]:
    """Pictures with spoiled tags, and the learning rate, by name of the run."""
    shuffled = images.labels[np.random.default_rng(0).permutation(len(images))]
    together = images.labels.copy()
    together[:, :2] = together[:, :2].any(1, keepdims=True)
    one = dataclasses.replace(images, class_names=("shape",), labels=np.ones((len(images), 1), bool))
    one = dataclasses.replace(one, masks=(None,) * len(images))
    return {
        "shuffled": (dataclasses.replace(images, labels=shuffled), 0.003),
        "one-class": (one, 0.003),
        "together": (dataclasses.replace(images, labels=together), 0.003),
        "rate-0.3": (images, 0.3),
        "rate-3": (images, 3.0),
    }


def run(images: Images, lr: float, folder: Path, threshold: float = THRESHOLD) -> dict[str, np.ndarray]:
    weights = train(classifier(lr), images, out=folder / "classifier")
    cams = localize(SCALES, images, weights=weights, out=folder / "cams")
    settings = MaskSettings(by="crf", threshold=threshold)
    masks = refine(settings, images, cams=cams, out=folder / f"masks-{threshold}")
    return {
        "labels": images.labels,
        "descriptions": described(images, weights).astype(np.float16),
        **of_maps(images, cams),
        "masks": of_masks(images, masks).astype(np.float32),
    }


def segmented(images: Images, folder: Path, training: Training, name: str) -> dict[str, np.ndarray]:
    settings = dataclasses.replace(SEGMENTER, training=training)
    started = started_from(settings, "segmenter.init", folder / "classifier")
    weights = train(started, images, masks=folder / f"masks-{THRESHOLD}", out=folder / name)
    return of_segmenter(images, weights)


def main(shapes: Path, runs: Path, out: Path) -> None:
    images = wsss.open_dataset(shapes).split("train")
    out.mkdir(parents=True, exist_ok=True)
    made = run(images, 0.003, runs / "good")
    for name, threshold in (("threshold-0", 0.0), ("threshold-1", 1.0)):
        masks = run(images, 0.003, runs / "good", threshold)["masks"]
        np.savez_compressed(out / f"{name}.npz", labels=images.labels, masks=masks)
    once = dataclasses.replace(SEGMENTER.training, epochs=None, steps=1)
    one_step = segmented(images, runs / "good", once, "segmenter-1")
    np.savez_compressed(out / "segmenter-1-step.npz", labels=images.labels, **one_step)
    for name, (pictures, lr) in spoiled(images).items():
        np.savez_compressed(out / f"{name}.npz", **run(pictures, lr, runs / name))
    made |= segmented(images, runs / "good", SEGMENTER.training, "segmenter")
    np.savez_compressed(out / "good.npz", **made)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
