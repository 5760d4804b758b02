"""Read MXNet's `.params` files without MXNet, in particular the ImageNet weights of ResNet-38.

A file is a list of arrays and the list of their names, all little-endian. Arrays have one of three layouts, depending on the
version of MXNet. Nothing in a file is trusted: each length is compared with the rest of the file before
anything is read or allocated.
"""

import math
import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from wsss.errors import BadInput, Unreadable, reading

_LIST = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
# MXNet's own limit
_MOST_DIMENSIONS = 32
# far beyond any network; an empty array needs a hundred times its bytes in the file
_MOST_ARRAYS, _LONGEST_NAME = 100_000, 1000
_EXPECTED = "an MXNet .params file of dense arrays"


class _Source:
    """A file read sequentially, with the number of bytes left."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.left = stream, os.fstat(stream.fileno()).st_size

    def claim(self, size: int, what: str) -> int:
        """Reserve `size` bytes of the rest of the file, and return `size`."""
        if size > self.left:
            raise Unreadable(f"{what} with more bytes than the {self.left} left in the file")
        self.left -= size
        return size

    def numbers(self, code: str, count: int, what: str) -> tuple[int, ...]:
        size = self.claim(struct.calcsize(code) * count, what)
        return struct.unpack(f"<{count}{code}", self._read(size))

    def number(self, code: str, what: str) -> int:
        return self.numbers(code, 1, what)[0]

    def text(self, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        if length > _LONGEST_NAME:
            raise Unreadable(f"{what} of {length} bytes")
        return self._read(self.claim(length, what)).decode()

    def array(self, dtype: np.dtype, shape: tuple[int, ...], what: str) -> Tensor:
        count = math.prod(shape)
        self.claim(count * dtype.itemsize, f"{what} of the shape {_few(shape)}")
        values = np.fromfile(self.stream, dtype, count)
        if len(values) != count:
            raise Unreadable("a file that was truncated while it was read")
        return torch.from_numpy(values.reshape(shape))

    def _read(self, size: int) -> bytes:
        content = self.stream.read(size)
        if len(content) != size:
            raise Unreadable("a file that was truncated while it was read")
        return content


def read_params(path: Path) -> dict[str, Tensor]:
    """The arrays of a `.params` file by name (`arg:conv1a_weight`), on the CPU, with the data types of the file.

    An array without dimensions, which MXNet writes for None, is returned as an empty tensor.

    Raises:
        BadInput: the file is missing, damaged, truncated, has another format, or has sparse or unnamed arrays.
    """
    with (
        reading(path, _EXPECTED, "If it should be one, it is damaged or truncated: download it again."),
        path.open("rb") as stream,
    ):
        return _arrays(_Source(stream))


def _few(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:6])) + ("..." if len(shape) > 6 else "")


def _arrays(source: _Source) -> dict[str, Tensor]:
    magic = source.number("Q", "the magic number")
    if magic != _LIST:
        raise Unreadable(f"a file that begins with {struct.pack('<Q', magic)!r}")
    source.number("Q", "a reserved number")  # not used by MXNet
    count = source.number("Q", "the number of arrays")
    if not 0 < count <= _MOST_ARRAYS:
        raise Unreadable(f"{count or 'no'} arrays")
    arrays = [_array(source, f"array {i}") for i in range(count)]
    names = source.number("Q", "the number of names")
    if names != count:
        raise Unreadable(f"{names} names for {count} arrays")
    named: dict[str, Tensor] = {}
    for i, array in enumerate(arrays):
        name = source.text(f"name {i}")
        if name in named:
            raise Unreadable(f"two arrays named {name[:100]!r}")
        named[name] = array
    if source.left:
        raise Unreadable(f"{source.left} bytes after the last name")
    return named


def _array(source: _Source, what: str) -> Tensor:
    first = source.number("I", what)
    if first == _V3:
        raise Unreadable(f"{what} in the layout of MXNet's NumPy arrays (V3)")
    if first == _V2 and (storage := source.number("i", f"the storage of {what}")) != 0:
        raise Unreadable(f"{what} with storage type {storage}, which is not dense")
    modern = first in (_V1, _V2)
    dimensions = source.number("I", f"the dimensions of {what}") if modern else first
    if dimensions > _MOST_DIMENSIONS:
        raise Unreadable(f"{what} of {dimensions} dimensions")
    if dimensions == 0:
        return torch.empty(0)
    shape = source.numbers("q" if modern else "I", dimensions, f"the shape of {what}")
    if min(shape) < 1:
        raise Unreadable(f"{what} of the shape {_few(shape)}")
    source.numbers("i", 2, f"the device of {what}")  # not used here
    kind = source.number("i", f"the type of {what}")
    if not 0 <= kind < len(_DTYPES):
        raise Unreadable(f"{what} of element type {kind}")
    return source.array(np.dtype(_DTYPES[kind]), shape, what)


_LAYER = re.compile(r"(?:arg|aux):(res|bn)(\d)(?:a|b(\d+))_branch(1|2a|2b1|2b2)_(\w+)")
_TOP = re.compile(r"(?:arg|aux):(conv1a|bn7)_(\w+)")
_KINDS = {
    "weight": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}


def resnet38_params(path: Path) -> dict[str, Tensor]:
    """ResNet-38's ImageNet weights as published by ademxapp, with the names of `wsss.networks.resnet38`.

    The file is `ilsvrc-cls_rna-a1_cls1000_ep-0001.params` (md5 ff21f45d6bf03284100dcbec571edfad) with 193 arrays; the
    two of the classifier `linear1000` are left out.

    Raises:
        BadInput: see `read_params`; or the names belong to another network.
    """
    state: dict[str, Tensor] = {}
    for name, array in read_params(path).items():
        if name.removeprefix("arg:") in ("linear1000_weight", "linear1000_bias"):
            continue
        key = _key(name)
        if key is None or key in state or not array.is_floating_point():
            raise BadInput(
                path,
                f"an array {name[:100]!r} of {array.dtype}{' again, under another name' if key in state else ''}",
                "the float arrays of ResNet-38 (model A1 of ademxapp), each once",
                "Give ilsvrc-cls_rna-a1_cls1000_ep-0001.params; .params files of other networks are not supported.",
            )
        state[key] = array
    return state


def _key(name: str) -> str | None:
    if match := _LAYER.fullmatch(name):
        layer, stage, block, branch, kind = match.groups()
        block_name = f"b{stage}_{block}" if block else f"b{stage}"
        prefix = f"{block_name}.{'conv' if layer == 'res' else 'bn'}_branch{branch}"
    elif match := _TOP.fullmatch(name):
        prefix, kind = match.groups()
    else:
        return None
    return f"{prefix}.{_KINDS[kind]}" if kind in _KINDS else None
