"""What compiling the dense CRF costs in a new environment, against an earlier build (benchmarks/startup.py says how to make one).

Both builds take turns, each in processes of its own with an empty cache of numba.

1. `all`: CPU seconds. "first" is the first call, with 3 labels; "all" are calls for all widths of a row (3, 5 and 21 labels) together.
2. `mask`: seconds of the clock from the start of the stage that makes masks to its first mask, in `wsss refine` on maps that exist, and in
   `wsss run cam` with the settings of the demo, where the training comes before; and with code that `python -m wsss.ops.crf.ahead` has compiled.

    OMP_NUM_THREADS=1 python benchmarks/compiling.py --baseline ../earlier/.venv/bin/python --repeats 3 [--part mask]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CALLS = """
import sys, time
import numpy as np
from wsss.ops.crf import PRESETS, dense_crf
image = np.zeros((8, 8, 3), np.uint8)
began = time.process_time()
for labels in (3, 5, 21):
    dense_crf(image, np.zeros((labels, 8, 8), np.float32), PRESETS["irn"], threads=1)
    print(time.process_time() - began)
"""


def compiling(python: str) -> tuple[float, float]:
    """CPU seconds of the first call, and of the calls for all widths."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        done = subprocess.run(
            [python, "-c", CALLS], cwd="/", env=environment, check=True, capture_output=True, text=True
        )
    first, _, every = map(float, done.stdout.split())
    return first, every


def until_first_mask(python: str, words: list[str], out: Path, cache: Path) -> float:
    """Seconds from the start of the stage `masks` of a command to its first mask; the command is then ended."""
    shutil.rmtree(out, ignore_errors=True)
    masks, began = out / "masks", 0.0
    process = subprocess.Popen(
        [python, "-m", "wsss", *words, "--out", str(out)],
        cwd="/",
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache), "WSSS_CACHE": str(cache / "wsss")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            time.sleep(0.02)
            if not began and (masks / "started.json").exists():
                began = time.time()
            if began and any(path.suffix == ".png" for path in masks.iterdir()):
                return time.time() - began
    finally:
        process.terminate()
        process.wait()
    sys.exit(f"{' '.join(words)} ended with {process.returncode} before a mask was made")


def first_masks(folder: Path, pythons: list[str], repeats: int) -> None:
    """Print the seconds until the first mask."""
    data, maps, cache = folder / "data", folder / "maps", folder / "cache"
    subprocess.run(
        [pythons[0], "-m", "wsss", "data", "shapes", str(data), "--train", "100", "--val", "10", "--size", "96"],
        cwd="/",
        check=True,
        stdout=subprocess.DEVNULL,
    )
    maps.mkdir()
    for path in (data / "SegmentationClass").iterdir():
        mask = np.asarray(Image.open(path))
        found = np.array([label for label in np.unique(mask) if 0 < label < 255])
        whole = (mask[None] == found[:, None, None]).astype(np.float16)
        # in the format of both builds
        np.savez(maps / f"{path.stem}.npz", classes=found - 1, maps=whole, maps_stride4=whole[:, ::4, ::4])
    commands = {
        "`wsss refine`": ["refine", "--data", str(data), "--cams", str(maps), "--refiner.threshold", "0.5"],
        "`wsss run cam`": ["run", "cam", "--data", str(data), "--config", "demo_cam"],
    }
    print("| | seconds before | seconds | compiled before |\n|---|---|---|---|")
    for name, words in commands.items():
        taken: list[list[float]] = [[], [], []]
        for _ in range(repeats):
            for number, python in enumerate(pythons):
                shutil.rmtree(cache, ignore_errors=True)
                taken[number].append(until_first_mask(python, words, folder / "out", cache))
            shutil.rmtree(cache, ignore_errors=True)
            environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
            ahead = [pythons[1], "-m", "wsss.ops.crf.ahead"]
            subprocess.run(ahead, cwd="/", env=environment, check=True, capture_output=True)
            taken[2].append(until_first_mask(pythons[1], words, folder / "out", cache))
        before, now, ahead_of_all = map(statistics.median, taken)
        print(f"| {name} | {before:.1f} | {now:.1f} | {ahead_of_all:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", required=True, help="Python of an environment with the earlier build")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", choices=("all", "mask"), help="only this part")
    options = parser.parse_args()
    pythons = [options.baseline, sys.executable]
    if options.part in (None, "all"):
        print_compiling(pythons, options.repeats)
    if options.part in (None, "mask"):
        with tempfile.TemporaryDirectory() as scratch:
            first_masks(Path(scratch), pythons, options.repeats)


def print_compiling(pythons: list[str], repeats: int) -> None:
    """Print the CPU seconds of compiling."""
    taken: dict[str, list[tuple[float, float]]] = {python: [] for python in pythons}
    for _ in range(repeats):
        for python, found in taken.items():
            found.append(compiling(python))
    print("| | CPU s before | CPU s | ratio |\n|---|---|---|---|")
    for name, position in (("first", 0), ("all", 1)):
        before, now = (statistics.median(one[position] for one in found) for found in taken.values())
        print(f"| {name} | {before:.1f} | {now:.1f} | {before / now:.2f} |")


if __name__ == "__main__":
    main()
