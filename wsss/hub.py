"""Downloads of published weights: from the cache alone where the internet cannot be reached, so that this is known at once.

Nothing here imports torch.
"""

import contextlib
import functools
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants

from wsss.errors import BadInput

# Files of torchvision's ImageNet weights (V1), and names on the hub of timm's, for the backbones that presets name
TORCHVISION = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
}
TIMM = {"resnet10t": "timm/resnet10t.c3_in1k"}
_ADDRESS = "https://download.pytorch.org/models/"
# Seconds to wait for an answer, and for one that includes the look-up of the address, which has no limit of its own
_ANSWER, _LOOKUP = 3.0, 5.0


@contextlib.contextmanager
def cache_if_offline() -> Iterator[None]:
    """Inside this block, loaders of timm and transformers use only their cache if the hub cannot be reached, instead of trying again for long."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@functools.cache
def is_reachable(address: str) -> bool:
    """Whether an HTTP server answers within seconds; proxies of the environment are used. Asked once per command."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_ANSWER).close()
        except urllib.error.HTTPError:
            pass  # an answer, such as `not found`
        except (OSError, ValueError):
            return
        answered.set()

    thread = threading.Thread(target=ask, name="is the internet there", daemon=True)
    thread.start()
    thread.join(_LOOKUP)
    return answered.is_set()


def cached(name: str) -> Path:
    """The folder in which the hub's cache keeps a model, for example `timm/resnet10t.c3_in1k`."""
    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def model_file(name: str, file: str) -> Path:
    """A file of a model on the hub, from the cache or downloaded.

    Raises:
        BadInput: there is no such model, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        with cache_if_offline():
            return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BadInput(
            name,
            "no such file or folder, and no such model in the cache or on the hub, or no connection to it",
            "a run folder, the folder of a training stage, a weights file, or USER/NAME on the hub",
            "Check the name and the connection.",
        ) from error


def check_imagenet(backbone: str, setting: str) -> None:
    """Check quickly that the ImageNet weights of a backbone of `TORCHVISION` or `TIMM` can be had; of others, nothing is known here.

    Args:
        backbone: its name.
        setting: the setting that asks for the weights, for errors.

    Raises:
        BadInput: they are not in the cache and cannot be downloaded.
    """
    if (file := TORCHVISION.get(backbone)) is not None:
        # as torch.hub finds it
        cache = os.environ.get("TORCH_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch")
        path = Path(cache).expanduser() / "hub" / "checkpoints" / file
        if not path.exists() and not is_reachable(_ADDRESS + file):
            raise no_torchvision_weights(backbone, path, _ADDRESS + file, "no connection", setting)
    elif (model := TIMM.get(backbone)) is not None and not _can_be_had(model):
        raise no_timm_weights(backbone, cached(model), setting)


def check_clip(source: str, setting: str) -> None:
    """Check quickly that a CLIP can be had, if `source` is a name on the hub.

    Raises:
        BadInput: it is neither a file or folder, nor in the cache, nor can it be downloaded.
    """
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) and not os.path.exists(source) and not _can_be_had(source):
        raise BadInput(
            f"CLIP {source}",
            f"none in {cached(source)}, and none that can be downloaded",
            "a CLIP in that cache, or an internet connection",
            f"Copy that folder from a computer that has used it, or give a file or folder with --{setting}.",
        )


def _can_be_had(model: str) -> bool:
    """Whether a model of the hub is in the cache, or can be downloaded."""
    return cached(model).exists() or not (constants.HF_HUB_OFFLINE or not is_reachable(constants.ENDPOINT))


def no_torchvision_weights(name: str, path: Path, url: str, reason: str, setting: str) -> BadInput:
    """An error about weights of torchvision that are not in `path` and cannot be downloaded."""
    return BadInput(
        path,
        f"no file, and it cannot be downloaded from {url} ({reason})",
        f"torchvision's ImageNet weights of {name}",
        f"Put that file there, or {other_weights(setting)}",
    )


def no_timm_weights(name: str, cache: Path, setting: str) -> BadInput:
    """An error about weights of timm that are not in its cache and cannot be downloaded."""
    return BadInput(
        f"timm's pretrained weights of {name}",
        f"none in {cache}, and none that can be downloaded",
        "weights in that cache, or an internet connection",
        f"Copy that folder from a computer that has used {name}, or {other_weights(setting)}",
    )


def other_weights(setting: str) -> str:
    """What else can be done if pretrained weights are not available."""
    return (
        f"give a file with --{setting} FILE, or train from scratch with --{setting} none (this needs hundreds of pictures of each class "
        "and more epochs, and its maps are worse)."
    )
