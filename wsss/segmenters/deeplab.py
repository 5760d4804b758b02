"""DeepLab v2 (Chen et al., TPAMI 2018): its losses on pseudo masks and its test, as deeplab-pytorch and CLIMS have them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wsss import launch
from wsss.data.augment import normalise
from wsss.networks.deeplab import (
    MSC,
    DeepLabLayers,
    balanced_cross_entropy,
    create_deeplab,
    cross_entropy,
    output_losses,
    resize_logits,
)
from wsss.segmenters.trained import known_classes, rescaled, settings_of
from wsss.weights import load_deeplab

KIND, SIGN = "deeplab", "base.aspp.c0.bias"


def losses(network: MSC, image: Tensor, label: Tensor, loss: Literal["plain", "balanced"]) -> dict[str, Tensor]:
    """Cross-entropy on each output of the multi-scale network, labels resized to each; the sum is minimised."""
    each = {"plain": cross_entropy, "balanced": balanced_cross_entropy}[loss]
    of_outputs = output_losses(network(image), label, partial(each, over_processes=launch.mean_over_processes))
    return {"segmentation": torch.stack(of_outputs).sum()}


class TrainedDeepLab:
    """A trained DeepLab v2; see `wsss.segmenters.trained`. Its test has the network's own pyramid alone."""

    scales, flip = (1.0,), False
    averaged: Literal["probabilities", "logits"] = "probabilities"

    def __init__(self, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> None:
        # a checkpoint of deeplab-pytorch says nothing itself
        known = metadata or {"classes": known_classes(len(state[SIGN])), "colours": "caffe", "network": {}}
        self.classes: tuple[str, ...] = tuple(known["classes"])
        self.colours = known["colours"]
        network = create_deeplab(len(self.classes) + 1, settings_of(DeepLabLayers, known["network"]))
        load_deeplab(network, state, path)
        self.network = network.to(launch.device()).eval()

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        return rescaled(torch.from_numpy(normalise(image, self.colours))[None], scale, align_corners=False)

    def logits(self, view: Float[Tensor, "1 3 hs ws"], size_hw: tuple[int, int]) -> Float[Tensor, "1 l h w"]:
        return resize_logits(self.network(view), size_hw)

    def seen(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return image
