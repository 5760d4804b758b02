"""The command lines of `wsss demo`: generate pictures, run three methods up to a scored segmenter, compare them, and predict a picture."""

from collections.abc import Iterator
from pathlib import Path

from wsss.configs import CONFIGS
from wsss.processor import has_native

CLIP = CONFIGS / "demo_clip"
METHODS = ("cam", "clip_es", "recam")
# Pictures (training, validation), their longest side, epochs of each segmenter, and further settings of the CAM run
_WHOLE = ("300", "100", "112", "10", ())
_QUICK = ("40", "16", "96", "5", ("--classifier.training.epochs", "5"))
# ten epochs with batches of 8 give the mIoU of sixteen with batches of 16 (docs/performance.md)
_BATCH = "8"
# what each run trains; bfloat16 gives the mIoU of float32, and is faster where the processor has it
_TRAINED = {"cam": ("classifier", "segmenter"), "clip_es": ("segmenter",), "recam": ("classifier", "segmenter")}


def commands(out: Path, quick: bool = False) -> Iterator[list[str]]:
    """The arguments of each command line (without `wsss`), in order.

    Args:
        out: output folder for the pictures, the runs and their comparison.
        quick: fewer pictures and epochs. This checks that everything works; the scores of such a short training mean nothing.
    """
    train, val, size, epochs, of_cam = _QUICK if quick else _WHOLE
    data = out / "shapes"
    yield ["data", "shapes", str(data), "--train", train, "--val", val, "--size", size]
    more = {
        "cam": of_cam,
        "clip_es": ("--inference.clip", str(CLIP), "--inference.words", str(CLIP / "words.yaml")),
        # it goes on from the trained classifier of the first run
        "recam": ("--classifier.init", str(out / "cam" / "classifier")),
    }
    for method in METHODS:
        config = str(CONFIGS / f"demo_{method}.yaml")
        run = ["run", method, "--data", str(data), "--config", config, *more[method]]
        run += ["--segmenter.training.batch", _BATCH, "--segmenter.training.epochs", epochs]
        if has_native("bf16"):
            sections = ("inference", "test", *(f"{name}.training" for name in _TRAINED[method]))
            run += [word for name in sections for word in (f"--{name}.precision", "bf16")]
        yield [*run, "--out", str(out / method)]
    yield ["compare", *(str(out / method) for method in METHODS), "--out", str(out)]
    picture = data / "JPEGImages" / "val_00000.jpg"
    predict = ["predict", "--weights", str(out / "cam"), "--pictures", str(picture), "--overlay", "--json"]
    yield [*predict, "--out", str(out / "prediction")]
