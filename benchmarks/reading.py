"""Files opened and CPU seconds of `wsss evaluate --cams`, of this version and of another one.

    python benchmarks/reading.py [--baseline PYTHON] [--pictures 60] [--repeats 3] [--chain]

Makes a data set of pictures of 500x375 pixels with 1 to 3 generated maps each. Each version writes the maps in its own format and scores
them in processes of one thread; the versions take turns, and their scores must be equal byte for byte. Files are counted by an audit hook.
--chain measures instead what a run does with maps in this version: the threshold, scores of the maps, masks by a threshold or the dense CRF, and
scores of the masks.
PYTHON is the interpreter of the other version:

    git worktree add ../baseline 8185a4c && cd ../baseline && python -m venv .venv && .venv/bin/pip install -e .
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from wsss.data.images import Images

HEIGHT, WIDTH, CLASSES = 375, 500, ("cat", "dog", "cow", "car")
KINDS = {".npz": "maps", ".png": "masks", ".jpg": "pictures"}


def make(root: Path, count: int) -> None:
    """A folder with a table of tags and masks, with pictures of noise."""
    draw = np.random.default_rng(0)
    rows = ["image,tags,mask"]
    (root / "masks").mkdir()
    for i in range(count):
        truth = np.zeros((HEIGHT, WIDTH), np.uint8)
        present = sorted(draw.choice(len(CLASSES), 1 + i % 3, replace=False).tolist())
        for k in present:
            x, y, a, b = draw.uniform((50, 50, 20, 20), (WIDTH - 50, HEIGHT - 50, 120, 90)).astype(int).tolist()
            cv2.ellipse(truth, (x, y), (a, b), 0, 0, 360, k + 1, -1)
        picture = cv2.resize(draw.integers(0, 256, (24, 32, 3)).astype(np.uint8), (WIDTH, HEIGHT))
        Image.fromarray(picture).save(root / f"{i}.jpg")
        Image.fromarray(truth).save(root / "masks" / f"{i}.png")
        rows.append(f"{i}.jpg,{';'.join(CLASSES[k] for k in present)},masks/{i}.png")
    (root / "tags.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")


def measure(root: Path, out: Path) -> None:
    """Write the maps of the pictures, score them, and print what it took as JSON."""
    from wsss import open_dataset
    from wsss.data.files import write_cams
    from wsss.run import stage
    from wsss.stages.evaluate import ScoreSettings, evaluate_cams

    data = open_dataset(root)
    images = data.split(data.train)

    @stage(kind="generate", makes="maps", title="generated")
    def maps(*, out: Path) -> dict[str, object]:
        draw = np.random.default_rng(1)
        for i in range(len(images)):
            classes = np.flatnonzero(images.labels[i])
            truth = images.read_mask(i)
            coarse = np.stack([cv2.resize((truth == k + 1).astype(np.float32), (32, 24)) for k in classes.tolist()])
            scores = np.stack([cv2.resize(one + draw.random(one.shape, np.float32), (WIDTH, HEIGHT)) for one in coarse])
            scores /= scores.max((1, 2), keepdims=True)
            write_cams(out / f"{images.names[i]}.npz", classes, scores, scores[:, ::4, ::4])
        return {}

    maps(out=out / "cams")
    evaluate_cams(ScoreSettings(), images.subset([0]), cams=out / "cams", out=out / "first")  # compiles
    opened: Counter[str] = Counter()
    names = {"start": False}

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if names["start"] and event == "open" and (kind := KINDS.get(Path(str(arguments[0])).suffix)):
            opened[kind] += 1

    sys.addaudithook(hook)
    names["start"], start = True, time.process_time()
    evaluate_cams(ScoreSettings(), images, cams=out / "cams", out=out / "scores")
    seconds, names["start"] = time.process_time() - start, False
    files = b"".join(
        (out / "scores" / name).read_bytes() for name in ("scores.json", "per_image.json", "per_image_contour.json")
    )
    print(json.dumps({"seconds": seconds, "opened": opened, "scores": hashlib.sha256(files).hexdigest()}))


def chain(root: Path, out: Path) -> None:
    """The stages of a run that read maps and masks, one after the other."""
    from wsss import open_dataset
    from wsss.refiners.crf import CRFSettings, refine
    from wsss.stages.evaluate import ScoreSettings, evaluate_cams, evaluate_masks
    from wsss.stages.thresholds import choose_thresholds

    measure(root, out)  # which writes the maps, and compiles
    data = open_dataset(root)
    images = data.split(data.train)
    cams, scores = out / "cams", ScoreSettings()
    stages: dict[str, Callable[[Images, Path], Path]] = {
        "thresholds": lambda some, to: choose_thresholds(some, cams=cams, out=to / "thresholds"),
        "scores of maps": lambda some, to: evaluate_cams(scores, some, cams=cams, out=to / "cams-scores"),
        "masks (threshold)": lambda some, to: refine(
            CRFSettings(by="threshold", threshold=0.5), some, cams=cams, out=to / "cut"
        ),
        "masks (CRF)": lambda some, to: refine(CRFSettings(threshold=0.5), some, cams=cams, out=to / "masks"),
        "scores of masks": lambda some, to: evaluate_masks(scores, some, masks=to / "masks", out=to / "masks-scores"),
    }
    opened: Counter[str] = Counter()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and (kind := KINDS.get(Path(str(arguments[0])).suffix)):
            opened[kind] += 1

    for stage in stages.values():
        stage(images.subset([0, 1, 2]), out / "compiled")
    sys.addaudithook(hook)
    for name, stage in stages.items():
        opened.clear()
        begun = time.process_time()
        stage(images, out / "chain")
        each = 1e3 * (time.process_time() - begun) / len(images)
        print(f"{name:<20}{each:8.1f} CPU ms a picture, opened {dict(opened)}", flush=True)


def run(python: str, root: Path) -> dict[str, object]:
    """What `measure` prints, in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        command = [python, __file__, "--measure", str(root), out]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", help="Python of another version")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chain", action="store_true")
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    pythons = {"baseline": options.baseline} if options.baseline else {}
    pythons["this version"] = sys.executable
    with tempfile.TemporaryDirectory() as root:
        make(Path(root), options.pictures)
        if options.chain:
            with tempfile.TemporaryDirectory() as out:
                chain(Path(root), Path(out))
            return
        found: dict[str, list[dict[str, object]]] = {name: [] for name in pythons}
        for _ in range(options.repeats):
            for name, python in pythons.items():
                found[name].append(run(python, Path(root)))
    seconds = {name: statistics.median(float(str(one["seconds"])) for one in of) for name, of in found.items()}
    for name, of in found.items():
        print(f"{name:<14}{1e3 * seconds[name] / options.pictures:8.1f} CPU ms a picture, opened {of[0]['opened']}")
    if options.baseline:
        print(f"ratio {seconds['baseline'] / seconds['this version']:.2f}")
    if len({str(one["scores"]) for of in found.values() for one in of}) > 1:
        raise SystemExit("the scores differ")


if __name__ == "__main__":
    main()
