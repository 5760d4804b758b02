"""The tensors of a TorchScript archive, such as OpenAI's `ViT-B-16.pt`, read without running anything that stands in it.

An archive is a zip of code, a pickle of modules and one file a storage. The code is not looked at. A pickle is a program
for a stack machine; the machine here knows the instructions that `torch.jit.save` writes and four functions, all of them
its own, and takes no more memory than the file has bytes.
"""

import math
import pickletools
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from wsss.errors import BadInput

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
# names may come again where modules are shared, but not without end
_NAME_LETTERS_PER_BYTE = 100


class _Forbidden(Exception):
    """The pickle asks for something that tensors in modules do not need."""


class _Module:
    """Stands for any class of the archive's own code."""

    content: Any = None


def _rebuilt(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0 or len(size) > 64:
        raise ValueError(f"a tensor of the shape {size} with the strides {stride} at {offset}")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # a stride of 0 makes a huge tensor of one number
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

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


def _meaning(module: str, name: str) -> Any:
    if (module, name) in _FUNCTIONS:
        return _FUNCTIONS[module, name]
    if module == "torch" and name in _STORAGES:
        return _STORAGES[name]
    if module == "__torch__" or module.startswith("__torch__."):
        return _Module
    raise _Forbidden(f"{module}.{name}")


def _run(program: bytes, storage: Callable[[Any], Tensor]) -> Any:
    """What a pickle builds; `storage` gives the numbers that it refers to."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def take(count: int | None = None) -> list[Any]:
        """The last values, or those behind the mark."""
        at = marks.pop() if count is None else len(stack) - count
        if not 0 <= at <= len(stack):
            raise ValueError("a pickle that takes more than it has put down")
        items = stack[at:]
        del stack[at:]
        return items

    for opcode, operand, _ in pickletools.genops(program):
        name, argument = opcode.name, cast(Any, operand)
        if name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"):
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "PROTO":
            continue
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(take(int(name[5:]) if name[5:] else None)))
        elif name in ("APPEND", "APPENDS"):
            items = take(1 if name == "APPEND" else None)
            _only(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = take(2 if name == "SETITEM" else None)
            for key, value in zip(items[::2], items[1::2], strict=True):
                # the hash of nested tuples can take for ever
                _only(dict, stack[-1])[_only(str | int | float, key)] = value
        elif name == "GLOBAL":
            stack.append(_meaning(*argument.split(" ", 1)))
        elif name == "REDUCE":
            function, arguments = take(2)
            stack.append(_only(types.FunctionType, function)(*_only(tuple, arguments)))
        elif name == "NEWOBJ":
            stack.append(_only(type, take(2)[0])())
        elif name == "BUILD":
            (state,) = take(1)
            _only(_Module, stack[-1]).content = state
        elif name == "BINPERSID":
            stack.append(storage(*take(1)))
        elif name == "STOP":
            return stack[-1]
        else:
            raise _Forbidden(f"the instruction {name}")
    raise ValueError("a pickle without an end")


def _only(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} in the wrong place")
    return value


class _Archive:
    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        self.folder = archive.namelist()[0].partition("/")[0]
        self.storages: dict[str, bytearray] = {}
        if sum(entry.compress_size for entry in archive.infolist()) > size:
            raise ValueError("entries that lie on top of each other")

    def read(self, name: str) -> bytes:
        entry = self.archive.getinfo(f"{self.folder}/{name}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"{name} is compressed")
        return self.archive.read(entry)

    def storage(self, key: Any) -> Tensor:
        kind, dtype, name, _, count = key
        if kind != "storage" or not isinstance(name, str):
            raise ValueError("a reference to something that is no storage")
        if name not in self.storages:
            self.storages[name] = bytearray(self.read(f"data/{name}"))
        content = self.storages[name]
        if len(content) != count * _only(torch.dtype, dtype).itemsize:
            raise ValueError(f"storage {name} of {len(content)} bytes for {count} numbers")
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, by the names of what is in it; not so where these cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())
    except Exception:  # no zip; a damaged one makes it raise almost anything, and whoever reads the file says so
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The state dict of a TorchScript archive, on the CPU; what was shared there shares its memory here.

    Raises:
        BadInput: the archive is damaged, or asks for a function that would run code; it is named.
    """
    expected = "a TorchScript archive of modules and tensors, as torch.jit.save writes it"
    try:
        with zipfile.ZipFile(path) as file:
            archive = _Archive(file, path.stat().st_size)
            program = archive.read("data.pkl")
            return _state(_run(program, archive.storage), len(program) * _NAME_LETTERS_PER_BYTE)
    except _Forbidden as error:
        raise BadInput(
            path,
            f"an archive that would run code (it asks for {error})",
            expected,
            "Do not open it with anything else.",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged zip makes the decoder raise almost anything
        raise BadInput(path, f"a damaged archive ({error!r:.200})", expected, "Fetch it again.") from error


def _state(root: Any, most_letters: int) -> dict[str, Tensor]:
    """All tensors of modules in modules under their full names."""
    state: dict[str, Tensor] = {}
    letters = 0

    def visit(module: _Module, prefix: str) -> None:
        nonlocal letters
        for name, value in _only(dict, module.content).items():
            if isinstance(value, Tensor | _Module):
                full = prefix + _only(str, name)
                letters += 1 + len(full)
                if letters > most_letters:
                    raise ValueError("modules that contain the same ones over and over")
                if isinstance(value, Tensor):
                    state[full] = value
                else:
                    visit(value, f"{full}.")

    visit(_only(_Module, root), "")
    return state
