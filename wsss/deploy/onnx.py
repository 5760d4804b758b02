"""Segmenters as ONNX files with everything inside: normalisation, resizing, probabilities, and the names of the classes."""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wsss.arrays import Float, UInt8
from wsss.deploy.network import DeployedSegmenter
from wsss.errors import BadInput
from wsss.storage import whole_file

if TYPE_CHECKING:  # an optional package
    from onnx import ModelProto, ValueInfoProto

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


class _Prepare(nn.Module):
    """The first half of a deployed segmenter: its views, and the picture again."""

    def __init__(self, network: DeployedSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        return (*self.network.prepared(picture), picture.clone())


class _Predict(nn.Module):
    """The second half, from the output of the first."""

    def __init__(self, network: DeployedSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.predicted(inputs[:-1], inputs[-1]))


def write_onnx(network: DeployedSegmenter, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the graph with its weights as a single file, for batches and pictures of any size.

    The graph is recorded in two halves: otherwise all sizes in the network would be long formulas in the size of the picture, which
    torch would spend minutes on.

    Args:
        network: the segmenter, on the CPU.
        path: the file.
        metadata: stored in the file as JSON, under the key `wsss`.
    """
    from onnx import compose, helper, save

    picture = torch.zeros(EXAMPLE, dtype=torch.uint8)
    # sides that differ, as equal ones could be taken for the same
    views = [torch.zeros(EXAMPLE[0], 3, 65 + 16 * n, 91 + 16 * n) for n in range(len(network.fractions))]
    names = [f"view{n}" for n in range(len(views))]
    first = _recorded(_Prepare(network), [picture], ["picture"], [*names, "same_picture"])
    second = _recorded(
        _Predict(network), [*views, picture], [f"of_{name}" for name in [*names, "same_picture"]], OUTPUTS
    )
    joined = [(name, f"of_{name}") for name in [*names, "same_picture"]]
    model = compose.merge_models(
        compose.add_prefix(first, "prepare/", rename_inputs=False, rename_outputs=False), second, joined
    )
    # onnx 1.23 lists the operators' version of either half, which onnxruntime's quantisation refuses; they are the same
    versions = {opset.domain: opset.version for opset in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    _name_sizes(model.graph.input[0], ("batch", "height", "width"))
    for output, sizes in zip(
        model.graph.output, (("batch", "height", "width"),) * 2 + (("batch", None, "height", "width"),), strict=True
    ):
        _name_sizes(output, sizes)
    helper.set_model_props(model, {METADATA: json.dumps(metadata, sort_keys=True)})
    # the exporter would write a second file for the weights by default
    with whole_file(path) as temporary:
        save(model, str(temporary))


def _recorded(
    module: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], outputs: Sequence[str]
) -> "ModelProto":
    """The ONNX graph of a module, for inputs of any size."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    any_size = torch.export.Dim.AUTO
    # the last axis of a picture, and the planes of a view
    sizes = [
        {0: any_size, 1: any_size, 2: any_size} if one.shape[-1] == 3 else {0: any_size, 2: any_size, 3: any_size}
        for one in inputs
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs),
                dynamo=True,
                dynamic_shapes=(tuple(sizes),) if isinstance(module, _Predict) else tuple(sizes),
                input_names=list(names),
                output_names=list(outputs),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = next((line for line in str(error.__cause__ or error).splitlines() if line.strip()), "no reason given")
        raise BadInput(
            "--format onnx",
            f"a network that torch {torch.__version__} cannot record ({reason.strip():.200})",
            "a network whose graph can be recorded for pictures of any size",
            "Use --format torchscript or hub.",
        ) from error
    finally:
        logger.setLevel(before)
    assert program is not None
    model = program.model_proto
    # both halves name their sizes s1, s2, ..., and mean different ones
    del model.graph.value_info[:]
    return model


def _name_sizes(value: "ValueInfoProto", names: Sequence[str | None]) -> None:
    for size, name in zip(value.type.tensor_type.shape.dim, names):
        if name is not None:
            size.dim_param = name


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

    class Reader(CalibrationDataReader):
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
