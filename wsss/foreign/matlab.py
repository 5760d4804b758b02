"""An array in a structure of a MATLAB file, version 5 (MathWorks, "MAT-File Format"), the kind of file that SBD's masks have.

scipy reads these files too, but its reader ends the process on some damaged ones.
"""

import math
import zlib
from typing import NamedTuple

import numpy as np

from wsss.arrays import Shaped
from wsss.errors import Unreadable

_HEADER, _TAG = 128, 8
# types of elements; numbers by the code of their type
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# classes of matrices; numeric ones may be stored in a smaller type than their own
_STRUCTURE = 2
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


class _Element(NamedTuple):
    """A part of a file: the code of its type, and its bytes."""

    code: int
    content: bytes


class _Elements:
    """The elements that bytes consist of, one after the other.

    Args:
        content: the bytes.
        order: of the bytes of numbers, `<` or `>`.
    """

    def __init__(self, content: bytes, order: str) -> None:
        self._content, self.order, self._at = content, order, 0

    @property
    def ended(self) -> bool:
        """Whether there are no more."""
        return self._at >= len(self._content)

    def next(self) -> _Element:
        """The next element."""
        words = np.frombuffer(self._taken(_TAG), f"{self.order}u4")
        code, size = int(words[0]), int(words[1])
        if code >> 16:  # up to four bytes, in the place of the size
            code, size = code & 0xFFFF, code >> 16
            if size > _TAG // 2:
                raise Unreadable(f"a short element of {size} bytes")
            self._at -= _TAG // 2
            content = self._taken(_TAG // 2)[:size]
        else:
            content = self._taken(size)
            if code != _COMPRESSED:
                self._at = min(len(self._content), self._at + -size % _TAG)
        return _Element(code, content)

    def array(self) -> Shaped[np.ndarray, " n"]:
        """The numbers of the next element."""
        code, content = self.next()
        if code not in _NUMBERS:
            raise Unreadable(f"an element of type {code} in the place of numbers")
        dtype = np.dtype(self.order + _NUMBERS[code])
        if len(content) % dtype.itemsize:
            raise Unreadable(f"{len(content)} bytes of {dtype}")
        return np.frombuffer(content, dtype)

    def _taken(self, size: int) -> bytes:
        taken = self._content[self._at : self._at + size]
        if len(taken) < size:
            raise Unreadable(f"{len(taken)} bytes in the place of {size}")
        self._at += size
        return taken


class _Matrix:
    """The beginning of a matrix; what follows depends on its class."""

    def __init__(self, rest: _Elements) -> None:
        flags, shape, name = rest.array(), rest.array(), rest.next()
        if len(flags) != 2 or shape.dtype.kind != "i" or len(shape) < 2 or (shape < 0).any() or name.code != _INT8:
            raise Unreadable("a matrix without class, shape or name")
        self.kind = int(flags[0]) & 0xFF
        self.shape = tuple(int(side) for side in shape)
        self.name, self.rest = name.content.decode("latin-1"), rest

    def field(self, wanted: str) -> "_Matrix":
        """A field of a structure."""
        if self.kind != _STRUCTURE or math.prod(self.shape) != 1:
            raise Unreadable(f"`{self.name}` of class {self.kind} and shape {self.shape}, which is no single structure")
        length, names = self.rest.array(), self.rest.next().content
        width = int(length[0]) if len(length) == 1 else 0
        if width < 1 or len(names) % width:
            raise Unreadable(f"names of fields, {len(names)} bytes")
        for start in range(0, len(names), width):
            field = self.rest.next()
            if names[start : start + width].split(b"\0")[0] == wanted.encode():
                if field.code != _MATRIX:
                    raise Unreadable(f"field `{wanted}` of type {field.code}")
                return _Matrix(_Elements(field.content, self.rest.order))
        raise Unreadable(f"no field `{wanted}` in `{self.name}`")

    def numbers(self) -> Shaped[np.ndarray, "..."]:
        """The real numbers of a matrix that is not sparse."""
        if self.kind not in _CLASSES:
            raise Unreadable(f"a matrix of class {self.kind}, which has no numbers")
        values = self.rest.array()
        if len(values) != math.prod(self.shape):
            raise Unreadable(f"{len(values)} numbers in a matrix of shape {self.shape}")
        return values.astype(_CLASSES[self.kind]).reshape(self.shape, order="F")


def read_field(content: bytes, variable: str, field: str) -> Shaped[np.ndarray, "..."]:
    """A numeric field of a variable that is a single structure.

    Args:
        content: the bytes of the file.
        variable, field: names.

    Raises:
        Unreadable, zlib.error: the bytes are damaged, of another version, or hold no such field.
    """
    orders = {b"IM": "<", b"MI": ">"}
    mark = content[_HEADER - 2 : _HEADER]
    if mark not in orders or content[_HEADER - 4 : _HEADER - 2] not in (b"\0\1", b"\1\0"):
        raise Unreadable(f"no MATLAB file of version 5 ({content[:20]!r})")
    elements = _Elements(content[_HEADER:], orders[mark])
    while not elements.ended:
        element = elements.next()
        if element.code == _COMPRESSED:
            element = _Elements(zlib.decompress(element.content), elements.order).next()
        if element.code == _MATRIX:
            matrix = _Matrix(_Elements(element.content, elements.order))
            if matrix.name == variable:
                return matrix.field(field).numbers()
    raise Unreadable(f"no variable `{variable}`")
