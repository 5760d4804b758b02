"""Time of the dense CRF compared with pydensecrf2 (`pip install .[oracle]`), which has no threads.

    python benchmarks/dense_crf.py [--picture FILE ...] [--repeats 5]

Times are medians in milliseconds of whole calls on 500 x 375 pixels, lattices included, 10 iterations; the columns of a
row are measured in turn. "cold" builds the lattice that depends only on the size of the picture in every call, as
pydensecrf2 does; "warm" reuses it from the previous call. The ratio is pydensecrf2 over two threads, cold.
"""

import argparse
import dataclasses
import math
import runpy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pydensecrf.densecrf as reference
from PIL import Image

from wsss.ops.crf import PRESETS, DenseCRF, dense_crf, inference, unary_from_scores

HEIGHT, WIDTH = 375, 500
INPUTS = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "parity" / "inputs.py"))


def pictures(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """A synthetic picture, and the given ones resized."""
    named = {"synthetic": INPUTS["image"](HEIGHT, WIDTH, 0)}
    for file in files:
        with Image.open(file) as picture:
            named[file.name] = np.array(picture.convert("RGB").resize((WIDTH, HEIGHT)))
    return named


def unary(labels: int, seed: int) -> np.ndarray:
    """Energies of random probabilities, one draw for each 8 x 8 pixels."""
    powers = np.exp(4 * INPUTS["blocky"]("crf/prob", labels, HEIGHT, WIDTH, seed, 8).astype(np.float64))
    return unary_from_scores(powers / powers.sum(0))


def pydensecrf2(image: np.ndarray, energy: np.ndarray, crf: DenseCRF) -> np.ndarray:
    field = reference.DenseCRF2D(WIDTH, HEIGHT, len(energy))
    field.setUnaryEnergy(energy.reshape(len(energy), -1))
    field.addPairwiseGaussian(sxy=crf.gaussian_sxy, compat=crf.gaussian_weight)
    field.addPairwiseBilateral(sxy=crf.bilateral_sxy, srgb=crf.bilateral_srgb, rgbim=image, compat=crf.bilateral_weight)
    return np.array(field.inference(crf.iterations)).reshape(energy.shape)


def cold(image: np.ndarray, energies: np.ndarray | list[np.ndarray], crf: DenseCRF, threads: int) -> None:
    inference._recent.clear()
    dense_crf(image, energies, crf, threads=threads)


def medians(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Milliseconds of each run, measured in turn."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for times, run in zip(taken, runs, strict=True):
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in taken]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, nargs="*", default=[], help="also measure on these photographs")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    start = time.perf_counter()
    for labels in (3, 21):
        dense_crf(np.zeros((8, 8, 3), np.uint8), np.zeros((labels, 8, 8), np.float32), PRESETS["irn"])
    print(f"compiling, or loading what was compiled: {time.perf_counter() - start:.1f} s\n")

    columns = ("pydensecrf2", "1 cold", "2 cold", "1 warm", "2 warm", "ratio", "1 / 2")
    print(f"{'picture':>20} {'set':>8} {'labels':>6}" + "".join(f"{name:>12}" for name in columns))
    colds, warms, threads, doubles = [], [], [], []
    for name, image in pictures(options.picture).items():
        for preset in ("deeplab", "irn", "psa"):
            crf = dataclasses.replace(PRESETS[preset], picture="rgb")
            for labels in (3, 21):
                energy = unary(labels, 0)
                difference = np.abs(dense_crf(image, energy, crf) - pydensecrf2(image, energy, crf))
                if difference.max() > 1e-3:
                    raise SystemExit(f"{name}, {preset}, {labels} labels: Q differs by {difference.max()}")
                theirs, one, two, one_warm, two_warm = medians(
                    [
                        partial(pydensecrf2, image, energy, crf),
                        partial(cold, image, energy, crf, 1),
                        partial(cold, image, energy, crf, 2),
                        partial(dense_crf, image, energy, crf, threads=1),
                        partial(dense_crf, image, energy, crf, threads=2),
                    ],
                    options.repeats,
                )
                colds.append(theirs / two)
                warms.append(theirs / two_warm)
                threads.append(one / two)
                times = "".join(f"{t:12.0f}" for t in (theirs, one, two, one_warm, two_warm))
                print(f"{name:>20} {preset:>8} {labels:>6}{times}{colds[-1]:12.2f}{threads[-1]:12.2f}", flush=True)
        both = [unary(3, 0), unary(3, 1)]
        single, double = medians(
            [partial(cold, image, both[0], PRESETS["irn"], 2), partial(cold, image, both, PRESETS["irn"], 2)],
            2 * options.repeats,
        )
        doubles.append(double / single)
        print(f"{name:>20} {'irn':>8}  two unaries of 3 labels at once take {doubles[-1]:.2f} times one", flush=True)
    print(f"\ngeometric means: {geometric_mean(colds):.2f} times pydensecrf2 cold (lowest {min(colds):.2f}),", end=" ")
    print(
        f"{geometric_mean(warms):.2f} warm (lowest {min(warms):.2f}); two threads {geometric_mean(threads):.2f}",
        end=" ",
    )
    print(f"times one; two unaries {geometric_mean(doubles):.2f} times one")


if __name__ == "__main__":
    main()
