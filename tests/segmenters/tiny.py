"""Segmenters that train in seconds, and what one or two processes run in test_two_processes."""

import dataclasses
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.double import Double
from wsss import launch
from wsss.data.augment import SegmenterAugment
from wsss.data.files import write_mask
from wsss.data.images import IGNORE, Images
from wsss.data.mask_augment import DeepLabV1Augment, EMANetAugment, PSPNetAugment
from wsss.networks.deeplab import DeepLabLayers
from wsss.networks.deeplab_v1 import DeepLabV1Layers
from wsss.networks.emanet import EMANetLayers
from wsss.networks.pspnet import PSPNetLayers
from wsss.segmenters import deeplab_v1, emanet, pspnet
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.stages.train import Training, train

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
        mask = images.read_mask(index)
        if not known:
            mask[:, np.arange(mask.shape[1]) % (index % 4 + 2) == 0] = IGNORE
        write_mask(folder / f"{name}.png", mask)
    return folder


def work(folder: Path) -> None:
    images = pickle.loads((folder / "images").read_bytes())
    for name, settings in ALL.items():
        train(Double(settings), images, masks=folder / "masks", out=folder / str(launch.processes()) / name)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
