"""Weights in and out: published checkpoints, ImageNet weights and our own files. Nothing here unpickles code.

A state dict is read first (`read_checkpoint`, `read_weights`, `imagenet_weights`), then loaded (`load_into`,
`load_deeplab`, `load_irnet`): all of it, or nothing and one error that says what does not fit.
"""

import dataclasses
import http.client
import json
import pickle
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlparse

import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from wsss.data.samples import PictureReading
from wsss.errors import BadInput, reading
from wsss.mxnet import resnet38_params
from wsss.networks.affinitynet import VGG16
from wsss.networks.emanet import Trunk
from wsss.networks.pspnet import Res2Net
from wsss.networks.resnet38 import ResNet38
from wsss.storage import whole_file

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".params")

# IRNet and CLIMS save every tensor under several names, and IRNet its index buffers; resnet50.*, classifier.weight,
# fc_edge*, fc_dp* and mean_shift.running_mean are the names to load
IRNET_ALIASES = (
    "stage[1-5].*",
    "backbone.*",
    "newly_added.*",
    "edge_layers.*",
    "dp_layers.*",
    "fc_dp7.4.running_mean",
    "path_indices*",
    "disp_target",
)

# what PSA, SEAM and ICAM save beside their trunks, and the classifiers of ImageNet
PSA_HEADS = ("fc8*", "f8_*", "gn8_*", "f9.*", "linear1000*")

# what the deeplab-pytorch of VWL's first author calls the layers of deeplab-pytorch
VWL_LAYERS = {
    "batch_norm": "bn",
    "conv7x7": "conv1",
    "conv1": "reduce",
    "conv2": "conv3x3",
    "conv3": "increase",
}

# what a training stage writes
WEIGHTS = "weights.safetensors"

_METADATA_KEY = "wsss"
_SAFETENSORS = "a whole file in safetensors format"


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
                parts.append(f"{len(names)} {title} ({_few(names)})")
        return "; ".join(parts)


def read_checkpoint(path: Path) -> State:
    """The state dict of a `.safetensors`, `.pth`, `.pt`, `.bin` or `.params` file, on the CPU.

    What trainers wrap around it (`state_dict`, `model`, `net`, a `module.` before every name) is taken off. MXNet's `.params` are
    those of ResNet-38, which alone is published so; they get its names.

    Raises:
        BadInput: the file is missing, cut off, of another kind, without tensors, or would run code.
    """
    if path.suffix not in SUFFIXES:
        raise BadInput(
            path, f"a file name that ends in {path.suffix!r}", _expected(), "Give a checkpoint of one of these kinds."
        )
    if path.suffix == ".safetensors":
        return read_weights(path)[0]
    if path.suffix == ".params":
        _head(path)
        return finite(resnet38_params(path), path)
    return finite(_state_in(_read_torch(path), path), path)


def read_weights(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors and the metadata of a `.safetensors` file; no metadata if something else wrote it.

    Raises:
        BadInput: the file is missing, cut off or of another kind.
    """
    metadata = read_metadata(path)
    with reading(path, _SAFETENSORS), safetensors.safe_open(path, framework="pt", device="cpu") as file:
        return finite({name: file.get_tensor(name) for name in file.keys()}, path), metadata  # noqa: SIM118 - no mapping


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a `.safetensors` file alone; errors as in `read_weights`."""
    _head(path)
    with reading(path, _SAFETENSORS):
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY, "{}")
        metadata = json.loads(text)
    if not isinstance(metadata, dict):
        raise BadInput(
            path, f"metadata that says {metadata!r:.60}", "settings by name", "Fetch or write the file again."
        )
    return metadata


def finite(state: State, where: str | Path) -> State:
    """The state, unless numbers in it are infinite or none at all.

    Raises:
        BadInput: some are; the first tensor that holds one is named.
    """
    for name, tensor in state.items():
        # a sum is not finite if any number is not; one that overflows is looked at again
        if (
            tensor.is_floating_point()
            and not tensor.sum(dtype=torch.float64).isfinite()
            and not tensor.isfinite().all()
        ):
            count = int((~tensor.isfinite()).sum())
            do = "A training that went astray wrote it, or it is damaged: take another file."
            raise BadInput(where, f"{count} numbers of {name} that are infinite or none (NaN)", "finite weights", do)
    return state


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a `.safetensors` file; equal tensors and metadata give equal bytes.

    Args:
        metadata: anything that JSON holds, the settings for example.
    """
    # one entry: safetensors writes several in an order that differs from process to process
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    content = safetensors.torch.save(tensors, {_METADATA_KEY: text})
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def imagenet_weights(name: str) -> tuple[State, Path]:
    """torchvision's ImageNet weights (V1) of one of its models, from torch's cache or from the network.

    Args:
        name: `resnet50` for example.

    Returns:
        The state dict, with the classifier, and the file it came from.

    Raises:
        BadInput: torchvision has no such weights, or they are not in the cache and cannot be fetched.
    """
    try:
        url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    except (ValueError, AttributeError) as error:
        raise BadInput(
            f"ImageNet weights of {name}",
            "no such weights in torchvision",
            "a model with weights IMAGENET1K_V1, resnet50 for example",
            "Choose another backbone, give its weights with --init FILE, or start from new ones with --init none.",
        ) from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.exists():
        digest = re.search(r"-([0-9a-f]+)\.", path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=sys.stderr.isatty())
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise BadInput(
                path,
                f"no file, and it cannot be fetched from {url} ({error})",
                f"torchvision's ImageNet weights of {name}",
                "Put that file there, or give another with --init FILE, or start from new weights with --init none.",
            ) from error
    return read_checkpoint(path), path


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
            faults.append(f"{len(lacking)} missing ({_few(lacking)})")
        if unexpected:
            faults.append(f"{len(unexpected)} unknown to the network ({_few(unexpected)})")
        if misshapen:
            shapes = [f"{name}: {tuple(wanted[name].shape)} for {tuple(own[name].shape)}" for name in misshapen]
            faults.append(f"{len(misshapen)} of another shape ({_few(shapes)})")
        raise BadInput(
            where,
            f"weights of another network, {', '.join(faults)}",
            f"the weights of {type(network).__name__}",
            "Nothing was loaded. Give a file of this network; where the number of classes alone differs, set it as in "
            "the file, or let the layers that depend on it start anew.",
        )
    network.load_state_dict(fitting, strict=False)
    return LoadReport(
        loaded=tuple(fitting),
        ignored=tuple(name for name in state if name not in wanted),
        missing=tuple(missing),
        mismatched=tuple(mismatched),
    )


def load_deeplab(
    network: nn.Module, state: Mapping[str, Tensor], where: str | Path, *, new_head: bool = False
) -> LoadReport:
    """Load any weights of the deeplab-pytorch family into a DeepLab v2 in its multi-scale wrapper.

    The initial weights (`deeplabv1_resnet101-coco.pth`, `-imagenet.pth`) lack the prefix `base.`; their classifier
    `fc` is left out and the head stays new. Trained checkpoints are loaded whole, those of VWL too, whose layers have other
    names.

    Args:
        new_head: leave the head new where a trained checkpoint has another number of classes.

    Raises:
        BadInput: the weights are of another network; nothing is loaded.
    """
    if any(".conv7x7." in f".{name}" for name in state):
        state = {
            ".".join(VWL_LAYERS.get(part, part) for part in name.split(".")): value for name, value in state.items()
        }
    initial = any(name.startswith("layer1.conv1.") for name in state)
    if initial:
        state = {name if name.startswith("fc.") else f"base.{name}": value for name, value in state.items()}
    return load_into(
        network,
        state,
        where,
        allow_missing=("base.aspp.*",) if initial or new_head else (),
        ignore=("fc.*",) if initial else (),
    )


def load_irnet(network: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> LoadReport:
    """Load any published weights of IRNet: `res50_irn.pth`, or the affinity network of CLIMS' camera-ready version.

    Both have each tensor under several names; the second calls its backbone `model` and has no displacement branch.

    Raises:
        BadInput: the weights are of another network; nothing is loaded.
    """
    named = {re.sub(r"^model\.", "resnet50.", name): value for name, value in state.items()}
    return load_into(network, named, where, ignore=IRNET_ALIASES)


def load_backbone(body: nn.Module, name: str, init: str) -> LoadReport:
    """Give a backbone of `wsss.networks.backbone` its initial weights.

    Args:
        name: of the backbone.
        init: `imagenet`, or a file: of the backbone itself, or of a network built on it.

    Raises:
        BadInput: the weights cannot be had, or are of another network.
    """
    if init != "imagenet":
        state = read_checkpoint(Path(init))
        prefixes = (f"{name}.", "resnet.", "backbone.", "body.", "extractor.")
        prefix = next((p for p in prefixes if any(key.startswith(p) for key in state)), "")
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if isinstance(body, ResNet38 | VGG16):
            return load_into(body, state, init, ignore=PSA_HEADS)
        if isinstance(body, Trunk | Res2Net):
            return load_into(body, body.named(state), init, ignore=("fc.*",))
        if not hasattr(body, "layer4") and not any(key.startswith("body.") for key in state):
            return load_into(body, _timm_features(state, set(body.state_dict())), init)
        return load_into(body, state, init, ignore=("fc.*", "classifier.*"))
    check_initial("init", name, init)
    if hasattr(body, "layer4") and not isinstance(body, Res2Net):
        state, path = imagenet_weights(name)
        return load_into(body, state, path, ignore=("fc.*",))
    where = f"timm's pretrained weights of {name}"
    whole = isinstance(body, Trunk | Res2Net)
    try:
        pretrained = timm.create_model(name, features_only=not whole, pretrained=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise BadInput(
            where,
            f"none that can be fetched ({str(error).splitlines()[0][:200]})",
            "weights in timm's cache, or a network to fetch them from",
            "Give a file with --init FILE, or start from new weights with --init none.",
        ) from error
    state = pretrained.state_dict()
    if isinstance(body, Trunk | Res2Net):
        return load_into(body, body.named(state), where, ignore=("fc.*",))
    return load_into(body, {f"body.{key}": value for key, value in state.items()}, where)


def check_initial(setting: str, backbone: str, init: str) -> None:
    """Raise BadInput for initial weights that cannot be had, before hours are spent on what comes first.

    Args:
        setting: the setting to name in an error.
        backbone: its name.
        init: `none`, `imagenet`, `classifier`, or a file.
    """
    if init == "imagenet" and re.fullmatch(r"resnet38.*|psa-vgg16", backbone):
        raise BadInput(
            setting,
            f"`imagenet`, which no library offers for {backbone}",
            "a file: ilsvrc-cls_rna-a1_cls1000_ep-0001.params (ademxapp) for resnet38, or a state dict of the backbone",
            "Fetch it from its authors, choose another backbone, or start anew with `none`.",
        )
    if init not in ("imagenet", "none", "classifier"):
        read_checkpoint(Path(init))


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


class Startable(Protocol):
    """Settings of a training, with initial weights."""

    @property
    def init(self) -> str:
        """A word or a file."""


S = TypeVar("S", bound=Startable)


def check_start(setting: str, init: str, classifier: bool) -> None:
    """Raise BadInput where the word `classifier` stands for nothing, since no trained classifier gave the maps."""
    if init == "classifier" and not classifier:
        raise BadInput(
            setting,
            "`classifier` where no trained classifier gave the maps",
            "a file, or another of its words",
            "Give the file of the weights to start from.",
        )


def started_from(settings: S, setting: str, classifier: Path | None) -> S:
    """Settings with the file of the classifier's weights in the place of the word `classifier`.

    Args:
        settings: frozen dataclass.
        setting: the name of its initial weights, for an error.
        classifier: the stage's folder of the trained classifier; None where there is none.

    Raises:
        BadInput: it is wanted and not there.
    """
    check_start(setting, settings.init, classifier is not None)
    if settings.init != "classifier" or classifier is None:
        return settings
    return dataclasses.replace(settings, init=str(classifier / WEIGHTS))  # type: ignore[type-var]


def _timm_features(state: State, names: set[str]) -> State:
    """A whole timm model's weights under the names of its features: containers may be flattened, the classifier is left out."""
    forms = [state, {re.sub(r"^([a-z]+)[.](\d+)[.]", r"\1_\2.", key): value for key, value in state.items()}]
    named = [{f"body.{key}": value for key, value in form.items()} for form in forms]
    best = max(named, key=lambda form: len(form.keys() & names))
    return {key: value for key, value in best.items() if key in names} or best


def trained_weights(where: Path, *kinds: str) -> tuple[State, dict[str, Any] | None, Path]:
    """The weights that a training stage wrote, or a published checkpoint.

    Args:
        where: the stage's folder, its `weights.safetensors`, or a checkpoint of someone else.
        kinds: what our own files have to say they are, `cam` for example: one of these.

    Returns:
        The state dict, what was saved beside it (None: the file is not ours), and the file.

    Raises:
        BadInput: the file is missing, broken, or of another kind.
    """
    path = where / WEIGHTS if where.is_dir() else where
    if path.suffix != ".safetensors":
        return read_checkpoint(path), None, path
    state, metadata = read_weights(path)
    if metadata and metadata.get("kind") not in kinds:
        raise BadInput(
            path,
            f"weights of a `{metadata.get('kind')}` network",
            f"those of a {' or '.join(f'`{kind}`' for kind in kinds)} network",
            "Give the folder of the training stage that this command builds on.",
        )
    return state, metadata or None, path


def reading_of(where: Path) -> PictureReading | None:
    """How the pictures were read that weights were trained on; None for weights of someone else, which do not say it.

    Args:
        where: the folder of a training stage, or a file of weights.

    Raises:
        BadInput: the file is missing or broken.
    """
    path = where / WEIGHTS if where.is_dir() else where
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    with reading(path, "weights that say how the pictures were read that they were trained on"):
        return PictureReading.of(metadata.get("reading")) if metadata else None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _few(names: Sequence[str], shown: int = 3) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _expected() -> str:
    return f"a state dict of tensors in a file ending in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _head(path: Path) -> bytes:
    """The first bytes of a file that has any, and is no text."""
    with reading(path, _expected(), missing="Check the path and its permissions."), path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise BadInput(path, "an empty file", _expected(), "Fetch it again.")
    text = head.decode("utf-8", errors="ignore")
    if all(letter.isprintable() or letter in "\r\n\t" for letter in text):
        raise BadInput(
            path,
            f"a text that begins with {text[:40]!r}",
            _expected(),
            "It may be a download page or a pointer to the file: fetch the file itself.",
        )
    return head


def _read_torch(path: Path) -> object:
    head = _head(path)
    damaged = "It is cut off, damaged or no checkpoint: fetch it again."
    with reading(path, _expected(), damaged), warnings.catch_warnings():
        # torch warns of TorchScript and of newer pickles, which are refused below
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            called = re.search(r"GLOBAL (\S+)", str(error))
            if called is None and not head.startswith((b"\x80", b"PK")):
                raise
            asks = f"it asks for {called[1]}" if called else "it holds more than tensors, or is damaged"
            do = "It was not read. If you trust it, save its state dict alone where it was made."
            raise BadInput(path, f"a pickle that would run code ({asks})", _expected(), do) from error
        except RuntimeError as error:
            if "TorchScript" not in str(error):
                raise
            do = "Save the state dict of its module alone."
            raise BadInput(path, "a TorchScript archive, which is code", _expected(), do) from error


def _state_in(content: object, path: Path) -> State:
    while isinstance(content, Mapping):
        inner = [content[key] for key in ("state_dict", "model", "net") if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        found = "an empty dictionary" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise BadInput(path, found, _expected(), "Save the state dict of the network.")
    others = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise BadInput(
            path,
            f"entries that are no tensors ({_few(others)})",
            _expected(),
            "Save the state dict alone, or put it under the key 'state_dict'.",
        )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value for name, value in content.items()}
