"""CPU time and peak memory of every stage against the number of pictures, their size, the number of classes, of tags a picture, and of processes.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --out FOLDER [--quick] [--axes pictures side classes tags processes] [--most 5000]

It draws tiny pictures, and runs the commands of a pipeline on them, each in a fork of this process, which has imported the libraries, and with
networks that take three updates, so that what is measured is the work per picture. Prints a table and writes FOLDER/growth.svg: CPU seconds
of all processes together, and the peak memory of the largest one, of which the libraries take about 500 MiB. What was measured is kept in
FOLDER/results.json, and is not repeated: a stopped measurement continues. `exponent` is that of the growth between the last two values: 1 is
linear, 0 is constant. `for one more` is what one more picture, megapixel, class, tag or process costs between each two values that follow
each other: where it stays the same, growth is linear, whatever the fixed part.
"""

import argparse
import importlib
import json
import math
import os
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from PIL import Image

from wsss.cli import main as command
from wsss.storage import write_json

mpl.use("svg")
from matplotlib import pyplot as plt

mpl.rcParams["svg.fonttype"] = "none"

# what the commands import, so that forks have it: before any of them runs, since threads do not survive a fork
for module in ("accelerate", "cv2", "numba", "timm", "wsss.recipe", "wsss.health.stages", "wsss.ops.crf.field", "wsss.refiners.crf",
               "wsss.stages.evaluate", "wsss.stages.localize", "wsss.stages.predict", "wsss.stages.segment"):  # fmt: skip
    importlib.import_module(module)


class Case(NamedTuple):
    """A dataset, how many processes work on it, and their global batch."""

    pictures: int = 100
    side: int = 32
    classes: int = 2
    tags: int = 1
    processes: int = 1
    batch: int = 2


AXES: Mapping[str, tuple[Case, tuple[int, ...], tuple[int, ...]]] = {
    "pictures": (Case(), (1000, 5000, 20000), (100, 300, 900)),
    # of the square pictures: 0.2, 1, 6, 24 megapixels
    "side": (Case(pictures=2), (448, 1000, 2450, 4900), (256, 512, 1024)),
    "classes": (Case(pictures=400), (2, 20, 200), (2, 20, 200)),
    "tags": (Case(pictures=100, side=64, classes=20), (1, 4, 16), (1, 4, 16)),
    "processes": (Case(pictures=1000, batch=4), (1, 2, 4), (1, 2)),
}
SMALL = {"train": ("--backbone", "test_resnet", "--init", "none", "--augment.long_side", "[32, 40]", "--augment.crop", "32"),
         "segment": ("--segmenter.network.backbone", "test_resnet", "--segmenter.init", "none", "--segmenter.augment.crop", "32",
                     "--segmenter.network.pyramid_scales", "[]")}  # fmt: skip
MEMORY = ("--memory", "3GB")


def commands(data: Path, out: Path, batch: int = 2) -> dict[str, list[str]]:
    """The command lines of the stages, by title; each reads what those before it wrote."""
    given = ["--data", str(data), *MEMORY]
    short = ("batch", str(batch)), ("steps", "3"), ("workers", "1")
    quick = {
        prefix: [word for key, value in short for word in (f"--{prefix}training.{key}", value)]
        for prefix in ("", "segmenter.")
    }
    masks, maps = out / "threshold" / "masks", out / "cams"
    predict = ["predict", "--weights", str(out / "segmenter"), "--pictures", str(data / "train"), *MEMORY]
    return {
        "data info": ["data", "info", str(data)],
        "train cam": ["train", "cam", *given, *SMALL["train"], *quick[""], "--out", str(out / "classifier")],
        "localize cam": ["localize", "cam", *given, "--weights", str(out / "classifier"), "--scales", "[1.0]", "--out", str(maps)],
        "refine (threshold)": ["refine", *given, "--cams", str(maps), "--refiner.by", "threshold", "--out", str(out / "threshold")],
        "refine (dense CRF)": ["refine", *given, "--cams", str(maps), "--out", str(out / "crf")],
        "evaluate maps": ["evaluate", *given, "--cams", str(maps), "--out", str(out / "cams-scores")],
        "evaluate masks": ["evaluate", *given, "--masks", str(masks), "--out", str(out / "masks-scores")],
        "segment": ["segment", *given, "--masks", str(masks), *SMALL["segment"], *quick["segmenter."], "--out", str(out / "segmenter")],
        "predict": [*predict, "--size", "full", "--out", str(out / "predictions")],
        "predict, finished": [*predict, "--size", "full", "--out", str(out / "predictions")],
    }  # fmt: skip


def draw(case: Case, data: Path) -> int:
    """Write noise with a rectangle for each tag, true masks, and a table of tags; 0."""
    part = data.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    for folder in ("train", "masks"):
        (part / folder).mkdir(parents=True)
    names = [f"class{index:03d}" for index in range(case.classes)]
    rows = ["image,tags,mask"]
    small = min(case.side, 64)
    for index in range(case.pictures):
        rng = np.random.default_rng(index)
        picture, mask = rng.integers(90, 150, (small, small, 3), np.uint8), np.zeros((small, small), np.uint8)
        chosen = (index + np.arange(case.tags)) % case.classes
        for place, one in enumerate(chosen):
            top, left = divmod(place, 4)
            rectangle = (
                slice(top * small // 4, (top + 1) * small // 4),
                slice(left * small // 4, (left + 1) * small // 4),
            )
            picture[rectangle], mask[rectangle] = (one * 37 % 256, one * 91 % 256, 200), one + 1
        size = (case.side, case.side)
        Image.fromarray(picture).resize(size).save(part / "train" / f"{index:05d}.jpg")
        Image.fromarray(mask).resize(size, Image.Resampling.NEAREST).save(part / "masks" / f"{index:05d}.png")
        rows.append(f"train/{index:05d}.jpg,{';'.join(names[one] for one in chosen)},masks/{index:05d}.png")
    (part / "tags.csv").write_text("\n".join(rows) + "\n")
    (part / "classes.txt").write_text("\n".join(names) + "\n")
    part.rename(data)
    return 0


def in_fork(work: Callable[[], int], log: Path) -> int:
    """Start a fork of this process that does some work and exits with the status it returns; the number of the fork."""
    child = os.fork()
    if child == 0:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        status = 1
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return child


def run(work: Callable[[], int], log: Path) -> dict[str, float]:
    """Do some work in a fork of this process; the CPU seconds and peak MiB of the fork and of those that it waits for."""
    log.unlink(missing_ok=True)
    _, status, usage = os.wait4(in_fork(work, log), 0)
    if status:
        raise SystemExit(f"{log.parent.name} failed: {log.read_text()[-2000:]}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024}


def together(words: list[str], processes: int, log: Path) -> int:
    """Run a command in several processes, forks of this one, as torchrun would start them."""
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }

    def one(rank: int) -> int:
        os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
        return command(words)

    children = [in_fork(partial(one, rank), log) for rank in range(processes)]
    return max(int(os.waitpid(child, 0)[1] != 0) for child in children)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def measure(axis: str, case: Case, value: int, out: Path, results: dict[str, dict[str, float]]) -> None:
    """Measure all stages of a case that were not measured yet."""
    name = f"{axis} {value}"
    folder = out / name
    titles = commands(folder / "data", folder, case.batch)
    if all(f"{name} {title}" in results for title in titles):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "log"
    # in a fork too: this process has to stay small
    run(partial(draw, case, folder / "data"), log)
    # nothing is known from earlier measurements, and nothing is left behind
    os.environ["WSSS_CACHE"] = str(folder / "cache")
    for title, words in titles.items():
        alone = case.processes == 1
        results[f"{name} {title}"] = run(
            partial(command, words) if alone else partial(together, words, case.processes, log), log
        )
        print(f"{name} {title}: {results[f'{name} {title}']}", file=sys.stderr, flush=True)
    write_json(out / "results.json", results)
    shutil.rmtree(folder)


def amounts(axis: str, at: list[int]) -> list[float]:
    """The amounts of work: for sides, megapixels."""
    return [value**2 / 1e6 for value in at] if axis == "side" else [float(value) for value in at]


def exponent(values: list[float], amount: list[float]) -> float:
    """The growth between the last two values."""
    return math.log(max(values[-1], 1e-9) / max(values[-2], 1e-9)) / math.log(amount[-1] / amount[-2])


def show(axis: str, at: list[int], results: Mapping[str, Mapping[str, float]]) -> None:
    """Print the table of an axis: CPU seconds and their exponent, memory, and for pictures and sides what one more of them costs."""
    amount = amounts(axis, at)
    what, memory, unit = ("MP", "B for a pixel", 1.048576) if axis == "side" else (axis, "KiB for one more", 1024)
    columns = [f"{one:.2g}" if axis == "side" else f"{one:g}" for one in amount]
    head = [f"CPU s: {columns[0]} {what}", *columns[1:], "exponent", f"MiB: {columns[0]}", *columns[1:]]
    head += ["ms for one more", memory] if axis in ("pictures", "side") else []
    print("", f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|", sep="\n")
    for title in commands(Path(), Path()):
        cpu, mib = ([results[f"{axis} {value} {title}"][key] for value in at] for key in ("cpu", "mib"))
        cells = [*(f"{one:.1f}" for one in cpu), f"{exponent(cpu, amount):.2f}", *(f"{one:.0f}" for one in mib)]
        cells += [each(cpu, amount, 1000), each(mib, amount, unit)]
        print(f"| {title} | {' | '.join(cells[: len(head)])} |")


def each(values: list[float], amount: list[float], unit: float) -> str:
    """What one more costs, between each two values that follow each other."""
    steps = zip(pairwise(values), pairwise(amount), strict=True)
    return ", ".join(f"{unit * (after - before) / (more - less):.3g}" for (before, after), (less, more) in steps)


def plot(axes: Mapping[str, list[int]], results: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw CPU seconds and memory of all stages against each axis, and a dotted line of linear growth."""
    figure, rows = plt.subplots(2, len(axes), figsize=(3.2 * len(axes), 6), squeeze=False)
    for column, (axis, at) in enumerate(axes.items()):
        amount = amounts(axis, at)
        for row, (key, label) in enumerate((("cpu", "CPU s"), ("mib", "peak MiB"))):
            one = rows[row][column]
            for title in commands(Path(), Path()):
                found = [results[f"{axis} {value} {title}"][key] for value in at]
                one.plot(amount, found, marker=".", label=title)
            one.set_xscale("log")
            one.set_xticks(amount, [f"{value:.2g}" if axis == "side" else f"{value:g}" for value in amount])
            one.set_xticks([], minor=True)
            one.set(xlabel="megapixels" if axis == "side" else axis, ylabel=label)
            if key == "cpu":
                one.set_yscale("log")
                one.yaxis.set_major_formatter("{x:g}")
                one.yaxis.set_minor_formatter("")
                lowest, highest = one.get_ylim()
                one.plot(amount, [lowest * value / amount[0] for value in amount], ":", color="grey", label="linear")
                one.set_ylim(lowest, highest)
            else:
                one.set_ylim(bottom=0)
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="lower center", ncols=6, fontsize="small")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=tuple(AXES))
    parser.add_argument("--quick", action="store_true", help="smaller numbers")
    parser.add_argument("--most", type=int, help="leave out numbers above this one")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    stored = options.out / "results.json"
    results = json.loads(stored.read_text()) if stored.exists() else {}
    axes = {
        axis: [one for one in AXES[axis][2 if options.quick else 1] if one <= (options.most or one)]
        for axis in options.axes
    }
    if any(len(at) < 2 for at in axes.values()):
        parser.error(f"--most {options.most} leaves fewer than two numbers of an axis")
    # not shown: the dense CRF is compiled for each width of labels when it is first used, as are contours
    for tags in AXES["tags"][1]:
        measure("first", Case(pictures=8, side=64, classes=20, tags=tags), tags, options.out, results)
    for axis, at in axes.items():
        for value in at:
            measure(axis, AXES[axis][0]._replace(**{axis: value}), value, options.out, results)
        show(axis, at, results)
    plot(axes, results, options.out / "growth.svg")


if __name__ == "__main__":
    main()
