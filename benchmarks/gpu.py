"""A GPU against two threads of the CPU, with the results of both: one table, and an error if they differ by more than rounding.

    python benchmarks/gpu.py [--repeats 5]              on a machine with a CUDA device
    python benchmarks/gpu.py --device cpu --small       the same code without one, in a minute

Random weights and generated pictures. Maps of CAM (ResNet-50) and CLIP-ES (ViT-B/16) in float32 and bfloat16, of one picture and of several
of equal size together against one by one, predictions of DeepLab v2, the dense CRF, and training steps of DeepLab v2 at 321 pixels and of
the classifier of CAM and CLIMS at 512, each with the number of loader processes that it takes to keep up with the device.
"""

import argparse
import copy
import dataclasses
import itertools
import math
import runpy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wsss import open_dataset
from wsss.classifier import CAMLocalizer, CAMNetwork, MultiScale
from wsss.data.augment import ClassifierAugment, SegmenterAugment
from wsss.methods import clip_es
from wsss.networks.deeplab import DeepLabLayers, create_deeplab
from wsss.networks.inference import for_inference
from wsss.ops.crf import PRESETS, dense_crf, unary_from_scores
from wsss.precision import Precision, mixed
from wsss.stages.localize import Together
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.weights import write_weights

CLASSES = 20
PRECISIONS: tuple[Precision, ...] = ("no", "bf16")
# float32 on GPUs sums in another order, and convolutions may choose other algorithms
TOLERANCE = {"no": 2e-3, "bf16": 0.06}


class Sizes(NamedTuple):
    """How large everything is."""

    backbone: str = "resnet50"
    image: tuple[int, int] = (375, 500)
    batch: int = 8
    segmenter_crop: int = 321
    classifier_crop: int = 512
    # width and blocks of CLIP
    clip: tuple[int, int] = (768, 12)


SMALL = Sizes("test_resnet", (48, 64), 2, 65, 64, (64, 2))


def seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, Any]:
    """Least wall seconds of several runs after a first one, and the result."""
    result, least = run(), np.inf
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        before = time.perf_counter()
        result = run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - before)
    return least, result


class Table:
    """Prints rows, and compares results."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        print(f"| what | CPU, ms | {device.type}, ms | ratio | difference |\n|---|---|---|---|---|")

    def row(self, title: str, cpu: Callable[[], Any], other: Callable[[], Any], precision: Precision = "no") -> None:
        """Run both, print a row, and raise if the results differ."""
        slow, expected = seconds(cpu, torch.device("cpu"), 1)
        fast, found = seconds(other, self.device, self.repeats)
        difference = float(np.abs(np.asarray(expected) - np.asarray(found)).max())
        print(f"| {title} | {1000 * slow:.1f} | {1000 * fast:.1f} | {slow / fast:.1f} | {difference:.1e} |", flush=True)
        if difference > TOLERANCE[precision]:
            raise SystemExit(f"{title}: results differ by {difference:.1e}, more than {TOLERANCE[precision]:.0e}")


def of_cam(table: Table, sizes: Sizes) -> None:
    """Maps of one picture in each precision, and a batch of pictures of equal size."""
    torch.manual_seed(0)
    network = CAMNetwork(sizes.backbone, CLASSES).eval()
    here, there = (for_inference(copy.deepcopy(network).to(device)) for device in ("cpu", table.device))
    image = np.random.default_rng(0).integers(0, 256, (*sizes.image, 3), np.uint8)
    label = np.arange(CLASSES) < 2

    def maps(one: CAMNetwork, precision: Precision) -> np.ndarray:
        localizer = CAMLocalizer(one, MultiScale(precision=precision))
        return localizer.cams(localizer.prepare(image), sizes.image, label).maps

    for precision in PRECISIONS:
        table.row(f"CAM's maps, {precision}", partial(maps, here, "no"), partial(maps, there, precision), precision)
    together(table, "CAM", CAMLocalizer(there, MultiScale()), sizes, "no")


def together(table: Table, title: str, localizer: Together, sizes: Sizes, precision: Precision) -> None:
    """Maps of pictures of equal size, one by one and together, without their preparation, as `wsss localize` makes them."""
    rng = np.random.default_rng(1)
    prepared = [localizer.prepare(rng.integers(0, 256, (*sizes.image, 3), np.uint8)) for _ in range(sizes.batch)]
    labels = np.tile(np.arange(CLASSES) < 2, (sizes.batch, 1))

    def in_batches_of(size: int) -> list[np.ndarray]:
        batches = [slice(first, first + size) for first in range(0, sizes.batch, size)]
        return [one.maps for part in batches for one in localizer.cams_of(prepared[part], sizes.image, labels[part])]

    apart, expected = seconds(partial(in_batches_of, 1), table.device, table.repeats)
    joint, found = seconds(partial(in_batches_of, sizes.batch), table.device, table.repeats)
    difference = float(np.abs(np.array(expected) - np.array(found)).max())
    print(
        f"| maps of {title}, {sizes.batch} pictures on {table.device.type}, one by one and together "
        f"| {1000 * apart:.1f} | {1000 * joint:.1f} | {apart / joint:.1f} | {difference:.1e} |"
    )
    if difference > TOLERANCE[precision]:
        raise SystemExit(f"{title}: results differ by {difference:.1e} in a batch")


def of_clip_es(table: Table, sizes: Sizes) -> None:
    """Maps of CLIP-ES with two labels, in each precision."""
    benchmark = runpy.run_path(str(Path(__file__).parent / "clip_es.py"))
    generator = torch.Generator().manual_seed(1)
    classes, backgrounds = (F.normalize(torch.randn(n, 512, generator=generator), dim=1) for n in (CLASSES, 25))
    image = benchmark["INPUTS"]["image"](*sizes.image, 0)

    def localizer(device: torch.device, precision: Precision) -> clip_es.CLIPESLocalizer:
        clip = benchmark["new_clip"](*sizes.clip).requires_grad_(False).to(device)
        settings = clip_es.CLIPESInference(precision=precision)
        return clip_es.CLIPESLocalizer(
            clip, classes.to(device), backgrounds.to(device), settings, clip_es.BOX_THRESHOLD
        )

    def maps(one: clip_es.CLIPESLocalizer) -> np.ndarray:
        return one.grid_maps(one.prepare(image), [np.arange(2)])[0]

    for precision in PRECISIONS:
        here, there = (localizer(device, precision) for device in (torch.device("cpu"), table.device))
        # maps that are normalised by their maximum magnify rounding
        table.row(f"CLIP-ES's maps, {precision}", partial(maps, here), partial(maps, there), "bf16")
    together(table, "CLIP-ES", localizer(table.device, "no"), sizes, "bf16")


def of_predictions(table: Table, sizes: Sizes) -> None:
    """Probabilities that DeepLab v2 predicts for a picture, in each precision."""
    torch.manual_seed(0)
    layers = DeepLabLayers(sizes.backbone, 8, (6, 12), (), batch_norm="live")
    metadata = {
        "kind": "deeplab",
        "classes": [f"class {index}" for index in range(CLASSES)],
        "colours": layers.colours,
        "network": dataclasses.asdict(layers),
    }
    image = np.random.default_rng(0).integers(0, 256, (*sizes.image, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        write_weights(weights, create_deeplab(CLASSES + 1, layers).state_dict(), metadata)

        def probabilities(device: torch.device, precision: Precision) -> Callable[[], np.ndarray]:
            segmenter = Segmenter(weights, PredictSettings(precision=precision), device)
            return lambda: segmenter.probabilities(segmenter.prepare(image))

        for precision in PRECISIONS:
            expected, found = (probabilities(*one) for one in ((torch.device("cpu"), "no"), (table.device, precision)))
            table.row(f"predictions of DeepLab v2, {precision}", expected, found, precision)


def loaded(sizes: Sizes, repeats: int = 20) -> dict[str, float]:
    """Seconds that a loader process takes for an example of the segmenter and of the classifier: reading files, and augmenting."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        small = rng.integers(0, 256, (sizes.image[0] // 8, sizes.image[1] // 8, 3), np.uint8)
        Image.fromarray(small).resize(sizes.image[::-1]).save(data / "picture.jpg")
        Image.fromarray(rng.integers(0, 2, sizes.image, np.uint8)).save(data / "mask.png")
        (data / "tags.csv").write_text("image,tags,mask\npicture.jpg,cat,mask.png\n")
        images = open_dataset(data).split("train")
        of_segmenter, of_classifier = (
            SegmenterAugment(crop=sizes.segmenter_crop),
            ClassifierAugment(crop=sizes.classifier_crop),
        )
        ways = {
            "DeepLab v2": lambda: of_segmenter(images.read(0), images.read_mask(0), rng, "imagenet"),
            "the classifier": lambda: of_classifier(images.read(0), rng),
        }
        means = {}
        for title, run in ways.items():
            run()
            before = time.process_time()
            for _ in range(repeats):
                run()
            means[title] = (time.process_time() - before) / repeats
        return means


def of_crf(table: Table, sizes: Sizes) -> None:
    """DeepLab's dense CRF, with the memory that it takes on a GPU."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*sizes.image, 3), np.uint8)
    scores = rng.dirichlet(np.ones(CLASSES + 1), sizes.image).transpose(2, 0, 1).astype(np.float32)
    unary = unary_from_scores(scores)

    here = torch.from_numpy(unary).to(table.device)
    table.row(
        "dense CRF",
        lambda: dense_crf(image, unary, PRESETS["deeplab"], threads=2),
        lambda: dense_crf(image, here, PRESETS["deeplab"]).cpu().numpy(),
    )
    if table.device.type == "cuda":
        print(f"| peak memory on the GPU so far, MiB | | {torch.cuda.max_memory_allocated() / 2**20:.0f} | | |")


def step(network: nn.Module, batch: Tensor, precision: Precision, device: torch.device) -> float:
    """Forward and backward through a network, and its loss."""
    with mixed(precision, device):
        found = network(batch.to(device))
        outputs = found if isinstance(found, list | tuple) else [found]
        loss = torch.stack([output.float().square().mean() for output in outputs]).sum()
    loss.backward()
    network.zero_grad()
    return loss.item()


def of_training(table: Table, sizes: Sizes) -> None:
    """Training steps: the losses of both devices, and pictures per second."""
    torch.manual_seed(0)
    layers = DeepLabLayers(sizes.backbone, 8, (6, 12), (), batch_norm="live")
    networks: dict[str, tuple[nn.Module, int]] = {
        "DeepLab v2": (create_deeplab(CLASSES + 1, layers), sizes.segmenter_crop),
        "the classifier": (CAMNetwork(sizes.backbone, CLASSES), sizes.classifier_crop),
    }
    loading = loaded(sizes)
    for (title, (network, crop)), precision in itertools.product(networks.items(), PRECISIONS):
        batch = torch.randn(sizes.batch, 3, crop, crop)
        here, there = copy.deepcopy(network).train(), copy.deepcopy(network).to(table.device).train()
        cpu = torch.device("cpu")
        slow, expected = seconds(partial(step, here, batch, precision, cpu), cpu, 1)
        fast, found = seconds(partial(step, there, batch, precision, table.device), table.device, table.repeats)
        difference = abs(found - expected) / abs(expected)
        rate = sizes.batch / fast
        print(
            f"| a step of {title} at {crop} pixels, {precision}: {rate:.1f} pictures/s, "
            f"{math.ceil(rate * loading[title])} loader processes of {1 / loading[title]:.0f} pictures/s "
            f"| {1000 * slow:.1f} | {1000 * fast:.1f} | {slow / fast:.1f} | {difference:.1e} |",
            flush=True,
        )
        if difference > TOLERANCE["bf16"]:
            raise SystemExit(f"{title}: losses differ by {difference:.1e} of their value")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="small networks and pictures")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1 if options.small else 2)
    table = Table(torch.device(options.device), options.repeats)
    sizes = SMALL if options.small else Sizes()
    of_cam(table, sizes)
    of_clip_es(table, sizes)
    of_predictions(table, sizes)
    of_crf(table, sizes)
    of_training(table, sizes)


if __name__ == "__main__":
    main()
