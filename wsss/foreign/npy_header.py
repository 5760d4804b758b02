"""The header of a `.npy` file or of an array in an `.npz` file (NumPy's format, NEP 1).

NumPy evaluates it as a Python literal. Before Python 3.11.9, this fails at random if several threads do so concurrently (CPython issue
106905: "AST constructor recursion depth mismatch"), and stages read maps in threads. A header is a dictionary with three entries.
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
    """Shape, memory order and data type of an array in a file."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


def read_header(stream: IO[bytes]) -> Header:
    """Read the header; the stream is positioned at the first number of the array.

    Raises:
        ValueError: the stream does not begin with the header, version 1.0 or 2.0, of an array of plain elements.
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
    try:
        dtype = np.dtype(match["dtype"])
    except TypeError as error:
        raise ValueError(f"elements of type {match['dtype']!r:.20}") from error
    return Header(shape, match["fortran"] == "True", dtype)
