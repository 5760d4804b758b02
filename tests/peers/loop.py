"""The whole loop: tags, masks, CVAT and Label Studio, ten corrected masks, a segmenter trained on them, ONNX. Prints commands, times and scores.

    python -m tests.peers.loop DATA FOLDER

DATA is a data set in VOC's layout with true masks, which stand in for what a person would draw. Datumaro and label-studio-sdk stand in for CVAT
and Label Studio; FOLDER gets their environments, as for `round_trips.py`, and one without torch for `infer.py`. Finished steps are not repeated.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.peers.round_trips import HERE, environment
from wsss.configs import CONFIGS
from wsss.data.files import read_mask

CONFIG = CONFIGS / "demo_cam.yaml"
COUNT = 10


def run(*words: object) -> None:
    """A command of ours, as a user types it."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "wsss", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    print(f"wsss {' '.join(map(str, words))}    # {time.monotonic() - start:.0f} s", flush=True)


def edited(tool: str, folder: Path, *words: object) -> None:
    """What the tool does to its copy."""
    script = HERE / f"edit_{tool}.py"
    subprocess.run([environment(tool, folder), script, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def main(data: Path, folder: Path) -> None:
    trip, truth = folder / "loop", data / "SegmentationClass"
    run_, again = trip / "run", trip / "again"
    run("run", "cam", "--data", data, "--config", CONFIG, "--out", run_)
    names = [path.stem for path in sorted((run_ / "masks").glob("*.png"))][:COUNT]
    for format, tool, exported in (("cvat", "datumaro", "."), ("labelstudio", "label_studio_sdk", "project.json")):
        place = trip / format
        run("export", "masks", run_ / "masks", "--format", format, "--out", place / "ours")
        if not (place / "theirs").exists():
            edited(tool, folder, place / "ours", truth, place / "theirs", *names)
        run(
            "import",
            "masks",
            place / "theirs" / exported,
            "--format",
            format,
            "--masks",
            run_ / "masks",
            "--out",
            place / "corrected",
        )
        found = {path.stem: read_mask(path) for path in (place / "corrected").glob("*.png")}
        assert sorted(found) == names
        for name, mask in found.items():
            drawn = read_mask(truth / f"{name}.png")
            assert ((mask == drawn) | (drawn == 255) & (mask == 0)).all(), name
        print(f"{format}: the {len(found)} corrected masks are those that were drawn", flush=True)
    corrected, segmenter = trip / "cvat" / "corrected", again / "segmenter"
    words = (
        "--data",
        data,
        "--masks",
        run_ / "masks",
        "--corrected",
        corrected,
        "--config",
        CONFIG,
        "--init",
        run_ / "classifier",
        # as many updates as without corrections
        "--training.steps",
        280,
    )
    run("segment", *words, "--out", segmenter)
    run("predict", "--pictures", data / "JPEGImages", "--weights", segmenter, "--out", again / "predictions")
    masks = ("--masks", again / "predictions")
    run("evaluate", "--data", data, "--split", "val", *masks, "--out", again / "scores")
    run("export", "model", segmenter, "--out", again / "model")
    val = (data / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    pictures = [next((data / "JPEGImages").glob(f"{name}.*")) for name in val]
    start = time.monotonic()
    words = (again / "model" / "infer.py", *pictures, "--out", again / "inferred")
    subprocess.run([environment("infer", folder), *words], check=True, stdout=subprocess.DEVNULL)
    print(f"infer.py, without torch: {len(val)} pictures, {time.monotonic() - start:.1f} s", flush=True)
    run("evaluate", "--data", data, "--split", "val", "--masks", again / "inferred", "--out", again / "inferred-scores")
    scored = {
        "pseudo masks alone": run_ / "predictions-scores",
        "ten corrected": again / "scores",
        "the same with infer.py": again / "inferred-scores",
    }
    for what, place in scored.items():
        scores = json.loads((place / "scores.json").read_text())["scores"]
        print(f"{what}: mIoU {100 * scores['miou']:.1f} %, pixel accuracy {100 * scores['pixel_accuracy']:.1f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
