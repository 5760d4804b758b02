"""Load state dicts into networks: either completely, or not at all with an error that lists the differences.

An architecture knows its published tensor names (`wsss.networks.body`); here they are matched, tensor by tensor.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wsss import launch
from wsss.checkpoints import few, imagenet_weights, read_checkpoint, timm_weights
from wsss.errors import BadInput
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Backbone, Body
from wsss.networks.deeplab import MSC
from wsss.weights import State, read_metadata, read_weights, weights_in

log = logging.getLogger("wsss")

# the words for initial weights; auto: the classifier's where it has this backbone, otherwise those of ImageNet
AUTO = "auto"
_WORDS = ("none", "imagenet", "classifier", AUTO)


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Which tensors of a file were loaded into a network."""

    loaded: tuple[str, ...]
    """Tensors taken from the file."""
    ignored: tuple[str, ...]
    """Tensors of the file that were left out, as requested."""
    missing: tuple[str, ...]
    """Tensors that the file lacks and that keep their initial values, as allowed; without the counters of batch norms."""
    mismatched: tuple[str, ...]
    """Tensors with another shape in the file that keep their initial values, as allowed."""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for title, names in (
            ("left out", self.ignored),
            ("new", self.missing),
            ("new, since the file has another shape", self.mismatched),
        ):
            if names:
                parts.append(f"{len(names)} {title} ({few(names)})")
        return "; ".join(parts)


class WrongNetwork(BadInput):
    """Weights of another network; `faults` lists the differences."""

    def __init__(self, where: str | Path, faults: str, network: str) -> None:
        super().__init__(
            where,
            f"weights of another network, {faults}",
            f"the weights of {network}",
            "Nothing was loaded. Give a file of this network. If only the number of classes differs, set it as in "
            "the file, or use new weights for the layers that depend on it.",
        )
        self.faults = faults


class WrongBackbone(BadInput):
    """A classifier with another backbone than the network that should start from it."""


def load_into(
    network: nn.Module,
    state: Mapping[str, Tensor],
    where: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> LoadReport:
    """Load a state dict with exactly the network's names and shapes, apart from the exceptions given.

    Args:
        network: a network on the meta device is only compared with the state dict.
        state: the state dict.
        where: the source to name in an error.
        allow_missing: patterns (`base.aspp.*`) of the network's names that may keep their values if the file
            lacks them or has another shape. This always applies to the counters of batch norms, which nothing reads.
        ignore: patterns of the file's names to leave out.

    Raises:
        BadInput: anything else differs; then nothing is loaded.
    """
    target = network.state_dict()
    given = {name: value for name, value in state.items() if not _matches(name, ignore)}
    matching = {name: value for name, value in given.items() if name in target and value.shape == target[name].shape}
    missing = [name for name in target if name not in given and not name.endswith("num_batches_tracked")]
    mismatched = [name for name in target if name in given and name not in matching]
    unexpected = [name for name in given if name not in target]

    lacking = [name for name in missing if not _matches(name, allow_missing)]
    wrong_shape = [name for name in mismatched if not _matches(name, allow_missing)]
    if lacking or wrong_shape or unexpected or not matching:
        faults = [f"{len(matching)} of {len(target)} tensors match"]
        if lacking:
            faults.append(f"{len(lacking)} missing ({few(lacking)})")
        if unexpected:
            faults.append(f"{len(unexpected)} unknown to the network ({few(unexpected)})")
        if wrong_shape:
            shapes = [f"{name}: {tuple(given[name].shape)} for {tuple(target[name].shape)}" for name in wrong_shape]
            faults.append(f"{len(wrong_shape)} of another shape ({few(shapes)})")
        raise WrongNetwork(where, ", ".join(faults), type(network).__name__)
    # torch warns about copies to the meta device
    if not any(value.is_meta for value in target.values()):
        network.load_state_dict(matching, strict=False)
    return LoadReport(
        loaded=tuple(matching),
        ignored=tuple(name for name in state if name not in given),
        missing=tuple(missing),
        mismatched=tuple(mismatched),
    )


def load_deeplab(network: MSC, state: Mapping[str, Tensor], where: str | Path, *, new_head: bool = False) -> LoadReport:
    """Load weights of the deeplab-pytorch family into a DeepLab v2 in its multi-scale wrapper.

    The initial weights (`deeplabv1_resnet101-coco.pth`, `-imagenet.pth`) have a classifier `fc`, which is left out, and no head, so
    the head keeps its new weights. Trained checkpoints are loaded completely.

    Args:
        network: the DeepLab v2.
        state: the weights.
        where: the source to name in an error.
        new_head: keep the new weights of the head if a trained checkpoint has another number of classes.

    Raises:
        BadInput: the weights belong to another network; nothing is loaded.
    """
    initial = not any(name.startswith("base.") for name in state)
    return load_into(
        network,
        network.named(state),
        where,
        allow_missing=("base.aspp.*",) if initial or new_head else (),
        ignore=("base.fc.*",) if initial else (),
    )


def load_segmenter(
    network: nn.Module,
    init: str,
    kind: str,
    layers: Mapping[str, Any],
    head: Sequence[str],
    classes: Sequence[str] | None,
    ignore: Sequence[str] = (),
) -> bool:
    """Load a segmenter of the same kind that `wsss` trained, to train on from it.

    With the same classes in the same order, all weights are loaded; otherwise the layers that depend on the classes keep their new
    weights, which is reported.

    Args:
        network: the new segmenter; on the meta device, the weights are only checked.
        init: as in the settings; anything but such weights is left to the caller.
        kind: kind of the segmenter.
        layers: settings of its network, as plain values.
        head: patterns of the names of tensors that depend on the classes.
        classes: the classes to train; None if they are not known yet.
        ignore: patterns of tensors of the file that are not part of the network.

    Returns:
        Whether `init` is such a segmenter.

    Raises:
        BadInput: its network has other layers, or the file is damaged.
    """
    path = weights_in(Path(init))
    if init in _WORDS or path.suffix != ".safetensors" or not path.is_file():
        return False
    metadata = read_metadata(path)
    if metadata.get("kind") != kind:
        return False
    _check_layers(path, metadata.get("network"), layers)
    state, _ = read_weights(path)
    before = metadata.get("classes")
    new_head = classes is None or before != list(classes)
    if new_head:
        state = {name: value for name, value in state.items() if not _matches(name, head)}
    load_into(network, state, path, allow_missing=head if new_head else (), ignore=ignore)
    if classes is not None and launch.is_first():
        if new_head:
            names = [
                ", ".join(map(str, one[:8])) + (", ..." if len(one) > 8 else "") for one in (before or [], classes)
            ]
            log.info("%s: trained on, with a new head: its classes are %s, and not %s", init, *names)
        else:
            log.info("%s: trained on, with its head: the classes are the same", init)
    return True


def _check_layers(path: Path, before: Any, layers: Mapping[str, Any]) -> None:
    """Raise BadInput unless the network of a file has these layers, compared as JSON."""
    found, wanted = (json.loads(json.dumps(one)) for one in (before, layers))
    if found == wanted:
        return
    if not isinstance(found, dict):
        raise BadInput(path, f"the layers {found!r:.60}", "settings by name", "Restore the file.")
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    texts = [", ".join(f"{name} {one.get(name)}" for name in differing) for one in (found, wanted)]
    flags = " ".join(f"--segmenter.network.{name} '{found.get(name)}'" for name in differing)
    raise BadInput(path, f"a network with {texts[0]}", f"{texts[1]}, as in the settings", f"Set {flags}.")


def load_backbone(body: Body, name: str, init: str, setting: str = "init") -> LoadReport:
    """Load the initial weights of a backbone.

    Args:
        body: the backbone; on the meta device, the weights are only checked.
        name: of the backbone.
        init: `imagenet` (or `auto`, which is that without a classifier), or the weights of the backbone or of a network that contains it:
            a file, or the folder of a training stage.
        setting: the setting to name in an error.

    Raises:
        BadInput: the weights are not available, or belong to another network.
    """
    where: str | Path = init
    if init not in ("imagenet", AUTO):
        state = _part_of(read_checkpoint(Path(init)), name)
    elif body.IMAGENET is None:
        raise _no_imagenet(setting, body, name)
    else:
        state, where = (imagenet_weights if body.IMAGENET == "torchvision" else timm_weights)(name, setting)
    return load_into(body, body.named(state), where, ignore=body.LEFT_OUT)


def _part_of(state: State, name: str) -> State:
    """The entries of the backbone in a network's state dict, without their prefix; all entries if there is no prefix."""
    prefixes = (f"{name}.", "resnet.", "backbone.", "base.backbone.", "body.", "extractor.")
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in state)), "")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _no_imagenet(setting: str, body: Body, name: str) -> BadInput:
    return BadInput(
        setting,
        f"`imagenet`, which no library offers for {name}",
        f"a file: {body.INITIAL}",
        "Download it from its authors, choose another backbone, or train from scratch with `none`.",
    )


def to_be_trained(backbone: str, output_stride: int) -> Backbone:
    """The backbone of a classifier that is not trained yet, on the meta device, for `check_initial`.

    Raises:
        BadInput: there is no such backbone, or it does not support this stride.
    """
    with torch.device("meta"):
        return create_backbone(backbone, output_stride)


def check_initial(setting: str, body: Body, name: str, init: str, classifier: Path | Backbone | None = None) -> None:
    """Raise BadInput for initial weights that are not available or do not match, before any stage runs.

    Args:
        setting: the setting to name in an error.
        body: the backbone, on the meta device.
        name: of the backbone.
        init: `none`, `imagenet`, `classifier`, `auto`, or a file or folder.
        classifier: the network that produces the maps: its weights, or its backbone if it is not trained yet (`to_be_trained`); None if
            no network is trained.
    """
    if init == AUTO and classifier is not None:
        with contextlib.suppress(WrongBackbone):
            check_continues(setting, body, name, classifier)
            return
    if init == "classifier":
        check_continues(setting, body, name, classifier)
    elif init != "none":
        load_backbone(body, name, init, setting)


def check_continues(setting: str, body: Body, name: str, classifier: Path | Backbone | None) -> None:
    """Raise WrongBackbone unless the weights of the classifier contain all tensors of a backbone; arguments as in `check_initial`."""
    try:
        if isinstance(classifier, Backbone):
            load_into(body, body.named(classifier.state_dict()), "the classifier", ignore=body.LEFT_OUT)
        else:
            load_backbone(body, name, str(_weights_of(setting, classifier)))
    except WrongNetwork as error:
        raise WrongBackbone(
            setting,
            f"`classifier` for {name}, but the classifier has another backbone ({error.faults})",
            f"the same backbone in both, so that every tensor of {name} is found",
            "Use the same backbone in both, or other initial weights.",
        ) from error


def check_batch_norm(setting: str, batch_norm: str, init: str) -> None:
    """Raise BadInput for frozen batch norms without pretrained statistics.

    Args:
        setting: the setting to name in an error.
        batch_norm: `frozen` or `live`.
        init: the initial weights, `none` or others.
    """
    if init == "none" and batch_norm == "frozen":
        raise BadInput(
            setting,
            "`frozen` with new weights, whose statistics would never be computed",
            "`live` if init is `none`",
            "Set it to live, or give initial weights.",
        )


S = TypeVar("S")


def started_from(settings: S, setting: str, classifier: Path | None) -> S:
    """Settings in which `init: classifier` is replaced by the file of the classifier's weights, and `auto` by that file or `imagenet`.

    Args:
        settings: a frozen dataclass; without a field `init`, it always starts from new weights.
        setting: the name of its initial weights, for an error.
        classifier: the stage folder of the trained classifier, or its weights file; None if there is none.

    Raises:
        BadInput: `init` is `classifier`, but there is none.
    """
    initial: Any = settings
    if "init" not in {field.name for field in dataclasses.fields(initial)} or initial.init not in ("classifier", AUTO):
        return settings
    if initial.init == AUTO:
        if classifier is None:
            return dataclasses.replace(initial, init="imagenet")
        try:
            dataclasses.replace(initial, init="classifier").check(classifier)
        except WrongBackbone:
            return dataclasses.replace(initial, init="imagenet")
    return dataclasses.replace(initial, init=str(_weights_of(setting, classifier)))


def _weights_of(setting: str, classifier: Path | None) -> Path:
    if classifier is None:
        raise BadInput(
            setting,
            "`classifier`, but no classifier that was trained here",
            "the folder or weights file of the network to start from, or another of its options",
            f"Give that folder, for example --{setting} runs/classifier.",
        )
    return weights_in(classifier)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
