"""Write a trained segmenter for other programs: ONNX, TorchScript, or a folder for Hugging Face's hub."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from wsss.arrays import UInt8
from wsss.data.images import Images
from wsss.deploy import card, onnx, torchscript
from wsss.deploy.network import DeployedSegmenter, Views
from wsss.errors import BadInput, check_range
from wsss.health import notes
from wsss.metrics import ConfusionMatrix, scores
from wsss.outputs import LOCK
from wsss.segmenters.retrieval import TrainedRetrieval
from wsss.segmenters.weclip import TrainedWeCLIP
from wsss.stages.check import read_notes, reopen
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.storage import write_json, write_text
from wsss.weights import WEIGHTS, find_trained, read_weights, weights_in, write_weights

Format = Literal["onnx", "torchscript", "hub"]
FLOAT, CONFIG, README, INFER = "model-float32.onnx", "config.json", "README.md", "infer.py"
_OURS = frozenset([LOCK, onnx.MODEL, FLOAT, torchscript.MODEL, WEIGHTS, CONFIG, README, INFER])
# pictures on which the exported model is compared with torch, that calibrate 8-bit integers, and that measure their cost
COMPARED, CALIBRATED, MEASURED = 20, 100, 500
# sizes of the random pictures that stand in for a dataset that is not there
_SIZES_HW = ((97, 131), (64, 200), (150, 111))

log = logging.getLogger("wsss")


@dataclasses.dataclass(frozen=True)
class ModelExport:
    """How a model is exported."""

    views: Views = Views()
    int8: bool = False
    max_loss: float = 2.0
    licence: str = "unknown"

    def __post_init__(self) -> None:
        check_range("--scales", self.views.scales, 0.01)
        check_range("--max_loss", self.max_loss, 0, 100)


class Loss(NamedTuple):
    """What 8-bit integers cost.

    Attributes:
        points: mIoU of the float model minus that of the 8-bit model, in points of 100.
        measure: what was measured, in words.
    """

    points: float
    measure: str


def export_model(where: Path, out: Path, form: Format, settings: ModelExport = ModelExport()) -> Path:
    """Write the segmenter of a run in the format `form`, and beside it its configuration and a model card.

    Args:
        where: a run folder, or the folder of a segmenter, or its weights.
        out: a new or empty folder, or one of an earlier export.
        form: `onnx`: model.onnx and infer.py; `torchscript`: model.pt; `hub`: weights.safetensors, which `wsss.load` reads.
        settings: views, 8-bit integers, licence.

    Returns:
        The main file.

    Raises:
        BadInput: there is no segmenter; packages are missing; the exported model does not compute the same; 8-bit integers cost too
            much, or there are no pictures to calibrate them with; `out` contains other files.
    """
    if settings.int8 and form != "onnx":
        raise BadInput("--int8", f"--format {form}", "--format onnx", "Only ONNX models can have 8-bit integers here.")
    if form == "onnx":
        onnx.check_installed()
    _check_out(out)
    weights = weights_in(find_trained(where, "segmenter"))
    segmenter = Segmenter(weights, PredictSettings(), torch.device("cpu"))
    if form != "hub" and isinstance(segmenter.trained, TrainedRetrieval):
        do = "Use --format hub, or train another kind of segmenter on its predictions."
        raise BadInput(weights, f"a bank of regions, for --format {form}", "a network", do)
    if form != "hub" and isinstance(segmenter.trained, TrainedWeCLIP):
        do = "Use --format hub, or train another kind of segmenter on its predictions."
        raise BadInput(weights, f"a decoder on frozen networks, for --format {form}", "a network of its own", do)
    run = where if where.is_dir() else where.parent
    origin = card.Origin.of(run)
    train, scored = _pictures(run, settings.int8)
    reading = dataclasses.asdict(segmenter.reading) if segmenter.reading else None

    def config(checks: Mapping[str, str]) -> dict[str, Any]:
        return card.configuration(segmenter, settings.views, reading, checks)

    checks: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    if form == "hub":
        main = _write_weights(weights, out)
    else:
        network = DeployedSegmenter(segmenter.trained, settings.views, segmenter.long_sides)
        main, checks["torch"] = _write_network(network, out, form, config({}), train)
    if settings.int8:
        assert train is not None
        checks["int8"] = _quantise(main, out / FLOAT, train, scored, settings.max_loss)
    if form == "onnx":
        write_text(out / INFER, Path(__file__).with_name(INFER).read_text(encoding="utf-8"))
    written = config(checks)
    write_json(out / CONFIG, written)
    files = [INFER] if form == "onnx" else [main.name]
    write_text(out / README, card.card(written, origin, settings.licence, files, _notes(run)))
    for name in _OURS - {LOCK, main.name, CONFIG, README, *files, *([FLOAT] if settings.int8 else [])}:
        (out / name).unlink(missing_ok=True)  # of an earlier export in another format
    return main


def _write_weights(weights: Path, out: Path) -> Path:
    """Write the weights of a segmenter trained here for the hub."""
    state, metadata = read_weights(weights) if weights.suffix == ".safetensors" else (None, {})
    if state is None or not metadata:
        do = "Share the original file instead."
        raise BadInput(weights, "a published checkpoint", "a segmenter trained here", do)
    write_weights(out / WEIGHTS, state, metadata)
    return out / WEIGHTS


def _write_network(
    network: DeployedSegmenter, out: Path, form: Format, config: dict[str, Any], train: Images | None
) -> tuple[Path, str]:
    """Write a network as ONNX or TorchScript; gives the file, and how well it agrees with torch."""
    examples = _examples(train)
    if form == "onnx":
        main = out / onnx.MODEL
        onnx.write_onnx(network, main, config)
        agreed = onnx.agreement(network, main, examples)
    else:
        main = out / torchscript.MODEL
        torchscript.write_torchscript(network, main, config)
        agreed = torchscript.agreement(network, main, examples)
    source = "pictures of the training split" if train else "random pictures"
    return main, (
        f"on {agreed.pictures} {source}, {agreed.labels:.4%} of the labels are those of torch, and probabilities differ by at most "
        f"{agreed.probabilities:.1e}"
    )


def push(out: Path, repository: str) -> str:
    """Upload an exported folder to Hugging Face's hub, with the token of the `hf auth login` of this machine.

    Returns:
        The address of the model.

    Raises:
        BadInput: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=out, commit_message="Upload a model of wsss"))
    except (HfHubHTTPError, OSError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BadInput(
            f"--push {repository}",
            f"an upload that failed ({line})",
            "a name USER/NAME, a connection, and a token",
            f"The folder {out} is complete: run `hf auth login`, then `hf upload {repository} {out}`.",
        ) from error


def _check_out(out: Path) -> None:
    others = (
        sorted(path.name for path in out.iterdir() if path.name not in _OURS and not path.name.startswith("."))
        if out.is_dir()
        else []
    )
    if others:
        raise BadInput(out, f"other files ({', '.join(others[:3])})", "an empty or new folder", "Choose another --out.")


def _pictures(run: Path, needed: bool) -> tuple[Images | None, Images | None]:
    """The training split of a run, and the split on which its segmenter is scored, if they are there."""
    try:
        data = reopen(run)
    except BadInput as error:
        if needed:
            raise
        log.info("the dataset of the run cannot be opened (%s); random pictures are used", error)
        return None, None
    if data is None:
        if needed:
            raise BadInput(
                run, "no dataset", "a run folder whose dataset is still there", "Give the folder of `wsss run`."
            )
        return None, None
    scored = data.split(data.val) if data.val else None
    return data.split(data.train), scored if scored is not None and scored.has_masks else None


def _examples(train: Images | None) -> list[UInt8[np.ndarray, "h w 3"]]:
    if train is None:
        random = np.random.default_rng(0)
        return [random.integers(0, 256, (*size, 3), np.uint8) for size in _SIZES_HW]
    # a copy, since torch warns of arrays that cannot be written
    return [train.read(index).copy() for index in _spread(len(train), COMPARED)]


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` evenly spaced positions."""
    return [i * count // min(count, wanted) for i in range(min(count, wanted))]


def _quantise(main: Path, plain: Path, train: Images, scored: Images | None, max_loss: float) -> str:
    """Replace the model by one with 8-bit integers, keep the other as `plain`, and say what it costs."""
    calibration = [train.read(index) for index in _spread(len(train), CALIBRATED)]
    main.replace(plain)
    onnx.quantise(plain, main, calibration)
    loss = _loss(plain, main, train, scored)
    if loss.points > max_loss:
        main.unlink()
        plain.replace(main)
        raise BadInput(
            "--int8",
            f"a loss of {loss.points:.1f} points of mIoU ({loss.measure})",
            f"at most {max_loss:g}",
            f"Leave --int8 out, or accept it with --max_loss {np.ceil(loss.points):g}. {main} has 32-bit numbers.",
        )
    sizes = f"{plain.stat().st_size / 2**20:.1f} MiB to {main.stat().st_size / 2**20:.1f} MiB"
    return (
        f"8-bit integers in all convolutions, calibrated on {len(calibration)} training pictures; {sizes}; mIoU changes by {-loss.points:+.2f} "
        f"points ({loss.measure}); the model with 32-bit numbers is {FLOAT}"
    )


def _loss(plain: Path, quantised: Path, train: Images, scored: Images | None) -> Loss:
    images = scored or train
    before, after = onnx.Runtime(plain), onnx.Runtime(quantised)
    counts = [ConfusionMatrix(images.n_labels) for _ in range(2)]
    chosen = _spread(len(images), MEASURED)
    for index in chosen:
        picture = images.read(index)
        labels = [model(picture)[0] for model in (before, after)]
        truth = images.read_mask(index, picture.shape[:2]) if scored else labels[0]
        for count, label in zip(counts, labels, strict=True):
            count.add(truth, label, images.names[index])
    first, second = (100 * (scores(count.counts).miou or 0.0) for count in counts)
    measure = (
        f"{first:.1f} and {second:.1f} against the true masks of {len(chosen)} pictures of {images.title}"
        if scored
        else f"{second:.1f} against the labels of the 32-bit model on {len(chosen)} pictures of {images.title}, as there are no true masks"
    )
    return Loss(first - second, measure)


def _notes(run: Path) -> list[str]:
    """Doubts about the dataset and the run, for the model card."""
    return [
        *(str(doubt) for doubt in read_notes(run).get("doubts", [])),
        *(f"{note.found} {note.why}" for note in notes(run)),
    ]
