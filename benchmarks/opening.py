"""CPU seconds for opening what is known already, against an earlier build (benchmarks/startup.py says how to make one).

1. `again`: a finished `wsss refine` on pictures with true masks, run once more; at 128x96 and at 500x375, or at one `--size`.
2. `check`: opening and checking pictures of 500x375 with true masks, for the first time and again.
3. `scan`: which of the outputs exist, when a stage is resumed; and whether a finished one is unchanged.
4. `coco`: an annotation file of the size of COCO's training split, 860,001 objects on 118,287 pictures.
5. `resumed`: `wsss refine`, killed when half of the masks existed, run again; and killed just before its record, when nothing is left to compute.

    OMP_NUM_THREADS=1 python benchmarks/opening.py --baseline ../earlier/.venv/bin/python [--pictures 20000] [--outputs 120000] [--part again]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

# Suffixes of the files of a picture, by folder
FILES = {"JPEGImages": ".jpg", "SegmentationClass": ".png", "Annotations": ".xml", "cams": ".npz"}

SCAN = """
import sys, time
from pathlib import Path
import numpy as np
from wsss import outputs
from wsss.data.images import Images
from wsss.stages.each import for_each_picture
out, count = Path(sys.argv[1]), int(sys.argv[2])
record = {"files": out.with_suffix(".digest").read_text(), "makes": "masks", "kind": "masks"}
began = time.process_time()
outputs.changes(out, record)
changed = time.process_time() - began
names = tuple(f"{i:06}" for i in range(count))
images = Images("bench", names, tuple(out / f"{name}.png" for name in names), ("cat",), np.ones((count, 1), bool), (None,) * count)
began = time.process_time()
for_each_picture(images, out, ".png", None, None, None, title="scan")
print(changed, time.process_time() - began)
"""
CHECK = """
import sys, time
from pathlib import Path
from wsss.stages.check import open_checked
began = time.process_time()
open_checked(Path(sys.argv[1]), skip_bad=False)
print(time.process_time() - began)
"""
COCO = """
import sys, time, resource
from pathlib import Path
from wsss.data.coco_index import read_instances
began = time.process_time()
read_instances(Path(sys.argv[1]))
print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def environment_with(cache: Path) -> dict[str, str]:
    """The environment of a command; compiled modules are kept, as usual."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "WSSS_CACHE": str(cache)
    }


def seconds(command: list[str], cache: Path) -> float:
    """CPU seconds of a command."""
    environment = environment_with(cache)
    process = subprocess.Popen(command, cwd="/", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime


def printed(python: str, code: str, cache: Path, *words: object) -> list[float]:
    """The numbers that a script prints."""
    done = subprocess.run(
        [python, "-c", code, *map(str, words)],
        cwd="/",
        env=environment_with(cache),
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return [float(word) for word in done.stdout.split()]


def write_data(folder: Path, count: int, width: int, height: int, different: int = 300) -> None:
    """A VOC folder of pictures of one class each, with true masks, and maps in the format that both builds read.

    Only the first files are `different`: the others are hard links to them.
    """
    rng = np.random.default_rng(0)
    names = [f"{index:06}" for index in range(count)]
    for place in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation", "cams"):
        (folder / place).mkdir(parents=True)
    (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("".join(f"{name}\n" for name in names))
    for index, name in enumerate(names[:different]):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros((height, width), np.uint8)
        mask[20:60, 20:60] = 1 + index % 2
        Image.fromarray(mask).save(folder / "SegmentationClass" / f"{name}.png")
        tag = f"<annotation><object><name>{('cat', 'dog')[index % 2]}</name></object></annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(tag)
        maps = (mask > 0)[None].astype(np.float16)
        np.savez(
            folder / "cams" / f"{name}.npz", classes=np.array([index % 2]), maps=maps, maps_stride4=maps[:, ::4, ::4]
        )
    for index, name in enumerate(names[different:]):
        for place, suffix in FILES.items():
            os.link(folder / place / f"{names[index % different]}{suffix}", folder / place / f"{name}{suffix}")


def refine_command(python: str, data: Path, out: Path) -> list[str]:
    """The command that makes masks by a threshold."""
    words = [python, "-m", "wsss", "refine", "--data", str(data), "--cams", str(data / "cams"), "--out", str(out)]
    return [*words, "--refiner.by", "threshold", "--refiner.threshold", "0.3"]


def again(folder: Path, count: int, pythons: list[str], size: tuple[int, int]) -> None:
    """A finished stage on pictures with true masks, run once more."""
    data, title = folder / "data", f"{count} pictures of {size[0]}x{size[1]}"
    write_data(data, count, *size)
    # files that were just written are not remembered
    time.sleep(3)
    print("| | CPU s before | CPU s | ratio |\n|---|---|---|---|")
    for name in (f"`wsss refine`, {title}", "the same again", "and again"):
        before, now = (
            seconds(refine_command(python, data, folder / f"masks{number}"), folder / f"cache{number}")
            for number, python in enumerate(pythons)
        )
        print(f"| {name} | {before:.2f} | {now:.2f} | {before / now:.1f} |", flush=True)


def resumed(folder: Path, count: int, pythons: list[str], size: tuple[int, int]) -> None:
    """A stage that was killed, run again."""
    data = folder / "data"
    write_data(data, count, *size)
    time.sleep(3)
    print("| | CPU s before | CPU s | ratio |\n|---|---|---|---|")
    commands = [refine_command(python, data, folder / f"masks{number}") for number, python in enumerate(pythons)]
    for number, command in enumerate(commands):
        seconds(command, folder / f"cache{number}")
    for name, left_out in (("all masks exist", 0), ("half of them", 2)):
        found = []
        for number, command in enumerate(commands):
            stage = folder / f"masks{number}" / "masks"
            record = json.loads((stage / "done.json").read_text())
            for key in ("result", "files"):
                del record[key]
            (stage / "started.json").write_text(json.dumps(record))
            (stage / "done.json").unlink()
            for mask in sorted(stage.glob("*.png"))[::left_out] if left_out else ():
                mask.unlink()
            found.append(seconds(command, folder / f"cache{number}"))
        before, now = found
        print(
            f"| killed and resumed, {count} pictures of {size[0]}x{size[1]}: {name} | {before:.2f} | {now:.2f} | {before / now:.1f} |",
            flush=True,
        )


def check(folder: Path, count: int, pythons: list[str]) -> None:
    """Opening and checking a data set, for the first time and again."""
    data = folder / "large"
    write_data(data, count, 500, 375, different=count)
    found = [
        [printed(python, CHECK, folder / f"cache{number}", data)[0] for _ in range(2)]
        for number, python in enumerate(pythons)
    ]
    print("| CPU s for 1000 pictures of 500x375 | before | now | ratio |\n|---|---|---|---|")
    for name, before, now in zip(("first", "again"), *found, strict=True):
        print(f"| {name} | {before / count * 1000:.2f} | {now / count * 1000:.2f} | {before / now:.1f} |", flush=True)


def scan(folder: Path, count: int, pythons: list[str]) -> None:
    """The outputs of a finished stage: whether they are unchanged, and which exist."""
    from wsss import outputs

    out = folder / "outputs"
    out.mkdir()
    for index in range(count):
        (out / f"{index:06}.png").write_bytes(b"%d" % index)
    when = outputs.past_time()
    out.with_suffix(".digest").write_text(outputs.write_list(out, when))
    (out / outputs.DONE).write_text("{}")
    outputs.set_time(out / outputs.DONE, when)
    found = [[printed(python, SCAN, folder / "cache", out, count) for python in pythons] for _ in range(3)]
    print("| | CPU s before | CPU s | ratio |\n|---|---|---|---|")
    for position, name in enumerate(("unchanged?", "which exist?")):
        before, now = (min(turn[number][position] for turn in found) for number in (0, 1))
        print(f"| {count} outputs: {name} | {before:.2f} | {now:.2f} | {before / now:.1f} |", flush=True)


def write_coco(path: Path, pictures: int = 118_287, objects: int = 860_001) -> None:
    """Annotations with the numbers of COCO's training split, and polygons of its usual length."""
    draw = random.Random(0)
    polygons = [[round(draw.uniform(0, 640), 2) for _ in range(2 * draw.randint(6, 60))] for _ in range(500)]
    texts = [json.dumps(polygon) for polygon in polygons]
    with path.open("w") as stream:
        stream.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        row = '{{"license": 3, "file_name": "{0:012}.jpg", "height": 480, "width": 640, "date_captured": "2013-11-14 17:02:52", "id": {0}}}'
        stream.write(", ".join(row.format(index) for index in range(1, pictures + 1)))
        stream.write('], "annotations": [')
        for index in range(objects):
            head = f'{{"segmentation": [{draw.choice(texts)}], "area": {draw.uniform(1, 9e4):.2f}, "iscrowd": 0, "image_id": {index % pictures + 1}, '
            stream.write(
                f'{", " if index else ""}{head}"bbox": [1.5, 2.5, 30.25, 40.75], "category_id": {index % 80 + 1}, "id": {index + 1}}}'
            )
        categories = [{"supercategory": "thing", "id": index, "name": f"class {index}"} for index in range(1, 81)]
        stream.write(f'], "categories": {json.dumps(categories)}}}')


def coco(folder: Path, pythons: list[str]) -> None:
    """An annotation file of COCO's size."""
    path = folder / "instances.json"
    write_coco(path)
    # a file that was just written is not remembered
    time.sleep(3)
    found = [
        [printed(python, COCO, folder / f"cache{number}", path) for _ in range(2)]
        for number, python in enumerate(pythons)
    ]
    print("| | CPU s before | CPU s | ratio | MiB before | MiB |\n|---|---|---|---|---|---|")
    size = path.stat().st_size / 2**20
    for name, (before, old), (now, new) in zip(("", ", again"), *found, strict=True):
        print(
            f"| annotations of {size:.0f} MiB{name} | {before:.2f} | {now:.2f} | {before / now:.1f} | {old:.0f} | {new:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", required=True, help="Python of an environment with the earlier build")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--large", type=int, default=300, help="pictures of the part `check`")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="pictures of the parts `again` and `resumed`"
    )
    parser.add_argument("--outputs", type=int, default=120_000)
    parser.add_argument("--part", choices=("again", "check", "scan", "coco", "resumed"), help="only this part")
    options = parser.parse_args()
    pythons = [options.baseline, sys.executable]
    sizes = [tuple(options.size)] if options.size else [(128, 96), (500, 375)]
    for part, measure in (("again", again), ("resumed", resumed)):
        for size in sizes if options.part in (None, part) else ():
            with tempfile.TemporaryDirectory() as scratch:
                measure(Path(scratch), options.pictures, pythons, size)
    with tempfile.TemporaryDirectory() as scratch:
        if options.part in (None, "check"):
            check(Path(scratch), options.large, pythons)
        if options.part in (None, "scan"):
            scan(Path(scratch), options.outputs, pythons)
        if options.part in (None, "coco"):
            coco(Path(scratch), pythons)


if __name__ == "__main__":
    main()
