"""The decoder of WeCLIP and WeCLIP+ as a segmenter: trained by `wsss run weclip`, tested as published."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wsss.data.augment import ColourRule, normalise, truncated_size
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.foundations import FeatureSettings, digest, load_features
from wsss.loading import load_into
from wsss.networks.body import Backbone
from wsss.networks.deeplab import resize_logits
from wsss.networks.weclip import FrozenNetworks, WeCLIPNetwork
from wsss.pretrained import Activation, load_clip

KIND = "weclip"


@dataclasses.dataclass(frozen=True)
class WeCLIPSegmenterSettings:
    """The network that WeCLIP has trained; it is used as it is."""

    title: ClassVar[str] = "WeCLIP's decoder"

    kind: Literal["weclip"] = "weclip"
    """the decoder that `wsss run weclip` has trained; nothing else is trained"""
    signature: ClassVar[str] = "decoder.linear_pred.bias"
    trained_by: ClassVar[str] = KIND

    def check(self, classifier: Path | Backbone | None = None) -> None:
        """See `wsss.segmenters.learning`; the settings of the method have been checked before."""

    def check_run(self, method: str, corrected: bool) -> None:
        """Raise BadInput if a run of this method does not train the network, or if it has corrected masks to train on."""
        if method != self.trained_by:
            raise self._not_trained(f"in a run of {method}")
        if corrected:
            do = "Leave --corrected out, or choose another segmenter."
            expected = "a segmenter that is trained on masks, such as deeplab"
            raise BadInput("segmenter.kind", f"{self.kind}, with corrected masks", expected, do)

    def given(self, classifier: Path | None, **inputs: Path) -> Path:
        """The weights that a method has trained.

        Raises:
            BadInput: there are none, or corrected masks are given.
        """
        if classifier is None:
            raise self._not_trained("without a run that trains it")
        self.check_run(self.trained_by, bool(inputs))
        return classifier

    def trainable(self, images: Images, masks: Path, corrected: Path | None = None) -> NoReturn:
        """Raise BadInput: this network is not trained on masks."""
        raise self._not_trained("on masks alone")

    def _not_trained(self, where: str) -> BadInput:
        expected = "a segmenter that is trained on masks, such as deeplab"
        do = "Choose another, or use `wsss run weclip`, which trains this one."
        return BadInput("segmenter.kind", f"{self.kind}, which cannot be trained {where}", expected, do)

    @staticmethod
    def load(state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> "TrainedWeCLIP":
        """A trained network, from the content of a file, with the frozen networks that the file names."""
        found = load_network(state, metadata, path)
        return TrainedWeCLIP(found.frozen, found.network, found.classes, found.test_side)


class TrainedWeCLIP:
    """A trained decoder on frozen networks; see `wsss.segmenters.trained`.

    Its test averages the logits of two scales and their mirror images, on the grid of the first. Pictures are resized after the
    normalisation.

    Args:
        frozen: CLIP and DINOv2.
        decoder: the trained layers.
        classes: the class names.
        test_side: longest side of pictures at scale 1, in pixels.
    """

    scales, flip = (1.0, 1.5), True
    averaged: Literal["probabilities", "logits"] = "logits"
    colours: ColourRule = "imagenet"
    window: int | None = None

    def __init__(
        self, frozen: FrozenNetworks, decoder: WeCLIPNetwork, classes: tuple[str, ...], test_side: int
    ) -> None:
        self.network, self.classes = OnFrozen(frozen, decoder).eval(), classes
        self.fit: tuple[int, int] = (test_side, test_side)

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        planes, size = torch.from_numpy(normalise(image, self.colours))[None], self._size(image.shape[:2])
        for shape in dict.fromkeys((size, self._at_least(truncated_size(size, scale)))):
            planes = F.interpolate(planes, shape, mode="bilinear", align_corners=False)
        return planes

    def logits(self, view: Float[Tensor, "1 3 hs ws"], size_hw: tuple[int, int]) -> Float[Tensor, "1 l h w"]:
        patch, size = self.network.frozen.clip.patch, self._size(size_hw)
        first = (size[0] // patch, size[1] // patch)
        return resize_logits(resize_logits(self.network(view), first), size_hw)

    def crf_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return image

    def _size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The size of a picture at scale 1."""
        height, width = (side * self.fit[0] // max(size_hw) for side in size_hw)
        return self._at_least((height, width))

    def _at_least(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The size, with sides of at least a patch."""
        smallest = self.network.frozen.smallest
        return max(size_hw[0], smallest), max(size_hw[1], smallest)


class OnFrozen(nn.Module):
    """The decoder together with the frozen networks, on whose grid it gives logits.

    Args:
        frozen: CLIP and DINOv2.
        decoder: the learned layers.
    """

    def __init__(self, frozen: FrozenNetworks, decoder: WeCLIPNetwork) -> None:
        super().__init__()
        self.frozen, self.decoder = frozen, decoder

    def forward(self, image: Float[Tensor, "b 3 hi wi"]) -> Float[Tensor, "b l h w"]:
        """The mean logits of the adapters."""
        return self.decoder(self.frozen(image)).mean()


def load_frozen(clip: str, activation: Activation, dino: str | None) -> FrozenNetworks:
    """The frozen networks on the CPU, in float32.

    Args:
        clip: see `load_clip`.
        activation: see `load_clip`.
        dino: a hub id or a folder, as for `wsss.foundations.load_features`; None for WeCLIP.

    Raises:
        BadInput: a network does not exist, cannot be downloaded, or is of another kind.
    """
    found = None if dino is None else load_features(FeatureSettings(dino, layers=1, enlarge=1)).features.network
    return FrozenNetworks(load_clip(clip, activation), found).requires_grad_(False).eval()


def described(frozen: FrozenNetworks, clip: str, activation: Activation, dino: str | None) -> dict[str, Any]:
    """What a weights file says of the frozen networks: where they come from, and digests of their weights."""
    known: dict[str, Any] = {"clip": {"source": _place(clip), "activation": activation, "digest": digest(frozen.clip)}}
    known["dino"] = None
    if frozen.dino is not None and dino is not None:
        known["dino"] = {"source": _place(dino), "digest": digest(frozen.dino)}
    return known


def _place(source: str) -> str:
    """A path that is valid in all folders, or the name on the hub."""
    return os.path.abspath(source) if os.path.exists(source) else source


def new_network(frozen: FrozenNetworks, n_labels: int, layers: Mapping[str, int], all_blocks: bool) -> WeCLIPNetwork:
    """The learned layers for these frozen networks, with new weights.

    Args:
        frozen: CLIP and DINOv2.
        n_labels: the background and the classes.
        layers: `embedding`, `heads` and `decoder_blocks`.
        all_blocks: use all blocks of CLIP but the last (WeCLIP), not only the last but one.
    """
    vision: Any = frozen.clip.model.config.vision_config
    dino: Any = frozen.dino
    blocks = frozen.clip.n_blocks - 1 if all_blocks else 1
    return WeCLIPNetwork(n_labels, vision.hidden_size, blocks, None if dino is None else dino.channels[-1], **layers)


class Trained(NamedTuple):
    """The content of a weights file, with the frozen networks that it names, on the CPU.

    Attributes:
        frozen: CLIP and DINOv2.
        network: the trained layers.
        classes: the class names.
        test_side: longest side of pictures in the test, in pixels.
    """

    frozen: FrozenNetworks
    network: WeCLIPNetwork
    classes: tuple[str, ...]
    test_side: int


def load_network(state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> Trained:
    """A trained decoder, from the content of a file.

    Raises:
        BadInput: the file does not name them, a network is no longer where it was or has changed, or tensors do not fit.
    """
    if metadata is None:
        raise BadInput(
            path,
            "a decoder of WeCLIP without the names of its frozen networks",
            "the weights that `wsss run weclip` or `wsss train weclip` wrote",
            "Train it here.",
        )
    clip, dino, classes = metadata["clip"], metadata["dino"], tuple(metadata["classes"])
    frozen = load_frozen(clip["source"], clip["activation"], None if dino is None else dino["source"])
    for known, network in ((clip, frozen.clip), (dino, frozen.dino)):
        if network is not None and digest(network) != known["digest"]:
            expected = f"the network that {path} was trained with, with digest {known['digest'][:12]}"
            do = "Put that network back, or train again."
            raise BadInput(known["source"], f"a network with digest {digest(network)[:12]}", expected, do)
    network = new_network(frozen, len(classes) + 1, metadata["network"], metadata["dino"] is None)
    load_into(network, state, path)
    return Trained(frozen, network.requires_grad_(False).eval(), classes, metadata["test_side"])
