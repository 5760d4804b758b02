"""Round trips: our masks, a file, the real tool, its own re-export, our masks again. Prints the losses that docs/formats.md gives.

    python tests/peers/round_trips.py FOLDER [TOOL ...]

FOLDER gets an environment for each tool, with what `requirements/` pins for it, and all files in between. Two sets of masks are used: hard ones
(`masks.py`), and those of `wsss data shapes`. The tools compare what they read with the masks themselves; their scripts stop at the first difference.
"""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import wsss
from tests.peers import masks as hard
from wsss.data.files import read_mask
from wsss.data.shapes import make_shapes
from wsss.errors import BadInput

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Trip:
    """A way through a tool.

    Attributes:
        tool: name of its requirements and of its script.
        format: our format.
        options: further options of the export.
        words: further arguments of the script.
        unsure: whether the masks have unsure pixels.
        results: what is read back, relative to the folder of the tool's export; empty for a tool that only compares.
    """

    tool: str
    format: str
    options: tuple[tuple[str, str], ...] = ()
    words: tuple[str, ...] = ()
    unsure: bool = False
    results: tuple[str, ...] = (".",)


TRIPS = (
    Trip("labelme", "labelme", unsure=True),
    Trip("labelme", "labelme", (("shapes", "polygon"),), unsure=True),
    Trip("cvat_sdk", "cvat", (("per", "class"),), results=()),
    Trip("datumaro", "cvat", words=("cvat",), results=(".", "polygons")),
    Trip("datumaro", "cvat-masks", words=("voc_segmentation",)),
    Trip("datumaro", "voc", words=("voc_segmentation",), unsure=True),
    Trip("datumaro", "coco", words=("coco_instances",), results=("masks", ".")),
    Trip("datumaro", "coco-panoptic", words=("coco_panoptic",)),
    Trip("ultralytics", "yolo-seg", words=("segment",)),
    Trip("ultralytics", "yolo-semantic", words=("semantic",), unsure=True),
    Trip("lightly_train", "yolo-semantic", unsure=True, results=()),
    Trip("datasets", "hf", unsure=True),
    Trip("label_studio_sdk", "labelstudio", results=("tasks.json", "min/result.json")),
)


def main(folder: Path, tools: list[str]) -> None:
    for name, unsure in (("hard", False), ("hard-unsure", True)):
        hard.write(folder / name, unsure)
    make_shapes(folder / "shapes-data", train=30, val=1, size=112)
    _shapes(folder / "shapes-data", folder / "shapes")
    for trip in TRIPS:
        if tools and trip.tool not in tools:
            continue
        for source in ("hard-unsure" if trip.unsure else "hard", "shapes"):
            _walk(trip, folder, source)


def _shapes(data: Path, root: Path) -> None:
    """The generated pictures of one split, with unsure pixels as background."""
    for path in sorted((data / "SegmentationClass").glob("train*.png")):
        mask = read_mask(path)
        for part, array in (("masks", np.where(mask == 255, 0, mask)), ("pictures", mask)):
            (root / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(root / part / path.name)
    shutil.copy(data / "classes.txt", root / "classes.txt")


def _walk(trip: Trip, folder: Path, source: str) -> None:
    place = folder / "-".join((source, trip.tool, trip.format, *(value for _, value in trip.options)))
    shutil.rmtree(place, ignore_errors=True)
    root = folder / source
    given = {"pictures": root / "pictures", "classes": str(root / "classes.txt")}
    wsss.export(trip.format, root / "masks", place / "ours", **given, **dict(trip.options))
    script = HERE / f"trip_{trip.tool}.py"
    words = [place / "ours", root / "masks", *([place / "theirs"] if trip.results else []), *trip.words]
    done = subprocess.run([environment(trip.tool, folder), script, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{trip} {source}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    options = " ".join(f"--{name} {value}" for name, value in trip.options)
    print(f"{trip.format} {options} | {source} | {done.stdout.splitlines()[-1]}", flush=True)
    for number, result in enumerate(trip.results):
        file = place / "theirs" / result
        try:
            out = wsss.import_masks(trip.format, file, place / f"again{number}", **given)
        except BadInput as error:
            print(f"    back from {result}: refused, {error.found}", flush=True)
            continue
        print(f"    back from {result}: {_compared(out, root / 'masks')}", flush=True)
        if result == "polygons":
            print(f"    against what the tool draws: {_compared(out, place / 'theirs' / 'drawn')}", flush=True)


def _compared(found: Path, known: Path) -> str:
    pixels = lost = differ = 0
    for path in sorted(found.rglob("*.png")):
        after, before = read_mask(path), read_mask(known / path.relative_to(found))
        pixels += before.size
        lost += int((before != after).sum())
        differ += bool((before != after).any())
    missing = len(list(known.rglob("*.png"))) - len(list(found.rglob("*.png")))
    return f"{differ} masks differ, in {lost} of {pixels} pixels; {missing} masks are missing"


def environment(tool: str, folder: Path) -> Path:
    """The interpreter of the tool's environment, which is made if it is missing."""
    place = folder / "environments" / tool
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run(["python3.11", "-m", "venv", place], check=True)
        needed = HERE / "requirements" / f"{tool}.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", needed], check=True)
    return python


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
