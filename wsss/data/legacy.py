"""Label and CAM files that other projects pickled into `.npy` files, read without running anything that stands in them.

A pickle is a program for a stack machine. The machine here knows the few instructions that build dictionaries, lists,
tuples, numbers and texts, and of all functions only those that rebuild NumPy arrays and torch tensors, which
it replaces by its own: it imports nothing, calls nothing of the file's choice and hands no byte to `pickle` or `torch.load`.
"""

import dataclasses
import io
import math
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int

from wsss.errors import BadInput

_EXPECTED = "a .npy file with a dictionary of numbers, texts, NumPy arrays and torch tensors"
_DO = "Take the file from its source again; if it needs other types, write its arrays with np.savez instead."


def read_legacy(path: Path) -> Any:
    """The content of a `.npy` file: an array, or what was pickled into it, with tensors as NumPy arrays. Arrays are read-only.

    Raises:
        BadInput: the file is missing, broken, or asks for anything but plain data; the forbidden function is named.
    """
    try:
        stream = io.BytesIO(Path(path).read_bytes())
    except OSError as error:
        raise BadInput(path, f"no readable file ({error.strerror})", _EXPECTED, "Check the path.") from error
    try:
        return _npy(stream)
    except _Forbidden as error:
        raise BadInput(path, str(error), f"{_EXPECTED} alone", "Do not open it with anything else either.") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, SyntaxError, EOFError) as error:
        raise BadInput(path, f"a broken file ({type(error).__name__}: {error})", _EXPECTED, _DO) from error


def read_legacy_labels(path: Path) -> dict[str, Bool[np.ndarray, " c"]] | Bool[np.ndarray, "n c"]:
    """Image-level labels of `cls_labels.npy` (PSA, IRNet, CLIMS, VWL: by name) or `train_labels.npy` (CLIMS on COCO: a matrix).

    Positive values are labels. Integer names are given as texts: 2007000032 is `"2007000032"`.

    Raises:
        BadInput: as `read_legacy`, or the content is no such thing.
    """
    content = read_legacy(path)
    expected = "a dictionary from names to equally long vectors, or a matrix with a row a picture"
    if isinstance(content, np.ndarray) and content.ndim == 2 and content.dtype.kind in "biuf":
        return content > 0
    if not isinstance(content, dict) or not content:
        raise BadInput(path, _kind(content), expected, _DO)
    vectors: dict[str, Bool[np.ndarray, " c"]] = {}
    for name, vector in content.items():
        if not (isinstance(vector, np.ndarray) and vector.ndim == 1 and vector.dtype.kind in "biuf"):
            raise BadInput(path, f"{_kind(vector)} under {name!r}", expected, _DO)
        vectors[str(name)] = vector > 0
    lengths = {len(vector) for vector in vectors.values()}
    if len(lengths) > 1:
        raise BadInput(path, f"vectors of {min(lengths)} to {max(lengths)} entries", expected, _DO)
    return vectors


def read_legacy_cams(
    path: Path,
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k h w"], Float[np.ndarray, "k hs ws"] | None]:
    """Activation maps of one picture: 0-based classes (int16, ascending), maps and strided maps (float32).

    Understood are IRNet's dictionary (`keys`, `high_res`, `cam`; also of CLIMS, QA-CLIMS and VWL), CLIP-ES's (`keys`,
    `attn_highres` or `highres`), and the dictionary from classes to maps of PSA, SEAM and ICAM.

    Raises:
        BadInput: as `read_legacy`, or the content is no such thing.
    """
    content = read_legacy(path)
    expected = "a dictionary with `keys` and `high_res` or `attn_highres`, or one from classes to maps"
    if not isinstance(content, dict):
        raise BadInput(path, _kind(content), expected, _DO)
    if "keys" in content:
        name = next((name for name in ("high_res", "attn_highres", "highres") if name in content), "high_res")
        arrays = [content.get("keys"), content.get(name), *([content["cam"]] if "cam" in content else [])]
    else:
        shapes = {value.shape if isinstance(value, np.ndarray) else None for value in content.values()}
        if len(shapes) > 1 or None in shapes or not all(type(key) is int for key in content):
            raise BadInput(path, f"{_kind(content)} of different shapes", expected, _DO)
        arrays = [
            np.array(list(content), np.int64),
            np.stack(list(content.values())) if content else np.zeros((0, 0, 0)),
        ]
    for array, kinds, ndim in zip(arrays, ("iu", "f", "f"), (1, 3, 3), strict=False):
        if not (isinstance(array, np.ndarray) and array.dtype.kind in kinds and array.ndim == ndim):
            raise BadInput(path, _kind(array), expected, _DO)
    classes, *maps = arrays
    if any(len(array) != len(classes) for array in maps):
        raise BadInput(path, f"{_kind(maps[0])} beside {len(classes)} classes", expected, _DO)
    if classes.size and not 0 <= classes.min() <= classes.max() < 255:
        raise BadInput(path, f"classes {classes.min()}..{classes.max()}", "classes from 0 on", _DO)
    order = np.argsort(classes, kind="stable")
    full, strided = ([array[order].astype(np.float32) for array in maps] + [None])[:2]
    return classes[order].astype(np.int16), full, strided


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    return f"a {type(value).__name__}" + (f" of {len(value)} entries" if isinstance(value, dict | list | tuple) else "")


class _Forbidden(ValueError):
    """The file asks for something that plain data does not need."""


@dataclasses.dataclass(frozen=True)
class _Global:
    """The name of a function or class, as it stands in a pickle."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass
class _Unfinished:
    """An array or element type that waits for its state, and the places in the memo that hold it."""

    finish: Callable[[Any], Any]
    places: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    numel: int


# Instructions that push their argument as it is
_PLAIN = frozenset(
    (
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "SHORT_BINSTRING", "BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
        "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    )
)  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


def _run(stream: io.BytesIO, functions: bool = True) -> Any:
    """Run one pickle and leave the stream behind it; `functions` says whether it may rebuild arrays."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    # A whole file hands each of its bytes to a function once or twice; one that hands the same ones over and over fills the memory
    allowance = 4 * stream.getbuffer().nbytes

    def to_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    def spend(arguments: tuple[Any, ...]) -> None:
        nonlocal allowance
        allowance -= sum(len(argument) for argument in arguments if isinstance(argument, str | bytes))
        if allowance < 0:
            raise _Forbidden("a pickle that copies its content over and over")

    def pop(count: int) -> list[Any]:
        if len(stack) < count:
            raise ValueError("a pickle that takes more than it has put down")
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    def put(place: int) -> None:
        memo[place] = stack[-1]
        if isinstance(stack[-1], _Unfinished):
            stack[-1].places.append(place)

    for opcode, operand, position in pickletools.genops(stream):
        name, argument = opcode.name, cast(Any, operand)
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("PROTO", "FRAME"):
            continue
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            put(argument)
        elif name == "MEMOIZE":
            put(len(memo))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(to_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(pop(int(name[-1]))))
        elif name == "LIST":
            stack.append(to_mark())
        elif name in ("APPEND", "APPENDS"):
            items = to_mark() if name == "APPENDS" else pop(1)
            _check(stack[-1], list).extend(items)
        elif name == "DICT":
            stack.append(_filled({}, to_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            items = to_mark() if name == "SETITEMS" else pop(2)
            _filled(_check(stack[-1], dict), items)
        elif name == "GLOBAL":
            stack.append(_allowed(*argument.split(" ", 1), functions=functions))
        elif name == "STACK_GLOBAL":
            module, attribute = pop(2)
            stack.append(_allowed(_check(module, str), _check(attribute, str), functions=functions))
        elif name == "REDUCE":
            function, arguments = pop(2)
            spend(_check(arguments, tuple))
            stack.append(_FUNCTIONS[str(_check(function, _Global))](*arguments))
        elif name == "BUILD":
            unfinished, state = pop(2)
            spend(_check(state, tuple))
            stack.append(_check(unfinished, _Unfinished).finish(state))
            for place in unfinished.places:
                memo[place] = stack[-1]
        elif name == "BINPERSID":
            stack.append(_storage_named(*_check(pop(1)[0], tuple)))
        elif name == "STOP":
            return pop(1)[0]
        else:
            raise _Forbidden(f"the pickle instruction {name} at byte {position}, which plain data does not need")
    raise ValueError("a pickle without an end")


def _check(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _filled(dictionary: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not (type(key) is str or (type(key) is int and abs(key) < 2**63)):
            raise ValueError(f"a key of type {type(key).__name__}")
        dictionary[key] = value
    return dictionary


def _allowed(module: str, name: str, *, functions: bool) -> _Global | str:
    asked = _Global(re.sub(r"^numpy\.core\b", "numpy._core", module), name)  # NumPy 2 renamed it
    if str(asked) in _ELEMENTS:
        return str(asked)
    if str(asked) not in _STORAGES and not (functions and str(asked) in (*_FUNCTIONS, "numpy.ndarray")):
        raise _Forbidden(f"the forbidden function or class {module}.{name}")
    return asked


def _bytes(value: Any) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else _check(value, bytes)  # Python 2 wrote texts


def _sizes(value: Any) -> tuple[int, ...]:
    if any(type(size) is not int or size < 0 for size in _check(value, tuple)):
        raise ValueError("a shape that is no tuple of sizes")
    return value


def _dtype(code: str, align: Any = False, copy: Any = False) -> _Unfinished:
    if not re.fullmatch(r"[|<>=]?([biuf][1248]|[SU]\d{1,6}|O8?)", _check(code, str)):
        raise ValueError(f"elements of type {code!r:.80}")

    def finish(state: tuple[Any, ...]) -> np.dtype:
        order = _check(state[1], str)
        if order not in ("|", "<", ">", "="):
            raise ValueError(f"byte order {order!r:.80}")
        return np.dtype(code).newbyteorder(order)

    return _Unfinished(finish)


def _filled_array(data: Any, dtype: Any, shape: Any, fortran: Any = False) -> Any:
    if not isinstance(dtype, np.dtype):
        raise ValueError("an array without a type of elements")
    if dtype.hasobject:
        if _sizes(shape) != () or len(_check(data, list)) != 1:
            raise ValueError("an array of several objects")
        return data[0]
    values = np.frombuffer(_bytes(data), dtype)
    if values.size != math.prod(_sizes(shape)):
        raise ValueError(f"{values.size} numbers for a shape of {shape}")
    return values.reshape(shape, order="F" if fortran is True else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Unfinished:
    def finish(state: tuple[Any, ...]) -> Any:
        _, shape, dtype, fortran, data = state
        return _filled_array(data, dtype, shape, fortran)

    return _Unfinished(finish)


def _scalar(dtype: Any, data: Any) -> Any:
    return _filled_array(data, dtype, (1,))[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    if _check(encoding, str) not in ("latin1", "latin-1"):
        raise _Forbidden(f"the forbidden function _codecs.encode with the encoding {encoding!r:.80}")
    return _bytes(text)


def _storage_named(kind: Any, storage: Any, key: Any, place: Any, numel: Any, view: Any = None) -> _Storage:
    if _check(kind, str) != "storage" or view is not None:
        raise ValueError("a torch storage that is a view of another")
    return _Storage(_STORAGES[str(_check(storage, _Global))], _check(key, str), _sizes((numel,))[0])


def _storage_from_bytes(blob: Any) -> np.ndarray:
    """The numbers of a storage in the form that torch wrote before its zip files: five pickles, a length, the numbers."""
    stream = io.BytesIO(_bytes(blob))
    magic, protocol, system, storage, keys = (_run(stream, functions=False) for _ in range(5))
    if magic != 0x1950A86A20F9469CFC6C or protocol != 1001 or not _check(system, dict).get("little_endian"):
        raise ValueError("no torch storage")
    if keys != [_check(storage, _Storage).key]:
        raise ValueError("a torch storage without its numbers")
    count = int.from_bytes(stream.read(8), "little")
    data = stream.read()
    if count != storage.numel or len(data) != count * storage.dtype.itemsize:
        raise ValueError(f"a torch storage of {count} numbers in {len(data)} bytes")
    return np.frombuffer(data, storage.dtype)


def _no_bytes() -> bytes:
    return b""


def _empty() -> dict[str, Any]:
    return {}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(_sizes(stride)) != len(_sizes(size)):
        raise ValueError("a tensor without numbers")
    (offset,) = _sizes((offset,))
    if 0 in size:
        return np.zeros(size, storage.dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(storage):
        raise ValueError("a tensor that reaches behind its numbers")
    if math.prod(size) > len(storage):
        raise ValueError("a tensor with more entries than numbers")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _npy(stream: io.BytesIO) -> Any:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version}")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = header(stream)
    except Exception as error:  # it evaluates a Python literal, and lets the tokenizer's errors out
        raise ValueError(f"no header: {error!r:.120}") from error
    if dtype.hasobject:
        if dtype != np.dtype(object) or shape != ():
            raise ValueError(f"an array of {shape} objects")
        return _run(stream)
    if dtype.kind not in "biufSU":
        raise ValueError(f"elements of type {dtype}")
    return _filled_array(stream.read(), dtype, shape, fortran)


_STORAGES = {
    f"torch.{name}Storage": np.dtype(code)
    for name, code in {
        "Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?"
    }.items()
}  # fmt: skip
# types of elements, which stand for themselves: QA-CLIMS' text features say what they were made in
_ELEMENTS = ("torch.float16", "torch.float32", "torch.float64", "torch.bfloat16")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "collections.OrderedDict": _empty,
    "torch.storage._load_from_bytes": _storage_from_bytes,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
}
