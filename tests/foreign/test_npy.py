"""Pickled `.npy` files are read as NumPy and torch wrote them, and nothing in them is ever run."""

import contextlib
import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import inputs
from wsss.errors import BadInput
from wsss.foreign.npy import read_legacy, read_legacy_cams, read_legacy_labels

HEADER = "{'descr': '|O', 'fortran_order': False, 'shape': (), }"


def pickled(value: object, protocol: int) -> bytes:
    """What `numpy.save` writes, by any version of NumPy: the header and the pickled array."""
    array = np.empty((), object)
    array[()] = value
    return with_header(pickle.dumps(array, protocol))


def with_header(content: bytes) -> bytes:
    text = HEADER.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def same(read: object, written: object) -> None:
    if isinstance(written, dict):
        assert isinstance(read, dict)
        assert list(read) == list(written)
        for key in written:
            same(read[key], written[key])
    elif isinstance(written, list | tuple):
        assert type(read) is type(written)
        for one, other in zip(read, written, strict=True):
            same(one, other)
    elif isinstance(written, np.ndarray | torch.Tensor):
        expected = np.asarray(written)
        assert isinstance(read, np.ndarray)
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)
    else:
        assert read == written


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("legacy") / "a.npy"


CONTENTS = [
    {2007000032: np.eye(20, dtype=np.float32)[3], 2008000008: np.zeros(20, np.float32)},
    {"2007_000032": np.eye(20, dtype=np.float32)[3]},
    {
        "keys": torch.tensor([3, 5]),
        "cam": torch.from_numpy(inputs.array("cam", (2, 3, 4))),
        "high_res": inputs.array("high", (2, 9, 16)),
    },
    {
        "keys": torch.zeros(0, dtype=torch.int64),
        "cam": torch.zeros(0, 4, 5),
        "high_res": np.zeros((0, 16, 20), np.float32),
    },
    {3: inputs.array("map", (9, 16)), 7: np.asfortranarray(inputs.array("map", (9, 16), 1))},
    {"keys": np.array([7, 2]), "attn_highres": inputs.array("a", (2, 5, 6)).astype(np.float16)},
    {
        "view": torch.arange(24.0).reshape(4, 6).t()[1:5:2, 1:],
        "half": torch.ones(3).half(),
        "yes": torch.tensor([True, False]),
    },
    {"x": {np.str_("cat"): {"vqa": [("what is a {}?", "an animal")], "answers": ["animal"]}}},
    {"all": [None, True, False, -1, 2**40, 1.5, "ä", b"\xff\x00", (), (1, 2, 3, 4)], "big": np.array([1, 2], ">i4")},
    {"words": np.array(["ab", "c"]), "scalar": np.float64(2.5), "ordered": OrderedDict()},
    [1, 2],
    "text",
]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_what_was_pickled_is_read(scratch, content, protocol):
    same(read_legacy(write(scratch, pickled(content, protocol))), content)


def test_files_of_numpy_1(scratch):
    blob = pickled(CONTENTS[0], 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    same(read_legacy(write(scratch, blob)), CONTENTS[0])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: (
            st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(-(2**60), 2**60), inner)
        ),
    ),
    st.integers(2, 4),
)
@settings(max_examples=60, deadline=None)
def test_plain_data_is_read(scratch, content, protocol):
    assert read_legacy(write(scratch, pickled(content, protocol))) == content


def test_plain_arrays(scratch):
    for array in (
        inputs.array("a", (3, 4)),
        np.asfortranarray(inputs.array("a", (3, 4))),
        np.arange(5),
        np.zeros((0, 3)),
    ):
        np.save(scratch, array)
        same(read_legacy(scratch), array)


class Evil:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Evil(os.system, "touch HIT"), r"(posix|nt)\.system"),
        ({"a": Evil(eval, "open('HIT', 'w')")}, r"builtins?(__)?\.eval"),
        (Evil(getattr, "x", "upper"), r"builtins?(__)?\.getattr"),
        ({1: Evil(torch.load, "HIT")}, r"torch\.serialization\.load"),
        ({1: Evil(np.load, "HIT")}, r"numpy.*\.load"),
        (Evil(np.random.default_rng, 0), r"numpy\.random.*default_rng"),
        ({1: {2, 3}}, r"builtins?(__)?\.set|EMPTY_SET"),
        ({1: Path("a")}, r"pathlib.*Path"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_run(scratch, monkeypatch, tmp_path, content, name, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=rf"found the (forbidden function or class|pickle instruction) .*({name})"):
        read_legacy(write(scratch, pickled(content, protocol)))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_run_inside_a_tensor(scratch, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    class Storage:
        def __reduce__(self) -> tuple:
            stream = io.BytesIO()
            torch.save(Evil(os.system, "touch HIT"), stream, _use_new_zipfile_serialization=False)
            return torch.storage._load_from_bytes, (stream.getvalue(),)

    with pytest.raises(BadInput, match=r"forbidden function or class (posix|nt)\.system"):
        read_legacy(write(scratch, pickled({"cam": Storage()}, 4)))
    assert list(tmp_path.iterdir()) == []


def tensor_of(storage: bytes, offset: int, size: tuple, stride: tuple) -> object:
    return Evil(
        torch._utils._rebuild_tensor_v2,
        Evil(torch.storage._load_from_bytes, storage),
        offset,
        size,
        stride,
        False,
        OrderedDict(),
    )


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (3,), (1,)),
        (2, (1,), (1,)),
        (0, (2, 2), (1, 1)),
        (0, (2,), (-1,)),
        (-1, (1,), (1,)),
        (0, (10**6,), (0,)),
        (0, (2,), (1, 1)),
    ],
)
def test_tensors_stay_inside_their_numbers(scratch, offset, size, stride):
    stream = io.BytesIO()
    torch.save(torch.tensor([1.0, 2.0]).storage(), stream, _use_new_zipfile_serialization=False)
    good = tensor_of(stream.getvalue(), 0, (2,), (1,))
    assert read_legacy(write(scratch, pickled({1: good}, 4)))[1].tolist() == [1.0, 2.0]
    with pytest.raises(BadInput, match="cannot be read"):
        read_legacy(write(scratch, pickled({1: tensor_of(stream.getvalue(), offset, size, stride)}, 4)))


def test_memory_bombs(scratch):
    put_far_away = b"\x80\x02N" + b"r" + struct.pack("<I", 2**26) + b"."
    assert read_legacy(write(scratch, with_header(put_far_away))) is None
    encode = b"c_codecs\nencode\n"
    text = b"X" + struct.pack("<I", 10**5) + b"a" * 10**5 + b"q\x00"
    again = (encode + b"h\x00X\x06\x00\x00\x00latin1\x86R") * 1000
    with pytest.raises(BadInput, match="over and over"):
        read_legacy(write(scratch, with_header(b"\x80\x02]" + text + again + b".")))
    nested = b"\x80\x02}(" + b"N" + b"\x85" * 100 + b"Nu."
    with pytest.raises(BadInput, match="a key of type tuple"):
        read_legacy(write(scratch, with_header(nested)))


def check_read_or_refused(path: Path) -> None:
    for read in (read_legacy, read_legacy_labels, read_legacy_cams):
        with contextlib.suppress(BadInput):
            read(path)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CONTENTS[:6]), st.integers(2, 4), st.data())
def test_damaged_files_are_read_or_refused(scratch, content, protocol, data):
    blob = bytearray(pickled(content, protocol))
    for _ in range(data.draw(st.integers(1, 5))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    check_read_or_refused(write(scratch, bytes(blob[: data.draw(st.integers(0, len(blob)))])))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [bytes([code]) for code in b"(0.1NKIFT]}aedlsu\x85\x86\x87\x88\x89\x93\x94Rbhqrcoi\x81Q)tU\x00\x01"]
        )
        | st.binary(max_size=4)
    )
)
def test_any_program_is_read_or_refused(scratch, program):
    check_read_or_refused(write(scratch, with_header(b"".join(program) + b".")))


def test_labels_of_names(scratch):
    np.save(scratch, CONTENTS[0])
    labels = read_legacy_labels(scratch)
    assert {name: np.flatnonzero(row).tolist() for name, row in labels.items()} == {"2007000032": [3], "2008000008": []}
    assert all(row.dtype == bool for row in labels.values())


def test_labels_in_a_matrix(scratch):
    np.save(scratch, np.array([[0, 1.0], [1, 0]]))
    assert read_legacy_labels(scratch).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "a dict of 0 entries"),
        ("text", r"an array of <U4 \(\)"),
        ({"a": 3}, "a int under 'a'"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, "vectors of 3 to 4 entries"),
        (np.zeros(3), r"an array of float64 \(3,\)"),
    ],
)
def test_no_labels(scratch, content, found):
    np.save(scratch, content)
    with pytest.raises(BadInput, match=rf"a\.npy: found {found}; expected a dictionary from names"):
        read_legacy_labels(scratch)


def test_maps_of_irnet(scratch):
    np.save(scratch, CONTENTS[2])
    classes, maps, strided = read_legacy_cams(scratch)
    assert classes.tolist() == [3, 5]
    np.testing.assert_array_equal(maps, CONTENTS[2]["high_res"])
    np.testing.assert_array_equal(strided, CONTENTS[2]["cam"])


def test_maps_of_clip_es_are_put_in_order(scratch):
    np.save(scratch, CONTENTS[5])
    classes, maps, strided = read_legacy_cams(scratch)
    assert (classes.tolist(), maps.dtype, strided) == ([2, 7], np.float32, None)
    np.testing.assert_array_equal(maps, CONTENTS[5]["attn_highres"][::-1].astype(np.float32))


def test_maps_of_psa(scratch):
    np.save(scratch, CONTENTS[4])
    classes, maps, _ = read_legacy_cams(scratch)
    assert classes.tolist() == [3, 7]
    np.testing.assert_array_equal(maps, np.stack([CONTENTS[4][3], CONTENTS[4][7]]))
    np.save(scratch, {})
    assert read_legacy_cams(scratch)[1].shape == (0, 0, 0)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"keys": np.array([1])}, "a NoneType"),
        (
            {"keys": np.array([1, 2]), "high_res": np.ones((1, 3, 3))},
            r"an array of float64 \(1, 3, 3\) for 2 classes",
        ),
        ({"keys": np.array([-1]), "high_res": np.ones((1, 3, 3))}, "classes -1..-1"),
        ({1: np.ones((3, 3)), 2: np.ones((3, 4))}, "a dict of 2 entries of different shapes"),
        ({"a": np.ones((3, 3))}, "a dict of 1 entries"),
        (3, r"an array of int64 \(\)"),
    ],
)
def test_no_maps(scratch, content, found):
    np.save(scratch, content)
    with pytest.raises(BadInput, match=rf"a\.npy: found {found}"):
        read_legacy_cams(scratch)


def test_no_file(tmp_path):
    with pytest.raises(BadInput, match=r"none\.npy: found no such file"):
        read_legacy(tmp_path / "none.npy")
    with pytest.raises(BadInput, match="cannot be read"):
        read_legacy(write(tmp_path / "a.npy", b""))
    np.save(tmp_path / "b.npy", np.arange(100))
    write(tmp_path / "b.npy", (tmp_path / "b.npy").read_bytes()[:-8])
    with pytest.raises(BadInput, match=r"99 numbers for a shape of .100,."):
        read_legacy(tmp_path / "b.npy")


@pytest.mark.parametrize("protocol", [2, 4])
def test_types_of_elements_stand_for_themselves(scratch, protocol):
    content = {"dtype": torch.float32, "others": [torch.float16, torch.bfloat16]}
    found = read_legacy(write(scratch, pickled(content, protocol)))
    assert found == {"dtype": "torch.float32", "others": ["torch.float16", "torch.bfloat16"]}
    with pytest.raises(BadInput, match=r"forbidden function or class torch\.int8"):
        read_legacy(write(scratch, pickled({"dtype": torch.int8}, protocol)))


def test_types_of_elements_cannot_be_called(scratch):
    calling = b"\x80\x02ctorch\nfloat32\n)R."
    with pytest.raises(BadInput, match="str instead of _Global"):
        read_legacy(write(scratch, with_header(calling)))
