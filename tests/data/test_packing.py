"""Packing of maps: exact for any numbers, smaller for smooth ones, damage is noticed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.parity import inputs
from wsss.data.packing import pack, unpack
from wsss.errors import Unreadable

SHAPES = st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 7))


@given(SHAPES.flatmap(lambda shape: hnp.arrays(np.uint16, shape)))
def test_every_bit_pattern_survives(bits):
    values = bits.view(np.float16)
    unpacked = unpack(pack(values), values.shape)
    assert unpacked.dtype == np.float16
    np.testing.assert_array_equal(unpacked.view(np.uint16), bits)


def test_interpolated_maps_become_small():
    coarse = torch.from_numpy(inputs.array("maps", (2, 6, 8)))[None]
    maps = F.interpolate(coarse, size=(96, 128), mode="bilinear")[0].numpy().astype(np.float16)
    assert pack(maps).nbytes < 0.3 * maps.nbytes


def test_an_array_in_another_memory_order():
    values = inputs.array("maps", (2, 4, 5)).astype(np.float16)
    np.testing.assert_array_equal(unpack(pack(np.asfortranarray(values)), values.shape), values)


@pytest.mark.parametrize("damage", [b"", b"text", bytes(40)])
def test_what_is_not_packed(damage):
    with pytest.raises(Unreadable):
        unpack(np.frombuffer(damage, np.uint8), (1, 4, 4))


def test_another_number_of_values():
    with pytest.raises(Unreadable, match=r"32 bytes packed into .* shape \(1, 4, 5\)"):
        unpack(pack(np.zeros((1, 4, 4), np.float16)), (1, 4, 5))
