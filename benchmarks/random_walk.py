"""Time and memory of a random walk of 256 steps compared with the published form, which squares a dense matrix eight times.

    python benchmarks/random_walk.py [--repeats 5]

One thread, radius 5, random edges and scores, so that AffinityNet's rows differ from IRNet's only by size and beta.
The dense form runs once where it is feasible, in float32 as published and with denormal numbers flushed to zero, since
they would slow it down many times; the times of wsss are medians, measured right after it. Neither includes computing the affinities. Errors
are differences from the float64 walk of wsss; memory is the peak that its float32 walk adds to a fresh process (Linux).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from wsss.ops.affinity import directions, path_affinity_planes
from wsss.ops.random_walk import random_walk

RADIUS, STEPS = 5, 256
CASES = (  # what, cells, maps, beta, whether the dense form runs
    ("IRNet, 120 x 160 pixels", (30, 40), 3, 10, True),
    ("IRNet, 240 x 320 pixels", (60, 80), 3, 10, True),
    ("IRNet, 375 x 500 pixels", (94, 125), 1, 10, False),
    ("IRNet, 375 x 500 pixels", (94, 125), 3, 10, False),
    ("IRNet, 750 x 1000 pixels", (188, 250), 3, 10, False),
    ("IRNet, 1500 x 2000 pixels", (375, 500), 3, 10, False),
    ("AffinityNet, 375 x 500 pixels", (47, 63), 3, 8, True),
    ("AffinityNet, 375 x 500 pixels", (47, 63), 21, 8, True),
)


def maps_and_planes(size_hw: tuple[int, int], maps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge = torch.rand(size_hw, generator=generator) ** 2
    return torch.rand(maps, *size_hw, generator=generator).to(dtype), path_affinity_planes(edge, RADIUS).to(dtype)


def matrix(planes: Tensor) -> Tensor:
    """The affinities of all pairs of cells."""
    _, h, w = planes.shape
    cell = torch.arange(h * w).view(h, w)
    dense = torch.eye(h * w)
    for plane, (dy, dx) in zip(planes, directions(RADIUS), strict=True):
        rows, columns = slice(0, h - dy), slice(max(-dx, 0), w - max(dx, 0))
        one, other = cell[rows, columns].flatten(), cell[dy:, max(dx, 0) : w - max(-dx, 0)].flatten()
        dense[one, other] = dense[other, one] = plane[rows, columns].flatten()
    return dense


def dense_walk(scores: Tensor, affinity: Tensor, beta: int) -> Tensor:
    power = affinity**beta
    transition = power / power.sum(0)
    for _ in range(STEPS.bit_length() - 1):
        transition = torch.matmul(transition, transition)
    return torch.matmul(scores.flatten(1), transition).view(scores.shape)


def seconds(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def status(key: str) -> int:
    """What Linux says of this process, in kB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def growth(size_hw: tuple[int, int], maps: int, beta: int) -> float:
    """By how many MB the process is larger during a walk than before it, at most."""
    scores, planes = maps_and_planes(size_hw, maps, torch.float32)
    random_walk(scores[:, :8, :8], planes[:, :8, :8], directions(RADIUS), steps=2)
    Path("/proc/self/clear_refs").write_text("5")  # the largest size so far is forgotten
    before = status("VmRSS")
    random_walk(scores, planes, directions(RADIUS), beta=beta, steps=STEPS)
    return (status("VmHWM") - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    heads = ("cells", "maps", "dense s", "float32 s", "float64 s", "ratio", "dense err.", "our err.", "our MB")
    print(f"{'':30}" + "".join(f"{head:>11}" for head in heads))
    for what, size_hw, maps, beta, with_dense in CASES:
        scores, planes = maps_and_planes(size_hw, maps, torch.float32)
        taken: dict[str, float] = {}
        results: dict[str, Tensor] = {}
        if with_dense:
            affinity = matrix(planes)
            if not torch.set_flush_denormal(True):
                raise SystemExit("this CPU cannot flush denormal numbers, and the dense form would take too long")
            taken["dense"], results["dense"] = seconds(partial(dense_walk, scores, affinity, beta))
            torch.set_flush_denormal(False)
        for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
            walk = partial(random_walk, scores.to(dtype), planes.to(dtype), directions(RADIUS), beta=beta, steps=STEPS)
            results[name] = walk()
            taken[name] = statistics.median(seconds(walk)[0] for _ in range(options.repeats))
        error = {name: f"{(result - results['float64']).abs().max():.1e}" for name, result in results.items()}
        cells = ["{} x {}".format(*size_hw), str(maps), f"{taken['dense']:.2f}" if with_dense else ""]
        cells += [f"{taken[name]:.4f}" for name in ("float32", "float64")]
        cells += [f"{taken['dense'] / taken['float32']:.0f}" if with_dense else ""]
        cells += [error.get("dense", ""), error["float32"]]
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            cells += [f"{fresh.submit(growth, size_hw, maps, beta).result():.1f}"]
        print(f"{what:30}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
