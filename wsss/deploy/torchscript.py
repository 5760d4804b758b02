"""Segmenters as TorchScript files, for programs that use libtorch."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsss.arrays import UInt8
from wsss.deploy.network import DeployedSegmenter
from wsss.deploy.onnx import EXAMPLE, METADATA, Agreement, compared
from wsss.storage import json_text, whole_file

MODEL = "model.pt"


def write_torchscript(network: DeployedSegmenter, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the traced graph with its weights as a single file, for batches and pictures of any size.

    Args:
        network: the segmenter, on the CPU.
        path: the file.
        metadata: stored in the file as JSON, as the extra file `wsss`.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and the tracer warns of each size
        traced = torch.jit.trace(network, (torch.zeros(EXAMPLE, dtype=torch.uint8),), check_trace=False)
        with whole_file(path) as temporary:
            torch.jit.save(traced, str(temporary), _extra_files={METADATA: json_text(metadata)})


def agreement(network: DeployedSegmenter, path: Path, pictures: Iterable[UInt8[np.ndarray, "h w 3"]]) -> Agreement:
    """Compare the file with the network that it was made from.

    Raises:
        BadInput: they differ by more than rounding.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.load(str(path), map_location="cpu")

    def run(picture: UInt8[np.ndarray, "h w 3"]) -> tuple[np.ndarray, np.ndarray]:
        labels, _, probabilities = traced(torch.from_numpy(picture)[None])
        return labels[0].numpy(), probabilities[0].numpy()

    with torch.inference_mode():
        return compared(network, run, path, pictures)
