"""CAM's maps with a network as trained, and prepared for inference (`wsss.networks.inference`). CPU seconds of a picture, alternating.

    OMP_NUM_THREADS=1 python benchmarks/localize.py [--backbone resnet50] [--side 500] [--repeats 3]

Random weights, a generated picture, the published scales 1, 0.5, 1.5, 2 with mirror images. Also the largest difference of the maps.
"""

import argparse
import copy
import time

import numpy as np
import torch

from wsss.classifier import CAMLocalizer, CAMNetwork, MultiScale
from wsss.networks.inference import for_inference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--side", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = CAMNetwork(options.backbone, 20).eval()
    ways = {"as trained": network, "prepared": for_inference(copy.deepcopy(network))}
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3 * options.side // 4, options.side, 3), np.uint8)
    label = np.arange(20) < 2
    lowest, maps = dict.fromkeys(ways, np.inf), {}
    for _ in range(options.repeats):
        for name, one in ways.items():
            localizer = CAMLocalizer(one, MultiScale())
            views = localizer.prepare(image)
            before = time.process_time()
            maps[name] = localizer.cams(views, image.shape[:2], label).maps
            lowest[name] = min(lowest[name], time.process_time() - before)
            print(f"{name}: {time.process_time() - before:.2f} s", flush=True)
    plain, prepared = lowest["as trained"], lowest["prepared"]
    largest = np.abs(maps["as trained"] - maps["prepared"]).max()
    print(f"{options.backbone}, {image.shape[1]}x{image.shape[0]}, {torch.get_num_threads()} threads:")
    print(
        f"as trained {plain:.2f} s, prepared {prepared:.2f} s, ratio {plain / prepared:.2f}; maps differ by {largest:.1e}"
    )


if __name__ == "__main__":
    main()
