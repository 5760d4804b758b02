"""The decoder of WeCLIP and WeCLIP+ as a segmenter: trained by `wsss run weclip`, tested as published."""

import dataclasses
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.arrays import Float, UInt8
from wsss.data.augment import ColourRule, normalise, truncated_size
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.foundations import FeatureSettings, digest, load_features
from wsss.loading import load_into
from wsss.networks.body import Backbone
from wsss.networks.weclip import FrozenNetworks, WeCLIPNetwork
from wsss.ops.enlarging import Step
from wsss.outputs import RECORDS
from wsss.pretrained import Activation, load_clip, saved_folder
from wsss.segmenters.trained import Enlarging, Local, Part
from wsss.storage import whole_file

KIND = "weclip"
# In the folder of a training: the learned layers before it
FIRST = "first.safetensors"
# The frozen networks, as weights files and the folders of their copies name them
NETWORKS = ("clip", "dino")


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


class TrainedWeCLIP(Enlarging):
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
    local: Local | None = None

    def __init__(
        self, frozen: FrozenNetworks, decoder: WeCLIPNetwork, classes: tuple[str, ...], test_side: int
    ) -> None:
        self.network, self.classes = OnFrozen(frozen, decoder).eval(), classes
        self.cell = frozen.clip.patch
        self.fit: tuple[int, int] = (test_side, test_side)

    def view(self, image: UInt8[np.ndarray, "h w 3"], scale: float) -> Float[Tensor, "1 3 hs ws"]:
        planes, size = torch.from_numpy(normalise(image, self.colours))[None], self._size(image.shape[:2])
        for shape in dict.fromkeys((size, self._at_least(truncated_size(size, scale)))):
            planes = F.interpolate(planes, shape, mode="bilinear", align_corners=False)
        return planes

    def coarse(self, view: Float[Tensor, "b 3 hs ws"], compute: Part | None = None) -> Float[Tensor, "b l hc wc"]:
        return self.network(view)

    def steps(
        self, coarse: Float[Tensor, "b l hc wc"], view_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> Sequence[Step]:
        patch, size = self.cell, self._size(size_hw)
        return (Step((size[0] // patch, size[1] // patch)), Step(size_hw))

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


def described(frozen: FrozenNetworks, sources: Mapping[str, str], activation: Activation) -> dict[str, Any]:
    """What a weights file says of the frozen networks: the name on the hub, or the file beside it; and digests of their weights.

    Args:
        frozen: the networks.
        sources: of the networks, by `clip` and `dino`.
        activation: see `load_clip`.
    """
    networks = {"clip": frozen.clip, "dino": frozen.dino}
    known: dict[str, Any] = dict.fromkeys(networks)
    for name, source in sources.items():
        network = networks[name]
        assert network is not None
        known[name] = {**_origin(name, source), "digest": digest(network)}
    return {**known, "activation": activation}


def _origin(name: str, source: str) -> dict[str, str]:
    """Where a network will be: `hub`, its name there, or `beside`, its path from the folder of the weights."""
    path = Path(saved_folder(source))
    if not path.exists():
        return {"hub": source}
    return {"beside": name if path.is_dir() else f"{name}/{path.name}"}


def keep_networks(sources: Mapping[str, str], out: Path) -> None:
    """Copy networks that are local files into the folder `out` of the weights, so that it can be moved; those of the hub have a name.

    Args:
        sources: of the networks, by the name of the folder for the copy.
        out: the folder.
    """
    for name, source in sources.items():
        path = Path(saved_folder(source))
        if path.exists():
            files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file())
            copy_files([one for one in files if one.name not in RECORDS], out / name)


def copy_files(files: Iterable[Path], folder: Path) -> None:
    """Copy files into a folder, each completely or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        with whole_file(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)


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


def _place(known: Mapping[str, str], path: Path) -> str:
    """Where a network is that a weights file describes.

    Raises:
        BadInput: it should be beside the file, but is not.
    """
    if "hub" in known:
        return known["hub"]
    place = path.parent / known["beside"]
    if not place.exists():
        expected = f"the frozen network that {path.name} was trained with, in the same folder"
        raise BadInput(place, "no such file or folder", expected, "Copy the whole folder of the weights.")
    return str(place)


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
    known, classes = {name: metadata[name] for name in NETWORKS if metadata[name]}, tuple(metadata["classes"])
    sources = {name: _place(one, path) for name, one in known.items()}
    frozen = load_frozen(sources["clip"], metadata["activation"], sources.get("dino"))
    for name, network in zip(NETWORKS, (frozen.clip, frozen.dino), strict=True):
        if network is not None and digest(network) != known[name]["digest"]:
            expected = f"the network that {path} was trained with, with digest {known[name]['digest'][:12]}"
            do = "Put that network back, or train again."
            raise BadInput(sources[name], f"a network with digest {digest(network)[:12]}", expected, do)
    network = new_network(frozen, len(classes) + 1, metadata["network"], metadata["dino"] is None)
    load_into(network, state, path)
    return Trained(frozen, network.requires_grad_(False).eval(), classes, metadata["test_side"])
