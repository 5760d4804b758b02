"""Time and memory of the feature similarity loss and the pixel correlation module, against their published forms, which store all pairs.

    python benchmarks/icam.py [--repeats 5] [--device cpu]

One thread; medians over the repeats of value and gradient together. The published form of the loss makes N x N arrays of the distances of colours and
predictions, of gates and weights, and autograd stores them; that of the module computes A, divides its columns by their sums, and
multiplies. Memory is the peak beyond the arguments, in MB: on a GPU as CUDA counts it, on a CPU the increase of the peak memory of a separate
process for each form. The last column is the largest difference of the gradients, relative to
the largest value. The contour F-score is measured by `evaluate.py`.
"""

import argparse
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from wsss.networks.seam import correlated
from wsss.ops.feature_similarity import feature_similarity_loss

# pictures, labels, side of the map in cells: ICAM's crop of 448 on VOC, the same of a batch, on COCO; DeepLab v1 trains on it too
LOSSES = ((1, 21, 56), (8, 21, 56), (1, 81, 56))
# pictures, labels, rows and columns of cells: training, and the largest scale of a picture of 375x500
MODULES = ((1, 21, 56, 56), (1, 21, 94, 125))


def published_loss(maps: Tensor, colours: Tensor) -> Tensor:
    """All pairs at once, as the published code has them."""
    n, _, height, width = maps.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1).float().to(maps.device)
    weight = torch.exp(-0.5 * (torch.cdist(places, places) / 5) ** 2) / (2 * math.pi * 25)
    flat, values = colours.flatten(2).mT, maps.flatten(2).mT
    apart = (torch.cdist(flat, flat, p=1.0) / 3).clamp(0, 1)
    gate = torch.tanh(2.5 + torch.log((apart + 1e-5) / (1 - apart + 1e-5)))
    different = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    return -(weight * different * gate).sum() / (n * height * width)


def our_loss(maps: Tensor, colours: Tensor) -> Tensor:
    return feature_similarity_loss(maps, colours)


def published_module(maps: Tensor, features: Tensor) -> Tensor:
    flat = features.flatten(2)
    g = flat / (flat.norm(dim=1, keepdim=True) + 1e-5)
    affinity = torch.relu(g.mT @ g)
    affinity = affinity / (affinity.sum(1, keepdim=True) + 1e-5)
    return (maps.flatten(2) @ affinity).square().mean()


def our_module(maps: Tensor, features: Tensor) -> Tensor:
    return correlated(maps, features).square().mean()


def loss_arguments(case: tuple[int, ...], device: str) -> tuple[Tensor, ...]:
    n, labels, side = case
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.rand(n, labels, side, side, generator=generator)
    colours = torch.nn.functional.interpolate(
        torch.rand(n, 3, 9, 9, generator=generator), (side, side), mode="bilinear"
    )
    return logits.softmax(1).to(device).requires_grad_(), colours.to(device)


def module_arguments(case: tuple[int, ...], device: str) -> tuple[Tensor, ...]:
    n, labels, height, width = case
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(n, labels, height, width, generator=generator).to(device).requires_grad_()
    features = torch.randn(n, 192, height, width, generator=generator).to(device).requires_grad_()
    return maps, features


FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, ...]]]] = {
    "published_loss": (published_loss, loss_arguments),
    "our_loss": (our_loss, loss_arguments),
    "published_module": (published_module, module_arguments),
    "our_module": (our_module, module_arguments),
}


def measured(job: tuple[str, tuple[int, ...], str, int]) -> tuple[float, float, list[Tensor]]:
    """Seconds, MB and gradients of a form, in a process of its own."""
    name, case, device, repeats = job
    torch.set_num_threads(1)
    form, make = FORMS[name]
    # what torch loads on its first use is not the form's
    small, few = make((*case[:2], *(4 for _ in case[2:])), device), make(case, device)
    form(*small).backward()
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    taken, gradients = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        gradients = list(torch.autograd.grad(form(*few), [value for value in few if value.requires_grad]))
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    after = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return statistics.median(taken), (after - before) / 1e6, [value.cpu() for value in gradients]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", type=str, default="cpu")
    options = parser.parse_args()

    print(f"{'':38}{'published s':>12}{'MB':>8}{'ours s':>10}{'MB':>8}{'faster':>8}{'smaller':>9}{'difference':>12}")
    for kind, cases in (("loss", LOSSES), ("module", MODULES)):
        for case in cases:
            n, labels, *cells = case
            found = []
            for whose in ("published", "our"):
                job = (f"{whose}_{kind}", case, options.device, options.repeats)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found.append(pool.apply(measured, (job,)))
            (theirs, their_mb, wanted), (own, own_mb, gradients) = found
            size = "x".join(map(str, cells * 2 if len(cells) == 1 else cells))
            name = f"{kind}, {n} x {labels} labels, {size} cells"
            error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(gradients, wanted, strict=True))
            ratios = f"{theirs / own:8.1f}{their_mb / max(own_mb, 0.1):9.1f}"
            print(f"{name:38}{theirs:12.3f}{their_mb:8.0f}{own:10.3f}{own_mb:8.0f}{ratios}{error:12.1e}", flush=True)


if __name__ == "__main__":
    main()
