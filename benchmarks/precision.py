"""Inference and training in bfloat16 against float32: the ratio of CPU seconds, how much maps and probabilities change, and mIoU.

    OMP_NUM_THREADS=1 python benchmarks/precision.py [--backbone resnet50] [--side 500] [--repeats 3]
    OMP_NUM_THREADS=1 python benchmarks/precision.py --data DATA --run RUN [--pictures 50]
    OMP_NUM_THREADS=1 python benchmarks/precision.py --data DATA --train FOLDER [--steps 300] [--seeds 0 1 2] [--pictures 50]

Without data, random weights and a generated picture: CAM's maps at scale 1, a training step with 2 pictures of 256 pixels, and CLIP-ES's maps.
With a run folder that `wsss run cam` made from DATA: mIoU of its classifier's maps on `train`, at the threshold that is best in float32, and of
its segmenter on `val`, both in float32 and in bfloat16. With --train, a small DeepLab v2 is trained from scratch on the true masks of DATA, a
folder in VOC's layout, in float32 and in bfloat16, for each seed: mIoU of its predictions in float32 on `val`. Says so if the processor has no
instructions for bfloat16: the ratios then say nothing about one that has.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import clip_es as published  # benchmarks/clip_es.py
import numpy as np
import torch
import torch.nn.functional as F

import wsss
from wsss.classifier import CAMLocalizer, CAMNetwork, MultiScale, load
from wsss.data.augment import SegmenterAugment
from wsss.data.images import Dataset, Images
from wsss.methods import clip_es
from wsss.metrics import ConfusionMatrix, ThresholdSweep, scores
from wsss.networks.deeplab import DeepLabLayers
from wsss.networks.inference import for_inference
from wsss.precision import Precision, mixed
from wsss.processor import INSTRUCTIONS, has_native
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.stages.train import Training, train

PRECISIONS: tuple[Precision, ...] = ("no", "bf16")
THRESHOLDS = tuple(np.linspace(0.1, 0.7, 25).tolist())


def alternately(ways: dict[Precision, Callable[[], object]], repeats: int) -> dict[Precision, float]:
    """The least CPU seconds of each way."""
    least = dict.fromkeys(ways, np.inf)
    for _ in range(repeats):
        for name, run in ways.items():
            before = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - before)
    return least


def speed(backbone: str, side: int, repeats: int) -> None:
    """Print the ratios, and the largest change of the maps."""
    torch.manual_seed(0)
    network = CAMNetwork(backbone, 20).eval()
    prepared = for_inference(copy.deepcopy(network))
    image = np.random.default_rng(0).integers(0, 256, (3 * side // 4, side, 3), np.uint8)
    label, maps = np.arange(20) < 2, {}

    def localize(precision: Precision) -> None:
        localizer = CAMLocalizer(prepared, MultiScale((1.0,), precision=precision))
        maps[precision] = localizer.cams(localizer.prepare(image), image.shape[:2], label).maps

    batch = torch.randn(2, 3, 256, 256)

    def step(precision: Precision) -> None:
        with mixed(precision, torch.device("cpu")):
            loss = network(batch).float().square().mean()
        loss.backward()
        network.zero_grad()

    for title, run in (("maps at scale 1", localize), ("training step", step)):
        least = alternately({one: partial(run, one) for one in PRECISIONS}, repeats)
        ratio = least["no"] / least["bf16"]
        print(f"{backbone}, {title}: float32 {least['no']:.2f} s, bfloat16 {least['bf16']:.2f} s, ratio {ratio:.2f}")
    print(f"largest change of a map: {np.abs(maps['no'] - maps['bf16']).max():.4f}")


def of_clip_es(side: int, repeats: int) -> None:
    """Print the ratio and the largest change of CLIP-ES's maps of a generated picture with two labels."""
    torch.manual_seed(0)
    clip = published.new_clip().requires_grad_(False)
    classes, backgrounds = (F.normalize(torch.randn(n, 512), dim=1) for n in (published.CLASSES, published.BACKGROUNDS))
    image = published.INPUTS["image"](3 * side // 4, side, 0)
    label, maps = np.arange(published.CLASSES) < 2, {}

    def localize(precision: Precision) -> None:
        settings = clip_es.CLIPESInference(precision=precision)
        localizer = clip_es.CLIPESLocalizer(clip, classes, backgrounds, settings, clip_es.BOX_THRESHOLD)
        maps[precision] = localizer.cams(localizer.prepare(image), image.shape[:2], label).maps

    least = alternately({one: partial(localize, one) for one in PRECISIONS}, repeats)
    ratio = least["no"] / least["bf16"]
    print(f"ViT-B/16, CLIP-ES: float32 {least['no']:.2f} s, bfloat16 {least['bf16']:.2f} s, ratio {ratio:.2f}")
    print(f"largest change of its maps: {np.abs(maps['no'] - maps['bf16']).max():.4f}")


def of_maps(images: Images, weights: Path) -> None:
    """Print the change of the maps of a classifier, and of their mIoU."""
    network, metadata = load(weights, images)
    for_inference(network.eval())
    sweeps = {one: ThresholdSweep(THRESHOLDS, len(images.class_names)) for one in PRECISIONS}
    changes = []
    for index in range(len(images)):
        image, truth, made = images.read(index), images.read_mask(index), {}
        for one in PRECISIONS:
            localizer = CAMLocalizer(network, MultiScale((1.0, 0.75, 1.5), precision=one), metadata["colours"])
            made[one] = localizer.cams(localizer.prepare(image), image.shape[:2], images.labels[index])
            sweeps[one].add(truth, made[one].maps, made[one].classes, images.names[index])
        changes.append(np.abs(made["no"].maps - made["bf16"].maps).max(initial=0))
    threshold, best = sweeps["no"].best()
    half = sweeps["bf16"].scores()[THRESHOLDS.index(threshold)]
    print(f"maps of {len(images)} pictures: change at most {max(changes):.4f}, median {np.median(changes):.4f}")
    shown(f"at threshold {threshold:.3f}", best.miou, half.miou)


def of_predictions(images: Images, weights: Path) -> None:
    """Print the change of the probabilities of a segmenter, and of its mIoU."""
    segmenters = {one: Segmenter(weights, PredictSettings(precision=one)) for one in PRECISIONS}
    counts = {one: ConfusionMatrix(len(images.class_names) + 1) for one in PRECISIONS}
    change = 0.0
    for index in range(len(images)):
        image, truth = images.read(index), images.read_mask(index)
        made = {name: one.probabilities(one.prepare(image)) for name, one in segmenters.items()}
        for one in PRECISIONS:
            counts[one].add(truth, made[one].argmax(0).astype(np.uint8), images.names[index])
        change = max(change, float(np.abs(made["no"] - made["bf16"]).max()))
    print(f"probabilities of {len(images)} pictures: change at most {change:.4f}")
    shown("predictions", *(scores(counts[one].counts).miou for one in PRECISIONS))


def of_training(data: Dataset, folder: Path, steps: int, seeds: Sequence[int], pictures: int) -> None:
    """Print the mIoU of a segmenter that was trained in each precision, for each seed; finished trainings in `folder` are not repeated."""
    val = data.split("val")
    val = val.subset(range(min(pictures, len(val))))
    found: dict[Precision, list[float]] = {one: [] for one in PRECISIONS}
    layers = DeepLabLayers("test_resnet", 8, (1, 2, 4), (), batch_norm="live")
    for seed, precision in itertools.product(seeds, PRECISIONS):
        training = Training(batch=8, accumulate=1, epochs=None, steps=steps, optimizer="adamw", lr=3e-3, weight_decay=0.05, warmup=20,
                            seed=seed, precision=precision)  # fmt: skip
        augment = SegmenterAugment(scales=(0.75, 1.0), crop=64)
        settings = DeepLabSettings(network=layers, init="none", augment=augment, training=training)
        torch.manual_seed(seed)
        before = time.process_time()
        train(settings, data.split("train"), masks=data.root / "SegmentationClass", out=folder / f"{precision} {seed}")
        spent = time.process_time() - before
        segmenter, counts = (
            Segmenter(folder / f"{precision} {seed}", PredictSettings()),
            ConfusionMatrix(len(val.class_names) + 1),
        )
        for index in range(len(val)):
            made = segmenter.probabilities(segmenter.prepare(val.read(index)))
            counts.add(val.read_mask(index), made.argmax(0).astype(np.uint8), val.names[index])
        miou = scores(counts.counts).miou
        assert miou is not None
        found[precision].append(100 * miou)
        print(f"seed {seed}, {precision}: mIoU {100 * miou:.2f}, {spent:.0f} CPU s", flush=True)
    means = {one: np.mean(values) for one, values in found.items()}
    print(
        f"mean mIoU: float32 {means['no']:.2f}, bfloat16 {means['bf16']:.2f}, change {means['bf16'] - means['no']:+.2f}"
    )


def shown(title: str, single: float | None, half: float | None) -> None:
    assert single is not None
    assert half is not None
    print(f"{title}: mIoU float32 {100 * single:.2f}, bfloat16 {100 * half:.2f}, change {100 * (half - single):+.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--side", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--train", type=Path, help="folder for trained segmenters")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--pictures", type=int, default=50, help="of each split")
    options = parser.parse_args()
    if not has_native("bf16"):
        missing = " nor ".join(INSTRUCTIONS["bf16"])
        print(f"this processor has neither {missing}: the times say nothing about one that has, the changes do")
    if options.data is None:
        speed(options.backbone, options.side, options.repeats)
        of_clip_es(options.side, options.repeats)
        return
    data = wsss.open_dataset(options.data)
    if options.train is not None:
        of_training(data, options.train, options.steps, options.seeds, options.pictures)
        return
    for split, measure, part in (("train", of_maps, "classifier"), ("val", of_predictions, "segmenter")):
        images = data.split(split)
        measure(images.subset(range(min(options.pictures, len(images)))), options.run / part)


if __name__ == "__main__":
    main()
