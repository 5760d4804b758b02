"""Published checkpoints and ImageNet weights, as state dicts. Code in a file is never run."""

import http.client
import pickle
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from wsss import hub
from wsss.errors import BadInput, reading
from wsss.foreign.mxnet import resnet38_params
from wsss.weights import SUFFIXES, WEIGHTS, State, expected_checkpoint, finite, head_of, read_weights, weights_in


def read_checkpoint(path: Path) -> State:
    """The state dict of a `.safetensors`, `.pth`, `.pt`, `.bin` or `.params` file, or of a training stage's folder, on the CPU.

    Wrappers of training scripts are removed (`state_dict`, `model`, `net`, a `module.` before every name). MXNet's `.params` are read
    as those of ResNet-38, the only network published in this format, and renamed to its names.

    Raises:
        BadInput: the file is missing, truncated, has another format or no tensors, or would run code.
    """
    if path.is_dir():
        path = weights_in(path)
        if not path.exists():
            do = "Give the folder of a training stage, or a file."
            raise BadInput(path.parent, f"a folder without {WEIGHTS}", expected_checkpoint(), do)
    if not path.exists():
        raise BadInput(path, "no such file or folder", expected_checkpoint(), "Check the path.")
    if path.suffix not in SUFFIXES:
        raise BadInput(
            path,
            f"a file name that ends in {path.suffix!r}",
            expected_checkpoint(),
            "Give a checkpoint in one of these formats.",
        )
    if path.suffix == ".safetensors":
        return read_weights(path)[0]
    if path.suffix == ".params":
        head_of(path)
        return finite(resnet38_params(path), path)
    return finite(_state_in(_read_torch(path), path), path)


def imagenet_weights(name: str, setting: str = "init") -> tuple[State, Path]:
    """torchvision's ImageNet weights (V1) of one of its models, from torch's cache or downloaded.

    Args:
        name: for example `resnet50`.
        setting: the setting that asks for them, for errors.

    Returns:
        The state dict, including the classifier, and its file.

    Raises:
        BadInput: torchvision has no such weights, or they are not in the cache and cannot be downloaded.
    """
    import torchvision  # slow to import

    try:
        url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    except (ValueError, AttributeError) as error:
        raise BadInput(
            f"ImageNet weights of {name}",
            "no such weights in torchvision",
            "a model with weights IMAGENET1K_V1, for example resnet50",
            f"Choose another backbone, or {hub.other_weights(setting)}",
        ) from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.exists():
        digest = re.search(r"-([0-9a-f]+)\.", path.name)
        try:
            if not hub.is_reachable(url):
                raise OSError("no connection")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=sys.stderr.isatty())
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise hub.no_torchvision_weights(name, path, url, str(error), setting) from error
    return read_checkpoint(path), path


def timm_weights(name: str, setting: str = "init") -> tuple[State, str]:
    """timm's default pretrained weights of one of its models, from its cache or downloaded.

    Args:
        name: timm's name of the model.
        setting: the setting that asks for them, for errors.

    Returns:
        The state dict of the full model, and a description of its source.

    Raises:
        BadInput: they are not in the cache and cannot be downloaded.
    """
    import timm  # slow to import

    where = f"timm's pretrained weights of {name}"
    try:
        with hub.cache_if_offline():
            return dict(timm.create_model(name, pretrained=True).state_dict()), where
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        config = timm.models.get_pretrained_cfg(name)
        cached = hub.cached(config.hf_hub_id) if config and config.hf_hub_id else Path(torch.hub.get_dir())
        raise hub.no_timm_weights(name, cached, setting) from error


def few(names: Sequence[str], shown: int = 3) -> str:
    """The first names of a list, and the number of the others."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _read_torch(path: Path) -> object:
    head = head_of(path)
    damaged = "It is truncated, damaged or not a checkpoint: download it again."
    with reading(path, expected_checkpoint(), damaged), warnings.catch_warnings():
        # torch warns about TorchScript and newer pickles, which are refused below
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            called = re.search(r"GLOBAL (\S+)", str(error))
            if called is None and not head.startswith((b"\x80", b"PK")):
                raise
            reason = f"it asks for {called[1]}" if called else "it holds more than tensors, or is damaged"
            do = "It was not read. If you trust it, save only its state dict, with the program that made it."
            raise BadInput(path, f"a pickle that would run code ({reason})", expected_checkpoint(), do) from error
        except RuntimeError as error:
            if "TorchScript" not in str(error):
                raise
            do = "Save only the state dict of its module."
            raise BadInput(path, "a TorchScript archive, which is code", expected_checkpoint(), do) from error


def _state_in(content: object, path: Path) -> State:
    while isinstance(content, Mapping):
        inner = [content[key] for key in ("state_dict", "model", "net") if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        found = "an empty dictionary" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise BadInput(path, found, expected_checkpoint(), "Save the state dict of the network.")
    others = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise BadInput(
            path,
            f"entries that are not tensors ({few(others)})",
            expected_checkpoint(),
            "Save only the state dict, or put it under the key 'state_dict'.",
        )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value for name, value in content.items()}
