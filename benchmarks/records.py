"""What it costs that files are on the disk before a record says so, and that files are known by their contents.

    python benchmarks/records.py --maps 2000 --kilobytes 40
    python benchmarks/records.py --pictures 20000 --kilobytes 40

Writes so many map files as a stage does: without any syncing, with each file synced (as `wsss.data.files` writes them), and with
each file and its name. Then the record, which lists all of them; and two looks at them, untouched and copied. With --pictures: what a data
set's fingerprint costs, for the first time and again, beside reading all files.
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
    """Print how long some work takes."""
    before, worked = time.perf_counter(), time.process_time()
    work()
    spent, worked = time.perf_counter() - before, time.process_time() - worked
    print(
        f"{what:<50} {spent:8.2f} s, {worked:6.2f} s of them at work {1000 * spent / files:8.3f} ms a file", flush=True
    )


def fingerprint(place: Path, content: bytes, files: int) -> None:
    """Measure what it costs to know a data set by content."""
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
    parser.add_argument("--maps", type=int, default=2000, help="files")
    parser.add_argument("--pictures", type=int, default=None, help="files of a data set instead")
    parser.add_argument("--kilobytes", type=int, default=40, help="of each")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is measured")
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

    def look(out: Path) -> None:
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
        timed("a look at what it wrote", lambda: look(place / "stage"), chosen.maps)
        shutil.copytree(place / "stage", place / "copy", copy_function=shutil.copy)
        timed("a look at a copy without its times: all are read", lambda: look(place / "copy"), chosen.maps)
        folder = place / "stage"
        timed("digests of all files of a folder", lambda: digests.folder_digests(folder), chosen.maps)


if __name__ == "__main__":
    main()
