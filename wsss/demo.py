"""The command lines of `wsss demo`: generate pictures, then run CAM and CLIP-ES on them up to a scored segmenter."""

from collections.abc import Iterator
from pathlib import Path

from wsss.configs import CONFIGS

CLIP = CONFIGS / "demo_clip"


def commands(out: Path, quick: bool = False) -> Iterator[list[str]]:
    """The arguments of each command line (without `wsss`), in order.

    Args:
        out: output folder for the pictures and the two runs.
        quick: fewer pictures and epochs. This checks that everything works, in under a minute on two cores; the scores
            of such a short training mean nothing.
    """
    data = str(out / "shapes")
    train, val, size = ("40", "16", "96") if quick else ("600", "100", "112")
    yield ["data", "shapes", data, "--train", train, "--val", val, "--size", size]
    segmenter = ["--segmenter.training.epochs", "5"] if quick else []
    classifier = ["--classifier.training.epochs", "5"] if quick else []
    yield [*_run("cam", data, out), *classifier, *segmenter]
    words = ["--inference.clip", str(CLIP), "--inference.words", str(CLIP / "words.yaml")]
    yield [*_run("clip_es", data, out), *words, *segmenter]


def _run(method: str, data: str, out: Path) -> list[str]:
    return ["run", method, "--data", data, "--config", str(CONFIGS / f"demo_{method}.yaml"), "--out", str(out / method)]
