"""Maps for refiners to work on: made of the true masks of coloured squares."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import finished
from wsss.data.files import write_cams
from wsss.data.images import Images
from wsss.networks.backbone import create_backbone
from wsss.weights import write_weights

BACKBONE = "test_resnet"  # timm's, of 0.4 million parameters

Shape = Callable[[np.ndarray], np.ndarray]


def unfinished(folder: Path) -> None:
    """Takes the record of a finished stage back to that of one that is under way."""
    record = json.loads((folder / "done.json").read_text())
    started = {key: value for key, value in record.items() if key not in ("result", "files")}
    (folder / "started.json").write_text(json.dumps(started))
    (folder / "done.json").unlink()


def write_maps(images: Images, folder: Path, shape: Shape = np.float32) -> Path:
    """A finished stage of maps: `shape` of where each class is."""
    for index, name in enumerate(images.names):
        truth, classes = images.read_mask(index), images.classes(index)
        maps = np.array([shape(truth == label + 1) for label in classes], np.float32).reshape(-1, *truth.shape)
        write_cams(folder / f"{name}.npz", np.array(classes), maps, maps[:, ::4, ::4])
    return finished(folder)


def discriminative_part(inside: np.ndarray) -> np.ndarray:
    """A bump near the upper left corner of a square: it leaves out the other corners, and reaches beyond that one."""
    rows, columns = np.nonzero(inside)
    side, (y, x) = np.sqrt(inside.sum()), np.indices(inside.shape)
    distances = np.hypot(y - rows.min() - 0.35 * side, x - columns.min() - 0.35 * side)
    return np.maximum(0, 1 - (distances / (0.6 * side)) ** 2)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """A file of random weights: enough to tell colours apart."""
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_weights(path, create_backbone(BACKBONE, 16).state_dict(), {})
    return path
