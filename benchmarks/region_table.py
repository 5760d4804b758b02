"""Refiners with regions against the others, on one data set: scores, CPU seconds for each picture, and memory.

    python benchmarks/region_table.py OUT --data D --name birds --pictures photographs [--seeds 0 1 2] [--rows maps crf levels ..]
    python benchmarks/region_table.py OUT

The first trains a CAM classifier from scratch for each seed, makes its maps, and then the masks of each row, by the commands of `wsss`; the second
only prints the tables. D needs true masks of both splits. Each kind of `--pictures` has its own network and schedule, see `SETTINGS`. What was
measured is in OUT/rows.jsonl; a stopped command continues, and other rows or seeds can be added.

Masks of the training pictures are scored, except for the segmenters, which are scored on val. The threshold of maps is Otsu's. Seconds are those
of user and system together, with the start of the commands; a row does not count what it starts from (classifier, maps, for the segmenters also the
masks), but its regions and its training; for segmenters they are divided by the pictures of val too. Memory is the peak of the largest process. One
thread for each process.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import wsss
from wsss.data.files import write_mask
from wsss.stages.evaluate import SCORES, ScoreSettings, evaluate_masks
from wsss.storage import read_json
from wsss.weights import WEIGHTS

# unsure: levels with a second threshold, between the two of which pixels are ignored (in the score they are background)
REFINERS = ("maps", "crf", "irnet", "affinitynet", "levels", "unsure", "votes", "sepl", "sams", "mode")
# what the flags lie over, on any computer
PRESET = "--preset small-cpu"
# the masks that a DeepLab is trained on
TAUGHT = ("crf", "levels", "unsure", "votes", "truth")
SEGMENTERS = ("retrieval", *(f"deeplab on {masks}" for masks in TAUGHT))


class Settings(NamedTuple):
    """Flags for one kind of pictures.

    Attributes:
        classifier, maps, network, segmenter: of `wsss train`, `wsss localize`, of IRNet's and AffinityNet's networks, and of DeepLab.
    """

    classifier: str
    maps: str
    network: str
    segmenter: str


def _settings(backbone: str, stride: int, steps: int, sides: str, crop: int, lr: float, of_segmenter: int) -> Settings:
    adamw = "--{0}.optimizer adamw --{0}.weight_decay 0.05 --{0}.workers 0"
    net, training = "refiner.network", "segmenter.training"
    return Settings(
        classifier=f"--backbone {backbone} --output_stride {stride} --init none --classifier_lr 1 --augment.long_side {sides} "
        f"--augment.crop {crop} --training.batch 8 --training.steps {steps} --training.lr {lr} --training.warmup 100 "
        + adamw.format("training"),
        maps="--scales [1.0,0.75]",
        network=f"--{net}.backbone {backbone} --{net}.init classifier --{net}.augment.crop {crop // 16 * 16} --{net}.training.batch 8 "
        f"--{net}.training.steps 200 --{net}.training.momentum 0.9 --{net}.training.workers 0",
        segmenter=f"--segmenter.network.backbone {backbone} --segmenter.network.output_stride {stride} "
        "--segmenter.network.atrous_rates [1,2,4] --segmenter.network.pyramid_scales [] --segmenter.network.batch_norm live "
        f"--segmenter.loss balanced --segmenter.augment.scales [0.6,0.8,1.0] --segmenter.augment.crop {crop} --{training}.batch 8 "
        f"--{training}.accumulate 1 --{training}.steps {of_segmenter} --{training}.lr 0.0005 --{training}.warmup 50 "
        + adamw.format(training),
    )


SETTINGS = {
    "photographs": _settings("resnet10t", 16, 1600, "[112,184]", 128, 0.0015, 400),
    "small photographs": _settings("test_resnet", 8, 1500, "[96,144]", 112, 0.003, 600),
    "shapes": _settings("test_resnet", 8, 600, "[88,120]", 104, 0.003, 600),
}


class Spent(NamedTuple):
    """What commands used: CPU seconds, and the peak memory of the largest in MB."""

    seconds: float
    memory: float

    def __add__(self, other: "Spent") -> "Spent":  # type: ignore[override]
        return Spent(self.seconds + other.seconds, max(self.memory, other.memory))


def run(arguments: str, out: Path) -> Spent:
    """Run `wsss ARGUMENTS --out OUT`, unless it is done; what it used is stored beside OUT.

    Raises:
        SystemExit: the command failed; its output has been printed.
    """
    done = out.parent / f"{out.name}.spent.json"
    if not done.exists():
        # what a stopped command has written would not be counted
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "wsss", *arguments.split(), "--out", str(out)]
        log = out.parent / f"{out.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)}\n{log.read_text()}")
        # kilobytes on Linux, bytes on macOS
        unit = 2**20 if sys.platform == "darwin" else 2**10
        done.write_text(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / unit]))
    return Spent(*json.loads(done.read_text()))


class Set(NamedTuple):
    """One seed on one data set.

    Attributes:
        data: the data set.
        settings: its flags.
        seed: of all trainings.
        regions: folder of its regions, made once for all seeds.
        folder: of everything else.
    """

    data: Path
    settings: Settings
    seed: int
    regions: Path
    folder: Path

    def prepare(self) -> None:
        """Train the classifier and make its maps."""
        seed = f"--training.seed {self.seed}"
        run(f"train cam {PRESET} --data {self.data} {self.settings.classifier} {seed}", self.folder / "classifier")
        weights = f"--weights {self.folder / 'classifier'}"
        run(f"localize cam {PRESET} --data {self.data} {weights} {self.settings.maps}", self.folder / "cams")

    def refined(self, row: str) -> Spent:
        """Make the masks of a row."""
        start = f"refine {PRESET} --data {self.data} --cams {self.folder / 'cams'}"
        classifier = f"--classifier {self.folder / 'classifier'}"
        out = self.folder / row
        if row in ("maps", "crf"):
            return run(f"{start} --refiner crf --refiner.by {'threshold' if row == 'maps' else 'crf'}", out)
        if row in ("irnet", "affinitynet"):
            more = {
                "irnet": "--refiner.labels.by threshold --refiner.walk.pad_to 0",
                "affinitynet": "--refiner.labels.low otsu --refiner.labels.high otsu --refiner.walk.alpha otsu --refiner.walk.shrink true",
            }[row]
            seed = f"--refiner.network.training.seed {self.seed}"
            return run(f"{start} {classifier} --refiner {row} {self.settings.network} {more} {seed}", out)
        proposed = run(f"regions --data {self.data}", self.regions)
        more = {
            "votes": classifier,
            "mode": "--mode.level 1 --mode.score 0",
            "unsure": "--refiner.masks.lower otsu",
        }.get(row, "")
        by = "levels" if row == "unsure" else row
        return proposed + run(f"{start} --refiner regions --by {by} --regions {self.regions} {more}", out)

    def segmented(self, row: str) -> Spent:
        """Make the segmenter of a row, and its predictions for val."""
        masks = self.folder / ("crf" if row == "retrieval" else row.split()[-1]) / "masks"
        if row == "deeplab on truth":
            masks = self.true_masks()
        elif row != "retrieval":
            self.refined(masks.parent.name)
        out = self.folder / row.replace(" ", "-")
        start = f"--segmenter.init {self.folder / 'classifier' / WEIGHTS} --segmenter.training.seed {self.seed}"
        more = f"{PRESET} {start} {self.settings.segmenter}"
        if row == "retrieval":
            more = f"--segmenter retrieval --preset quick --features.source {self.folder / 'classifier'}"
        made = run(f"segment --data {self.data} --masks {masks} {more}", out)
        pictures = self.pictures_of_val()
        return made + run(f"predict --weights {out} --pictures {pictures}", out.with_name(f"{out.name}-predicted"))

    def true_masks(self) -> Path:
        """The true masks of the training pictures, as pseudo masks."""
        out, images = self.folder / "truth" / "masks", wsss.open_dataset(self.data).split("train")
        out.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(images.names):
            write_mask(out / f"{name}.png", images.read_mask(index))
        return out

    def pictures_of_val(self) -> Path:
        """A folder with the pictures of val only."""
        out = self.regions.parent / "val"
        out.mkdir(exist_ok=True)
        for path in wsss.open_dataset(self.data).split("val").paths:
            if not (out / path.name).exists():
                shutil.copy(path, out)
        return out

    def measured(self, row: str) -> dict[str, float | int]:
        """Scores and cost of a row."""
        self.prepare()
        segmenter = row in SEGMENTERS
        spent = self.segmented(row) if segmenter else self.refined(row)
        name, split = row.replace(" ", "-"), "val" if segmenter else "train"
        masks = self.folder / (f"{name}-predicted" if segmenter else f"{name}/masks")
        images, scored = wsss.open_dataset(self.data).split(split), self.folder / f"{name}-scores"
        scores = read_json(evaluate_masks(ScoreSettings(), images, masks=masks, out=scored) / SCORES, "scores")
        n = len(images)
        return {
            "seed": self.seed,
            "miou": 100 * scores["scores"]["miou"],
            "contour_f": 100 * scores["contour"]["mean_f"],
            "seconds": spent.seconds / n,
            "memory": spent.memory,
            "pictures": n,
        }


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that were measured."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def show(rows: list[dict[str, Any]]) -> None:
    """Print the tables in Markdown: scores on each data set, means over the seeds and half their range, and differences of equal seeds."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    # of each row and data set, the scores by seed
    scores: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for row in rows:
        scores.setdefault((row["row"], row["name"]), {})[row["seed"]] = np.array([row["miou"], row["contour_f"]])
    for title, kinds, reference in (
        ("masks of the training pictures", REFINERS, "crf"),
        ("predictions for val", SEGMENTERS, "deeplab on crf"),
    ):
        present = [kind for kind in kinds if any(row["row"] == kind for row in rows)]
        if not present:
            continue
        print(f"\n{title}: mIoU / contour F, {_seeds(rows, present)}\n")
        print(f"| | {' | '.join(names)} | CPU s | MB |\n|---{'|---' * len(names)}|---|---|")
        for kind in present:
            of_kind = [row for row in rows if row["row"] == kind]
            seconds, memory = np.mean([row["seconds"] for row in of_kind]), max(row["memory"] for row in of_kind)
            shown = " | ".join(_means(list(scores.get((kind, name), {}).values())) for name in names)
            print(f"| {kind} | {shown} | {seconds:.2f} | {memory:.0f} |")
        print(f"\n{title}: mean difference to `{reference}`, equal seeds\n")
        print(f"| | {' | '.join(names)} | mean | lowest |\n|---{'|---' * len(names)}|---|---|")
        for kind in present:
            if kind != reference:
                print(f"| {kind} | {' | '.join(_differences(scores, kind, reference, names))} |")
    if any(_pairs(scores, "votes", "levels", name) for name in names):
        *of_sets, mean, lowest = _differences(scores, "votes", "levels", names)
        each = ", ".join(f"{name} {of_set}" for name, of_set in zip(names, of_sets, strict=True) if of_set)
        print(f"\n`votes` against `levels`: mean {mean}, lowest {lowest} ({each})")


def _seeds(rows: list[dict[str, Any]], kinds: list[str]) -> str:
    """How many seeds the rows have."""
    numbers = {
        len({row["seed"] for row in rows if (row["row"], row["name"]) == pair})
        for pair in {(row["row"], row["name"]) for row in rows if row["row"] in kinds}
    }
    few, many = min(numbers), max(numbers)
    return f"{many} seed{'s' if many > 1 else ''}" if few == many else f"{few} to {many} seeds"


def _means(values: list[np.ndarray]) -> str:
    """mIoU and F of several seeds; nothing for none."""
    if not values:
        return ""
    means, spreads = np.mean(values, axis=0), np.ptp(values, axis=0) / 2
    several = len(values) > 1
    return " / ".join(
        f"{mean:.1f}" + (f" ± {spread:.1f}" if several else "") for mean, spread in zip(means, spreads, strict=True)
    )


def _pairs(
    scores: dict[tuple[str, str], dict[int, np.ndarray]], kind: str, reference: str, name: str
) -> list[np.ndarray]:
    """The differences of two rows on a data set, for the seeds that both have."""
    one, other = scores.get((kind, name), {}), scores.get((reference, name), {})
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def _differences(
    scores: dict[tuple[str, str], dict[int, np.ndarray]], kind: str, reference: str, names: list[str]
) -> list[str]:
    """Those of each data set, their mean over data sets and seeds, and the lowest of a data set and seed."""
    of_sets = [_pairs(scores, kind, reference, name) for name in names]
    everything = [pair for pairs in of_sets for pair in pairs]
    shown = [np.mean(pairs, axis=0) if pairs else None for pairs in of_sets]
    shown += [np.mean(everything, axis=0), np.min(everything, axis=0)] if everything else [None, None]
    return ["" if one is None else " / ".join(f"{value:+.1f}" for value in one) for one in shown]


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--name", default="data", help="of the data set, in the tables")
    parser.add_argument("--pictures", choices=SETTINGS, default="photographs")
    parser.add_argument("--updates", type=int, help="of the classifier, in place of those in SETTINGS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", choices=(*REFINERS, *SEGMENTERS), default=[*REFINERS, *SEGMENTERS])
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    path = given.out / "rows.jsonl"
    settings = SETTINGS[given.pictures]
    if given.updates:
        # the last of two equal flags counts
        settings = settings._replace(classifier=f"{settings.classifier} --training.steps {given.updates}")
    for seed in given.seeds if given.data else ():
        folder = given.out / given.name
        one = Set(given.data, settings, seed, folder / "regions", folder / f"seed-{seed}")
        for row in given.rows:
            if any((r["name"], r["seed"], r["row"]) == (given.name, seed, row) for r in read(path)):
                continue
            found = {"name": given.name, "row": row, **one.measured(row)}
            with path.open("a") as stream:
                stream.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)
    show(read(path))


if __name__ == "__main__":
    main()
