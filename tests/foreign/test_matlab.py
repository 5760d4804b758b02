"""Fields of MATLAB's structures: what scipy writes, in any type and packing; other byte orders; damage."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

from wsss.errors import Unreadable
from wsss.foreign.matlab import read_field

TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def written(contents: dict, *, compressed: bool) -> bytes:
    stream = io.BytesIO()
    savemat(stream, contents, do_compression=compressed)
    return stream.getvalue()


@given(st.data(), st.sampled_from(TYPES), st.booleans())
def test_what_scipy_writes(data, dtype, compressed):
    sides = st.integers(0, 6)
    values = data.draw(
        hnp.arrays(np.dtype(dtype), st.tuples(sides, sides), elements={"allow_nan": False} if dtype[0] == "f" else None)
    )
    others = {"Boundaries": [csc_matrix(np.eye(3)), "text"], "a": np.zeros(2)}
    content = written(
        {"first": np.ones(3), "GTcls": {**others, "Segmentation": values, "z": 1}, "z": 2}, compressed=compressed
    )
    found = read_field(content, "GTcls", "Segmentation")
    theirs = loadmat(io.BytesIO(content))["GTcls"]["Segmentation"][0, 0]
    assert found.dtype == theirs.dtype
    np.testing.assert_array_equal(found, theirs)
    np.testing.assert_array_equal(found, values)


def element(order: str, code: int, content: bytes) -> bytes:
    return struct.pack(f"{order}II", code, len(content)) + content + bytes(-len(content) % 8)


def by_hand(order: str, stored: tuple[int, bytes]) -> bytes:
    """A structure with one field, a 2x3 matrix of class double whose numbers are stored in another type."""

    def matrix(kind, shape, name, *rest):
        parts = [struct.pack(f"{order}II", kind, 0), struct.pack(f"{order}ii", *shape)]
        return element(
            order,
            14,
            element(order, 6, parts[0]) + element(order, 5, parts[1]) + element(order, 1, name) + b"".join(rest),
        )

    numbers = matrix(6, (2, 3), b"", element(order, *stored))
    # the length of names as a short element
    length = struct.pack(f"{order}HHi", *((5, 4) if order == "<" else (4, 5)), 8)
    field = matrix(2, (1, 1), b"GTcls", length, element(order, 1, b"labels\0\0"), numbers)
    mark = struct.pack(f"{order}HH", 0x0100, 0x4D49)
    return b"MATLAB 5.0".ljust(124) + mark + field


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("code", "form"), [(2, "6B"), (3, "6h"), (9, "6d")])
def test_both_byte_orders_and_numbers_in_smaller_types(order, code, form):
    content = by_hand(order, (code, struct.pack(order + form, 1, 2, 3, 4, 5, 6)))
    found = read_field(content, "GTcls", "labels")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [[1, 3, 5], [2, 4, 6]])  # column by column
    np.testing.assert_array_equal(loadmat(io.BytesIO(content))["GTcls"]["labels"][0, 0], found)


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        ({"other": 1}, "no variable `GTcls`"),
        ({"GTcls": np.ones((2, 2))}, "no single structure"),
        ({"GTcls": {"other": 1}}, "no field `Segmentation`"),
        ({"GTcls": {"Segmentation": "text"}}, "class 4, which has no numbers"),
        ({"GTcls": {"Segmentation": csc_matrix(np.eye(3))}}, "class 5"),
        ({"GTcls": {"Segmentation": {"deeper": 1}}}, "class 2"),
    ],
)
def test_files_with_something_else(contents, found):
    for compressed in (False, True):
        with pytest.raises(Unreadable, match=found):
            read_field(written(contents, compressed=compressed), "GTcls", "Segmentation")


def test_other_versions():
    stream = io.BytesIO()
    savemat(stream, {"GTcls": np.eye(3)}, format="4")
    for content in (stream.getvalue(), b"", b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM"):
        with pytest.raises(Unreadable, match="no MATLAB file of version 5"):
            read_field(content, "GTcls", "Segmentation")


@given(st.data())
def test_damage_is_noticed_or_harmless(data):
    whole = bytearray(
        written({"GTcls": {"Segmentation": np.eye(5, dtype=np.uint8)}}, compressed=data.draw(st.booleans()))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    # Unreadable is a ValueError; `wsss.errors.reading` names the file in all of them
    with contextlib.suppress(ValueError, OverflowError, zlib.error):
        read_field(bytes(whole[: data.draw(st.integers(0, len(whole)))]), "GTcls", "Segmentation")
