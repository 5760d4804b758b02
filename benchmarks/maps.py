"""Map files, packed without and with the grids that maps were enlarged from, against the compressed `.npz` of the first version: bytes, and
CPU milliseconds to write and to read a file.

    OMP_NUM_THREADS=1 python benchmarks/maps.py [--cams FOLDER] [--size 500 375] [--maps 2] [--repeats 15]

Takes the maps of FOLDER (a stage of `wsss localize`; as stored, so writing is not measured), or else 8 generated pictures:
sums of maps of four scales that are enlarged bilinearly, as CAM makes them, with noise in the small maps. The ways take turns; the lowest
time of each file counts.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from wsss.data.files import read_arrays, read_cams, write_cams
from wsss.data.grids import Grids
from wsss.data.lists import files_below
from wsss.storage import whole_file


def made(seed: int, size_hw: tuple[int, int], count: int) -> tuple[np.ndarray, Grids]:
    """Maps of one picture in [0, 1], and what they were enlarged from."""
    generator = torch.Generator().manual_seed(seed)
    objects = F.interpolate(torch.rand(1, count, 6, 8, generator=generator), size=(48, 64), mode="bicubic")
    padded_hw = (16 * -(-size_hw[0] // 16), 16 * -(-size_hw[1] // 16))
    total, grids = torch.zeros(1, count, *padded_hw), []
    for scale in (1.0, 0.5, 1.5, 2.0):
        small_hw = [round(side * scale / 16) for side in size_hw]
        small = F.interpolate(objects, size=small_hw, mode="bilinear") - 0.5
        small += 0.1 * torch.rand(small.shape, generator=generator)
        grids.append(small.clamp(min=0))
        total += F.interpolate(grids[-1], size=padded_hw, mode="bilinear")
    maps = total[0, :, : size_hw[0], : size_hw[1]]
    maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-5)
    return maps.numpy(), Grids([one[0].numpy() for one in grids], padded_hw)


def write_compressed(path: Path, classes: np.ndarray, maps: np.ndarray) -> None:
    """As earlier versions wrote them."""
    with whole_file(path, sync="file") as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, classes=classes, maps=maps.astype(np.float16))


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


class Picture(NamedTuple):
    """Maps of one picture, what they were enlarged from, and the file that holds them already."""

    classes: np.ndarray
    maps: np.ndarray
    grids: Grids | None
    stored: Path | None


def read_stored(path: Path) -> Picture:
    """The maps of a file."""
    classes, maps = read_cams(path)
    return Picture(classes, maps, None, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cams", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--maps", type=int, default=2, help="of a picture")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cams:
        pictures = [read_stored(path) for path in files_below(options.cams) if path.suffix == ".npz"]
    else:
        pictures = [
            Picture(np.arange(options.maps, dtype=np.int16), *made(seed, options.size[::-1], options.maps), None)
            for seed in range(8)
        ]
    last = "as stored" if options.cams else "with grids"
    ways = ("compressed", "packed", last)
    sums = {name: np.zeros(3) for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        for picture in pictures:
            classes, maps, grids, stored = picture
            halves = maps.astype(np.float16)
            paths = {name: Path(folder) / f"{name}.npz" for name in ways}
            if stored is not None:
                paths[last] = stored
            writes = {
                "compressed": partial(write_compressed, paths["compressed"], classes, maps),
                "packed": partial(write_cams, paths["packed"], classes, maps),
                "with grids": partial(write_cams, paths[last], classes, maps, grids=grids),
            }
            lowest = {name: np.full(2, np.inf) for name in ways}
            for _ in range(options.repeats):
                for name in ways:
                    read = read_compressed if name == "compressed" else read_cams
                    spent = timed(writes.get(name, lambda: None)), timed(partial(read, paths[name]))
                    lowest[name] = np.minimum(lowest[name], spent)
            for name, path in paths.items():
                np.testing.assert_array_equal((read_compressed if name == "compressed" else read_cams)(path)[1], halves)
                sums[name] += (path.stat().st_size / 1024, *lowest[name])
    print(f"{len(pictures)} pictures, {sum(len(one.maps) for one in pictures)} maps; means of a picture")
    print(f"{'':>12} {'KiB':>8} {'write ms':>9} {'read ms':>9}")
    for name, values in sums.items():
        size, write_ms, read_ms = values / len(pictures)
        print(f"{name:>12} {size:8.1f} {write_ms:9.2f} {read_ms:9.2f}")
    for name in ways[1:]:
        size, write_ms, read_ms = sums["compressed"] / sums[name]
        print(f"ratio, {name:>10} {size:8.2f} {write_ms:9.2f} {read_ms:9.2f}")


if __name__ == "__main__":
    main()
