"""The cost of flushing files to the disk before their record, and of identifying files by content.

    python benchmarks/records.py --maps 2000 --kilobytes 40
    python benchmarks/records.py --pictures 20000 --kilobytes 40

Writes map files as a stage does: without syncing, with each file synced (as `wsss.data.files` writes them), and with each file
and its name synced. Then writes the record, which lists all of them, and checks them twice, untouched and copied. With
--pictures: the time of a dataset's fingerprint, the first time and again, compared with reading all files.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsss import digests, outputs, run
from wsss.data.images import Images
from wsss.storage import Sync, whole_file
from wsss.stream import in_threads


def timed(what: str, work: Callable[[], object], files: int) -> None:
    """Print the time of a piece of work."""
    before, worked = time.perf_counter(), time.process_time()
    work()
    spent, worked = time.perf_counter() - before, time.process_time() - worked
    print(f"{what:<50} {spent:8.2f} s, {worked:6.2f} CPU s {1000 * spent / files:8.3f} ms per file", flush=True)


def fingerprint(place: Path, content: bytes, files: int) -> None:
    """Measure the time to identify a dataset by content."""
    paths = [place / f"{number:06d}.jpg" for number in range(files)]
    for number, path in enumerate(paths):
        path.write_bytes(number.to_bytes(8) + content[8:])
        os.utime(path, (0, 0))
    names = tuple(path.stem for path in paths)
    images = Images("data", names, tuple(paths), ("a", "b"), np.ones((files, 2), bool), (None,) * files)
    time.sleep(3)  # younger files are read again
    timed("all files read, in threads", lambda: list(in_threads(lambda path: len(path.read_bytes()), paths)), files)
    timed("fingerprint, the first time", images.fingerprint, files)
    timed("fingerprint, again", images.fingerprint, files)


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=2000, help="number of files")
    parser.add_argument(
        "--pictures", type=int, default=None, help="measure a dataset with this number of files instead"
    )
    parser.add_argument("--kilobytes", type=int, default=40, help="size of each file")
    parser.add_argument("--folder", type=Path, default=None, help="folder on the disk to measure")
    chosen = parser.parse_args()
    content = np.random.default_rng(0).bytes(chosen.kilobytes << 10)

    def write(out: Path, sync: Sync) -> None:
        for number in range(chosen.maps):
            with whole_file(out / f"{number:06d}.npz", sync) as temporary:
                temporary.write_bytes(content)

    @run.stage(kind="write", makes="maps", title="a benchmark")
    def maps(*, out: Path) -> dict[str, int]:
        write(out, "file")
        return {}

    def check(out: Path) -> None:
        if outputs.changes(out, run.read_record(out)):
            raise RuntimeError(f"{out} was changed")

    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        place = Path(temporary)
        if chosen.pictures is not None:
            fingerprint(place, content, chosen.pictures)
            return
        for sync in ("nothing", "file", "file and name"):
            timed(f"written, synced: {sync}", lambda sync=sync: write(place / sync, sync), chosen.maps)  # type: ignore[misc]
            shutil.rmtree(place / sync)
        timed("a stage: written, listed, recorded", lambda: maps(out=place / "stage"), chosen.maps)
        timed("checking a finished stage", lambda: check(place / "stage"), chosen.maps)
        shutil.copytree(place / "stage", place / "copy", copy_function=shutil.copy)
        timed("checking a copy without its times", lambda: check(place / "copy"), chosen.maps)
        folder = place / "stage"
        timed("digests of all files of a folder", lambda: digests.folder_digests(folder), chosen.maps)


if __name__ == "__main__":
    main()
