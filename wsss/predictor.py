"""Trained networks on single pictures: `wsss.load(path).predict(picture)`."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from wsss import hub, launch
from wsss.arrays import Float32, UInt8
from wsss.classifier import KIND, CAMLocalizer, CAMNetwork, ClassifierWeights, MultiScale, cam_network
from wsss.data.labels import voc_palette
from wsss.data.pictures import AnyPicture, as_rgb
from wsss.data.samples import DEFAULT_READING
from wsss.errors import BadInput, check_range, suggestion
from wsss.ops.crf import DenseCRF, Preset
from wsss.segmenters.explained import Explained, explained
from wsss.segmenters.retrieval import TrainedRetrieval
from wsss.stages.predict import PredictSettings, Segmenter, most_probable
from wsss.weights import WEIGHTS, find_trained, read_metadata, reading_of, trained_weights, weights_in

# Folders of a run that contain trained networks, in order of preference
_TRAINED_FOLDERS = ("segmenter", "classifier")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction of a segmenter for one picture.

    Attributes:
        labels: the most probable label of each pixel: 0 for background, otherwise class + 1.
        probabilities: probability of each label, background first, summing to 1; after the dense CRF if there is one.
        classes: class names; label `i + 1` is class `i`.
        picture: the picture as RGB, 0 to 255, after the value range and bands were applied.
    """

    labels: UInt8[np.ndarray, "h w"]
    probabilities: Float32[np.ndarray, "l h w"]
    classes: tuple[str, ...]
    picture: UInt8[np.ndarray, "h w 3"]

    def overlay(self, opacity: float = 0.5) -> Image.Image:
        """The picture with the labels in VOC's colours; background is left unchanged.

        Args:
            opacity: opacity of the colours, in [0, 1].

        Raises:
            BadInput: the opacity is out of range.
        """
        check_range("opacity", opacity, 0, 1)
        mixed = (1 - opacity) * self.picture + opacity * voc_palette()[self.labels]
        shown = np.where(self.labels[..., None] > 0, np.rint(mixed), self.picture)
        return Image.fromarray(shown.astype(np.uint8))

    def areas(self) -> dict[str, float]:
        """The share of the picture that each label covers, `background` first; they sum to 1."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes) + 1)
        return dict(zip(("background", *self.classes), (counts / self.labels.size).tolist(), strict=True))


class Predictor:
    """A trained network for single pictures, made by `load`.

    Attributes:
        path: the folder or file that it was loaded from.
        kind: `cam` for a classifier, or the kind of the segmenter: `deeplab`, `emanet`, `deeplab_v1`, `pspnet` or
            `retrieval`.
        classes: names of the foreground classes, in the order of their labels.
    """

    def __init__(self, path: Path, kind: str, network: Segmenter | CAMLocalizer, classes: tuple[str, ...]) -> None:
        self.path, self.kind, self.classes = path, kind, classes
        self._network = network
        self._reading = reading_of(path) or DEFAULT_READING

    def predict(self, picture: AnyPicture) -> Prediction:
        """Labels and probabilities of one picture, at the size of the picture.

        Args:
            picture: see `wsss.data.pictures.as_rgb`. Its values are read like those of the training pictures.

        Raises:
            BadInput: the network is a classifier, or the picture has another type.
        """
        if not isinstance(self._network, Segmenter):
            raise BadInput(self.path, "a classifier", "a segmenter", "Call cams() for its maps, or load a segmenter.")
        rgb = as_rgb(picture, how=self._reading)
        plain = self._network.probabilities(self._network.prepare(rgb))
        probabilities = self._network.refined(rgb, plain).astype(np.float32, copy=False)
        return Prediction(most_probable(probabilities), probabilities, self.classes, rgb)

    def explain(self, picture: AnyPicture) -> list[Explained]:
        """The largest regions with a class that a retrieval segmenter finds in a picture, with the training regions that decided on them.

        Args:
            picture: see `wsss.data.pictures.as_rgb`.

        Raises:
            BadInput: the network is not a segmenter of kind `retrieval`, or the picture has another type.
        """
        trained = self._network.trained if isinstance(self._network, Segmenter) else None
        if not isinstance(trained, TrainedRetrieval):
            do = "Make one with `wsss segment --segmenter retrieval`."
            raise BadInput(self.path, f"a network of kind `{self.kind}`", "a segmenter of kind `retrieval`", do)
        return explained(trained, "", trained.decide(as_rgb(picture, how=self._reading)))

    def cams(self, picture: AnyPicture, classes: Sequence[str]) -> Float32[np.ndarray, "k h w"]:
        """Class activation maps of one picture, as `wsss localize cam` makes them.

        Args:
            picture: see `wsss.data.pictures.as_rgb`.
            classes: names of the classes of the maps to compute.

        Returns:
            Maps in [0, 1] at the size of the picture, in the order of `classes`.

        Raises:
            BadInput: the network is a segmenter; a class is unknown or occurs twice; the picture has another type.
        """
        if isinstance(self._network, Segmenter):
            raise BadInput(self.path, "a segmenter", "a classifier", "Call predict(), or load a classifier.")
        classes = [classes] if isinstance(classes, str) else list(classes)
        for name in classes:
            if name not in self.classes or classes.count(name) > 1:
                found = f"{name!r}" if name not in self.classes else f"{name!r} twice"
                do = suggestion(str(name), self.classes) + "Correct it."
                raise BadInput("classes", found, f"some of {', '.join(self.classes[:8])}", do)
        rgb = as_rgb(picture, how=self._reading)
        wanted = [self.classes.index(name) for name in classes]
        label = np.isin(np.arange(len(self.classes)), wanted)
        made = self._network.cams(self._network.prepare(rgb), rgb.shape[:2], label)
        return made.maps[np.searchsorted(made.classes, wanted)]


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    crf: Preset | DenseCRF | None = None,
    size: int | Literal["full"] | None = None,
) -> Predictor:
    """Load a trained segmenter or classifier.

    Args:
        path: a run folder, whose segmenter is loaded; the folder of a training stage, or its weights file; a folder that
            `wsss export model --format hub` wrote, or its name USER/NAME on Hugging Face's hub; or a published checkpoint of a
            segmenter. No code in a file is run.
        device: device of the network; by default a GPU if there is one.
        scales: scales of the picture over which scores are averaged, or maps summed; by default as published.
        flip: whether the mirrored picture is included; by default as published.
        crf: dense CRF on the probabilities of a segmenter: the name of a published preset, or a `DenseCRF`.
        size: longest side of pictures in a segmenter, in pixels, or `full` for that of the picture; by default, pictures that are much
            smaller or larger than those of the training are resized to their sizes.

    Raises:
        BadInput: there is no trained network, or it is damaged; settings out of range.

    Example:
        >>> import numpy as np
        >>> import wsss
        >>> segmenter = wsss.load(run)  # the run folder of any method
        >>> picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
        >>> found = segmenter.predict(picture)
        >>> found.labels.shape, found.probabilities.shape, found.classes
        ((40, 60), (3, 40, 60), ('cat', 'dog'))
        >>> round(sum(found.areas().values()), 6), found.overlay().size
        (1.0, (60, 40))
    """
    # a path whose first folder exists is a path, not a name on the hub
    named = _HUB_NAME.fullmatch(os.fspath(path)) and not os.path.exists(path) and not Path(path).parent.exists()
    found = (
        hub.model_file(os.fspath(path), WEIGHTS) if named else weights_in(find_trained(Path(path), *_TRAINED_FOLDERS))
    )
    where = None if device is None else torch.device(device)
    known = read_metadata(found) if found.suffix == ".safetensors" else {}
    if known.get("kind") != KIND:
        settings = PredictSettings(None if scales is None else tuple(scales), flip, crf, size)
        segmenter = Segmenter(found, settings, where)
        return Predictor(found, segmenter.kind, segmenter, segmenter.classes)
    for name, value in (("crf", crf), ("size", size)):
        if value is not None:
            raise BadInput(name, f"{value}", "none for a classifier", "Leave it out.")
    state, metadata, _ = trained_weights(found, KIND)
    classifier = ClassifierWeights(state, metadata or {}, False, found)
    network = cam_network(CAMNetwork, classifier).to(where or launch.device()).eval()
    usual = MultiScale()
    views = MultiScale(usual.scales if scales is None else tuple(scales), usual.flip if flip is None else flip)
    localizer = CAMLocalizer(network, views, classifier.metadata["colours"])
    return Predictor(found, KIND, localizer, tuple(classifier.metadata["classes"]))
