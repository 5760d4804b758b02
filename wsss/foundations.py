"""Load frozen networks for dense features: by hub id, folder or file, by timm's name, or from a classifier that was trained here.

Code in a file is never run: what a folder says about its architecture only chooses from a list.
"""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wsss import launch
from wsss.checkpoints import read_checkpoint, timm_weights
from wsss.errors import BadInput, check_range, is_regular
from wsss.foreign.torchscript import is_torchscript
from wsss.loading import load_backbone, load_into
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Body
from wsss.networks.clip import is_openai
from wsss.networks.features import (
    ARCHITECTURES,
    CLIP,
    IMAGENET,
    BodyFeatures,
    DenseFeatures,
    FrozenNetwork,
    TransformerFeatures,
)
from wsss.pretrained import (
    check_complete,
    check_exists,
    load_clip,
    loading_model,
    mean_and_deviation,
    picture_colours,
    saved_folder,
)
from wsss.run import pretrained
from wsss.storage import read_json
from wsss.weights import State, finite, read_metadata, read_weights, weights_in

log = logging.getLogger("wsss")

CLASSIFIER = "classifier"
# of the names of a frozen network's weights in the file of a segmenter that was trained on its features
KEPT = "features.network."
_EXPECTED = (
    "a network for features: a hub id such as facebook/dinov2-with-registers-small, a folder saved by transformers or timm, a file of OpenAI's "
    "CLIP or of DINOv2's authors, a classifier trained here, or the name of a timm model"
)
# tensors that only files of DINOv2's authors have together
_DINOV2_NAMES = frozenset(["cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "blocks.0.ls1.gamma"])
_LIBRARIES = ("timm", "torch", "transformers")
# layers and enlargement of a classifier's features; those of foundation networks are taken as they are
_OF_CLASSIFIER, _OF_FOUNDATION = (2, 2), (1, 1)


@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """The frozen network."""

    source: str = pretrained(CLASSIFIER)
    """classifier (that of the run), its folder or file; a segmenter of kind `frozen`, whose network is used; or a hub id such as
    facebook/dinov2-with-registers-small, a folder saved by transformers or timm, OpenAI's ViT-B-16.pt, dinov2_vits14_reg4_pretrain.pth, or the
    name of a timm model"""
    layers: int | None = None
    """number of feature maps used, from the deepest on; none: 1, and 2 for a classifier"""
    enlarge: int | None = None
    """factor by which pictures are enlarged, for smaller cells; none: 1, and 2 for a classifier"""

    def __post_init__(self) -> None:
        for name in ("layers", "enlarge"):
            if (value := getattr(self, name)) is not None:
                check_range(f"features.{name}", value, 1)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A frozen network, and what says which one it is.

    Attributes:
        features: on the CPU.
        source: where it came from: a name, or an absolute path.
        body: of a classifier, what is needed to build it again: `backbone`, `output_stride` and `colours`; None for other networks.
        digest: of its weights.
    """

    features: DenseFeatures
    source: str
    body: Mapping[str, Any] | None
    digest: str

    @property
    def identity(self) -> dict[str, Any]:
        """A description for files that depend on the network. Libraries resize position embeddings differently, so their versions are part of it."""
        libraries = {name: version(name) for name in _LIBRARIES}
        layers = {"layers": self.features.layers, "enlarge": self.features.enlarge}
        # in the order of weights files, so that it is written in the same bytes after it was read from one
        body = None if self.body is None else dict(sorted(self.body.items()))
        return {"source": self.source, "body": body, "digest": self.digest, "libraries": libraries, **layers}


def load_features(settings: FeatureSettings) -> Loaded:
    """The network of these settings, on the CPU, in float32.

    Raises:
        BadInput: the source does not exist, cannot be downloaded, or is another kind of network.
    """
    source = settings.source
    if source == CLASSIFIER:
        do = "Give the folder of a classifier that was trained here (`wsss refine`: --classifier), or of another network, as features.source."
        raise BadInput("features.source", f"`{CLASSIFIER}`, but no classifier that was trained here", _EXPECTED, do)
    place = weights_in(Path(source))
    metadata = read_metadata(place) if place.suffix == ".safetensors" and is_regular(place) else {}
    if "features" in metadata:
        return _of_segmenter(settings, place, metadata["features"])
    ours = "backbone" in metadata
    body: dict[str, Any] | None = None
    if ours:
        body = {key: metadata.get(key) for key in ("backbone", "output_stride", "colours")}
        network: FrozenNetwork = _built(body, place)
        _load_classifier(network, place, body)
    else:
        network = _foundation(source)
    finite(network.state_dict(), source)
    where = os.path.abspath(source) if os.path.exists(source) else source
    return Loaded(_dense(network, settings, _OF_CLASSIFIER if ours else _OF_FOUNDATION), where, body, digest(network))


def _of_segmenter(settings: FeatureSettings, path: Path, identity: Any) -> Loaded:
    """The network of a segmenter that was trained on its features."""
    state, _ = read_weights(path)
    known = {name.removeprefix(KEPT): value for name, value in state.items() if name.startswith(KEPT)}
    features = rebuilt(identity, known, path)
    for name in ("layers", "enlarge"):
        given, before = getattr(settings, name), identity[name]
        if given not in (None, before):
            expected = f"{before}, as in {path}"
            raise BadInput(f"features.{name}", str(given), expected, "Leave it out, or train a new segmenter.")
    return Loaded(features, identity["source"], identity["body"], identity["digest"])


def features_of(settings: FeatureSettings, backbone: Body) -> DenseFeatures:
    """The features of a classifier, from its backbone.

    Raises:
        BadInput: the settings do not suit it.
    """
    return _dense(BodyFeatures(backbone), settings, _OF_CLASSIFIER)


def _dense(network: FrozenNetwork, settings: FeatureSettings, usual: tuple[int, int]) -> DenseFeatures:
    layers = min(usual[0], len(network.strides)) if settings.layers is None else settings.layers
    return DenseFeatures(network, layers, usual[1] if settings.enlarge is None else settings.enlarge)


def rebuilt(identity: Mapping[str, Any], state: State, where: Path) -> DenseFeatures:
    """The network that a file describes, from its source, or for a classifier from the tensors in the file.

    Args:
        identity: as in `Loaded.identity`.
        state: the classifier's backbone; empty for other networks.
        where: the file, for errors.

    Raises:
        BadInput: the network is no longer where it was, or it has changed.
    """
    check_identity(identity, where)
    libraries = {name: version(name) for name in _LIBRARIES}
    if libraries != identity["libraries"] and launch.is_first():
        before = ", ".join(f"{name} {number}" for name, number in identity["libraries"].items())
        log.warning("%s: made with %s; other versions may resize position embeddings differently", where, before)
    if identity["body"] is not None:
        network = _built(identity["body"], where)
        load_into(network, state, where)
        return DenseFeatures(network, identity["layers"], identity["enlarge"])
    loaded = load_features(FeatureSettings(identity["source"], identity["layers"], identity["enlarge"]))
    if loaded.digest != identity["digest"]:
        raise BadInput(
            loaded.source,
            f"a network with digest {loaded.digest[:12]}",
            f"the one that {where} was made with, {identity['digest'][:12]}",
            "Restore that network, or make the segmenter again.",
        )
    return loaded.features


def check_identity(identity: Any, where: Path) -> None:
    """Raise BadInput unless a value in a file is a `Loaded.identity`."""
    needed = {"source": str, "body": dict | None, "digest": str, "libraries": dict, "layers": int, "enlarge": int}
    entries = identity if isinstance(identity, dict) else {}
    wrong = [name for name, kind in needed.items() if name not in entries or not isinstance(entries[name], kind)]
    if wrong:
        do = "The file was changed after it was written: restore it, or make it again."
        raise BadInput(where, f"a network without {', '.join(wrong)}", "the network of the features", do)


def digest(network: nn.Module) -> str:
    """The SHA-256 of the names, shapes and values of all weights."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _built(body: Mapping[str, Any], where: Path) -> BodyFeatures:
    """The backbone of a classifier, with new weights."""
    colours = {"imagenet": IMAGENET, "clip": CLIP}.get(str(body.get("colours")))
    if colours is None or not isinstance(body.get("output_stride"), int):
        found = f"a network with colours {body.get('colours')} and output stride {body.get('output_stride')}"
        raise BadInput(where, found, "a classifier that was trained here", "Give the folder of a classifier.")
    return BodyFeatures(create_backbone(str(body.get("backbone")), body["output_stride"]), colours)


def _load_classifier(network: FrozenNetwork, path: Path, body: Mapping[str, Any]) -> None:
    inner = network.get_submodule("body")
    assert isinstance(inner, Body)
    load_backbone(inner, str(body["backbone"]), str(path), "features.source")


def _foundation(source: str) -> FrozenNetwork:
    source = saved_folder(source)
    path = Path(source)
    if is_regular(path):
        return _from_file(path)
    if path.is_dir():
        return _from_folder(path)
    check_exists(source, _EXPECTED)
    if "/" not in source or source.startswith("timm/"):
        return _from_timm(source.removeprefix("timm/"))
    return _from_transformers(source, None, _settings(source))


def _from_file(path: Path) -> FrozenNetwork:
    if not is_torchscript(path):
        state = read_checkpoint(path)
        if state.keys() >= _DINOV2_NAMES:
            return _dinov2(state, path)
        if not is_openai(state):
            found = f"other names than those of DINOv2 and OpenAI's CLIP (first tensors: {', '.join(list(state)[:3])})"
            do = "If transformers or timm wrote the file, give the folder with its config.json."
            raise BadInput(path, found, _EXPECTED, do)
    vision: Any = load_clip(str(path)).model
    return TransformerFeatures(vision.vision_model, "clip")


def _dinov2(state: State, path: Path) -> BodyFeatures:
    """A file of DINOv2's authors, such as dinov2_vits14_reg4_pretrain.pth, under timm's names.

    With registers, timm adds the positional embedding of the class token to it.
    """
    size = {384: "small", 768: "base", 1024: "large", 1536: "giant"}.get(state["cls_token"].shape[-1])
    registers = state.get("register_tokens")
    if size is None or (registers is not None and registers.shape[1] != 4):
        found = f"a DINOv2 of width {state['cls_token'].shape[-1]}"
        raise BadInput(path, found, "a published DINOv2, without or with four registers", "Give one of these files.")
    named = {
        name.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2."): value
        for name, value in state.items()
        if name not in ("mask_token", "register_tokens")
    }
    if registers is not None:
        named["reg_token"] = registers
        named["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        named["pos_embed"] = state["pos_embed"][:, 1:]
    return _of_timm(f"vit_{size}_patch14_{'' if registers is None else 'reg4_'}dinov2", named, path, None)


def _settings(source: str) -> dict[str, Any]:
    """The content of config.json of a model on the hub."""
    from transformers.utils import cached_file  # slow to import

    with loading_model(source, None, "a network for features", _EXPECTED):
        found = cached_file(source, "config.json")
    content = read_json(Path(str(found)), "the settings of a model (config.json)")
    return content if isinstance(content, dict) else {}


def _from_folder(path: Path) -> FrozenNetwork:
    config = path / "config.json"
    content = read_json(config, "the settings of a model (config.json)")
    if isinstance(content, dict) and isinstance(content.get("architecture"), str):
        weights = path / "model.safetensors"
        return _of_timm(content["architecture"], read_weights(weights)[0], weights, content.get("pretrained_cfg"))
    return _from_transformers(str(path), path, content if isinstance(content, dict) else {})


def _from_transformers(name: str, folder: Path | None, settings: Mapping[str, Any]) -> TransformerFeatures:
    kind = str(settings.get("model_type"))
    if kind not in ARCHITECTURES:
        do = "Give another network."
        raise BadInput(name, f"a model of type {kind}", f"one of {', '.join(ARCHITECTURES)}", do)
    from transformers.utils import cached_file

    with loading_model(name, folder, f"a {kind} network", _EXPECTED):
        read: Any = ARCHITECTURES[kind].model.from_pretrained
        model, loaded = read(name, output_loading_info=True, **ARCHITECTURES[kind].loading)
        preprocessing = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    check_complete(name, loaded, _EXPECTED)
    return TransformerFeatures(model.float(), kind, picture_colours(preprocessing))


def _from_timm(name: str) -> BodyFeatures:
    import timm

    from wsss.networks import timm_backbone

    if not timm.is_model(name):
        raise BadInput(f"features.source {name}", "no network with this name", _EXPECTED, timm_backbone.near(name, ()))
    state, where = timm_weights(name, "features.source")
    return _of_timm(name, state, where, None)


def _of_timm(name: str, state: Mapping[str, Tensor], where: str | Path, settings: Any) -> BodyFeatures:
    import timm

    from wsss.networks import timm_backbone

    if not timm.is_model(name):
        do = timm_backbone.near(name, ())
        raise BadInput(where, f"the architecture {name!r:.60}", "a model of the installed timm", do)
    body = timm_backbone.TimmBackbone(name, timm_backbone.own_stride(name))
    load_into(body, body.named(state), where, ignore=body.LEFT_OUT)
    # a backbone takes pictures with ImageNet's normalisation, and changes it to that of timm's weights by this name
    given = mean_and_deviation(settings, "mean", "std", Path(where)) if isinstance(settings, dict) else None
    if given is not None:
        body.normalise_by(*given)
    return BodyFeatures(body)
