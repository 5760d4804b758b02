"""Read labels and maps that other projects pickled into `.npy` files, without running any code in them.

Only functions that rebuild NumPy arrays and torch tensors are allowed in a pickle, and they are replaced by functions of this module
(`wsss.foreign.pickled` interprets the rest).
"""

import dataclasses
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wsss.arrays import Bool, Float, Int
from wsss.data.lists import without_suffix
from wsss.errors import BadInput, reading
from wsss.foreign.npy_header import read_header
from wsss.foreign.pickled import INSTRUCTIONS, Forbidden, Unfinished, called, exactly, run

_EXPECTED = "a .npy file with a dictionary of numbers, strings, NumPy arrays and torch tensors"
_DO = "Download the file again; if it contains other types, write its arrays with np.savez instead."


def read_legacy(path: Path) -> object:
    """The content of a `.npy` file: an array or a pickled object, with tensors as NumPy arrays. Arrays are read-only.

    Raises:
        BadInput: the file is missing or broken, or contains more than plain data; the forbidden function is named.
    """
    with reading(path, _EXPECTED, _DO):
        stream = io.BytesIO(path.read_bytes())
        try:
            return _npy(stream)
        except Forbidden as error:
            raise BadInput(
                path, str(error), f"only {_EXPECTED}", "Do not open it with another program either."
            ) from error


def read_legacy_labels(path: Path) -> dict[str, Bool[np.ndarray, " c"]] | Bool[np.ndarray, "n c"]:
    """Image-level labels of `cls_labels.npy` (PSA, IRNet, CLIMS, VWL: by name) or `train_labels.npy` (CLIMS on COCO: a matrix).

    Integer names are returned as strings: 2007000032 is `"2007000032"`; the suffix of a picture is removed.

    Raises:
        BadInput: as `read_legacy`, or the content is something else, for example values other than 0 and 1.
    """
    content = read_legacy(path)
    expected = (
        "a dictionary from names to equally long vectors of 0 and 1, or a matrix of these with one row per picture"
    )
    if isinstance(content, np.ndarray) and content.ndim == 2 and content.dtype.kind in "biuf":
        return _binary(path, content, "", expected)
    if not isinstance(content, dict) or not content:
        raise BadInput(path, _kind(content), expected, _DO)
    vectors: dict[str, Bool[np.ndarray, " c"]] = {}
    for name, vector in content.items():
        if not (isinstance(vector, np.ndarray) and vector.ndim == 1 and vector.dtype.kind in "biuf"):
            raise BadInput(path, f"{_kind(vector)} under {name!r}", expected, _DO)
        key = without_suffix(str(name))
        if key in vectors:
            raise BadInput(path, f"{name!r} twice, with different endings", expected, _DO)
        vectors[key] = _binary(path, vector, f" under {name!r}", expected)
    lengths = {len(vector) for vector in vectors.values()}
    if len(lengths) > 1:
        raise BadInput(path, f"vectors of {min(lengths)} to {max(lengths)} entries", expected, _DO)
    return vectors


def _binary(path: Path, values: np.ndarray, place: str, expected: str) -> np.ndarray:
    odd = values[(values != 0) & (values != 1)]
    if odd.size:
        do = "Decide which classes are tags (for example scores above a threshold), and write 1 for these and 0 for the others."
        raise BadInput(path, f"the value {odd.flat[0]}{place}", expected, do)
    return values == 1


def read_legacy_cams(
    path: Path,
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k h w"], Float[np.ndarray, "k hs ws"] | None]:
    """Activation maps of one picture: 0-based classes (int16, ascending), maps, and maps at a quarter of the size (float32).

    Supported are the dictionary of IRNet (`keys`, `high_res`, `cam`; also used by CLIMS, QA-CLIMS and VWL), that of CLIP-ES (`keys`,
    `attn_highres` or `highres`), and the dictionary from classes to maps of PSA, SEAM and ICAM.

    Raises:
        BadInput: as `read_legacy`, or the content is something else.
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
        raise BadInput(path, f"{_kind(maps[0])} for {len(classes)} classes", expected, _DO)
    if classes.size and not 0 <= classes.min() <= classes.max() < 255:
        raise BadInput(path, f"classes {classes.min()}..{classes.max()}", "classes in 0..254", _DO)
    order = np.argsort(classes, kind="stable")
    full, maps_stride4 = ([array[order].astype(np.float32) for array in maps] + [None])[:2]
    return classes[order].astype(np.int16), full, maps_stride4


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    return f"a {type(value).__name__}" + (f" of {len(value)} entries" if isinstance(value, dict | list | tuple) else "")


@dataclasses.dataclass(frozen=True)
class _Global:
    """The name of a function or class in a pickle."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    numel: int


class _Arrays:
    """The content allowed in a pickle of arrays.

    Args:
        n_bytes: size of the file. A valid pickle passes each byte to a function once or twice; one that passes the same bytes over and
            over would fill the memory.
        functions: whether arrays may be rebuilt.
    """

    instructions = INSTRUCTIONS - {"NEWOBJ"}
    keys: tuple[type, ...] = (str, int)

    def __init__(self, n_bytes: int, functions: bool = True) -> None:
        self.allowance, self.functions = 4 * n_bytes, functions

    def meaning(self, module: str, name: str) -> _Global | str:
        found = _Global(re.sub(r"^numpy\.core\b", "numpy._core", module), name)  # NumPy 2 renamed it
        if str(found) in _ELEMENTS:
            return str(found)
        if str(found) not in _STORAGES and not (self.functions and str(found) in (*_FUNCTIONS, "numpy.ndarray")):
            raise Forbidden(f"the forbidden function or class {module}.{name}")
        return found

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        self._spend(arguments)
        return called(_FUNCTIONS[str(exactly(_Global, function))], arguments)

    def finish(self, unfinished: Unfinished, state: Any) -> Any:
        self._spend(exactly(tuple, state))
        return unfinished.finish(state)

    def storage(self, reference: Any) -> _Storage:
        return called(_storage_named, exactly(tuple, reference))

    def _spend(self, arguments: tuple[Any, ...]) -> None:
        self.allowance -= sum(len(argument) for argument in arguments if isinstance(argument, str | bytes))
        if self.allowance < 0:
            raise Forbidden("a pickle that copies its content over and over")


def _bytes(value: Any) -> bytes:
    return value.encode("latin-1") if isinstance(value, str) else exactly(bytes, value)  # Python 2 wrote strings


def _sizes(value: Any) -> tuple[int, ...]:
    if any(type(size) is not int or size < 0 for size in exactly(tuple, value)):
        raise ValueError("a shape that is not a tuple of sizes")
    return value


def _dtype(code: str, align: Any = False, copy: Any = False) -> Unfinished:
    if not re.fullmatch(r"[|<>=]?([biuf][1248]|[SU]\d{1,6}|O8?)", exactly(str, code)):
        raise ValueError(f"elements of type {code!r:.80}")

    def finish(state: tuple[Any, ...]) -> np.dtype:
        order = exactly(str, state[1])
        if order not in ("|", "<", ">", "="):
            raise ValueError(f"byte order {order!r:.80}")
        return np.dtype(code).newbyteorder(order)

    return Unfinished(finish)


def _filled_array(data: Any, dtype: Any, shape: Any, fortran: Any = False) -> Any:
    if not isinstance(dtype, np.dtype):
        raise ValueError("an array without a data type")
    if dtype.hasobject:
        if _sizes(shape) != () or len(exactly(list, data)) != 1:
            raise ValueError("an array of several objects")
        return data[0]
    values = np.frombuffer(_bytes(data), dtype)
    if values.size != math.prod(_sizes(shape)):
        raise ValueError(f"{values.size} numbers for a shape of {shape}")
    return values.reshape(shape, order="F" if fortran is True else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> Unfinished:
    def finish(state: tuple[Any, ...]) -> Any:
        _, shape, dtype, fortran, data = state
        return _filled_array(data, dtype, shape, fortran)

    return Unfinished(finish)


def _scalar(dtype: Any, data: Any) -> Any:
    return _filled_array(data, dtype, (1,))[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    if exactly(str, encoding) not in ("latin1", "latin-1"):
        raise Forbidden(f"the forbidden function _codecs.encode with the encoding {encoding!r:.80}")
    return _bytes(text)


def _storage_named(kind: Any, storage: Any, key: Any, place: Any, numel: Any, view: Any = None) -> _Storage:
    if exactly(str, kind) != "storage" or view is not None:
        raise ValueError("a torch storage that is a view of another")
    return _Storage(_STORAGES[str(exactly(_Global, storage))], exactly(str, key), _sizes((numel,))[0])


def _storage_from_bytes(blob: Any) -> np.ndarray:
    """The numbers of a storage in torch's format before zip files: five pickles, a length, the numbers."""
    stream = io.BytesIO(_bytes(blob))
    magic, protocol, system, storage, keys = (run(stream, _Arrays(len(blob), functions=False)) for _ in range(5))
    if magic != 0x1950A86A20F9469CFC6C or protocol != 1001 or not exactly(dict, system).get("little_endian"):
        raise ValueError("no torch storage")
    if keys != [exactly(_Storage, storage).key]:
        raise ValueError("a torch storage without its numbers")
    count = int.from_bytes(stream.read(8), "little")
    data = stream.read()
    if count != storage.numel or len(data) != count * storage.dtype.itemsize:
        raise ValueError(f"a torch storage of {count} numbers in {len(data)} bytes")
    return np.frombuffer(data, storage.dtype)


def _no_bytes() -> bytes:
    return b""


def _empty() -> dict[str, object]:
    return {}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(_sizes(stride)) != len(_sizes(size)):
        raise ValueError("a tensor without numbers")
    (offset,) = _sizes((offset,))
    if 0 in size:
        return np.zeros(size, storage.dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(storage):
        raise ValueError("a tensor that reaches beyond its numbers")
    if math.prod(size) > len(storage):
        raise ValueError("a tensor with more entries than numbers")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _npy(stream: io.BytesIO) -> object:
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        if dtype != np.dtype(object) or shape != ():
            raise ValueError(f"an array of {shape} objects")
        return run(stream, _Arrays(stream.getbuffer().nbytes))
    if dtype.kind not in "biufSU":
        raise ValueError(f"elements of type {dtype}")
    return _filled_array(stream.read(), dtype, shape, fortran)


_STORAGES = {
    f"torch.{name}Storage": np.dtype(code)
    for name, code in {
        "Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?"
    }.items()
}  # fmt: skip
# data types, read as their names: the text features of QA-CLIMS record the type they were computed with
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
