"""Segmenters as ONNX files with everything inside: normalisation, resizing, probabilities, and the names of the classes."""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8

from wsss.deploy.network import DeployedSegmenter
from wsss.errors import BadInput
from wsss.storage import whole_file

MODEL, METADATA = "model.onnx", "wsss"
OUTPUTS = ("labels", "confidence", "probabilities")
# Largest differences between onnxruntime and torch, for which an export is accepted
TOLERANCE, SAME_LABELS = 1e-4, 0.9999
# A size with odd sides; while the graph is recorded, every size is a variable
EXAMPLE = (2, 97, 131, 3)
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Agreement(NamedTuple):
    """How far two runtimes agree on pictures.

    Attributes:
        pictures: number of pictures.
        labels: share of pixels with the same label.
        probabilities: the largest difference of a probability.
    """

    pictures: int
    labels: float
    probabilities: float


class Runtime:
    """An exported model in onnxruntime, on the CPU.

    Args:
        path: the ONNX file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(
        self, picture: UInt8[np.ndarray, "h w 3"]
    ) -> tuple[UInt8[np.ndarray, "h w"], Float[np.ndarray, "l h w"]]:
        """Labels and probabilities of one RGB picture."""
        labels, probabilities = self._session.run(["labels", "probabilities"], {"picture": picture[None]})
        return labels[0], probabilities[0]


def check_installed() -> None:
    """Raise BadInput if a package that writes or runs ONNX files is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(
            "--format onnx", f"no package {', '.join(missing)}", "these packages", "Run pip install 'wsss[onnx]'."
        )


def write_onnx(network: DeployedSegmenter, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the graph with its weights as a single file, for batches and pictures of any size.

    Args:
        network: the segmenter, on the CPU.
        path: the file.
        metadata: stored in the file as JSON, under the key `wsss`.
    """
    any_size = torch.export.Dim.AUTO
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (torch.zeros(EXAMPLE, dtype=torch.uint8),),
                dynamo=True,
                dynamic_shapes={"picture": dict.fromkeys(range(3), any_size)},
                input_names=["picture"],
                output_names=list(OUTPUTS),
                verbose=False,
            )
    finally:
        logger.setLevel(before)
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(metadata, sort_keys=True)
    # the exporter would write a second file for the weights by default
    with whole_file(path) as temporary:
        program.save(temporary, external_data=False)


def agreement(network: DeployedSegmenter, path: Path, pictures: Iterable[UInt8[np.ndarray, "h w 3"]]) -> Agreement:
    """Compare the file in onnxruntime with the network in torch.

    Raises:
        BadInput: they differ by more than rounding.
    """
    return compared(network, Runtime(path), path, pictures)


def compared(
    network: DeployedSegmenter,
    exported: Callable[[UInt8[np.ndarray, "h w 3"]], tuple[np.ndarray, np.ndarray]],
    path: Path,
    pictures: Iterable[UInt8[np.ndarray, "h w 3"]],
) -> Agreement:
    """Compare labels and probabilities of an exported model with those of the network.

    Raises:
        BadInput: they differ by more than rounding; the message names `path`.
    """
    same = pixels = count = 0
    largest = 0.0
    for picture in pictures:
        with torch.inference_mode():
            expected = network(torch.from_numpy(picture)[None])
        labels, probabilities = exported(picture)
        same += int((labels == expected.labels[0].numpy()).sum())
        pixels, count = pixels + labels.size, count + 1
        largest = max(largest, float(np.abs(probabilities - expected.probabilities[0].numpy()).max()))
    found = Agreement(count, same / pixels, largest)
    if found.labels < SAME_LABELS or not found.probabilities <= TOLERANCE:
        raise BadInput(
            path,
            f"a model that differs from torch: {1 - found.labels:.2%} of the labels, probabilities by up to {largest:.1e}",
            f"at most {1 - SAME_LABELS:.2%} and {TOLERANCE:.0e}",
            "This network cannot be exported with the installed versions: use another format, or report it.",
        )
    return found


def quantise(source: Path, target: Path, pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> None:
    """Write a model whose convolutions use 8-bit integers.

    The ranges of all values are measured on pictures, by their minimum and maximum: onnxruntime's other calibrations fail on pictures of
    different sizes (1.31).

    Args:
        source: the ONNX file.
        target: the file to write.
        pictures: RGB, for example of the training split.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._pictures: Iterator[np.ndarray] = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(self._pictures, None)
            return None if picture is None else {"picture": picture[None]}

    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)  # onnxruntime advises its own preparation, which follows
    try:
        with whole_file(target) as temporary, tempfile.TemporaryDirectory() as folder:
            prepared = f"{folder}/prepared.onnx"
            # symbolic shapes fail on sizes that are computed in the graph
            quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                str(temporary),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
    finally:
        logger.setLevel(before)
