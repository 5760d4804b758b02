"""Our own weights files: `weights.safetensors` with metadata that describes the network. Code in a file is never run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from wsss.data.samples import PictureReading
from wsss.errors import TRAINED, BadInput, existing, reading
from wsss.storage import whole_file

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".params")

# what a training stage writes
WEIGHTS = "weights.safetensors"
# what the stage of a segmenter writes that is not trained, but looks regions up
BANK = "bank.safetensors"

_METADATA_KEY = "wsss"
_SAFETENSORS = "a complete file in safetensors format"


def weights_in(where: Path) -> Path:
    """The weights file: `where` itself, or the weights or the bank in the folder of a stage."""
    if not where.is_dir():
        return where
    return where / BANK if (where / BANK).exists() and not (where / WEIGHTS).exists() else where / WEIGHTS


def find_trained(path: Path, *folders: str) -> Path:
    """The folder of a training stage, or a file: `path` itself, or, if it is a run folder, the first of these folders in it.

    Args:
        path: a run folder, the folder of a training stage, or a weights file.
        folders: names of the folders of a run that may contain the weights, in order of preference.

    Raises:
        BadInput: the path does not exist, or there are no weights in the folder.
    """
    if not existing(path, TRAINED).is_dir():
        return path
    found = next((place for place in (path, *(path / name for name in folders)) if weights_in(place).exists()), None)
    if found is None:
        do = "Check the path, or wait until the training has finished."
        raise BadInput(path, f"no {WEIGHTS}, and none in {' or '.join(folders)}", TRAINED, do)
    return found


def read_weights(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors and the metadata of a `.safetensors` file; metadata are empty if another program wrote it.

    Raises:
        BadInput: the file is missing, truncated or has another format.
    """
    metadata = read_metadata(path)
    with reading(path, _SAFETENSORS), safetensors.safe_open(path, framework="pt", device="cpu") as file:
        return finite({name: file.get_tensor(name) for name in file.keys()}, path), metadata  # noqa: SIM118 - no mapping


def read_metadata(path: Path) -> dict[str, Any]:
    """Only the metadata of a `.safetensors` file; errors as in `read_weights`."""
    head_of(path)
    with reading(path, _SAFETENSORS):
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY, "{}")
        metadata = json.loads(text)
    if not isinstance(metadata, dict):
        raise BadInput(path, f"the metadata {metadata!r:.60}", "settings by name", "Download or write the file again.")
    names = metadata.get("classes", ["none"])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise BadInput(path, f"the classes {names!r:.60}", "a list of names", _CHANGED)
    if len(set(names)) < len(names):
        raise BadInput(path, f"the classes {', '.join(names)!s:.60}, one of them twice", "different names", _CHANGED)
    return _Metadata(path, metadata)


_CHANGED = "The file was changed after it was written, or is of another version: restore it, or make it again."


class _Metadata(dict[str, Any]):
    """The metadata of a file, which names the file if an entry is missing."""

    def __init__(self, path: Path, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise BadInput(self._path, f"metadata without `{name}`", "weights that were trained here", _CHANGED)


def finite(state: State, where: str | Path) -> State:
    """Return the state dict after checking that all numbers are finite.

    Raises:
        BadInput: a number is infinite or NaN; the first such tensor is named.
    """
    for name, tensor in state.items():
        # the sum is not finite if any number is not; if only the sum overflows, the second check passes
        if (
            tensor.is_floating_point()
            and not tensor.sum(dtype=torch.float64).isfinite()
            and not tensor.isfinite().all()
        ):
            count = int((~tensor.isfinite()).sum())
            do = "The training diverged, or the file is damaged: use another file."
            raise BadInput(where, f"{count} numbers of {name} that are infinite or NaN", "finite weights", do)
    return state


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a `.safetensors` file; equal tensors and metadata give equal bytes.

    Args:
        path: the file.
        state: the tensors.
        metadata: anything that can be written as JSON.
    """
    # a single entry: safetensors writes several entries in an order that differs between processes
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    content = safetensors.torch.save(tensors, {_METADATA_KEY: text})
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def reading_of(where: Path) -> PictureReading | None:
    """How the training pictures of these weights were read; None for published weights, which do not record it.

    Args:
        where: the folder of a training stage, or a weights file.

    Raises:
        BadInput: the file is missing or broken.
    """
    path = weights_in(where)
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    with reading(path, "weights that record how their training pictures were read"):
        return PictureReading.of(metadata.get("reading")) if metadata else None


def head_of(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        BadInput: the file is missing, empty or a text.
    """
    with reading(path, expected_checkpoint(), missing="Check the path and its permissions."), path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise BadInput(path, "an empty file", expected_checkpoint(), "Download it again.")
    text = head.decode("utf-8", errors="ignore")
    if all(letter.isprintable() or letter in "\r\n\t" for letter in text):
        raise BadInput(
            path,
            f"a text that begins with {text[:40]!r}",
            expected_checkpoint(),
            "It may be a download page or a pointer to the file: download the file itself.",
        )
    return head


def expected_checkpoint() -> str:
    """Description of a valid weights file, for errors."""
    return f"a state dict of tensors in a file ending in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def trained_weights(where: Path, *kinds: str) -> tuple[State, dict[str, Any] | None, Path]:
    """The weights that a training stage wrote, or a published checkpoint.

    Args:
        where: the stage's folder, its `weights.safetensors`, or a published checkpoint.
        kinds: the accepted values of `kind` in the metadata of our own files, for example `cam`.

    Returns:
        The state dict, its metadata (None: the file was written by another program), and the file.

    Raises:
        BadInput: the file is missing, broken, or holds another kind of network.
    """
    from wsss.checkpoints import read_checkpoint  # which builds on this module

    path = weights_in(where)
    if path.suffix != ".safetensors":
        return read_checkpoint(path), None, path
    state, metadata = read_weights(path)
    if metadata and metadata.get("kind") not in kinds:
        raise BadInput(
            path,
            f"weights of a `{metadata.get('kind')}` network",
            f"those of a {' or '.join(f'`{kind}`' for kind in kinds)} network",
            "Give the folder of the training stage that this command needs.",
        )
    return state, metadata or None, path
