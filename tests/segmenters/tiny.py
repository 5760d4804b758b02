"""Segmenters that train in seconds, and what one or two processes run in test_two_processes."""

import dataclasses
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.double import Double
from wsss import launch
from wsss.classifier import CAMNetwork
from wsss.data.augment import SegmenterAugment
from wsss.data.files import write_mask
from wsss.data.images import IGNORE, Images
from wsss.data.mask_augment import DeepLabV1Augment, EMANetAugment, PSPNetAugment
from wsss.foundations import FeatureSettings
from wsss.networks.deeplab import DeepLabLayers
from wsss.networks.deeplab_v1 import DeepLabV1Layers
from wsss.networks.emanet import EMANetLayers
from wsss.networks.frozen import HeadLayers
from wsss.networks.pspnet import PSPNetLayers
from wsss.segmenters import deeplab_v1, emanet, pspnet
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.segmenters.frozen import FrozenSettings
from wsss.segmenters.retrieval import RetrievalSettings
from wsss.segmenters.tokens import ViewSettings
from wsss.stages.bank import make_bank
from wsss.stages.tokens import cache_tokens
from wsss.stages.train import Training, train
from wsss.weights import WEIGHTS, write_weights

BODY = "test_resnet"  # timm's, of 0.4 million parameters
SHORT = Training(batch=4, epochs=None, steps=3, lr=0.01, workers=0, momentum=0.9, checkpoint_steps=1)

DEEPLAB = DeepLabSettings(
    network=DeepLabLayers(BODY, 8, (1, 2), (0.5,), batch_norm="live"),
    init="none",
    augment=SegmenterAugment(scales=(1.0,), crop=32),
    training=SHORT,
)
EMANET = emanet.EMANetSettings(
    network=EMANetLayers(BODY, 8, 32, 8, norm_momentum=0.1),
    init="none",
    loss="all",
    augment=EMANetAugment((0.75, 1.0), 33),
    training=SHORT,
)
DEEPLAB_V1 = deeplab_v1.DeepLabV1Settings(
    network=DeepLabV1Layers(BODY, dilation=2, norm_momentum=0.1),
    init="none",
    augment=DeepLabV1Augment(crop=32),
    training=SHORT,
)
PSPNET = pspnet.PSPNetSettings(
    network=PSPNetLayers(BODY), init="none", augment=PSPNetAugment(fit=(64, 32), crop=32), training=SHORT
)
ALL: dict[str, Any] = {"deeplab": DEEPLAB, "emanet": EMANET, "deeplab_v1": DEEPLAB_V1, "pspnet": PSPNET}


def lengthened(settings: Any, **training: Any) -> Any:
    """The same segmenter with another training."""
    return dataclasses.replace(settings, training=dataclasses.replace(settings.training, **training))


def write_truths(images: Images, folder: Path, known: bool = True) -> Path:
    """The true masks as pseudo masks; without `known`, ever fewer pixels of them from picture to picture."""
    for index, name in enumerate(images.names):
        mask = images.read_mask(index).copy()
        if not known:
            mask[:, np.arange(mask.shape[1]) % (index % 4 + 2) == 0] = IGNORE
        write_mask(folder / f"{name}.png", mask)
    return folder


def write_classifier(folder: Path, seed: int = 0) -> Path:
    """A classifier that was not trained: its features tell colours apart."""
    torch.manual_seed(seed)
    known = {"kind": "cam", "backbone": BODY, "output_stride": 16, "classes": ["red", "blue"], "colours": "imagenet"}
    write_weights(folder / WEIGHTS, CAMNetwork(BODY, 2, 16).state_dict(), known)
    return folder


def retrieval(network: Path) -> RetrievalSettings:
    """Settings for pictures of 32 pixels."""
    return RetrievalSettings(
        features=FeatureSettings(str(network), enlarge=4),
        erosion=1,
        fewest_pixels=9,
        neighbours=3,
        lowest_score=0.0,
        voting="balanced",
    )


def frozen(network: Path) -> FrozenSettings:
    """Settings for pictures of 32 pixels."""
    return FrozenSettings(
        features=FeatureSettings(str(network), layers=2, enlarge=4),
        views=ViewSettings(scales=(1.0, 0.5)),
        network=HeadLayers(blocks=1),
        crop=48,
        training=dataclasses.replace(SHORT, optimizer="adamw"),
    )


def work(folder: Path) -> None:
    images = pickle.loads((folder / "images").read_bytes())
    for name, settings in ALL.items():
        train(Double(settings), images, masks=folder / "masks", out=folder / str(launch.processes()) / name)
    bank = retrieval(folder / "classifier")
    make_bank(bank, images, masks=folder / "masks", out=folder / str(launch.processes()) / "retrieval")
    head, out = frozen(folder / "classifier"), folder / str(launch.processes()) / "frozen"
    tokens = cache_tokens(head.of_tokens, images, out=out / "tokens")
    train(Double(head), images, masks=folder / "masks", tokens=tokens, out=out)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
