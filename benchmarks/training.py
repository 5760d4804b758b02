"""A training step with weights channels-last, as `wsss.stages.train` has them on CPUs, against torch's default layout. Ratios of CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--repeats 5] [--cases resnet50:256:2 resnet10t:128:16]

A case is a backbone, the side of the pictures, and the batch. Random weights and pictures, CAM's network, AdamW, alternating. It also prints
how much the losses of the first steps differ.
"""

import argparse
import copy
import time

import numpy as np
import torch
import torch.nn.functional as F

from wsss.classifier import CAMNetwork

CASES = ("resnet50:256:2", "resnet50:321:2", "resnet18:320:4", "resnet10t:128:16", "resnet10t:224:8", "test_resnet:96:16",
         "mobilenetv3_small_050:128:16", "regnetx_002:128:16", "convnext_atto:128:16")  # fmt: skip
LAYOUTS = {"default": torch.contiguous_format, "channels-last": torch.channels_last}


def measure(backbone: str, side: int, batch: int, repeats: int) -> None:
    """Print the CPU seconds of a step in both layouts."""
    torch.manual_seed(0)
    network = CAMNetwork(backbone, 20).train()
    images, labels = torch.randn(batch, 3, side, side), torch.rand(batch, 20).round()
    networks = {name: copy.deepcopy(network).to(memory_format=layout) for name, layout in LAYOUTS.items()}
    optimizers = {name: torch.optim.AdamW(one.parameters(), lr=1e-4) for name, one in networks.items()}
    least = dict.fromkeys(LAYOUTS, np.inf)
    losses: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for _ in range(repeats):
        for name, _layout in LAYOUTS.items():
            before = time.process_time()
            loss = F.multilabel_soft_margin_loss(networks[name](images), labels)
            loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            least[name] = min(least[name], time.process_time() - before)
            losses[name].append(loss.item())
    difference = np.abs(np.subtract(losses["default"], losses["channels-last"])).max()
    ratio = least["default"] / least["channels-last"]
    print(
        f"{backbone:22s} {side:4d} px, batch {batch:2d}: {least['default']:.3f} s, {least['channels-last']:.3f} s, ratio {ratio:.2f}; "
        f"losses differ by {difference:.0e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for case in options.cases:
        backbone, side, batch = case.split(":")
        measure(backbone, int(side), int(batch), options.repeats)


if __name__ == "__main__":
    main()
