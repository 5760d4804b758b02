"""Headers of arrays: as NumPy reads them, and nothing else."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from wsss.foreign.npy_header import read_header

TYPES = ("<f2", "<f4", ">f8", "i1", "<i8", "|u1", "?", "<U7", "|S3", "<c8", "|O")


def header_of(array, version=(1, 0)):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    stream.seek(0)
    return stream


@settings(deadline=None)
@given(
    st.sampled_from(TYPES),
    array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=3),
    st.sampled_from("CF"),
    st.sampled_from([1, 2]),
)
def test_it_is_what_numpy_reads(dtype, shape, order, version):
    array = np.zeros(shape, dtype, order)
    stream, other = header_of(array, (version, 0)), header_of(array, (version, 0))
    np.lib.format.read_magic(other)
    reader = np.lib.format.read_array_header_1_0 if version == 1 else np.lib.format.read_array_header_2_0
    assert tuple(read_header(stream)) == reader(other)
    assert stream.tell() == other.tell()


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1 + 1,), }",
        "{'descr': '<f4', 'fortran_order': None, 'shape': (2,), }",
        "{'descr': '<f4', 'shape': (2,), }",
        "",
    ],
)
def test_anything_else_is_refused(text):
    content = np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text.encode()
    with pytest.raises(ValueError, match="no header"):
        read_header(io.BytesIO(content))


def test_unknown_types_are_refused():
    text = "{'descr': 'x', 'fortran_order': False, 'shape': (2,), }"
    content = np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text.encode()
    with pytest.raises(ValueError, match="type 'x'"):
        read_header(io.BytesIO(content))


def test_other_versions_and_cut_files_are_refused():
    with pytest.raises(ValueError, match=r"\.npy version \(3, 0\)"):
        read_header(io.BytesIO(np.lib.format.magic(3, 0) + b"\0" * 100))
    with pytest.raises(ValueError, match="magic string"):
        read_header(io.BytesIO(b"PK"))
    with pytest.raises(ValueError, match="no header"):
        read_header(io.BytesIO(header_of(np.zeros(3)).getvalue()[:40]))
