"""CAM's maps three ways: IRNet's published steps, a network as trained, and one prepared for inference (`wsss.networks.inference`).

    OMP_NUM_THREADS=1 python benchmarks/localize.py [--backbone resnet50] [--side 500] [--repeats 3] [--together]

CPU seconds of a picture, alternating. Random weights, a generated picture, the published scales 1, 0.5, 1.5, 2 with mirror images. The published
steps include reading the picture's views, which their loader does: it stacks transposed arrays, so that its tensors lie channels-last,
while the weights do not. Also the largest differences of the maps. With --together instead: pictures of equal size through the network in
batches of 1, 2, 4 and 8 (`inference.batch`).
"""

import argparse
import copy
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from wsss.classifier import CAMLocalizer, CAMNetwork, MultiScale
from wsss.data.augment import IMAGENET_MEAN, IMAGENET_STD, resize_bicubic, scaled_size
from wsss.networks.inference import for_inference

SCALES = (1.0, 0.5, 1.5, 2.0)


def published_views(image: np.ndarray) -> list[torch.Tensor]:
    """The picture and its mirror image at each scale, (2, 3, hs, ws), as the published loader hands them over."""
    views = []
    for scale in SCALES:
        resized = resize_bicubic(image, scaled_size(image.shape[:2], scale))
        values = np.empty(resized.shape, np.float32)
        for channel, (mean, deviation) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
            values[..., channel] = (resized[..., channel] / 255.0 - mean) / deviation
        planes = values.transpose(2, 0, 1)
        views.append(default_collate([np.stack([planes, np.flip(planes, -1)])])[0])
    return views


@torch.no_grad()
def published(network: CAMNetwork, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The published steps: maps in [0, 1] of the tagged classes, at the size of the picture."""
    height, width = image.shape[:2]
    quarter = -(-height // 4), -(-width // 4)
    whole = 16 * -(-height // 16), 16 * -(-width // 16)
    outputs = []
    for view in published_views(image):
        raw = F.relu(network.maps(view))
        outputs.append((raw[0] + raw[1].flip(-1))[None])
    strided, full = (
        torch.stack([F.interpolate(one, size, mode="bilinear", align_corners=False)[0] for one in outputs]).sum(0)
        for size in (quarter, whole)
    )
    chosen = torch.from_numpy(np.flatnonzero(label))
    strided, full = strided[chosen], full[chosen][:, :height, :width]
    for maps in (strided, full):
        maps /= F.adaptive_max_pool2d(maps, 1) + 1e-5
    return full.numpy()


def together(localizer: CAMLocalizer, image: np.ndarray, label: np.ndarray, repeats: int) -> None:
    """Prints the CPU time of a picture in batches of each size, without its preparation, and how much the maps change."""
    size_hw = (image.shape[0], image.shape[1])
    views = [localizer.prepare(np.roll(image, 7 * shift, 1)) for shift in range(8)]
    lowest, maps = dict.fromkeys((1, 2, 4, 8), np.inf), {}
    for _ in range(repeats):
        for batch in lowest:
            before = time.process_time()
            parts = [views[first : first + batch] for first in range(0, len(views), batch)]
            maps[batch] = [
                one.maps for part in parts for one in localizer.cams_of(part, size_hw, np.tile(label, (batch, 1)))
            ]
            lowest[batch] = min(lowest[batch], (time.process_time() - before) / len(views))
    print(f"{size_hw[1]}x{size_hw[0]}, {torch.get_num_threads()} threads:")
    for batch, seconds in lowest.items():
        largest = np.abs(np.array(maps[1]) - np.array(maps[batch])).max()
        ratio = lowest[1] / seconds
        print(f"batches of {batch}: {1000 * seconds:.1f} ms a picture, ratio {ratio:.2f}; maps differ by {largest:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--side", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="batches of pictures instead")
    options = parser.parse_args()
    torch.manual_seed(0)
    network = CAMNetwork(options.backbone, 20).eval()
    prepared = for_inference(copy.deepcopy(network))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3 * options.side // 4, options.side, 3), np.uint8)
    label = np.arange(20) < 2
    if options.together:
        together(CAMLocalizer(prepared, MultiScale(SCALES)), image, label, options.repeats)
        return

    def ours(one: CAMNetwork) -> np.ndarray:
        localizer = CAMLocalizer(one, MultiScale(SCALES))
        return localizer.cams(localizer.prepare(image), image.shape[:2], label).maps

    ways = {
        "published": lambda: published(network, image, label),
        "as trained": lambda: ours(network),
        "prepared": lambda: ours(prepared),
    }
    lowest, maps = dict.fromkeys(ways, np.inf), {}
    for _ in range(options.repeats):
        for name, run in ways.items():
            before = time.process_time()
            maps[name] = run()
            lowest[name] = min(lowest[name], time.process_time() - before)
            print(f"{name}: {time.process_time() - before:.2f} s", flush=True)
    print(f"{options.backbone}, {image.shape[1]}x{image.shape[0]}, {torch.get_num_threads()} threads:")
    layouts = {one.is_contiguous(memory_format=torch.channels_last) for one in published_views(image)}
    print(f"the published views are channels-last: {', '.join(map(str, layouts))}")
    for name in ("published", "as trained"):
        largest = np.abs(maps[name] - maps["prepared"]).max()
        ratio = lowest[name] / lowest["prepared"]
        print(
            f"{name} {lowest[name]:.2f} s, prepared {lowest['prepared']:.2f} s, ratio {ratio:.2f}; maps differ by {largest:.1e}"
        )


if __name__ == "__main__":
    main()
