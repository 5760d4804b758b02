"""A head on a frozen network against DeepLab v2: time, memory and accuracy with the same pictures, the same pseudo masks and the same backbone.

    wsss train cam --data D --preset quick --init none --out RUN/classifier        (and maps and masks, or `wsss run cam`)
    OMP_NUM_THREADS=1 python benchmarks/frozen.py --data D --run RUN --preset quick [--seeds 3] [--pictures 120]

Both have the settings of the preset, as in `wsss run cam` with `--segmenter deeplab` and `--segmenter frozen`: DeepLab starts from the run's
classifier, the head reads the tokens of the same classifier. With `--config` the settings of DeepLab and of the test are those of a file instead.
For each seed both are made anew, one after the other, in processes of their own with one thread and without loader processes; the first
of the pair changes from seed to seed. An epoch is the CPU time from the first update to the last, by the number of epochs between them; a stage is
everything, the cache of the tokens too.
Memory is the peak of the process beyond what it has before the stage. mIoU is that of the predictions for the validation pictures.
"""

import argparse
import dataclasses
import logging
import multiprocessing
import resource
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from wsss import watch
from wsss.data.documents import read_document
from wsss.data.open import open_dataset
from wsss.methods import method
from wsss.recipe import preset_settings, settings_of
from wsss.settings import build
from wsss.stages.evaluate import evaluate_masks
from wsss.stages.predict import predict
from wsss.stages.segment import segment
from wsss.stages.tokens import cache_tokens
from wsss.storage import read_json

KINDS = ("deeplab", "frozen")


class Found(NamedTuple):
    """What a segmenter took and reached: CPU seconds, MB, per cent."""

    cache: float
    epoch: float
    stage: float
    memory: float
    miou: float


class Updates:
    """Notes the CPU time after each update of a training; see `wsss.watch.Listener`."""

    def __init__(self) -> None:
        self.after: list[float] = []

    def advanced(self, title: str, done: int, total: int) -> None:
        if title.startswith("train "):
            self.after.append(cpu_seconds())

    def training(self, *_: object) -> None: ...

    def stage_started(self, *_: object) -> None: ...

    def stage_finished(self, *_: object) -> None: ...

    @property
    def seconds(self) -> float:
        """Of one update."""
        return (self.after[-1] - self.after[0]) / (len(self.after) - 1)


def cpu_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


def megabytes(name: str) -> float:
    """A number in /proc/self/status: VmRSS is the memory of this process, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


def measured(job: tuple[str, argparse.Namespace, int]) -> Found:
    """Make one segmenter, in a process of its own."""
    kind, given, seed = job
    logging.disable()
    cam = method("cam")
    of_preset = partial(preset_settings, cam, given.preset)
    content = None if given.config is None else read_document(given.config, "settings")
    whole: Any = of_preset() if content is None else build(settings_of(cam), content)
    settings: Any = whole.segmenter
    if kind == "frozen":
        settings = of_preset({"segmenter": {"kind": kind, **given.head}}).segmenter
    training = dataclasses.replace(settings.training, workers=0, seed=seed)
    settings = dataclasses.replace(settings, training=training)
    data = open_dataset(given.data)
    assert data.val
    images, val = data.split(data.train), data.split(data.val)
    images = images.subset(range(given.pictures or len(images)))
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        out, tokens = Path(folder) / kind, Path(folder) / "tokens"
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        before, start = megabytes("VmRSS"), cpu_seconds()
        if kind == "frozen":
            cache_tokens(settings.after(given.run / "classifier").of_tokens, images, out=tokens)
        cached = cpu_seconds()
        classifier = given.run / "classifier"
        updates = Updates()
        with watch.listening(updates):
            segment(settings, images, masks=given.run / "masks", out=out, classifier=classifier, tokens=tokens)
        end, peak = cpu_seconds(), megabytes("VmHWM")
        masks = predict(whole.test, val, weights=out, out=Path(folder) / "predictions")
        scores = evaluate_masks(whole.scores, val, masks=masks, out=Path(folder) / "scores")
        miou = read_json(scores / "scores.json", "scores")["scores"]["miou"]
    epoch = max(1, len(images) // training.batch // training.accumulate) * updates.seconds
    return Found(cached - start, epoch, end - start, peak - before, 100 * miou)


def line(name: str, values: Sequence[float | str]) -> str:
    return f"{name:10}" + "".join(f"{value:>12.2f}" if isinstance(value, float) else f"{value:>12}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished `wsss run cam`")
    parser.add_argument("--config", type=Path, help="settings of DeepLab and of the test, instead of the preset's")
    parser.add_argument("--preset", type=str, default="quick", help="settings of both")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of the head")
    parser.add_argument("--pictures", type=int, help="train on the first ones only")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only one of the two")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where segmenters are written and removed")
    given = parser.parse_args()
    given.head = nested(given.set)
    found: dict[str, list[Found]] = {kind: [] for kind in given.kinds}
    print(line("", ["cache s", "epoch s", "stage s", "MB", "mIoU %"]))
    for seed in range(given.seeds):
        for kind in given.kinds[:: 1 if seed % 2 == 0 else -1]:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[kind].append(pool.apply(measured, ((kind, given, seed),)))
            print(line(f"{kind} {seed}", found[kind][-1]), flush=True)
    means = {kind: Found(*(mean(column) for column in zip(*found[kind], strict=True))) for kind in given.kinds}
    for kind, values in means.items():
        print(line(kind, values))
    if len(means) == len(KINDS):
        deeplab, head = (means[kind] for kind in KINDS)
        ratios = [deeplab.epoch / head.epoch, deeplab.stage / head.stage, deeplab.memory / head.memory]
        print(line("ratio", ["", *ratios, f"{head.miou - deeplab.miou:+.1f}"]))


def nested(words: Sequence[str]) -> dict[str, Any]:
    """`features.layers=2` as nested settings."""
    content: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        place = content
        *sections, last = name.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = int(value) if value.isdigit() else value
    return content


if __name__ == "__main__":
    main()
