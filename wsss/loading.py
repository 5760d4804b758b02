"""State dicts into networks: all of a file, or nothing and one error that says what does not fit.

An architecture knows the names it was published under (`wsss.networks.body`); here they are matched, tensor by tensor.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wsss.checkpoints import few, imagenet_weights, read_checkpoint, timm_weights
from wsss.errors import BadInput
from wsss.networks.backbone import create_backbone
from wsss.networks.body import Backbone, Body
from wsss.networks.deeplab import MSC
from wsss.weights import State, weights_in


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file and of a network."""

    loaded: tuple[str, ...]
    """Taken from the file."""
    ignored: tuple[str, ...]
    """In the file, left out on purpose."""
    missing: tuple[str, ...]
    """Not in the file, new in the network on purpose; without batch norm's counters."""
    mismatched: tuple[str, ...]
    """In the file with another shape, new in the network on purpose."""

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


class NotFitting(BadInput):
    """Weights of another network; `faults` says what does not fit."""

    def __init__(self, where: str | Path, faults: str, network: str) -> None:
        super().__init__(
            where,
            f"weights of another network, {faults}",
            f"the weights of {network}",
            "Nothing was loaded. Give a file of this network; where the number of classes alone differs, set it as in "
            "the file, or let the layers that depend on it start anew.",
        )
        self.faults = faults


def load_into(
    network: nn.Module,
    state: Mapping[str, Tensor],
    where: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> LoadReport:
    """Load a state dict that has exactly the network's names and shapes, but for the exceptions given.

    Args:
        network: one on the meta device is compared with the state dict alone.
        where: the place to name in an error.
        allow_missing: patterns (`base.aspp.*`) of the network's names that may stay as they are, because the file
            lacks them or has another shape. Batch norm's counters, which nothing reads, always may.
        ignore: patterns of the file's names that are not wanted.

    Raises:
        BadInput: anything else differs; then nothing is loaded.
    """
    own = network.state_dict()
    wanted = {name: value for name, value in state.items() if not _matches(name, ignore)}
    fitting = {name: value for name, value in wanted.items() if name in own and value.shape == own[name].shape}
    missing = [name for name in own if name not in wanted and not name.endswith("num_batches_tracked")]
    mismatched = [name for name in own if name in wanted and name not in fitting]
    unexpected = [name for name in wanted if name not in own]

    lacking = [name for name in missing if not _matches(name, allow_missing)]
    misshapen = [name for name in mismatched if not _matches(name, allow_missing)]
    if lacking or misshapen or unexpected or not fitting:
        faults = [f"{len(fitting)} of {len(own)} tensors that fit"]
        if lacking:
            faults.append(f"{len(lacking)} missing ({few(lacking)})")
        if unexpected:
            faults.append(f"{len(unexpected)} unknown to the network ({few(unexpected)})")
        if misshapen:
            shapes = [f"{name}: {tuple(wanted[name].shape)} for {tuple(own[name].shape)}" for name in misshapen]
            faults.append(f"{len(misshapen)} of another shape ({few(shapes)})")
        raise NotFitting(where, ", ".join(faults), type(network).__name__)
    # torch warns of copies that go nowhere
    if not any(value.is_meta for value in own.values()):
        network.load_state_dict(fitting, strict=False)
    return LoadReport(
        loaded=tuple(fitting),
        ignored=tuple(name for name in state if name not in wanted),
        missing=tuple(missing),
        mismatched=tuple(mismatched),
    )


def load_deeplab(network: MSC, state: Mapping[str, Tensor], where: str | Path, *, new_head: bool = False) -> LoadReport:
    """Load any weights of the deeplab-pytorch family into a DeepLab v2 in its multi-scale wrapper.

    The initial weights (`deeplabv1_resnet101-coco.pth`, `-imagenet.pth`) have a classifier `fc`, which is left out, and no head,
    which stays new. Trained checkpoints are loaded whole.

    Args:
        new_head: leave the head new where a trained checkpoint has another number of classes.

    Raises:
        BadInput: the weights are of another network; nothing is loaded.
    """
    initial = not any(name.startswith("base.") for name in state)
    return load_into(
        network,
        network.named(state),
        where,
        allow_missing=("base.aspp.*",) if initial or new_head else (),
        ignore=("base.fc.*",) if initial else (),
    )


def load_backbone(body: Body, name: str, init: str) -> LoadReport:
    """Give a body its initial weights.

    Args:
        body: also one on the meta device, to find out whether the weights fit.
        name: of the body.
        init: `imagenet`, or weights of the body itself or of a network built on it: a file, or the folder of a training stage.

    Raises:
        BadInput: the weights cannot be had, or are of another network.
    """
    where: str | Path = init
    if init != "imagenet":
        state = _part_of(read_checkpoint(Path(init)), name)
    elif body.IMAGENET is None:
        raise _no_imagenet("init", body, name)
    else:
        state, where = (imagenet_weights if body.IMAGENET == "torchvision" else timm_weights)(name)
    return load_into(body, body.named(state), where, ignore=body.LEFT_OUT)


def _part_of(state: State, name: str) -> State:
    """The backbone's entries of a network's state dict, without their prefix; all of them where there is no prefix."""
    prefixes = (f"{name}.", "resnet.", "backbone.", "body.", "extractor.")
    prefix = next((p for p in prefixes if any(key.startswith(p) for key in state)), "")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _no_imagenet(setting: str, body: Body, name: str) -> BadInput:
    return BadInput(
        setting,
        f"`imagenet`, which no library offers for {name}",
        f"a file: {body.INITIAL}",
        "Fetch it from its authors, choose another backbone, or start anew with `none`.",
    )


def to_be_trained(backbone: str, output_stride: int) -> Backbone:
    """The backbone of a classifier that is not trained yet, without numbers: for `check_initial`.

    Raises:
        BadInput: there is no such backbone, or it does not give that stride.
    """
    with torch.device("meta"):
        return create_backbone(backbone, output_stride)


def check_initial(setting: str, body: Body, name: str, init: str, classifier: Path | Backbone | None = None) -> None:
    """Raise BadInput for initial weights that cannot be had or do not fit, before hours are spent on what comes first.

    Args:
        setting: the setting to name in an error.
        body: on the meta device.
        name: of the body.
        init: `none`, `imagenet`, `classifier`, or a file or folder.
        classifier: what gives the maps: its weights, or what it is going to be (`to_be_trained`); None: nothing that is trained.
    """
    if init == "imagenet" and body.IMAGENET is None:
        raise _no_imagenet(setting, body, name)
    if init == "classifier":
        check_continues(setting, body, name, classifier)
    elif init not in ("imagenet", "none"):
        load_backbone(body, name, init)


def check_continues(setting: str, body: Body, name: str, classifier: Path | Backbone | None) -> None:
    """Raise BadInput unless a body finds all of its tensors in the weights of the classifier; arguments as in `check_initial`."""
    try:
        if isinstance(classifier, Backbone):
            load_into(body, body.named(classifier.state_dict()), "the classifier", ignore=body.LEFT_OUT)
        else:
            load_backbone(body, name, str(_weights_of(setting, classifier)))
    except NotFitting as error:
        raise BadInput(
            setting,
            f"`classifier` for {name}, where the classifier has another backbone ({error.faults})",
            f"the same backbone in both, so that every tensor of {name} is found",
            "Set one backbone to that of the other, or give a file or another word as the initial weights.",
        ) from error


def check_batch_norm(setting: str, batch_norm: str, init: str) -> None:
    """Raise BadInput for batch norms that would keep the statistics of nothing.

    Args:
        setting: the setting to name in an error.
        batch_norm: `frozen` or `live`.
        init: the initial weights, `none` or others.
    """
    if init == "none" and batch_norm == "frozen":
        raise BadInput(
            setting,
            "`frozen` with new weights, whose statistics would stay those of nothing",
            "`live` where init is `none`",
            "Set it to live, or give initial weights.",
        )


S = TypeVar("S")


def started_from(settings: S, setting: str, classifier: Path | None) -> S:
    """Settings with the file of the classifier's weights in the place of the word `classifier`.

    Args:
        settings: a frozen dataclass; without a field `init`, it always starts from new weights.
        setting: the name of its initial weights, for an error.
        classifier: the stage's folder of the trained classifier, or a file of its weights; None where there is none.

    Raises:
        BadInput: it is wanted and not there.
    """
    initial: Any = settings
    if "init" not in {field.name for field in dataclasses.fields(initial)} or initial.init != "classifier":
        return settings
    return dataclasses.replace(initial, init=str(_weights_of(setting, classifier)))


def _weights_of(setting: str, classifier: Path | None) -> Path:
    if classifier is None:
        raise BadInput(
            setting,
            "`classifier` where no trained classifier gave the maps",
            "a file, or another of its words",
            "Give the file of the weights to start from.",
        )
    return weights_in(classifier)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
