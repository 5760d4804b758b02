"""Time and memory of pixel-adaptive refinement (PAR) against its usual form, which stores all neighbours of all pixels.

    python benchmarks/pixel_refine.py [--repeats 5] [--device cpu]

One thread; medians over the repeats, of the CPU time, or on a GPU of the time.
The usual form is a dilated convolution with one-hot kernels for each dilation, as in the code of AFA and
WeCLIP: 48 shifted copies of the picture, and in each iteration of the maps. Memory is the peak beyond the arguments, in MB: on a
GPU as CUDA counts it, on a CPU the increase of the peak memory of a separate process for each form. The last column is the largest
difference of the results.
"""

import argparse
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.ops.pixel_refine import PixelRefinement, pixel_refine

# labels, side in pixels: WeCLIP's crops with three tags, with one tag, and a large picture
CASES = ((4, 320), (2, 320), (4, 512))
DILATIONS, ITERATIONS = PixelRefinement().dilations, PixelRefinement().iterations


def stored(planes: Tensor) -> Tensor:
    """All neighbours, (1, c, n, h, w)."""
    kernel = torch.eye(9, device=planes.device)[[0, 1, 2, 3, 5, 6, 7, 8]].view(8, 1, 3, 3)
    size, copies = planes.shape[1:], []
    for dilation in DILATIONS:
        padded = F.pad(planes[:, None], (dilation,) * 4, mode="replicate")
        copies.append(F.conv2d(padded, kernel, dilation=dilation).view(1, -1, 8, *size))
    return torch.cat(copies, 2)


def usual(image: Tensor, maps: Tensor) -> Tensor:
    beside = stored(image)
    apart = (beside - image[None, :, None]).abs()
    exponents = -((apart / (beside.std(2, keepdim=True) + 1e-8) / 0.3) ** 2).mean(1, keepdim=True)
    corner = math.sqrt(2)
    distance = torch.tensor(
        [d * f for d in DILATIONS for f in (corner, 1, corner, 1, 1, corner, 1, corner)], device=maps.device
    )
    distance = distance.view(1, 1, -1, 1, 1).expand(1, 1, -1, *maps.shape[1:])
    positions = -((distance / (distance.std(2, keepdim=True) + 1e-8) / 0.3) ** 2)
    weights = exponents.softmax(2) + 0.01 * positions.softmax(2)
    for _ in range(ITERATIONS):
        maps = (stored(maps) * weights).sum(2)[0]
    return maps


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"usual": usual, "ours": pixel_refine}


def arguments(labels: int, side: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 12, generator=generator)
    image = F.interpolate(coarse, (side, side), mode="bilinear")[0] + 0.02 * torch.rand(
        3, side, side, generator=generator
    )
    return (4 * image - 2).to(device), torch.rand(labels, side, side, generator=generator).to(device)


def measured(job: tuple[str, tuple[int, int], str, int]) -> tuple[float, float, Tensor]:
    """Seconds, MB and result of a form, in a process of its own."""
    name, case, device, repeats = job
    torch.set_num_threads(1)
    form = FORMS[name]
    # what torch and numba load on their first use is not the form's
    form(*arguments(case[0], 8, device))
    image, maps = arguments(*case, device)
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    taken, refined, clock = [], maps, time.perf_counter if cuda else time.process_time
    for _ in range(repeats):
        start = clock()
        with torch.no_grad():
            refined = form(image, maps)
        if cuda:
            torch.cuda.synchronize()
        taken.append(clock() - start)
    after = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return statistics.median(taken), (after - before) / 1e6, refined.cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", type=str, default="cpu")
    options = parser.parse_args()

    print(f"{'':24}{'usual s':>10}{'MB':>8}{'ours s':>10}{'MB':>8}{'faster':>8}{'smaller':>9}{'difference':>12}")
    for case in CASES:
        found = []
        for name in FORMS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found.append(pool.apply(measured, ((name, case, options.device, options.repeats),)))
        (theirs, their_mb, wanted), (own, own_mb, refined) = found
        error = float((refined - wanted).abs().max())
        ratios = f"{theirs / own:8.1f}{their_mb / max(own_mb, 0.1):9.1f}"
        name = f"{case[0]} labels, {case[1]}x{case[1]}"
        print(f"{name:24}{theirs:10.3f}{their_mb:8.0f}{own:10.3f}{own_mb:8.0f}{ratios}{error:12.1e}", flush=True)


if __name__ == "__main__":
    main()
