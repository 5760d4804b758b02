"""Downloads of published weights: from the cache alone where the internet cannot be reached, so that this is known at once."""

import contextlib
import functools
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants

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
