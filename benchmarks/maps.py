"""Map files: packed as now, against the compressed `.npz` of earlier versions. Bytes, and CPU milliseconds to write and to read a file.

    OMP_NUM_THREADS=1 python benchmarks/maps.py [--cams FOLDER] [--repeats 15]

Takes the maps of FOLDER (a stage of `wsss localize`), or else 8 pictures of 500x375 with 2 maps each: sums of maps of four scales that are
enlarged bilinearly, as CAM makes them, with noise in the small maps. Both ways take turns; the lowest time of each file counts.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from wsss.data.files import read_arrays, read_cams, write_cams
from wsss.data.lists import files_below
from wsss.storage import whole_file


def made(seed: int, size_hw: tuple[int, int] = (375, 500), count: int = 2) -> np.ndarray:
    """Maps of one picture in [0, 1], float16."""
    generator = torch.Generator().manual_seed(seed)
    objects = F.interpolate(torch.rand(1, count, 6, 8, generator=generator), size=(48, 64), mode="bicubic")
    total = torch.zeros(1, count, *size_hw)
    for scale in (1.0, 0.5, 1.5, 2.0):
        small_hw = [round(side * scale / 16) for side in size_hw]
        small = F.interpolate(objects, size=small_hw, mode="bilinear") - 0.5
        small += 0.1 * torch.rand(small.shape, generator=generator)
        total += F.interpolate(small.clamp(min=0), size=size_hw, mode="bilinear")
    return (total[0] / total.amax()).half().numpy()


def write_compressed(path: Path, classes: np.ndarray, maps: np.ndarray) -> None:
    """As earlier versions wrote them."""
    with whole_file(path, sync="file") as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, classes=classes, maps=maps)


def read_compressed(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """As earlier versions read and checked them."""
    classes, maps = read_arrays(path, ("classes", "maps"), "", "")
    assert ((maps >= 0) & (maps <= 1)).all()
    return classes, maps.astype(np.float32)


def timed(work: Callable[[], object]) -> float:
    """CPU milliseconds."""
    before = time.process_time()
    work()
    return 1000 * (time.process_time() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cams", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cams:
        files = [path for path in files_below(options.cams) if path.suffix == ".npz"]
        pictures = [(classes, maps.astype(np.float16)) for classes, maps in map(read_cams, files)]
    else:
        pictures = [(np.arange(2, dtype=np.int16), made(seed)) for seed in range(8)]
    ways = {"compressed": (write_compressed, read_compressed), "packed": (write_cams, read_cams)}
    sums = {name: np.zeros(3) for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        for number, (classes, maps) in enumerate(pictures):
            lowest = {name: np.full(2, np.inf) for name in ways}
            for _ in range(options.repeats):
                for name, (write, read) in ways.items():
                    path = Path(folder) / f"{name}{number}.npz"
                    spent = timed(lambda: write(path, classes, maps)), timed(lambda: read(path))  # noqa: B023
                    lowest[name] = np.minimum(lowest[name], spent)
            for name, (_, read) in ways.items():
                path = Path(folder) / f"{name}{number}.npz"
                np.testing.assert_array_equal(read(path)[1], maps)
                sums[name] += (path.stat().st_size / 1024, *lowest[name])
    print(f"{len(pictures)} pictures, {sum(maps.shape[0] for _, maps in pictures)} maps; means of a picture")
    print(f"{'':>12} {'KiB':>8} {'write ms':>9} {'read ms':>9}")
    for name, values in sums.items():
        size, write_ms, read_ms = values / len(pictures)
        print(f"{name:>12} {size:8.1f} {write_ms:9.2f} {read_ms:9.2f}")
    size, write_ms, read_ms = sums["compressed"] / sums["packed"]
    print(f"{'ratio':>12} {size:8.2f} {write_ms:9.2f} {read_ms:9.2f}")


if __name__ == "__main__":
    main()
