"""Read the tensors of a TorchScript archive, such as OpenAI's `ViT-B-16.pt`, without running any code in it.

An archive is a zip file of code, a pickle of modules, and one file per storage. The code is not read. In the pickle, only the few functions
that `torch.jit.save` writes are allowed, and they are replaced by functions of this module (`wsss.foreign.pickled` interprets the rest).
"""

import io
import math
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss.errors import BadInput, is_regular, reading
from wsss.foreign.pickled import Forbidden, Unfinished, called, exactly, run

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# names are repeated if modules are shared, but not without limit
_NAME_LETTERS_PER_BYTE = 100


class _Module(Unfinished):
    """An instance of any class defined in the archive."""

    def __init__(self) -> None:
        super().__init__(self._set_content)
        self.content: Any = None

    def _set_content(self, content: Any) -> "_Module":
        self.content = content
        return self


def _rebuilt(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    numbers = (offset, *exactly(tuple, size), *exactly(tuple, stride))
    if not all(type(number) is int and number >= 0 for number in numbers) or len(size) != len(stride) or len(size) > 64:
        raise ValueError(f"a tensor of the shape {size} with the strides {stride} at {offset}")
    if not isinstance(storage, Tensor):
        raise ValueError("a tensor without numbers")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # with a stride of 0, a single number would become a huge tensor
    if numel > len(storage) or (numel and last >= len(storage)):
        raise ValueError(f"a tensor of {numel} numbers in a storage of {len(storage)}")
    return storage.as_strided(size, stride, offset)


def _as_it_is(value: Any, *_: Any) -> Any:
    return value


def _no_hooks() -> None:
    return None


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch.jit._pickle", "restore_type_tag"): _as_it_is,
    ("collections", "OrderedDict"): _no_hooks,
    **{("torch.jit._pickle", f"build_{kind}list"): _as_it_is for kind in ("int", "double", "bool", "tensor")},
}


class _Archive:
    """The files of an archive, and the content allowed in its pickle: what `torch.jit.save` writes."""

    instructions = frozenset(
        (
            "PROTO", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE",
            "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
            "MARK", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
            "APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "STOP",
        )
    )  # fmt: skip
    keys: tuple[type, ...] = (str, int, float, bool)

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        self.folder = archive.namelist()[0].partition("/")[0]
        self.storages: dict[str, bytearray] = {}
        if sum(entry.compress_size for entry in archive.infolist()) > size:
            raise ValueError("overlapping entries")

    def read(self, name: str) -> bytes:
        entry = self.archive.getinfo(f"{self.folder}/{name}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"{name} is compressed")
        return self.archive.read(entry)

    def meaning(self, module: str, name: str) -> Any:
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        raise Forbidden(f"{module}.{name}")

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        return _Module() if function is _Module else called(exactly(types.FunctionType, function), arguments)

    def finish(self, unfinished: Unfinished, state: Any) -> Any:
        return unfinished.finish(state)

    def storage(self, reference: Any) -> Tensor:
        kind, dtype, name, _, count = exactly(tuple, reference)
        if kind != "storage" or not isinstance(name, str) or type(count) is not int:
            raise ValueError("a reference to something other than a storage")
        if name not in self.storages:
            self.storages[name] = bytearray(self.read(f"data/{name}"))
        content = self.storages[name]
        if len(content) != count * exactly(torch.dtype, dtype).itemsize:
            raise ValueError(f"storage {name} of {len(content)} bytes for {count} numbers")
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, judged by the names of its entries; False if these cannot be read."""
    if not is_regular(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())
    except Exception:  # not a zip file; damaged ones raise almost any error, which the reader of the file reports
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The state dict of a TorchScript archive, on the CPU; shared tensors share their memory.

    Raises:
        BadInput: the archive is damaged, or would run code; the function is named.
    """
    expected = "a TorchScript archive of modules and tensors, as written by torch.jit.save"
    with reading(path, expected, "Download it again."), zipfile.ZipFile(path) as file:
        archive = _Archive(file, path.stat().st_size)
        program = archive.read("data.pkl")
        try:
            return _state(run(io.BytesIO(program), archive), len(program) * _NAME_LETTERS_PER_BYTE)
        except Forbidden as error:
            found = f"an archive that would run code (it asks for {error})"
            raise BadInput(path, found, expected, "Do not open it with another program either.") from error


def _state(root: Any, most_letters: int) -> dict[str, Tensor]:
    """All tensors of nested modules by their full names."""
    state: dict[str, Tensor] = {}
    letters = 0

    def visit(module: _Module, prefix: str) -> None:
        nonlocal letters
        for name, value in exactly(dict, module.content).items():
            if isinstance(value, Tensor | _Module):
                full = prefix + exactly(str, name)
                letters += 1 + len(full)
                if letters > most_letters:
                    raise ValueError("modules that contain the same modules over and over")
                if isinstance(value, Tensor):
                    state[full] = value
                else:
                    visit(value, f"{full}.")

    visit(exactly(_Module, root), "")
    return state
