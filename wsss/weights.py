"""Our own weights: a `weights.safetensors` that says what its network is. Nothing here unpickles code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from wsss.data.samples import PictureReading
from wsss.errors import BadInput, reading
from wsss.storage import whole_file

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".params")

# what a training stage writes
WEIGHTS = "weights.safetensors"

_METADATA_KEY = "wsss"
_SAFETENSORS = "a whole file in safetensors format"


def weights_in(where: Path) -> Path:
    """The file of the weights that a path stands for: a training stage's folder, or the file itself."""
    return where / WEIGHTS if where.is_dir() else where


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
    head_of(path)
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


def reading_of(where: Path) -> PictureReading | None:
    """How the pictures were read that weights were trained on; None for weights of someone else, which do not say it.

    Args:
        where: the folder of a training stage, or a file of weights.

    Raises:
        BadInput: the file is missing or broken.
    """
    path = weights_in(where)
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    with reading(path, "weights that say how the pictures were read that they were trained on"):
        return PictureReading.of(metadata.get("reading")) if metadata else None


def head_of(path: Path) -> bytes:
    """The first bytes of a file that has any, and is no text."""
    with reading(path, expected_checkpoint(), missing="Check the path and its permissions."), path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise BadInput(path, "an empty file", expected_checkpoint(), "Fetch it again.")
    text = head.decode("utf-8", errors="ignore")
    if all(letter.isprintable() or letter in "\r\n\t" for letter in text):
        raise BadInput(
            path,
            f"a text that begins with {text[:40]!r}",
            expected_checkpoint(),
            "It may be a download page or a pointer to the file: fetch the file itself.",
        )
    return head


def expected_checkpoint() -> str:
    """What a file of weights has to be, in words."""
    return f"a state dict of tensors in a file ending in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
