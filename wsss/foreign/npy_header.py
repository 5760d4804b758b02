"""The header of a `.npy` file or of an array in an `.npz` file (NumPy's format, NEP 1).

NumPy evaluates it as a Python literal. Before Python 3.11.9, that fails at random where several threads do so at a time (CPython issue
106905: "AST constructor recursion depth mismatch"), and stages read maps in threads. A header is one dictionary of three entries.
"""

import re
from typing import IO, NamedTuple

import numpy as np

_HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<dtype>[<>|=]?[a-zA-Z?][0-9]*)',\s*"
    r"'fortran_order':\s*(?P<fortran>True|False),\s*"
    r"'shape':\s*\((?P<shape>[0-9]*(?:,\s*[0-9]+)*,?)\s*\),?\s*\}\s*"
)
_LONGEST = 10_000


class Header(NamedTuple):
    """What an array file says of its array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


def read_header(stream: IO[bytes]) -> Header:
    """Read a stream up to where the numbers of the array begin.

    Raises:
        ValueError: it does not begin with the header of an array of plain elements, in version 1.0 or 2.0.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f".npy version {version}")
    n_bytes = 2 if version == (1, 0) else 4
    length = int.from_bytes(stream.read(n_bytes), "little")
    if length > _LONGEST:
        raise ValueError(f"a header of {length} bytes")
    text = stream.read(length).decode("latin-1")
    match = _HEADER.fullmatch(text) if len(text) == length else None
    if match is None:
        raise ValueError(f"no header: {text!r:.120}")
    shape = tuple(int(side) for side in match["shape"].replace(" ", "").split(",") if side)
    return Header(shape, match["fortran"] == "True", np.dtype(match["dtype"]))
