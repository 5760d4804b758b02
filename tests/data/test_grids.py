"""Maps that are predicted by the grids they were enlarged from: files give back the same bits, predictions are those of exact arithmetic."""

import tracemalloc
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.parity import inputs
from wsss.data.files import read_cams, write_cams
from wsss.data.grids import LARGEST, Grids, fit, fitted, predicted, whole_numbers
from wsss.data.packing import pack, pack_whole, unpack, unpack_whole
from wsss.errors import BadInput, Unreadable

WEIGHT = 2**15


def maps_of(size_hw=(75, 100), count=2, scales=(1.0, 0.5, 1.5), seed=0) -> tuple[np.ndarray, Grids]:
    """Maps as CAM makes them, float32 in [0, 1]."""
    enlarged_hw = tuple(-(-side // 16) * 16 for side in size_hw)
    values, total = [], torch.zeros(1, count, *enlarged_hw)
    for number, scale in enumerate(scales):
        rows, columns = (max(1, round(side * scale / 16)) for side in enlarged_hw)
        grid = torch.from_numpy(inputs.array(f"grid {number}", (count, rows, columns), seed, -0.5, 1)).relu()
        values.append(grid.numpy())
        total += F.interpolate(grid[None], size=enlarged_hw, mode="bilinear", align_corners=False)
    maps = total[0, :, : size_hw[0], : size_hw[1]]
    return (maps / (maps.amax((1, 2), keepdim=True) + 1e-5)).numpy(), Grids(values, enlarged_hw)


def one_by_one(whole, factors, size_hw, enlarged_hw):
    """The prediction in whole numbers of Python, pixel by pixel."""

    def cells(pixel, count, length):
        place = max(Fraction((2 * pixel + 1) * count, 2 * length) - Fraction(1, 2), Fraction(0))
        before = place.numerator // place.denominator
        weight = int((place - before) * WEIGHT + Fraction(1, 2))
        return ((before, WEIGHT - weight), (min(before + 1, count - 1), weight))

    found = np.empty((len(factors), *size_hw), np.float16)
    for number, row, column in np.ndindex(found.shape):
        total = sum(
            int(grid[number, r, c]) * down * along
            for grid in whole
            for r, down in cells(row, grid.shape[1], enlarged_hw[0])
            for c, along in cells(column, grid.shape[2], enlarged_hw[1])
        )
        assert total < 2**53
        found[number, row, column] = np.float64(total) * factors[number]
    return found


@pytest.mark.parametrize("at_a_time", [1, 2**20])
@given(data=st.data())
def test_a_prediction_is_that_of_exact_arithmetic(at_a_time, data):
    size_hw = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    enlarged_hw = tuple(side + data.draw(st.integers(0, 16)) for side in size_hw)
    sides = st.integers(1, 24)
    grids = [
        data.draw(hnp.arrays(np.float32, (2, data.draw(sides), data.draw(sides)), elements=st.floats(0, 1e3, width=32)))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    whole = whole_numbers(grids)
    assert sum(one.max() for one in whole) <= LARGEST
    factors = np.array([1e-13, data.draw(st.floats(0, 1e-12))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsss.data.grids._ENLARGED", at_a_time)
        found = predicted(whole, factors, size_hw, enlarged_hw)
    np.testing.assert_array_equal(
        found.view(np.uint16),
        one_by_one(whole, factors, size_hw, enlarged_hw).view(np.uint16),
    )


@given(st.data())
def test_any_bits_survive_whatever_the_grids_predict(data):
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7)))
    bits = data.draw(hnp.arrays(np.uint16, shape))
    values = hnp.arrays(np.float32, st.tuples(st.just(shape[0]), st.integers(1, 4), st.integers(1, 4)))
    grids = data.draw(st.lists(values, min_size=1, max_size=3))
    whole = whole_numbers(grids)  # which may be negative, infinite, or no numbers
    sizes = [(one.shape[1], one.shape[2]) for one in whole]
    again = unpack_whole(pack_whole(whole), shape[0], sizes)
    for ours, theirs in zip(again, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    maps = bits.view(np.float16)
    factors = fitted(whole, maps.astype(np.float32), shape[1:])
    assert np.isfinite(factors).all()
    packed = pack(maps, predicted(whole, factors, shape[1:], shape[1:]))
    found = unpack(packed, shape, lambda: predicted(again, factors, shape[1:], shape[1:]))
    np.testing.assert_array_equal(found.view(np.uint16), bits)


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5)])
def test_files_with_grids_are_small_and_hold_the_same_maps(tmp_path, scales):
    maps, grids = maps_of((375, 500), scales=scales)
    quarter = np.stack([one[::4, ::4] for one in maps])
    write_cams(tmp_path / "plain.npz", np.array([3, 7]), maps, quarter)
    write_cams(tmp_path / "small.npz", np.array([3, 7]), maps, quarter, grids)
    for key, values in (("maps", maps), ("maps_stride4", quarter)):
        for name in ("plain", "small"):
            classes, found = read_cams(tmp_path / f"{name}.npz", key)
            assert classes.tolist() == [3, 7]
            np.testing.assert_array_equal(found, values.astype(np.float16))
    plain, small = (without_quarter(tmp_path / f"{name}.npz") for name in ("plain", "small"))
    assert small < plain / 6


def without_quarter(path):
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist() if "stride4" not in entry.filename)


def test_nearly_all_pixels_are_predicted():
    for scales in ((1.0,), (1.0, 0.5, 1.5, 2.0)):
        maps, grids = maps_of(scales=scales)
        whole = whole_numbers(grids.values)
        factors = fitted(whole, maps, grids.enlarged_hw)
        same = predicted(whole, factors, maps.shape[1:], grids.enlarged_hw) == maps.astype(np.float16)
        assert same.mean() > 0.99


def test_grids_that_would_take_much_more_memory_than_the_maps_are_left_out(tmp_path):
    maps = np.zeros((1, 100, 100), np.float32)
    many = Grids([np.zeros((1, 2000, 1), np.float32)] * 2, (100, 100))
    assert not fit([(2000, 1)] * 2, (100, 100))
    write_cams(tmp_path / "maps.npz", np.array([0]), maps, grids=many)
    assert "maps_factors.npy" not in zipfile.ZipFile(tmp_path / "maps.npz").namelist()
    np.testing.assert_array_equal(read_cams(tmp_path / "maps.npz")[1], maps)


@pytest.mark.parametrize(("side", "has_grids"), [(64, False), (65, True)])
def test_small_maps_have_no_grids(tmp_path, side, has_grids):
    maps, grids = maps_of((side, 64))
    write_cams(tmp_path / "maps.npz", np.array([0, 1]), maps, grids=grids)
    assert ("grids.npy" in zipfile.ZipFile(tmp_path / "maps.npz").namelist()) == has_grids
    np.testing.assert_array_equal(read_cams(tmp_path / "maps.npz")[1], maps.astype(np.float16))


def test_no_maps_have_no_grids(tmp_path):
    write_cams(
        tmp_path / "none.npz",
        np.zeros(0, int),
        np.zeros((0, 4, 5), np.float32),
        grids=Grids([np.zeros((0, 1, 1))], (4, 5)),
    )
    assert read_cams(tmp_path / "none.npz")[1].shape == (0, 4, 5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grids", np.array([[1, 2], [0, 4]], np.int32)),
        ("grids", np.array([3, 4], np.int32)),
        ("grids", np.array([[2**30, 2**30]], np.int32)),
        ("grids", np.ones((200, 2), np.int32)),
        ("grids", np.ones((0, 2), np.int32)),
        ("grids_packed", np.zeros(9, np.uint8)),
        ("grids_packed", pack_whole([np.full((2, 5, 7), float(LARGEST))] * 3)),
        ("maps_factors", np.zeros(3)),
        ("maps_factors", np.zeros(2, np.float32)),
        ("maps_shape", np.array([2, 75, 100], np.int32)),
        ("maps_shape", np.array([2, 75, 100, 74, 112], np.int32)),
        ("maps_shape", np.array([3, 75, 100, 80, 112], np.int32)),
    ],
)
def test_damage_ends_in_one_clear_error(tmp_path, key, value):
    maps, grids = maps_of()
    path = tmp_path / "maps.npz"
    write_cams(path, np.array([0, 1]), maps, grids=grids)
    with np.load(path) as stored:
        contents = dict(stored) | {key: value}
    np.savez(path, **contents)
    with pytest.raises(BadInput, match="Make the activation maps again"):
        read_cams(path)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((0, 10**8, 10**4), (1, 1)), ((1, 10**8, 0), (3, 3)), ((1, 0, 10**8), (3, 3)), ((1, 20_000, 1), (80_000, 1))],
)
def test_what_promises_nothing_takes_no_memory(tmp_path, shape, sides):
    """Files of few bytes whose maps have a side of 0, or many more rows in their grids than values."""
    nothing = pack(np.zeros((0, 1, 1), np.float16))
    contents = {
        "classes": np.arange(shape[0], dtype=np.int16),
        "grids": np.array([sides], np.int32),
        "grids_packed": pack_whole([np.zeros((shape[0], *sides))]) if shape[0] else nothing,
        "maps_factors": np.zeros(shape[0]),
        "maps_packed": nothing if 0 in shape else pack(np.zeros(shape, np.float16)),
        "maps_shape": np.array([*shape, *shape[1:]], np.int32),
    }
    np.savez(tmp_path / "maps.npz", **contents)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput):
            read_cams(tmp_path / "maps.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e308, np.inf, np.nan, -1.0])
def test_extreme_numbers_in_grids(value):
    (whole,) = whole_numbers([np.array([[[value, 1e-3 * value]]])])
    assert np.isfinite(whole).all()
    assert ((whole >= 0) & (whole <= LARGEST)).all()
    assert (whole[0, 0, 0] == LARGEST - 1) == (value == 1e308)


def test_grids_without_views_are_left_out(tmp_path):
    maps = maps_of()[0]
    write_cams(tmp_path / "maps.npz", np.array([0, 1]), maps, grids=Grids([], (80, 112)))
    np.testing.assert_array_equal(read_cams(tmp_path / "maps.npz")[1], maps.astype(np.float16))


def test_numbers_that_are_too_large_to_be_exact_are_refused():
    packed = pack_whole([np.full((1, 2, 2), LARGEST - 5.0), np.full((1, 1, 1), 6.0)])
    with pytest.raises(Unreadable, match="larger numbers"):
        unpack_whole(packed, 1, [(2, 2), (1, 1)])
